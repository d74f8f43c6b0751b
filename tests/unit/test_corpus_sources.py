"""Which files a source has, and what one task reads of them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pretrain.data.document import read_batches
from pretrain.data.documents import ReadTask, as_row, found_in
from pretrain.data.items import Item
from pretrain.data.sources import SourceFile, Task, _tasks, files_of, plan
from rlplatform.config import ConfigError, DocumentsConfig, SourceConfig
from rlplatform.config.corpus_documents import ResponsesConfig
from rlplatform.datafiles import DataError


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def places(*paths: str, **settings: Any) -> tuple[list[tuple[str, str]], list[str]]:
    found, ignored = files_of("s", SourceConfig(path=paths, **settings))
    return [(file.place, kind) for file, kind in found], [Path(path).name for path in ignored]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, b_dot_txt="b", a_dot_jsonl="{}", deep__c_dot_html="c", deep__d_dot_csv="d", _dot_hidden="h")
    write(tmp_path, _dot_git__x_dot_txt="x")
    return tmp_path


def test_a_folder_in_sorted_order_by_ending(folder: Path) -> None:
    assert places(str(folder)) == ([("a.jsonl", "jsonl"), ("b.txt", "text"), ("deep/c.html", "html")], ["d.csv"])
    assert places(str(folder), format="text")[0] == [
        ("a.jsonl", "text"),
        ("b.txt", "text"),
        ("deep/c.html", "text"),
        ("deep/d.csv", "text"),
    ]


def test_globs_and_files_keep_the_order_they_are_named_in(folder: Path) -> None:
    assert places(f"{folder}/*.txt", f"{folder}/a.jsonl", f"{folder}/*.jsonl")[0] == [
        ("b.txt", "text"),
        ("a.jsonl", "jsonl"),
    ]
    assert places(f"{folder}/**/*.html")[0] == [("deep/c.html", "html")]
    assert places(str(folder), f"{folder}/deep", f"{folder}/deep/*.html")[0] == places(str(folder))[0]  # each once


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("{}/deep/d.csv", "expected an ending of .jsonl"),
        ("{}/nowhere", "no such file or folder"),
        ("{}/*.warc", "no file to read"),
        ("{}/*.c??", "no file to read"),
    ],
)
def test_what_is_not_there_is_said(folder: Path, path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        places(path.format(folder))


def test_two_files_at_one_place_would_have_the_same_ids(folder: Path) -> None:
    write(folder, other__b_dot_txt="b")
    with pytest.raises(ConfigError, match="would have the same ids"):
        places(f"{folder}/b.txt", f"{folder}/other/b.txt")
    assert len(places(str(folder))[0]) == 4


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.integers(0, 50), st.sampled_from("ab")), min_size=1, max_size=12), st.integers(1, 60))
def test_tasks_hold_every_file_once_in_order_and_are_full(sizes: list[tuple[int, str]], limit: int) -> None:
    files = [(SourceFile(str(k), str(k), size), kind) for k, (size, kind) in enumerate(sizes)]
    tasks = list(_tasks("s", SourceConfig(path=("x",)), files, limit))
    assert [file for task in tasks for file in task.files] == [file for file, _ in files]
    assert all(sum(file.size for file in task.files) <= limit or len(task.files) == 1 for task in tasks)
    assert all(kind == task.format for task in tasks for file, kind in files if file in task.files)
    for one, other in pairwise(tasks):  # no two neighbours could have been one
        whole = sum(file.size for file in one.files) + other.files[0].size
        assert one.format != other.format or whole > limit
    assert len(list(_tasks("s", SourceConfig(path=("x",), limit=1), files, limit))) == 1 + sum(
        a[1] != b[1] for a, b in pairwise(sizes)
    )


def test_a_limit_over_several_tasks_is_refused(folder: Path) -> None:
    config = DocumentsConfig(sources={"s": SourceConfig(path=(str(folder),), limit=3)})
    with pytest.raises(ConfigError, match=r"sources\.s\.limit: expected files of one format"):
        plan(config)


# --- one task -------------------------------------------------------------------------------------------------------


def task(folder: Path, **settings: Any) -> Task:
    source = SourceConfig(path=(str(folder),), **settings)
    [only], _ = plan(DocumentsConfig(sources={"s": source}))
    return only


def parts(folder: Path, prefix: str) -> list[list[dict[str, Any]]]:
    return [
        [row for batch in read_batches(path) for row in batch]
        for path in sorted((folder / ".parts").glob(f"{prefix}-*.parquet"))
    ]


def test_parts_end_at_their_rows_and_bytes(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    write(data, a_dot_txt="\n".join("x" * n for n in (1, 2, 3, 40, 5, 6)))
    counts = ReadTask(out, 3, 40, 0)(7, task(data, unit="line"))
    assert [[row["text"] for row in part] for part in parts(out, "documents")] == [
        ["x", "xx", "xxx"],
        ["x" * 40],
        ["x" * 5, "x" * 6],
    ]
    assert counts == {"documents": 6, "characters": 57, "parts": 3, "dropped parts": 0}
    assert sorted(path.name for path in (out / ".parts").iterdir()) == [
        f"documents-00007-{k:05d}.parquet" for k in range(3)
    ]
    ReadTask(out, 100, 1 << 20, 0)(7, task(data, unit="line"))  # again, with other bounds: nothing old is left
    assert [len(part) for part in parts(out, "documents")] == [6]


def test_what_is_no_document_is_written_with_its_reason(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    write(data, a_dot_jsonl='{"text": "good", "k": 1}\n{"text": " ", "k": 2}\nno json\n{"text": "fine"}')
    counts = ReadTask(out, 100, 1 << 20, 1)(0, task(data))
    assert counts == {
        "documents": 2,
        "characters": 8,
        "dropped": 2,
        "dropped: empty": 1,
        "error: json": 1,
        "errors": 1,
        "parts": 1,
        "dropped parts": 1,
    }
    [[empty, broken]] = parts(out, "dropped")
    assert (empty["where"], empty["reason"], empty["meta"]) == (f"{data}/a.jsonl:2", "empty", '{"k": 2}')
    assert (broken["where"], broken["step"], broken["reason"]) == (f"{data}/a.jsonl:3", "documents", "json")
    with pytest.raises(DataError, match=r"a\.jsonl:3: json: expected one JSON object a line.*\(max_errors=0\)"):
        ReadTask(out, 100, 1 << 20, 0)(0, task(data))
    assert not list((out / ".parts").glob("*.tmp"))


def test_a_broken_file_is_an_error_behind_what_it_held(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    write(data, a_dot_parquet="no parquet", b_dot_parquet="neither")
    counts = ReadTask(out, 100, 1 << 20, 2)(0, task(data))
    assert (counts["documents"], counts["errors"], counts["error: file"]) == (0, 2, 2)
    [[first, _]] = parts(out, "dropped")
    assert "expected a parquet file" in first["detail"]


def test_a_limit_ends_the_reading(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    write(data, a_dot_txt="one\n \ntwo\nthree", b_dot_txt="four")
    counts = ReadTask(out, 100, 1 << 20, 0)(0, task(data, unit="line", limit=2))
    assert (counts["documents"], [row["text"] for row in parts(out, "documents")[0]]) == (2, ["one", "two"])


def test_ids_do_not_follow_from_where_the_data_lie(tmp_path: Path) -> None:
    ids = []
    for name in ("here", "there"):
        write(tmp_path / name, deep__a_dot_txt="one\ntwo")
        ids.append([as_row("s", *found)[1]["id"] for found in _found(task(tmp_path / name, unit="line"))])
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == 2


def _found(one: Task) -> list[tuple[str, str, Item]]:
    return [(place, name, item) for place, name, item in found_in(one) if isinstance(item, Item)]


def test_a_row_that_cannot_be_kept_is_an_error() -> None:
    item, row = as_row("s", "a", "data/a", Item("row 3", "text", {"image": object()}))
    assert (item.is_error, item.reason, row["text"], row["where"]) == (True, "unkeepable", "", "data/a row 3")
    item, row = as_row("s", "a", "data/a", Item("line 3", "\ud800"))
    assert (item.is_error, row["where"]) == (True, "data/a:3")


def test_a_task_has_another_key_when_a_file_or_setting_changes(tmp_path: Path) -> None:
    write(tmp_path, a_dot_txt="one")
    first = task(tmp_path)
    assert repr(task(tmp_path)) == repr(first)
    assert repr(task(tmp_path, unit="line")) != repr(first)
    write(tmp_path, a_dot_txt="other")
    assert repr(task(tmp_path)) != repr(first)
    assert repr(replace(first, name="t")) != repr(first)


def test_what_a_source_reads_beside_its_files_is_part_of_its_tasks(tmp_path: Path) -> None:
    """A dataset in a folder, the solutions of responses: written again, they are other work."""
    write(tmp_path, set__train_dot_jsonl="{}", made__responses_dot_jsonl="{}", solved__responses_dot_jsonl="{}")
    solved = tmp_path / "solved" / "responses.jsonl"
    hub = SourceConfig(path=(str(tmp_path / "set"), "owner/name@main"), format="hub")
    responses = SourceConfig(
        path=(str(tmp_path / "made"),), format="responses", responses=ResponsesConfig(solutions=str(solved))
    )
    config = DocumentsConfig(sources={"hub": hub, "responses": responses})
    before = repr(plan(config))
    assert repr(plan(config)) == before
    write(tmp_path, solved__responses_dot_jsonl='{"id": 1}')
    after = repr(plan(config))
    assert after != before
    write(tmp_path, set__train_dot_jsonl='{"text": "x"}')
    assert repr(plan(config)) != after
    assert plan(config)[0][1].files == (SourceFile("owner/name@main", "owner/name@main"),)
