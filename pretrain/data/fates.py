"""What becomes of one document: the step that drops it, or the edits that its text has gone through. Pure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from pretrain.data.document import Row
from pretrain.data.edits import Answer, Decision, Edit, Edited, edit_text
from pretrain.data.flow import SEPARATOR
from rlplatform.datafiles import DataError

LocalStep = Callable[[list[Row]], Sequence[Answer]]

CHANGES = "changes"
CHANGES_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # the document's, kept or dropped later
        pa.field("step", pa.string(), nullable=False),
        pa.field("start", pa.int64(), nullable=False),  # characters of the text that the step saw
        pa.field("end", pa.int64(), nullable=False),
        pa.field("removed", pa.string(), nullable=False),  # what stood there; "" where it is a secret
        pa.field("secret", pa.bool_(), nullable=False),  # personal data, which no record repeats
        pa.field("put", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
    ],
    metadata={b"rlplatform.documents": b"1"},
)
NOTHING_LEFT = "nothing_left"


@dataclass(frozen=True)
class Fate:
    """What the steps so far made of a document."""

    dropped: tuple[str, str, str] | None = None  # step, reason, detail
    edits: tuple[tuple[str, tuple[Edit, ...]], ...] = ()  # (step, its edits), in order

    def to_json(self) -> str:
        edits = [[step, [list(vars(edit).values()) for edit in own]] for step, own in self.edits]
        return json.dumps([self.dropped, edits], ensure_ascii=False)

    @staticmethod
    def from_json(line: str) -> Fate:
        dropped, edits = json.loads(line)
        own = tuple((step, tuple(Edit(*values) for values in found)) for step, found in edits)
        return Fate(tuple(dropped) if dropped else None, own)


UNTOUCHED = Fate()


def current(row: Row, fate: Fate) -> Row:
    """The document with the edits so far."""
    text = row["text"]
    for _, edits in fate.edits:
        text = edit_text(text, edits)
    return {**row, "text": text} if fate.edits else row


def changes(row: Row, fate: Fate) -> list[Row]:
    """A row of CHANGES_SCHEMA for every edit."""
    text, found = row["text"], []
    for step, edits in fate.edits:
        for edit in edits:
            removed = "" if edit.secret else text[edit.start : edit.end]
            shown = {name: getattr(edit, name) for name in ("start", "end", "secret", "put", "reason", "detail")}
            found.append({"id": row["id"], "step": step, "removed": removed, **shown})
        text = edit_text(text, edits)
    return found


def apply_step(
    name: str, function: LocalStep, rows: list[Row], fates: list[Fate], counts: Counter[str]
) -> tuple[list[Row], list[Fate]]:
    """One step over the documents that are left, and what it changed, counted as ``flow.flow_of`` reads it.

    Args:
        rows: documents as the steps before left them; those dropped keep their place.

    Raises:
        DataError: the function does not answer a ``Decision`` or ``Edited`` a document, or edits outside the text.
    """
    left = [place for place, fate in enumerate(fates) if fate.dropped is None]
    answers = list(function([rows[place] for place in left]))
    if len(answers) != len(left) or not all(isinstance(answer, Decision | Edited) for answer in answers):
        raise DataError(
            f"step {name!r}: expected a Decision or Edited for each of {len(left)} documents, got {len(answers)} "
            f"answers, the first {answers[:1]!r}"
        )
    counted: Counter[str] = Counter({"documents": 0, "characters": 0})
    new_rows, new_fates = list(rows), list(fates)
    for place, answer in zip(left, answers, strict=True):
        row = rows[place]
        counted.update({"documents": 1, "characters": len(row["text"])})
        new_rows[place], new_fates[place] = _apply(name, row, fates[place], answer, counted)
    counts.update({f"{name}{SEPARATOR}{measure}": number for measure, number in counted.items()})
    return new_rows, new_fates


def _apply(name: str, row: Row, fate: Fate, answer: Answer, counted: Counter[str]) -> tuple[Row, Fate]:
    text = row["text"]
    if isinstance(answer, Edited):
        if not answer.edits:
            return row, fate
        try:
            edited = edit_text(text, answer.edits)
        except DataError as error:
            raise DataError(f"step {name!r}, document {row['id']!r}: {error}") from error
        if edited.strip():
            counted.update({"edited": 1, "shortened": len(text) - len(edited)})
            counted.update(f"edits{SEPARATOR}{edit.reason}" for edit in answer.edits)
            return {**row, "text": edited}, replace(fate, edits=(*fate.edits, (name, answer.edits)))
        reasons = Counter(edit.reason for edit in answer.edits)
        answer = Decision(NOTHING_LEFT, ", ".join(f"{number} {reason}" for reason, number in sorted(reasons.items())))
    if answer.kept:
        return row, fate
    counted[f"dropped{SEPARATOR}{answer.reason}"] += 1
    counted[f"dropped_characters{SEPARATOR}{answer.reason}"] += len(text)
    return row, replace(fate, dropped=(name, answer.reason, answer.detail))
