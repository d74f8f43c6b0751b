"""How a conversation is written for a reward model: the one function of training and of serving.

    text = RewardText(max_tokens=1024)
    written = text.write(tokenizer, prompt, completion)      # token ids up to the token that ends the last turn

The turns are rendered by ``model.chat.render_segments``, as for supervised training; what a template puts behind the
last turn's end token is cut off. So the score stands on the end token, never on a newline or on padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from model.chat import encode_segments, render_segments
from model.messages import RenderError
from rewards.response import OPEN, parse

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Thoughts = Literal["strip", "keep"]


@dataclass(frozen=True)
class Written:
    """A conversation as the model reads it."""

    token_ids: np.ndarray  # int32 [T]; the last one ends the assistant's turn
    completion_tokens: int  # of the last turn, its end token included


@dataclass(frozen=True)
class RewardText:
    """The settings of the rendering. A trained reward model keeps them in its config.json."""

    thoughts: Thoughts = "strip"  # strip: only what follows </think> is read; an open thought leaves an empty answer
    enable_thinking: bool = True  # as in the data's config
    system: str = ""  # system message before every prompt that is a string
    max_tokens: int = 1024  # longest conversation

    def __post_init__(self) -> None:
        if self.thoughts not in ("strip", "keep"):
            raise ValueError(f"thoughts: expected strip or keep, got {self.thoughts!r}")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens: expected >= 1, got {self.max_tokens}")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> RewardText:
        """From what a model's config.json keeps; other keys there are not the rendering's."""
        return cls(**{name: settings[name] for name in asdict(cls()) if name in settings})

    def write(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompt: str | Sequence[Mapping[str, Any]],
        completion: str | Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        opened: bool = False,
    ) -> Written:
        """Render and encode. Nothing is cut: the caller compares the length with ``max_tokens``.

        Args:
            prompt: messages; a string is one user turn.
            completion: the assistant's text, or messages that end with the assistant's.
            opened: the policy's prompt ended inside a think block, so its text starts with the thought.

        Raises:
            RenderError: the conversation cannot be rendered, or does not end with the assistant's turn.
        """
        if isinstance(prompt, str):
            system = [{"role": "system", "content": self.system}] if self.system else []
            prompt = [*system, {"role": "user", "content": prompt}]
        if isinstance(completion, str):
            completion = [{"role": "assistant", "content": completion}]
        messages = [*prompt, *completion]
        if not completion or messages[-1].get("role") != "assistant":
            role = messages[-1].get("role") if completion else "no message"
            raise RenderError(f"expected a conversation that ends with the assistant's turn, got {role}")
        if opened and isinstance(messages[-1].get("content"), str):
            messages[-1] = {**messages[-1], "content": f"{OPEN}\n{messages[-1]['content']}"}
        messages[len(prompt) :] = [_without_turns(message, tokenizer) for message in messages[len(prompt) :]]
        if self.thoughts == "strip":
            messages = [_without_thought(message) for message in messages]
        segments = render_segments(tokenizer, messages, tools=tools, enable_thinking=self.enable_thinking)
        while not segments[-1].trained:
            segments.pop()
        token_ids, trained = encode_segments(tokenizer, segments)
        before = np.flatnonzero(~trained)
        return Written(token_ids, len(token_ids) - (int(before[-1]) + 1 if len(before) else 0))


def _without_turns(message: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """A policy can spell out ``<|im_end|>`` and then praise itself as the user: a space keeps it one answer."""
    content = message.get("content")
    if isinstance(content, str):
        special = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
        for token in sorted({*special, *tokenizer.all_special_tokens}, key=len, reverse=True):
            content = content.replace(token, f"{token[0]} {token[1:]}")
    return {**message, "content": content}


def _without_thought(message: Mapping[str, Any]) -> dict[str, Any]:
    bare = {key: value for key, value in message.items() if key != "reasoning_content"}
    if message.get("role") == "assistant" and isinstance(message.get("content"), str):
        bare["content"] = parse(message["content"]).answer
    return bare
