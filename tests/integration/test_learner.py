"""The learner on real DeepSpeed in Ray actors, against a bare torch loop over rows one by one."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Qwen3Config

from actors.engine import learning_rate
from actors.learner import LearnerGroup
from actors.micro_batch import MicroBatch
from actors.step_losses import policy_loss
from actors.training_process import random_state, set_random_state
from model.hf import load_policy
from model.logprobs import TokenScorer
from rlplatform.batching import loss_denominator
from rlplatform.config import (
    AlgorithmConfig,
    ConfigError,
    LearnerConfig,
    ModelConfig,
    OptimizerConfig,
    RewardConfig,
    RLConfig,
    SamplingConfig,
)
from rlplatform.losses import combine_stats
from rlplatform.roles import RunStopped
from rlplatform.sharding import split_minibatches
from rlplatform.types import RolloutBatch, TrainBatch, rows
from tests.integration.conftest import StartLearner

VOCABULARY = 2048
# With eps far above any gradient AdamW's first step is lr * gradient / eps: weights show gradients, not their signs.
PLAIN_GRADIENT = OptimizerConfig(lr=1.0, eps=1.0, betas=(0.0, 0.0), max_grad_norm=0.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny")
    config = Qwen3Config(
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=384,
        tie_word_embeddings=True,
        vocab_size=VOCABULARY,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return str(folder)


def configuration(ranks: int = 1, *, stage: int = 2, budget: int = 8192, **changes: Any) -> RLConfig:
    learner = LearnerConfig(
        num_workers=ranks,
        zero_stage=stage,
        max_tokens_per_micro_batch=budget,
        logprob_chunk_tokens=64,
        call_timeout_s=300.0,
    )
    fields: dict[str, Any] = {
        "num_steps": 4,
        "prompts_per_step": 4,
        "group_size": 3,
        "learner": learner,
        "optimizer": PLAIN_GRADIENT,
        "reward": RewardConfig(functions={"math": 1.0}),
    }
    return RLConfig(**{**fields, **changes})


@pytest.fixture(scope="module")
def start(start_learner: StartLearner, model: str) -> Callable[[RLConfig], LearnerGroup]:
    return lambda config: start_learner(config, model)


def rollouts(num_rows: int = 12, seed: int = 0) -> RolloutBatch:
    """Prompts of 3 to 10 tokens, completions of 5 to 40 of which some are not the policy's own."""
    rng = np.random.default_rng(seed)
    prompts, completions = rng.integers(3, 11, num_rows), rng.integers(5, 41, num_rows)
    cu_seqlens = np.concatenate(([0], np.cumsum(prompts + completions))).astype(np.int32)
    total = int(cu_seqlens[-1])
    mask = np.concatenate([np.repeat([False, True], [p, c]) for p, c in zip(prompts, completions, strict=True)])
    mask[cu_seqlens[1:] - 1] &= rng.random(num_rows) < 0.5
    mask[cu_seqlens[:-1] + prompts] = True
    advantages = np.repeat(rng.normal(size=num_rows), prompts + completions)
    return RolloutBatch(
        token_ids=rng.integers(0, VOCABULARY, total).astype(np.int32),
        cu_seqlens=cu_seqlens,
        loss_mask=mask,
        rollout_logprobs=np.where(mask, -7.6 + 0.3 * rng.normal(size=total), 0.0).astype(np.float32),
        advantages=np.where(mask, advantages, 0.0).astype(np.float32),
        rewards=rng.random(num_rows).astype(np.float32),
        group_ids=(np.arange(num_rows) // 3).astype(np.int32),
        oldest_version=0,
    )


class Reference:
    """The same arithmetic written out: rows one by one, transformers' eager attention, no engine."""

    def __init__(self, model: str, temperature: float = 1.0) -> None:
        self.hf = AutoModelForCausalLM.from_pretrained(model, attn_implementation="eager")
        self.temperature = temperature

    def log_softmax(self, batch: RolloutBatch, row: int) -> torch.Tensor:
        tokens = torch.tensor(batch.token_ids[rows(batch.cu_seqlens)[row]], dtype=torch.long)
        return torch.log_softmax(self.hf(tokens[None]).logits[0, :-1] / self.temperature, dim=-1)

    def logprobs(self, batch: RolloutBatch) -> np.ndarray:
        result = np.zeros(len(batch.token_ids), dtype=np.float32)
        with torch.no_grad():
            for row, span in enumerate(rows(batch.cu_seqlens)):
                targets = torch.tensor(batch.token_ids[span][1:], dtype=torch.long)
                values = self.log_softmax(batch, row).gather(1, targets[:, None])[:, 0].numpy()
                result[span][1:] = values
        return np.where(batch.loss_mask, result, 0.0).astype(np.float32)

    def step(
        self, batch: RolloutBatch, row_ids: Any, *, cap: float = 2.0, old: np.ndarray | None = None, lr: float = 1.0
    ) -> float:
        """Token-mean clipped policy gradient with truncated importance weights; then w -= lr * g / (|g| + 1)."""
        spans = rows(batch.cu_seqlens)
        denominator = sum(batch.loss_mask[spans[row]].sum() for row in row_ids)
        total = 0.0
        for row in row_ids:
            span = spans[row]
            tokens = torch.tensor(batch.token_ids[span], dtype=torch.long)
            now = self.log_softmax(batch, row).gather(1, tokens[1:, None])[:, 0]
            mask = torch.tensor(batch.loss_mask[span][1:])
            before = now.detach() if old is None else torch.tensor(old[span][1:])
            ratio = (now - before).exp()
            weight = (before - torch.tensor(batch.rollout_logprobs[span][1:])).exp().clamp(max=cap)
            advantage = torch.tensor(batch.advantages[span][1:])
            surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
            loss = -(weight * surrogate)[mask].sum() / float(denominator)
            loss.backward()
            total += loss.item()
        with torch.no_grad():
            for parameter in (p for p in self.hf.parameters() if p.requires_grad):
                parameter -= lr * parameter.grad / (parameter.grad.abs() + 1.0)
                parameter.grad = None
        return total

    def state(self) -> dict[str, np.ndarray]:
        return {name: parameter.detach().numpy().copy() for name, parameter in self.hf.named_parameters()}


def relative_error(got: dict[str, np.ndarray], expected: dict[str, np.ndarray], start: dict[str, np.ndarray]) -> float:
    """Of the change since ``start``, worst tensor."""
    assert got.keys() == expected.keys() == start.keys()
    return max(float(np.linalg.norm(got[n] - expected[n]) / np.linalg.norm(expected[n] - start[n])) for n in expected)


def initial(model: str) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in load_file(Path(model) / "model.safetensors").items()}


def equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def one_step(model: str) -> tuple[dict[str, np.ndarray], float]:
    reference = Reference(model)
    loss = reference.step(rollouts(), range(12))
    return reference.state(), loss


@pytest.mark.parametrize(
    ("ranks", "stage", "budget"),
    [
        (1, 0, 8192),
        (1, 2, 8192),
        (1, 2, 60),
        (1, 3, 100),
        (2, 0, 8192),
        (2, 1, 100),
        (2, 2, 60),
        (2, 3, 100),
        (2, 3, 8192),
    ],
)
def test_one_update_is_the_bare_loop_for_any_ranks_stage_and_budget(
    start: Any, model: str, one_step: Any, ranks: int, stage: int, budget: int
) -> None:
    learner = start(configuration(ranks, stage=stage, budget=budget))
    batch = rollouts()
    metrics = learner.update(learner.add_logprobs(batch))
    expected, loss = one_step
    assert relative_error(learner.full_state(), expected, initial(model)) < 1e-4
    assert metrics["loss/total"] == pytest.approx(loss, rel=1e-4)
    assert metrics["policy/ratio_mean"] == pytest.approx(1.0, abs=1e-6)
    assert metrics["policy/clip_low_share"] == metrics["policy/clip_high_share"] == 0.0
    difference = np.abs(Reference(model).logprobs(batch) - batch.rollout_logprobs)[batch.loss_mask]
    assert metrics["mismatch/abs_logprob_diff_mean"] == pytest.approx(difference.mean(), rel=1e-4)
    assert metrics["mismatch/abs_logprob_diff_max"] == pytest.approx(difference.max(), rel=1e-4)
    assert metrics["learner/loss_tokens"] == batch.num_loss_tokens
    assert metrics["policy/entropy"] == pytest.approx(np.log(VOCABULARY), abs=0.1)
    assert learner.version == 1


