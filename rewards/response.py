r"""A response taken apart: the thought, the answer, and whether it has the form that was asked for.

The one reading of ``<think>`` blocks: the `format` and `math` rewards stand on it, and so does everything above them.
``model/`` and ``rewards/`` do not import each other, and rewards must run without torch, so it is here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

OPEN, CLOSE = "<think>", "</think>"
# Anything that reads as a think tag: a tag with spaces, capitals or attributes is a malformed one, not prose.
_TAG = re.compile(r"<\s*(?:/\s*)?think\b[^<>]*>?", re.IGNORECASE)
_SPECIAL_TOKEN = re.compile(r"<\|[^<>|]*\|>")  # e.g. a pad or end token kept in the text: no content


@dataclass(frozen=True)
class Response:
    """What a response says. ``answer`` is what a user is shown and what is graded."""

    thinking: str  # without the tags and the newlines around it; "" where there is none
    answer: str  # after the last </think>, without the newlines around it; "" while the block is open
    finished: bool  # no think block is open at the end
    well_formed: bool  # at most one block, first, closed, and an answer after it; no other think tag anywhere

    @property
    def has_thought(self) -> bool:
        return has_content(self.thinking)


def parse(text: str, *, opened: bool = False) -> Response:
    r"""Split at the last ``</think>``, as Qwen3's documentation does, and strip newlines from both parts.

    ``opened``: the prompt ends inside a think block, so the response starts with the thought and writes no opening
    tag. A prompt that holds a closed block (``enable_thinking=False``) opens nothing. Without ``</think>`` all of it is
    the answer, unless a block is open: a response cut off while thinking has no answer.

    >>> parse("<think>\n1+1\n</think>\n\n2")
    Response(thinking='1+1', answer='2', finished=True, well_formed=True)
    >>> parse("1+1\n</think>\n\n2", opened=True)
    Response(thinking='1+1', answer='2', finished=True, well_formed=True)
    >>> parse("<think>\n1+")
    Response(thinking='1+', answer='', finished=False, well_formed=False)
    """
    thought, close, answer = text.rpartition(CLOSE)
    if not close and opened:
        return Response(text.strip("\n"), "", finished=False, well_formed=False)
    reopened = answer.lstrip().startswith(OPEN)
    if reopened:
        thought, answer = text, ""
    before, opening, rest = ("", "", thought) if opened else thought.partition(OPEN)
    if opening and not before.strip():
        thought = rest
    return Response(
        thought.strip("\n"), answer.strip("\n"), finished=not reopened, well_formed=_is_well_formed(text, opened)
    )


def _is_well_formed(text: str, opened: bool) -> bool:
    tags = _TAG.findall(text)
    if not tags and not opened:
        return has_content(text)
    if tags != ([CLOSE] if opened else [OPEN, CLOSE]):
        return False
    before = "" if opened else text.partition(OPEN)[0]
    return not before.strip() and has_content(text.partition(CLOSE)[2])


def has_content(text: str) -> bool:
    """Anything but white space and special tokens?"""
    return bool(_SPECIAL_TOKEN.sub("", text).strip())
