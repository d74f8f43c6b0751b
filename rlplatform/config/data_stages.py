"""Kinds that make what others train on: ``dataset``, ``init_model``, ``sample``, ``filter``, ``fusion``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from model.init import build_config
from rewards.base import RewardLoadError
from rlplatform.config.base import ConfigError, require
from rlplatform.config.generation import DataConfig, ModelConfig, RolloutConfig, SamplingConfig
from rlplatform.config.grading import EnvironmentConfig, RewardConfig
from rlplatform.reads import TrackedReads

if TYPE_CHECKING:
    from rlplatform.stages.fusion import FusionShares


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
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)

    def __post_init__(self) -> None:
        require(self.num_samples >= 1, f"num_samples: expected >= 1, got {self.num_samples}")
        require(bool(self.reward.functions), "reward.functions: expected at least one, e.g. {math: 1.0}")
        self.environment.check(self.reward, self.data)

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

        require(
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
        require(self.num >= 1, f"num: expected >= 1 conversation, got {self.num}")
        require(bool(self.thinking and self.plain), "thinking, plain: expected files of responses of both modes")
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
