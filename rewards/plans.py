"""What a ``score`` call plans to ask of workers: which rows of a function go together, and what a worker is sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rewards.limits import RowLimit
from rewards.processes import Worker

MAX_CHUNK = 32  # rows a task of a rowwise function


@dataclass(frozen=True)
class Plan:
    """How one function grades the rows of a call."""

    rows: Sequence[int]  # those it is asked about
    timeout_s: float  # for a row, a whole batch or a group
    by_row: bool = False  # from the start, in chunks that are spread over the workers
    groups: Sequence[Sequence[int]] | None = None  # the same rows, group by group, for a function that takes groups
    args: Mapping[str, Any] = field(default_factory=dict)  # its settings
    limit: RowLimit | None = None  # shared by all calls of the pool


@dataclass
class Task:
    """Rows of one function, for one worker."""

    function: str
    rows: list[int]
    by_row: bool
    whole: bool = False  # a group: never split
    innocent_deaths: int = 0


@dataclass
class Running:
    """A task at a worker."""

    task: Task
    worker: Worker
    job: dict[str, Any]
    since: float  # when the current row (or batch) started
    cpu_s: float = 0.0  # CPU seconds of the process at that time
    check_at: float = 0.0  # when to ask whether the row is slow
    done: int = 0  # rows with a verdict
    soft_stopped: bool = False
    detached: bool = False  # beyond num_processes; ends with its row


def tasks_of(function: str, plan: Plan, rows: list[int], by_row: bool, num_processes: int) -> list[Task]:
    """The tasks of rows that are not groups."""
    if not rows:
        return []
    size = len(rows)
    if plan.limit is not None:
        size = 1
    elif by_row:  # several chunks a process, so that a process with slow rows takes fewer of them
        size = max(1, min(MAX_CHUNK, -(-len(rows) // (4 * num_processes))))
    return [Task(function, rows[i : i + size], by_row) for i in range(0, len(rows), size)]


def job_of(task: Task, plan: Plan, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What a worker is sent: the task's rows of the inputs, in the order of the task."""
    job: dict[str, Any] = {
        "function": task.function,
        "by_row": task.by_row,
        "whole": task.whole,
        "rows": task.rows,
        "args": plan.args,
    }
    for name, values in inputs.items():
        if name == "columns":
            job[name] = {column: [v[row] for row in task.rows] for column, v in values.items()}
        elif name == "trainer_state" or values is None:
            job[name] = values
        else:
            job[name] = [values[row] for row in task.rows]
    return job
