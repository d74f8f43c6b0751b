"""Configuration: frozen dataclasses, YAML + OmegaConf, strict. A key nobody knows is an error with the nearest name.

One file is one run. Its ``kind`` says which dataclass reads it: ``rl``, ``sft``, ``preference`` or ``recipe`` (a list
of named stages, each of a kind of its own). Values are checked in the dataclass that owns them; what can be derived is
a property. ``configfile.py`` reads, prints and saves these.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from model.init import build_config
from model.long_context import RopeOverride
from rewards.base import RewardLoadError
from rewards.composition import Part, read_parts
from rlplatform.budget import STOP_TEXT
from rlplatform.reads import TrackedReads

if TYPE_CHECKING:
    from rlplatform.stages.fusion import FusionShares


class ConfigError(ValueError):
    """A configuration that cannot run; the message says where, what was expected and what to change."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


# --- pieces ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelConfig(TrackedReads):
    """The policy: a Hugging Face folder, a hub id, or ``stage:NAME`` (the model an earlier stage exported)."""

    path: str = ""  # a Hugging Face folder, a hub id, or stage:NAME
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the learner's compute and of the engine
    max_model_len: int = 0  # tokens, prompt + completion; 0: prompt limit + max_new_tokens
    trust_remote_code: bool = False  # run code that comes with the model; off unless you know it
    rope_theta: float = 0.0  # base of RoPE, e.g. 1000000 (ABF); 0 = as in the checkpoint
    yarn_factor: float = 0.0  # YaRN stretches yarn_original_length by this, e.g. 4; 0 = as in the checkpoint
    yarn_original_length: int = 0  # tokens the model was trained on before YaRN, e.g. 32768; with yarn_factor only

    def __post_init__(self) -> None:
        try:
            _ = self.rope
        except ValueError as error:
            raise ConfigError(f"model.{error}") from error

    @property
    def rope(self) -> RopeOverride:
        """What learner, reference model, SFT and engine change in the checkpoint's positions."""
        return RopeOverride(self.rope_theta, self.yarn_factor, self.yarn_original_length)


@dataclass(frozen=True)
class DataConfig(TrackedReads):
    """A dataset of prompts. Columns not named here go to the reward functions under their own names."""

    path: str = ""  # JSONL (.gz too), parquet, a folder of either, a hub id, or stage:NAME
    split: str = "train"  # of a hub dataset or a folder
    prompt: str = "prompt"  # column: a string, or a list of messages
    answer: str = ""  # column handed to rewards as `answer`; "" = the column `answer` where there is one
    answer_regex: str = ""  # first group (or the match) becomes the answer, e.g. '#### (.+)'
    system: str = ""  # system message put before every string prompt
    template: str = (
        ""  # python format string over the row's columns, e.g. '{prompt}\nAnswer in \\boxed{{}}.'; "" = as is
    )
    columns: dict[str, str] = field(default_factory=dict)  # rename: new name -> column of the file
    chat: bool = True  # False: the prompt string is given to the model as it is, without the chat template
    enable_thinking: bool = True  # False: the chat template opens an empty think block
    max_prompt_tokens: int = 512  # longer prompts are dropped and reported with their ids
    limit: int = 0  # use the first N rows; 0 = all
    shuffle: bool = True  # a new seeded order every epoch
    curriculum: str = ""  # column with each prompt's pass rate: RL asks the easy ones first; "" = no order
    curriculum_buckets: int = 4  # of equal size by pass rate, each for an equal part of num_steps

    def __post_init__(self) -> None:
        _require(self.curriculum_buckets >= 1, f"data.curriculum_buckets: expected >= 1, got {self.curriculum_buckets}")
        _require(self.max_prompt_tokens > 0, f"data.max_prompt_tokens: expected > 0, got {self.max_prompt_tokens}")
        _require(self.limit >= 0, f"data.limit: expected >= 0 (0 = all rows), got {self.limit}")


