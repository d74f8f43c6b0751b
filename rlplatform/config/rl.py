"""``kind: rl``, and what only it has: publishing weights, evaluation on the way, trackers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from rlplatform.config.algorithm import AlgorithmConfig, TeacherConfig
from rlplatform.config.base import require
from rlplatform.config.generation import DataConfig, ModelConfig, RolloutConfig, SamplingConfig
from rlplatform.config.grading import EnvironmentConfig, RewardConfig
from rlplatform.config.learner import CheckpointConfig, LearnerConfig, OptimizerConfig
from rlplatform.reads import TrackedReads


@dataclass(frozen=True)
class PublishConfig(TrackedReads):
    """How weights travel from the learner to the engines, and how that is verified."""

    transport: Literal["object_store", "collective"] = "object_store"  # collective: NCCL on GPU, gloo on CPU
    full_verify_every: int = 10  # publishes between exact comparisons of every tensor; the first is always exact
    full_verify_max_mib: int = 64  # models up to this size are compared exactly on every publish
    parity_gate: bool = True  # step 0: learner and engine logprobs must agree, or the run stops with a report
    parity_tolerance: float = 0.0  # mean |difference|, nats; 0 = 1e-4 in float32, measured reference in bfloat16


@dataclass(frozen=True)
class EvaluationConfig(TrackedReads):
    """Held-out evaluation at step 0, every k steps and last."""

    data: DataConfig = field(default_factory=lambda: DataConfig(split="test", shuffle=False))
    every: int = 0  # steps; 0 = only first and last
    num_samples: int = 1  # per problem; > 1 gives pass@k
    temperature: float = 1.0  # 0 = greedy
    greedy: bool = False  # also one greedy sample a problem
    metric: str = ""  # the reward part that counts as accuracy; "" = the first function


@dataclass(frozen=True)
class TrackerConfig(TrackedReads):
    tensorboard: bool = True  # event files in the run folder
    wandb_project: str = ""  # "" = off; needs the extra `wandb`
    rollouts: bool = True  # every rollout as parquet


@dataclass(frozen=True)
class RLConfig(TrackedReads):
    """One reinforcement learning run. Three knobs set the batch size; the rest is derived and printed."""

    kind: Literal["rl"] = "rl"  # which kind of run this file is
    name: str = "rl"  # shown in progress and reports
    seed: int = 0  # every random draw of the run derives from it
    run_dir: str = "runs/${name}"  # where everything the run leaves behind lies
    num_steps: int = 100  # updates of the policy
    prompts_per_step: int = 16  # questions asked a step
    group_size: int = 8  # completions sampled a question
    updates_per_step: int = 1  # optimiser steps over the rows of one step; > 1 trains off-policy minibatches
    max_lag: int = 0  # batches of prompts generating ahead of the learner; 0 = strictly on-policy
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    publish: PublishConfig = field(default_factory=PublishConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)

    def __post_init__(self) -> None:
        for key in ("num_steps", "prompts_per_step", "group_size", "updates_per_step"):
            require(getattr(self, key) >= 1, f"{key}: expected >= 1, got {getattr(self, key)}")
        require(self.max_lag >= 0, f"max_lag: expected >= 0, got {self.max_lag}")
        require(
            self.learner.lora.dropout == 0,
            f"learner.lora.dropout: expected 0 in reinforcement learning, got {self.learner.lora.dropout}: two "
            "forwards of one token must agree, or the ratios of the loss are noise",
        )
        require(bool(self.reward.functions), "reward.functions: expected at least one, e.g. {math: 1.0}")
        self.environment.check(self.reward, self.data)
        distills = self.algorithm.loss == "distillation"
        require(
            distills == bool(self.teacher.path),
            f"teacher.path: expected a model with algorithm.loss=distillation and none without, got "
            f"{self.teacher.path!r} with {self.algorithm.loss}",
        )
        require(
            not (
                distills
                and (
                    self.algorithm.kl_coef
                    or self.algorithm.dynamic_sampling
                    or self.algorithm.entropy_coef
                    or self.algorithm.entropy_target
                )
            ),
            "algorithm: expected kl_coef=0, entropy_coef=0, entropy_target=0 and dynamic_sampling=false with "
            "loss=distillation, which knows no reference and reads no reward",
        )
        rows = self.prompts_per_step * self.group_size
        require(
            rows % self.updates_per_step == 0,
            f"updates_per_step: {self.prompts_per_step} prompts x {self.group_size} samples = {rows} rows do not "
            f"divide into {self.updates_per_step} optimiser steps",
        )
        require(
            rows // self.updates_per_step >= self.learner.num_workers,
            f"updates_per_step: {rows // self.updates_per_step} rows an optimiser step are fewer than "
            f"learner.num_workers={self.learner.num_workers}",
        )
        require(
            self.group_size <= self.rollout.max_num_seqs,
            f"group_size={self.group_size}: expected at most rollout.max_num_seqs={self.rollout.max_num_seqs}",
        )
        require(
            not (self.algorithm.dynamic_sampling and self.max_lag),
            "algorithm.dynamic_sampling with max_lag > 0: refills would make the prompt order depend on timing, and a "
            "resumed run would differ; set max_lag=0 or dynamic_sampling=false",
        )
        require(
            not (self.data.curriculum and self.algorithm.dynamic_sampling),
            "data.curriculum with algorithm.dynamic_sampling: a step's prompts follow from its number, refills have "
            "none; set dynamic_sampling=false",
        )
        if self.algorithm.overlong_buffer:
            require(
                self.algorithm.overlong_buffer < self.sampling.max_new_tokens,
                "algorithm.overlong_buffer: expected fewer tokens than sampling.max_new_tokens",
            )

    @property
    def rows_per_step(self) -> int:
        return self.prompts_per_step * self.group_size

    @property
    def num_optimizer_steps(self) -> int:
        return self.num_steps * self.updates_per_step

    @property
    def shaping(self) -> dict[str, Any]:
        """What decides which rollouts count and what they earn: for ``drop_zero_variance`` and ``make_batch`` alike."""
        return {
            "drop_truncated": self.algorithm.drop_truncated,
            "max_new_tokens": self.sampling.max_new_tokens,
            "overlong_buffer": self.algorithm.overlong_buffer,
            "overlong_penalty": self.algorithm.overlong_penalty,
        }

    @property
    def max_model_len(self) -> int:
        return self.model.max_model_len or self.data.max_prompt_tokens + self.sampling.max_new_tokens