def test_what_stands_in_masked_slots_reaches_nothing(start: Any, model: str, one_step: Any) -> None:
    learner, batch = start(configuration(2, budget=100)), rollouts()
    learner.update(learner.add_logprobs(batch))
    clean = learner.full_state()
    nan = np.float32("nan")
    dirty = replace(
        batch,
        rollout_logprobs=np.where(batch.loss_mask, batch.rollout_logprobs, nan),
        advantages=np.where(batch.loss_mask, batch.advantages, nan),
    )
    learner = start(configuration(2, budget=100))
    metrics = learner.update(TrainBatch(dirty, np.where(batch.loss_mask, learner.logprobs(batch), nan), None))
    assert relative_error(learner.full_state(), one_step[0], initial(model)) < 1e-4
    assert relative_error(learner.full_state(), clean, initial(model)) < 1e-6
    assert all(np.isfinite(value) for value in metrics.values())


def test_activation_checkpointing_changes_nothing(start: Any, model: str, one_step: Any) -> None:
    config = configuration(2, stage=3, budget=100)
    learner = start(replace(config, learner=replace(config.learner, activation_checkpointing="full")))
    learner.update(learner.add_logprobs(rollouts()))
    assert relative_error(learner.full_state(), one_step[0], initial(model)) < 1e-4


def test_compiled_layers_learn_the_same(start: Any, model: str, one_step: Any) -> None:
    config = configuration(2, stage=2, budget=100)
    learner = start(replace(config, learner=replace(config.learner, compile=True)))
    learner.update(learner.add_logprobs(rollouts()))
    assert relative_error(learner.full_state(), one_step[0], initial(model)) < 1e-4
    with pytest.raises(ConfigError, match="zero_stage 0, 1 or 2, got 3"):
        replace(config.learner, compile=True, zero_stage=3)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_rank_without_rows_keeps_step(start: Any, model: str, stage: int) -> None:
    batch = rollouts(num_rows=1)
    reference = Reference(model)
    reference.step(batch, [0])
    learner = start(configuration(2, stage=stage))
    learner.update(learner.add_logprobs(batch))
    assert relative_error(learner.full_state(), reference.state(), initial(model)) < 1e-4


def test_several_optimiser_steps_use_the_logprobs_from_before_the_first(start: Any, model: str) -> None:
    config = configuration(2, updates_per_step=2, optimizer=replace(PLAIN_GRADIENT, lr=30.0))
    learner, batch, reference = start(config), rollouts(), Reference(model)
    train_batch = learner.add_logprobs(batch)
    old = reference.logprobs(batch)
    assert train_batch.old_logprobs is not None
    np.testing.assert_allclose(train_batch.old_logprobs, old, atol=2e-5)
    metrics = learner.update(train_batch)
    minibatches = split_minibatches(batch, 2, seed=config.seed * 1_000_003)
    assert len(minibatches) == 2
    for row_ids in minibatches:
        reference.step(batch, row_ids, old=old, lr=30.0)
    assert relative_error(learner.full_state(), reference.state(), initial(model)) < 1e-4
    assert abs(metrics["policy/ratio_mean"] - 1.0) > 1e-4  # the second step is off-policy
    assert metrics["optimizer/steps"] == 2.0


