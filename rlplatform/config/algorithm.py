"""What a step of reinforcement learning does with its rollouts: advantages and loss, or a teacher to follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlplatform.config.base import require
from rlplatform.reads import TrackedReads


@dataclass(frozen=True)
class AlgorithmConfig(TrackedReads):
    """Advantages and loss. Defaults: GRPO with DAPO's token-mean, no KL, truncated importance correction on."""

    advantage: Literal["group_mean_std", "group_mean", "leave_one_out"] = (
        "group_mean_std"  # see rlplatform/advantages.py
    )
    loss: Literal["clipped_policy_gradient", "distillation"] = (
        "clipped_policy_gradient"  # see rlplatform/losses.py; distillation follows `teacher` instead of rewards
    )
    divergence: Literal["reverse_kl", "forward_kl", "jsd"] = "reverse_kl"  # of distillation: rlplatform/divergences.py
    divergence_beta: float = 0.5  # of jsd: weight of the teacher in the mixture
    aggregation: Literal["token_mean", "sequence_mean", "constant_length"] = (
        "token_mean"  # how token losses become one number; its denominator is global
    )
    clip_low: float = 0.2  # ratio clip below: 1 - clip_low
    clip_high: float = 0.2  # DAPO's clip-higher: 0.28
    dual_clip: float = 0.0  # > 1 bounds the loss of negative advantages; 0 = off
    kl_coef: float = 0.0  # weight of the KL to the initial model; 0 = no reference model
    kl_estimator: Literal["k1", "k2", "k3"] = (
        "k3"  # k1 only with kl_in=reward: in the loss its expected gradient ignores the reference
    )
    kl_in: Literal["loss", "reward"] = "loss"  # one of the two, never both
    entropy_coef: float = 0.0  # entropy bonus; with entropy_target the coefficient of the first step
    entropy_target: float = 0.0  # nats a token: the coefficient follows the entropy (rlplatform/entropy.py); 0 = off
    entropy_delta: float = 0.005  # what a step adds to the coefficient below the target, or takes away above it
    importance_cap: float = 2.0  # truncated importance correction for sampler/learner mismatch; 0 = off
    overlong_buffer: int = 0  # DAPO's overlong shaping: linear penalty over the last N tokens before max_new_tokens
    overlong_penalty: float = 1.0  # what the last token of the buffer costs
    drop_truncated: bool = False  # leave completions cut by max_new_tokens out of the loss (DAPO's overlong filtering)
    drop_zero_variance: bool = True  # groups whose rewards are all equal carry no gradient
    dynamic_sampling: bool = False  # refill dropped groups with new prompts (DAPO)
    max_sampling_rounds: int = 3  # rounds of refilling
    at_sampling_cap: Literal["train", "stop"] = "train"  # what the cap means: train on what is there, or stop
    max_empty_steps: int = 3  # steps in a row without one usable group stop the run

    def __post_init__(self) -> None:
        require(0 <= self.clip_low < 1, f"algorithm.clip_low: expected in [0, 1), got {self.clip_low}")
        require(self.clip_high >= 0, f"algorithm.clip_high: expected >= 0, got {self.clip_high}")
        require(
            self.dual_clip == 0 or self.dual_clip > 1,
            f"algorithm.dual_clip: expected 0 (off) or > 1, got {self.dual_clip}",
        )
        require(self.kl_coef >= 0, f"algorithm.kl_coef: expected >= 0, got {self.kl_coef}")
        if self.kl_coef:  # losses.check_kl_placement says why
            fitting = ("k1",) if self.kl_in == "reward" else ("k2", "k3")
            require(
                self.kl_estimator in fitting,
                f"algorithm.kl_estimator: expected {' or '.join(fitting)} with kl_in={self.kl_in}, "
                f"got {self.kl_estimator}: another one does not have the gradient of the KL there",
            )
        require(
            self.entropy_target >= 0 and self.entropy_delta > 0,
            f"algorithm.entropy_target, entropy_delta: expected >= 0 (0 = off) and > 0, got {self.entropy_target} and "
            f"{self.entropy_delta}",
        )
        require(
            not self.entropy_target or self.entropy_coef >= 0,
            f"algorithm.entropy_coef: expected >= 0 with entropy_target, got {self.entropy_coef}",
        )
        require(
            self.divergence != "jsd" or 0 < self.divergence_beta < 1,
            f"algorithm.divergence_beta: expected in (0, 1), got {self.divergence_beta}",
        )
        require(self.importance_cap >= 0, f"algorithm.importance_cap: expected >= 0, got {self.importance_cap}")


@dataclass(frozen=True)
class TeacherConfig(TrackedReads):
    """The frozen teacher of on-policy distillation (``algorithm.loss: distillation``)."""

    path: str = ""  # a Hugging Face folder, a hub id, or stage:NAME; its vocabulary is the policy's; "" = no teacher
    dtype: Literal["float32", "bfloat16"] = "float32"  # of its compute
    num_workers: int = 1  # actors, each with a copy of the teacher
    cpus_per_worker: float = 1.0  # one thread each
    gpus_per_worker: float = 0.0  # may be fractional where actors share a GPU
    top_k: int = 64  # most likely tokens that travel, the rest of the mass as one; 0 = the whole vocabulary
    temperature: float = 1.0  # divides the logits of teacher and student in the divergence
    max_tokens_per_micro_batch: int = 8192  # rows are packed without padding up to this many tokens
    logprob_chunk_tokens: int = 1024  # rows of the [chunk, vocabulary] matrix that exists at a time
    call_timeout_s: float = 600.0  # a call silent for longer is an error

    def __post_init__(self) -> None:
        require(self.num_workers >= 1, f"teacher.num_workers: expected >= 1, got {self.num_workers}")
        require(self.top_k >= 0, f"teacher.top_k: expected >= 0 (0 = the whole vocabulary), got {self.top_k}")
        require(self.temperature > 0, f"teacher.temperature: expected > 0, got {self.temperature}")
        require(self.max_tokens_per_micro_batch > 0, "teacher.max_tokens_per_micro_batch: expected > 0")
        require(self.logprob_chunk_tokens > 0, "teacher.logprob_chunk_tokens: expected > 0")
