"""Functions over rows of shards, without processes; tests/integration/test_corpus_stage.py has those."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pretrain.data.document import document, label, read_documents, write_shards
from pretrain.data.shards import _Map, checked, fingerprints, total
from rlplatform.datafiles import DataError

Row = dict[str, Any]


def rows_of(num: int) -> list[Row]:
    return [document("s", str(i), f"f:{i}", f"{i}") for i in range(num)]


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
