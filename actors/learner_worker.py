"""One rank of the learner: a process around the DeepSpeed engine. ``actors/learner.py`` drives them.

A batch arrives whole on every rank (one copy per node, shared memory) together with a plan that says which rows are
whose; nothing but row numbers, sums and weights crosses processes. Denominators come with the plan: they count the
whole optimiser step, so a rank never divides by what it happens to hold.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
import torch

from actors.engine import StepResult, TrainEngine
from actors.fleet import FleetActor
from actors.logs import redirect_output
from actors.micro_batch import MicroBatch
from actors.router import router_losses, router_step
from actors.step_losses import distillation_loss, distillation_values, policy_loss
from actors.training_process import init_process_group
from actors.update_plan import Split, StepPlan
from actors.update_report import UpdateReport
from model.balance import RouterStep, counting_pass, mean_metrics
from model.hf import load_policy
from model.logprobs import TokenScorer
from model.moe import RouterRecord
from rlplatform import losses
from rlplatform.config import RLConfig
from rlplatform.roles import RunStopped
from rlplatform.sharding import token_index
from rlplatform.types import RolloutBatch, TrainBatch


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
        self, batch: RolloutBatch, micro_batches: Split, *, reference: bool
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each of this rank's micro-batches: where its loss tokens are in the batch, and their log-probabilities.

        Args:
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
