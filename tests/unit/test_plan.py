"""What a recipe would run and why; --from, --only; lineage and model cards. Stages are small functions here."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlplatform import pipeline, stage_runs
from rlplatform.config import ConfigError, RecipeConfig
from rlplatform.configfile import load_values
from rlplatform.launch import Outcome
from rlplatform.pipeline import run_config
from rlplatform.plan import Choice, plan_recipe

GENERATOR = """
def rows(seed, count=3):
    return {"train": [{"prompt": f"{seed}-{i}"} for i in range(count)]}
"""


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """SFT and RL stages that write a model folder; what ran, in order."""
    names: list[str] = []

    def stage(config: Any) -> Outcome:
        names.append(config.name)
        model = Path(config.run_dir) / "model"
        model.mkdir(parents=True, exist_ok=True)
        (model / "config.json").write_text("{}")
        return Outcome(str(model), {"before": {"eval/accuracy": 0.25}, "after": {"eval/accuracy": 0.5}, "problems": 4})

    monkeypatch.setitem(stage_runs.STAGES, "sft", stage)
    monkeypatch.setitem(stage_runs.STAGES, "rl", stage)
    monkeypatch.setattr("rlplatform.report.write_run_report", lambda folder: None)
    monkeypatch.setattr(
        "rlplatform.report.write_recipe_report", lambda folder, *rest: folder.path / "report/index.html"
    )
    monkeypatch.setattr(pipeline, "ray_session", nullcontext)
    return names


@pytest.fixture
def generator(tmp_path: Path) -> str:
    (tmp_path / "task.py").write_text(GENERATOR)
    return f"{tmp_path / 'task.py'}:rows"


def recipe(tmp_path: Path, generator: str, *, lr: float = 4e-3, count: int = 3) -> RecipeConfig:
    rl = {
        "kind": "rl",
        "model": {"path": "stage:sft"},
        "data": {"path": "stage:data"},
        "reward": {"functions": {"format": 1.0}},
    }
    config = load_values(
        {
            "kind": "recipe",
            "name": "r",
            "run_dir": str(tmp_path / "run"),
            "stages": {
                "data": {"kind": "dataset", "function": generator, "args": {"count": count}},
                "sft": {
                    "kind": "sft",
                    "model": {"path": "some-org/some-model"},
                    "data": {"path": "stage:data"},
                    "optimizer": {"lr": lr},
                },
                "rl": rl,
                "last": {**rl, "model": {"path": "stage:rl"}},
            },
        }
    )
    assert isinstance(config, RecipeConfig)
    return config


def states(config: RecipeConfig, **choice: str) -> dict[str, str]:
    return {name: row.state for name, row in plan_recipe(config, Choice(**choice)).items()}


def test_the_plan_says_what_runs_and_the_run_does_that(tmp_path: Path, generator: str, ran: list[str]) -> None:
    config = recipe(tmp_path, generator)
    assert set(states(config).values()) == {"runs"}
    run_config(config)
    assert ran == ["sft", "rl", "last"]
    assert set(states(config).values()) == {"finished"}
    ran.clear()

    changed = recipe(tmp_path, generator, lr=2e-3)
    plan = plan_recipe(changed)
    assert {name: row.state for name, row in plan.items()} == {
        "data": "finished",
        "sft": "starts over",
        "rl": "starts over",
        "last": "starts over",
    }
    assert plan["sft"].reason == "optimizer.lr: 0.004 -> 0.002"
    assert plan["rl"].reason == "sft starts over"
    run_config(changed)
    assert ran == ["sft", "rl", "last"]
    assert set(states(changed).values()) == {"finished"}


def test_changed_data_starts_over_what_stands_on_it(tmp_path: Path, generator: str, ran: list[str]) -> None:
    run_config(recipe(tmp_path, generator))
    (tmp_path / "run/data/train.jsonl").write_text('{"prompt": "edited by hand"}\n')
    plan = plan_recipe(recipe(tmp_path, generator))
    assert [(row.state, row.reason) for row in plan.values()][1:2] == [("starts over", "its data changed")]


def test_an_interrupted_stage_resumes(tmp_path: Path, generator: str, ran: list[str]) -> None:
    config = recipe(tmp_path, generator)
    run_config(config)
    (tmp_path / "run/rl/done.json").unlink()
    (tmp_path / "run/rl/metrics.jsonl").write_text("")
    assert states(config) == {"data": "finished", "sft": "finished", "rl": "resumes", "last": "starts over"}


def test_from_starts_over_from_a_stage_on(tmp_path: Path, generator: str, ran: list[str]) -> None:
    config = recipe(tmp_path, generator)
    run_config(config)
    (tmp_path / "run/rl/model/mark").write_text("the first run's")
    ran.clear()
    assert states(config, start="rl") == {
        "data": "finished",
        "sft": "finished",
        "rl": "starts over",
        "last": "starts over",
    }
    run_config(config, start="rl")
    assert ran == ["rl", "last"]
    assert not (tmp_path / "run/rl/model/mark").exists()
    assert (tmp_path / "run/rl.previous/model/mark").exists()


def test_only_runs_one_stage_whose_inputs_are_there(tmp_path: Path, generator: str, ran: list[str]) -> None:
    config = recipe(tmp_path, generator)
    with pytest.raises(ConfigError, match="--only rl: it needs data, sft, not finished yet"):
        run_config(config, only="rl")
    run_config(config, only="data")
    assert not ran
    run_config(config, only="sft")
    assert ran == ["sft"]
    assert states(config) == {"data": "finished", "sft": "finished", "rl": "runs", "last": "runs"}
    run_config(config, only="sft")
    assert ran == ["sft"]  # finished before
    run_config(config, only="sft", start="sft")
    assert ran == ["sft", "sft"]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"start": "rll"}, "--from rll: expected one of the stages data, sft, rl, last"),
        ({"only": "x"}, "--only x: expected one of the stages"),
        ({"start": "sft", "only": "rl"}, "--from sft --only rl: expected one stage"),
    ],
)
def test_a_stage_that_is_not_there(tmp_path: Path, generator: str, choice: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_config(recipe(tmp_path, generator), **choice)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="expected a recipe, this config is of kind sft"):
        run_config(load_values({"kind": "sft", "model": {"path": "m"}}), only="sft")


def test_every_model_tells_where_it_comes_from(tmp_path: Path, generator: str, ran: list[str]) -> None:
    run_config(recipe(tmp_path, generator))
    stages = json.loads((tmp_path / "run/last/model/lineage.json").read_text())["stages"]
    assert [entry["stage"] for entry in stages] == ["data", "sft", "rl", "last"]
    assert stages[1]["base_model"] == "some-org/some-model"
    assert stages[1]["settings"]["optimizer.lr"] == 4e-3
    done = {
        name: json.loads((tmp_path / f"run/{name}/done.json").read_text()) for name in ("data", "sft", "rl", "last")
    }
    assert [entry["key"] for entry in stages] == [done[entry["stage"]]["key"] for entry in stages]
    assert stages[3]["inputs"] == {"data": done["data"]["key"], "rl": done["rl"]["key"]}
    (digest,) = stages[3]["data"].values()
    assert len(digest) == 64
    assert stages[3]["results"]["after"] == {"eval/accuracy": 0.5}

    text = (tmp_path / "run/last/model/README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head["library_name"] == "transformers"
    assert head["base_model"] == "some-org/some-model"
    assert "| last | rl | data, rl |" in text
    assert "| after eval/accuracy | 0.5 |" in text
    assert digest in text


def test_a_model_from_another_run_continues_its_lineage(tmp_path: Path, generator: str, ran: list[str]) -> None:
    run_config(recipe(tmp_path, generator))
    again = load_values(
        {
            "kind": "sft",
            "name": "again",
            "run_dir": str(tmp_path / "again"),
            "model": {"path": str(tmp_path / "run/last/model")},
            "data": {"path": str(tmp_path / "run/data")},
        }
    )
    run_config(again)
    stages = json.loads((tmp_path / "again/model/lineage.json").read_text())["stages"]
    assert [entry["stage"] for entry in stages] == ["data", "sft", "rl", "last", "again"]
    assert stages[-1]["base_model"] == str(tmp_path / "run/last/model")
