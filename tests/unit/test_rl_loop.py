"""The real loop on ten-line fakes: what waits for what, refills, empty steps, lag, resume order."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

from rewards.base import Verdict
from rlplatform.config import AlgorithmConfig, RewardConfig, RLConfig
from rlplatform.data import ShuffledPrompts
from rlplatform.rl_loop import train
from rlplatform.roles import RunStopped
from rlplatform.types import (
    GenerationRequest,
    Metrics,
    Prompt,
    Rollout,
    RolloutBatch,
    RolloutGroup,
    ScoredGroup,
    TrainBatch,
)


class FakeGenerator:
    """Returns groups in a random order, a few at a time, stamped with the version it serves when they finish."""

    def __init__(self, seed: int = 0) -> None:
        self.version, self.queue, self.random, self.submitted = -1, [], random.Random(seed), []

    def submit(self, requests: Sequence[GenerationRequest]) -> None:
        self.queue += requests
        self.submitted += [(r.step, r.prompt.prompt_id) for r in requests]

    def poll(self, timeout_s: float) -> list[RolloutGroup]:
        self.random.shuffle(self.queue)
        done, self.queue = self.queue[:2], self.queue[2:]
        return [RolloutGroup(r.prompt, tuple(map(self.rollout, range(r.num_samples))), r.step, r.index) for r in done]

    def rollout(self, sample: int) -> Rollout:
        ids = np.array([sample + 1, 9], dtype=np.int32)
        ones = np.ones(2, dtype=bool)
        version = np.full(2, self.version, dtype=np.int32)
        return Rollout(ids, ones, np.full(2, -1.0, dtype=np.float32), version, "stop", "text")

    @property
    def num_pending(self) -> int:
        return len(self.queue)

    def metrics(self) -> Metrics:
        return {}


class FakeScorer:
    def __init__(self, reward: Any) -> None:
        self.reward, self.queue = reward, []

    def submit(self, groups: Sequence[RolloutGroup], *, step: int) -> None:
        self.queue += groups

    def poll(self, timeout_s: float) -> list[ScoredGroup]:
        done, self.queue = self.queue, []
        return [
            ScoredGroup(g, tuple(Verdict(self.reward(g, k), parts={"r": 1.0}) for k in range(len(g.rollouts))))
            for g in done
        ]

    @property
    def num_pending(self) -> int:
        return len(self.queue)

    def metrics(self) -> Metrics:
        return {}


class FakeLearner:
    def __init__(self, generator: FakeGenerator, version: int = 0) -> None:
        self.version, self.generator, self.batches = version, generator, []

    def add_logprobs(self, batch: RolloutBatch) -> TrainBatch:
        return TrainBatch(batch, None, None)

    def update(self, batch: TrainBatch) -> Metrics:
        self.batches.append(batch.batch)
        self.version += 1
        return {}

    def publish(self) -> Metrics:
        self.generator.version = self.version
        return {}


class FakeTracker:
    def __init__(self) -> None:
        self.steps: list[tuple[int, Metrics, dict[str, Any]]] = []

    def phase(self, name: str) -> Any:
        return nullcontext()

    def start(self, version: int) -> None:
        self.started = version

    def record(self, groups: Sequence[ScoredGroup], *, step: int) -> None:
        pass

    def end_step(self, step: int, metrics: Metrics, prompt_state: Mapping[str, Any]) -> None:
        self.steps.append((step, metrics, dict(prompt_state)))


def run(config: RLConfig, reward: Any, *, state: dict[str, Any] | None = None, version: int = 0) -> Any:
    prompts = [Prompt(f"p{i}", (), np.array([i + 1], dtype=np.int32), str(i)) for i in range(11)]
    stream = ShuffledPrompts(prompts, seed=config.seed, group_size=config.group_size)
    if state:
        stream.load_state_dict(state)
    generator = FakeGenerator()
    learner, tracker = FakeLearner(generator, version), FakeTracker()
    train(
        config=config,
        prompts=stream,
        generator=generator,
        scorer=FakeScorer(reward),
        learner=learner,
        tracker=tracker,  # type: ignore[arg-type]
    )
    return generator, learner, tracker


def config(**changes: Any) -> RLConfig:
    values = {"num_steps": 6, "prompts_per_step": 4, "group_size": 2, "reward": RewardConfig(functions={"r": 1.0})}
    return RLConfig(**(values | changes))


def varied(group: RolloutGroup, sample: int) -> float:
    return float(sample)


@pytest.mark.parametrize("max_lag", [0, 1, 3])
def test_no_token_is_older_than_max_lag_and_each_batch_is_one_steps_prompts(max_lag: int) -> None:
    generator, learner, tracker = run(config(max_lag=max_lag), varied)
    assert learner.version == 6
    assert [step for step, _, _ in tracker.steps] == [1, 2, 3, 4, 5, 6]
    for step, batch in enumerate(learner.batches):
        assert step - batch.oldest_version <= max_lag
        drawn = [prompt for s, prompt in generator.submitted if s == step]
        firsts = [f"p{batch.token_ids[start] - 1}" for start in batch.cu_seqlens[:-1][::2]]
        assert firsts == drawn  # in prompt order, whoever finished first
    if max_lag:
        assert max(metrics["lag/max"] for _, metrics, _ in tracker.steps) <= max_lag
        assert max(metrics["lag/max"] for _, metrics, _ in tracker.steps) > 0
    assert len(generator.submitted) == 6 * 4  # nothing was sampled beyond the last step


@pytest.mark.parametrize("max_lag", [0, 2])
def test_a_resumed_run_draws_the_prompts_of_the_uninterrupted_one(max_lag: int) -> None:
    whole, _, tracker = run(config(max_lag=max_lag), varied)
    step, _, state = tracker.steps[2]
    rest, _, _ = run(config(max_lag=max_lag), varied, state=state, version=step)
    assert rest.submitted == [entry for entry in whole.submitted if entry[0] >= step]


def test_zero_variance_groups_are_dropped_and_counted() -> None:
    _, learner, tracker = run(config(), lambda group, k: float(k) if group.index % 2 else 1.0)
    assert all(batch.num_rows == 4 for batch in learner.batches)
    assert tracker.steps[0][1]["groups/kept"] == 2
    assert tracker.steps[0][1]["groups/zero_variance"] == 2
    assert tracker.steps[0][1]["reward/mean"] == pytest.approx((0 + 1 + 0 + 1 + 1 + 1 + 1 + 1) / 8)
    assert tracker.steps[0][1]["reward/trained_mean"] == 0.5


def test_dynamic_sampling_refills_until_the_batch_is_full() -> None:
    algorithm = AlgorithmConfig(dynamic_sampling=True, max_sampling_rounds=5)
    _, learner, tracker = run(config(algorithm=algorithm), lambda group, k: float(k) if group.index % 2 else 1.0)
    assert all(batch.num_rows == 8 for batch in learner.batches)
    assert tracker.steps[0][1]["sampling/rounds"] > 1


def test_dynamic_sampling_at_the_cap_trains_on_what_is_there_or_stops() -> None:
    def rare(group: RolloutGroup, k: int) -> float:
        return float(k) if group.index == 0 else 1.0

    algorithm = AlgorithmConfig(dynamic_sampling=True, max_sampling_rounds=2)
    _, learner, _ = run(config(algorithm=algorithm), rare)
    assert [batch.num_rows for batch in learner.batches] == [2] * 6
    with pytest.raises(RunStopped, match="1 of 4 groups usable after 3 rounds"):
        run(
            config(algorithm=AlgorithmConfig(dynamic_sampling=True, max_sampling_rounds=2, at_sampling_cap="stop")),
            rare,
        )


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_dataset_whose_rewards_are_all_equal_ends_with_the_reason(dynamic: bool) -> None:
    algorithm = AlgorithmConfig(dynamic_sampling=dynamic)
    with pytest.raises(RunStopped, match="no group to train on in 3 batches in a row"):
        run(config(algorithm=algorithm), lambda group, k: 1.0)


def test_every_completion_of_a_step_reaches_the_loss_with_its_groups_advantage() -> None:
    _, learner, _ = run(config(num_steps=1, algorithm=AlgorithmConfig(advantage="group_mean")), varied)
    [batch] = learner.batches
    assert batch.advantages[batch.loss_mask].tolist() == [-0.5, -0.5, 0.5, 0.5] * 4
    assert batch.num_loss_tokens == 16