@dataclass(frozen=True)
class SamplingConfig(TrackedReads):
    """Neutral by default: temperature 1, no truncation, no penalties, whatever generation_config says."""

    max_new_tokens: int = 256  # a completion cut here has finish `length`
    temperature: float = 1.0  # 0 = greedy
    top_p: float = 1.0  # 1 = off
    top_k: int = -1  # -1 = off
    min_p: float = 0.0  # 0 = off
    repetition_penalty: float = 1.0  # 1 = off
    presence_penalty: float = 0.0  # 0 = off
    frequency_penalty: float = 0.0  # 0 = off
    stop_token_ids: tuple[int, ...] = ()  # added to those of config, generation_config, tokenizer and template
    thinking_budget: int | None = None  # tokens of thought, then thinking_stop_text ends it; a column of the name wins
    thinking_stop_text: str = STOP_TEXT  # inserted at the budget, not trained on; ends the thought

    def __post_init__(self) -> None:
        budget = self.thinking_budget
        _require(budget is None or budget >= 0, f"sampling.thinking_budget: expected >= 0 or null, got {budget}")
        _require("</think>" in self.thinking_stop_text, "sampling.thinking_stop_text: expected </think> in it")
        _require(self.max_new_tokens > 0, f"sampling.max_new_tokens: expected > 0, got {self.max_new_tokens}")
        _require(self.temperature >= 0, f"sampling.temperature: expected >= 0, got {self.temperature}")
        _require(0 < self.top_p <= 1, f"sampling.top_p: expected in (0, 1], got {self.top_p}")


@dataclass(frozen=True)
class RolloutConfig(TrackedReads):
    """The vLLM fleet."""

    num_workers: int = 1  # engines
    cpus_per_worker: float = 1.0  # on CPU: one thread each; two engines of one thread beat one engine of two
    gpus_per_worker: float = 0.0  # may be fractional where actors share a GPU
    tensor_parallel_size: int = 1  # GPUs one engine spans
    max_num_seqs: int = 256  # sequences an engine runs at once
    max_batched_tokens: int = 8192  # tokens an engine computes in one step
    kv_cache_gib: float = 1.0  # CPU backend; on GPU see gpu_memory_utilization
    gpu_memory_utilization: float = 0.85  # share of GPU memory the engine takes
    enforce_eager: bool = True  # no CUDA graphs, no compilation; on CPU faster in every way
    seed: int = 0  # the engine's own; requests carry seeds derived from the run seed
    call_timeout_s: float = 120.0  # a worker silent for longer is killed, restarted, its requests put back
    start_timeout_s: float = 300.0  # an actor not up by then is an error
    max_restarts: int = 3  # per worker, then the run stops

    def __post_init__(self) -> None:
        _require(self.num_workers >= 1, f"rollout.num_workers: expected >= 1, got {self.num_workers}")
        _require(self.tensor_parallel_size >= 1, "rollout.tensor_parallel_size: expected >= 1")


@dataclass(frozen=True)
class EnvironmentConfig(TrackedReads):
    """What answers the policy between its turns, and grades the episode; none by default (docs/environments.md)."""

    name: str = ""  # of all rows: calculator, python_sandbox, ..., package.module:NAME or path/file.py:NAME
    column: str = ""  # instead of name: the column that names each row's; a row where it is empty has one turn
    args: dict[str, Any] = field(default_factory=dict)  # settings of the environment
    max_turns: int = 8  # of the assistant; what follows the prompt is limited by sampling.max_new_tokens
    max_turn_tokens: int = 0  # of one turn; 0 = sampling.max_new_tokens
    step_timeout_s: float = 10.0  # an environment silent for longer gives the verdict timeout
    close_cut_turns: bool = False  # a turn cut at max_turn_tokens is ended by us and answered; else it ends the episode

    def __post_init__(self) -> None:
        _require(not (self.name and self.column), "environment: expected name or column, got both")
        _require(self.max_turns >= 1, f"environment.max_turns: expected >= 1, got {self.max_turns}")
        _require(self.max_turn_tokens >= 0, f"environment.max_turn_tokens: expected >= 0, got {self.max_turn_tokens}")
        _require(self.step_timeout_s > 0, f"environment.step_timeout_s: expected > 0, got {self.step_timeout_s}")

    def __bool__(self) -> bool:
        return bool(self.name or self.column)

    def check(self, reward: RewardConfig, data: DataConfig) -> None:
        """Raises ConfigError where its verdicts would reach nobody, or prompts are no conversations."""
        if not self:
            return
        graded = any(part.function == "environment" for part in reward.parts.values()) if reward.functions else False
        _require(
            graded,
            "reward.functions: expected `environment` among them, e.g. {environment: 1.0}: it is the environment's "
            "verdict (weight 0 where it should not be trained on; its errors must not count as the policy's)",
        )
        _require(data.chat, "data.chat: expected true with an environment: it speaks in messages")


