"""The one DeepSpeed engine. The reinforcement learner and next-token training both stand on it.

    engine = TrainEngine(TokenScorer(policy), optimizer_config, learner_config, dtype=..., num_optimizer_steps=...)
    for i, micro_batch in enumerate(micro_batches):              # as many as the batch needs, the same on every rank
        loss = ... engine(micro_batch) ...                       # divided by the step's *global* denominator
        engine.backward(loss, last=i == len(micro_batches) - 1)
    result = engine.step()                                       # lr, gradient norm, skipped or not

The contract: a micro-batch's loss is its share of the whole optimiser step's loss, and gradients are **summed** over
micro-batches and ranks. So one division decides what a token weighs, however the rows were cut. DeepSpeed averages
over ranks; that is undone here, once. The process group exists already: ``init_process_group`` makes it in a plain
actor, Ray Train brings its own.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn

from actors.training_process import quiet_deepspeed, random_state, set_random_state
from model.lora import add_adapters, merge_adapters, save_adapters
from model.moe import MoE
from rlplatform.config import ConfigError, LearnerConfig, OptimizerConfig
from rlplatform.roles import RunStopped

log = logging.getLogger(__name__)

TAG = "engine"  # DeepSpeed's checkpoint tag: the folder itself is what carries the step
STATE_FILE = "engine.json"
SHAPE = ("world_size", "zero_stage")  # a checkpoint fits only an engine of the same
COUNTERS = ("num_steps", "num_skipped", "num_skipped_in_a_row")
ADAPTER_FOLDER = "adapter"  # inside an exported model trained with adapters
MAX_BUCKET = 50_000_000  # elements of one gradient reduction


class HFModule(Protocol):
    """What the engine asks of a policy to write a Hugging Face folder; ``model.hf.PackedCausalLM`` is one."""

    source: str

    def hf_named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def to_checkpoint(self, state: Iterator[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]: ...

    def save_pretrained(self, folder: str | Path, state: dict[str, torch.Tensor]) -> None: ...


@dataclass(frozen=True)
class StepResult:
    """One optimiser step."""

    lr: float
    grad_norm: float  # before clipping; inf or nan when the step was skipped
    skipped: bool  # a gradient was not finite: parameters and optimiser state are as before, on every rank


def learning_rate(config: OptimizerConfig, step: int, num_steps: int) -> float:
    """The rate of optimiser step ``step`` (from 0) of ``num_steps``.

    Rises linearly over ``warmup_steps`` and reaches ``lr`` on the last of them; linear and cosine decay then reach
    ``lr * final_lr_ratio`` exactly on step ``num_steps - 1``, with ``decay_steps`` falling over the last so many steps
    only (warm-up, stable, decay: Hu et al. 2024, arXiv 2404.06395). A skipped step counts as a step.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.decay == "constant":
        return config.lr
    peak = max(config.warmup_steps - 1, 0)  # the last step at lr
    if config.decay_steps:
        peak = max(peak, num_steps - 1 - config.decay_steps)
    if num_steps - 1 <= peak or step <= peak:
        return config.lr  # still stable, or no step is left to decay over
    progress = min((step - peak) / (num_steps - 1 - peak), 1.0)
    share = 1.0 - progress if config.decay == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.lr * (config.final_lr_ratio + (1.0 - config.final_lr_ratio) * share)


def effective_zero_stage(stage: int, dtype: str) -> int:
    """bfloat16 with ZeRO 0 runs as ZeRO 1: only from there on DeepSpeed keeps float32 masters beside bfloat16."""
    return max(stage, 1) if dtype == "bfloat16" else stage


def read_checkpoint(folder: str | Path, *, world_size: int, zero_stage: int) -> dict[str, int]:
    """What ``TrainEngine.save`` wrote about itself.

    Raises:
        RunStopped: no checkpoint there, or one that this engine cannot continue.
    """
    path = Path(folder) / STATE_FILE
    if not path.is_file():
        raise RunStopped(f"no checkpoint in {folder}: expected {STATE_FILE}, which the engine writes when it saves")
    state = json.loads(path.read_text())
    for name, key, here in (
        ("world_size", "learner.num_workers", world_size),
        ("zero_stage", "learner.zero_stage", zero_stage),
    ):
        if state[name] != here:
            raise RunStopped(
                f"the checkpoint in {folder} has {key}={state[name]}, this run {here}; set {key}={state[name]} to "
                "continue it, or start from its exported model"
            )
    return state


