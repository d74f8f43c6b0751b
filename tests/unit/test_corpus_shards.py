"""Functions over rows of shards, without processes; tests/integration/test_corpus_stage.py has those."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.data.document import DROPPED, document, label, read_documents, write_shards
from pretrain.data.shards import _Filters, _Map, checked, fingerprints, split, total
from rlplatform.datafiles import DataError
from rlplatform.stages.records import KEEP, Decision

Row = dict[str, Any]


def rows_of(num: int) -> list[Row]:
    return [document("s", str(i), f"f:{i}", f"{i}") for i in range(num)]


def drop(*numbers: int) -> Any:
    return lambda rows: [Decision("no", row["text"]) if int(row["text"]) in numbers else KEEP for row in rows]


@given(st.integers(0, 12), st.sets(st.integers(0, 11)), st.sets(st.integers(0, 11)))
def test_rows_are_kept_or_dropped_by_the_first_step_that_says_so(num: int, first: set[int], second: set[int]) -> None:
    kept, dropped = split({"a": drop(*first), "b": drop(*second)}, rows_of(num))
    assert [row["text"] for row in kept] == [str(i) for i in range(num) if i not in first | second]
    assert [(row["text"], row["step"]) for row in dropped] == [
        (str(i), "a" if i in first else "b") for i in range(num) if i in first | second
    ]
    assert all({"step", "reason", "detail"} < set(row) for row in dropped)


def test_a_step_sees_what_those_before_it_kept() -> None:
    seen: list[list[str]] = []

    def look(rows: list[Row]) -> list[Decision]:
        seen.append([row["text"] for row in rows])
        return [KEEP] * len(rows)

    split({"a": drop(1), "look": look}, rows_of(3))
    assert seen == [["0", "2"]]
    with pytest.raises(DataError, match="step 'bad': expected 3 decisions, one a document, got 0"):
        split({"bad": lambda rows: []}, rows_of(3))


def test_dropped_rows_are_written_beside_the_kept_ones(tmp_path: Path) -> None:
    [path] = write_shards(rows_of(7), tmp_path / "in", 9)
    counts = _Filters({"a": drop(1, 2), "b": drop(5)}, tmp_path / "out", 2)(0, fingerprints([path])[0])
    assert counts == {"documents": 7, "kept": 4, "a: no": 2, "b: no": 1}
    assert [row["text"] for row in read_documents(tmp_path / "out")] == ["0", "3", "4", "6"]
    assert [(row["text"], row["step"], row["detail"]) for row in read_documents(tmp_path / "out", DROPPED)] == [
        ("1", "a", "1"),
        ("2", "a", "2"),
        ("5", "b", "5"),
    ]


def test_a_function_answers_the_rows_it_was_given(tmp_path: Path) -> None:
    [path] = write_shards(rows_of(5), tmp_path / "in", 9)
    task = fingerprints([path])[0]

    def labelled(rows: list[Row]) -> list[Row]:
        return [{**row, "labels": [label("n", row["text"], "me")]} for row in rows]

    assert _Map(labelled, tmp_path / "out", 2)(0, task) == {"documents": 5}
    assert [row["labels"][0]["value"] for row in read_documents(tmp_path / "out")] == list("01234")
    for wrong in (lambda rows: rows[:-1], lambda rows: rows[::-1], lambda rows: [*rows, rows[0]]):
        with pytest.raises(DataError, match=r"documents-00000\.parquet, document .*must answer the"):
            _Map(wrong, tmp_path / "out", 3)(0, task)
    assert [row["text"] for row in read_documents(tmp_path / "out")] == list("01234")  # the old shard stands


def test_an_error_names_the_shard_and_the_first_document_that_fails_alone() -> None:
    rows = rows_of(5)

    def fails(given: list[Row]) -> list[Row]:
        for row in given:
            if row["text"] in ("2", "4"):
                raise DataError("cannot read this one")
        return given

    with pytest.raises(DataError, match=f"in/shard, document '{rows[2]['id']}': cannot read this one"):
        checked(fails, rows, "in/shard")

    def divides(given: list[Row]) -> list[int]:
        return [1 // int(row["text"]) for row in given]

    with pytest.raises(ZeroDivisionError) as caught:
        checked(divides, rows, "in/shard")
    assert caught.value.__notes__[0].startswith(f"in/shard, document {rows[0]['id']!r}")

    def together(given: list[Row]) -> list[Row]:
        raise ValueError("too many") if len(given) > 1 else DataError("unreachable")

    with pytest.raises(ValueError, match="too many"):
        checked(together, rows, "s")


def test_counts_are_summed() -> None:
    assert total([{"a": 1, "b": 2}, {}, {"b": 3, "c": 0}]) == {"a": 1, "b": 5, "c": 0}


def test_a_changed_shard_has_another_fingerprint(tmp_path: Path) -> None:
    [path] = write_shards(rows_of(2), tmp_path, 9)
    before = fingerprints([path])
    assert fingerprints([path]) == before
    write_shards(rows_of(3), tmp_path, 9)
    assert fingerprints([path]) != before
    assert json.dumps(before)