@dataclass(frozen=True)
class RewardConfig(TrackedReads):
    """Reward functions and what each counts for; the names are built in, `package.module:fn` or `path/file.py:fn`."""

    functions: dict[str, Any] = field(default_factory=dict)  # name -> weight, or a mapping: see docs/rewards.md
    num_workers: int = 1  # reward service actors, each with a pool of child processes
    processes_per_worker: int = 1  # child processes a service grades in
    timeout_s: float = 10.0  # per row; a batch gets one deadline, then is repeated row by row
    max_error_rate: float = 0.2  # share of verdicts of one step with status error or timeout that stops the run
    call_timeout_s: float = 300.0  # a call silent for longer is an error
    probe: bool = True  # call each function once before anything starts; async and served ones are only checked
    shuffle_control: bool = False  # control experiment: verdicts permuted inside each group; such a run must not learn

    def __post_init__(self) -> None:
        _require(self.timeout_s > 0, f"reward.timeout_s: expected > 0, got {self.timeout_s}")
        _require(self.processes_per_worker >= 1, "reward.processes_per_worker: expected >= 1")
        _require(self.num_workers >= 1, f"reward.num_workers: expected >= 1, got {self.num_workers}")
        if self.functions:
            try:
                read_parts(self.functions)
            except RewardLoadError as error:
                raise ConfigError(str(error)) from error

    @property
    def parts(self) -> dict[str, Part]:
        """The functions by their short names, as checked."""
        return read_parts(self.functions)


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
        _require(0 <= self.clip_low < 1, f"algorithm.clip_low: expected in [0, 1), got {self.clip_low}")
        _require(self.clip_high >= 0, f"algorithm.clip_high: expected >= 0, got {self.clip_high}")
        _require(
            self.dual_clip == 0 or self.dual_clip > 1,
            f"algorithm.dual_clip: expected 0 (off) or > 1, got {self.dual_clip}",
        )
        _require(self.kl_coef >= 0, f"algorithm.kl_coef: expected >= 0, got {self.kl_coef}")
        if self.kl_coef:  # losses.check_kl_placement says why
            fitting = ("k1",) if self.kl_in == "reward" else ("k2", "k3")
            _require(
                self.kl_estimator in fitting,
                f"algorithm.kl_estimator: expected {' or '.join(fitting)} with kl_in={self.kl_in}, "
                f"got {self.kl_estimator}: another one does not have the gradient of the KL there",
            )
        _require(
            self.entropy_target >= 0 and self.entropy_delta > 0,
            f"algorithm.entropy_target, entropy_delta: expected >= 0 (0 = off) and > 0, got {self.entropy_target} and "
            f"{self.entropy_delta}",
        )
        _require(
            not self.entropy_target or self.entropy_coef >= 0,
            f"algorithm.entropy_coef: expected >= 0 with entropy_target, got {self.entropy_coef}",
        )
        _require(
            self.divergence != "jsd" or 0 < self.divergence_beta < 1,
            f"algorithm.divergence_beta: expected in (0, 1), got {self.divergence_beta}",
        )
        _require(self.importance_cap >= 0, f"algorithm.importance_cap: expected >= 0, got {self.importance_cap}")


