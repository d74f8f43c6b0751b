"""Reward models with real Ray Train ranks: they learn a known rule, resume, and score the same as actors."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.fleet import Fleet, Ok
from actors.grading_request import GradingRequest, PartScore
from actors.preference import preference_reward
from actors.preference_worker import PreferenceWorker
from model.init import init_model
from model.reward_head import weights_hash
from model.tokenizer import train_bpe
from pretrain.preference import run_preference
from pretrain.setup import TrainingResult
from rlplatform.config import (
    CheckpointConfig,
    ConfigError,
    LearnerConfig,
    ModelConfig,
    OptimizerConfig,
    PreferenceConfig,
)
from rlplatform.reads import ENV, reads
from rlplatform.runs import RunFolder
from rlplatform.tasks.preferences import POLITE, RUDE, pairs, quality

ROOT = Path(__file__).resolve().parents[2]
TIMING = ("seconds", "tokens_per_s")


@pytest.fixture(scope="module")
def _ray() -> Iterator[None]:
    import ray

    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=200 * 2**20,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    rows = pairs(9, num_train=200, num_test=1)["train"]
    texts = [row[name] for row in rows for name in ("prompt", "chosen", "rejected")]
    train_bpe([*texts, *POLITE, *RUDE], 384, folder / "tokenizer")
    shape = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128}
    init_model(folder, folder / "tokenizer", shape, seed=0)
    return folder


def preference_config(policy: Path, run_dir: Path, **changes: Any) -> PreferenceConfig:
    config = PreferenceConfig(
        run_dir=str(run_dir),
        num_steps=60,
        tokens_per_step=4096,
        max_tokens=160,
        centring=0.01,
        model=ModelConfig(path=os.path.relpath(policy)),  # the workers have another working directory
        optimizer=OptimizerConfig(lr=3e-3, warmup_steps=5),
        learner=LearnerConfig(num_workers=2, zero_stage=2, max_tokens_per_micro_batch=1024),
    )
    return replace(config, **changes)


def learn(rule: Any, policy: Path, run_dir: Path, **changes: Any) -> TrainingResult:
    splits = pairs(0, rule=rule, num_train=1024, num_test=300)
    config = preference_config(policy, run_dir, **changes)
    return run_preference(config, rows=splits["train"], heldout_rows=splits["test"])


@pytest.fixture(scope="module")
def shorter(_ray, policy: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    return learn("shorter", policy, tmp_path_factory.mktemp("shorter"))


@pytest.fixture(scope="module")
def polite(_ray, policy: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    return learn("polite", policy, tmp_path_factory.mktemp("polite"), evaluate_every=30)


def test_shorter_is_learned_and_the_report_says_what_explains_it(shorter: TrainingResult) -> None:
    heldout = shorter.summary["heldout"]
    assert heldout["pairs"] == 300
    assert heldout["accuracy"] >= 0.95
    assert heldout["accuracy_low"] > 0.9
    assert heldout["length"]["chosen_shorter"]["pairs"] == 300
    assert heldout["length"]["score_length_correlation"] < -0.5
    assert abs(heldout["score_mean"]) < 3


def test_polite_is_learned_whatever_the_lengths(polite: TrainingResult) -> None:
    heldout = polite.summary["heldout"]
    assert heldout["accuracy"] >= 0.95
    length = heldout["length"]
    assert min(length["chosen_shorter"]["accuracy"], length["chosen_longer"]["accuracy"]) >= 0.93
    assert 0.3 < length["prefer_shorter_accuracy"] < 0.7
    rows = RunFolder(polite.model.parent).read_metrics()
    assert [row["step"] for row in rows if "eval/pair_accuracy" in row] == [30, 60]
    assert rows[-1]["eval/pair_accuracy"] == pytest.approx(heldout["accuracy"])
    assert rows[0]["pairs"] > 10


def test_the_exported_folder_gives_the_scores_that_the_engine_gave(polite: TrainingResult) -> None:
    splits = pairs(0, rule="polite", num_train=1024, num_test=300)
    prompts = [row["prompt"] for row in splits["test"] for _ in range(2)]
    answers = [row[name] for row in splits["test"] for name in ("chosen", "rejected")]
    got = np.array([verdict.score for verdict in preference_reward(prompts, answers, model=str(polite.model))])
    margins = got[::2] - got[1::2]
    heldout = polite.summary["heldout"]
    assert float(margins.mean()) == pytest.approx(heldout["margin_mean"], abs=1e-5)
    assert float(got.std()) == pytest.approx(heldout["score_std"], abs=1e-5)
    assert float((margins > 0).mean()) == pytest.approx(heldout["accuracy"])


@pytest.mark.usefixtures("_ray")
def test_an_actor_scores_as_the_plain_function_does(polite: TrainingResult) -> None:
    rows = pairs(5, rule="polite", num_train=12, num_test=1)["train"]
    prompts = [[{"role": "user", "content": row["prompt"]}] for row in rows for _ in range(2)]
    answers = [[{"role": "assistant", "content": row[name]}] for row in rows for name in ("chosen", "rejected")]
    expected = [verdict.score for verdict in preference_reward(prompts, answers, model=str(polite.model))]
    arguments = ({"model": str(polite.model), "max_tokens_per_batch": 150}, 10.0, list(sys.path))
    fleet: Fleet[PreferenceWorker] = Fleet(
        PreferenceWorker, "preference", 1, cpus=0.0, actor_args=lambda worker: arguments, env={"OMP_NUM_THREADS": "1"}
    )
    try:

        def ask(prompts: list[Any], answers: list[Any], group_sizes: tuple[int, ...]) -> PartScore:
            call = fleet.call_async(
                0, PreferenceWorker.score, GradingRequest("preference", prompts, answers, {}, group_sizes)
            )
            replies: list[Any] = []
            while not replies:
                replies = list(fleet.ready(60.0))
            assert replies[0].call == call
            assert isinstance(replies[0].result, Ok)
            score: PartScore = replies[0].result.value
            return score

        score = ask(prompts, answers, (8,) * 3)
        assert score.tracebacks == ()
        np.testing.assert_allclose([verdict.score for verdict in score.verdicts], expected, rtol=0, atol=1e-5)
        assert score.version == f"{polite.model} {weights_hash(str(polite.model))}"
        mixed = ask([prompts[0]] * 2, ["word " * 500, answers[0]], (2,))
        assert [verdict.status for verdict in mixed.verdicts] == ["error", "ok"]
        assert "more than max_tokens=160" in mixed.tracebacks[0]
    finally:
        fleet.close()


@pytest.mark.usefixtures("_ray")
def test_the_reward_service_starts_the_actors_itself(polite: TrainingResult) -> None:
    """The same scores through the service, whole groups, and the model's hash among the versions of the graders."""
    from actors.reward_service import RewardService
    from rlplatform.config import RewardConfig
    from rlplatform.types import Prompt, Rollout, RolloutGroup

    rows = pairs(5, rule="polite", num_train=3, num_test=1)["train"]

    def group(index: int, row: dict[str, Any]) -> RolloutGroup:
        messages = ({"role": "user", "content": row["prompt"]},)
        prompt = Prompt(row["id"], messages, np.arange(3, dtype=np.int32), row["prompt"], {})
        rollouts = tuple(
            Rollout(
                token_ids=np.arange(4, dtype=np.int32),
                loss_mask=np.ones(4, dtype=bool),
                rollout_logprobs=np.zeros(4, dtype=np.float32),
                policy_version=np.zeros(4, dtype=np.int32),
                finish="stop",
                text=row[name],
            )
            for name in ("chosen", "rejected")
        )
        return RolloutGroup(prompt, rollouts, step=0, index=index)

    functions = {
        "proxy": {"function": "preference", "weight": 0.5, "args": {"model": str(polite.model)}},
        "gold": {"function": "rlplatform.tasks.preferences:gold_reward", "weight": 0.0},
    }
    service = RewardService(RewardConfig(functions=functions))
    try:
        scored = service.score([group(index, row) for index, row in enumerate(rows)], step=0)
        versions = json.dumps(service.versions())
    finally:
        service.close()
    for row, one in zip(rows, scored, strict=True):
        expected = preference_reward([row["prompt"]] * 2, [row["chosen"], row["rejected"]], model=str(polite.model))
        for verdict, alone, answer in zip(one.verdicts, expected, (row["chosen"], row["rejected"]), strict=True):
            assert verdict.parts["proxy"] == pytest.approx(alone.score, abs=1e-5)
            assert verdict.parts["gold"] == pytest.approx(quality(answer))
            assert verdict.score == pytest.approx(0.5 * alone.score, abs=1e-5)
    assert weights_hash(str(polite.model)) in versions


