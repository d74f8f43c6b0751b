"""A reward function's settings may name an earlier stage: its model is that stage's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlplatform.config import ConfigError, PreferenceConfig, RecipeConfig, RLConfig
from rlplatform.configfile import derived, inputs, load_values, placement, stages
from rlplatform.plan import resolve_inputs, stage_key
from rlplatform.smoke import shorten

REWARD = {"proxy": {"function": "preference", "args": {"model": "stage:rm", "others": [{"path": "stage:old/model"}]}}}


def recipe(**reward: Any) -> dict[str, Any]:
    return {
        "kind": "recipe",
        "name": "r",
        "stages": {
            "old": {"kind": "init_model"},
            "rm": {"kind": "preference", "model": {"path": "stage:old"}, "heldout": {"path": "stage:old/test.jsonl"}},
            "rl": {"kind": "rl", "model": {"path": "stage:old"}, "reward": {"functions": reward or REWARD}},
        },
    }


def built(**reward: Any) -> dict[str, Any]:
    config = load_values(recipe(**reward))
    assert isinstance(config, RecipeConfig)
    return stages(config)


def finished(folder: Path) -> dict[str, dict[str, Any]]:
    return {name: {"output": str(folder / name), "key": f"key of {name}"} for name in ("old", "rm")}


def test_stages_inside_settings_are_inputs_and_become_absolute_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = built()
    assert sorted(set(inputs(plan["rl"]))) == ["old", "rm"]
    resolved = resolve_inputs(plan["rl"], finished(Path("runs")))
    args = resolved.reward.functions["proxy"]["args"]
    assert args == {
        "model": str(tmp_path / "runs" / "rm"),
        "others": [{"path": str(tmp_path / "runs" / "old" / "model")}],
    }
    assert resolved.reward.parts["proxy"].args["model"].endswith("runs/rm")
    assert plan["rl"].reward.functions["proxy"]["args"]["model"] == "stage:rm"
    json.dumps(args)


def test_weights_and_plain_settings_stay_as_they_are(tmp_path: Path) -> None:
    functions = {"math": 1.0, "code": {"weight": 0.5, "args": {"scoring": "all"}}}
    resolved = resolve_inputs(built(**functions)["rl"], finished(tmp_path))
    assert resolved.reward.functions == functions


def test_another_reward_model_is_another_run(tmp_path: Path) -> None:
    config, done = built()["rl"], finished(tmp_path)
    assert isinstance(config, RLConfig)
    key = stage_key(config, resolve_inputs(config, done), done)
    assert stage_key(config, resolve_inputs(config, done), done) == key
    done["rm"] = {**done["rm"], "key": "of other weights"}
    assert stage_key(config, resolve_inputs(config, done), done) != key


def test_a_stage_that_comes_later_or_never_is_refused() -> None:
    for name in ("rl", "nowhere"):
        with pytest.raises(ConfigError, match=f"stages.rl: needs stage:{name}, which does not come before it"):
            built(preference={"args": {"model": f"stage:{name}"}})


def test_a_preference_stage_is_resolved_planned_and_shortened(tmp_path: Path) -> None:
    config = built()["rm"]
    assert isinstance(config, PreferenceConfig)
    done = finished(tmp_path)
    resolved = resolve_inputs(config, done)
    assert resolved.model.path == str(tmp_path / "old")
    assert resolved.heldout.path == str(tmp_path / "old" / "test.jsonl")
    assert ("learner", 1, 1.0, 0.0) in placement(config)
    assert dict(derived(config))["tokens in all"] == "100 x 16384 = 1638400"
    short = shorten(config)
    assert isinstance(short, PreferenceConfig)
    assert (short.num_steps, short.tokens_per_step, short.evaluate_every) == (2, 2048, 1)
    key = stage_key(config, resolved, done)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "test.jsonl").write_text("{}")
    assert stage_key(config, resolved, done) != key  # other held-out pairs, other report