@dataclass(frozen=True)
class OptimizerConfig(TrackedReads):
    """AdamW and its schedule, counted in optimiser steps."""

    lr: float = 1e-6  # peak learning rate
    betas: tuple[float, float] = (0.9, 0.95)  # AdamW
    eps: float = 1e-8  # AdamW
    weight_decay: float = 0.0  # on matrices, not on norms and biases
    max_grad_norm: float = 1.0  # gradients are clipped to this norm; 0 = off
    warmup_steps: int = 0  # linear rise, in optimiser steps
    decay: Literal["constant", "linear", "cosine"] = "constant"  # over the optimiser steps of the whole run
    final_lr_ratio: float = 0.0  # lr of the last step / lr, for linear and cosine
    max_skipped_steps: int = 5  # non-finite gradients in a row that stop the run

    def __post_init__(self) -> None:
        _require(self.lr >= 0, f"optimizer.lr: expected >= 0, got {self.lr}")
        _require(0 <= self.final_lr_ratio <= 1, "optimizer.final_lr_ratio: expected in [0, 1]")
        _require(self.warmup_steps >= 0, "optimizer.warmup_steps: expected >= 0")


@dataclass(frozen=True)
class LoraConfig(TrackedReads):
    """Low-rank adapters (arXiv 2106.09685): W + alpha / rank * B A; only A and B are trained. Published merged."""

    rank: int = 0  # rows of A; 0 = off: every weight is trained
    alpha: float = 16.0  # strength: B A counts alpha / rank
    dropout: float = 0.0  # on the adapters' input, while training; SFT only
    targets: tuple[str, ...] = ()  # linear layers, e.g. [q_proj, v_proj]; [] = all of attention and dense MLPs

    def __post_init__(self) -> None:
        _require(self.rank >= 0, f"learner.lora.rank: expected >= 0 (0 = off), got {self.rank}")
        _require(self.alpha > 0, f"learner.lora.alpha: expected > 0, got {self.alpha}")
        _require(0 <= self.dropout < 1, f"learner.lora.dropout: expected in [0, 1), got {self.dropout}")

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
        _require(self.num_workers >= 1, f"learner.num_workers: expected >= 1, got {self.num_workers}")
        _require(self.max_tokens_per_micro_batch > 0, "learner.max_tokens_per_micro_batch: expected > 0")
        _require(self.logprob_chunk_tokens > 0, "learner.logprob_chunk_tokens: expected > 0")
        _require(
            not (self.compile and self.zero_stage == 3),
            "learner.compile: expected zero_stage 0, 1 or 2, got 3, whose gathering hooks would be compiled away",
        )
        _require((self.router_balance_coef or 0.0) >= 0, "learner.router_balance_coef: expected >= 0")
        _require(self.router_z_coef >= 0, "learner.router_z_coef: expected >= 0")


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
        _require(self.num_workers >= 1, f"teacher.num_workers: expected >= 1, got {self.num_workers}")
        _require(self.top_k >= 0, f"teacher.top_k: expected >= 0 (0 = the whole vocabulary), got {self.top_k}")
        _require(self.temperature > 0, f"teacher.temperature: expected > 0, got {self.temperature}")
        _require(self.max_tokens_per_micro_batch > 0, "teacher.max_tokens_per_micro_batch: expected > 0")
        _require(self.logprob_chunk_tokens > 0, "teacher.logprob_chunk_tokens: expected > 0")


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
class CheckpointConfig(TrackedReads):
    every: int = 0  # steps; 0 = only the last
    keep_last: int = 2  # newest checkpoints kept
    keep_best: int = 1  # by held-out accuracy

    def __post_init__(self) -> None:
        _require(self.keep_last >= 1, f"checkpoint.keep_last: expected >= 1, got {self.keep_last}")


