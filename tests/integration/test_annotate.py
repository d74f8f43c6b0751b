"""The annotate and train_labeller stages as a recipe runs them: on a local Ray, from files to labels."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from pretrain.data import ngrams
from pretrain.data.annotate import Annotator
from pretrain.data.document import document, read_documents, shards_of, write_shards
from pretrain.data.labellers.language import ask_model
from pretrain.data.labels import bind, identified
from rlplatform.config import AnnotateConfig, FeaturesConfig, GoldConfig, TrainLabellerConfig
from rlplatform.configfile import inputs, load, load_values, stages
from rlplatform.datafiles import DataError
from rlplatform.paths import configs_dir
from rlplatform.plan import plan_recipe, resolve_inputs
from rlplatform.reads import ENV, reads
from rlplatform.stage_runs import STAGES

ROOT = Path(__file__).parents[2]
PLUGIN = """
def marks(texts, *, weight=1):
    return [{"marks": weight * text.count("!")} for text in texts]

def fails(texts):
    return [{"thirds": 1 / (len(text) - 3)} for text in texts]

def refuses(texts):
    from pretrain.data.labels import Failed
    return [{"opinion": Failed("timeout", "the endpoint sleeps")} for text in texts]
"""
SENTENCES = [
    "All human beings are born free and equal in dignity and rights!",
    "Alle Menschen sind frei und gleich an Würde und Rechten geboren.",
    "Tous les êtres humains naissent libres et égaux en dignité et en droits.",
]


@pytest.fixture(scope="module", autouse=True)
def two_cpus() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Ten documents in three shards, and a file of labellers."""
    rows = [
        document("web", str(n), f"w:{n}", f"{SENTENCES[n % 3]} {'!' * n}", {"kind": "odd" if n % 2 else "even"})
        for n in range(10)
    ]
    write_shards(rows, tmp_path / "documents", 4)
    (tmp_path / "my_labels.py").write_text(PLUGIN)
    return tmp_path


def config(corpus: Path, labellers: dict[str, Any], **changes: Any) -> AnnotateConfig:
    values = {"documents": str(corpus / "documents"), "run_dir": str(corpus / "run"), "labellers": labellers}
    return AnnotateConfig(**{**values, **changes})


def test_labels_are_those_of_one_process_and_unfinished_shards_alone_are_done_again(corpus: Path) -> None:
    labellers = {"language": {}, "length": {}, f"{corpus}/my_labels.py:marks": {"weight": 2}}
    outcome = STAGES["annotate"](config(corpus, labellers, batch_rows=3))
    assert outcome.output == str(corpus / "run")
    assert outcome.summary == {"documents": 10, "shards": 3, "label_version": 1}
    alone = Annotator([identified(bind(name, settings)) for name, settings in labellers.items()])
    expected = alone(list(read_documents(corpus / "documents")))
    assert list(read_documents(corpus / "run")) == expected
    summary = json.loads((corpus / "run" / "summary.json").read_text())
    assert summary["labels"]["language"]["values"] == {"eng_Latn": 4, "deu_Latn": 3, "fra_Latn": 3}
    assert summary["labels"]["marks"]["max"] == 2 * 10.0
    by = {entry["labeller"] for row in expected for entry in row["labels"]}
    assert set(summary["labellers"]) == by
    assert {one["name"] for one in summary["labellers"].values()} == set(labellers)

    shards = shards_of(corpus / "run")
    times = [path.stat().st_mtime_ns for path in shards]
    content = [path.read_bytes() for path in shards]
    STAGES["annotate"](config(corpus, labellers, batch_rows=3))
    assert [path.stat().st_mtime_ns for path in shards] == times  # finished: nothing is done twice
    (corpus / "run" / ".finished" / "00001.json").unlink()
    STAGES["annotate"](config(corpus, labellers, batch_rows=3))
    again = [path.stat().st_mtime_ns for path in shards]
    assert (again[0], again[2]) == (times[0], times[2])
    assert again[1] != times[1]
    assert [path.read_bytes() for path in shards] == content

    more = {**labellers, f"{corpus}/my_labels.py:marks": {"weight": 3}}  # another labeller: other work
    STAGES["annotate"](config(corpus, more, batch_rows=3))
    marks = [entry for row in read_documents(corpus / "run") for entry in row["labels"] if entry["name"] == "marks"]
    assert max(entry["score"] for entry in marks) == 3 * 10.0