class TrainEngine:
    """A DeepSpeed engine (ZeRO 0 to 3, float32 or bfloat16 with float32 masters) with AdamW.

    Every method is called by all ranks, in the same order. ``module`` is what ``__call__`` runs; ``policy`` names its
    parameters for ``full_state`` and ``export`` (default: ``module.policy``). With ``learner.lora`` the policy is given
    adapters, drawn from ``seed``, and only they are trained; what leaves the engine is merged.

    Raises:
        ConfigError: ``learner.lora.targets`` names a layer that cannot be adapted; ``learner.compile`` for a policy
            that transformers serves.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: OptimizerConfig,
        learner: LearnerConfig,
        *,
        dtype: str,
        num_optimizer_steps: int,
        policy: HFModule | None = None,
        seed: int = 0,
    ) -> None:
        if not dist.is_initialized():
            raise RuntimeError("TrainEngine: expected an initialised process group; call init_process_group first")
        os.environ.setdefault("LOCAL_RANK", "0")
        self.config = optimizer
        self.zero_stage = effective_zero_stage(learner.zero_stage, dtype)
        self.num_optimizer_steps = num_optimizer_steps
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.policy: HFModule = policy if policy is not None else module.policy  # type: ignore[assignment]
        self.lora = learner.lora
        if self.lora.rank:
            self._add_adapters(seed)
        if learner.compile:
            self._compile_layers()
        self.num_trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
        self.num_steps = 0  # optimiser steps so far, skipped ones included: the place in the schedule
        self.num_skipped = 0
        self.num_skipped_in_a_row = 0
        # With float32 and no ZeRO, DeepSpeed hands over the bare optimiser: no clipping record, no overflow check.
        self._bare = self.zero_stage == 0 and dtype == "float32"
        with quiet_deepspeed():
            import deepspeed

            if self.zero_stage == 3 and any(isinstance(part, MoE) for part in module.modules()):
                # Router and experts are gathered together: ranks stay in step whichever experts their tokens choose.
                deepspeed.utils.set_z3_leaf_modules(module, [MoE])
            self._deepspeed, *_ = deepspeed.initialize(
                model=module,
                optimizer=_adamw(module, optimizer),
                config=_deepspeed_config(module, optimizer, learner, self.zero_stage, dtype=dtype, bare=self._bare),
                dist_init_required=False,
            )
        self.device = self._deepspeed.device

    def _compile_layers(self) -> None:
        if not hasattr(self.policy, "compile_layers"):
            kind = getattr(self.policy.config, "model_type", type(self.policy).__name__)  # type: ignore[attr-defined]
            raise ConfigError(
                f"learner.compile: expected a native model (qwen3, qwen3_moe), got {kind}; leave it false"
            )
        self.policy.compile_layers()

    def _add_adapters(self, seed: int) -> None:
        lora = self.lora
        try:
            add_adapters(
                self.policy,  # type: ignore[arg-type]
                rank=lora.rank,
                alpha=lora.alpha,
                dropout=lora.dropout,
                targets=lora.targets,
                seed=seed,
            )
        except ValueError as error:
            raise ConfigError(f"learner.{error}") from error

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's forward, gathering what ZeRO-3 partitioned."""
        return self._deepspeed(*args, **kwargs)

    def train(self) -> None:
        self._deepspeed.train()

    def eval(self) -> None:
        self._deepspeed.eval()

    # --- one optimiser step -------------------------------------------------------------------------------------

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Add a micro-batch's gradient; ``last`` closes the optimiser step. All ranks call it equally often."""
        self._deepspeed.set_gradient_accumulation_boundary(last)
        self._deepspeed.backward(loss * self.world_size, scale_wrt_gas=False)
        self._deepspeed.micro_steps += 0 if last else 1

    def step(self) -> StepResult:
        """Update the parameters, or skip the update on all ranks when any gradient is not finite.

        Raises:
            RunStopped: that was the ``max_skipped_steps``-th skipped step in a row.
        """
        lr = learning_rate(self.config, self.num_steps, self.num_optimizer_steps)
        for group in self._deepspeed.optimizer.param_groups:
            group["lr"] = lr
        if self._bare:
            grad_norm, skipped = self._step_bare()
        else:
            self._deepspeed.step()
            grad_norm = float(self._deepspeed.get_global_grad_norm() or 0.0)
            skipped = not self._deepspeed.was_step_applied()
        self.num_steps += 1
        self.num_skipped += skipped
        self.num_skipped_in_a_row = self.num_skipped_in_a_row + 1 if skipped else 0
        if self.num_skipped_in_a_row >= self.config.max_skipped_steps:
            raise RunStopped(
                f"{self.num_skipped_in_a_row} optimiser steps in a row had a gradient that is not finite "
                f"(optimizer.max_skipped_steps={self.config.max_skipped_steps}); the weights are those of the last "
                "finite step. Look at what these steps trained on, or lower optimizer.lr"
            )
        return StepResult(lr, grad_norm, skipped)

    def _step_bare(self) -> tuple[float, bool]:
        # The gradients are already summed over ranks, so every rank finds the same norm and decides alike.
        parameters = [p for p in self._deepspeed.module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        if not torch.isfinite(norm):
            self._deepspeed.zero_grad()
            return float(norm), True
        if self.config.max_grad_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.config.max_grad_norm, norm)
        self._deepspeed.step()
        return float(norm), False

    # --- weights ------------------------------------------------------------------------------------------------

    def full_state(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Whole parameters on the CPU under transformers' names, tied ones once; only rank 0 is given any.

        Every rank must exhaust the iterator: ZeRO-3 gathers each parameter from all of them. On other stages the
        tensors are the live parameters: use them before the next step.
        """
        for name, parameter in self.policy.hf_named_parameters():
            with self.gathered(parameter):
                whole = parameter.detach().to("cpu", copy=self.zero_stage == 3) if self.rank == 0 else None
            if whole is not None:
                yield name, whole

    def checkpoint_state(self) -> dict[str, torch.Tensor]:
        """``full_state`` under the names of a checkpoint file, adapters merged; empty on ranks other than 0."""
        return self._to_checkpoint(dict(self.full_state()))

    def _to_checkpoint(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return self.policy.to_checkpoint(merge_adapters(state.items(), self.lora.scale)) if self.rank == 0 else {}

    @property
    def zero_optimizer(self) -> Any:
        """DeepSpeed's wrapper with ZeRO 1 to 3, the bare AdamW without."""
        return self._deepspeed.optimizer

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW over the parameters, with ZeRO over flat float32 slices of them."""
        wrapped = self._deepspeed.optimizer
        found: torch.optim.Optimizer = getattr(wrapped, "optimizer", wrapped)
        return found

    def gathered(self, parameter: nn.Parameter) -> contextlib.AbstractContextManager[Any]:
        """The whole parameter inside the context, where ZeRO-3 cut it."""
        if self.zero_stage < 3:
            return contextlib.nullcontext()
        import deepspeed

        return deepspeed.zero.GatheredParameters([parameter])

    def export(self, folder: str | Path) -> None:
        """Write a Hugging Face folder: weights, config, generation config, tokenizer, chat template.

        Adapters are merged into the weights, and stand beside them in peft's format under ``adapter/``.
        """
        state = dict(self.full_state())
        if self.rank == 0:
            self.policy.save_pretrained(folder, self._to_checkpoint(state))
            if self.lora.rank:
                lora = self.lora
                arguments: dict[str, Any] = {"rank": lora.rank, "alpha": lora.alpha, "dropout": lora.dropout}
                save_adapters(Path(folder) / ADAPTER_FOLDER, state, self.policy, **arguments)  # type: ignore[arg-type]
        dist.barrier()

    # --- checkpoints --------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Model, optimiser, place in the schedule and random state of every rank, into an existing folder."""
        folder = Path(folder)
        with quiet_deepspeed():
            self._deepspeed.save_checkpoint(str(folder), tag=TAG)
        torch.save(random_state(), folder / f"random_state_rank{self.rank}.pt")
        if self.rank == 0:
            state = {name: getattr(self, name) for name in (*SHAPE, *COUNTERS, "num_trainable")}
            (folder / STATE_FILE).write_text(json.dumps(state))
        dist.barrier()

    def load(self, folder: str | Path) -> None:
        """Continue from ``save``, bit for bit.

        Raises:
            RunStopped: no checkpoint there, or one of another number of ranks, ZeRO stage or set of trained parameters.
        """
        folder = Path(folder)
        state = read_checkpoint(folder, world_size=self.world_size, zero_stage=self.zero_stage)
        if state.get("num_trainable", self.num_trainable) != self.num_trainable:
            raise RunStopped(
                f"the checkpoint in {folder} trains {state['num_trainable']:,} parameters, this run "
                f"{self.num_trainable:,}; set learner.lora as it was, or start from its exported model"
            )
        with quiet_deepspeed():
            path, _ = self._deepspeed.load_checkpoint(str(folder), tag=TAG)
        if path is None:
            raise RunStopped(f"DeepSpeed could not read the checkpoint in {folder}; see the log for its reason")
        for name in COUNTERS:
            setattr(self, name, state[name])
        set_random_state(torch.load(folder / f"random_state_rank{self.rank}.pt", weights_only=False))

    def close(self) -> None:
        """Give the engine's hooks and buffers back; the process group is its owner's to end."""
        self._deepspeed.destroy()


# --- building blocks ------------------------------------------------------------------------------------------------


def _adamw(module: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW, fused; weight decay on matrices only (norms and biases set scales, not directions)."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [{"params": parameters, "weight_decay": 0.0}]
    if config.weight_decay:
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=config.lr, betas=tuple(config.betas), eps=config.eps, fused=True)  # type: ignore[arg-type]


def _deepspeed_config(
    module: nn.Module, optimizer: OptimizerConfig, learner: LearnerConfig, stage: int, *, dtype: str, bare: bool
) -> dict[str, Any]:
    sizes = [p.numel() for p in module.parameters()]
    bucket = max(min(sum(sizes), MAX_BUCKET), max(sizes))  # the default would reserve 2 GB whatever the model
    bf16 = dtype == "bfloat16"
    return {
        "train_micro_batch_size_per_gpu": 1,  # not used: batches are cut by tokens, boundaries set by hand
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0 if bare else max(optimizer.max_grad_norm, 0.0),
        "steps_per_print": None,
        "zero_allow_untested_optimizer": True,  # torch's AdamW
        "bf16": {"enabled": bf16, "check_grad_overflow": True},
        "data_types": {"grad_accum_dtype": "fp32"} if bf16 else {},
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "stage3_prefetch_bucket_size": bucket,
            "overlap_comm": learner.gpus_per_worker > 0,
            "contiguous_gradients": True,
        },
    }
