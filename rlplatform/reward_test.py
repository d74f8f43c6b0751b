"""`rlplatform reward test`: grade completions in a file. No model, no Ray.

An input row is a JSON object with ``completion`` (a string, or a list of messages) and any columns, e.g. ``prompt``,
``answer``, ``thinking``. An output row is the input row plus ``score``, ``status``, ``parts`` and ``seconds``.
"""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rewards.base import OK, STATUSES, RewardLoadError, Verdict
from rewards.runner import RewardPool

BATCH_ROWS = 64  # rows a call of the function, as a training step would hand them over
MAX_SHOWN_ROWS = 20
LOADED, NOT_LOADED = 0, 2


class RowsError(ValueError):
    """A data file that cannot be read; the message names file and line."""


def run_reward_test(name_or_path: str, data: Path, out: Path | None, timeout_s: float = 10.0, limit: int = 0) -> int:
    """Grade the rows of ``data``, print a table and the first traceback of each error, write ``out``.

    Args:
        name_or_path: a built-in name, ``package.module:fn`` or ``path/file.py:fn``.
        data: JSONL, gzipped where it ends in ``.gz``.
        out: verdicts as JSONL; None writes none.
        timeout_s: seconds a row may take.
        limit: only the first ``limit`` rows; 0 = all.

    Returns the exit code: 0 when every row got a verdict, whatever its status; 2 when the function could not be loaded
    or the file not be read.
    """
    try:
        rows = read_rows(data, limit)
        with RewardPool({name_or_path: 1.0}, timeout_s=timeout_s) as pool:
            verdicts, columns = grade_rows(pool, rows)
            tracebacks = dict(pool.first_tracebacks)
        if out is not None:
            write_verdicts(out, rows, verdicts)
    except (RewardLoadError, RowsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return NOT_LOADED
    show(name_or_path, rows, verdicts, columns, tracebacks)
    if out is not None:
        print(f"verdicts: {out}")
    return LOADED


def read_rows(path: Path, limit: int = 0) -> list[dict[str, Any]]:
    """The rows of a JSONL file, each with ``completion``. Raises RowsError naming file and line."""
    if not path.is_file():
        raise RowsError(f"{path}: no such file")
    rows = []
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    rows.append(_read_row(f"{path}, line {number}", line))
                if limit and len(rows) == limit:
                    break
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise RowsError(
            f"{path}: cannot be read as {'gzipped ' * (path.suffix == '.gz')}UTF-8 text: {error}"
        ) from error
    if not rows:
        raise RowsError(f"{path}: expected at least one row, got an empty file")
    return rows


def _read_row(where: str, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise RowsError(f"{where}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise RowsError(f"{where}: expected a JSON object, got {type(row).__name__}")
    if not isinstance(row.get("completion"), (str, list)):
        raise RowsError(
            f"{where}: expected `completion` to be a string or a list of messages, got "
            f"{row.get('completion', 'no such column')!r}; the row has {', '.join(row) or 'no columns'}"
        )
    return row


def grade_rows(pool: RewardPool, rows: Sequence[Mapping[str, Any]]) -> tuple[list[Verdict], dict[str, list[Any]]]:
    """Verdicts of all rows in order, and the columns that the function logged.

    Rows need not have the same columns: where one has none, the function gets None.
    """
    names = sorted({name for row in rows for name in row} - {"prompt", "completion"})
    verdicts: dict[int, Verdict] = {}
    logged: dict[str, list[Any]] = {}
    for numbers in _batches(rows):
        batch = [rows[number] for number in numbers]
        scored = pool.score_detailed(
            [row.get("prompt", "") for row in batch],
            [row["completion"] for row in batch],
            {name: [row.get(name) for row in batch] for name in names},
            groups=[row["group"] for row in batch] if all("group" in row for row in batch) else None,
        )
        verdicts |= dict(zip(numbers, scored.verdicts, strict=True))
        for column, values in scored.extras.items():
            target = logged.setdefault(column, [None] * len(rows))
            for number, value in zip(numbers, values, strict=True):
                target[number] = value
    return [verdicts[number] for number in range(len(rows))], logged


def _batches(rows: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Row numbers a call; rows of one ``group`` go together."""
    groups: dict[Any, list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(("group", str(row["group"])) if "group" in row else number, []).append(number)
    batches: list[list[int]] = [[]]
    for numbers in groups.values():
        if batches[-1] and len(batches[-1]) + len(numbers) > BATCH_ROWS:
            batches.append([])
        batches[-1] += numbers
    return [batch for batch in batches if batch]


def write_verdicts(path: Path, rows: Sequence[Mapping[str, Any]], verdicts: Sequence[Verdict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for row, verdict in zip(rows, verdicts, strict=True):
            result = {
                "score": verdict.score,
                "status": verdict.status,
                "parts": dict(verdict.parts),
                "seconds": round(verdict.seconds, 6),
            }
            file.write(json.dumps({**row, **result}, ensure_ascii=False) + "\n")


def show(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    verdicts: Sequence[Verdict],
    logged: Mapping[str, Sequence[Any]],
    tracebacks: Mapping[str, str],
) -> None:
    """Print a table of the first rows, a summary, and the first traceback."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    table = Table(title=f"{name}, {len(rows)} rows")
    for header, style in [("row", "right"), ("status", "left"), ("score", "right"), ("ms", "right")]:
        table.add_column(header, justify=style, no_wrap=True)  # type: ignore[arg-type]
    for header in ["completion", *logged, "detail"]:
        table.add_column(header, overflow="fold")
    for number, (row, verdict) in enumerate(zip(rows, verdicts, strict=True)):
        if number == MAX_SHOWN_ROWS:
            break
        cells = [
            str(number),
            verdict.status,
            f"{verdict.score:.4g}" if verdict.ok else "-",
            f"{1000 * verdict.seconds:.1f}",
            _end(row["completion"]),
            *(_end(values[number]) for values in logged.values()),
            _end(verdict.detail, 160),
        ]
        table.add_row(*(Text(cell, style="" if verdict.ok else "red") for cell in cells))
    console.print(table)
    if len(rows) > MAX_SHOWN_ROWS:
        print(f"(the first {MAX_SHOWN_ROWS} of {len(rows)} rows)")
    counts = Counter(verdict.status for verdict in verdicts)
    scores = [verdict.score for verdict in verdicts if verdict.ok]
    seconds = sorted(verdict.seconds for verdict in verdicts)
    print("status: " + ", ".join(f"{status} {counts[status]}" for status in STATUSES if counts[status] or status == OK))
    if scores:
        print(f"score of ok rows: mean {sum(scores) / len(scores):.4f}, min {min(scores):g}, max {max(scores):g}")
    print(f"seconds a row: median {seconds[len(seconds) // 2]:.4f}, max {seconds[-1]:.4f}")
    for function, text in tracebacks.items():
        print(f"\nfirst failure of {function}:\n{text.rstrip()}")


def _end(value: Any, width: int = 60) -> str:
    """The last characters on one line: the answer stands at the end."""
    text = value if isinstance(value, str) else str(value)
    text = " ".join(text.split())
    return text if len(text) <= width else "..." + text[3 - width :]
