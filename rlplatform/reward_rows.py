"""The rows of `rlplatform reward test`: reading them, what they expect, and which belong together.

A row is a JSON object with ``completion`` (a string, or a list of messages) and any columns, e.g. ``prompt``,
``answer``; ``completion_ids`` reach functions as the sampled tokens do. Two columns are for the test itself:
``expect``, a score or a status, is kept from the functions; ``group`` says which rows are completions of one prompt.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from rewards.base import STATUSES, Verdict
from rlplatform.datafiles import DataError, read_jsonl

BATCH_ROWS = 64  # rows a call of the functions, as a training step would hand them over
TOLERANCE = 1e-4  # between an expected score and the one that came
Row = dict[str, Any]


def read_rows(path: Path, limit: int = 0) -> list[Row]:
    """The rows of a JSONL file, gzipped where it ends in ``.gz``; ``limit``: only the first ones, 0 = all.

    Raises DataError naming file and line.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    rows = [read_row(where, row) for where, row in islice(read_jsonl(path), limit or None)]
    if not rows:
        raise DataError(f"{path}: expected at least one row, got an empty file")
    return rows


def read_row(where: str, row: Any) -> Row:
    """``row``, checked. Raises DataError."""
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected a JSON object, got {type(row).__name__}")
    if not isinstance(row.get("completion"), (str, list)):
        raise DataError(
            f"{where}: expected `completion` to be a string or a list of messages, got "
            f"{row.get('completion', 'no such column')!r}; the row has {', '.join(row) or 'no columns'}"
        )
    expect = row.get("expect")
    is_score = isinstance(expect, (int, float)) and not isinstance(expect, bool) and math.isfinite(expect)
    if expect is not None and not is_score and expect not in STATUSES:
        raise DataError(f"{where}: expect: expected a score or one of {', '.join(STATUSES)}, got {expect!r}")
    return row


def agrees(expect: Any, verdict: Verdict) -> bool:
    """Is it what the row expects? A score also asks for status ``ok``; a row that expects nothing is content."""
    if expect is None:
        return True
    if isinstance(expect, str):
        return verdict.status == expect
    return verdict.ok and abs(verdict.score - expect) <= TOLERANCE


def columns_of(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Column -> a value a row, None where a row has none. What is meant for the test alone is left out."""
    names = sorted({name for row in rows for name in row} - {"prompt", "completion", "completion_ids", "expect"})
    return {name: [row.get(name) for row in rows] for name in names}


def ids_of(rows: Sequence[Row]) -> list[Any] | None:
    """``completion_ids`` of every row; None where one has none."""
    ids = [row.get("completion_ids") for row in rows]
    return None if any(one is None for one in ids) else ids


def groups_of(rows: Sequence[Row]) -> list[str] | None:
    """``[n]``: the group of each row, its column ``group``, else all rows of one prompt. None: nothing says it.

    Raises DataError when it is said of some rows only.
    """
    if not any(row.get("group") is not None or "prompt" in row for row in rows):
        return None
    for number, row in enumerate(rows):
        if row.get("group") is None and "prompt" not in row:
            raise DataError(
                f"row {number}: expected a `prompt` or a `group`, as other rows have: which group is it of?"
            )
    return [
        f"group {row['group']}" if row.get("group") is not None else json.dumps(row.get("prompt"), sort_keys=True)
        for row in rows
    ]


def batches(num_rows: int, groups: Sequence[str] | None) -> list[list[int]]:
    """Row numbers a call, about ``BATCH_ROWS`` of them; where there are groups, none is divided."""
    if groups is None:
        return [list(range(i, min(i + BATCH_ROWS, num_rows))) for i in range(0, num_rows, BATCH_ROWS)]
    members: dict[str, list[int]] = {}
    for number, group in enumerate(groups):
        members.setdefault(group, []).append(number)
    found: list[list[int]] = [[]]
    for numbers in members.values():
        if found[-1] and len(found[-1]) + len(numbers) > BATCH_ROWS:
            found.append([])
        found[-1] += numbers
    return found
