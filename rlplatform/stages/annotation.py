"""Queries that no sample solved go to people with their responses; what people say comes back strictly.

    never_solved(rows) -> export(path) -> people fill column `verdict` -> read_verdicts(path) -> judged rows

The file is JSONL or CSV by its suffix, one line a response: ``id, sample, prompt, answer, response, status, verdict,
note``. People write ``correct`` or ``incorrect`` into ``verdict``; everything else is theirs to leave alone.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rewards.base import OK
from rlplatform.datafiles import DataError, jsonl_lines
from rlplatform.stages.pass_rates import is_correct
from rlplatform.stages.records import Row, by_query, row_key, text_column
from rlplatform.stages.texts import prompt_text

VERDICTS = {"correct": 1.0, "incorrect": 0.0}
COLUMNS = ("id", "sample", "prompt", "answer", "response", "status", "verdict", "note")
_MAX_SHOWN = 10


class AnnotationError(ValueError):
    """A verdict file that people have to look at again; the message lists every problem found, up to ten."""


def never_solved(rows: Sequence[Row]) -> list[Row]:
    """The responses of queries without a correct one, in order; verdicts that are not ok solve nothing."""
    solved = {name for name, group in by_query(rows).items() if any(map(is_correct, group))}
    return [row for row in rows if row["id"] not in solved]


def export(rows: Sequence[Row], path: Path) -> None:
    """Write responses for people, with an empty ``verdict``.

    Raises:
        ValueError: no row, rows of one key, a response without a sample number, or a suffix other than .jsonl or .csv.
    """
    keys = [row_key(row) for row in rows]
    if not rows or len(set(keys)) != len(keys) or any(row.get("sample") is None for row in rows):
        raise ValueError(f"export: expected responses with different ids and samples, got {len(rows)} rows")
    lines = [
        {
            "id": row["id"],
            "sample": row["sample"],
            "prompt": prompt_text(row),
            "answer": row.get("answer"),
            "response": text_column(row, "response"),
            "status": row.get("status"),
            "verdict": "",
            "note": "",
        }
        for row in rows
    ]
    if path.suffix == ".jsonl":
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    elif path.suffix == ".csv":
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        text = buffer.getvalue()
    else:
        raise ValueError(f"{path}: expected a name that ends in .jsonl or .csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def read_verdicts(path: Path, exported: Sequence[Row]) -> list[Row]:
    """The exported rows with people's word in place of the grader's: ``status`` ok, ``score`` 1 or 0, ``judged_by``
    "people", ``note``.

    Two lines may judge one response where they agree.

    Raises:
        AnnotationError: an unknown id or sample, a verdict that is missing or no verdict, two that contradict each
            other, or a response or reference that is not the exported one.
    """
    known = {row_key(row): row for row in exported}
    problems: list[str] = []
    said: dict[str, tuple[str, str, str]] = {}  # key -> where, verdict, note
    for where, line in _lines(path):
        try:
            key = row_key({"id": line.get("id"), "sample": _number(line.get("sample"))})
        except ValueError as error:
            problems.append(f"{where}: {error}")
            continue
        verdict = str(line.get("verdict") or "").strip().lower()
        if key not in known:
            problems.append(f"{where}: {key!r} was not exported")
        elif "response" in line and _plain(line["response"]) != _plain(known[key]["response"]):
            problems.append(f"{where}: the response of {key!r} is not the exported one")
        elif not verdict:
            problems.append(f"{where}: {key!r} has no verdict")
        elif verdict not in VERDICTS:
            problems.append(f"{where}: {key!r}: expected a verdict of {' or '.join(VERDICTS)}, got {verdict!r}")
        elif key in said and said[key][1] != verdict:
            problems.append(f"{where}: {key!r} is {verdict} here and {said[key][1]} at {said[key][0]}")
        else:
            said[key] = where, verdict, str(line.get("note") or "")
    mentioned = " ".join(problems)
    missing = [key for key in known if key not in said and repr(key) not in mentioned]
    problems += [f"no line judges {key!r}" for key in missing]
    if problems:
        more = f"\nand {len(problems) - _MAX_SHOWN} more" if len(problems) > _MAX_SHOWN else ""
        raise AnnotationError(
            f"{path}: expected one verdict for each of {len(known)} exported responses:\n"
            + "\n".join(problems[:_MAX_SHOWN])
            + more
        )
    return [
        {**row, "status": OK, "score": VERDICTS[said[key][1]], "judged_by": "people", "note": said[key][2]}
        for key, row in known.items()
    ]


def _plain(text: Any) -> str:
    """Spreadsheets rewrite line ends."""
    return str(text).replace("\r\n", "\n").replace("\r", "\n").strip()


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, str) and value.strip().isdigit() else value


def _lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    if path.suffix == ".csv":
        return _csv_lines(path)
    try:
        return [(f"line {number}", line) for number, line in jsonl_lines(path, encoding="utf-8-sig")]
    except DataError as error:
        raise AnnotationError(str(error)) from error


def _csv_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise AnnotationError(f"{path}: cannot be read: {error}") from error
    limit = csv.field_size_limit(1 << 30)  # a long response is more than the default of 128 KiB
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        found = [(f"line {reader.line_num}", dict(line)) for line in reader]
    except csv.Error as error:
        raise AnnotationError(f"{path}: line {reader.line_num}: expected CSV: {error}") from error
    finally:
        csv.field_size_limit(limit)
    for where, line in found:
        if None in line:
            raise AnnotationError(f"{path}: {where}: expected as many fields as the header has, got more")
    return found
