"""``kind: sft`` and ``kind: preference``: training on given answers, on Ray Train."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rlplatform.config.base import require
from rlplatform.config.generation import DataConfig, ModelConfig
from rlplatform.config.learner import CheckpointConfig, LearnerConfig, OptimizerConfig
from rlplatform.reads import TrackedReads


@dataclass(frozen=True)
class SFTConfig(TrackedReads):
    """Supervised fine-tuning on Ray Train: rows of messages, loss on the assistant's tokens."""

    kind: Literal["sft"] = "sft"  # which kind of run this file is
    name: str = "sft"  # shown in progress and reports
    seed: int = 0  # every random draw of the run derives from it
    run_dir: str = "runs/${name}"  # where everything the run leaves behind lies
    num_steps: int = 100  # optimiser steps
    tokens_per_step: int = 8192  # packed tokens of one optimiser step, all ranks together
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=lambda: DataConfig(prompt="messages"))
    completion: str = "completion"  # column with the target where `prompt` is a string; messages carry their own
    history: Literal["kept", "template"] = "kept"  # earlier turns: as produced; or a row a turn, as the template shows
    max_tokens: int = 1024  # rows longer than this are dropped and reported
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-3))
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    stop_at_probability: float = 0.0  # > 0: end once sampling would write whole targets this often (mean of 20 steps)
    max_failures: int = 2  # Ray Train restarts from the last checkpoint this many times

    def __post_init__(self) -> None:
        require(self.num_steps >= 1, f"num_steps: expected >= 1, got {self.num_steps}")
        require(
            self.history == "kept" or self.data.chat, "history: template: expected data.chat, the template has no part"
        )
        require(
            self.tokens_per_step >= self.max_tokens * self.learner.num_workers,
            f"tokens_per_step={self.tokens_per_step}: expected at least max_tokens x learner.num_workers = "
            f"{self.max_tokens * self.learner.num_workers}, so that every rank can hold the longest row",
        )


@dataclass(frozen=True)
class PreferenceConfig(TrackedReads):
    """A Bradley-Terry reward model on Ray Train, from pairs of a chosen and a rejected answer (docs/preference.md)."""

    kind: Literal["preference"] = "preference"  # which kind of run this file is
    name: str = "preference"  # shown in progress and reports
    seed: int = 0  # every random draw of the run derives from it
    run_dir: str = "runs/${name}"  # where everything the run leaves behind lies
    num_steps: int = 100  # optimiser steps
    tokens_per_step: int = 16384  # packed tokens of one optimiser step, all ranks together; pairs are never split
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    heldout: DataConfig = field(default_factory=lambda: DataConfig(split="test"))  # path "": heldout_share of data
    heldout_share: float = 0.1  # where heldout.path is "": prompts kept out of training, with all their pairs
    chosen: str = "chosen"  # column: the better answer, a string or messages
    rejected: str = "rejected"  # column: the worse answer
    margin: float = 0.0  # the chosen score should be higher by this (Llama 2), nats
    margin_column: str = ""  # column with each pair's own margin; "" = the constant
    centring: float = 0.0  # weight of (r_chosen + r_rejected)^2, which keeps scores near 0; 0.01 is usual
    bias: bool = False  # the head has one; it cancels in differences, and transformers' heads have none
    thoughts: Literal["strip", "keep"] = "strip"  # strip: only what follows </think> is read; also when serving
    max_tokens: int = 1024  # a pair with a longer conversation is dropped and reported
    evaluate_every: int = 0  # steps between held-out measurements; 0 = only the last
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-5))
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    max_failures: int = 2  # Ray Train restarts from the last checkpoint this many times

    def __post_init__(self) -> None:
        require(self.num_steps >= 1, f"num_steps: expected >= 1, got {self.num_steps}")
        require(
            self.tokens_per_step >= 2 * self.max_tokens * self.learner.num_workers,
            f"tokens_per_step={self.tokens_per_step}: expected at least 2 x max_tokens x learner.num_workers = "
            f"{2 * self.max_tokens * self.learner.num_workers}, so that every rank can hold the longest pair",
        )
        require(self.data.chat, "data.chat: expected true: a reward model reads conversations")
        require(0 <= self.heldout_share < 1, f"heldout_share: expected in [0, 1), got {self.heldout_share}")
        require(self.centring >= 0, f"centring: expected >= 0, got {self.centring}")
        require(
            not (self.margin and self.margin_column),
            f"margin={self.margin:g} and margin_column={self.margin_column!r}: expected one of the two",
        )
        require(
            self.learner.lora.rank == 0,
            f"learner.lora.rank: expected 0, got {self.learner.lora.rank}: reward models are trained whole",
        )


@dataclass(frozen=True)
class DPOConfig(TrackedReads):
    """Direct preference optimisation on Ray Train, from pairs of a better and a worse answer (docs/preference.md)."""

    kind: Literal["dpo"] = "dpo"  # which kind of run this file is
    name: str = "dpo"  # shown in progress and reports
    seed: int = 0  # every random draw of the run derives from it
    run_dir: str = "runs/${name}"  # where everything the run leaves behind lies
    num_steps: int = 100  # optimiser steps
    tokens_per_step: int = 16384  # packed tokens of one optimiser step, all ranks together; pairs are never split
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    heldout: DataConfig = field(default_factory=lambda: DataConfig(split="test"))  # path "": heldout_share of data
    heldout_share: float = 0.1  # where heldout.path is "": prompts kept out of training, with all their pairs
    chosen: str = "chosen"  # column: the better answer, a string or messages
    rejected: str = "rejected"  # column: the worse answer
    beta: float = 0.1  # how close to the reference: the implicit reward is beta times the log ratio
    reference_free: bool = False  # leave the reference out: its difference counts as 0
    max_tokens: int = 1024  # a pair with a longer conversation is dropped and reported
    evaluate_every: int = 0  # steps between held-out measurements; 0 = only the last
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=5e-6))
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    max_failures: int = 2  # Ray Train restarts from the last checkpoint this many times

    def __post_init__(self) -> None:
        require(self.num_steps >= 1, f"num_steps: expected >= 1, got {self.num_steps}")
        require(self.beta > 0, f"beta: expected > 0, got {self.beta:g}")
        require(self.data.chat, "data.chat: expected true: pairs are conversations")
        require(0 <= self.heldout_share < 1, f"heldout_share: expected in [0, 1), got {self.heldout_share}")
        require(
            self.tokens_per_step >= 2 * self.max_tokens * self.learner.num_workers,
            f"tokens_per_step={self.tokens_per_step}: expected at least 2 x max_tokens x learner.num_workers = "
            f"{2 * self.max_tokens * self.learner.num_workers}, so that every rank can hold the longest pair",
        )