@dataclass(frozen=True)
class TrackerConfig(TrackedReads):
    tensorboard: bool = True  # event files in the run folder
    wandb_project: str = ""  # "" = off; needs the extra `wandb`
    rollouts: bool = True  # every rollout as parquet


# --- kinds of run ---------------------------------------------------------------------------------------------------


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
            _require(getattr(self, key) >= 1, f"{key}: expected >= 1, got {getattr(self, key)}")
        _require(self.max_lag >= 0, f"max_lag: expected >= 0, got {self.max_lag}")
        _require(
            self.learner.lora.dropout == 0,
            f"learner.lora.dropout: expected 0 in reinforcement learning, got {self.learner.lora.dropout}: two "
            "forwards of one token must agree, or the ratios of the loss are noise",
        )
        _require(bool(self.reward.functions), "reward.functions: expected at least one, e.g. {math: 1.0}")
        self.environment.check(self.reward, self.data)
        distills = self.algorithm.loss == "distillation"
        _require(
            distills == bool(self.teacher.path),
            f"teacher.path: expected a model with algorithm.loss=distillation and none without, got "
            f"{self.teacher.path!r} with {self.algorithm.loss}",
        )
        _require(
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
        _require(
            rows % self.updates_per_step == 0,
            f"updates_per_step: {self.prompts_per_step} prompts x {self.group_size} samples = {rows} rows do not "
            f"divide into {self.updates_per_step} optimiser steps",
        )
        _require(
            rows // self.updates_per_step >= self.learner.num_workers,
            f"updates_per_step: {rows // self.updates_per_step} rows an optimiser step are fewer than "
            f"learner.num_workers={self.learner.num_workers}",
        )
        _require(
            self.group_size <= self.rollout.max_num_seqs,
            f"group_size={self.group_size}: expected at most rollout.max_num_seqs={self.rollout.max_num_seqs}",
        )
        _require(
            not (self.algorithm.dynamic_sampling and self.max_lag),
            "algorithm.dynamic_sampling with max_lag > 0: refills would make the prompt order depend on timing, and a "
            "resumed run would differ; set max_lag=0 or dynamic_sampling=false",
        )
        _require(
            not (self.data.curriculum and self.algorithm.dynamic_sampling),
            "data.curriculum with algorithm.dynamic_sampling: a step's prompts follow from its number, refills have "
            "none; set dynamic_sampling=false",
        )
        if self.algorithm.overlong_buffer:
            _require(
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
    max_tokens: int = 1024  # rows longer than this are dropped and reported
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-3))
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    stop_at_probability: float = 0.0  # > 0: end once sampling would write whole targets this often (mean of 20 steps)
    max_failures: int = 2  # Ray Train restarts from the last checkpoint this many times

    def __post_init__(self) -> None:
        _require(self.num_steps >= 1, f"num_steps: expected >= 1, got {self.num_steps}")
        _require(
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
        _require(self.num_steps >= 1, f"num_steps: expected >= 1, got {self.num_steps}")
        _require(
            self.tokens_per_step >= 2 * self.max_tokens * self.learner.num_workers,
            f"tokens_per_step={self.tokens_per_step}: expected at least 2 x max_tokens x learner.num_workers = "
            f"{2 * self.max_tokens * self.learner.num_workers}, so that every rank can hold the longest pair",
        )
        _require(self.data.chat, "data.chat: expected true: a reward model reads conversations")
        _require(0 <= self.heldout_share < 1, f"heldout_share: expected in [0, 1), got {self.heldout_share}")
        _require(self.centring >= 0, f"centring: expected >= 0, got {self.centring}")
        _require(
            not (self.margin and self.margin_column),
            f"margin={self.margin:g} and margin_column={self.margin_column!r}: expected one of the two",
        )
        _require(
            self.learner.lora.rank == 0,
            f"learner.lora.rank: expected 0, got {self.learner.lora.rank}: reward models are trained whole",
        )


@dataclass(frozen=True)
class EvalConfig(TrackedReads):
    """Held-out pass@1 and pass@k of a model, on the vLLM fleet."""

    kind: Literal["eval"] = "eval"  # which kind of run this file is
    name: str = "eval"  # shown in progress and reports
    seed: int = 0  # every random draw of the run derives from it
    run_dir: str = "runs/${name}"  # where everything the run leaves behind lies
    num_samples: int = 4  # per problem; > 1 gives pass@k
    greedy: bool = True  # also one greedy sample a problem
    metric: str = ""  # the reward part that counts as accuracy; "" = the first function
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=lambda: DataConfig(split="test", shuffle=False))
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)

    def __post_init__(self) -> None:
        self.environment.check(self.reward, self.data)

    @property
    def max_model_len(self) -> int:
        return self.model.max_model_len or self.data.max_prompt_tokens + self.sampling.max_new_tokens


