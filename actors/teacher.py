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
from model.config import Qwen3Config
from model.folder import read_config
from rlplatform import sharding
from rlplatform.config import ConfigError, ModelConfig, TeacherConfig
from rlplatform.flops import forward_flops
from rlplatform.roles import RunStopped
from rlplatform.servable import tokenizer_of
from rlplatform.types import Metrics, RolloutBatch, TeacherTargets, TrainBatch
from rlplatform.vocabulary import VocabularyError, check_vocabularies

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

MAX_SENDS = 3  # times rows are sent before the run stops


class TeacherWorker(FleetActor):
    """One frozen model.

    Args:
        model: how the student is loaded: the teacher's positions are its own, its dtype is ``config.dtype``.
    """

    def __init__(self, config: TeacherConfig, model: ModelConfig, num_ids: int) -> None:
        import torch

        from model.hf import load_policy
        from model.logprobs import TokenScorer

        self._config, self._num_ids = config, num_ids
        self._device = torch.device("cuda" if config.gpus_per_worker > 0 else "cpu")
        policy = load_policy(config.path, dtype=config.dtype, trust_remote_code=model.trust_remote_code)
        self._scorer = TokenScorer(policy).requires_grad_(False).to(self._device).eval()

    def num_rows(self) -> int:
        """Rows of its output matrix."""
        return int(self._scorer.head.weight.shape[0])

    def targets(
        self, batch: RolloutBatch, micro_batches: Sequence[Sequence[int]]
    ) -> list[tuple[np.ndarray, TeacherTargets]]:
        """For each micro-batch (rows of ``batch``): which of the batch's loss tokens these are, int64 [n] counted from
        0, and the teacher's distributions there."""
        import torch

        from actors.micro_batch import MicroBatch

        whole = TrainBatch(batch, old_logprobs=None, ref_logprobs=None)
        places = np.cumsum(batch.loss_mask) - 1
        results = []
        for row_ids in micro_batches:
            part = MicroBatch.of(whole, row_ids, self._device)
            with torch.no_grad():
                packed, _ = self._scorer(
                    *part.forward_arguments, chunk_tokens=self._config.logprob_chunk_tokens, of_logits=self._pack
                )
            where = sharding.token_index(batch.cu_seqlens, row_ids)
            results.append((places[where[batch.loss_mask[where]]], self._unpack(packed.cpu().numpy())))
        return results

    @property
    def _is_whole(self) -> bool:
        return not 0 < self._config.top_k < self._num_ids

    def _pack(self, logits: torch.Tensor, positions: slice) -> torch.Tensor:
        """One tensor a chunk: [n, V], or [n, 2 K + 1] in float64, which holds every id exactly."""
        import torch

        from rlplatform.divergences import top_k

        logits = logits[:, : self._num_ids]
        if self._is_whole:
            return torch.log_softmax(logits, dim=-1)
        top = top_k(logits, self._config.top_k, temperature=self._config.temperature)
        return torch.cat((top.logprobs.double(), top.ids.double(), top.rest[:, None].double()), dim=1)

    def _unpack(self, packed: np.ndarray) -> TeacherTargets:
        if self._is_whole:
            return TeacherTargets(packed, None, None, self._num_ids)
        k = self._config.top_k
        logprobs, ids, rest = packed[:, :k], packed[:, k : 2 * k], packed[:, 2 * k]
        return TeacherTargets(logprobs.astype(np.float32), ids.astype(np.int32), rest.astype(np.float32), self._num_ids)


class TeacherFleet:
    """``config.num_workers`` teachers. For one thread of the driver.

    Raises:
        ConfigError: teacher and student do not share their vocabulary.
    """

    def __init__(self, config: TeacherConfig, model: ModelConfig) -> None:
        self._config = config
        num_ids = shared_ids(config, model)
        use_gpu = config.gpus_per_worker > 0
        self._fleet: Fleet[TeacherWorker] = Fleet(
            TeacherWorker,
            "teacher",
            config.num_workers,
            cpus=config.cpus_per_worker,
            gpus=config.gpus_per_worker,
            actor_args=lambda worker: (config, model, num_ids),
            env=process_environment(use_gpu=use_gpu, num_threads=max(1, int(config.cpus_per_worker))),
            call_timeout_s=config.call_timeout_s,
            change="teacher.num_workers or teacher.cpus_per_worker",
        )
        self._flops_of = read_qwen3_config(config.path)
        self._tokens, self._seconds, self._flops = 0, 0.0, 0.0

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
            if len(shard):
                micro = sharding.micro_batches(lengths[shard], self._config.max_tokens_per_micro_batch)
                waiting.append([shard[part].tolist() for part in micro])
        found = self._collect(shared, waiting)
        self._tokens += len(rows.token_ids)
        self._seconds += time.perf_counter() - began
        if self._flops_of is not None:
            self._flops += scoring_flops(self._flops_of, rows)
        order = np.argsort(np.concatenate([mine for mine, _ in found]), kind="stable")
        parts = [targets for _, targets in found]
        whole = parts[0].ids is None
        joined = TeacherTargets(
            np.concatenate([part.logprobs for part in parts]),
            None if whole else np.concatenate([part.ids for part in parts if part.ids is not None]),
            None if whole else np.concatenate([part.rest for part in parts if part.rest is not None]),
            parts[0].num_ids,
        )
        return replace(batch, teacher=joined.take(order))

    def _collect(self, shared: Any, waiting: list[list[list[int]]]) -> list[tuple[np.ndarray, TeacherTargets]]:
        found: list[tuple[np.ndarray, TeacherTargets]] = []
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
        metrics = {"teacher/tokens": float(self._tokens), "teacher/seconds": self._seconds}
        if self._flops_of is not None:
            metrics["teacher/flops"] = self._flops
        self._tokens, self._seconds, self._flops = 0, 0.0, 0.0
        return metrics

    def close(self) -> None:
        """End every worker."""
        self._fleet.close()


def shared_ids(config: TeacherConfig, model: ModelConfig) -> int:
    """How many token ids teacher and student share; read from both folders, before any process starts.

    Raises:
        ConfigError: they do not speak of the same tokens.
    """
    trust = model.trust_remote_code
    student, teacher = (tokenizer_of(path, trust_remote_code=trust) for path in (model.path, config.path))
    rows = [int(read_config(path)["vocab_size"]) for path in (model.path, config.path)]
    try:
        return check_vocabularies(student, teacher, student_rows=rows[0], teacher_rows=rows[1])
    except VocabularyError as error:
        raise ConfigError(f"teacher.path {config.path}: {error}") from error


def scoring_flops(config: Qwen3Config, batch: RolloutBatch) -> int:
    """Of the forward passes over a batch; logits are computed for its loss tokens alone, whatever stands between."""
    scored = np.concatenate(([0], np.cumsum(batch.loss_mask)))[batch.cu_seqlens]
    return sum(
        forward_flops(config, int(length), num_prompt_tokens=int(length - loss_tokens))
        for length, loss_tokens in zip(np.diff(batch.cu_seqlens), np.diff(scored), strict=True)
    )


def read_qwen3_config(path: str) -> Qwen3Config | None:
    """The teacher's shape, for counting operations; None where it is no Qwen3."""
    try:
        return Qwen3Config.from_hf(read_config(path))
    except (KeyError, ValueError):
        return None
