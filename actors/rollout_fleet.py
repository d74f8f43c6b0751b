"""The driver's side of generation: requests to the least loaded worker, finished groups back, lost ones sampled again.

    submit ──► queue ──► worker 0: two `pump` calls in flight, so that the engine never waits for the driver
                    └──► worker 1: ...                                     │
    poll   ◄── finished groups ◄───────────────────────────────────────────┘

A request carries its own seed, so what is sampled depends neither on the number of workers nor on who got it.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from actors import logs
from actors.episodes import budget_of, play_of
from actors.fleet import ActorError, Err, Fleet
from actors.rollout_worker import Job, PumpReply, RolloutWorker
from actors.vllm_arguments import engine_env
from rlplatform.config import EnvironmentConfig, ModelConfig, RolloutConfig
from rlplatform.roles import RunStopped
from rlplatform.servable import check_servable
from rlplatform.types import GenerationRequest, Metrics, RolloutGroup, SamplingParams

log = logging.getLogger(__name__)

PUMP_BUDGET_S = 0.2  # a publish waits at most for two of these
PUMPS_IN_FLIGHT = 2


@dataclass
class _Load:
    """What the driver knows of one incarnation of a worker."""

    jobs: dict[int, Job] = field(default_factory=dict)  # sent and not yet returned
    pumps: dict[int, int] = field(default_factory=dict)  # call in flight -> sequences it brings
    num_sequences: int = 0  # in the engine at its last reply, plus those sent since


@dataclass
class _Totals:
    num_tokens: int = 0
    busy_seconds: float = 0.0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0


class RolloutFleet:
    """``rlplatform.roles.Generator`` over a fleet of vLLM engines.

    Args:
        model_path: a Hugging Face folder or hub id; the engines start from its weights.
        sampling: used where ``submit`` and ``generate`` are given none.
        max_model_len: tokens, prompt and completion together.
        seed: of the engines themselves; requests carry their own.
        engine_len: tokens the engines have room for, where a later stage needs more than ``max_model_len``.
        environment: that answers the policy between its turns, of all prompts or of those whose column names one.

    Raises:
        ConfigError: the engine cannot compute this model, or not at this length.
        RunStopped: the cluster has no room.
        ActorError: an engine could not start.
    """

    def __init__(
        self,
        model_path: str,
        model: ModelConfig,
        rollout: RolloutConfig,
        sampling: SamplingParams,
        max_model_len: int,
        seed: int,
        worker_class: type[RolloutWorker] = RolloutWorker,
        environment: EnvironmentConfig | None = None,
        engine_len: int = 0,
    ) -> None:
        check_servable(model_path, model, max_model_len)
        self.workers: Fleet[RolloutWorker] = Fleet(
            worker_class,
            "rollout",
            num_workers=rollout.num_workers,
            cpus=rollout.cpus_per_worker,
            gpus=rollout.gpus_per_worker,
            actor_args=lambda worker: (
                model_path,
                model,
                rollout,
                max_model_len,
                rollout.seed + seed + worker,
                engine_len,
            ),
            env=engine_env(rollout),
            call_timeout_s=rollout.call_timeout_s,
            start_timeout_s=rollout.start_timeout_s,
            max_restarts=rollout.max_restarts,
            on_restart=self._restarted,
            change="rollout.num_workers, rollout.cpus_per_worker or rollout.gpus_per_worker",
        )
        self.ranks_per_worker = rollout.tensor_parallel_size
        self.engine_len = max(engine_len, max_model_len)
        self._max_num_seqs = rollout.max_num_seqs
        self._begun: tuple[Any, ...] | None = None  # what a restarted worker must begin: it comes up as first started
        self._set_up(model_path, model, sampling, max_model_len, environment)

    def _set_up(
        self,
        model_path: str,
        model: ModelConfig,
        sampling: SamplingParams,
        max_model_len: int,
        environment: EnvironmentConfig | None,
    ) -> None:
        self.model_path, self.model, self.sampling, self.max_model_len = model_path, model, sampling, max_model_len
        if not sampling.neutral:
            log.warning("sampling is not neutral (%s): training sees the policy through it", sampling)
        self.environment = environment or EnvironmentConfig()
        self.republish: Callable[[int], None] | None = None  # set by WeightSync: current weights to one worker
        self._queue: deque[Job] = deque()
        self._loads = {worker: _Load() for worker in self.workers.live_workers}
        self._pumps: dict[int, _Load] = {}  # call in flight -> whose
        self._submitted_at: dict[int, float] = {}  # ticket -> time; of jobs not yet finished
        self._done: dict[int, RolloutGroup] = {}  # by ticket, not yet returned
        self._next_ticket = 0
        self._num_requeued = 0
        self._totals = _Totals()

    def begin(
        self,
        model_path: str,
        model: ModelConfig,
        sampling: SamplingParams,
        max_model_len: int,
        environment: EnvironmentConfig | None = None,
    ) -> None:
        """Another stage on the same engines: what was asked for is dropped, everything counts anew.

        The engines refuse to sample until the model's weights were published to them (``EnginePool``). The arguments
        are those of the class; whether they fit these engines is the caller's business.

        Raises:
            ConfigError: the engine cannot compute this model, or not at this length.
            ActorError, RunStopped: a worker failed.
        """
        check_servable(model_path, model, max_model_len)
        while self._pumps:
            for reply in self.workers.ready(1.0):
                self._pumps.pop(reply.call, None)
        self._set_up(model_path, model, sampling, max_model_len, environment)
        self.workers.count_anew()
        self._begun = (model_path, model, max_model_len, os.environ.get(logs.ENV, ""))
        for worker, result in self.workers.call_each(
            self.workers.live_workers, RolloutWorker.begin, *self._begun
        ).items():
            if isinstance(result, Err) and not result.lost:
                raise ActorError(f"{self.workers.name(worker)}: {result}")

    def wait_for_all(self) -> None:
        """Wait until lost workers are back and up to date; what the others finish meanwhile is for ``poll``.

        Raises:
            RunStopped: one did not come back, or was lost too often.
        """
        while len(self.workers.live_workers) < self.workers.num_workers:
            self._advance(1.0)

    # --- roles.Generator ----------------------------------------------------------------------------------------

    def submit(self, requests: Sequence[GenerationRequest], sampling: SamplingParams | None = None) -> None:
        """Queue requests; their groups come back through ``poll``.

        Raises:
            ValueError: a prompt that does not fit, or several greedy samples of one prompt.
        """
        self._submit(requests, sampling or self.sampling)

    def poll(self, timeout_s: float) -> list[RolloutGroup]:
        """Groups that finished, each once. Waits up to ``timeout_s`` for the first, not at all with nothing pending.

        Raises:
            RunStopped: a worker was lost too often.
        """
        deadline = time.monotonic() + timeout_s
        self._advance(0.0)
        while not self._done and self._submitted_at and (left := deadline - time.monotonic()) > 0:
            self._advance(left)
        groups = list(self._done.values())
        self._done.clear()
        return groups

    @property
    def num_pending(self) -> int:
        """Groups submitted and not yet returned by ``poll``."""
        return len(self._submitted_at) + len(self._done)

    def metrics(self) -> Metrics:
        """Since the last call; restarts and requeued groups since the start."""
        totals, self._totals = self._totals, _Totals()
        metrics: Metrics = {
            "generate/tokens": float(totals.num_tokens),
            "generate/busy_seconds": totals.busy_seconds / len(self._loads),
            "generate/restarts": float(self.workers.num_restarts),
            "generate/requeued": float(self._num_requeued),
        }
        if totals.busy_seconds > 0:
            metrics["generate/tokens_per_s"] = totals.num_tokens / (totals.busy_seconds / len(self._loads))
        if totals.num_prompt_tokens:
            metrics["generate/prefix_hit_share"] = totals.num_cached_tokens / totals.num_prompt_tokens
        return metrics

    # --- beside the loop ----------------------------------------------------------------------------------------

    def generate(
        self, requests: Sequence[GenerationRequest], sampling: SamplingParams | None = None
    ) -> list[RolloutGroup]:
        """Sample and wait: the groups of exactly these requests, in their order. Others in flight go on."""
        tickets = self._submit(requests, sampling or self.sampling)
        while any(ticket not in self._done for ticket in tickets):
            self._advance(1.0)
        return [self._done.pop(ticket) for ticket in tickets]

    def logprobs(self, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The engines' log-probabilities of given tokens at temperature 1, float32 [L] a row, NaN at place 0.

        Raises:
            ActorError: a worker failed or was lost meanwhile.
        """
        workers = self.workers.live_workers
        shares = [list(range(i, len(rows), len(workers))) for i in range(len(workers))]
        calls = [
            (worker, share, self.workers.call_async(worker, RolloutWorker.logprobs, [rows[i] for i in share]))
            for worker, share in zip(workers, shares, strict=True)
            if share
        ]
        results: dict[int, np.ndarray] = {}
        for worker, share, call in calls:
            for place, values in zip(share, self._answer(worker, call), strict=True):
                results[place] = values
        return [results[i] for i in range(len(rows))]

    def effective_sampling(self, sampling: SamplingParams | None = None) -> dict[str, Any]:
        """What the engine really uses, whatever the model folder's generation_config says."""
        return self.workers.call(
            self.workers.live_workers[0], RolloutWorker.effective_sampling, sampling or self.sampling
        )

    def close(self) -> None:
        self.workers.close()

    # --- inside -------------------------------------------------------------------------------------------------

    def _submit(self, requests: Sequence[GenerationRequest], sampling: SamplingParams) -> list[int]:
        for request in requests:
            self._check(request, sampling)
        tickets = list(range(self._next_ticket, self._next_ticket + len(requests)))
        self._next_ticket += len(requests)
        now = time.monotonic()
        for ticket, request in zip(tickets, requests, strict=True):
            self._queue.append(Job(ticket, request, sampling, play_of(request.prompt, self.environment)))
            self._submitted_at[ticket] = now
        self._dispatch()
        return tickets

    def _check(self, request: GenerationRequest, sampling: SamplingParams) -> None:
        name = request.prompt.prompt_id
        budget_of(request, sampling)
        play_of(request.prompt, self.environment)
        length = len(request.prompt.token_ids) + sampling.max_new_tokens
        if length > self.max_model_len:
            raise ValueError(
                f"prompt {name}: {len(request.prompt.token_ids)} tokens + max_new_tokens={sampling.max_new_tokens} "
                f"exceed max_model_len={self.max_model_len}; drop the prompt or raise model.max_model_len"
            )
        if request.num_samples > self._max_num_seqs:
            raise ValueError(
                f"prompt {name}: {request.num_samples} samples exceed rollout.max_num_seqs={self._max_num_seqs}"
            )
        if sampling.temperature == 0 and request.num_samples > 1:
            raise ValueError(f"prompt {name}: {request.num_samples} greedy samples would be equal; expected 1")

    def _dispatch(self) -> None:
        """Queued jobs to the least loaded workers; two pump calls to every worker that has something to do."""
        ready = {w: self._loads[w] for w in self.workers.live_workers if len(self._loads[w].pumps) < PUMPS_IN_FLIGHT}
        new: dict[int, list[Job]] = {worker: [] for worker in ready}
        while self._queue and ready:
            worker = min(ready, key=lambda w: (ready[w].num_sequences, w))
            samples = self._queue[0].request.num_samples
            if ready[worker].num_sequences + samples > self._max_num_seqs:
                break
            job = self._queue.popleft()
            new[worker].append(job)
            ready[worker].num_sequences += samples
            ready[worker].jobs[job.ticket] = job
        for worker, load in ready.items():
            jobs = new[worker]
            while jobs or (load.jobs and len(load.pumps) < PUMPS_IN_FLIGHT):
                call = self.workers.call_async(worker, RolloutWorker.pump, jobs, PUMP_BUDGET_S)
                self._pumps[call] = load
                load.pumps[call] = sum(job.request.num_samples for job in jobs)
                jobs = []

    def _advance(self, timeout_s: float) -> None:
        """Send what can be sent, wait for replies up to ``timeout_s``, take them in, and send again."""
        self._dispatch()
        for reply in self.workers.ready(timeout_s):
            load = self._pumps.pop(reply.call)
            del load.pumps[reply.call]
            if isinstance(reply.result, Err):
                self._failed(reply.worker, load, reply.result)
            else:
                self._take(load, reply.result.value)
        self._dispatch()

    def _take(self, load: _Load, reply: PumpReply) -> None:
        now = time.monotonic()
        for finished in reply.finished:
            job = load.jobs.pop(finished.ticket)
            request = job.request
            self._done[finished.ticket] = RolloutGroup(
                prompt=finished.prompt or request.prompt,
                rollouts=finished.rollouts,
                step=request.step,
                index=request.index,
                num_rejected=finished.num_rejected,
                seconds=now - self._submitted_at.pop(finished.ticket),
            )
            self._totals.num_tokens += sum(int(rollout.loss_mask.sum()) for rollout in finished.rollouts)
        load.num_sequences = reply.num_unfinished + sum(load.pumps.values())
        self._totals.busy_seconds += reply.busy_seconds
        self._totals.num_prompt_tokens += reply.num_prompt_tokens
        self._totals.num_cached_tokens += reply.num_cached_tokens

    def _failed(self, worker: int, load: _Load, error: Err) -> None:
        """A lost worker's groups are sampled again; an exception inside the engine ends its process."""
        if not error.lost:
            if "out of service" in error.message:
                raise RunStopped(f"{self.workers.name(worker)}: {error.message}")
            self.workers.restart(worker, f"pump raised {error}")
        self._requeue(worker, load)

    def _requeue(self, worker: int, load: _Load) -> None:
        if load.jobs:
            names = ", ".join(job.request.prompt.prompt_id for job in list(load.jobs.values())[:8])
            log.warning("%d groups of %s are sampled again: %s", len(load.jobs), self.workers.name(worker), names)
        self._num_requeued += len(load.jobs)
        self._queue.extendleft(reversed(load.jobs.values()))
        load.jobs.clear()
        load.num_sequences = 0

    def _answer(self, worker: int, call: int) -> Any:
        result = self.workers.wait(call)
        if isinstance(result, Err):
            raise ActorError(f"{self.workers.name(worker)}: {result}")
        return result.value

    def _restarted(self, worker: int) -> None:
        """A restarted engine holds the weights of ``model_path``: give it the current ones before it gets work."""
        self._requeue(worker, self._loads[worker])
        self._loads[worker] = _Load()
        if self._begun is not None:
            self.workers.call(worker, RolloutWorker.begin, *self._begun)
        if self.republish is not None:
            self.republish(worker)
