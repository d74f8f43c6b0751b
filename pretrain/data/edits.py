"""What a cleaning step says of a document: keep it, drop it (``Decision``), or change its text (``Edited``).

An edit names a span of the text that the step saw and what stands there afterwards. Applied in order they give the new
text, and undone in reverse order the old one, where the record holds what was there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlplatform.datafiles import DataError
from rlplatform.stages.records import KEEP, Decision


@dataclass(frozen=True)
class Edit:
    """Characters ``start`` to ``end`` (exclusive) become ``put``."""

    start: int
    end: int
    put: str
    reason: str  # a word that can be counted
    detail: str = ""  # for people
    secret: bool = False  # records leave out what stood there


@dataclass(frozen=True)
class Edited:
    """The document stays, with another text. Spans are in order and share no character."""

    edits: tuple[Edit, ...]


Answer = Decision | Edited
__all__ = ["KEEP", "Answer", "Decision", "Edit", "Edited", "check_edits", "edit_text", "undo"]


def check_edits(edits: Sequence[Edit], length: int) -> None:
    """Raises DataError unless the spans are in order, without a shared character, and inside 0 to ``length``."""
    at = 0
    for edit in edits:
        if not at <= edit.start <= edit.end <= length:
            raise DataError(
                f"edits: expected spans in order inside {length} characters, got {edit.start} to {edit.end} after {at}"
            )
        at = edit.end


def edit_text(text: str, edits: Sequence[Edit]) -> str:
    """The new text.

    >>> edit_text("call 555 now", [Edit(5, 8, "[PHONE]", "phone")])
    'call [PHONE] now'

    Raises:
        DataError: see ``check_edits``.
    """
    check_edits(edits, len(text))
    parts, at = [], 0
    for edit in edits:
        parts += [text[at : edit.start], edit.put]
        at = edit.end
    return "".join([*parts, text[at:]])


def undo(text: str, edits: Sequence[Edit], removed: Sequence[str]) -> str:
    """The text before ``edits``, from the text after them and what stood in each span."""
    parts, at, shift = [], 0, 0
    for edit, old in zip(edits, removed, strict=True):
        start = edit.start + shift
        parts += [text[at:start], old]
        at = start + len(edit.put)
        shift += len(edit.put) - len(old)
    return "".join([*parts, text[at:]])
