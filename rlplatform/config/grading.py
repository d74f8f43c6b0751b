"""What answers and grades completions: the environment and the reward functions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rewards.base import RewardLoadError
from rewards.composition import Part, read_parts
from rlplatform.config.base import ConfigError, require
from rlplatform.config.generation import DataConfig
from rlplatform.reads import TrackedReads


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
        require(not (self.name and self.column), "environment: expected name or column, got both")
        require(self.max_turns >= 1, f"environment.max_turns: expected >= 1, got {self.max_turns}")
        require(self.max_turn_tokens >= 0, f"environment.max_turn_tokens: expected >= 0, got {self.max_turn_tokens}")
        require(self.step_timeout_s > 0, f"environment.step_timeout_s: expected > 0, got {self.step_timeout_s}")

    def __bool__(self) -> bool:
        return bool(self.name or self.column)

    def check(self, reward: RewardConfig, data: DataConfig) -> None:
        """Raises ConfigError where its verdicts would reach nobody, or prompts are no conversations."""
        if not self:
            return
        graded = any(part.function == "environment" for part in reward.parts.values()) if reward.functions else False
        require(
            graded,
            "reward.functions: expected `environment` among them, e.g. {environment: 1.0}: it is the environment's "
            "verdict (weight 0 where it should not be trained on; its errors must not count as the policy's)",
        )
        require(data.chat, "data.chat: expected true with an environment: it speaks in messages")


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
        require(self.timeout_s > 0, f"reward.timeout_s: expected > 0, got {self.timeout_s}")
        require(self.processes_per_worker >= 1, "reward.processes_per_worker: expected >= 1")
        require(self.num_workers >= 1, f"reward.num_workers: expected >= 1, got {self.num_workers}")
        if self.functions:
            try:
                read_parts(self.functions)
            except RewardLoadError as error:
                raise ConfigError(str(error)) from error

    @property
    def parts(self) -> dict[str, Part]:
        """The functions by their short names, as checked."""
        return read_parts(self.functions)
