"""Frozen teachers for distillation: what they think of every token that the student sampled.

    LearnerGroup.add_logprobs ──► TeacherFleet.add_targets ──► TeacherWorker 0 .. n-1, each with some of the rows
      TrainBatch + teacher_logprobs [N, K]       ◄──────────  the K most likely tokens of each loss token

A teacher sees the student's tokens (on-policy distillation: Qwen3 report section 4.5; GKD, arXiv 2306.13649) and
samples nothing. A worker that dies is restarted and its rows are sent again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from actors.fleet import Err, Fleet, FleetActor
from actors.training_process import process_environment
from rlplatform import sharding
from rlplatform.config import ModelConfig, TeacherConfig
from rlplatform.roles import RunStopped
from rlplatform.types import Metrics, RolloutBatch, TrainBatch

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

MAX_SENDS = 3  # times rows are sent before the run stops


class TeacherWorker(FleetActor):
    """One frozen model.

    Args:
        model: how the student is loaded: the teacher's positions are its own, its dtype is ``config.dtype``.
    """

    def __init__(self, config: TeacherConfig, model: ModelConfig) -> None:
        import torch

        from model.hf import load_policy
        from model.logprobs import TokenScorer

        self._config = config
        self._device = torch.device("cuda" if config.gpus_per_worker > 0 else "cpu")
        policy = load_policy(config.path, dtype=config.dtype, trust_remote_code=model.trust_remote_code)
        self._scorer = TokenScorer(policy).requires_grad_(False).to(self._device).eval()

    def targets(
        self, batch: RolloutBatch, micro_batches: Sequence[Sequence[int]]
    ) -> list[tuple[np.ndarray, np.ndarray | None, np.ndarray]]:
        """For each micro-batch (rows of ``batch``): which of the batch's loss tokens these are, int64 [n], counted from
        0; the token ids int32 [n, K] (None: the whole vocabulary, in order); their log-probabilities float32 [n, K] at
        ``teacher.temperature``."""
        import torch

        from actors.learner_worker import MicroBatch

        whole = TrainBatch(batch, old_logprobs=None, ref_logprobs=None)
        places = np.cumsum(batch.loss_mask) - 1
        results = []
        for row_ids in micro_batches:
            part = MicroBatch.of(whole, row_ids, self._device)
            with torch.no_grad():
                packed, _ = self._scorer(
                    *part.forward_arguments, chunk_tokens=self._config.logprob_chunk_tokens, of_logits=self._top
                )
            where = sharding.token_index(batch.cu_seqlens, row_ids)
            mine = places[where[batch.loss_mask[where]]]
            results.append((mine, *self._unpacked(packed)))
        return results

    def _top(self, logits: torch.Tensor, positions: slice) -> torch.Tensor:
        import torch

        log_p = torch.log_softmax(logits / self._config.temperature, dim=-1)
        if not 0 < self._config.top_k < log_p.shape[-1]:
            return log_p
        values, ids = log_p.topk(self._config.top_k, dim=-1)
        return torch.stack((values.double(), ids.double()), dim=1)  # one tensor; float64 holds every id exactly

    def _unpacked(self, packed: torch.Tensor) -> tuple[np.ndarray | None, np.ndarray]:
        if packed.ndim == 2:
            return None, packed.cpu().numpy()
        values, ids = packed.cpu().numpy().swapaxes(0, 1)
        return ids.astype(np.int32), values.astype(np.float32)


class TeacherFleet:
    """``config.num_workers`` teachers. For one thread of the driver.

    Raises:
        ConfigError: teacher and student do not share their vocabulary.
    """

    def __init__(self, config: TeacherConfig, model: ModelConfig) -> None:
        self._config = config
        use_gpu = config.gpus_per_worker > 0
        self._fleet: Fleet[TeacherWorker] = Fleet(
            TeacherWorker,
            "teacher",
            config.num_workers,
            cpus=config.cpus_per_worker,
            gpus=config.gpus_per_worker,
            actor_args=lambda worker: (config, model),
            env=process_environment(use_gpu=use_gpu, num_threads=max(1, int(config.cpus_per_worker))),
            call_timeout_s=config.call_timeout_s,
            change="teacher.num_workers or teacher.cpus_per_worker",
        )
        self._tokens, self._seconds = 0, 0.0

    def add_targets(self, batch: TrainBatch) -> TrainBatch:
        """The batch with what the teacher makes of its loss tokens.

        Raises:
            RunStopped: a worker failed, or rows lost their worker too often.
        """
        began = time.perf_counter()
        rows = batch.batch
        lengths = np.diff(rows.cu_seqlens)
        shared = ray.put(rows)
        waiting = []
        for shard in sharding.shard_rows(lengths, self._config.num_workers):
            parts = sharding.micro_batches(lengths[shard], self._config.max_tokens_per_micro_batch)
            if len(shard):
                waiting.append([shard[part].tolist() for part in parts])
        found = self._collect(shared, waiting)
        self._tokens += len(rows.token_ids)
        self._seconds += time.perf_counter() - began
        order = np.argsort(np.concatenate([mine for mine, _, _ in found]), kind="stable")
        logprobs = np.concatenate([values for _, _, values in found])[order]
        ids = [part for _, part, _ in found if part is not None]
        return replace(batch, teacher_logprobs=logprobs, teacher_ids=np.concatenate(ids)[order] if ids else None)

    def _collect(self, shared: Any, waiting: list[list[list[int]]]) -> list[tuple[np.ndarray, Any, np.ndarray]]:
        found: list[tuple[np.ndarray, Any, np.ndarray]] = []
        jobs: dict[int, tuple[list[list[int]], int]] = {}  # call -> micro-batches, times sent
        busy: set[int] = set()
        queue = [(parts, 0) for parts in waiting]
        while queue or jobs:
            for worker in [worker for worker in self._fleet.live_workers if worker not in busy][: len(queue)]:
                parts, sends = queue.pop(0)
                jobs[self._fleet.call_async(worker, TeacherWorker.targets, shared, parts)] = (parts, sends + 1)
                busy.add(worker)
            for reply in self._fleet.ready(1.0):
                parts, sends = jobs.pop(reply.call)
                busy.discard(reply.worker)
                if not isinstance(reply.result, Err):
                    found += reply.result.value
                elif reply.result.lost and sends < MAX_SENDS:
                    log.warning("teacher-%d was lost (%s); its rows are sent again", reply.worker, reply.result)
                    queue.append((parts, sends))
                else:
                    raise RunStopped(f"{self._fleet.name(reply.worker)}: {reply.result}")
        return found

    def metrics(self) -> Metrics:
        """Since the last call."""
        tokens, seconds = self._tokens, self._seconds
        self._tokens, self._seconds = 0, 0.0
        return {"teacher/tokens": float(tokens), "teacher/seconds": seconds}

    def close(self) -> None:
        """End every worker."""
        self._fleet.close()