def test_kl_reference_is_the_initial_model_whatever_happens_to_the_policy(start: Any, model: str) -> None:
    config = configuration(algorithm=AlgorithmConfig(kl_coef=0.5, kl_estimator="k3"))
    learner, batch = start(config), rollouts()
    expected = Reference(model).logprobs(batch)
    first = learner.add_logprobs(batch)
    metrics = learner.update(first)
    assert metrics["policy/kl_ref"] == pytest.approx(0.0, abs=1e-6)
    second = learner.add_logprobs(batch)
    for train_batch in (first, second):
        np.testing.assert_allclose(train_batch.ref_logprobs, expected, atol=2e-5)
    assert np.abs(learner.logprobs(batch) - expected).max() > 1e-3
    assert learner.update(second)["policy/kl_ref"] > 0.0


def test_kl_alone_draws_the_policy_back(start: Any) -> None:
    config = configuration(algorithm=AlgorithmConfig(kl_coef=1.0, kl_estimator="k3"))
    learner, batch = start(replace(config, optimizer=replace(PLAIN_GRADIENT, lr=0.5))), rollouts()
    learner.update(learner.add_logprobs(batch))
    nothing = replace(batch, advantages=np.zeros_like(batch.advantages))
    divergence = [learner.update(learner.add_logprobs(nothing))["policy/kl_ref"] for _ in range(3)]
    assert divergence[0] > divergence[1] > divergence[2] > 0.0


def test_kl_in_the_reward_is_in_the_advantages_and_not_in_the_loss(start: Any) -> None:
    config = configuration(algorithm=AlgorithmConfig(kl_coef=0.5, kl_estimator="k1", kl_in="reward"))
    learner, batch = start(config), rollouts()
    learner.update(learner.add_logprobs(batch))
    train_batch = learner.add_logprobs(batch)
    k1 = np.where(batch.loss_mask, train_batch.old_logprobs - train_batch.ref_logprobs, 0.0)
    np.testing.assert_allclose(train_batch.batch.advantages, batch.advantages - 0.5 * k1, atol=1e-6)
    assert "loss/kl" not in learner.update(train_batch)


