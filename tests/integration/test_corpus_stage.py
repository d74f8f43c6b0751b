"""Shards and the documents stage on a real local Ray: order, faults, resuming, pages read by models."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from pretrain.data.document import DROPPED, document, label, read_documents, shards_of, write_shards
from pretrain.data.documents import make_documents
from pretrain.data.shards import Stateful, Workers, map_shards
from rlplatform.config import (
    ConfigError,
    DocumentsConfig,
    EndpointConfig,
    PdfConfig,
    ResponsesConfig,
    SourceConfig,
    WorkersConfig,
)
from rlplatform.configfile import build, load
from rlplatform.datafiles import DataError
from rlplatform.pipeline import run_config
from rlplatform.plan import FINISHED, STARTS_OVER, plan_recipe
from rlplatform.reads import ENV, reads
from tests.unit.page_reader import PageReader, Served, scanned_pdf

ROOT = Path(__file__).parents[2]
Row = dict[str, Any]
ONE = Workers(num_workers=1)


@pytest.fixture(scope="module", autouse=True)
def two_cpus() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    """Six shards of 5 documents, the last of 2."""
    rows = [document("s", str(i), f"f:{i}", str(i)) for i in range(27)]
    return write_shards(rows, tmp_path / "in", 5)


# --- functions over shards ------------------------------------------------------------------------------------------


class Numbered:
    """A function that says which of its kind answered, and how many have been made, by files in a folder."""

    def __init__(self, folder: str) -> None:
        self.name = f"{os.getpid()}-{time.monotonic_ns()}"
        (Path(folder) / self.name).touch()

    def __call__(self, rows: list[Row]) -> list[Row]:
        return [{**row, "labels": [label("made by", self.name, "n")]} for row in rows]


def test_output_is_in_order_whoever_is_first(shards: list[Path], tmp_path: Path) -> None:
    def slow_first(rows: list[Row]) -> list[Row]:
        time.sleep(0.6 if rows[0]["text"] == "0" else 0.0)
        return [{**row, "labels": [label("square", str(int(row["text"]) ** 2), "me")]} for row in rows]

    finished: list[int] = []
    counts = map_shards(
        slow_first, shards, tmp_path / "out", key="k", batch_rows=2, progress=lambda n, _: finished.append(n)
    )
    assert [entry["documents"] for entry in counts] == [5, 5, 5, 5, 5, 2]
    assert finished == list(range(7))
    assert [(row["text"], row["labels"][0]["value"]) for row in read_documents(tmp_path / "out")] == [
        (str(i), str(i * i)) for i in range(27)
    ]
    map_shards(slow_first, shards, tmp_path / "one", key="k", batch_rows=5, workers=ONE)
    assert list(read_documents(tmp_path / "one")) == list(read_documents(tmp_path / "out"))


def test_a_stateful_function_is_made_once_an_actor(shards: list[Path], tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    map_shards(Stateful(Numbered, {"folder": str(made)}), shards, tmp_path / "out", key="k", workers=ONE)
    [name] = [path.name for path in made.iterdir()]
    assert {row["labels"][0]["value"] for row in read_documents(tmp_path / "out")} == {name}


def test_what_is_finished_is_not_done_again(shards: list[Path], tmp_path: Path) -> None:
    """The first run stops at the fourth shard; the second does what is left, and a third nothing."""
    flag, done = tmp_path / "repaired", tmp_path / "done"
    done.mkdir()

    def function(rows: list[Row]) -> list[Row]:
        if rows[0]["text"] == "15" and not flag.exists():
            raise DataError("broken here")
        (done / f"{rows[0]['text']}-{time.monotonic_ns()}").touch()
        return rows

    with pytest.raises(DataError, match=r"documents-00003\.parquet, document 's/\w+': broken here"):
        map_shards(function, shards, tmp_path / "out", key="k", workers=ONE)
    flag.touch()
    marked = {int(path.stem) for path in (tmp_path / "out" / ".finished").iterdir()}
    before = {path.name for path in done.iterdir()}
    map_shards(function, shards, tmp_path / "out", key="k", workers=ONE)
    again = {int(path.name.split("-")[0]) // 5 for path in done.iterdir() if path.name not in before}
    assert again == set(range(6)) - marked
    assert marked >= {0}
    assert [row["text"] for row in read_documents(tmp_path / "out")] == [str(i) for i in range(27)]
    num = len(list(done.iterdir()))
    map_shards(function, shards, tmp_path / "out", key="k", workers=ONE)
    assert len(list(done.iterdir())) == num
    map_shards(function, shards, tmp_path / "out", key="other settings", workers=ONE)
    assert len(list(done.iterdir())) == num + 6


def test_a_worker_that_is_killed_loses_and_doubles_nothing(shards: list[Path], tmp_path: Path) -> None:
    flag = tmp_path / "killed"

    def function(rows: list[Row]) -> list[Row]:
        if rows[0]["text"] == "12" and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return rows

    counts = map_shards(function, shards, tmp_path / "out", key="k", batch_rows=2)
    assert flag.exists()
    assert sum(entry["documents"] for entry in counts) == 27
    assert [row["text"] for row in read_documents(tmp_path / "out")] == [str(i) for i in range(27)]
    (tmp_path / "out" / ".documents-00002.parquet.dead.tmp").touch()  # such as a process leaves that is killed writing
    map_shards(function, shards, tmp_path / "out", key="k")
    assert not list((tmp_path / "out").glob(".*.tmp"))


def test_another_error_comes_with_its_traceback(shards: list[Path], tmp_path: Path) -> None:
    def function(rows: list[Row]) -> list[Row]:
        return [{**row, "labels": [1 // (int(row["text"]) - 7)]} for row in rows]

    with pytest.raises(RuntimeError, match=r"(?s)shard \d: .*ZeroDivisionError.*test_corpus_stage\.py") as caught:
        map_shards(function, shards[1:2], tmp_path / "out", key="k")
    assert f"document {document('s', '7', '', '')['id']!r}" in str(caught.value)


# --- the documents stage --------------------------------------------------------------------------------------------


def test_the_example_runs_as_a_user_runs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = load("examples/corpus/documents.yaml", [f"run_dir={tmp_path / 'run'}"])
    done = run_config(config)
    assert {name: entry["documents"] for name, entry in done["summary"]["sources"].items()} == {
        "rows": 2,
        "notes": 2,
        "page": 1,
    }
    rows = list(read_documents(tmp_path / "run"))
    assert [(row["source"], row["where"]) for row in rows] == [
        ("rows", "examples/corpus/rows.jsonl:1"),
        ("rows", "examples/corpus/rows.jsonl:2"),
        ("notes", "examples/corpus/notes.txt:1"),
        ("notes", "examples/corpus/notes.txt:4"),
        ("page", "examples/corpus/page.html"),
    ]
    assert rows[2]["text"] == "The first note.\nIt has two lines."
    assert json.loads(rows[0]["meta"]) == {"topic": "physics", "year": 2021}
    [dropped] = read_documents(tmp_path / "run", DROPPED)
    assert (dropped["where"], dropped["reason"]) == ("examples/corpus/rows.jsonl:3", "empty")
    assert run_config(config)["seconds"] == done["seconds"]  # finished before


def corpus(folder: Path, num_files: int = 6) -> Path:
    folder.mkdir(parents=True)
    for k in range(num_files):
        lines = [json.dumps({"text": f"{k} {i}", "k": k}) for i in range(3 * k + 1)]
        (folder / f"{k}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def config(tmp_path: Path, name: str, **settings: Any) -> DocumentsConfig:
    settings = {"documents_per_shard": 4, "sources": {"s": SourceConfig(path=(str(tmp_path / "data"),))}, **settings}
    return DocumentsConfig(run_dir=str(tmp_path / name), **settings)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.parquet"))}


def marks_of(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / ".finished").iterdir()}


def one_file_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small files are several tasks: the bound on a task's bytes is in MiB."""
    from pretrain.data import documents, sources

    def plan(config: DocumentsConfig) -> Any:
        tasks, ignored = sources.plan(config)
        return [sources.Task(t.name, t.source, t.format, (file,)) for t in tasks for file in t.files], ignored

    monkeypatch.setattr(documents, "plan", plan)


