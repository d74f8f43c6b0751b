"""Functions over rows of shards, without processes; tests/integration/test_corpus_stage.py has those."""

from __future__ import annotations

import json
import pickle
import time
from pathlib import Path
from typing import Any

import pytest

from pretrain.data import shards
from pretrain.data.document import document, label, read_documents, write_shards
from pretrain.data.shards import _answer, _Map, checked, fingerprints, run_tasks, total
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


def in_this_process(process: Any, tasks: Any, workers: Any) -> Any:
    """In place of Ray Data, last task first."""
    for index, task in reversed(tasks):
        yield _answer({"index": index, "task": pickle.dumps(task)}, process)


def test_finished_tasks_are_kept_and_sums_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_on_ray", in_this_process)
    done: list[Any] = []

    def work(index: int, task: Any) -> dict[str, int]:
        done.append(task)
        if task == "bad":
            raise DataError("no good")
        return {"n": int(task)}

    with pytest.raises(DataError, match=r"^no good$"):
        run_tasks(work, ["1", "bad", "3", "4"], tmp_path, key="k")
    assert done == ["4", "3", "bad"]
    sums: list[int] = []
    counts = run_tasks(work, ["1", "2", "3", "4"], tmp_path, key="k", check=lambda sum: sums.append(sum.get("n", 0)))
    assert done[3:] == ["2", "1"]  # 3 and 4 have marks; the second task is another one now
    assert counts == [{"n": 1}, {"n": 2}, {"n": 3}, {"n": 4}]
    assert sums == [7, 9, 10]


def test_quiet_times_say_what_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shards, "_on_ray", in_this_process)

    def wait(index: int, task: Any) -> dict[str, int]:
        time.sleep(1.0 if task == "the slow one" else 0.0)
        return {}

    run_tasks(wait, ["the slow one", "quick"], tmp_path, key="k", quiet_s=0.2)
    said = [record.getMessage() for record in caplog.records if record.name == "pretrain.data.shards"]
    assert any("1 to go, the first is 'the slow one'" in line for line in said)


def test_a_mark_does_not_outlive_the_output_it_speaks_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One attempt is finished, the next with another key is killed between its output and its mark, and the first is
    asked for again."""
    monkeypatch.setattr(shards, "_on_ray", in_this_process)

    def work(text: str, killed: bool = False) -> Any:
        def write(index: int, task: Any) -> dict[str, int]:
            (tmp_path / f"{index}.txt").write_text(text)
            if killed:
                raise KeyboardInterrupt
            return {}

        return write

    run_tasks(work("first"), ["a", "b"], tmp_path, key="first")
    with pytest.raises(KeyboardInterrupt):
        run_tasks(work("second", killed=True), ["a", "b"], tmp_path, key="second")
    run_tasks(work("first"), ["a", "b"], tmp_path, key="first")
    assert [(tmp_path / f"{index}.txt").read_text() for index in range(2)] == ["first", "first"]
