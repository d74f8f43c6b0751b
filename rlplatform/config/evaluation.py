"""``kind: eval`` and ``kind: benchmarks``: measuring a model."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from rlplatform.config.base import require
from rlplatform.config.generation import DataConfig, ModelConfig, RolloutConfig, SamplingConfig
from rlplatform.config.grading import EnvironmentConfig, RewardConfig
from rlplatform.reads import TrackedReads


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
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)  # of benchmark `own`: its verdict counts
    reward: RewardConfig = field(default_factory=RewardConfig)  # workers and limits; the functions are the table's

    def __post_init__(self) -> None:
        known = ("thinking", "non_thinking")
        require(set(self.modes) <= set(known), f"modes: expected some of {', '.join(known)}, got {list(self.modes)}")
        require(bool(self.modes or self.budgets), "modes: expected at least one, or budgets")
        require(
            all(budget >= 0 for budget in self.budgets) and len(set(self.budgets)) == len(self.budgets),
            f"budgets: expected different numbers of tokens >= 0, got {list(self.budgets)}",
        )
        require(self.num_samples >= 0, f"num_samples: expected >= 0 (0 = the table's), got {self.num_samples}")
        require(self.limit >= 0, f"limit: expected >= 0 (0 = all), got {self.limit}")
        require(
            not self.reward.functions,
            f"reward.functions: expected none, the table of benchmarks has them; got {sorted(self.reward.functions)}",
        )
        keys = [one.name for one in fields(SamplingConfig)]
        require(
            set(self.sampling) <= set(keys) - {"thinking_budget"},
            f"sampling: expected some of {', '.join(keys)} (not thinking_budget), got {list(self.sampling)}",
        )
