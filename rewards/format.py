"""The `format` reward: exactly one well-formed think block, or none, as the prompt asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewards.base import rowwise
from rewards.response import OPEN, parse


@rowwise
def format_reward(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    thinking: Sequence[bool | None] | None = None,
    prompt_text: Sequence[str] | None = None,
    **columns: Any,
) -> list[float]:
    """1.0 for a well-formed completion, else 0.0.

    Column ``thinking`` (true where absent) picks the rule:

    - true: one ``<think>`` first, one ``</think>``, a non-empty thought between them, a non-empty answer after them.
    - false: a non-empty answer and no thought; an empty think block before the answer is allowed.

    A block that the prompt opened counts as opened: where the rendered prompt ends with ``<think>``, the completion
    starts inside the block. ``prompt_text`` is the rendered prompt; without it a string prompt stands in.
    """
    scores = []
    for row, completion in enumerate(completions):
        opened = prompt_opens_block(prompts[row], prompt_text[row] if prompt_text else None)
        wants_thought = True if thinking is None or thinking[row] is None else thinking[row]
        if wants_thought not in (True, False):
            raise ValueError(f"column 'thinking', row {row}: expected true or false, got {wants_thought!r}")
        scores.append(float(is_well_formed(text_of(completion), thinking=bool(wants_thought), opened=opened)))
    return scores


def is_well_formed(text: str, *, thinking: bool, opened: bool) -> bool:
    """The rule of ``format_reward`` for one completion; ``opened``: the prompt ends inside a think block."""
    response = parse(text, opened=opened)
    return response.well_formed and response.has_thought == thinking


def prompt_opens_block(prompt: Any, prompt_text: str | None = None) -> bool:
    """Does the prompt end inside a think block that it opened? ``prompt_text``: as rendered, where that is known."""
    rendered = prompt if prompt_text is None else prompt_text
    return isinstance(rendered, str) and rendered.rstrip().endswith(OPEN)


def text_of(completion: Any) -> str:
    """The text of a completion, which is a string or a list of messages (the last one counts).

    Of content in parts the texts count; a message that only calls tools has none.
    """
    content = completion if isinstance(completion, str) else completion[-1]["content"] if completion else ""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if part.get("type", "text") == "text")
    return "" if content is None else str(content)