@dataclass(frozen=True)
class BenchmarksConfig(TrackedReads):
    """A model measured on the table of benchmarks (docs/evaluation.md), in both modes and at budgets, on one engine."""

    kind: Literal["benchmarks"] = "benchmarks"  # which kind of run this file is
    name: str = "benchmarks"  # shown in progress and reports
    seed: int = 0  # every random draw of the run derives from it
    run_dir: str = "runs/${name}"  # where everything the run leaves behind lies
    benchmarks: tuple[str, ...] = ()  # names in the table; [] = all of them
    modes: tuple[str, ...] = ("thinking", "non_thinking")  # those of the chat template's enable_thinking
    budgets: tuple[int, ...] = ()  # also a sweep in thinking mode: tokens of thought, each on the same problems
    num_samples: int = 0  # per problem; 0 = as the table says
    limit: int = 0  # problems a benchmark, spread evenly over it; 0 = all
    data_dir: str = ""  # a folder with the files the table names; "" = each set's hub id
    paths: dict[str, str] = field(default_factory=dict)  # benchmark -> a file, folder or hub id of its own
    max_prompt_tokens: int = 4096  # longer prompts are left out, counted and named
    sampling: dict[str, Any] = field(default_factory=dict)  # keys of `sampling` that differ from the table, both modes
    report_model: str = "Qwen3-32B"  # whose published figures stand beside ours, where there are any
    model: ModelConfig = field(default_factory=ModelConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)  # workers and limits; the functions are the table's

    def __post_init__(self) -> None:
        known = ("thinking", "non_thinking")
        _require(set(self.modes) <= set(known), f"modes: expected some of {', '.join(known)}, got {list(self.modes)}")
        _require(bool(self.modes or self.budgets), "modes: expected at least one, or budgets")
        _require(
            all(budget >= 0 for budget in self.budgets) and len(set(self.budgets)) == len(self.budgets),
            f"budgets: expected different numbers of tokens >= 0, got {list(self.budgets)}",
        )
        _require(self.num_samples >= 0, f"num_samples: expected >= 0 (0 = the table's), got {self.num_samples}")
        _require(self.limit >= 0, f"limit: expected >= 0 (0 = all), got {self.limit}")
        _require(
            not self.reward.functions,
            f"reward.functions: expected none, the table of benchmarks has them; got {sorted(self.reward.functions)}",
        )
        keys = [one.name for one in fields(SamplingConfig)]
        _require(
            set(self.sampling) <= set(keys) - {"thinking_budget"},
            f"sampling: expected some of {', '.join(keys)} (not thinking_budget), got {list(self.sampling)}",
        )


@dataclass(frozen=True)
class DatasetConfig(TrackedReads):
    """Rows made by a function: ``fn(**args)`` yields dicts for each split."""

    kind: Literal["dataset"] = "dataset"  # which kind of run this file is
    name: str = "dataset"  # shown in progress and reports
    seed: int = 0  # every random draw of the run derives from it
    run_dir: str = "runs/${name}"  # where everything the run leaves behind lies
    function: str = ""  # package.module:fn or path/file.py:fn; called as fn(seed=seed, **args) -> {split: rows}
    args: dict[str, Any] = field(default_factory=dict)  # keyword arguments of the function


