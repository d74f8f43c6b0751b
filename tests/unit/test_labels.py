"""The label schema, what a labeller may answer, how it is named, and how a config becomes labellers."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretrain.data import shards
from pretrain.data.annotate import Annotator, annotate, merged, summarise, table
from pretrain.data.document import document, write_shards
from pretrain.data.label_schema import MEANINGS
from pretrain.data.labels import LABELLERS, Failed, Labeller, bind, described, failure_of, identified, to_labels
from rewards.base import load_function
from rlplatform.config import AnnotateConfig, ConfigError
from rlplatform.datafiles import DataError

BY = Labeller("mine", "m:f", {}, "mine@1")


def one(value: Any, name: str = "thing") -> dict[str, Any]:
    [[entry]] = to_labels(BY, [{name: value}], 1)
    return entry


@pytest.mark.parametrize(
    ("value", "text", "score"),
    [
        ("news", "news", None),
        (("news", 0.75), "news", 0.75),
        (3, "3", 3.0),
        (0.1 + 0.2, "0.3", 0.1 + 0.2),  # the text is for people, the score is exact
        (True, "yes", None),
        (False, "no", None),
        (np.float32(0.5), "0.5", 0.5),
        (np.int64(7), "7", 7.0),
        (None, "!not_applicable", None),
        (Failed("timeout", "no reply\n within 60 s"), "!timeout: no reply within 60 s", None),
    ],
)
def test_values_as_they_are_written(value: Any, text: str, score: float | None) -> None:
    assert one(value) == {"name": "thing", "value": text, "score": score, "labeller": "mine@1"}


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([{"a": "x"}], "expected a list of 2 mappings, one a text, got 1 answers"),
        ({"a": "x"}, "got dict"),
        ("ab", "got 2 answers"),
        (7, "got int"),
        ([{"a": "x"}, "y"], "text 1: expected a mapping"),
        ([{"a": "x"}, {"A b": "y"}], "text 1: expected a label's name"),
        ([{"a": "x"}, {"a": math.nan}], "text 1: label a: expected a finite number, got nan"),
        ([{"a": "x"}, {"a": math.inf}], "expected a finite number"),
        ([{"a": "x"}, {"a": ("y", math.nan)}], "expected a finite score of 'y'"),
        ([{"a": "x"}, {"a": ""}], "expected a class, a number"),
        ([{"a": "x"}, {"a": "!error"}], "expected a class, a number"),
        ([{"a": "x"}, {"a": ["y"]}], "expected a class, a number"),
        ([{"a": "x"}, {"language": 3.0}], "label language: expected a class"),
        ([{"a": "x"}, {"perplexity": "high"}], "label perplexity: expected a number"),
        ([{"a": "x"}, {"length.words": True}], "label length.words: expected a number"),
    ],
)
def test_what_is_no_label_is_refused_with_the_text_that_it_is_of(answers: Any, said: str) -> None:
    with pytest.raises(DataError) as error:
        to_labels(BY, answers, 2)
    assert said in str(error.value)
    assert "'mine'" in str(error.value)


def test_a_failure_is_told_from_every_value() -> None:
    assert [failure_of(one(v)) for v in ("error", 3, None, Failed("unparseable", "x: y"))] == [
        "",
        "",
        "not_applicable",
        "unparseable",
    ]
    with pytest.raises(ValueError, match=r"Failed\.status"):
        Failed("lost")


def test_every_built_in_labeller_loads_and_says_its_version() -> None:
    for name, target in LABELLERS.items():
        function = load_function(target, name)
        assert function.version, name
    assert {"language", "educational_value", "field", "domain", "safety", "perplexity"} <= set(MEANINGS)


PLUGIN = """
def exclamations(texts, *, weight=1.0):
    return [{"exclamations": weight * text.count("!")} for text in texts]

def sources(texts, documents):
    return [{"source.name": row["source"], "source.labels": len(row["labels"])} for row in documents]

def broken(texts):
    return [{"x": 1 / text.count("!")} for text in texts]

def flaky(texts):
    from pretrain.data.labels import Failed
    return [{"x": Failed("timeout", "late") if "!" in text else 1} for text in texts]
