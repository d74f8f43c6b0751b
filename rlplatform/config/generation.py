"""What the engines generate: the model, the prompts, how completions are sampled, on how many engines."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from model.long_context import RopeOverride
from rlplatform.budget import STOP_TEXT
from rlplatform.config.base import ConfigError, require
from rlplatform.reads import TrackedReads


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
        require(self.curriculum_buckets >= 1, f"data.curriculum_buckets: expected >= 1, got {self.curriculum_buckets}")
        require(self.max_prompt_tokens > 0, f"data.max_prompt_tokens: expected > 0, got {self.max_prompt_tokens}")
        require(self.limit >= 0, f"data.limit: expected >= 0 (0 = all rows), got {self.limit}")


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
        require(budget is None or budget >= 0, f"sampling.thinking_budget: expected >= 0 or null, got {budget}")
        require("</think>" in self.thinking_stop_text, "sampling.thinking_stop_text: expected </think> in it")
        require(self.max_new_tokens > 0, f"sampling.max_new_tokens: expected > 0, got {self.max_new_tokens}")
        require(self.temperature >= 0, f"sampling.temperature: expected >= 0, got {self.temperature}")
        require(0 < self.top_p <= 1, f"sampling.top_p: expected in (0, 1], got {self.top_p}")


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
        require(self.num_workers >= 1, f"rollout.num_workers: expected >= 1, got {self.num_workers}")
        require(self.tensor_parallel_size >= 1, "rollout.tensor_parallel_size: expected >= 1")