@pytest.mark.parametrize("temperature", [0.6, 1.4])
def test_logprobs_are_those_of_the_sampling_temperature(start: Any, model: str, temperature: float) -> None:
    learner = start(configuration(2, budget=100, sampling=SamplingConfig(temperature=temperature)))
    batch = rollouts()
    sampled = Reference(model, temperature).logprobs(batch)
    np.testing.assert_allclose(learner.logprobs(batch), sampled, atol=2e-5)
    assert np.abs(Reference(model).logprobs(batch) - sampled).max() > 1e-2  # temperature 1 would show
    metrics = learner.update(learner.add_logprobs(replace(batch, rollout_logprobs=sampled)))
    assert metrics["mismatch/importance_ratio_mean"] == pytest.approx(1.0, abs=1e-4)
    assert metrics["mismatch/effective_sample_size"] == pytest.approx(1.0, abs=1e-4)
    assert metrics["mismatch/kl_k3"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["policy/clip_low_share"] + metrics["policy/clip_high_share"] == 0.0


@pytest.mark.parametrize(
    ("ranks", "stage", "dtype"),
    [
        (1, 0, "float32"),
        (2, 0, "float32"),
        (2, 1, "bfloat16"),
        (2, 2, "float32"),
        (2, 2, "bfloat16"),
        (2, 3, "float32"),
    ],
)
def test_a_gradient_that_is_not_finite_skips_the_step_on_all_ranks(
    start: Any, tmp_path: Path, ranks: int, stage: int, dtype: str
) -> None:
    config = configuration(ranks, stage=stage, budget=100, model=ModelConfig(dtype=dtype))
    learner = start(replace(config, optimizer=OptimizerConfig(lr=1e-3, max_skipped_steps=2)))
    learner._dump_dir = tmp_path
    good = rollouts()
    broken = replace(good, advantages=good.advantages.copy())
    broken.advantages[np.flatnonzero(good.loss_mask)[0]] = np.nan  # one token, so one rank
    learner.update(learner.add_logprobs(good))
    before = learner.full_state()
    metrics = learner.update(TrainBatch(broken, None, None))
    assert metrics["optimizer/skipped_steps"] == 1.0
    assert metrics["optimizer/steps"] == 1.0
    assert not np.isfinite(metrics["optimizer/grad_norm"])
    assert equal(learner.full_state(), before)
    dump = np.load(tmp_path / "nonfinite_step1.npz")
    np.testing.assert_array_equal(dump["advantages"], broken.advantages)
    metrics = learner.update(learner.add_logprobs(good))  # the count in a row begins again
    assert metrics["optimizer/steps"] == 2.0
    after = learner.full_state()
    assert not equal(after, before)
    assert all(np.isfinite(values).all() for values in after.values())
    learner.update(TrainBatch(broken, None, None))
    with pytest.raises(RunStopped, match=r"2 optimiser steps in a row.*max_skipped_steps=2"):
        learner.update(TrainBatch(broken, None, None))
    assert equal(learner.full_state(), after)


@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 2), (2, 3)])
def test_save_and_load_continue_bit_for_bit(start: Any, tmp_path: Path, ranks: int, stage: int) -> None:
    optimizer = OptimizerConfig(lr=1e-3, warmup_steps=1, decay="cosine", final_lr_ratio=0.1)
    config = configuration(ranks, stage=stage, optimizer=optimizer, updates_per_step=2, max_lag=1)
    learner = start(config)
    learner.update(learner.add_logprobs(rollouts(seed=1)))
    learner.save(str(tmp_path))
    saved = learner.full_state()
    uninterrupted = [learner.update(learner.add_logprobs(rollouts(seed=seed))) for seed in (2, 3)]
    expected = learner.full_state()

    learner = start(config)
    learner.load(str(tmp_path))
    assert learner.version == 1
    assert equal(learner.full_state(), saved)
    resumed = [learner.update(learner.add_logprobs(rollouts(seed=seed))) for seed in (2, 3)]
    assert equal(learner.full_state(), expected)
    for one, two in zip(uninterrupted, resumed, strict=True):
        for name in ("optimizer/lr", "optimizer/grad_norm", "optimizer/steps", "loss/total"):
            assert one[name] == two[name], name


def test_random_states_of_every_rank_and_library_are_kept(start: Any, tmp_path: Path) -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), float(torch.rand(()))

    mine = random_state()
    first = draw()
    assert draw() != first
    set_random_state(mine)
    assert draw() == first

    learner = start(configuration(2))
    learner.save(str(tmp_path))
    saved = [torch.load(tmp_path / f"random_state_rank{rank}.pt", weights_only=False) for rank in (0, 1)]
    assert not torch.equal(saved[0]["torch"], saved[1]["torch"])  # ranks draw differently
    start(replace(configuration(2), seed=5)).load(str(tmp_path))
    learner.save(str(tmp_path))
    again = [torch.load(tmp_path / f"random_state_rank{rank}.pt", weights_only=False) for rank in (0, 1)]
    assert all(torch.equal(one["torch"], two["torch"]) for one, two in zip(saved, again, strict=True))


def test_a_checkpoint_of_another_shape_is_refused(start: Any, tmp_path: Path) -> None:
    with pytest.raises(RunStopped, match=r"expected engine\.json"):
        start(configuration()).load(str(tmp_path))
    start(configuration(1)).save(str(tmp_path))
    two_ranks = start(configuration(2))
    with pytest.raises(RunStopped, match=r"learner\.num_workers=1, this run 2"):
        two_ranks.load(str(tmp_path))
    with pytest.raises(RunStopped, match=r"learner\.zero_stage=2, this run 3"):
        start(configuration(1, stage=3)).load(str(tmp_path))
    two_ranks.logprobs(rollouts())  # a refused checkpoint leaves the ranks in service


def test_gathered_weights_are_the_models_own(start: Any, model: str) -> None:
    from actors.payload import unflatten

    for config in (configuration(1, stage=0), configuration(2, stage=3)):
        learner = start(config)
        assert equal(learner.full_state(), initial(model))
        manifest, flat = ray.get(learner.gather_weights(), timeout=30)
        assert equal({name: tensor.numpy() for name, tensor in unflatten(manifest, flat)}, initial(model))


