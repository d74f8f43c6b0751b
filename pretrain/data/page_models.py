"""Pages read by models in two steps: a vision-language model transcribes the page image, a text model refines that.

The Qwen3 report reads PDF-like documents with a fine-tuned Qwen2.5-VL and refines the text with Qwen2.5
(arXiv:2505.09388, section 3.1). Its prompts are not given; ours are the project's own. Both models stand behind
OpenAI-compatible endpoints. A page for which either does not answer is a failure that is counted, never another text.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rewards.judge_cache import ReplyCache, key_of
from rewards.judge_client import send
from rewards.judge_rules import NoReply, Reply
from rewards.response import CLOSE, OPEN
from rlplatform.config.corpus_documents import EndpointConfig, PdfConfig

BLANK = "[blank]"
VISION_PROMPT = """Transcribe this page.

Write all of its text in the order in which a person reads it: column by column, captions after what they belong to.
Write headings, lists and tables as Markdown and formulas as LaTeX between dollar signs. Leave out running heads, page
numbers and watermarks. Keep the language of the page; translate, explain and add nothing.
Reply with the transcription alone, or with [blank] if the page has no text."""
REFINE_PROMPT = """Below is the transcription of one page of a document, made by a machine.

Correct what the machine did wrong: words broken over lines, paragraphs cut by line breaks, wrong characters, repeated
or misplaced lines, broken tables and formulas. Change nothing else: keep every sentence, its language and its wording.
Reply with the corrected text alone.

<transcription>
{text}
</transcription>"""
_FENCED = re.compile(r"(`{3,})(?:markdown|md|text)?\n(.*)\n\1", re.DOTALL)


@dataclass(frozen=True)
class Reading:
    """What the models made of a page."""

    text: str
    method: str  # the models' names, first to last
    failure: str = ""  # "" = read; else which step failed and how: "vision timeout", "refine length"
    detail: str = ""


async def read_images(images: Sequence[bytes], config: PdfConfig) -> list[Reading]:
    """A reading of every page image (PNG), in order; ``concurrency`` of each endpoint at a time.

    Raises:
        JudgeSettingsError: the variable with the endpoint's key is not set, or the file of kept replies cannot be used.
    """
    vision, refine = _Model("vision", config.vision), _Model("refine", config.refine)

    async def read(image: bytes) -> Reading:
        content = [{"type": "text", "text": config.vision.prompt or VISION_PROMPT}, _image_part(image)]
        seen = await vision.ask(content)
        if seen.failure or seen.text == BLANK:
            return Reading("" if seen.text == BLANK else seen.text, seen.method, seen.failure, seen.detail)
        if not config.refine:
            return seen
        refined = await refine.ask((config.refine.prompt or REFINE_PROMPT).replace("{text}", seen.text))
        method = f"{seen.method}, {refined.method}"
        low, high = config.refine_length
        ratio = len(refined.text) / len(seen.text)
        if not refined.failure and not low <= ratio <= high:
            detail = (
                f"{len(seen.text)} characters became {len(refined.text)}; expected {low:g} to {high:g} times as many"
            )
            return Reading("", method, "refine length", detail)
        return Reading(refined.text, method, refined.failure, refined.detail)

    return list(await asyncio.gather(*(read(image) for image in images)))


def _image_part(image: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(image).decode()}"}}


class _Model:
    """One of the two models."""

    def __init__(self, step: str, config: EndpointConfig) -> None:
        self.step, self.config = step, config
        self._free = asyncio.Semaphore(config.concurrency)

    async def ask(self, content: str | list[dict[str, Any]]) -> Reading:
        """The text of its reply, or the failure: the client's status, ``cut`` at max_tokens, or ``empty``."""
        name = self.config.model
        async with self._free:
            reply = await self._reply(content)
        if isinstance(reply, NoReply):
            return Reading("", name, f"{self.step} {reply.status}", reply.detail)
        if not reply.complete:
            return Reading("", name, f"{self.step} cut", f"no end within {self.config.max_tokens} tokens")
        text = unfenced(without_thought(reply.text))
        if not text:
            return Reading("", name, f"{self.step} empty", "the reply holds no text")
        return Reading(text, name)

    async def _reply(self, content: str | list[dict[str, Any]]) -> Reply | NoReply:
        endpoint = self.config.endpoint()
        body: dict[str, Any] = {
            "model": endpoint.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": self.config.temperature,
            "max_tokens": self.config.max_tokens,
        }
        if endpoint.extra_body:
            body["extra_body"] = dict(endpoint.extra_body)
        if not endpoint.cache:
            return await send(endpoint, body)
        cache, key = ReplyCache(endpoint.cache), key_of({"base_url": endpoint.base_url, "body": body})
        kept = cache.get(key)
        if kept is not None:
            return kept
        reply = await send(endpoint, body)
        if isinstance(reply, Reply) and reply.complete and reply.text.strip():
            cache.put(key, reply)
        return reply


def without_thought(text: str) -> str:
    """What follows the thought of a reply that begins with one; nothing where it does not end. A page that speaks of
    think tags further down keeps them.
    """
    return text.partition(CLOSE)[2] if text.lstrip().startswith(OPEN) else text


def unfenced(text: str) -> str:
    """The text without a fence around all of it, which models like to write around Markdown."""
    text = text.strip()
    match = _FENCED.fullmatch(text)
    return match[2].strip() if match and match[1] not in match[2] else text
