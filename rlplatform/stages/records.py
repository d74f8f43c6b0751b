"""What became of every row: a decision each, with its reason, as one parquet file that people can read.

    rows -> filter -> decisions     the next filter sees the rows that are left
    rows == kept + dropped          in the input's order; nothing is lost, doubled or changed

A row is a mapping with a string ``id`` that is unique in its stage; a row with ``sample`` is one response of query
``id`` and is named ``id#sample``. A filter is any function ``rows -> decisions``, one a row.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Decision:
    """What one filter says of one row."""

    reason: str = ""  # why the row is dropped, a word that can be counted; "" = keep
    detail: str = ""  # for people: the measure and its bound, or on a kept row what could not be told

    @property
    def kept(self) -> bool:
        return not self.reason


KEEP = Decision()
Filter = Callable[[Sequence[Row]], Sequence[Decision]]


def row_key(row: Row) -> str:
    """``id``, or ``id#sample`` for a response.

    Raises:
        ValueError: no usable id or sample.
    """
    name, sample = row.get("id"), row.get("sample")
    if not isinstance(name, str) or not name:
        raise ValueError(f"expected a column id with a non-empty string, got {name!r} in {str(dict(row))[:80]}")
    if sample is None:
        return name
    if not isinstance(sample, int) or isinstance(sample, bool) or sample < 0:
        raise ValueError(f"row {name!r}: expected sample to be an int >= 0, got {sample!r}")
    return f"{name}#{sample}"


@dataclass(frozen=True)
class Record:
    """One row and what became of it."""

    key: str
    row: Row
    filter: str = ""  # the filter that dropped it; "" = kept
    reason: str = ""
    detail: str = ""  # the dropping filter's
    notes: Mapping[str, str] = field(default_factory=dict)  # filter -> its remark on a row that it kept

    @property
    def kept(self) -> bool:
        return not self.reason


@dataclass(frozen=True)
class Records:
    """All rows of one stage, in the input's order."""

    stage: str
    records: tuple[Record, ...]

    @property
    def kept(self) -> list[Row]:
        return [record.row for record in self.records if record.kept]

    def dropped(self, reason: str | None = None) -> list[Row]:
        """All dropped rows, or those dropped for one reason."""
        return [record.row for record in self.records if not record.kept and reason in (None, record.reason)]

    @property
    def counts(self) -> dict[tuple[str, str], int]:
        """(filter, reason) -> rows; ``("", "")`` counts the kept ones."""
        return dict(Counter((record.filter, record.reason) for record in self.records))

    def table(self) -> str:
        """One line a reason, for logs."""
        lines = [f"{self.stage}: {len(self.records)} rows, {len(self.kept)} kept"]
        lines += [f"  {name}: {reason} {number}" for (name, reason), number in sorted(self.counts.items()) if reason]
        return "\n".join(lines)


def apply_filters(stage: str, rows: Sequence[Row], filters: Mapping[str, Filter]) -> Records:
    """Run named filters in order; each sees the rows that those before it kept.

    Raises:
        ValueError: two rows of one key, or a filter that does not answer one Decision a row.
    """
    keys = [row_key(row) for row in rows]
    doubled = [key for key, number in Counter(keys).items() if number > 1]
    if doubled:
        raise ValueError(f"{stage}: expected every row to have a key of its own, {doubled[:5]} came more than once")
    verdicts: list[tuple[str, Decision]] = [("", KEEP)] * len(rows)
    notes: list[dict[str, str]] = [{} for _ in rows]
    left = list(range(len(rows)))
    for name, function in filters.items():
        decisions = list(function([rows[place] for place in left]))
        if len(decisions) != len(left) or not all(isinstance(decision, Decision) for decision in decisions):
            raise ValueError(
                f"{stage}: filter {name!r} was given {len(left)} rows: expected as many Decisions, got "
                f"{len(decisions)} answers, the first {decisions[:1]!r}"
            )
        for place, decision in zip(left, decisions, strict=True):
            if not decision.kept:
                verdicts[place] = name, decision
            elif decision.detail:
                notes[place][name] = decision.detail
        left = [place for place, decision in zip(left, decisions, strict=True) if decision.kept]
    return Records(
        stage,
        tuple(
            Record(key, row, name, decision.reason, decision.detail, note)
            for key, row, (name, decision), note in zip(keys, rows, verdicts, notes, strict=True)
        ),
    )


# --- files ----------------------------------------------------------------------------------------------------------

COLUMNS = ("stage", "key", "decision", "filter", "reason", "detail", "notes", "row")  # all strings; the last two JSON


def write_parquet(records: Records, path: Path) -> None:
    """One line a row, columns ``COLUMNS``, whatever the rows hold: they stand there as JSON.

    Raises:
        ValueError: a row that JSON does not give back as it is (tuples, NaN, keys that are no strings).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    lines = [
        {
            "stage": records.stage,
            "key": record.key,
            "decision": "keep" if record.kept else "drop",
            "filter": record.filter,
            "reason": record.reason,
            "detail": record.detail,
            "notes": json.dumps(dict(record.notes), ensure_ascii=False),
            "row": _as_json(record),
        }
        for record in records.records
    ]
    schema = pa.schema([(name, pa.string()) for name in COLUMNS], metadata={"stage": records.stage})
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    pq.write_table(pa.Table.from_pylist(lines, schema=schema), temporary)
    os.replace(temporary, path)


def _as_json(record: Record) -> str:
    row = dict(record.row)
    try:
        text = json.dumps(row, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError) as error:
        raise ValueError(f"row {record.key!r}: expected values that JSON can hold: {error}") from error
    if json.loads(text) != row:
        raise ValueError(
            f"row {record.key!r}: JSON does not give it back unchanged; use lists for tuples and strings for keys"
        )
    return text


def read_parquet(path: Path) -> Records:
    """What ``write_parquet`` wrote.

    Raises:
        ValueError: no such file, or not one of these.
    """
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except Exception as error:
        raise ValueError(f"{path}: expected a parquet file of decisions: {error}") from error
    if tuple(table.column_names) != COLUMNS:
        raise ValueError(f"{path}: expected the columns {', '.join(COLUMNS)}, got {', '.join(table.column_names)}")
    records = tuple(
        Record(
            line["key"],
            json.loads(line["row"]),
            line["filter"],
            line["reason"],
            line["detail"],
            json.loads(line["notes"]),
        )
        for line in table.to_pylist()
    )
    return Records(table.schema.metadata[b"stage"].decode(), records)


def text_column(row: Row, name: str) -> str:
    """A column that must hold text.

    Raises:
        ValueError: it does not.
    """
    value = row.get(name)
    if not isinstance(value, str):
        raise ValueError(f"row {row.get('id')!r}: expected column {name} to be a string, got {value!r:.60}")
    return value


def by_query(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows of each query, in order of first appearance."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(text_column(row, "id"), []).append(row)
    return groups