def test_the_exported_folder_has_the_learners_logits(start: Any, model: str, tmp_path: Path) -> None:
    batch = rollouts()
    for config in (configuration(1, stage=0), configuration(2, stage=3)):
        folder = tmp_path / f"stage{config.learner.zero_stage}"
        learner = start(config)
        learner.update(learner.add_logprobs(batch))
        learner.export(str(folder))
        np.testing.assert_allclose(learner.logprobs(batch), Reference(str(folder)).logprobs(batch), atol=2e-5)
        assert not np.allclose(learner.logprobs(batch), Reference(model).logprobs(batch), atol=1e-3)
        assert (folder / "chat_template.jinja").read_text() == "{{ messages }}"
        assert (folder / "generation_config.json").is_file()


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_learning_rate_of_zero_leaves_the_weights_bit_equal(start: Any, model: str, stage: int) -> None:
    learner = start(configuration(2, stage=stage, optimizer=OptimizerConfig(lr=0.0, weight_decay=0.1)))
    for seed in (0, 1):
        learner.update(learner.add_logprobs(rollouts(seed=seed)))
    assert equal(learner.full_state(), initial(model))


def test_advantage_on_fixed_tokens_raises_their_logprobs(start: Any) -> None:
    config = configuration(2, optimizer=OptimizerConfig(lr=3e-3), num_steps=8)
    learner, batch = start(config), rollouts()
    batch = replace(batch, advantages=np.where(batch.loss_mask, np.float32(1.0), np.float32(0.0)))
    before = learner.logprobs(batch)[batch.loss_mask].mean()
    for _ in range(8):
        on_policy = replace(batch, rollout_logprobs=learner.logprobs(batch))
        learner.update(learner.add_logprobs(on_policy))
    assert learner.logprobs(batch)[batch.loss_mask].mean() > before + 1.0


def test_the_schedule_counts_optimiser_steps(start: Any) -> None:
    optimizer = OptimizerConfig(lr=1e-3, warmup_steps=2, decay="linear", final_lr_ratio=0.25)
    learner = start(configuration(optimizer=optimizer, num_steps=3, updates_per_step=2))
    seen = [learner.update(learner.add_logprobs(rollouts(seed=s)))["optimizer/lr"] for s in range(3)]
    assert seen == pytest.approx([learning_rate(optimizer, step, 6) for step in (1, 3, 5)])
    assert seen[-1] == pytest.approx(0.25e-3)


@pytest.mark.parametrize(
    ("config", "num_steps", "expected"),
    [
        (OptimizerConfig(lr=1.0), 3, [1.0, 1.0, 1.0]),
        (OptimizerConfig(lr=1.0, warmup_steps=2), 4, [0.5, 1.0, 1.0, 1.0]),
        (OptimizerConfig(lr=1.0, decay="linear"), 3, [1.0, 0.5, 0.0]),
        (OptimizerConfig(lr=2.0, decay="linear", warmup_steps=2, final_lr_ratio=0.5), 4, [1.0, 2.0, 1.5, 1.0]),
        (OptimizerConfig(lr=1.0, decay="cosine", final_lr_ratio=0.1), 3, [1.0, 0.55, 0.1]),
        (OptimizerConfig(lr=1.0, decay="cosine"), 1, [1.0]),
        (OptimizerConfig(lr=1.0, decay="linear", decay_steps=2), 5, [1.0, 1.0, 1.0, 0.5, 0.0]),
        (OptimizerConfig(lr=1.0, decay="linear", decay_steps=2, warmup_steps=2), 5, [0.5, 1.0, 1.0, 0.5, 0.0]),
        (OptimizerConfig(lr=1.0, decay="cosine", decay_steps=2, final_lr_ratio=0.1), 4, [1.0, 1.0, 0.55, 0.1]),
        (OptimizerConfig(lr=1.0, decay="linear", decay_steps=9, warmup_steps=2), 4, [0.5, 1.0, 0.5, 0.0]),
    ],
)
def test_learning_rates_by_hand(config: OptimizerConfig, num_steps: int, expected: list[float]) -> None:
    assert [learning_rate(config, step, num_steps) for step in range(num_steps)] == pytest.approx(expected)