@dataclass(frozen=True)
class Small:
    """A run with experts on one rank, and how to run it again otherwise."""

    config: PreferenceConfig
    result: TrainingResult

    def again(self, run_dir: Path, **changes: Any) -> TrainingResult:
        splits = pairs(2, num_train=80, num_test=8)
        config = replace(self.config, run_dir=str(run_dir), **changes)
        return run_preference(config, rows=splits["train"], heldout_rows=splits["test"])


@pytest.fixture(scope="module")
def small(_ray, policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Small:
    folder = tmp_path_factory.mktemp("moe")
    init_model(folder, policy / "tokenizer", {"preset": "tiny-moe", "num_hidden_layers": 2, "hidden_size": 48}, seed=1)
    config = preference_config(
        folder,
        folder / "whole",
        num_steps=8,
        margin=0.5,
        evaluate_every=3,
        checkpoint=CheckpointConfig(every=3),
        learner=LearnerConfig(num_workers=1, zero_stage=0, max_tokens_per_micro_batch=4096),
    )
    splits = pairs(2, num_train=80, num_test=8)
    return Small(config, run_preference(config, rows=splits["train"], heldout_rows=splits["test"]))


def test_neither_ranks_nor_zero_3_nor_micro_batches_change_the_steps(small: Small, tmp_path: Path) -> None:
    """Losses of the routers included: they count over the whole step."""

    def numbers(result: TrainingResult) -> list[float]:
        rows = RunFolder(result.model.parent).read_metrics()
        steps = [row[k] for row in rows[:4] for k in ("loss", "optimizer/grad_norm", "router/balance_loss")]
        return [*steps, rows[2]["eval/pair_loss"], rows[2]["eval/pair_margin"]]

    ranks = LearnerConfig(num_workers=2, zero_stage=3, max_tokens_per_micro_batch=300)
    other = small.again(tmp_path, num_steps=4, learner=ranks)
    np.testing.assert_allclose(numbers(other), numbers(small.result), rtol=2e-3)


def test_a_run_in_two_parts_ends_as_the_whole_one(small: Small, tmp_path: Path) -> None:
    small.again(tmp_path, num_steps=5)
    result = small.again(tmp_path, num_steps=8)

    def comparable(result: TrainingResult) -> list[dict]:
        rows = RunFolder(result.model.parent).read_metrics()
        return [{key: value for key, value in row.items() if key not in TIMING} for row in rows]

    assert comparable(result) == comparable(small.result)
    assert len(comparable(result)) == 8
    weights = [(one.model / "model.safetensors").read_bytes() for one in (result, small.result)]
    assert weights[0] == weights[1]
    assert result.summary["heldout"] == small.result.summary["heldout"]
    with pytest.raises(ConfigError, match="expected a Hugging Face folder"):
        small.again(tmp_path, model=ModelConfig())


def leaves(cls: type) -> set[str]:
    default = PreferenceConfig()
    return {f"{cls.__name__}.{entry.name}" for entry in fields(cls) if not is_dataclass(getattr(default, entry.name))}


def test_the_synthetic_config_runs_and_every_key_is_read(tmp_path: Path) -> None:
    """`rlplatform run configs/preference/synthetic.yaml`, shortened, as a user starts it."""
    tracked = tmp_path / "reads"
    tracked.mkdir()
    command = [sys.executable, "-m", "rlplatform", "run", "configs/preference/synthetic.yaml", "--smoke"]
    done = subprocess.run(
        [*command, f"run_dir={tmp_path}/run"],
        cwd=ROOT,
        env={**os.environ, ENV: str(tracked)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "pair accuracy" in done.stderr
    stage = tmp_path / "run-smoke" / "reward_model"
    results = json.loads((stage / "results.json").read_text())
    assert results["heldout"]["pairs"] == 512
    assert results["steps"] == 2
    assert (stage / "report" / "index.html").is_file()
    assert json.loads((stage / "model" / "config.json").read_text())["architectures"] == [
        "Qwen3ForSequenceClassification"
    ]
    assert leaves(PreferenceConfig) - {"PreferenceConfig.kind"} <= reads(tracked)
