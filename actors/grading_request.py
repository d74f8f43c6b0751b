"""What travels between the reward service and the actors that grade: one function, the rows of whole groups.

An actor class named by ``rewards.base.served_by`` is a ``FleetActor`` with

    __init__(self, args: Mapping[str, Any], timeout_s: float, sys_path: Sequence[str])
        args: the part's settings as configured; timeout_s: seconds a row may take; sys_path: the driver's import path.
    score(self, request: GradingRequest) -> PartScore
        one verdict a row, in order. An exception makes every row of the request an ``error``.
    version(self) -> str
        optional: what grades, e.g. the path of a model and the hash of its weights; for graders.json.

Its number and GPUs are the part's ``workers`` (one where 0) and ``gpus``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rewards.base import Verdict


@dataclass(frozen=True)
class GradingRequest:
    """``n`` rows for one function: one or more whole groups, end to end."""

    function: str  # name of the part
    prompts: Sequence[Any]  # [n], a string or a list of messages each
    completions: Sequence[Any]  # [n], a string each; for a prompt of messages [{"role": "assistant", "content": ...}]
    columns: Mapping[str, Sequence[Any]]  # name -> [n]: the columns that the function takes, `prompt_text` among them
    group_sizes: tuple[int, ...]  # rows of each group, in order; their sum is n
    completion_ids: Sequence[Sequence[int]] | None = None  # [n], sampled ids; None where the function takes none
    step: int = 0  # what functions see as trainer_state.global_step

    def __post_init__(self) -> None:
        lengths = {"prompts": len(self.prompts), "completions": len(self.completions), "groups": sum(self.group_sizes)}
        lengths |= {f"column {name}": len(values) for name, values in self.columns.items()}
        if self.completion_ids is not None:
            lengths["completion_ids"] = len(self.completion_ids)
        if len(set(lengths.values())) > 1:
            raise ValueError(f"GradingRequest for {self.function}: expected lists of one length, got {lengths}")

    @property
    def num_rows(self) -> int:
        return len(self.completions)

    @property
    def groups(self) -> list[int]:
        """``[n]``: which group of the request a row belongs to."""
        return [group for group, size in enumerate(self.group_sizes) for _ in range(size)]


@dataclass(frozen=True)
class PartScore:
    """What one function said of the ``n`` rows of a request."""

    verdicts: Sequence[Verdict]  # [n], in order
    extras: Mapping[str, Sequence[Any]] = field(default_factory=dict)  # column -> [n], from log_extra; None: nothing
    metrics: Mapping[str, float] = field(default_factory=dict)  # from log_metric
    tracebacks: Sequence[str] = ()  # of the first failure, if any
    restarts: int = 0  # processes replaced in the actor's life
    version: str = ""  # what graded, where the actor knows more than the source: a model's path and weight hash
