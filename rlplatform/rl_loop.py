"""THE loop. What waits for what:

    prompts --> generator ==groups==> scorer ==scored groups==> Batches --> learner --publish--> generator
                (max_lag + 1 batches in flight; each group is scored the moment it is finished)

``max_lag = 0`` is strictly on-policy: a batch is sampled by the version that it trains. With ``max_lag = k`` the
batches of the next k steps are generating while the learner works, so a token is at most k versions old.
"""

from __future__ import annotations

from typing import Any

from rewards.composition import score_range
from rlplatform.batching import drop_zero_variance, make_batch
from rlplatform.config import RLConfig
from rlplatform.roles import Generator, Learner, PromptStream, RunStopped, Scorer, Tracker
from rlplatform.rollout_metrics import rollout_metrics
from rlplatform.types import Metrics, ScoredGroup

POLL_S = 0.5


def train(
    *, config: RLConfig, prompts: PromptStream, generator: Generator, scorer: Scorer, learner: Learner, tracker: Tracker
) -> None:
    """Run until ``learner.version`` is ``config.num_steps``.

    Raises:
        RunStopped: the run ends on purpose, with the reason (parity, error rate, empty batches, skipped steps).
        StallError: a deadline passed; the message names stage, actor and prompt.
    """
    batches = Batches(config, prompts, generator, scorer)
    with tracker.phase("publish"):
        learner.publish()  # before the first rollout, also after a resume: engines serve learner.version
    tracker.start(learner.version)
    while learner.version < config.num_steps:
        step = learner.version
        with tracker.phase("generate"):
            kept, scored, metrics = batches.next(step)
        tracker.record(scored, step=step)
        with tracker.phase("train"):
            batch = make_batch(kept, advantage=config.algorithm.advantage, **config.shaping)
            metrics |= rollout_metrics(scored, kept, version=step)
            metrics |= learner.update(learner.add_logprobs(batch))
        with tracker.phase("publish"):
            metrics |= learner.publish()
        tracker.end_step(learner.version, metrics | generator.metrics() | scorer.metrics(), batches.state(step + 1))


class Batches:
    """Keeps ``max_lag + 1`` batches of prompts in flight and hands out one usable batch a step."""

    def __init__(self, config: RLConfig, prompts: PromptStream, generator: Generator, scorer: Scorer) -> None:
        self._config, self._prompts, self._generator, self._scorer = config, prompts, generator, scorer
        self._score_range = score_range(config.reward.parts)
        self._expected: dict[int, int] = {}  # step -> groups submitted for it
        self._arrived: dict[int, list[ScoredGroup]] = {}  # step -> groups that came back scored
        self._states: dict[int, dict[str, Any]] = {}  # step -> the prompt stream before its prompts were drawn

    def state(self, step: int) -> dict[str, Any]:
        """The prompt stream as it was, or is, before the prompts of ``step``: what a checkpoint must hold."""
        return self._states.get(step) or self._prompts.state_dict()

    def next(self, step: int) -> tuple[list[ScoredGroup], list[ScoredGroup], Metrics]:
        """(groups to train on, all scored groups, counts) of a step, in prompt order."""
        config, algorithm = self._config, self._config.algorithm
        self._states = {key: value for key, value in self._states.items() if key >= step}
        for ahead in range(step, min(step + config.max_lag + 1, config.num_steps)):
            if ahead not in self._expected:
                self._submit(config.prompts_per_step, ahead)
        rounds, empty = 1, 0
        while True:
            scored = self._wait(step)
            kept, counts = drop_zero_variance(
                scored,
                drop=algorithm.drop_zero_variance and algorithm.loss != "distillation",  # it reads no reward
                score_range=self._score_range,
                **config.shaping,
            )
            missing = config.prompts_per_step - len(kept) if algorithm.dynamic_sampling or not kept else 0
            if missing and algorithm.dynamic_sampling and rounds <= algorithm.max_sampling_rounds:
                rounds += 1
            elif missing and algorithm.dynamic_sampling and algorithm.at_sampling_cap == "stop":
                raise RunStopped(
                    f"step {step}: {len(kept)} of {config.prompts_per_step} groups usable after {rounds} rounds of "
                    f"dynamic sampling (algorithm.at_sampling_cap=stop): {counts}"
                )
            elif not kept:
                empty += 1
                if empty >= algorithm.max_empty_steps:
                    raise RunStopped(
                        f"step {step}: no group to train on in {empty} batches in a row "
                        f"(algorithm.max_empty_steps): {counts}. All rewards of a group equal? Choose easier or harder "
                        "prompts, a larger group_size, or look at them with `rlplatform inspect`"
                    )
            else:
                break
            self._submit(missing, step)
        self._expected.pop(step)
        self._arrived.pop(step, None)
        return kept, scored, {**counts, "sampling/rounds": float(rounds + empty)}

    def _submit(self, num_prompts: int, step: int) -> None:
        self._states.setdefault(step, self._prompts.state_dict())
        self._generator.submit(self._prompts.next_requests(num_prompts, step=step))
        self._expected[step] = self._expected.get(step, 0) + num_prompts

    def _wait(self, step: int) -> list[ScoredGroup]:
        while len(self._arrived.get(step, [])) < self._expected[step]:
            generating = self._generator.num_pending > 0
            finished = self._generator.poll(POLL_S if generating and not self._scorer.num_pending else 0.02)
            if finished:
                self._scorer.submit(finished, step=step)
            for scored in self._scorer.poll(0.0 if generating else POLL_S):
                self._arrived.setdefault(scored.group.step, []).append(scored)
        return sorted(self._arrived[step], key=lambda scored: scored.group.index)
