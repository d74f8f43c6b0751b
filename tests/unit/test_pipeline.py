from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlplatform import pipeline, stage_runs
from rlplatform.config import ConfigError, DatasetConfig, RecipeConfig, RLConfig
from rlplatform.configfile import load_values
from rlplatform.launch import Outcome
from rlplatform.pipeline import run_config
from rlplatform.smoke import shorten

GENERATOR = """
def rows(seed, count=3):
    return {"train": [{"prompt": f"{seed}-{i}"} for i in range(count)], "test": [{"prompt": "held out"}]}

def nothing(seed):
    return {"train": []}
"""


@pytest.fixture
def generator(tmp_path: Path) -> str:
    (tmp_path / "task.py").write_text(GENERATOR)
    return f"{tmp_path / 'task.py'}:rows"


def empty_plot(rows: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[RLConfig]:
    """The RL stage without its processes: what reaches it, and that it runs at all."""
    seen: list[RLConfig] = []

    def stage(config: RLConfig) -> Outcome:
        seen.append(config)
        return Outcome(f"{config.run_dir}/model", {"before": {}, "after": {}, "problems": 0})

    monkeypatch.setitem(stage_runs.STAGES, "rl", stage)
    monkeypatch.setattr("rlplatform.report.write_run_report", lambda folder: None)
    monkeypatch.setattr("rlplatform.report.plot", empty_plot)
    return seen


def recipe(tmp_path: Path, generator: str, **args: Any) -> RecipeConfig:
    config = load_values(
        {
            "kind": "recipe",
            "name": "r",
            "run_dir": str(tmp_path / "run"),
            "stages": {
                "data": {"kind": "dataset", "function": generator, "args": args},
                "rl": {
                    "kind": "rl",
                    "model": {"path": "stage:data/model"},
                    "data": {"path": "stage:data"},
                    "evaluation": {"data": {"path": "stage:data"}},
                    "reward": {"functions": {"format": 1.0}},
                },
            },
        }
    )
    assert isinstance(config, RecipeConfig)
    return config


def test_a_dataset_stage_writes_its_splits_and_is_not_run_twice(tmp_path: Path, generator: str) -> None:
    config = DatasetConfig(name="d", run_dir=str(tmp_path / "d"), seed=4, function=generator)
    done = run_config(config)
    assert done["summary"] == {"rows": {"train": 3, "test": 1}}
    assert [json.loads(line)["prompt"] for line in (tmp_path / "d/train.jsonl").open()] == ["4-0", "4-1", "4-2"]
    (tmp_path / "d/train.jsonl").unlink()
    assert run_config(config) == done
    assert not (tmp_path / "d/train.jsonl").exists()
    run_config(config, fresh=True)
    assert (tmp_path / "d/train.jsonl").exists()


def test_an_empty_split_and_a_changed_config_are_refused(tmp_path: Path, generator: str) -> None:
    with pytest.raises(ConfigError, match="split 'train' has no rows"):
        run_config(DatasetConfig(run_dir=str(tmp_path / "e"), function=generator.replace("rows", "nothing")))
    run_config(DatasetConfig(run_dir=str(tmp_path / "d"), function=generator))
    with pytest.raises(ConfigError, match=r"args\.count: None -> 5"):
        run_config(DatasetConfig(run_dir=str(tmp_path / "d"), function=generator, args={"count": 5}))


def test_an_attempt_that_stopped_before_any_work_does_not_stand_in_the_way(tmp_path: Path, generator: str) -> None:
    folder = str(tmp_path / "d")
    with pytest.raises(ConfigError, match="has no rows"):
        run_config(DatasetConfig(run_dir=folder, function=generator.replace("rows", "nothing")))
    assert run_config(DatasetConfig(run_dir=folder, function=generator))["summary"]["rows"]["train"] == 3


def test_fresh_removes_run_folders_only(tmp_path: Path, generator: str) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="removes run folders only"):
        run_config(DatasetConfig(run_dir=str(tmp_path / "precious"), function=generator), fresh=True)
    assert (tmp_path / "precious/thesis.txt").exists()


@pytest.mark.usefixtures("_no_ray")
def test_stages_run_once_in_order_and_what_changed_runs_again(
    tmp_path: Path, generator: str, calls: list[RLConfig]
) -> None:
    results = run_config(recipe(tmp_path, generator))
    assert [config.data.path for config in calls] == [str(tmp_path / "run/data")]
    assert calls[0].model.path == str(tmp_path / "run/data/model")
    assert calls[0].evaluation.data.path == str(tmp_path / "run/data")
    assert results["stages"]["data"]["rows"]["train"] == 3
    assert json.loads((tmp_path / "run/results.json").read_text()) == results

    run_config(recipe(tmp_path, generator))
    assert len(calls) == 1  # finished before
    run_config(recipe(tmp_path, generator, count=5))
    assert len(calls) == 2  # its data changed, so it runs again
    assert (tmp_path / "run/rl.previous").is_dir()
    assert len((tmp_path / "run/data/train.jsonl").read_text().splitlines()) == 5


@pytest.mark.usefixtures("_no_ray")
def test_a_stage_that_stopped_is_the_first_to_run_again(
    tmp_path: Path, generator: str, calls: list[RLConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    working = stage_runs.STAGES["rl"]

    def broken(config: Any) -> Outcome:
        raise RuntimeError("lost power")

    monkeypatch.setitem(stage_runs.STAGES, "rl", broken)
    with pytest.raises(RuntimeError, match="lost power"):
        run_config(recipe(tmp_path, generator))
    stamp = (tmp_path / "run/data/train.jsonl").stat().st_mtime_ns
    monkeypatch.setitem(stage_runs.STAGES, "rl", working)
    run_config(recipe(tmp_path, generator))
    assert len(calls) == 1
    assert (tmp_path / "run/data/train.jsonl").stat().st_mtime_ns == stamp


def test_smoke_is_the_same_recipe_in_two_steps(tmp_path: Path, generator: str) -> None:
    short = shorten(recipe(tmp_path, generator))
    assert short.run_dir.endswith("-smoke")
    assert isinstance(short, RecipeConfig)
    assert short.stages["rl"]["num_steps"] == 2
    assert short.stages["rl"]["run_dir"] == f"{short.run_dir}/rl"


@pytest.fixture
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import nullcontext

    monkeypatch.setattr(pipeline, "ray_session", nullcontext)
