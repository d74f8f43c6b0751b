"""Checklists for non-thinking answers (arXiv 2505.09388, section 4.3: quality is checked with automatically generated
checklists; how they are made is not published, these rules are this project's own).

    row -> checklist(row) -> items -> check_responses -> decisions, every item's result in the detail

An item is one requirement that a row's columns state, and a callable that grades a response against it. What columns
do not say, a language model can read out of the prompt: it is plugged in as two callables, one that writes items and
one that grades them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewards.base import resolve
from rewards.response import parse
from rlplatform.stages.loops import longest_loop
from rlplatform.stages.records import Decision, Row, text_column

Check = Callable[[Row, str], bool | None]  # (row, response) -> met, not met, or None: could not be graded
WriteItems = Callable[[Sequence[Row]], Sequence[Sequence[str]]]  # rows -> the requirements of each
GradeItems = Callable[[Row, str, Sequence[str]], Sequence[bool | None]]  # (row, response, requirements) -> results


@dataclass(frozen=True)
class Item:
    """One requirement of one row."""

    name: str  # short, for reasons and counts
    requirement: str  # a sentence, for people
    check: Check


def _reward(name: str, min_score: float = 1.0, **settings: Any) -> Check:
    """Met where a reward function gives the row ``min_score``; None where its verdict is not ok."""

    def check(row: Row, response: str) -> bool | None:
        columns = {key: [value] for key, value in row.items() if key not in ("prompt", "response", "prompts")}
        fn = resolve(name)
        verdict = fn(prompts=[row["prompt"]], completions=[response], **columns, **settings)[0]  # type: ignore[index]
        return verdict.score >= min_score - 1e-6 if verdict.ok else None

    return check


def _answer(response: str) -> str:
    return parse(response).answer


def _contains(row: Row, response: str) -> bool:
    return all(word.casefold() in _answer(response).casefold() for word in row["must_contain"])


def _avoids(row: Row, response: str) -> bool:
    text = _answer(response)
    return not any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.I) for word in row["must_not_contain"])


def _bullets(row: Row, response: str) -> bool:
    marks = re.findall(r"^[ \t]*(?:[-*+•]|\d+[.)])[ \t]+\S", _answer(response), re.MULTILINE)
    return len(marks) == row["num_bullets"]


def _paragraphs(row: Row, response: str) -> bool:
    return len([part for part in re.split(r"\n\s*\n", _answer(response)) if part.strip()]) == row["num_paragraphs"]


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


# Column -> (sentence, check). A row without the column, or with None in it, has no such item.
COLUMN_ITEMS: Mapping[str, tuple[str, Check]] = {
    "must_contain": ("contains {}", _contains),
    "must_not_contain": ("does not contain {}", _avoids),
    "num_bullets": ("is a list of {} items", _bullets),
    "num_paragraphs": ("has {} paragraphs", _paragraphs),
    "length_target": ("has a length of {} {length_unit}", _reward("length", 0.9)),
    "language": ("is in language {}", _reward("language", 0.9)),
    "schema": ("is JSON that fits {}", _reward("json_schema")),
    "instruction_id_list": ("follows the instructions {}", _reward("instruction")),
}
GRADERS = ("math", "exact", "multiple_choice", "f1", "rouge_l", "grounded_qa", "code")  # of column `grader`


def _not_empty(row: Row, response: str) -> bool:
    return bool(_answer(response).strip())


def _no_thought(row: Row, response: str) -> bool:
    parsed = parse(response)
    return parsed.finished and not parsed.has_thought and "<think>" not in parsed.answer


def _complete(row: Row, response: str) -> bool:
    return row.get("finish", "stop") == "stop" and response.count("```") % 2 == 0


def _no_loop(row: Row, response: str) -> bool:
    return not longest_loop(response, min_cycles=4, min_tokens=40)


ALWAYS = (
    Item("not_empty", "says something", _not_empty),
    Item("no_thought", "does not think", _no_thought),
    Item("complete", "is not cut off, and closes its code blocks", _complete),
    Item("no_loop", "does not go round in circles", _no_loop),
)


def checklist(row: Row) -> tuple[Item, ...]:
    """``ALWAYS``, an item a column of ``COLUMN_ITEMS``, and ``correct`` where column ``grader`` names a reward.

    ``grader_min_score`` (1.0 where absent) is what that reward must reach.

    Raises:
        ValueError: an unknown grader.
    """
    items = list(ALWAYS)
    for column, (sentence, check) in COLUMN_ITEMS.items():
        if row.get(column) is not None:
            words = sentence.format(_shown(row[column]), length_unit=row.get("length_unit") or "words")
            items.append(Item(column, words, check))
    grader = row.get("grader")
    if grader is not None:
        if grader not in GRADERS:
            raise ValueError(
                f"row {row.get('id')!r}: expected grader to be one of {', '.join(GRADERS)}, got {grader!r}"
            )
        bound = row.get("grader_min_score")
        items.append(
            Item("correct", f"is right, says {grader}", _reward(grader, 1.0 if bound is None else float(bound)))
        )
    return tuple(items)


def check_responses(
    rows: Sequence[Row],
    *,
    write_items: WriteItems | None = None,
    grade_items: GradeItems | None = None,
    min_share: float = 1.0,
) -> list[Decision]:
    """Grade each row's ``response`` against its checklist.

    ``failed:NAME``: an item of ``checklist`` is not met (all are graded, the first is named, the detail lists them).
    ``ungraded:NAME``: none failed, and one could not be graded: quality that was not checked is not assumed.
    ``failed:written_items``: fewer than ``min_share`` of the items that ``write_items`` wrote are met; those that
    ``grade_items`` cannot grade count as not met.

    Raises:
        ValueError: one of the two callables without the other, or an answer of theirs that does not fit the rows.
    """
    if (write_items is None) != (grade_items is None):
        raise ValueError("check_responses: expected both write_items and grade_items, or neither")
    if not 0 <= min_share <= 1:
        raise ValueError(f"check_responses: expected min_share in [0, 1], got {min_share}")
    written: list[Sequence[str]] = [[] for _ in rows]
    if write_items is not None:
        written = [list(items) for items in write_items(rows)]
        if len(written) != len(rows):
            raise ValueError(
                f"write_items: expected a list of requirements for each of {len(rows)} rows, got {len(written)}"
            )
    return [_decide(row, items, grade_items, min_share) for row, items in zip(rows, written, strict=True)]


def _decide(row: Row, written: Sequence[str], grade_items: GradeItems | None, min_share: float) -> Decision:
    response = text_column(row, "response")
    results = {item.name: (item.requirement, item.check(row, response)) for item in checklist(row)}
    failed = [f"{name} ({words})" for name, (words, met) in results.items() if met is False]
    unknown = [f"{name} ({words})" for name, (words, met) in results.items() if met is None]
    if failed:
        return Decision(f"failed:{failed[0].split(' ')[0]}", "; ".join(failed))
    if unknown:
        return Decision(f"ungraded:{unknown[0].split(' ')[0]}", "; ".join(unknown))
    if written and grade_items is not None:
        grades = list(grade_items(row, response, written))
        if len(grades) != len(written) or not all(grade in (True, False, None) for grade in grades):
            raise ValueError(
                f"grade_items: row {row.get('id')!r}: expected true, false or None for each of {len(written)} items, "
                f"got {grades!r:.100}"
            )
        unmet = [words for words, grade in zip(written, grades, strict=True) if grade is not True]
        if len(unmet) > (1 - min_share) * len(written) + 1e-9:
            return Decision("failed:written_items", "; ".join(unmet))
    return Decision(detail=f"{len(results) + len(written)} items")