def test_a_second_stage_adds_labels_and_keeps_what_stands_behind_the_first(corpus: Path) -> None:
    STAGES["annotate"](config(corpus, {"length": {}}))
    second = config(corpus, {"language": {}}, documents=str(corpus / "run"), run_dir=str(corpus / "second"))
    STAGES["annotate"](second)
    summary = json.loads((corpus / "second" / "summary.json").read_text())
    assert set(summary["labels"]) == {"language", "length.characters", "length.words"}
    assert {name.partition("@")[0] for name in summary["labellers"]} == {"language", "length"}


def test_an_exception_names_shard_document_and_line(corpus: Path) -> None:
    rows = [document("web", str(n), f"w:{n}", text) for n, text in enumerate(["four", "fives", "six"])]
    write_shards(rows, corpus / "documents", 10)
    for path in shards_of(corpus / "documents")[1:]:
        path.unlink()
    with pytest.raises(RuntimeError) as error:
        STAGES["annotate"](config(corpus, {f"{corpus}/my_labels.py:fails": {}}))
    said = str(error.value)
    assert "ZeroDivisionError" in said
    assert rows[2]["id"] in said
    assert "documents-00000.parquet" in said
    assert "my_labels.py" in said


def test_failures_beyond_the_bound_stop_the_stage_and_below_are_counted(corpus: Path) -> None:
    labellers = {f"{corpus}/my_labels.py:refuses": {}}
    with pytest.raises(DataError, match=r"label opinion: 10 of 10 answers failed \(\{'timeout': 10\}\)"):
        STAGES["annotate"](config(corpus, labellers))
    STAGES["annotate"](config(corpus, labellers, max_failed_share=1.0))
    summary = json.loads((corpus / "run" / "summary.json").read_text())
    assert summary["labels"]["opinion"]["failed"] == {"timeout": 10}
    values = {entry["value"] for row in read_documents(corpus / "run") for entry in row["labels"]}
    assert values == {"!timeout: the endpoint sleeps"}


def test_a_trained_labeller_labels_with_its_content_as_name(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        document("web", str(n), f"w:{n}", f"{word} {chr(97 + n % 26)}{chr(97 + n // 26)}", {"kind": word})
        for n, word in enumerate(["apple", "hammer"] * 30)
    ]
    write_shards(rows, corpus / "more", 100)
    trained = STAGES["train_labeller"](
        TrainLabellerConfig(
            documents=(str(corpus / "more"),),
            run_dir=str(corpus / "labeller"),
            label="kind",
            gold=GoldConfig(meta="kind"),
            features=FeaturesConfig(buckets=1024),
        )
    )
    assert trained.summary["macro_f1"] == 1.0
    assert "macro F1 1.000" in capsys.readouterr().err
    STAGES["annotate"](config(corpus, {"classifier": {"model": trained.output}}, documents=str(corpus / "more")))
    labelled = list(read_documents(corpus / "run"))
    assert [row["labels"][0]["value"] for row in labelled] == ["apple", "hammer"] * 30
    [identity] = {row["labels"][0]["labeller"] for row in labelled}
    assert identity.startswith("classifier@1+")
    summary = json.loads((corpus / "run" / "summary.json").read_text())
    assert summary["labellers"][identity]["files"]["model"]
    assert ngrams.load(trained.output).trained_on["held_out_macro_f1"] == 1.0


def test_a_recipe_hands_the_model_on(corpus: Path) -> None:
    """`stage:NAME` of a train_labeller stage is its model; the planner knows every input."""
    recipe = load_values(
        {
            "kind": "recipe",
            "name": "r",
            "stages": {
                "kind_model": {
                    "kind": "train_labeller",
                    "documents": [str(corpus / "documents")],
                    "label": "kind",
                    "gold": {"meta": "kind"},
                },
                "labelled": {
                    "kind": "annotate",
                    "documents": str(corpus / "documents"),
                    "labellers": {"kinds": {"use": "classifier", "model": "stage:kind_model"}},
                },
            },
        }
    )
    built = stages(recipe)
    assert inputs(built["labelled"]) == ["kind_model"]
    resolved = resolve_inputs(built["labelled"], {"kind_model": {"output": "x/labeller.npz"}})
    assert resolved.labellers["kinds"]["model"] == os.path.join("x", "labeller.npz")


def leaves(*classes: type) -> set[str]:
    """Keys that hold values, not sections."""
    sections = ("kind", "workers", "gold", "features")
    return {f"{cls.__name__}.{entry.name}" for cls in classes for entry in fields(cls) if entry.name not in sections}


