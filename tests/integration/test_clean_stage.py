"""The clean stage on a real local Ray: any shards, a recipe with filters of one's own, resuming where it stopped."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray

from pretrain.data import flow as flows
from pretrain.data.clean_steps import steps_of
from pretrain.data.cleaning import clean
from pretrain.data.contamination import Item
from pretrain.data.document import DROPPED, document, label, read_documents, shards_of, write_shards
from pretrain.data.fates import CHANGES
from pretrain.data.shards import Workers
from rlplatform.config import CleanConfig, ConfigError
from rlplatform.configfile import build, load
from rlplatform.pipeline import run_config

DATA = Path(__file__).parents[2].parent / "shared" / "data"
ITEM = Item("bench", "1", "a farmer has seventeen sheep and all but nine of them run away today")
STEPS = {
    "same": {"function": "exact_duplicates"},
    "near_duplicates": {"threshold": 0.7, "ngram": 2},
    "repeated_paragraphs": {"max_documents": 2, "min_words": 4},
    "contamination": {"mode": "cut", "window": 10, "min_piece": 10},
    "privacy": {},
}


@pytest.fixture(scope="module", autouse=True)
def two_cpus() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


def rows(num: int = 24) -> list[dict[str, Any]]:
    """Twenty-four documents: every fourth like another, every third with the same paragraph, some with an item."""
    found = []
    for k in range(num):
        words = " ".join(f"word{(k * 7 + j * j) % 101}" for j in range(40))
        if k % 4 == 1 and k > 1:
            words = found[k - 1]["text"].split("\n")[0] + (" tail" if k % 8 == 1 else "")
        text = words + ("\n\nAll rights of this site are reserved." if k % 3 == 0 else "")
        text = found[12]["text"].upper() if k == 13 else text
        text += f"\n\n{ITEM.text.title()}. Words stand between them. Mail me{k}@x.org." if k in (5, 10, 20) else ""
        found.append({**document("s", str(k), f"s:{k}", text), "labels": [label("language", "en", "by hand", 0.9)]})
    return found


def outcome(folder: Path) -> list[list[dict[str, Any]]]:
    kinds = (DROPPED, CHANGES)
    others = [[row for path in shards_of(folder, kind) for row in pq.read_table(path).to_pylist()] for kind in kinds]
    return [list(read_documents(folder)), *others]


def test_the_result_does_not_depend_on_shards_or_workers(tmp_path: Path) -> None:
    found = []
    for per_shard, workers in ((5, Workers()), (24, Workers(num_workers=1))):
        shards = write_shards(rows(), tmp_path / f"in-{per_shard}", per_shard)
        out = tmp_path / f"out-{per_shard}"
        cleaned = clean(shards, out, steps_of(STEPS), items=lambda step: [ITEM], workers=workers, batch_rows=3)
        found.append((outcome(out), cleaned.flow))
        assert not (out / "work").exists()
    assert found[0] == found[1]
    (kept, dropped, changed), flow = found[0]
    assert len(kept) + len(dropped) == 24
    assert {row["step"] for row in dropped} == {"same", "near_duplicates"}
    assert {change["step"] for change in changed} == {"repeated_paragraphs", "contamination", "privacy"}
    assert flow.kept == len(kept)
    assert all(row["labels"][0]["value"] == "en" for row in kept)


MINE = '''
import json, os, time
from pathlib import Path
from pretrain.data.edits import Decision

def count(rows, *, folder, refuse):
    """Notes that it was called; refuses the document `refuse` until a file `repaired` is there."""
    for row in rows:
        if row["where"] == refuse and not (Path(folder) / "repaired").exists():
            raise ValueError("not repaired yet")
    (Path(folder) / f"{rows[0]['where'].replace(':', '-')}-{time.monotonic_ns()}").touch()
    return [Decision("long") if len(row["text"]) > 400 else Decision() for row in rows]
'''


def recipe(tmp_path: Path, **steps: Any) -> Any:
    values = {"kind": "clean", "documents": str(tmp_path / "in"), "steps": steps, "batch_documents": 100}
    return build(
        {"kind": "recipe", "name": "r", "run_dir": str(tmp_path / "runs"), "stages": {"clean": values}}, where="test"
    )


def test_a_recipe_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """The fourth of five shards fails in the second pass; what was finished is not done again."""
    (tmp_path / "mine.py").write_text(MINE)
    calls = tmp_path / "calls"
    calls.mkdir()
    shards = write_shards(rows(), tmp_path / "in", 5)
    own = {"function": f"{tmp_path / 'mine.py'}:count", "folder": str(calls), "refuse": "s:17"}
    config = recipe(
        tmp_path, language={"function": "label", "name": "language", "keep": ["en"]}, same=STEPS["same"], mine=own
    )
    with pytest.raises(RuntimeError, match=r"documents-00003.parquet, document 's/[0-9a-f]+': not repaired yet"):
        run_config(config)
    assert not list((tmp_path / "runs").rglob("documents-*.parquet"))
    marks = (tmp_path / "runs" / "clean" / "work" / "pass-01" / ".finished").glob("*.json")
    finished = sorted(int(mark.stem) for mark in marks)
    assert finished
    assert 3 not in finished
    (calls / "repaired").touch()
    run_config(config)
    called = [path.name.split("-")[1] for path in calls.glob("s-*")]  # the first row of each batch
    assert [called.count(str(5 * index)) for index in finished] == [1] * len(finished)
    assert {str(5 * index) for index in range(len(shards))} <= set(called)
    folder = tmp_path / "runs" / "clean"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["documents"] == 24
    assert summary["kept"] + summary["dropped"] == 24
    flow = flows.load(folder)
    assert [step.name for step in flow.steps] == ["language", "same", "mine"]
    assert (folder / "flow.md").read_text().startswith("| step")
    assert (folder / "flow.png").stat().st_size > 10_000
    done = (folder / "done.json").stat().st_mtime_ns
    run_config(config)  # finished before
    assert (folder / "done.json").stat().st_mtime_ns == done


def test_a_step_that_does_not_exist_stops_the_recipe_before_it_starts(tmp_path: Path) -> None:
    write_shards(rows(3), tmp_path / "in", 5)
    with pytest.raises(ConfigError, match="did you mean exact_duplicates"):
        run_config(recipe(tmp_path, exact_duplicate={}))
    assert not (tmp_path / "runs" / "clean").exists()


def test_nothing_left_is_an_error_that_says_why(tmp_path: Path) -> None:
    write_shards(rows(3), tmp_path / "in", 5)
    with pytest.raises(ConfigError, match=r"clean: nothing is left; .*dropped-\*.parquet say why"):
        run_config(recipe(tmp_path, length={"min": 10**6}))
    assert len(outcome(tmp_path / "runs" / "clean")[1]) == 3


def test_real_documents_with_planted_faults(tmp_path: Path) -> None:
    """300 pages of C4 and 30 articles, with copies, near copies and GSM8K questions planted among them."""
    c4, wiki = DATA / "pretrain" / "c4_demo.jsonl.gz", DATA / "pretrain" / "wiki_demo.txt.gz"
    gsm8k = DATA / "gsm8k" / "test.jsonl.gz"
    for path in (c4, wiki, gsm8k):
        if not path.is_file():
            pytest.skip(f"{path.name} is not in ../shared/data")
    with gzip.open(c4, "rt") as pages, gzip.open(wiki, "rt") as articles, gzip.open(gsm8k, "rt") as problems:
        texts = [("c4", json.loads(line)["text"]) for line in pages] + [("wiki", line) for line in articles]
        planted = [("gsm8k", json.loads(line)["question"]) for line in list(problems)[::50]]
    texts += planted + [("copy", texts[k][1].upper()) for k in range(0, 40, 4)]
    texts += [("near", texts[k][1][:-40] + " The end.") for k in range(1, 40, 4)]
    made = [document(source, str(k), f"{source}:{k}", text) for k, (source, text) in enumerate(texts)]
    write_shards(made, tmp_path / "in", 100)
    steps = {
        "exact_duplicates": {},
        "near_duplicates": {},
        "contamination": {"benchmarks": ["gsm8k", "mmlu", "humaneval"], "data_dir": str(DATA)},
        "privacy": {"regions": ["US"]},
    }
    config = CleanConfig(documents=str(tmp_path / "in"), steps=steps, run_dir=str(tmp_path / "out"))
    summary = run_config(config)["summary"]
    assert summary["by_step"]["exact_duplicates"]["dropped"] == {"duplicate": 10}
    assert summary["by_step"]["near_duplicates"]["dropped"] == {"near_duplicate": 10}
    assert summary["by_step"]["contamination"]["dropped"] == {"gsm8k": len(planted)}
    assert summary["by_step"]["privacy"]["edits"] == {"email": 7, "phone": 23}
    _, dropped, changed = outcome(tmp_path / "out")
    assert {row["source"] for row in dropped} == {"copy", "near", "gsm8k"}
    assert all("gsm8k/gsm8k-" in row["detail"] for row in dropped if row["source"] == "gsm8k")
    assert all(change["removed"] == "" and change["secret"] for change in changed)
    assert summary["benchmark_items"]["contamination"]["gsm8k: looked for"] == 1319


def test_the_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    config = load("examples/corpus/clean.yaml", [f"run_dir={tmp_path}"])
    run_config(config)
    kept, dropped, changed = outcome(tmp_path / "clean")
    lines = {row["id"]: row["where"].rpartition(":")[2] for row in (*kept, *dropped)}
    assert [(lines[row["id"]], row["reason"]) for row in dropped] == [
        ("2", "duplicate"),
        ("3", "near_duplicate"),
        ("7", "own"),
        ("8", "too_low"),
        ("10", "shouting"),
    ]
    assert [(lines[one["id"]], one["step"], one["put"]) for one in changed] == [
        ("4", "repeated_paragraphs", ""),
        ("5", "repeated_paragraphs", ""),
        ("6", "repeated_paragraphs", ""),
        ("6", "privacy", "[EMAIL]"),
        ("6", "privacy", "[PHONE]"),
    ]
    assert [lines[row["id"]] for row in kept] == ["1", "4", "5", "6", "9"]