def test_what_cannot_be_learned_from_is_refused_before_anything_starts(model: str) -> None:
    with pytest.raises(ConfigError, match=r"sampling\.temperature"):
        LearnerGroup(configuration(sampling=SamplingConfig(temperature=0.0)), model)


def test_a_batch_without_a_loss_token_is_refused(start: Any) -> None:
    batch = rollouts()
    with pytest.raises(ValueError, match="none of 12 rows"):
        start(configuration()).update(TrainBatch(replace(batch, loss_mask=np.zeros_like(batch.loss_mask)), None, None))


@pytest.mark.parametrize(
    "algorithm",
    [
        AlgorithmConfig(),
        AlgorithmConfig(aggregation="sequence_mean", clip_high=0.28, entropy_coef=0.01),
        AlgorithmConfig(aggregation="constant_length", importance_cap=0.0, kl_coef=0.3, kl_estimator="k2"),
        AlgorithmConfig(dual_clip=3.0, kl_coef=0.3, kl_estimator="k3", entropy_coef=-0.01),
    ],
    ids=["token_mean", "sequence_mean", "constant_length", "dual_clip"],
)
def test_gradients_do_not_depend_on_how_rows_are_cut(model: str, algorithm: AlgorithmConfig) -> None:
    batch = rollouts()
    noise = np.random.default_rng(3).normal(size=(2, len(batch.token_ids))).astype(np.float32)
    old, ref = (np.where(batch.loss_mask, batch.rollout_logprobs + 0.3 * n, 0.0).astype(np.float32) for n in noise)
    whole = TrainBatch(batch, old, ref if algorithm.kl_coef else None)
    denominator = loss_denominator(batch, aggregation=algorithm.aggregation, constant_length=40)
    scorer = TokenScorer(load_policy(model))

    def gradients(rows_each: int) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        scorer.zero_grad()
        parts = []
        for begin in range(0, batch.num_rows, rows_each):
            row_ids = range(begin, min(begin + rows_each, batch.num_rows))
            part = MicroBatch.of(whole, row_ids, torch.device("cpu"))
            logprobs, entropy = scorer(*part.forward_arguments, chunk_tokens=50, with_entropy=True)
            loss, sums = policy_loss(logprobs, entropy, part, algorithm, denominator)
            loss.backward()
            parts.append(sums)
        return {n: p.grad.clone() for n, p in scorer.named_parameters() if p.grad is not None}, combine_stats(parts)

    expected, expected_sums = gradients(batch.num_rows)
    for rows_each in (1, 2, 8):
        got, sums = gradients(rows_each)
        for name, gradient in expected.items():
            assert float((got[name] - gradient).norm() / gradient.norm()) < 1e-4, name
        assert sums == pytest.approx(expected_sums, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(("ranks", "sign"), [(2, signal.SIGKILL), (1, signal.SIGSTOP)])
def test_a_lost_rank_ends_in_an_error_that_names_it(
    cluster: None, model: str, ranks: int, sign: signal.Signals
) -> None:
    config = configuration(ranks)
    learner = LearnerGroup(replace(config, learner=replace(config.learner, call_timeout_s=8.0)), model)
    pids = [learner.workers.incarnation(rank).pid for rank in range(ranks)]
    name = f"learner-{ranks - 1}"
    try:
        learner.update(learner.add_logprobs(rollouts()))
        os.kill(pids[-1], sign)
        began = time.monotonic()
        with pytest.raises(RunStopped, match=name):
            learner.update(learner.add_logprobs(rollouts()))
        assert time.monotonic() - began < 25.0
        with pytest.raises(RunStopped, match=rf"(?s)out of service.*{name}"):
            learner.logprobs(rollouts())
    finally:
        learner.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
