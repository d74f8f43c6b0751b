"""The learner as the loop sees it: log-probabilities, updates and weights of a group of DeepSpeed ranks.

    driver (LearnerGroup)                                   ranks (LearnerWorker), one process each
    rows -> minibatches -> ranks -> micro-batches
      plan + batch (put once) ──────────────────────────►   forward, loss share, backward   ◄─► gradients, summed
                              ◄──────────────────────────   sums of the metrics, lr, gradient norm
    gather_weights            ◄──────────────────────────   rank 0: one flat array in the object store

A rank that dies, raises or passes its deadline ends the run with an error that names it: a learner is restarted from a
checkpoint, not in the middle of a step.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np
import ray

from actors.actor_process import is_local, kill_pid
from actors.engine import effective_zero_stage, read_checkpoint
from actors.fleet import Err, Fleet
from actors.learner_worker import LearnerWorker
from actors.logs import environment as log_environment
from actors.training_process import process_environment
from actors.update_plan import plan_update, split_rows
from actors.update_report import UpdateReport, update_metrics
from model.hf import load_policy
from model.lora import check_targets
from rlplatform import batching
from rlplatform.config import AlgorithmConfig, ConfigError, RLConfig
from rlplatform.entropy import EntropyController
from rlplatform.roles import RunStopped
from rlplatform.types import Metrics, RolloutBatch, TrainBatch

log = logging.getLogger(__name__)

STATE_FILE = "learner.json"
CAUSE_GRACE_S = 5.0  # after one rank failed, how long the others may tell what they saw


class Publisher(Protocol):
    """What carries weights to the engines; ``actors.weight_sync.WeightSync`` is one."""

    def publish(self, learner: Any, version: int) -> Metrics: ...


class Teacher(Protocol):
    """Whose distributions distillation follows; ``actors.teacher.TeacherFleet`` is one."""

    def add_targets(self, batch: TrainBatch) -> TrainBatch: ...

    def metrics(self) -> Metrics: ...


class LearnerGroup:
    """``rlplatform.roles.Learner`` over ``learner.num_workers`` ranks.

    Args:
        model_path: a Hugging Face folder or hub id; also the KL reference, whatever a checkpoint later brings.
        sync: what ``publish`` delegates to; ``attach`` sets it later.
        dump_dir: where the batch of an update with a non-finite gradient is written, as npz; "" = nowhere.

    Raises:
        ConfigError: an algorithm that cannot be learned from these samples.
        RunStopped: a rank could not start.
    """

    def __init__(
        self, config: RLConfig, model_path: str, *, sync: Publisher | None = None, dump_dir: str | Path = ""
    ) -> None:
        _check(config, model_path)
        self.config, self._sync = config, sync
        self._teacher: Teacher | None = None
        self._dump_dir = Path(dump_dir) if dump_dir else None
        self._version = 0
        self._entropy = _entropy_controller(config.algorithm)
        self._failure = ""
        learner = config.learner
        use_gpu = learner.gpus_per_worker > 0
        threads = max(1, int(learner.cpus_per_worker))
        self.workers = Fleet(
            LearnerWorker,
            "learner",
            learner.num_workers,
            cpus=learner.cpus_per_worker,
            gpus=learner.gpus_per_worker,
            actor_args=lambda rank: (rank, learner.num_workers),
            env={**process_environment(use_gpu=use_gpu, num_threads=threads), **log_environment()},
            call_timeout_s=learner.call_timeout_s,
            start_timeout_s=learner.start_timeout_s,
            max_restarts=0,
            change="learner.num_workers or learner.cpus_per_worker",
        )
        try:
            self._address = self.workers.call(0, LearnerWorker.free_address)
            self.restart(config, model_path)
        except BaseException:
            self.close()
            raise

    def restart(self, config: RLConfig, model_path: str) -> None:
        """Begin anew at version 0 with another configuration or model, in the same processes (which saves seconds)."""
        _check(config, model_path)
        if config.learner.num_workers != self.config.learner.num_workers:
            raise ConfigError(
                f"learner.num_workers: expected the {self.config.learner.num_workers} of the running ranks, "
                f"got {config.learner.num_workers}"
            )
        self.config, self._version = config, 0
        self._entropy = _entropy_controller(config.algorithm)
        timeout_s = config.learner.start_timeout_s
        self._on_all(LearnerWorker.start, config, model_path, *self._address, timeout_s=timeout_s)

    @property
    def failure(self) -> str:
        """Why the group is out of service; "" while it is not. It stays so: start another."""
        return self._failure

    @property
    def entropy_coef(self) -> float:
        """Of the entropy bonus in the next update: the controller's, where ``algorithm.entropy_target`` is set."""
        return self._entropy.alpha if self._entropy is not None else self.config.algorithm.entropy_coef

    @property
    def version(self) -> int:
        """Updates so far; what the rollout workers serve after ``publish``."""
        return self._version

    def attach(self, sync: Publisher) -> None:
        """Set what ``publish`` delegates to."""
        self._sync = sync

    def attach_teacher(self, teacher: Teacher) -> None:
        """Set whose distributions ``add_logprobs`` adds."""
        self._teacher = teacher

    # --- the loop's verbs ---------------------------------------------------------------------------------------

    def logprobs(self, batch: RolloutBatch, *, reference: bool = False) -> np.ndarray:
        """float32 [T]: the policy's (or the reference's) log-probability of every loss token, 0 elsewhere.

        Logits are divided by ``sampling.temperature``: the distribution that was sampled from.
        """
        plan = split_rows(batch, np.arange(batch.num_rows), self.config.learner)
        result = np.zeros(len(batch.token_ids), dtype=np.float32)
        for micro_batches in self._on_all(LearnerWorker.logprobs, ray.put(batch), plan, reference=reference):
            for where, values in micro_batches:
                result[where] = values
        return result

    def add_logprobs(self, batch: RolloutBatch) -> TrainBatch:
        """What the loss compares the policy with, computed at the current weights.

        ``old_logprobs`` stay None when the update is one optimiser step on samples of the current weights: then they
        are the update's own first forward. With ``kl_in=reward`` the KL penalty enters the advantages here.
        """
        algorithm = self.config.algorithm
        if algorithm.loss == "distillation":
            if self._teacher is None:
                raise RuntimeError(
                    "LearnerGroup.add_logprobs: distillation without a teacher; call attach_teacher first"
                )
            return self._teacher.add_targets(TrainBatch(batch, None, None))
        kl_in_reward = algorithm.kl_coef > 0 and algorithm.kl_in == "reward"
        own_forward = self.config.updates_per_step == 1 and self.config.max_lag == 0 and not kl_in_reward
        old = None if own_forward else self.logprobs(batch)
        ref = self.logprobs(batch, reference=True) if algorithm.kl_coef > 0 else None
        if kl_in_reward and old is not None and ref is not None:
            batch = batching.subtract_kl(batch, old, ref, algorithm.kl_coef)
        return TrainBatch(batch, old, ref)

    def update(self, batch: TrainBatch) -> Metrics:
        """``updates_per_step`` optimiser steps over the batch's rows; then ``version += 1``.

        Raises:
            ValueError: no token to train on.
            RunStopped: ``optimizer.max_skipped_steps`` steps in a row had a non-finite gradient, or a rank was lost.
        """
        began = time.perf_counter()
        rows = batch.batch
        plans = plan_update(rows, self.config, version=self._version, entropy_coef=self.entropy_coef)
        reports: list[UpdateReport] = self._on_all(LearnerWorker.update, ray.put(batch), plans)
        if reports[0].skipped_now:
            self._dump(batch)
        if reports[0].stopped:
            raise RunStopped(f"update {self._version}: {reports[0].stopped}")
        self._version += 1
        metrics = update_metrics(rows, reports, num_steps=len(plans), seconds=time.perf_counter() - began)
        if self._entropy is not None:
            metrics["policy/entropy_coef"] = self._entropy.alpha  # what this update used
            if math.isfinite(metrics["policy/entropy"]):  # else the step was skipped, and the coefficient stays
                self._entropy.update(max(metrics["policy/entropy"], 0.0))
        return metrics | (self._teacher.metrics() if self._teacher is not None else {})

    def publish(self) -> Metrics:
        """Make the rollout workers serve ``version``."""
        if self._sync is None:
            raise RuntimeError("LearnerGroup.publish: expected a publisher; pass `sync` or call attach(sync) first")
        return self._sync.publish(self, self.version)

    def gather_weights(self) -> ray.ObjectRef:
        """The weights under checkpoint names: a reference to ``(WeightManifest, uint8 [bytes])``."""
        return self._on_all(LearnerWorker.gather_weights)[0][0]

    def save(self, path: str) -> None:
        """Model, optimiser, schedule, version, entropy coefficient and random state into an existing folder."""
        self._on_all(LearnerWorker.save, path)
        state: dict[str, Any] = {"version": self._version}
        if self._entropy is not None:
            state["entropy"] = self._entropy.state_dict()
        (Path(path) / STATE_FILE).write_text(json.dumps(state))

    def load(self, path: str) -> None:
        """Continue from ``save``.

        Raises:
            RunStopped: not a checkpoint of this learner, or one of another number of ranks or ZeRO stage.
        """
        learner = self.config.learner
        stage = effective_zero_stage(learner.zero_stage, self.config.model.dtype)
        read_checkpoint(
            path, world_size=learner.num_workers, zero_stage=stage
        )  # refused here, the ranks stay in service
        state = json.loads((Path(path) / STATE_FILE).read_text())
        if self._entropy is not None and "entropy" in state:  # a checkpoint without: the control begins here
            try:
                self._entropy.load_state_dict(state["entropy"])
            except ValueError as error:
                raise RunStopped(f"{path}: algorithm.entropy_target, entropy_delta: {error}") from error
        self._on_all(LearnerWorker.load, path)
        self._version = int(state["version"])

    def export(self, path: str) -> None:
        """Write a Hugging Face folder that transformers and vLLM load: weights, config, tokenizer, chat template."""
        self._on_all(LearnerWorker.export, path)

    def full_state(self) -> dict[str, np.ndarray]:
        """Every parameter as float32, gathered; for inspection and tests."""
        return self._on_all(LearnerWorker.full_state)[0]

    def close(self) -> None:
        """End the ranks and wait until their processes are gone."""
        if self._failure:  # a rank that hangs in a collective, or is stopped, does not hear a request to end
            for rank in range(self.config.learner.num_workers):
                life = self.workers.incarnation(rank)
                if is_local(life):
                    kill_pid(life.pid)
        self.workers.close()

    # --- inside -------------------------------------------------------------------------------------------------

    def _on_all(
        self, method: Callable[..., Any], *args: Any, timeout_s: float | None = None, **kwargs: Any
    ) -> list[Any]:
        """Call every rank at once and return their answers in order; the first failure ends the group."""
        if self._failure:
            raise RunStopped(f"the learner is out of service: {self._failure}")
        timeout_s = timeout_s or self.config.learner.call_timeout_s
        self.workers.call_timeout_s = timeout_s  # past it the fleet kills the rank and raises
        answers: dict[int, Any] = {}
        errors: dict[int, Err] = {}
        ranks = range(self.config.learner.num_workers)
        grace_ends = math.inf
        try:
            calls = {self.workers.call_async(rank, method, *args, **kwargs): rank for rank in ranks}
            while len(answers) + len(errors) < len(ranks) and time.monotonic() < grace_ends:
                for reply in self.workers.ready(min(1.0, grace_ends - time.monotonic())):
                    rank = calls[reply.call]
                    if isinstance(reply.result, Err):
                        # The others wait for this rank in a collective; they may say what they saw, but not for long.
                        grace_ends = min(grace_ends, time.monotonic() + CAUSE_GRACE_S)
                        errors[rank] = reply.result
                    else:
                        answers[rank] = reply.result.value
        except RunStopped as lost:
            self._fail(method, errors, ranks, answers, lost)
        if errors:
            self._fail(method, errors, ranks, answers, None)
        return [answers[rank] for rank in ranks]

    def _fail(
        self,
        method: Callable[..., Any],
        errors: Mapping[int, Err],
        ranks: range,
        answers: Mapping[int, Any],
        lost: RunStopped | None,
    ) -> NoReturn:
        """Put the group out of service; the error tells the cause first, a broken collective's echo after it."""
        said: dict[str, list[str]] = {}  # the same words of several ranks are told once
        for rank, error in errors.items():
            text = error.message if error.error_type == RunStopped.__name__ else str(error)
            said.setdefault(text, []).append(self.workers.name(rank))
        echoes = ("connection", "peer", "gloo", "nccl")
        texts = sorted(said, key=lambda text: any(echo in text.lower() for echo in echoes))
        names = [self.workers.name(rank) for rank in ranks if rank not in answers and rank not in errors]
        silent = [name for name in names if name not in str(lost)]
        parts = [str(lost)] if lost else []
        parts += [f"{', '.join(said[text])}: {text}" for text in texts]
        parts += [f"without an answer: {', '.join(silent)}"] if silent else []
        self._failure = "\n".join(f"learner, {method.__name__}: {part}" for part in parts)
        raise RunStopped(self._failure) from lost

    def _dump(self, batch: TrainBatch) -> None:
        if self._dump_dir is None:
            return
        path = self._dump_dir / f"nonfinite_step{self._version}.npz"
        arrays: dict[str, Any] = {
            name: value for name, value in vars(batch.batch).items() if isinstance(value, np.ndarray)
        }
        arrays |= {n: a for n in ("old_logprobs", "ref_logprobs") if (a := getattr(batch, n)) is not None}
        np.savez_compressed(path, **arrays)
        log.warning("update %d: a gradient was not finite; the batch is in %s", self._version, path)


def _entropy_controller(algorithm: AlgorithmConfig) -> EntropyController | None:
    """One update of it a step of the loop, whose mean entropy it is told, and not one an optimiser step."""
    if not algorithm.entropy_target:
        return None
    return EntropyController(
        target=algorithm.entropy_target, delta=algorithm.entropy_delta, initial_coef=algorithm.entropy_coef
    )


def _check(config: RLConfig, model_path: str) -> None:
    if config.sampling.temperature <= 0:
        raise ConfigError(
            f"sampling.temperature: expected > 0, got {config.sampling.temperature}; greedy samples have no "
            "log-probabilities to learn from"
        )
    if config.learner.lora.rank:  # said here, before a process starts
        try:
            check_targets(
                load_policy(model_path, meta=True, trust_remote_code=config.model.trust_remote_code),
                config.learner.lora.targets,
            )
        except ValueError as error:
            raise ConfigError(f"learner.{error}") from error
