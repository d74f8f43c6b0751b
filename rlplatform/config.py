"""Configuration: frozen dataclasses, YAML + OmegaConf, strict. A key nobody knows is an error with the nearest name.

One file is one run. Its ``kind`` says which dataclass reads it: ``rl``, ``sft`` or ``recipe`` (a list of named stages,
each of a kind of its own). Values are checked in the dataclass that owns them; what can be derived is a property.
``configfile.py`` reads, prints and saves these.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from rlplatform.reads import TrackedReads


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

    def __post_init__(self) -> None:
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

    def __post_init__(self) -> None:
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
class RewardConfig(TrackedReads):
    """Weighted sum of reward functions. Names of the built-in table, `package.module:fn` or `path/file.py:fn`."""

    functions: dict[str, float] = field(default_factory=dict)  # name -> weight
    num_workers: int = 1  # reward service actors, each with a pool of child processes
    processes_per_worker: int = 1  # child processes a service grades in
    timeout_s: float = 10.0  # per row; a batch gets one deadline, then is repeated row by row
    max_error_rate: float = 0.2  # share of verdicts of one step with status error or timeout that stops the run
    call_timeout_s: float = 300.0  # a call silent for longer is an error
    shuffle_control: bool = False  # control experiment: verdicts permuted inside each group; such a run must not learn

    def __post_init__(self) -> None:
        _require(self.timeout_s > 0, f"reward.timeout_s: expected > 0, got {self.timeout_s}")
        _require(self.processes_per_worker >= 1, "reward.processes_per_worker: expected >= 1")


@dataclass(frozen=True)
class AlgorithmConfig(TrackedReads):
    """Advantages and loss. Defaults: GRPO with DAPO's token-mean, no KL, truncated importance correction on."""

    advantage: Literal["group_mean_std", "group_mean", "leave_one_out"] = (
        "group_mean_std"  # see rlplatform/advantages.py
    )
    loss: Literal["clipped_policy_gradient"] = "clipped_policy_gradient"  # see rlplatform/losses.py
    aggregation: Literal["token_mean", "sequence_mean", "constant_length"] = (
        "token_mean"  # how token losses become one number; its denominator is global
    )
    clip_low: float = 0.2  # ratio clip below: 1 - clip_low
    clip_high: float = 0.2  # DAPO's clip-higher: 0.28
    dual_clip: float = 0.0  # > 1 bounds the loss of negative advantages; 0 = off
    kl_coef: float = 0.0  # weight of the KL to the initial model; 0 = no reference model
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"  # k1 in the reward; k2 or k3 in the loss
