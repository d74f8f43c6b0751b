"""What the loop needs of the processes around it. ``actors/`` implements these; unit tests use ten-line fakes.

Every call returns within a bounded time: a ``poll`` after ``timeout_s`` at the latest, the others within the deadlines
of the implementation, which raises ``StallError`` naming stage, actor and prompt when something hangs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from rlplatform.types import GenerationRequest, Metrics, RolloutBatch, RolloutGroup, ScoredGroup, TrainBatch


class RunStopped(RuntimeError):
    """The run ends on purpose, with the reason in the message (parity gate, error rate, empty batches, ...)."""


class StallError(RuntimeError):
    """Something passed its deadline; the message names stage, actor and prompt."""


class PromptStream(Protocol):
    """An endless, seeded, resumable order of prompts."""

    def next_requests(self, num_prompts: int, *, step: int) -> list[GenerationRequest]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Generator(Protocol):
    """The rollout fleet. A group comes back the moment its last sample is finished."""

    def submit(self, requests: Sequence[GenerationRequest]) -> None: ...

    def poll(self, timeout_s: float) -> list[RolloutGroup]: ...

    @property
    def num_pending(self) -> int: ...  # groups submitted and not yet returned by poll

    def metrics(self) -> Metrics: ...  # since the last call: tokens, busy seconds, restarts


class Scorer(Protocol):
    """The reward service."""

    def submit(self, groups: Sequence[RolloutGroup], *, step: int) -> None: ...

    def poll(self, timeout_s: float) -> list[ScoredGroup]: ...

    @property
    def num_pending(self) -> int: ...

    def metrics(self) -> Metrics: ...


class Learner(Protocol):
    """The trained weights. ``version`` counts updates; a publish makes the generator serve it."""

    @property
    def version(self) -> int: ...

    def add_logprobs(self, batch: RolloutBatch) -> TrainBatch: ...

    def update(self, batch: TrainBatch) -> Metrics: ...  # updates_per_step optimiser steps, then version += 1

    def publish(self) -> Metrics: ...  # pause, send, reset prefix cache, verify, resume

    def save(self, path: str) -> None: ...  # model, optimiser, scheduler, step, RNG into an existing folder

    def load(self, path: str) -> None: ...

    def export(self, path: str) -> None: ...  # a Hugging Face folder: weights, config, tokenizer, template


class Tracker(Protocol):
    """Where metrics and rollouts go. Also owns what happens between steps: evaluation, checkpoints, progress."""

    def phase(self, name: str) -> Any: ...  # context manager: times a phase and shows it

    def record(self, groups: Sequence[ScoredGroup], *, step: int) -> None: ...

    def start(self, version: int) -> None: ...  # after the first publish: parity gate, evaluation of the first policy

    def end_step(self, step: int, metrics: Metrics, prompt_state: Mapping[str, Any]) -> None: ...
