"""RewardPool: reward functions in killable child processes, with a deadline a row.

Scores do not depend on where ``score`` is called: in the main thread, another thread or an actor, functions always run
in the main thread of a child. Several threads may share a pool. What happens to slow, crashing and hanging rows is
told in ``rewards/grading.py``, how processes live and die in ``rewards/forkserver.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewards.base import SUPPLIED, RewardLoadError, Verdict, absolute, is_async, resolve
from rewards.composition import Part, check_part, compose, read_parts
from rewards.grading import GradingCall
from rewards.limits import RowLimit
from rewards.plans import Plan
from rewards.processes import WorkerPool
from rewards.streams import DEFAULT_CONCURRENCY, StreamCall


@dataclass(frozen=True)
class Graded:
    """What functions said of ``n`` rows, each on its own."""

    verdicts: dict[str, list[Verdict | None]]  # part -> [n]; None where the part's `when` leaves the row out
    extras: dict[str, list[Any]]
    metrics: dict[str, float]
    tracebacks: dict[str, str]


@dataclass(frozen=True)
class Scored:
    """The outcome of one ``score`` call over ``n`` rows."""

    verdicts: list[Verdict]  # [n], composed
    extras: dict[str, list[Any]]  # column -> [n], what functions gave to log_extra; None where they gave nothing
    metrics: dict[str, float]  # mean over calls of what functions gave to log_metric
    tracebacks: dict[str, str]  # function -> traceback of its first failure in this call


class RewardPool:
    """A pool of ``num_processes`` warm workers that score rows with a composition of functions.

    Args:
        functions: name -> weight, a mapping or a Part; see ``rewards.composition.read_parts``.
        num_processes: rows graded at the same time. Up to ``MAX_SPARES`` more processes hold slow rows.
        timeout_s: seconds a row may take, wall clock, where a part says nothing else. A whole batch has the same
            deadline, then goes row by row.
        start_timeout_s: for imports of a worker.

    Raises RewardLoadError when a function cannot be loaded, here or in a worker, or does not take what it is given.
    """

    def __init__(
        self,
        functions: Mapping[str, float | Mapping[str, Any] | Part],
        num_processes: int = 1,
        timeout_s: float = 10.0,
        *,
        start_timeout_s: float = 120.0,
    ) -> None:
        if num_processes < 1 or not timeout_s > 0:
            raise RewardLoadError(f"expected num_processes >= 1 and timeout_s > 0, got {num_processes} and {timeout_s}")
        self.parts = read_parts(functions)
        self.num_processes = num_processes
        self.timeout_s = timeout_s
        self.first_tracebacks: dict[str, str] = {}  # part -> traceback of its first failure
        resolved = {name: resolve(part.function) for name, part in self.parts.items()}
        self._signatures = {name: check_part(part, resolved[name]) for name, part in self.parts.items()}
        self._rowwise = {name for name, fn in resolved.items() if getattr(fn, "rowwise", False)}
        self._groupwise = {name for name, fn in resolved.items() if getattr(fn, "groupwise", False)}
        self._streamed = {name for name in self._rowwise if is_async(resolved[name])}
        self._limits = {
            name: RowLimit(part.concurrency or DEFAULT_CONCURRENCY * (name in self._streamed), part.per_second)
            for name, part in self.parts.items()
            if part.concurrency or part.per_second or name in self._streamed
        }
        targets = {name: absolute(part.function) for name, part in self.parts.items()}
        self._workers = WorkerPool(targets, num_processes, start_timeout_s)

    def score(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        columns: Mapping[str, Sequence[Any]] | None = None,
        completion_ids: Sequence[Sequence[int]] | None = None,
        trainer_state: Mapping[str, Any] | None = None,
        groups: Sequence[Any] | None = None,
    ) -> list[Verdict]:
        """One verdict a row: what ``rewards.composition.compose`` makes of all parts.

        A prompt is a string or a list of messages; the completion of a message prompt is handed to functions as
        ``[{"role": "assistant", "content": completion}]``. ``columns`` holds a list of ``n`` values a name. ``groups``
        says which rows are completions of one prompt: an id a row; functions marked ``groupwise`` need it.
        """
        return self.score_detailed(prompts, completions, columns, completion_ids, trainer_state, groups).verdicts

    def score_detailed(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        columns: Mapping[str, Sequence[Any]] | None = None,
        completion_ids: Sequence[Sequence[int]] | None = None,
        trainer_state: Mapping[str, Any] | None = None,
        groups: Sequence[Any] | None = None,
    ) -> Scored:
        """As ``score``, with what the functions logged."""
        graded = self.grade(prompts, completions, columns, completion_ids, trainer_state, groups)
        verdicts = []
        for row in range(len(completions)):
            of_row = {name: said[row] for name, said in graded.verdicts.items()}
            verdicts.append(compose({name: v for name, v in of_row.items() if v is not None}, self.parts))
        return Scored(verdicts, graded.extras, graded.metrics, graded.tracebacks)

    def grade(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        columns: Mapping[str, Sequence[Any]] | None = None,
        completion_ids: Sequence[Sequence[int]] | None = None,
        trainer_state: Mapping[str, Any] | None = None,
        groups: Sequence[Any] | None = None,
        names: Sequence[str] = (),
    ) -> Graded:
        """What the parts ``names`` (where empty, all) say of the rows, before composition.

        Raises:
            RewardLoadError: the rows lack what a part needs to be called at all (a column of its ``when``, groups), or
                a column bears the name of a setting that is given.
        """
        num_rows = len(completions)
        columns = dict(columns or {})
        _check_columns(num_rows, prompts, columns, completion_ids, groups)
        if self._workers.closed:
            raise RuntimeError("this RewardPool is closed")
        inputs = {
            "prompts": list(prompts),
            "completions": [as_messages(p, c) for p, c in zip(prompts, completions, strict=True)],
            "columns": {name: list(values) for name, values in columns.items()},
            "completion_ids": None if completion_ids is None else list(completion_ids),
            "trainer_state": trainer_state,
        }
        plans = {name: self._plan(self.parts[name], inputs, groups) for name in names or self.parts}
        call = GradingCall(self._workers, {n: plan for n, plan in plans.items() if n not in self._streamed}, inputs)
        call.run()
        for name in plans:
            if name in self._streamed:
                stream = StreamCall(self._workers, name, plans[name], inputs)
                stream.run()
                call.add(name, stream.verdicts, stream.extras, stream.metrics, stream.traceback)
        _check_complete(plans, call.verdicts)
        for name, text in call.tracebacks.items():
            self.first_tracebacks.setdefault(name, text)
        means = {name: sum(values) / len(values) for name, values in call.metrics.items()}
        return Graded({name: call.verdicts[name] for name in plans}, call.extras, means, call.tracebacks)

    def _plan(self, part: Part, inputs: Mapping[str, Any], groups: Sequence[Any] | None) -> Plan:
        columns = inputs["columns"]
        part.check_columns(columns, self._signatures[part.name].reserved)
        num_rows = len(inputs["completions"])
        rows = [row for row in range(num_rows) if part.applies({column: columns[column][row] for column in part.when})]
        return Plan(
            rows=rows,
            timeout_s=part.timeout_s or self.timeout_s,
            by_row=part.name in self._rowwise,
            groups=_groups(part, rows, groups) if part.name in self._groupwise else None,
            args=part.args,
            limit=self._limits.get(part.name),
        )

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
    groups: Sequence[Any] | None,
) -> None:
    for name in SUPPLIED:
        if name in columns:
            raise RewardLoadError(f"column {name!r}: this keyword is supplied by the platform; rename the column")
    given = {"prompts": prompts, **columns}
    given |= {} if completion_ids is None else {"completion_ids": completion_ids}
    given |= {} if groups is None else {"groups": groups}
    for name, values in given.items():
        if isinstance(values, str) or len(values) != num_rows:
            raise ValueError(f"{name!r}: expected {num_rows} values, one a completion, got {len(values)}")


def _groups(part: Part, rows: Sequence[int], groups: Sequence[Any] | None) -> list[list[int]]:
    """The rows group by group, each group whole."""
    where = f"reward.functions.{part.name}"
    if groups is None:
        raise RewardLoadError(
            f"{where}: {part.function} compares the completions of one prompt, and nothing says which rows those are: "
            "give a group id a row (`groups=`; in a file of `rlplatform reward test`, a column `group`)"
        )
    asked, found = set(rows), dict[str, list[int]]()
    for row, group in enumerate(groups):
        found.setdefault(str(group), []).append(row)
    for group, members in found.items():
        num_asked = len(asked.intersection(members))
        if 0 < num_asked < len(members):
            raise RewardLoadError(
                f"{where}.when: expected whole groups, and {num_asked} of the {len(members)} rows of group {group!r} "
                f"match; {part.function} compares the completions of one prompt"
            )
    return [members for members in found.values() if members[0] in asked]


def _check_complete(plans: Mapping[str, Plan], verdicts: Mapping[str, Sequence[Verdict | None]]) -> None:
    for name, plan in plans.items():
        missing = [row for row in plan.rows if verdicts[name][row] is None]
        if missing:
            raise RuntimeError(f"{name}: rows {missing} came back without a verdict; this is a bug in rewards/")