def test_shards_do_not_depend_on_the_number_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus(tmp_path / "data")
    one_file_a_task(monkeypatch)
    summaries = [
        make_documents(config(tmp_path, f"run{workers}", workers=WorkersConfig(num_workers=workers)))
        for workers in (0, 1)
    ]
    assert summaries[0] == summaries[1]
    assert files(tmp_path / "run0") == files(tmp_path / "run1")
    assert [row["text"] for row in read_documents(tmp_path / "run0")] == [
        f"{k} {i}" for k in range(6) for i in range(3 * k + 1)
    ]
    assert summaries[0]["shards"] == len(shards_of(tmp_path / "run0")) == sum(-(-(3 * k + 1) // 4) for k in range(6))
    assert json.loads((tmp_path / "run0" / "summary.json").read_text()) == summaries[0]


def test_a_stopped_stage_goes_on_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = corpus(tmp_path / "data")
    one_file_a_task(monkeypatch)
    make_documents(config(tmp_path, "whole"))
    good = (data / "4.jsonl").read_text()
    (data / "4.jsonl").write_text(good + "{broken\n")
    with pytest.raises(DataError, match=r"4\.jsonl:14: json: expected one JSON object a line.*max_errors=0"):
        make_documents(config(tmp_path, "run", workers=WorkersConfig(num_workers=1)))
    assert not list((tmp_path / "run").glob("documents-*.parquet"))  # nothing that could be taken for a finished stage
    marks = marks_of(tmp_path / "run")
    assert "00000.json" in marks
    (data / "4.jsonl").write_text(good)
    make_documents(config(tmp_path, "run"))
    assert files(tmp_path / "run") == files(tmp_path / "whole")
    assert (
        marks.items()
        <= {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run" / ".finished").iterdir()}.items()
    )

    again = make_documents(config(tmp_path, "run"))  # a finished folder stays as it is
    assert (again["documents"], files(tmp_path / "run")) == (51, files(tmp_path / "whole"))
    (data / "5.jsonl").write_text('{"text": "new"}\n')  # other input: every shard is made again, none is left over
    assert make_documents(config(tmp_path, "run"))["documents"] == 36
    assert [row["text"] for row in read_documents(tmp_path / "run")][-1] == "new"


def test_errors_are_counted_over_all_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = corpus(tmp_path / "data", 3)
    one_file_a_task(monkeypatch)
    for k in range(3):
        (data / f"{k}.jsonl").write_text('{"text": "good"}\n{broken\n')
    with pytest.raises(DataError, match=r"3 unreadable rows, files or pages, more than max_errors=2.*'error: json': 3"):
        make_documents(config(tmp_path, "run", max_errors=2))
    summary = make_documents(config(tmp_path, "run", max_errors=3))
    assert (summary["documents"], summary["dropped"], summary["sources"]["s"]["errors"]) == (3, 3, 3)
    assert [row["where"] for row in read_documents(tmp_path / "run", DROPPED)] == [
        f"{data}/{k}.jsonl:2" for k in range(3)
    ]


def test_a_stage_without_a_document_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text(" \n")
    with pytest.raises(DataError, match=r"no document in s: .*dropped: empty"):
        make_documents(config(tmp_path, "run"))


def test_settings_that_a_reader_refuses_come_back_as_such(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.html").write_text("<p>text</p>")
    source = SourceConfig(path=(str(tmp_path / "data"),), html={"no_such": 1})
    with pytest.raises(ConfigError, match="html: expected keyword arguments") as caught:
        make_documents(config(tmp_path, "run", sources={"s": source}, max_errors=9))
    assert not isinstance(caught.value, DataError)


def test_a_recipe_feeds_one_stage_with_another(tmp_path: Path) -> None:
    def recipe(text: str) -> Any:
        prompts = {"kind": "dataset", "function": "pretrain.data.synthetic:prompts", "args": {"num": {"textbook": 3}}}
        source = {"path": ["stage:prompts/train.jsonl", str(extra)], "text": [text]}
        documents = {"kind": "documents", "sources": {"prompts": source}}
        stages = {"prompts": prompts, "documents": documents}
        return build({"kind": "recipe", "name": "r", "run_dir": str(tmp_path / "run"), "stages": stages}, where="test")

    extra = tmp_path / "extra.jsonl"
    extra.write_text('{"prompt": "written by hand", "id": "x"}\n')
    run_config(recipe("prompt"))
    rows = list(read_documents(tmp_path / "run" / "documents"))
    assert [row["text"][:13] for row in rows] == ["Write a secti"] * 3 + ["written by ha"]
    assert json.loads(rows[0]["meta"])["id"] == "textbook-1"
    assert [row.state for row in plan_recipe(recipe("prompt")).values()] == [FINISHED, FINISHED]
    assert [row.state for row in plan_recipe(recipe("id")).values()] == [FINISHED, STARTS_OVER]
    extra.write_text('{"prompt": "another", "id": "x"}\n')  # a file of the corpus that no stage made
    assert [row.state for row in plan_recipe(recipe("prompt")).values()] == [FINISHED, STARTS_OVER]


def leaves(*classes: type) -> set[str]:
    """Keys that hold values, not sections."""
    return {
        f"{cls.__name__}.{entry.name}"
        for cls in classes
        for entry in fields(cls)
        if entry.name not in ("kind", "workers", "pdf", "responses", "vision", "refine", "sources")
    }


def test_every_format_in_one_run_and_every_key_is_read(tmp_path: Path) -> None:
    """`rlplatform run` as a user starts it, with a page reader and what a sample stage left."""
    tracked, data = tmp_path / "reads", tmp_path / "data"
    tracked.mkdir()
    (data / "hub").mkdir(parents=True)
    (data / "a.jsonl").write_text('{"text": "from a row"}\n')
    (data / "a.html").write_bytes((ROOT / "examples" / "corpus" / "page.html").read_bytes())
    (data / "a.pdf").write_bytes(scanned_pdf([70]))
    write_shards([document("s", "0", "w", "from a hub dataset")], data / "hub", 1, "train")
    write_sample_stage(data / "generate", [{"form": "textbook", "response": "Light bends."}])
    write_sample_stage(data / "solve", [])
    reader = PageReader()
    with Served(reader) as url:
        model = {"base_url": url, "max_retries": 0}
        sources = {
            "rows": {"path": [f"{data}/a.jsonl"]},
            "page": {"path": [f"{data}/a.html"]},
            "pdf": {
                "path": [f"{data}/a.pdf"],
                "pdf": {"vision": {**model, "model": "vision"}, "refine": {**model, "model": "refine"}},
            },
            "hub": {"path": [f"{data}/hub"], "format": "hub"},
            "written": {
                "path": [f"{data}/generate/responses.jsonl"],
                "format": "responses",
                "responses": {"solutions": f"{data}/solve/responses.jsonl"},
            },
        }
        raw = {"kind": "documents", "name": "all", "run_dir": str(tmp_path / "run"), "sources": sources}
        (tmp_path / "all.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
        done = subprocess.run(
            [sys.executable, "-m", "rlplatform", "run", str(tmp_path / "all.yaml")],
            cwd=ROOT,
            env={**os.environ, ENV: str(tracked)},
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    assert [(row["source"], row["text"][:15]) for row in read_documents(tmp_path / "run")] == [
        ("rows", "from a row"),
        ("page", "How bread rises"),
        ("pdf", "PAGE OF GREY 70"),
        ("hub", "from a hub data"),
        ("written", "Light bends."),
    ]
    wanted = leaves(DocumentsConfig, SourceConfig, PdfConfig, EndpointConfig, ResponsesConfig, WorkersConfig)
    assert wanted - reads(tracked) == {"DocumentsConfig.seed"}  # nothing is drawn at random


def test_a_run_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    """kill -9 of the driver with half of the sources read: what is finished is not asked again, the end is the same."""
    levels = {f"s{k}": [20 * k + 10, 20 * k + 20] for k in range(5)}
    for name, pages in levels.items():
        (tmp_path / f"{name}.pdf").write_bytes(scanned_pdf(pages))
    reader = PageReader()
    with Served(reader) as url:
        pdf = {"vision": {"base_url": url, "model": "vision", "concurrency": 1}}
        sources = {name: {"path": [str(tmp_path / f"{name}.pdf")], "pdf": pdf} for name in levels}
        raw = {"kind": "documents", "name": "killed", "workers": {"num_workers": 1}, "sources": sources}
        for name in ("whole", "run"):
            text = yaml.safe_dump({**raw, "run_dir": str(tmp_path / name)}, sort_keys=False)
            (tmp_path / f"{name}.yaml").write_text(text)
        run_config(load(tmp_path / "whole.yaml"))
        reader.requests.clear()
        reader.delay_s = 0.4
        command = [sys.executable, "-m", "rlplatform", "run", str(tmp_path / "run.yaml")]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            end = time.monotonic() + 300
            while len(list((tmp_path / "run" / ".finished").glob("*.json"))) < 2:
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.02)
            process.kill()
        time.sleep(2.0)  # its workers notice
        before = marks_of(tmp_path / "run")
        assert 2 <= len(before) < 5
        assert not list((tmp_path / "run").glob("documents-*.parquet"))
        reader.delay_s = 0.0
        run_config(load(tmp_path / "run.yaml"))
    assert before.items() <= marks_of(tmp_path / "run").items()
    assert files(tmp_path / "run") == files(tmp_path / "whole")
    images = Counter(body["messages"][0]["content"][1]["image_url"]["url"] for body in reader.requests)
    assert len(images) == 10
    assert sorted(images.values())[: 2 * len(before)] == [1] * (2 * len(before))
    assert max(images.values()) <= 2


def write_sample_stage(folder: Path, responses: list[Row]) -> None:
    """The files of a sample stage that a documents stage reads."""
    settings = {"model": {"path": "m"}, "seed": 0, "num_samples": 1, "sampling": {}, "metric": ""}
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({**settings, "reward": {"functions": {"format": 1.0}}}))
    base = {"id": "0", "sample": 0, "domain": "optics", "finish": "stop", "status": "ok", "score": 1.0, "detail": ""}
    (folder / "responses.jsonl").write_text("".join(json.dumps({**base, **row}) + "\n" for row in responses))
    (folder / "queries.jsonl").write_text(json.dumps({"id": "0"}) + "\n")


def test_scanned_pages_are_read_by_models_from_workers(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for k, levels in enumerate([[10, 20], [30], [40]]):
        (tmp_path / "data" / f"{k}.pdf").write_bytes(scanned_pdf(levels))
    reader = PageReader()
    reader.faults["vision"].extend(["", "", "500"])
    with Served(reader) as url:
        raw = {
            "kind": "documents",
            "run_dir": str(tmp_path / "run"),
            "max_errors": 1,
            "sources": {
                "pdf": {
                    "path": [str(tmp_path / "data")],
                    "pdf": {
                        "vision": {"base_url": url, "model": "vision", "max_retries": 0, "concurrency": 1},
                        "refine": {"base_url": url, "model": "refine", "max_retries": 0},
                    },
                }
            },
        }
        built = build(raw, where="test")
        assert isinstance(built, DocumentsConfig)
        summary = make_documents(built)
    assert [row["text"] for row in read_documents(tmp_path / "run")] == [
        "PAGE OF GREY 10\n\nPAGE OF GREY 20",
        "PAGE OF GREY 40",
    ]
    [failed] = read_documents(tmp_path / "run", DROPPED)
    assert (failed["where"], failed["reason"]) == (str(tmp_path / "data" / "1.pdf"), "vision error")
    assert summary["sources"]["pdf"] == {
        "files": 3,
        "ignored files": 0,
        "documents": 2,
        "characters": 47,
        "errors": 1,
        "dropped": {"vision error": 1},
        "seen": {"pdf page: vision": 3, "pdf page: vision error": 1},
    }
