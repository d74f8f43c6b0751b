"""The reward contract: text in, verdicts out. No ray, no torch.

A reward function follows TRL's convention, so that its functions run unchanged::

    def fn(prompts, completions, **columns) -> list[float | None | Verdict]

``prompts`` and ``completions`` are lists of one length; a dataset column ``answer`` arrives as the keyword ``answer``,
a list of the same length. Message prompts give message completions (``[{"role": "assistant", "content": ...}]``),
string prompts give strings. A function that names them (or takes ``**kwargs``) is also given ``completion_ids``,
``trainer_state``, ``log_extra(column, values)`` and ``log_metric(name, value)``. It may be ``async``.
``None`` means that the function does not apply to the row.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

OK = "ok"
TIMEOUT = "timeout"
ERROR = "error"
UNPARSEABLE = "unparseable"
NOT_APPLICABLE = "not_applicable"
STATUSES = (OK, TIMEOUT, ERROR, UNPARSEABLE, NOT_APPLICABLE)

RewardFn = Callable[..., Sequence[Any] | Awaitable[Sequence[Any]]]


@dataclass(frozen=True)
class Verdict:
    """What a grader says of one completion.

    ``status`` describes the grader, never the model: a missing answer or an unclosed think block is ``ok`` with score
    0; ``timeout`` is a grader past its deadline, ``error`` its exception, ``unparseable`` a reference or judge reply it
    could not read, ``not_applicable`` a row it has nothing to say about. Only ``ok`` verdicts reach a group's
    statistics or the loss.
    """

    score: float  # finite when ok; 0.0 otherwise, and then not read by anything
    status: str = OK
    parts: Mapping[str, float] = field(default_factory=dict)  # score by reward function, before weights
    detail: str = ""  # the reason, for people: a traceback's last lines, what was extracted
    seconds: float = 0.0  # spent grading this row

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"Verdict.status: expected one of {STATUSES}, got {self.status!r}")
        if not isinstance(self.score, (int, float)) or isinstance(self.score, bool):
            raise ValueError(f"Verdict.score: expected a float, got {self.score!r} ({type(self.score).__name__})")
        if not math.isfinite(self.score):
            raise ValueError(f"Verdict.score: expected a finite number, got {self.score!r}")

    @property
    def ok(self) -> bool:
        return self.status == OK
