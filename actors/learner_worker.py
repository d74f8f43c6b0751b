"""One rank of the learner: a process around the DeepSpeed engine. ``actors/learner.py`` drives them.

A batch arrives whole on every rank (one copy per node, shared memory) together with a plan that says which rows are
whose; nothing but row numbers, sums and weights crosses processes. Denominators come with the plan: they count the
whole optimiser step, so a rank never divides by what it happens to hold.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
import torch

from actors.engine import StepResult, TrainEngine
from actors.fleet import FleetActor
from actors.logs import redirect_output
from actors.router import router_losses, router_step
from actors.training_process import init_process_group
from model.balance import RouterStep, counting_pass, mean_metrics
from model.hf import load_policy
from model.logprobs import TokenScorer
from model.moe import RouterRecord
from rlplatform import losses
from rlplatform.config import AlgorithmConfig, RLConfig
from rlplatform.divergences import TopK, divergence
from rlplatform.roles import RunStopped
from rlplatform.sharding import take_train_rows, token_index
from rlplatform.types import RolloutBatch, TeacherTargets, TrainBatch


@dataclass(frozen=True)
class StepPlan:
    """One optimiser step: which rows each rank computes, in which micro-batches, and what the losses divide by."""

    micro_batches: Sequence[
        Sequence[Sequence[int]]
    ]  # [rank][micro-batch] -> rows of the batch; [] is a pass without loss
    denominator: float  # of losses.reduce, over all ranks
    num_tokens: int  # of all rows, prompts included: what the routers' losses divide by
    entropy_coef: float = 0.0  # of the entropy bonus in this step


@dataclass(frozen=True)
class UpdateReport:
    """What one rank did: sums over its own loss tokens, and the engine's account, which is the same on all ranks."""

    sums: dict[str, float]  # of policy_loss, combined by losses.combine_stats
    lr: float
    grad_norm: float
    num_steps: int  # optimiser steps taken since the start
    num_skipped: int  # skipped since the start
    skipped_now: int  # skipped in this update
    rss_gib: float
    router: dict[str, float]  # of model.balance, mean over optimiser steps, equal on all ranks; empty without experts
    stopped: str = ""  # why the run must end: too many skipped steps in a row


