"""RewardPool: reward functions in killable child processes, with a deadline a row.

Scores do not depend on where ``score`` is called: in the main thread, another thread or an actor, functions always run
in the main thread of a child. Several threads may share a pool. What happens to slow, crashing and hanging rows is
told in ``rewards/grading.py``, how processes live and die in ``rewards/forkserver.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewards.base import SUPPLIED, RewardLoadError, Verdict, absolute, compose, resolve
from rewards.grading import GradingCall
from rewards.processes import WorkerPool


@dataclass(frozen=True)
class Scored:
    """The outcome of one ``score`` call over ``n`` rows."""

    verdicts: list[Verdict]  # [n], composed
    extras: dict[str, list[Any]]  # column -> [n], what functions gave to log_extra; None where they gave nothing
    metrics: dict[str, float]  # mean over calls of what functions gave to log_metric
    tracebacks: dict[str, str]  # function -> traceback of its first failure in this call


class RewardPool:
    """A pool of ``num_processes`` warm workers that score rows with the weighted ``functions``.

    Args:
        functions: name -> weight. The name is what ``rewards.base.resolve`` takes, where ``targets`` has no other.
        num_processes: rows graded at the same time. Up to ``MAX_SPARES`` more processes hold slow rows.
        timeout_s: seconds a row may take, wall clock. A whole batch has the same deadline, then goes row by row.
        targets: name -> what ``resolve`` takes, e.g. the absolute path of a file that the name gives relatively.
        start_timeout_s: for imports of a worker.

    Raises RewardLoadError when a function cannot be loaded, here or in a worker.
    """

    def __init__(
        self,
        functions: Mapping[str, float],
        num_processes: int = 1,
        timeout_s: float = 10.0,
        *,
        targets: Mapping[str, str] | None = None,
        start_timeout_s: float = 120.0,
    ) -> None:
        if not functions:
            raise RewardLoadError("expected at least one reward function, e.g. {'math': 1.0}")
        if num_processes < 1 or timeout_s <= 0:
            raise ValueError(f"expected num_processes >= 1 and timeout_s > 0, got {num_processes} and {timeout_s}")
        self.functions = dict(functions)
        self.num_processes = num_processes
        self.timeout_s = timeout_s
        self.first_tracebacks: dict[str, str] = {}  # function -> traceback of its first failure
        resolved = {name: absolute((targets or {}).get(name, name)) for name in functions}
        self._rowwise = {name: bool(getattr(resolve(target), "rowwise", False)) for name, target in resolved.items()}
        self._workers = WorkerPool(resolved, num_processes, start_timeout_s)

    def score(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        columns: Mapping[str, Sequence[Any]] | None = None,
        completion_ids: Sequence[Sequence[int]] | None = None,
        trainer_state: Mapping[str, Any] | None = None,
    ) -> list[Verdict]:
        """One verdict a row: the weighted sum of all functions (see ``rewards.base.compose``).

        A prompt is a string or a list of messages; the completion of a message prompt is handed to functions as
        ``[{"role": "assistant", "content": completion}]``. ``columns`` holds a list of ``n`` values a name.
        """
        return self.score_detailed(prompts, completions, columns, completion_ids, trainer_state).verdicts

    def score_detailed(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        columns: Mapping[str, Sequence[Any]] | None = None,
        completion_ids: Sequence[Sequence[int]] | None = None,
        trainer_state: Mapping[str, Any] | None = None,
    ) -> Scored:
        """As ``score``, with what the functions logged."""
        num_rows = len(completions)
        columns = dict(columns or {})
        _check_columns(num_rows, prompts, columns, completion_ids)
        if self._workers.closed:
            raise RuntimeError("this RewardPool is closed")
        inputs = {
            "prompts": list(prompts),
            "completions": [as_messages(p, c) for p, c in zip(prompts, completions, strict=True)],
            "columns": {name: list(values) for name, values in columns.items()},
            "completion_ids": None if completion_ids is None else list(completion_ids),
            "trainer_state": trainer_state,
        }
        call = GradingCall(self._workers, self._rowwise, inputs, self.timeout_s)
        call.run()
        for name, text in call.tracebacks.items():
            self.first_tracebacks.setdefault(name, text)
        verdicts = [compose(call.parts(row), self.functions) for row in range(num_rows)]
        means = {name: sum(values) / len(values) for name, values in call.metrics.items()}
        return Scored(verdicts, call.extras, means, call.tracebacks)

    @property
    def num_restarts(self) -> int:
        """Processes replaced so far."""
        return self._workers.num_restarts

    @property
    def num_idle(self) -> int:
        """Processes that wait for work; ``num_processes`` between two calls."""
        return self._workers.num_idle

    def pids(self) -> list[int]:
        """Of the fork server and the idle workers."""
        return self._workers.pids()

    def close(self) -> None:
        """End every process of the pool; returns when they are gone. A pool that is closed stays closed."""
        self._workers.close()

    def __enter__(self) -> RewardPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def as_messages(prompt: Any, completion: Any) -> Any:
    """TRL's convention: the completion of a message prompt is a list of one assistant message."""
    if isinstance(completion, str) and not isinstance(prompt, str) and prompt is not None:
        return [{"role": "assistant", "content": completion}]
    return completion


def _check_columns(
    num_rows: int,
    prompts: Sequence[Any],
    columns: Mapping[str, Sequence[Any]],
    completion_ids: Sequence[Any] | None,
) -> None:
    for name in SUPPLIED:
        if name in columns:
            raise ValueError(f"column {name!r}: this keyword is supplied by the platform; rename the column")
    given = {"prompts": prompts, **columns} | ({} if completion_ids is None else {"completion_ids": completion_ids})
    for name, values in given.items():
        if isinstance(values, str) or len(values) != num_rows:
            raise ValueError(f"{name!r}: expected {num_rows} values, one a completion, got {len(values)}")
