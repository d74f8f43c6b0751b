"""What trains: the learner's engine, its optimiser, adapters and checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rlplatform.config.base import require
from rlplatform.reads import TrackedReads


@dataclass(frozen=True)
class OptimizerConfig(TrackedReads):
    """AdamW and its schedule, counted in optimiser steps."""

    lr: float = 1e-6  # peak learning rate
    betas: tuple[float, float] = (0.9, 0.95)  # AdamW
    eps: float = 1e-8  # AdamW
    weight_decay: float = 0.0  # on matrices, not on norms and biases
    max_grad_norm: float = 1.0  # gradients are clipped to this norm; 0 = off
    warmup_steps: int = 0  # linear rise, in optimiser steps
    decay: Literal["constant", "linear", "cosine"] = "constant"  # from lr down, over decay_steps
    decay_steps: int = 0  # the last steps, before them lr is stable (WSD, arXiv 2404.06395); 0 = all after the rise
    final_lr_ratio: float = 0.0  # lr of the last step / lr, for linear and cosine
    max_skipped_steps: int = 5  # non-finite gradients in a row that stop the run

    def __post_init__(self) -> None:
        require(self.lr >= 0, f"optimizer.lr: expected >= 0, got {self.lr}")
        require(0 <= self.final_lr_ratio <= 1, "optimizer.final_lr_ratio: expected in [0, 1]")
        require(self.warmup_steps >= 0, "optimizer.warmup_steps: expected >= 0")
        require(self.decay_steps >= 0, f"optimizer.decay_steps: expected >= 0, got {self.decay_steps}")
        require(
            not (self.decay_steps and self.decay == "constant"),
            "optimizer.decay_steps: expected decay: linear or cosine with it, got constant, which never falls",
        )


@dataclass(frozen=True)
class LoraConfig(TrackedReads):
    """Low-rank adapters (arXiv 2106.09685): W + alpha / rank * B A; only A and B are trained. Published merged."""

    rank: int = 0  # rows of A; 0 = off: every weight is trained
    alpha: float = 16.0  # strength: B A counts alpha / rank
    dropout: float = 0.0  # on the adapters' input, while training; SFT only
    targets: tuple[str, ...] = ()  # linear layers, e.g. [q_proj, v_proj]; [] = all of attention and dense MLPs

    def __post_init__(self) -> None:
        require(self.rank >= 0, f"learner.lora.rank: expected >= 0 (0 = off), got {self.rank}")
        require(self.alpha > 0, f"learner.lora.alpha: expected > 0, got {self.alpha}")
        require(0 <= self.dropout < 1, f"learner.lora.dropout: expected in [0, 1), got {self.dropout}")

    @property
    def scale(self) -> float:
        """What B A is multiplied with; 0 without adapters."""
        return self.alpha / self.rank if self.rank else 0.0


@dataclass(frozen=True)
class LearnerConfig(TrackedReads):
    """The DeepSpeed engine: ``num_workers`` ranks, one actor a rank."""

    num_workers: int = 1  # data-parallel ranks
    cpus_per_worker: float = 1.0  # one thread each
    gpus_per_worker: float = 0.0  # may be fractional where actors share a GPU
    zero_stage: Literal[0, 1, 2, 3] = (
        2  # DeepSpeed ZeRO: what is sharded over ranks (0 nothing, 1 optimiser, 2 + gradients, 3 + parameters)
    )
    max_tokens_per_micro_batch: int = 8192  # rows are packed without padding up to this many tokens
    logprob_chunk_tokens: int = 1024  # rows of the [chunk, vocabulary] matrix that exists at a time
    activation_checkpointing: Literal["none", "selective", "full"] = (
        "none"  # less memory: selective computes all but matrix products and attention again, full everything
    )
    compile: bool = False  # torch.compile on every layer of a native Qwen3, ZeRO 0 to 2; pays on GPUs, not on CPUs
    lora: LoraConfig = field(default_factory=LoraConfig)  # train adapters instead of all weights
    router_balance: Literal["global_batch", "micro_batch"] = (
        "global_batch"  # tokens an expert was chosen by are counted over the optimiser step, or each micro-batch alone
    )
    router_balance_coef: float | None = None  # of the load-balancing loss; unset: the checkpoint's in SFT, 0 in RL
    router_z_coef: float = 0.0  # of the mean square of the routers' log-sum-exp (z-loss)
    call_timeout_s: float = 1800.0  # a call silent for longer is an error
    start_timeout_s: float = 300.0  # an actor not up by then is an error

    def __post_init__(self) -> None:
        require(self.num_workers >= 1, f"learner.num_workers: expected >= 1, got {self.num_workers}")
        require(self.max_tokens_per_micro_batch > 0, "learner.max_tokens_per_micro_batch: expected > 0")
        require(self.logprob_chunk_tokens > 0, "learner.logprob_chunk_tokens: expected > 0")
        require(
            not (self.compile and self.zero_stage == 3),
            "learner.compile: expected zero_stage 0, 1 or 2, got 3, whose gathering hooks would be compiled away",
        )
        require((self.router_balance_coef or 0.0) >= 0, "learner.router_balance_coef: expected >= 0")
        require(self.router_z_coef >= 0, "learner.router_z_coef: expected >= 0")


@dataclass(frozen=True)
class CheckpointConfig(TrackedReads):
    every: int = 0  # steps; 0 = only the last
    keep_last: int = 2  # newest checkpoints kept
    keep_best: int = 1  # by held-out accuracy
    portable: bool = False  # any number of ranks and ZeRO stage continues; written while training goes on; not in RL

    def __post_init__(self) -> None:
        require(self.keep_last >= 1, f"checkpoint.keep_last: expected >= 1, got {self.keep_last}")