@dataclass(frozen=True)
class InitModelConfig(TrackedReads):
    """A fresh model with random weights and a tokenizer trained on a dataset."""

    kind: Literal["init_model"] = "init_model"  # which kind of run this file is
    name: str = "init_model"  # shown in progress and reports
    seed: int = 0  # every random draw of the run derives from it
    run_dir: str = "runs/${name}"  # where everything the run leaves behind lies
    data: DataConfig = field(default_factory=DataConfig)  # text to train the tokenizer on
    vocab_size: int = 512  # rows of the embedding, special tokens included
    architecture: dict[str, Any] = field(default_factory=dict)  # preset (default tiny) and Qwen3Config's fields
    tokenizer: str = ""  # use this tokenizer folder instead of training one

    def __post_init__(self) -> None:
        try:
            build_config(self.architecture)
        except ValueError as error:
            raise ConfigError(str(error)) from error


@dataclass(frozen=True)
class SampleConfig(TrackedReads):
    """Completions of every query from a model on the vLLM fleet, graded: rows for the stages after it (docs/recipe.md).

    Leaves ``responses.jsonl`` (a row a completion) and ``queries.jsonl`` (a row a query, with its pass rate).
    """

    kind: Literal["sample"] = "sample"  # which kind of run this file is
    name: str = "sample"  # shown in progress and reports
    seed: int = 0  # every random draw of the run derives from it
    run_dir: str = "runs/${name}"  # where everything the run leaves behind lies
    num_samples: int = 4  # completions a query
    metric: str = ""  # the reward part that is the score of a response; "" = the first function
    demonstration: str = ""  # column with a good response; only read where use_demonstrations is on
    use_demonstrations: bool = False  # --smoke: every second sample is the demonstration, for models that know nothing
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=lambda: DataConfig(shuffle=False))
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)

    def __post_init__(self) -> None:
        _require(self.num_samples >= 1, f"num_samples: expected >= 1, got {self.num_samples}")
        _require(bool(self.reward.functions), "reward.functions: expected at least one, e.g. {math: 1.0}")

    @property
    def max_model_len(self) -> int:
        return self.model.max_model_len or self.data.max_prompt_tokens + self.sampling.max_new_tokens


@dataclass(frozen=True)
class FilterConfig(TrackedReads):
    """Named filters over the rows of an earlier stage, each with a reason for every row it drops (docs/recipe.md).

    Leaves ``train.jsonl`` (what was kept), ``records.parquet`` (every row, with its decision), ``validation.jsonl``
    (where ``hold_out`` took rows) and ``never_solved.jsonl`` (responses of queries without a correct one).
    """

    kind: Literal["filter"] = "filter"  # which kind of run this file is
    name: str = "filter"  # shown in progress and reports
    seed: int = 0  # every random draw of the run derives from it
    run_dir: str = "runs/${name}"  # where everything the run leaves behind lies
    data: DataConfig = field(default_factory=lambda: DataConfig(shuffle=False))  # the rows, with `id` and `prompt`
    steps: dict[str, Any] = field(default_factory=dict)  # filter -> its settings, in order; see rlplatform/stages
    messages: bool = False  # kept responses become conversations that an sft stage trains
    verdicts: str = ""  # never_solved.jsonl with people's verdicts, which then count as the grader's; "" = none

    def __post_init__(self) -> None:
        from rlplatform.stages.registry import check_step

        _require(
            not (self.verdicts and Path(self.run_dir).absolute() in Path(self.verdicts).absolute().parents),
            f"verdicts={self.verdicts}: expected a copy outside {self.run_dir}, which is set aside when the stage runs "
            "again",
        )
        for name, settings in self.steps.items():
            try:
                check_step(name, settings)
            except (ValueError, RewardLoadError) as error:
                raise ConfigError(str(error)) from error

    @property
    def files(self) -> list[str]:
        """What is read beside the rows."""
        from rlplatform.stages.registry import files_of

        named = [path for settings in self.steps.values() for path in files_of(settings)]
        return [*named, *([self.verdicts] if self.verdicts else [])]


