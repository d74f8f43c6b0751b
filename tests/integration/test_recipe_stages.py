"""The data stages on a real engine, and entropy control on real ranks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlplatform.config import AlgorithmConfig, LearnerConfig, OptimizerConfig, RecipeConfig, RewardConfig, RLConfig
from rlplatform.configfile import load_values
from rlplatform.pipeline import run_config
from rlplatform.plan import FINISHED, STARTS_OVER, plan_recipe
from rlplatform.roles import RunStopped
from rlplatform.stages.records import read_parquet
from rlplatform.types import RolloutBatch, TrainBatch
from tests.integration import rollout_models as kit
from tests.integration.conftest import StartLearner

ENGINE = {"cpus_per_worker": 0.5, "kv_cache_gib": 0.1}


def recipe(folder: Path, *, num_samples: int = 2, num: int = 6) -> RecipeConfig:
    """data -> init -> candidates -> cold -> both modes -> one SFT step, with demonstrations in half of the samples."""
    config = load_values(
        {
            "kind": "recipe",
            "name": "r",
            "run_dir": str(folder),
            "stages": {
                "data": {
                    "kind": "dataset",
                    "function": "rlplatform.tasks.mini:problems",
                    "args": {
                        "num_direct": 40,
                        "num_worked": 10,
                        "num_teacher": 4,
                        "num_queries": 6,
                        "num_rl": 4,
                        "num_test": 4,
                        "num_general": 4,
                    },
                },
                "init": {
                    "kind": "init_model",
                    "data": {"path": "stage:data", "split": "base", "prompt": "messages"},
                    "vocab_size": 320,
                    "architecture": {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2},
                },
                "queries": {
                    "kind": "filter",
                    "data": {"path": "stage:data", "split": "queries"},
                    "steps": {"hold_out": {"num": 2}, "not_verifiable": {}},
                },
                "candidates": {
                    "kind": "sample",
                    "num_samples": num_samples,
                    "metric": "math",
                    "demonstration": "worked",
                    "use_demonstrations": True,
                    "model": {"path": "stage:init"},
                    "data": {"path": "stage:queries", "max_prompt_tokens": 64},
                    "sampling": {"max_new_tokens": 12, "thinking_budget": 4},
                    "rollout": ENGINE,
                    "reward": {"functions": {"math": 0.9, "format": 0.1}},
                },
                "cold": {
                    "kind": "filter",
                    "messages": True,
                    "data": {"path": "stage:candidates", "split": "responses"},
                    "steps": {"wrong_answer": {}, "guessing": {"min_thought_tokens": 5}, "disagreement": {}},
                },
                "both": {
                    "kind": "fusion",
                    "thinking": ["stage:candidates/responses.jsonl"],
                    "plain": ["stage:data/plain.jsonl"],
                    "num": num,
                    "repeat": True,
                    "shares": {"turns": {1: 1.0}, "translation": 0.0},
                },
                "sft": {
                    "kind": "sft",
                    "num_steps": 1,
                    "tokens_per_step": 256,
                    "max_tokens": 256,
                    "model": {"path": "stage:init"},
                    "data": {"path": "stage:both", "prompt": "messages"},
                    "learner": {"cpus_per_worker": 0.5, "zero_stage": 0},
                },
            },
        }
    )
    assert isinstance(config, RecipeConfig)
    return config


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_sampled_filtered_fused_and_trained(cluster: None, tmp_path: Path) -> None:
    results = run_config(recipe(tmp_path / "run"))["stages"]
    queries = lines(tmp_path / "run/queries/train.jsonl")
    assert results["queries"]["dropped"] == results["queries"]["rows"] - len(queries)

    rows = lines(tmp_path / "run/candidates/responses.jsonl")
    assert [(row["id"], row["sample"]) for row in rows] == [(query["id"], k) for query in queries for k in range(2)]
    demonstrated, sampled = rows[::2], rows[1::2]
    assert all(row["score"] == 1.0 and row["response"] == row["worked"] for row in demonstrated)
    assert all(row["status"] == "ok" and 0 < row["length"] <= 12 + 64 for row in sampled)
    assert [query["pass_rate"] for query in lines(tmp_path / "run/candidates/queries.jsonl")] == [
        (1 + (row["score"] == 1.0)) / 2 for row in sampled
    ]

    records = read_parquet(tmp_path / "run/cold/records.parquet").records
    assert len(records) == len(rows) == results["cold"]["kept"] + results["cold"]["dropped"]
    kept = lines(tmp_path / "run/cold/train.jsonl")
    assert {row["id"] for row in demonstrated} <= {row["id"] for row in kept}
    assert all(row["messages"][-1]["content"].startswith("<think>\n") for row in kept)

    assert results["both"]["conversations"] == 6
    assert (tmp_path / "run/sft/model/config.json").is_file()

    states = {name: row.state for name, row in plan_recipe(recipe(tmp_path / "run", num=4)).items()}
    assert {name for name, state in states.items() if state == STARTS_OVER} == {"both", "sft"}
    assert states["candidates"] == FINISHED


# --- entropy control ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return kit.save(kit.make_model(seed=1), tmp_path_factory.mktemp("model"))


def configuration(**algorithm: Any) -> RLConfig:
    return RLConfig(
        num_steps=4,
        prompts_per_step=2,
        group_size=2,
        reward=RewardConfig(functions={"math": 1.0}),
        algorithm=AlgorithmConfig(**algorithm),
        optimizer=OptimizerConfig(lr=0.0),
        learner=LearnerConfig(cpus_per_worker=0.5, zero_stage=0, call_timeout_s=300.0),
    )


def batch() -> TrainBatch:
    rng = np.random.default_rng(0)
    mask = np.tile([False, False, True, True, True], 4)
    return TrainBatch(
        RolloutBatch(
            token_ids=rng.integers(8, kit.VOCAB, 20).astype(np.int32),
            cu_seqlens=np.arange(0, 21, 5).astype(np.int32),
            loss_mask=mask,
            rollout_logprobs=np.where(mask, -7.0, 0.0).astype(np.float32),
            advantages=np.where(mask, 1.0, 0.0).astype(np.float32),
            rewards=np.ones(4, dtype=np.float32),
            group_ids=np.array([0, 0, 1, 1], dtype=np.int32),
            oldest_version=0,
        ),
        None,
        None,
    )


def test_the_coefficient_follows_the_entropy_and_is_restored(
    start_learner: StartLearner, model: str, tmp_path: Path
) -> None:
    config = configuration(entropy_target=100.0, entropy_delta=0.25)  # entropy is always below: up by delta a step
    learner = start_learner(config, model)
    first, second = learner.update(batch()), learner.update(batch())
    assert [row["policy/entropy_coef"] for row in (first, second)] == [0.0, 0.25]
    assert first["loss/total"] == pytest.approx(first["loss/policy"], abs=1e-6)
    assert second["loss/total"] == pytest.approx(second["loss/policy"] - 0.25 * second["policy/entropy"], abs=1e-4)
    assert learner.entropy_coef == 0.5

    learner.save(str(tmp_path))
    learner.restart(config, model)
    assert learner.entropy_coef == 0.0
    learner.load(str(tmp_path))
    assert (learner.version, learner.entropy_coef) == (2, 0.5)
    assert learner.update(batch())["policy/entropy_coef"] == 0.5

    other = replace(config, algorithm=replace(config.algorithm, entropy_target=50.0))
    learner.restart(other, model)
    with pytest.raises(RunStopped, match="entropy_target"):
        learner.load(str(tmp_path))


def test_above_the_target_nothing_is_added(start_learner: StartLearner, model: str) -> None:
    learner = start_learner(configuration(entropy_target=1e-6, entropy_delta=0.1, entropy_coef=0.5), model)
    assert learner.update(batch())["policy/entropy_coef"] == 0.5  # the first step's, before anything was measured
    assert learner.update(batch())["policy/entropy_coef"] == 0.0


def test_without_a_target_the_constant_stays(start_learner: StartLearner, model: str) -> None:
    learner = start_learner(configuration(entropy_coef=0.125), model)
    metrics = learner.update(batch())
    assert "policy/entropy_coef" not in metrics
    assert metrics["loss/total"] == pytest.approx(metrics["loss/policy"] - 0.125 * metrics["policy/entropy"], abs=1e-4)