@dataclass(frozen=True)
class MicroBatch:
    """Packed rows as tensors. ``N`` loss tokens; ``loss_cu_seqlens`` are the rows' boundaries among them."""

    token_ids: torch.Tensor  # int64 [T]
    positions: torch.Tensor  # int64 [T]
    cu_seqlens: torch.Tensor  # int32 [B + 1]
    scored: torch.Tensor  # int64 [N], where the loss tokens are
    loss_cu_seqlens: torch.Tensor  # int64 [B + 1], of the loss tokens alone
    rollout_logprobs: torch.Tensor  # float32 [N]
    advantages: torch.Tensor  # float32 [N]
    old_logprobs: torch.Tensor | None  # float32 [N]
    ref_logprobs: torch.Tensor | None  # float32 [N]
    teacher: torch.Tensor | TopK | None = None  # [N, V], or the K likeliest tokens of each of the N positions
    num_ids: int = 0  # of the vocabulary shared with the teacher

    @classmethod
    def of(cls, batch: TrainBatch, row_ids: Sequence[int], device: torch.device) -> MicroBatch:
        """The given rows; none at all give two tokens without a loss token: a pass that keeps the ranks in step."""
        if not row_ids:
            tokens = torch.tensor([0, 0], device=device)
            nothing = torch.empty(0, device=device)
            none = torch.empty(0, dtype=torch.int64, device=device)
            boundaries = torch.tensor([0, 2], dtype=torch.int32, device=device)
            return cls(
                tokens,
                torch.arange(2, device=device),
                boundaries,
                none,
                none.new_zeros(2),
                nothing,
                nothing,
                None,
                None,
            )
        part = take_train_rows(batch, row_ids)
        rows, mask = part.batch, part.batch.loss_mask
        counts = np.concatenate(([0], np.cumsum(mask)))[rows.cu_seqlens]
        lengths = np.diff(rows.cu_seqlens)
        positions = np.arange(len(rows.token_ids)) - np.repeat(rows.cu_seqlens[:-1], lengths)

        def tensor(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
            return torch.tensor(array, dtype=dtype, device=device)

        def loss_tokens(array: np.ndarray | None) -> Any:
            return None if array is None else tensor(array[mask], torch.float32)

        return cls(
            token_ids=tensor(rows.token_ids, torch.int64),
            positions=tensor(positions, torch.int64),
            cu_seqlens=tensor(rows.cu_seqlens, torch.int32),
            scored=tensor(np.flatnonzero(mask), torch.int64),
            loss_cu_seqlens=tensor(counts, torch.int64),
            rollout_logprobs=loss_tokens(rows.rollout_logprobs),
            advantages=loss_tokens(rows.advantages),
            old_logprobs=loss_tokens(part.old_logprobs),
            ref_logprobs=loss_tokens(part.ref_logprobs),
            teacher=None if part.teacher is None else teacher_tensors(part.teacher, device),
            num_ids=0 if part.teacher is None else part.teacher.num_ids,
        )

    def without_loss(self) -> MicroBatch:
        """The same tokens, none of them scored."""
        return replace(self, scored=self.scored[:0])

    @property
    def forward_arguments(self) -> tuple[torch.Tensor, ...]:
        return self.token_ids, self.positions, self.cu_seqlens, self.scored


def teacher_tensors(targets: TeacherTargets, device: torch.device) -> torch.Tensor | TopK:
    """The teacher's distributions as ``divergences`` takes them."""
    logprobs = torch.tensor(targets.logprobs, device=device)
    if targets.ids is None or targets.rest is None:
        return logprobs
    ids = torch.tensor(targets.ids, dtype=torch.int64, device=device)
    return TopK(ids, logprobs, torch.tensor(targets.rest, device=device))


def distillation_values(micro_batch: MicroBatch, config: RLConfig) -> Callable[[torch.Tensor, slice], torch.Tensor]:
    """What ``TokenScorer(of_logits=...)`` computes for distillation: of each loss token the divergence from the teacher
    and, without gradient, the log-probability of the token and the entropy at the sampling temperature: [n, 3]."""
    algorithm, teacher = config.algorithm, micro_batch.teacher
    targets = micro_batch.token_ids[micro_batch.scored]

    def of_logits(logits: torch.Tensor, positions: slice) -> torch.Tensor:
        with torch.no_grad():
            log_p = torch.log_softmax(logits / config.sampling.temperature, dim=-1)
            logprobs = log_p.gather(1, targets[positions, None])[:, 0]
            entropy = -(log_p.exp() * log_p).sum(dim=-1)
        if teacher is None:  # a pass without rows
            values = logits.sum(dim=-1) * 0.0
        else:
            values = divergence(
                logits[:, : micro_batch.num_ids],
                _at(teacher, positions),
                torch.ones(len(logits), dtype=torch.bool, device=logits.device),
                kind=algorithm.divergence,
                beta=algorithm.divergence_beta,
                temperature=config.teacher.temperature,
                chunk_tokens=config.learner.logprob_chunk_tokens,
            )
        return torch.stack((values, logprobs, entropy), dim=1)

    return of_logits


def _at(teacher: torch.Tensor | TopK, positions: slice) -> torch.Tensor | TopK:
    if isinstance(teacher, torch.Tensor):
        return teacher[positions]
    return TopK(teacher.ids[positions], teacher.logprobs[positions], teacher.rest[positions])


def distillation_loss(
    values: torch.Tensor, micro_batch: MicroBatch, config: AlgorithmConfig, denominator: float
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """This micro-batch's share of the optimiser step's mean divergence, and sums for the metrics.

    ``values`` float32 [N, 3]: of ``distillation_values``.
    """
    divergences, logprobs, entropy = values.unbind(dim=1)
    mask = torch.ones_like(divergences, dtype=torch.bool)
    loss = losses.reduce(
        divergences,
        mask,
        aggregation=config.aggregation,
        cu_seqlens=micro_batch.loss_cu_seqlens,
        denominator=denominator,
    )
    sums = losses.mismatch_stats(logprobs, micro_batch.rollout_logprobs, mask, cap=config.importance_cap)
    sums |= {
        "divergence": losses.masked_sum(divergences, mask),
        "entropy": losses.masked_sum(entropy, mask),
        "loss": loss.detach(),
    }
    return loss, sums


def policy_loss(
    logprobs: torch.Tensor,
    entropy: torch.Tensor,
    micro_batch: MicroBatch,
    config: AlgorithmConfig,
    denominator: float,
    *,
    entropy_coef: float | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """This micro-batch's share of the optimiser step's loss, and sums for the metrics.

    loss = policy gradient + kl_coef * KL (``kl_in=loss``) - entropy_coef * entropy, all reduced alike.

    Args:
        logprobs: float32 [N] of the loss tokens, with gradient.
        entropy: float32 [N].
        denominator: of the whole optimiser step.
        entropy_coef: of the bonus; None: ``config.entropy_coef``.
    """
    mask = torch.ones_like(logprobs, dtype=torch.bool)
    old = logprobs.detach() if micro_batch.old_logprobs is None else micro_batch.old_logprobs
    rollout = micro_batch.rollout_logprobs
    weights = None
    if config.importance_cap:
        weights = losses.truncated_importance_weights(old, rollout, mask, config.importance_cap)
    per_token, stats = losses.LOSSES[config.loss](
        logprobs,
        old,
        micro_batch.advantages,
        mask,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        dual_clip=config.dual_clip,
        importance_weights=weights,
    )

    def reduce(values: torch.Tensor) -> torch.Tensor:
        return losses.reduce(
            values,
            mask,
            aggregation=config.aggregation,
            cu_seqlens=micro_batch.loss_cu_seqlens,
            denominator=denominator,
        )

    loss = policy = reduce(per_token)
    sums = {**stats, **losses.mismatch_stats(old, rollout, mask, cap=config.importance_cap)}
    sums |= {"policy_loss": policy.detach(), "entropy": losses.masked_sum(entropy, mask)}
    if micro_batch.ref_logprobs is not None:
        k3 = losses.kl_estimate(logprobs.detach(), micro_batch.ref_logprobs, mask, "k3")
        sums["ref_k3"] = losses.masked_sum(k3, mask)
        if config.kl_in == "loss":
            kl = reduce(losses.kl_estimate(logprobs, micro_batch.ref_logprobs, mask, config.kl_estimator))
            loss = loss + config.kl_coef * kl
            sums["kl_loss"] = kl.detach()
    coef = config.entropy_coef if entropy_coef is None else entropy_coef
    if coef:
        loss = loss - coef * reduce(entropy)
    sums["loss"] = loss.detach()
    return loss, sums


class LearnerWorker(FleetActor):
    """One rank. Every method is called on all ranks with the same arguments."""

    engine: TrainEngine

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size
        redirect_output(f"learner-{rank}")
        self._buffer: np.ndarray | None = None

    def free_address(self) -> tuple[str, int]:
        """Where rank 0 can be met by the others."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def start(self, config: RLConfig, model_path: str, addr: str, port: int) -> None:
        """Join the process group and load the model; with a KL coefficient, a frozen copy of it as the reference.

        A second call replaces model and optimiser in the same process group.
        """
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        self.config = config
        use_gpu = config.learner.gpus_per_worker > 0
        if torch.distributed.is_initialized():
            self.engine.close()
        else:
            timeout_s = config.learner.call_timeout_s
            init_process_group(self.rank, self.world_size, addr, port, timeout_s=timeout_s, use_gpu=use_gpu)
        torch.manual_seed(config.seed * self.world_size + self.rank)

        def load(**arguments: Any) -> TokenScorer:
            model = config.model
            return TokenScorer(
                load_policy(
                    model_path,
                    dtype=model.dtype,
                    trust_remote_code=model.trust_remote_code,
                    rope=model.rope,
                    **arguments,
                )
            )

        self.engine = TrainEngine(
            load(activation_checkpointing=config.learner.activation_checkpointing),
            config.optimizer,
            config.learner,
            dtype=config.model.dtype,
            num_optimizer_steps=config.num_optimizer_steps,
            seed=config.seed,
        )
        self._router_losses = router_losses(self.engine, config.learner, default_coef=0.0)
        self._reference: TokenScorer | None = None
        if config.algorithm.kl_coef > 0:
            self._reference = load().requires_grad_(False).to(self.engine.device).eval()
        self._arguments = {
            "chunk_tokens": config.learner.logprob_chunk_tokens,
            "temperature": config.sampling.temperature,
        }

    def logprobs(
        self, batch: RolloutBatch, micro_batches: Sequence[Sequence[Sequence[int]]], *, reference: bool
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each of this rank's micro-batches: where its loss tokens are in the batch, and their log-probabilities.

        Args:
            micro_batches: [rank][micro-batch] -> rows.
            reference: of the frozen reference model instead of the policy.
        """
        scorer = self._reference if reference else self.engine
        if scorer is None:
            raise ValueError("reference logprobs: expected algorithm.kl_coef > 0; no reference model was loaded")
        self.engine.eval()
        results = []
        whole = TrainBatch(batch, old_logprobs=None, ref_logprobs=None)
        for row_ids in micro_batches[self.rank]:
            micro_batch = MicroBatch.of(whole, row_ids, self.engine.device)
            with torch.no_grad():
                logprobs, _ = scorer(*micro_batch.forward_arguments, **self._arguments)
            where = token_index(batch.cu_seqlens, row_ids)
            results.append((where[batch.loss_mask[where]], logprobs.cpu().numpy()))
        return results

    def update(self, batch: TrainBatch, plans: Sequence[StepPlan]) -> UpdateReport:
        """One optimiser step a plan; none after the one that makes too many skipped steps in a row."""
        import psutil

        self.engine.train()
        stopped = ""
        parts: list[dict[str, float]] = []
        routers: list[dict[str, float]] = []
        skipped_now = 0
        for plan in plans:
            micro_batches = plan.micro_batches[self.rank]
            router = self._router_step(batch, plan)
            for i, row_ids in enumerate(micro_batches):
                micro_batch = MicroBatch.of(batch, row_ids, self.engine.device)
                record = None if router is None else RouterRecord()
                loss, sums = self._loss(micro_batch, record, plan)
                if router is not None:
                    loss = loss + router.loss(record if row_ids else None)
                    sums["loss"] = loss.detach()
                values = torch.stack([value.double() for value in sums.values()]).tolist()  # one transfer, not twenty
                parts.append(dict(zip(sums, values, strict=True)))
                self.engine.backward(loss, last=i == len(micro_batches) - 1)
            if router is not None:
                routers.append(router.metrics())
            try:
                result = self.engine.step()
            except RunStopped as error:
                stopped, result = str(error), StepResult(lr=math.nan, grad_norm=math.nan, skipped=True)
            skipped_now += result.skipped
            if stopped:
                break
        return UpdateReport(
            sums=losses.combine_stats(_same_names(parts)),
            lr=result.lr,
            grad_norm=result.grad_norm,
            num_steps=self.engine.num_steps - self.engine.num_skipped,
            num_skipped=self.engine.num_skipped,
            skipped_now=skipped_now,
            rss_gib=psutil.Process().memory_info().rss / 2**30,
            router=mean_metrics(routers),
            stopped=stopped,
        )

    def _loss(
        self, micro_batch: MicroBatch, record: RouterRecord | None, plan: StepPlan
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        algorithm = self.config.algorithm
        if algorithm.loss == "distillation":
            of_logits = distillation_values(micro_batch, self.config)
            values, _ = self.engine(
                *micro_batch.forward_arguments,
                chunk_tokens=self.config.learner.logprob_chunk_tokens,
                router=record,
                of_logits=of_logits,
            )
            return distillation_loss(values, micro_batch, algorithm, plan.denominator)
        logprobs, entropy = self.engine(
            *micro_batch.forward_arguments, **self._arguments, with_entropy=True, router=record
        )
        return policy_loss(logprobs, entropy, micro_batch, algorithm, plan.denominator, entropy_coef=plan.entropy_coef)

    def _router_step(self, batch: TrainBatch, plan: StepPlan) -> RouterStep | None:
        """The routers' losses of one optimiser step, its tokens counted by expert where that must come first."""
        if self._router_losses is None:
            return None
        micro_batches = plan.micro_batches[self.rank]
        router = router_step(
            self.engine, self._router_losses, num_tokens=plan.num_tokens, num_micro_batches=len(micro_batches)
        )
        with counting_pass(self.engine.device):
            for row_ids in micro_batches if router.must_count else ():
                micro_batch = MicroBatch.of(batch, row_ids, self.engine.device).without_loss()
                record = RouterRecord()
                self.engine(*micro_batch.forward_arguments, **self._arguments, router=record)
                router.count(record if row_ids else None)
        return router

    def gather_weights(self) -> list[Any]:
        """Rank 0: a reference to (manifest, all weights as one uint8 array) in the object store. Others: nothing."""
        from actors.weight_sync import flatten

        state = self.engine.checkpoint_state()
        if self.rank != 0:
            return []
        manifest, self._buffer = flatten(state, self._buffer)
        return [ray.put((manifest, self._buffer))]  # in a list, so that the reference itself travels

    def save(self, folder: str) -> None:
        self.engine.save(folder)

    def load(self, folder: str) -> None:
        self.engine.load(folder)

    def export(self, folder: str) -> None:
        self.engine.export(folder)

    def full_state(self) -> dict[str, np.ndarray]:
        """Rank 0: every parameter as float32; others: nothing. For inspection."""
        return {name: tensor.float().numpy().copy() for name, tensor in self.engine.full_state()}


def _same_names(parts: list[dict[str, float]]) -> list[dict[str, float]]:
    # A pass without rows has no reference logprobs and so no KL sums.
    names = {name for part in parts for name in part}
    return [{name: part.get(name, 0.0) for name in sorted(names)} for part in parts]
