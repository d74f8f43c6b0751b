"""The studies' numbers on run folders made by hand, their page, and what is said of runs that are not finished."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from benchmarks.findings import __main__ as command
from benchmarks.findings import ablations, after_stages, distillation, flags_and_budget, real_model, single
from benchmarks.findings.data import fresh_sums, gsm8k, sums_in
from benchmarks.findings.measures import difference, pass_at, pooled, problem_means
from benchmarks.findings.page import page, read_json, write_json, write_page
from benchmarks.findings.study import ROOT, Run, Settings, Unfinished, provenance, run_study, without_places
from model.init import build_config
from rlplatform.configfile import load
from rlplatform.flops import forward_flops

STUDIES = {study.name: study for study in command.STUDIES}


# --- run folders ----------------------------------------------------------------------------------------------------


def stage_done(folder: Path, stage: str, **more: Any) -> None:
    path = folder / stage
    path.mkdir(parents=True, exist_ok=True)
    done = {"key": f"key-{stage}", "seconds": 30.0, "summary": {}, **more}
    (path / "done.json").write_text(json.dumps(done))


def recipe(folder: Path, stages: Mapping[str, Any], *, finished: Sequence[str] | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"kind": "recipe", "stages": dict(stages)}))
    (folder / "versions.json").write_text(json.dumps({"python": "3.11", "torch": "2.13"}))
    for stage in stages if finished is None else finished:
        stage_done(folder, stage)


def evaluated(
    folder: Path, stage: str, problems: Mapping[str, Sequence[float]], *, step: int = 0, **parts: float
) -> None:
    """Held-out rollouts with their ``math`` score; NaN is a verdict that is not ok."""
    records = [
        {
            "prompt_id": name,
            "status": "ok" if score == score else "timeout",
            "parts": json.dumps({"math": score, **parts} if score == score else {}),
            "reward": score if score == score else None,
        }
        for name, scores in problems.items()
        for score in scores
    ]
    path = folder / stage / "eval" / f"step-{step:06d}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(records).to_parquet(path)


def metrics(folder: Path, stage: str, rows: Sequence[Mapping[str, Any]]) -> None:
    (folder / stage).mkdir(parents=True, exist_ok=True)
    (folder / stage / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def evaluation(model: str, **more: Any) -> dict[str, Any]:
    data = {"path": "stage:data", "split": "test"}
    return {
        "kind": "eval",
        "metric": "math",
        "num_samples": 2,
        "model": {"path": f"stage:{model}"},
        "data": data,
        **more,
    }


MINI = {
    "base": {"kind": "sft", "model": {"path": "stage:init"}},
    "base_plain": evaluation("base"),
    "cold": {"kind": "sft", "model": {"path": "stage:base"}},
    "cold_plain": evaluation("cold"),
    "reasoning": {
        "kind": "rl",
        "model": {"path": "stage:cold"},
        "evaluation": {"metric": "math", "num_samples": 2, "data": {"path": "stage:data", "split": "test"}},
    },
    "reasoning_plain": evaluation("reasoning"),
}


def mini(folder: Path, *, thinking: Sequence[float] = (1, 0), plain: Sequence[float] = (0, 0)) -> None:
    """Two problems: problem a is scored as said, b is right in thinking mode and wrong in the other."""
    recipe(folder, MINI)
    for stage in ("base_plain", "cold_plain", "reasoning_plain"):
        evaluated(folder, stage, {"a": plain, "b": (0, 0)})
    evaluated(folder, "reasoning", {"a": (0, 0), "b": (0, 1)}, step=0)
    evaluated(folder, "reasoning", {"a": thinking, "b": (1, 1)}, step=30)


# --- measures -------------------------------------------------------------------------------------------------------


def test_a_sample_without_an_ok_verdict_or_not_recorded_counts_zero(tmp_path: Path) -> None:
    evaluated(tmp_path, "s", {"a": (1, float("nan"), 1), "b": (1,)})
    file = tmp_path / "s" / "eval" / "step-000000.parquet"
    assert problem_means(file, "math", 4) == {"a": 0.5, "b": 0.25}
    with pytest.raises(ValueError, match="expected 2 samples a problem, got 3"):
        problem_means(file, "math", 2)
    value, half = pass_at(file, "math", 4, 2)
    # a: 1 - C(2,2)/C(4,2) = 5/6; b: 1 - C(3,2)/C(4,2) = 1/2; their standard deviation is (1/3)/sqrt(2)
    assert value == pytest.approx((5 / 6 + 1 / 2) / 2)
    assert half == pytest.approx(1.96 * (1 / 3) / 2**0.5 / 2**0.5)


def test_differences_are_by_problem_and_independent_means_pool() -> None:
    assert difference({"a": 1.0, "b": 0.5}, {"b": 0.25, "a": 1.0}) == [0.25, 0.0]
    with pytest.raises(ValueError, match="the same problems"):
        difference({"a": 1.0}, {"b": 1.0})
    assert pooled([(0.2, 0.03), (0.4, 0.04)]) == (pytest.approx(0.3), pytest.approx(0.025))


# --- stages ---------------------------------------------------------------------------------------------------------


def test_stages_table(tmp_path: Path) -> None:
    settings = Settings(tmp_path, seeds=(0, 1))
    mini(tmp_path / "stages/seed0")
    mini(tmp_path / "stages/seed1", thinking=(1, 1), plain=(1, 1))
    found = after_stages.collect_stages(settings)
    rows = {row["model"]: row for row in found["rows"]}
    assert list(rows) == ["base", "cold", "reasoning"]
    assert "thinking" not in rows["base"]
    assert rows["base"]["plain"]["seeds"] == [0.0, 0.5]
    assert rows["cold"]["thinking"]["seeds"] == [0.25, 0.25]  # the RL stage's evaluation before its first step
    assert rows["reasoning"]["thinking"]["seeds"] == [0.75, 1.0]
    assert rows["reasoning"]["gap"]["value"] == pytest.approx((0.75 + 0.5) / 2)
    # seed 0: differences 0.5 and 1, deviation 0.5/sqrt 2; seed 1: 0 and 1, deviation 1/sqrt 2
    halves = [1.96 * 0.5 / 2, 1.96 * 1 / 2]
    assert rows["reasoning"]["gap"]["ci95"] == pytest.approx((halves[0] ** 2 + halves[1] ** 2) ** 0.5 / 2, abs=1e-6)
    lines = after_stages.section_stages({**found, "seeds": [0, 1]})
    assert any(line.startswith("| `reasoning` | 87.5 %") and "(75.0, 100.0)" in line for line in lines)
    assert lines[-1] == "Thinking beats non-thinking beyond the interval after 1 of 2 stages; not after cold."


def test_an_evaluation_of_its_own_comes_before_the_rl_stage_s(tmp_path: Path) -> None:
    stages = {**MINI, "reasoning_thinking": evaluation("reasoning")}
    found = {(one.model, one.mode): one.stage for one in after_stages.measured({"stages": stages})}
    assert found["reasoning", "thinking"] == "reasoning_thinking"
    assert found["cold", "thinking"] == "reasoning"


def test_the_recipe_s_own_stages_are_found() -> None:
    found = {
        (one.model, one.mode)
        for one in after_stages.measured(yaml.safe_load((ROOT / "configs/recipe/qwen3_mini.yaml").read_text()))
    }
    for model in ("cold", "reasoning", "fusion", "general", "student_off_policy", "student"):
        assert {(model, "thinking"), (model, "plain")} <= found


# --- benchmarks -----------------------------------------------------------------------------------------------------


def benchmark_run(folder: Path, *, turn: float, rows: int, drop: bool = False) -> None:
    flags = {"kind": "benchmarks", "model": {"path": "stage:fusion"}}
    recipe(folder, {"early": flags, "final": {"kind": "benchmarks", "model": {"path": "stage:general"}}})
    lines = [{"system": "Go. /think" if k else "", "users": ["a"] * (4 + k)} for k in range(rows)]
    for stage in ("early", "final"):
        path = folder / stage / "rows"
        path.mkdir()
        (path / "thinkfollow.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    followed = {
        "benchmark": "thinkfollow",
        "mode": "dialogue",
        "budget": None,
        "problems": rows,
        "turns": 9,
        "accuracy": turn,
        "accuracy_ci95": 0.03,
        "per_dialogue": 0.5,
        "per_dialogue_interval": [0.1, 0.9],
        "num_too_long": 1,
        "num_rejected": 0,
        "categories": {"flagged": {"accuracy": turn, "accuracy_ci95": 0.03, "problems": 5}},
    }
    points = [
        {"benchmark": "sums", "mode": "thinking", "budget": b, "problems": 256, "num_samples": 4, "accuracy": a}
        | {"accuracy_ci95": 0.01, "cut_share": 0.5, "thinking_tokens": 3.0}
        for b, a in ((8, 0.1), (4, 0.05), (16, 0.4))
    ]
    plain = {"benchmark": "sums", "mode": "non_thinking", "budget": None, "accuracy": 0.2, "accuracy_ci95": 0.01}
    step = {"from": 8, "to": 16, "difference": -0.2 if drop else 0.3, "ci95": 0.02}
    sweep = {"monotone": not drop, "steps": [step], "rise": 0.35, "rise_ci95": 0.03}
    results = {"model": "m", "entries": [followed, *points, plain], "sweeps": {"sums": sweep}}
    (folder / "final" / "results.json").write_text(json.dumps(results))
    early = {"model": "m", "entries": [{**followed, "accuracy": 0.5}], "sweeps": {}}
    (folder / "early" / "results.json").write_text(json.dumps(early))


def test_think_follow(tmp_path: Path) -> None:
    for seed, turn in enumerate((0.9, 0.98)):
        benchmark_run(tmp_path / f"stages/seed{seed}", turn=turn, rows=2)
    both = flags_and_budget.collect_think_follow(Settings(tmp_path, seeds=(0, 1)))
    assert [stage["model"] for stage in both["stages"]] == ["fusion", "general"]
    early, found = both["stages"]
    assert early["per_turn"]["value"] == 0.5
    assert found["per_turn"] == {"value": 0.94, "ci95": pytest.approx(0.03 / 2**0.5, abs=1e-6)}
    assert (found["dialogues"], found["turns"], found["sorts"]["flagged"]["turns"]) == (4, 18, 10)
    assert found["per_dialogue"]["value"] == 0.5
    assert [one["fewest_turns"] for one in found["by_seed"]] == [4, 4]
    assert [one["flags_in_system"] for one in found["by_seed"]] == [1, 1]
    text = "\n".join(flags_and_budget.section_think_follow(both))
    flags_and_budget.draw_think_follow(both, tmp_path / "picture.png")
    assert "After `general` 94.0 % ± 2.1 per turn: the target of 95 % is **missed**" in text
    assert "fewer than the 300" in text
    assert "not followed: 2." in text


def test_budget(tmp_path: Path) -> None:
    for seed in (0, 1):
        benchmark_run(tmp_path / f"stages/seed{seed}", turn=1, rows=2, drop=bool(seed))
    settings = Settings(tmp_path, seeds=(0, 1))
    found = flags_and_budget.collect_budget(settings)
    assert [(point["budget"], point["value"]) for point in found["curve"]] == [(4, 0.05), (8, 0.1), (16, 0.4)]
    assert found["rise"]["value"] == 0.35
    assert not found["monotone"]
    text = "\n".join(flags_and_budget.section_budget(found))
    assert "seed 1, 8 to 16: -20.0 ± 2.0" in text
    assert "target of 20 is met" in text
    assert "stop text" not in text
    flags_and_budget.draw_budget(found, tmp_path / "picture.png")
    with pytest.raises(Unfinished, match="not there yet"):
        flags_and_budget.collect_budget(replace(settings, seeds=(0, 7)))


# --- ablations ------------------------------------------------------------------------------------------------------


def parent(root: Path) -> Path:
    """A finished seed 0 with what the ablations take from it."""
    folder = root / "stages" / "seed0"
    plain = ("data", "base", "cold_data", "rl_queries", "general_data", "general", "student_off_policy")
    stages: dict[str, Any] = {name: {"kind": "x"} for name in plain}
    reward = {"functions": {"math": 0.9, "format": 0.1}}
    rl = {"kind": "rl", "group_size": 4, "reward": reward, "algorithm": {"entropy_target": 0.3, "clip_high": 0.28}}
    student = {"kind": "rl", "num_steps": 7, "group_size": 2, "algorithm": {"loss": "distillation"}}
    cold = {"kind": "sft", "num_steps": 80, "model": {"path": "stage:base"}}
    recipe(folder, {**stages, "cold": cold, "reasoning": rl, "student": student})
    stage_done(folder, "cold", summary={"rows": 90, "steps": 50})
    return folder


def test_studies_take_the_recipe_s_own_settings(tmp_path: Path) -> None:
    settings = Settings(tmp_path, seeds=(0,))
    with pytest.raises(Unfinished, match=r"stages: .* is not there yet; run .*--only stages"):
        next(ablations.entropy_runs(settings))
    folder = parent(tmp_path)
    (run,) = ablations.entropy_runs(settings)
    config = load(ROOT / "configs" / run.config, run.overrides)
    arms = config.stages  # type: ignore[union-attr]
    assert arms["control"]["algorithm"]["entropy_target"] != 0.3  # its own: what the study is about
    assert arms["control"]["reward"]["functions"] == {"math": 0.9, "format": 0.1}
    assert (arms["none"]["group_size"], arms["none"]["algorithm"]["entropy_target"]) == (4, 0.0)
    assert arms["none"]["model"]["path"] == str(folder / "cold" / "model")
    stage_done(folder, "cold", key="another", summary={"rows": 90, "steps": 50})
    assert next(ablations.entropy_runs(settings)).name != run.name  # other models, another folder
    runs = list(ablations.cold_start_runs(settings))
    colds = [load(ROOT / "configs" / one.config, one.overrides).stages["cold"] for one in runs]  # type: ignore[union-attr]
    assert [one["data"]["limit"] for one in colds] == [16, 32, 64, 128, 0, 0]
    assert [one["num_steps"] for one in colds] == [50] * 5 + [200]  # after 50 steps the recipe's own had ended


def test_entropy(tmp_path: Path) -> None:
    parent(tmp_path)
    settings = Settings(tmp_path)
    (run,) = ablations.entropy_runs(settings)
    folder = tmp_path / run.name
    arm = {"kind": "rl", "evaluation": {"num_samples": 1}, "algorithm": {"clip_high": 0.28}}
    recipe(folder, {"control": arm, "none": arm})
    for name, lowest in (("control", 0.4), ("none", 0.1)):
        curve = [
            {"step": 0, "time/step": 1.0},
            *({"step": k + 1, "policy/entropy": e} for k, e in enumerate((1.0, lowest, 0.5))),
        ]
        metrics(folder, name, curve)
        evaluated(folder, name, {"a": (0,), "b": (1,)}, step=0)
        evaluated(folder, name, {"a": (1,), "b": (1,)}, step=3)
    found = ablations.collect_entropy(settings)
    control, none = found["arms"]["control"], found["arms"]["none"]
    assert (control["lowest_share"], control["lowest_at"], control["end"]) == (0.4, 2, 0.5)
    assert none["lowest_share"] == pytest.approx(0.1)
    assert control["gain"]["value"] == 0.5
    text = "\n".join(ablations.section_entropy(found))
    assert "target of 30 % is met" in text
    assert "Without, its lowest is 10 %." in text


def test_cold_start(tmp_path: Path) -> None:
    parent(tmp_path)
    settings = Settings(tmp_path)
    for number, run in enumerate(ablations.cold_start_runs(settings)):
        folder = tmp_path / run.name
        recipe(
            folder,
            {
                "cold": {"kind": "sft"},
                "thinking": {"kind": "eval", "num_samples": 1},
                "rl": {"kind": "rl", "evaluation": {"num_samples": 1}},
            },
        )
        stage_done(folder, "cold", summary={"rows": 16 * 2**number, "steps": 50})
        stage_done(folder, "rl", summary={"steps": 10})
        right = float(number > 2)
        evaluated(folder, "thinking", {"a": (right,), "b": (0,)}, format=0.5)
        evaluated(folder, "rl", {"a": (1,), "b": (right,)}, step=10, format=1.0)
    found = ablations.collect_cold_start(settings)
    assert [row["samples"] for row in found["rows"]] == [16, 32, 64, 128, 256, 512]
    assert [row["accuracy"]["value"] for row in found["rows"]] == [0, 0, 0, 0.5, 0.5, 0.5]
    assert [row["rl_gain"]["value"] for row in found["rows"]] == [0.5] * 6
    assert {row["format"]["value"] for row in found["rows"]} == {0.5}
    assert "within its interval: 128 (50 steps)" in ablations.section_cold_start(found)[-1]


# --- distillation ---------------------------------------------------------------------------------------------------


def trial(folder: Path, *, after: Sequence[float], teacher: bool) -> None:
    arm = {"kind": "rl", "num_steps": 1, "group_size": 2, "evaluation": {"num_samples": 2}}
    recipe(folder, {"problems": {"kind": "dataset"}, "arm": arm})
    evaluated(folder, "arm", {"a": (0, 0)}, step=0)
    evaluated(folder, "arm", {"a": after}, step=1)
    own = {"step": 1, "learner/tokens": 20.0, "time/step": 5.0, "time/evaluate": 2.0}
    metrics(folder, "arm", [{"step": 0, "time/step": 9.0}, own | ({"teacher/flops": 7.0} if teacher else {})])
    path = folder / "arm" / "rollouts" / "step-000000.parquet"
    path.parent.mkdir()
    pd.DataFrame({"prompt_token_ids": [[1] * 4] * 2, "token_ids": [[2] * 6] * 2}).to_parquet(path)


def test_distillation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent(tmp_path)
    settings = Settings(tmp_path)
    config = build_config({"preset": "tiny"})
    monkeypatch.setattr(distillation, "shape_of", lambda model: config)
    for arm, rate, run in distillation.trials(settings):
        best = rate == distillation.RATES[arm][1]
        trial(tmp_path / run.name, after=(1, 1) if best else (0, 1), teacher=arm == "student")
        assert f"stages.arm.optimizer.lr={rate:g}" in run.overrides
        if best:
            raw = load(ROOT / "configs" / run.config, run.overrides).stages["arm"]  # type: ignore[union-attr]
            assert (raw["optimizer"]["lr"], raw["num_steps"]) == (rate, 7 if arm == "student" else 90)
    *_, test = distillation.runs(settings)
    models = [one for one in test.overrides if "model.path" in one]
    assert "student-0.0002/arm/model" in models[1]
    assert "rl-0.0002/arm/model" in models[2]
    names = [f"{who}_{mode}" for who in ("start", "student", "rl") for mode in ("thinking", "plain")]
    recipe(tmp_path / test.name, {name: {"kind": "eval", "num_samples": 2} for name in names})
    for name in names:
        scores = {"start": (0, 0), "student": (1, 1), "rl": (0, 1)}[name.partition("_")[0]]
        evaluated(tmp_path / test.name, name, {"a": scores, "b": scores})
    found = distillation.collect(settings)
    spent = found["arms"]["student"]["spent"]
    # two completions of 4 + 6 tokens; logits of the last prompt token are needed to sample
    assert spent["sampling"] == 2 * forward_flops(config, 10, num_prompt_tokens=3)
    assert spent["training"] == pytest.approx(3 * 20 * forward_flops(config, 10, num_prompt_tokens=4) / 10)
    assert (spent["teacher"], spent["seconds"], spent["samples"]) == (7.0, 3.0, 2)
    assert found["arms"]["rl"]["spent"]["teacher"] == 0
    assert found["arms"]["student"]["all_trials_flops"] == 3 * spent["flops"]
    assert found["tested"]["rl"]["thinking"] == {
        "1": {"value": 0.5, "ci95": 0.0},
        "2": {"value": 1.0, "ci95": 0.0},
    }
    assert found["ahead"]["plain"]["value"] == 0.5
    assert "better than reinforcement, +50.0" in "\n".join(distillation.section(found))


def test_fresh_sums_meet_no_sum_of_the_run(tmp_path: Path) -> None:
    seen = fresh_sums(
        0, unlike=[str(_sums(tmp_path / "none", ["What is 1 + 2?"]))], digits={1: 1.0}, num_validation=4, num_test=4
    )
    taken = [row["prompt"] for row in seen["validation"]]
    again = fresh_sums(0, unlike=[str(_sums(tmp_path / "some", taken))], digits={1: 1.0}, num_validation=4, num_test=2)
    prompts = [row["prompt"].removesuffix(" /no_think") for split in again.values() for row in split]
    assert len(set(prompts)) == 6
    assert not set(prompts) & {prompt.removesuffix(" /no_think") for prompt in taken}
    assert [row["prompt"].endswith("/no_think") for row in again["validation"]] == [False, True, False, True]
    assert sums_in([str(tmp_path / "none")]) == {(1, 2)}
    with pytest.raises(ValueError, match="expected JSONL files"):
        sums_in([str(tmp_path)])


def _sums(folder: Path, prompts: Sequence[str]) -> Path:
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return folder


# --- one config each ------------------------------------------------------------------------------------------------


def test_general(tmp_path: Path) -> None:
    folder = tmp_path / "general/seed0"
    held_out = {"num_samples": 2, "data": {"path": "stage:data", "split": "test"}}
    recipe(folder, {"data": {"kind": "dataset"}, "rl": {"kind": "rl", "evaluation": held_out}})
    rows = [{"task": "marks"}, {"task": "boxed"}, {"task": "marks"}]
    (folder / "data" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluated(folder, "rl", {"test-0": (0.2, 0.2), "test-1": (1, 1), "test-2": (0, float("nan"))}, step=0)
    evaluated(folder, "rl", {"test-0": (1, 1), "test-1": (1, 0.5), "test-2": (1, 0)}, step=60)
    found = single.collect_general(Settings(tmp_path))
    marks, boxed = found["tasks"]
    assert (marks["task"], marks["problems"], marks["ability"]) == ("marks", 2, "format")
    assert (marks["score"]["before"]["value"], marks["solved"]["after"]["value"]) == (0.1, 0.75)
    assert marks["solved"]["gain"]["value"] == 0.75
    assert boxed["solved"]["gain"]["value"] == -0.5
    assert found["overall"]["solved"]["value"] == pytest.approx((1 - 0.5 + 0.5) / 3, abs=1e-6)
    assert "word_count" in found["missing"]


def test_agent(tmp_path: Path) -> None:
    for seed in (0, 1):
        folder = tmp_path / f"agent/seed{seed}"
        held_out = {"num_samples": 1, "metric": "math", "data": {"path": "stage:data", "split": "test"}}
        rl = {"kind": "rl", "evaluation": held_out, "environment": {"name": "calculator"}}
        recipe(folder, {"data": {"kind": "dataset"}, "rl": rl})
        rows = [{"prompt": prompt} for prompt in ("What is 12 + 3?", "What is 4 * 5?", "What is 7 + 81?")]
        (folder / "data" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        evaluated(folder, "rl", {"test-0": (0,), "test-1": (0,), "test-2": (1,)}, step=0)
        evaluated(folder, "rl", {"test-0": (1,), "test-1": (seed,), "test-2": (1,)}, step=30)
    found = single.collect_agent(Settings(tmp_path, seeds=(0, 1)))
    assert [one["gain"]["value"] for one in found["by_seed"]] == [pytest.approx(1 / 3), pytest.approx(2 / 3)]
    assert found["gain"]["value"] == pytest.approx(0.5)
    kinds = found["by_seed"][0]["by_kind"]
    assert [one["value"] for one in kinds["What is N + N?"]] == [0.5, 1.0]
    assert [one["value"] for one in kinds["What is N * N?"]] == [0.0, 0.0]
    text = single.section_agent(found)
    assert "20 are reached" in text[-1]
    assert any("never solves" in line and "What is N * N? in seed 0" in line for line in text)


def test_smollm2(tmp_path: Path) -> None:
    folder = tmp_path / "smollm2/seed0"
    names = ("start_thinking", "start_plain", "cold_plain", "rl_plain", "fusion_thinking", "fusion_plain")
    stages: dict[str, Any] = {name: {"kind": "eval", "num_samples": 1} for name in names}
    stages |= {name: {"kind": "sft", "num_steps": 2} for name in ("cold", "rl", "fusion", "rejection")}
    recipe(folder, stages)
    stage_done(folder, "rejection", summary={"pass_rate": 0.75})
    for name in names:
        evaluated(folder, name, {"a": (0,), "b": (float("plain" in name),)}, format=float("fusion" in name))
    evaluated(folder, "rl", {"a": (0,), "b": (0,)}, step=0, format=0.5)
    evaluated(folder, "rl", {"a": (1,), "b": (1,)}, step=2, format=1.0)
    found = real_model.collect_smollm2(Settings(tmp_path))
    rows = {row["model"]: row for row in found["rows"]}
    assert list(rows) == ["start", "cold", "rl", "fusion"]
    assert [row["thinking_math"]["value"] for row in rows.values()] == [0, 0, 1, 0]
    assert [row["thinking_format"]["value"] for row in rows.values()] == [0, 0.5, 1, 1]
    assert {row["plain_math"]["value"] for row in rows.values()} == {0.5}
    text = "\n".join(real_model.section_smollm2(found))
    assert "75 % of its samples" in text
    assert "| fusion | 0.0 % ± 0.0 | 100.0 % ± 0.0 | 50.0 %" in text


def test_smollm2_s_sizes_and_gsm8k_rows(tmp_path: Path) -> None:
    model = tmp_path / "model"
    settings = Settings(tmp_path, gsm8k="folder", smollm2=str(model), small={"rl_steps": 3, "num_test": 5})
    with pytest.raises(Unfinished, match="make smollm2"):
        next(real_model.smollm2_runs(settings))
    model.mkdir()
    (model / "config.json").write_text("{}")
    (run,) = real_model.smollm2_runs(settings)
    stages = load(ROOT / "configs" / run.config, run.overrides).stages  # type: ignore[union-attr]
    assert (stages["rl"]["num_steps"], stages["data"]["args"]["num_test"]) == (3, 5)
    assert stages["cold"]["model"]["path"] == str(model)
    with pytest.raises(Unfinished, match="--size other"):
        next(real_model.smollm2_runs(replace(settings, small={"other": 1})))
    for split in ("train", "test"):
        lines = [{"question": f"{split} {k}?", "answer": f"{k} is <<{k}={k}>>{k}.\n#### {k}"} for k in range(4)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = gsm8k(0, path=str(tmp_path), num_cold=1, num_plain=1, num_train=1, num_queries=1, num_test=2)
    (plain,) = made["plain"]
    assert plain["response"] == f"{plain['answer']} is {plain['answer']}.\n\\boxed{{{plain['answer']}}}"
    assert made["cold"][0]["messages"][1]["content"].startswith("<think>\n")
    assert "think" not in made["cold"][0]["messages"][0]["content"]
    assert [row["prompt"].endswith("/no_think") for row in made["test_plain"]] == [True, True]
    assert len({row["prompt"] for split in ("cold", "plain", "train", "queries") for row in made[split]}) == 4


# --- page, processes, messages --------------------------------------------------------------------------------------


def test_a_study_without_numbers_says_so_and_no_number_is_typed_in(tmp_path: Path) -> None:
    text = page(command.STUDIES, dict.fromkeys(STUDIES))
    for study in STUDIES.values():
        assert f"Not run yet: `{study.command}`" in text
        assert study.target in text
        assert "Section" in study.reported
    assert "![" not in text


def test_page_and_picture_come_from_the_json(tmp_path: Path) -> None:
    settings = Settings(tmp_path / "runs", seeds=(0,))
    mini(settings.folder("stages/seed0"))
    study = STUDIES["stages"]
    found = {**provenance(study, settings), **study.collect(settings)}
    assert (found["seconds"], found["seeds"]) == (30 * len(MINI), [0])
    assert "configs/recipe/qwen3_mini.yaml" in found["runs"][0]["command"]
    docs = tmp_path / "docs"
    write_json(study, found, docs)
    assert read_json(study, docs) == found
    path = write_page(command.STUDIES, docs)
    text = path.read_text(encoding="utf-8")
    assert "![Accuracy after each stage, in both modes](images/findings_stages.png)" in text
    assert (docs / "images" / "findings_stages.png").read_bytes().startswith(b"\x89PNG")
    assert "| `reasoning` | 75.0 %" in text
    assert text.count("Not run yet") == len(STUDIES) - 1
    (docs / "findings" / "budget.json").write_text(json.dumps(found))
    with pytest.raises(ValueError, match="expected the numbers of budget"):
        write_page(command.STUDIES, docs)


def test_the_committed_page_is_made_of_the_committed_numbers() -> None:
    found = {study.name: read_json(study) for study in command.STUDIES}
    assert (ROOT / "docs" / "findings.md").read_text(encoding="utf-8") == page(command.STUDIES, found)
    for name, numbers in found.items():
        assert numbers is None or not numbers["smoke"], f"{name}: numbers of --smoke are no findings"


def test_what_is_missing_or_half_way_is_named(tmp_path: Path) -> None:
    settings = Settings(tmp_path, seeds=(0, 1))
    with pytest.raises(Unfinished, match=r"seed0 is not there yet; run `.*--only stages`"):
        after_stages.collect_stages(settings)
    mini(tmp_path / "stages/seed0")
    recipe(tmp_path / "stages/seed1", MINI, finished=["base"])
    (tmp_path / "stages/seed1/base_plain").mkdir()
    (tmp_path / "stages/seed1/base_plain/started.json").write_text("{}")
    with pytest.raises(Unfinished, match=r"stage base_plain of .*seed1 stopped half-way"):
        after_stages.collect_stages(settings)
    problems = command.work([STUDIES["stages"], STUDIES["agent"]], settings, tmp_path / "docs", collect_only=True)
    assert len(problems) == 2
    assert not (tmp_path / "docs").exists()


def test_a_run_that_fails_is_named(tmp_path: Path) -> None:
    study = replace(STUDIES["agent"], runs=lambda _: iter([Run("agent/seed0", "recipe/none.yaml")]))
    with pytest.raises(Unfinished, match=r"agent/seed0 ended with exit code 2; .*goes on from there"):
        run_study(study, Settings(tmp_path))


def test_every_config_belongs_to_a_study(tmp_path: Path) -> None:
    files = {str(file.relative_to(ROOT / "configs")) for file in (ROOT / "configs" / "findings").glob("*.yaml")}
    used = {"findings/distillation_test.yaml", "findings/smollm2.yaml"}
    parent(tmp_path)
    settings = Settings(tmp_path)
    for runs in (ablations.entropy_runs, ablations.cold_start_runs, after_stages.seed_runs, single.agent_runs):
        used |= {run.config for run in runs(settings)}
    used |= {run.config for _, _, run in distillation.trials(settings)}
    assert files <= used


def test_numbers_name_no_place_of_this_machine(tmp_path: Path) -> None:
    settings = Settings(tmp_path / "deep", gsm8k=str(tmp_path / "gsm8k"))
    run = Run("agent/seed0", "recipe/agent.yaml", (f"stages.data.args.path={settings.gsm8k}",))
    found = {"runs": [{"command": run.command(settings), "seconds": 3}], "model": f"{settings.root}/x/model"}
    assert without_places(found, settings) == {
        "runs": [
            {
                "command": "rlplatform run configs/recipe/agent.yaml stages.data.args.path=FOLDER seed=0 "
                "run_dir=runs/findings/agent/seed0",
                "seconds": 3,
            }
        ],
        "model": "runs/findings/x/model",
    }