"""


@pytest.fixture
def plugin(tmp_path: Path) -> str:
    (tmp_path / "my_labels.py").write_text(PLUGIN)
    return str(tmp_path / "my_labels.py")


def docs(*texts: str) -> list[dict[str, Any]]:
    return [document("s", str(n), f"s:{n}", text) for n, text in enumerate(texts)]


def run(names: dict[str, Any], rows: Sequence[dict[str, Any]], **kw: Any) -> list[dict[str, Any]]:
    return Annotator([identified(bind(name, settings)) for name, settings in names.items()], **kw)(rows)


def values(row: dict[str, Any]) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in row["labels"]}


def test_a_file_of_five_lines_is_a_labeller(plugin: str) -> None:
    out = run({f"{plugin}:exclamations": {"weight": 2}}, docs("a!b!", "c"))
    assert [values(row) for row in out] == [{"exclamations": "4"}, {"exclamations": "0"}]


def test_a_later_labeller_sees_the_labels_of_those_before_it(plugin: str) -> None:
    [row] = run({f"{plugin}:exclamations": None, "seen": {"use": f"{plugin}:sources"}}, docs("a!"))
    assert values(row) == {"exclamations": "1", "source.name": "s", "source.labels": "1"}


def test_identity_changes_with_settings_version_and_content_and_with_nothing_else(plugin: str, tmp_path: Path) -> None:
    def identity(name: str, **settings: Any) -> str:
        return identified(bind(name, settings)).identity

    assert identity("quality") == "quality@1"
    plain, heavy = identity(f"{plugin}:exclamations"), identity(f"{plugin}:exclamations", weight=2)
    assert plain.startswith("exclamations@file-")
    assert heavy.startswith(plain + "+")
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    first.write_text("word\n")
    second.write_text("word\n")
    by_file = identity("terms", file=str(first))
    assert by_file == identity("terms", file=str(second))  # the content decides, not where it lies
    second.write_text("other\n")
    assert by_file != identity("terms", file=str(second))
    llm = {"rubric": "safety", "model": "m"}
    here = identity("llm", base_url="http://127.0.0.1:1/v1", **llm)
    assert here == identity("llm", base_url="http://127.0.0.1:2/v1", timeout_s=5.0, **llm)
    assert here != identity("llm", base_url="http://127.0.0.1:1/v1", **{**llm, "model": "other"})
    Path(plugin).write_text(PLUGIN + "\n")
    assert identity(f"{plugin}:exclamations") != plain
    assert described(bind("terms", {"file": str(first)}))["settings"] == {"file": str(first)}


def test_a_labeller_crosses_processes_after_use(plugin: str) -> None:
    bound = identified(bind(f"{plugin}:exclamations", {}))
    assert bound(docs("!"))
    again = pickle.loads(pickle.dumps(bound))
    assert again == bound


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("langauge", {}, "did you mean 'language'"),
        ("x", {"use": "nothing"}, "labellers.x: expected one of"),
        ("language", {"modle": "x"}, "no setting 'modle'; did you mean 'model'"),
        ("quality", {"x": 1}, "it has none"),
        ("classifier", {}, "labellers.classifier: expected model"),
        ("language", {"min_margin": -1}, "min_margin: expected a number >= 0"),
        ("classifier", {"model": "m", "min_probability": 2}, "from 0 to 1"),
        ("from_source", {"values": {}}, "expected a mapping source -> value"),
        ("perplexity", {"model": "m", "overlap": 9, "window": 9}, "0 < overlap < window"),
        ("llm", {"base_url": "http://h/v1", "model": "m"}, "expected a rubric"),
        ("llm", {"base_url": "h", "model": "m", "rubric": "field"}, "base_url: expected the address"),
        ("llm", {"base_url": "http://h/v1", "model": "m", "rubric": "feild"}, "did you mean 'field'"),
        ("llm", {"base_url": "http://h/v1", "model": "m", "label": "x", "question": "q", "values": {"a": "b"}}, "two"),
        ("nofile.py:fn", {}, "no file"),
        ("pretrain.data.labels:nothing", {}, "has no function 'nothing'"),
    ],
)
def test_settings_are_checked_before_anything_starts(name: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        bind(name, settings)
    assert said in str(error.value)


def test_the_config_is_checked_where_it_is_owned() -> None:
    good: dict[str, Any] = {"documents": "d", "labellers": {"length": {}}}
    AnnotateConfig(**good)
    for change, said in (
        ({"documents": ""}, "documents: expected a folder"),
        ({"labellers": {}}, "labellers: expected at least one"),
        ({"labellers": {"length": 3}}, "labellers.length: expected its settings"),
        ({"max_failed_share": 1.5}, "max_failed_share"),
        ({"batch_rows": 0}, "batch_rows"),
    ):
        with pytest.raises(ConfigError, match=said):
            AnnotateConfig(**{**good, **change})


# --- many labels on many documents ----------------------------------------------------------------------------------


def test_a_label_is_given_once_unless_it_is_replaced(plugin: str) -> None:
    [row] = run({f"{plugin}:exclamations": {}}, docs("a!"))
    with pytest.raises(DataError, match=r"has a label exclamations by exclamations@file-.*set replace: true"):
        run({f"{plugin}:exclamations": {"weight": 5}}, [row])
    [new] = run({f"{plugin}:exclamations": {"weight": 5}}, [row], replace=True)
    assert values(new) == {"exclamations": "5"}
    assert values(row) == {"exclamations": "1"}  # what was given is not changed
    assert merged({"id": "x", "labels": []}, [], replace=False) == []


def test_an_exception_is_not_swallowed(plugin: str) -> None:
    with pytest.raises(ZeroDivisionError):
        run({f"{plugin}:broken": {}}, docs("!", "none"))


def test_too_many_failures_of_a_label_stop_the_stage(plugin: str) -> None:
    few = docs(*["fine"] * 95, *["late!"] * 5)
    assert len(run({f"{plugin}:flaky": {}}, few, max_failed_share=0.05)) == 100
    with pytest.raises(DataError, match=r"label x: 6 of 100 answers failed.*the first: !timeout: late"):
        run({f"{plugin}:flaky": {}}, docs(*["fine"] * 94, *["late!"] * 6), max_failed_share=0.05)


def test_the_summary_counts_every_answer(plugin: str, tmp_path: Path) -> None:
    rows = run({f"{plugin}:flaky": {}, f"{plugin}:sources": {}, "length": {}}, docs("a", "bbb", "late!", "dd"))
    for size in (1, 3, 10):  # the same whatever the shards
        paths = write_shards(rows, tmp_path / str(size), size)
        found = summarise(paths)
        assert found["x"]["answers"] == 4
        assert found["x"]["failed"] == {"timeout": 1}
        assert (found["x"]["mean"], found["x"]["min"], found["x"]["max"]) == (1.0, 1.0, 1.0)
        assert found["source.name"]["values"] == {"s": 4}
        assert found["length.characters"]["mean"] == (1 + 3 + 5 + 2) / 4
        assert found["length.characters"]["max"] == 5.0
        assert sum(found["x"]["by"].values()) == 4
        assert any("timeout 1" in line for line in table({"labels": found}))
    assert summarise(write_shards(docs("a"), tmp_path / "none", 5)) == {}


def test_what_failed_is_asked_again_by_the_next_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint was away; documents are labelled in this process."""

    def in_process(process: Any, tasks: Sequence[tuple[int, Any]], workers: Any) -> Iterator[dict[str, Any]]:
        function = process.factory(**process.arguments)
        return (shards._answer({"index": k, "task": pickle.dumps(task)}, function) for k, task in tasks)

    monkeypatch.setattr(shards, "_on_ray", in_process)
    (tmp_path / "asks.py").write_text(
        "from pathlib import Path\nfrom pretrain.data.labels import Failed\n\n"
        "def asks(texts, *, away):\n"
        "    return [{'kind': Failed('timeout') if Path(away).exists() else 'news'} for _ in texts]\n"
    )
    away = tmp_path / "away"
    away.touch()
    write_shards([document("s", str(k), f"s:{k}", "text") for k in range(4)], tmp_path / "in", 2)
    config = AnnotateConfig(
        documents=str(tmp_path / "in"),
        run_dir=str(tmp_path / "out"),
        labellers={f"{tmp_path}/asks.py:asks": {"away": str(away)}},
    )
    with pytest.raises(DataError, match="label kind: 4 of 4 answers failed"):
        annotate(config)
    away.unlink()
    assert annotate(config)["labels"]["kind"]["values"] == {"news": 4}