def test_from_files_to_labels_in_one_recipe_and_every_key_is_read(corpus: Path) -> None:
    """`rlplatform run` as a user starts it; a second run finds everything finished."""
    tracked = corpus / "reads"
    tracked.mkdir()
    words = ["apple", "hammer"] * 30
    texts = [f"{word} {chr(97 + n % 26)}{chr(97 + n // 26)}" for n, word in enumerate(words)]
    lines = [json.dumps({"text": text, "kind": word}) for text, word in zip(texts, words, strict=True)]
    (corpus / "rows.jsonl").write_text("\n".join(lines) + "\n")
    raw = {
        "kind": "recipe",
        "name": "labels",
        "run_dir": str(corpus / "recipe"),
        "stages": {
            "documents": {"kind": "documents", "sources": {"rows": {"path": [str(corpus / "rows.jsonl")]}}},
            "model": {
                "kind": "train_labeller",
                "documents": ["stage:documents"],
                "label": "kind",
                "gold": {"meta": "kind"},
                "features": {"buckets": 1024},
            },
            "labelled": {
                "kind": "annotate",
                "documents": "stage:documents",
                "labellers": {"length": {}, "classifier": {"model": "stage:model"}, f"{corpus}/my_labels.py:marks": {}},
            },
        },
    }
    (corpus / "labels.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    command = [sys.executable, "-m", "rlplatform", "run", str(corpus / "labels.yaml")]
    environment = {**os.environ, ENV: str(tracked)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "macro F1 1.000" in done.stderr
    rows = list(read_documents(corpus / "recipe" / "labelled"))
    said = [[entry["value"] for entry in row["labels"] if entry["name"] == "kind"] for row in rows]
    assert said == [[word] for word in words]
    wanted = leaves(AnnotateConfig, TrainLabellerConfig, GoldConfig, FeaturesConfig)
    assert wanted - reads(tracked) == {"AnnotateConfig.seed"}  # nothing is drawn at random

    planned = plan_recipe(load(corpus / "labels.yaml"))
    assert {one.state for one in planned.values()} == {"finished"}
    (corpus / "my_labels.py").write_text(PLUGIN + "\n")  # a labeller's code is part of its stage
    planned = plan_recipe(load(corpus / "labels.yaml"))
    assert {name: one.state for name, one in planned.items()} == {
        "documents": "finished",
        "model": "finished",
        "labelled": "starts over",
    }


def test_the_recipe_of_the_language_classifier_on_a_small_collection(tmp_path: Path) -> None:
    """Three languages in thirty articles each, through the recipe's own stages to a classifier that tells them."""
    starts = {
        "eng": "Everyone has the right to the freedom of thing number",
        "ast": "Toa persona tien el drechu a la llibertá de la cosa númberu",
        "spa": "Toda persona tiene el derecho a la libertad de la cosa número",
    }
    rows = []
    for code, start in starts.items():
        lines = ["A title"]
        for n in range(1, 31):
            word = "".join(chr(97 + (n * k) % 26) for k in range(1, 8))
            lines += [f"Article {n}", f"{start} {word}, {start} {word[::-1]}, {start} {word[2:]} {word[:2]}."]
        rows.append({"code": code, "iso6393": code, "text": "\n".join(lines)})
    (tmp_path / "udhr.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    recipe = load(
        configs_dir() / "recipe" / "language_labeller.yaml",
        [f"stages.udhr.args.path={tmp_path}/udhr.jsonl", f"run_dir={tmp_path}/run"],
    )
    finished: dict[str, dict[str, Any]] = {}
    for name, stage in stages(recipe).items():
        outcome = STAGES[stage.kind](resolve_inputs(stage, finished))
        finished[name] = {"output": outcome.output}
    assert outcome.summary["macro_f1"] == 1.0
    held_out = json.loads((tmp_path / "run" / "classifier" / "summary.json").read_text())["held_out"]
    assert held_out["groups"] == 6  # articles, each in all three languages
    assert {name: one["texts"] for name, one in held_out["labels"].items()} == dict.fromkeys(starts, 6)
    model = ngrams.load(tmp_path / "run" / "classifier" / "labeller.npz")
    assert model.label == "language"
    assert model.classes == ("ast", "eng", "spa")
    sentences = [f"{start} abc" for start in starts.values()]
    assert [code for code, _ in ask_model(model, sentences)] == list(starts)
