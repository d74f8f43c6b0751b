"""What a plan must not take for finished: stages that stand on something older than what is there."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from rlplatform.config import AlgorithmConfig, ConfigError, ModelConfig, RewardConfig, RLConfig, TeacherConfig
from rlplatform.pipeline import run_config
from rlplatform.plan import stage_key
from tests.unit.test_plan import generator, ran, recipe, states  # noqa: F401, two of them are fixtures


def test_results_do_not_mix_a_new_stage_with_what_was_measured_before(
    tmp_path: Path,
    generator: str,  # noqa: F811
    ran: list[str],  # noqa: F811
) -> None:
    """--only a stage that changed: what stands on the old one is no result of this recipe."""
    run_config(recipe(tmp_path, generator))
    (tmp_path / "run/results.json").unlink()
    found = run_config(recipe(tmp_path, generator, lr=2e-3), only="sft")
    assert sorted(found["stages"]) == ["data", "sft"]
    assert not (tmp_path / "run/results.json").exists()


def test_only_does_not_stand_on_a_stage_that_changed(
    tmp_path: Path,
    generator: str,  # noqa: F811
    ran: list[str],  # noqa: F811
) -> None:
    run_config(recipe(tmp_path, generator))
    ran.clear()
    with pytest.raises(ConfigError, match="--only last: it needs rl, not finished yet, or finished before something"):
        run_config(recipe(tmp_path, generator, lr=2e-3), only="last")
    assert not ran


def test_an_attempt_that_left_nothing_does_not_replace_what_was_set_aside(
    tmp_path: Path,
    generator: str,  # noqa: F811
    ran: list[str],  # noqa: F811
) -> None:
    """`--from rl`, stopped before any work, and `--from rl` again: the finished run is still there."""
    config = recipe(tmp_path, generator)
    run_config(config)
    (tmp_path / "run/rl").rename(tmp_path / "run/rl.previous")
    (tmp_path / "run/rl").mkdir()
    (tmp_path / "run/rl/started.json").write_text((tmp_path / "run/rl.previous/started.json").read_text())
    run_config(config, start="rl")
    assert (tmp_path / "run/rl.previous/done.json").exists()


def test_what_stands_on_a_stage_that_ran_again_runs_again(
    tmp_path: Path,
    generator: str,  # noqa: F811
    ran: list[str],  # noqa: F811
) -> None:
    """The same key is not the same model: sampling on other machines, a kill, another version of a library."""
    config = recipe(tmp_path, generator)
    run_config(config)
    (tmp_path / "run/rl/done.json").unlink()
    ran.clear()
    assert states(config)["last"] == "starts over"
    run_config(config)
    assert ran == ["rl", "last"]
    ran.clear()
    run_config(config, start="rl", only="rl")
    assert ran == ["rl"]
    assert states(config)["last"] == "starts over"


def test_a_stage_that_was_finished_by_an_earlier_version_stays_finished(
    tmp_path: Path,
    generator: str,  # noqa: F811
    ran: list[str],  # noqa: F811
) -> None:
    config = recipe(tmp_path, generator)
    run_config(config)
    for file in (tmp_path / "run").glob("*/done.json"):
        done = json.loads(file.read_text())
        done.pop("attempt", None), done.pop("attempts", None)
        file.write_text(json.dumps(done))
    assert set(states(config).values()) == {"finished"}


def test_two_processes_in_one_folder(
    tmp_path: Path,
    generator: str,  # noqa: F811
    ran: list[str],  # noqa: F811
) -> None:
    """The second is refused, with --fresh as well; one that was killed stands in nobody's way."""
    config = recipe(tmp_path, generator)
    run_config(config)
    held = f"from pathlib import Path; from rlplatform.runs import alone_in; a = alone_in(Path({config.run_dir!r})); "
    script = held + "a.__enter__(); print('in', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"in\n"
        for fresh in (False, True):
            with pytest.raises(ConfigError, match="another process runs in this folder"):
                run_config(config, fresh=fresh)
        assert (tmp_path / "run/rl/done.json").exists()
        other.kill()
    run_config(config)


def test_another_reward_behind_the_same_name_is_another_stage(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def score(): ...\n")
    config = RLConfig(reward=RewardConfig(functions={f"verl:{file}:score": 1.0}))
    before = stage_key(config, config, {})
    assert stage_key(config, config, {}) == before
    file.write_text("def score(): return 1\n")
    assert stage_key(config, config, {}) != before


@pytest.mark.parametrize("section", ["model", "teacher"])
def test_other_weights_in_the_same_folder_are_another_stage(section: str, tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"one")
    config = RLConfig(reward=RewardConfig(functions={"math": 1.0}), model=ModelConfig(path=str(tmp_path)))
    if section == "teacher":
        config = replace(
            config,
            model=ModelConfig(path="owner/name"),
            teacher=TeacherConfig(path=str(tmp_path)),
            algorithm=AlgorithmConfig(loss="distillation"),
        )
    before = stage_key(config, config, {})
    assert stage_key(config, config, {}) == before
    weights.write_bytes(b"other")
    assert stage_key(config, config, {}) != before