@dataclass(frozen=True)
class FusionConfig(TrackedReads):
    """One SFT set of both thinking modes, from judged responses (docs/fusion.md, docs/recipe.md).

    Leaves ``train.jsonl`` (conversations) and ``thinking.parquet`` and ``plain.parquet`` (every response, with its
    decision).
    """

    kind: Literal["fusion"] = "fusion"  # which kind of run this file is
    name: str = "fusion"  # shown in progress and reports
    seed: int = 0  # every random draw of the run derives from it
    run_dir: str = "runs/${name}"  # where everything the run leaves behind lies
    thinking: tuple[str, ...] = ()  # files of judged responses with a thought; those that are right are used
    plain: tuple[str, ...] = ()  # files of responses without a thought; checked by their checklists
    num: int = 1000  # conversations
    task: str = ""  # the task of plain responses that have no column `task`; "" = every row has one
    check: bool = True  # plain responses must meet their checklists (rlplatform/stages/checklists.py)
    shares: dict[str, Any] = field(default_factory=dict)  # of modes, flags, turns; see FusionShares
    low_resource: tuple[str, ...] = ()  # languages whose translations get shares.translation of the plain turns
    systems: tuple[str, ...] = ()  # system messages, without flags
    system_share: float = 0.0  # of conversations that have one of them
    repeat: bool = False  # may a response be used again once all have been?

    def __post_init__(self) -> None:
        _require(self.num >= 1, f"num: expected >= 1 conversation, got {self.num}")
        _require(bool(self.thinking and self.plain), "thinking, plain: expected files of responses of both modes")
        try:
            _ = self.fusion_shares
        except (TypeError, ValueError) as error:
            raise ConfigError(f"shares: {error}") from error

    @property
    def files(self) -> list[str]:
        """What is read."""
        return [*self.thinking, *self.plain]

    @property
    def fusion_shares(self) -> FusionShares:
        """The shares, checked; in YAML the numbers of turns may be strings."""
        from rlplatform.stages.fusion import FusionShares

        shares = dict(self.shares)
        if "turns" in shares:
            shares["turns"] = {int(turns): float(share) for turns, share in shares["turns"].items()}
        return FusionShares(**shares)


@dataclass(frozen=True)
class RecipeConfig(TrackedReads):
    """Named stages, run in order on one Ray cluster, each skipped when it is already finished."""

    kind: Literal["recipe"] = "recipe"  # which kind of run this file is
    name: str = "recipe"  # shown in progress and reports
    seed: int = 0  # every random draw of the run derives from it
    run_dir: str = "runs/${name}"  # where everything the run leaves behind lies
    stages: dict[str, Any] = field(default_factory=dict)  # name -> a config of any other kind

    def __post_init__(self) -> None:
        _require(bool(self.stages), "stages: expected at least one")


RunConfig = (
    RLConfig
    | SFTConfig
    | PreferenceConfig
    | EvalConfig
    | BenchmarksConfig
    | DatasetConfig
    | InitModelConfig
    | SampleConfig
    | FilterConfig
    | FusionConfig
    | RecipeConfig
)
KINDS: dict[str, type] = {
    "rl": RLConfig,
    "sft": SFTConfig,
    "preference": PreferenceConfig,
    "eval": EvalConfig,
    "benchmarks": BenchmarksConfig,
    "dataset": DatasetConfig,
    "init_model": InitModelConfig,
    "sample": SampleConfig,
    "filter": FilterConfig,
    "fusion": FusionConfig,
    "recipe": RecipeConfig,
}
