"""RewardPool: reward functions in killable child processes, with a deadline a row.

    score() ─► tasks ─► workers (num_processes, warm)          a row that is slow keeps its process and its place in
      │        a batch function: one task, all rows            the call is taken by a fresh fork; it ends at timeout_s:
      │        a rowwise one:    chunks of rows                soft signal, then SIGKILL
      └◄─ verdicts, row by row or a batch at once
          a batch that raises, dies or runs out of time ─► the same rows, row by row

One bad row has one bad status, and costs the others ``SLOW_ROW_S`` instead of its whole deadline. Scores do not depend
on where ``score`` is called: in the main thread, another thread or an actor, functions always run in the main thread
of a child. Several threads may share a pool.
"""

from __future__ import annotations

import contextlib
import selectors
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rewards.base import (
    ERROR,
    SUPPLIED,
    TIMEOUT,
    RewardLoadError,
    Verdict,
    absolute,
    compose,
    resolve,
)
from rewards.processes import ForkServer, ForkServerDied, Worker

SLOW_ROW_S = 0.3  # after this a row no longer holds up the rows behind it
MAX_SLOW_ROWS = 8  # processes beyond num_processes that slow rows may keep
SOFT_GRACE_S = 0.25  # between the soft signal and SIGKILL
MAX_CHUNK = 32  # rows a task of a rowwise function


@dataclass(frozen=True)
class Scored:
    """The outcome of one ``score`` call over ``n`` rows."""

    verdicts: list[Verdict]  # [n], composed
    extras: dict[str, list[Any]]  # column -> [n], what functions gave to log_extra; None where they gave nothing
    metrics: dict[str, float]  # mean over calls of what functions gave to log_metric
    tracebacks: dict[str, str]  # function -> traceback of its first failure in this call


@dataclass
class _Task:
    """Rows of one function, for one worker."""

    function: str
    rows: list[int]
    by_row: bool
    innocent_deaths: int = 0  # times its process died with the whole fork server


@dataclass
class _Running:
    task: _Task
    worker: Worker
    job: dict[str, Any]
    since: float  # when the current row (or batch) started
    done: int = 0
    soft_stopped: bool = False
    detached: bool = False  # beyond num_processes; ends with its row

    @property
    def single(self) -> bool:
        return self.task.by_row or len(self.task.rows) == 1


@dataclass
class _Call:
    """The state of one ``score`` call."""

    inputs: dict[str, Any]
    pending: deque[_Task]
    verdicts: dict[str, list[Verdict | None]]
    running: dict[Worker, _Running] = field(default_factory=dict)
    extras: dict[str, list[Any]] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)
    tracebacks: dict[str, str] = field(default_factory=dict)


class RewardPool:
    """A pool of ``num_processes`` warm workers that score rows with the weighted ``functions``.

    Args:
        functions: name -> weight. The name is what ``rewards.base.resolve`` takes, where ``targets`` has no other.
        num_processes: rows graded at the same time. Up to ``MAX_SLOW_ROWS`` more processes hold rows past SLOW_ROW_S.
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
        self.num_restarts = 0  # processes replaced so far
        self._start_timeout_s = start_timeout_s
        self._targets = {name: absolute((targets or {}).get(name, name)) for name in functions}
        self._rowwise = {name: bool(getattr(resolve(t), "rowwise", False)) for name, t in self._targets.items()}
        self._changed = threading.Condition()
        self._idle: list[Worker] = []
        self._num_detached = 0
        self._num_waiting = 0
        self._closed = False
        self._server = ForkServer(self._targets, start_timeout_s)
        try:
            self._idle = [self._server.fork() for _ in range(num_processes)]  # they import side by side
            deadline = time.monotonic() + start_timeout_s
            for worker in self._idle:
                self._await_ready(worker, deadline)
        except BaseException:
            self.close()
            raise

    def _await_ready(self, worker: Worker, deadline: float) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(worker.channel, selectors.EVENT_READ)
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise RewardLoadError(f"importing {list(self.functions)} took more than {self._start_timeout_s:g} s")
        messages = worker.receive()
        if not messages:
            raise RewardLoadError(
                f"the process that imports {list(self.functions)} died: {worker.end()}; its output is above"
            )
        if "failed" in messages[0]:
            raise RewardLoadError(f"{messages[0]['failed']}\n{messages[0]['traceback']}")
        worker.ready = True

    # --- scoring ------------------------------------------------------------------------------------------------

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
        if self._closed:
            raise RuntimeError("this RewardPool is closed")
        inputs = {
            "prompts": list(prompts),
            "completions": [as_messages(p, c) for p, c in zip(prompts, completions, strict=True)],
            "columns": {name: list(values) for name, values in columns.items()},
            "completion_ids": None if completion_ids is None else list(completion_ids),
            "trainer_state": trainer_state,
        }
        tasks = [
            task for name, by_row in self._rowwise.items() for task in self._tasks(name, list(range(num_rows)), by_row)
        ]
        call = _Call(inputs, deque(tasks), {name: [None] * num_rows for name in self.functions})
        self._run(call)
        verdicts = [compose(_parts(call.verdicts, row), self.functions) for row in range(num_rows)]
        means = {name: sum(values) / len(values) for name, values in call.metrics.items()}
        return Scored(verdicts, call.extras, means, call.tracebacks)

    def _tasks(self, function: str, rows: list[int], by_row: bool) -> list[_Task]:
        if not rows:
            return []
        # Several chunks a process, so that a process with slow rows takes fewer of them.
        size = max(1, min(MAX_CHUNK, -(-len(rows) // (4 * self.num_processes)))) if by_row else len(rows)
        return [_Task(function, rows[i : i + size], by_row) for i in range(0, len(rows), size)]

    def _run(self, call: _Call) -> None:
        try:
            while call.pending or call.running:
                while call.pending and (worker := self._check_out(wait=not call.running)) is not None:
                    self._start(call, worker, call.pending.popleft())
                self._collect(call)
                for running in list(call.running.values()):
                    self._keep_time(call, running)
        finally:  # also when the caller is interrupted: whoever still runs is ended, and the pool is whole again
            for running in list(call.running.values()):
                self._retire(call, running)

    def _start(self, call: _Call, worker: Worker, task: _Task) -> None:
        picked: dict[str, Any] = {"function": task.function, "by_row": task.by_row, "rows": task.rows}
        for name, values in call.inputs.items():
            if name == "columns":
                picked[name] = {column: [v[row] for row in task.rows] for column, v in values.items()}
            elif name == "trainer_state" or values is None:
                picked[name] = values
            else:
                picked[name] = [values[row] for row in task.rows]
        running = _Running(task, worker, picked, time.monotonic())
        call.running[worker] = running
        if worker.ready:  # else with its first message: it is importing and does not listen
            self._send(call, running)

    def _send(self, call: _Call, running: _Running) -> None:
        try:
            running.worker.send(running.job)
        except OSError:  # it died between two jobs
            self._died(call, running, started=False)

    def _collect(self, call: _Call) -> None:
        """Wait for the next message or deadline of this call, and take what has arrived."""
        if not call.running:
            return
        now = time.monotonic()
        wait = min(self._next_event(call, running) for running in call.running.values()) - now
        if call.pending:
            wait = min(wait, 0.05)  # a worker may come free in another thread
        with selectors.DefaultSelector() as selector:
            for worker in call.running:
                selector.register(worker.channel, selectors.EVENT_READ, worker)
            ready = [key.data for key, _ in selector.select(max(0.0, wait))]
        for worker in ready:
            running = call.running[worker]
            messages = worker.receive()
            if messages is None:
                self._died(call, running)
            for message in messages or ():
                if worker in call.running:  # else a detached row's process ran on into rows that others have
                    self._take(call, running, message)

    def _take(self, call: _Call, running: _Running, message: dict[str, Any]) -> None:
        task = running.task
        now = time.monotonic()
        if "ready" in message:
            running.worker.ready, running.since = True, now
            self._send(call, running)
        elif "failed" in message:
            detail = message["failed"]
            self._note(call, task.function, message["traceback"])
            self._put(call, task, task.rows[running.done :], [Verdict(0.0, ERROR, detail=detail)])
            self._retire(call, running)
        elif "split" in message:
            self._note(call, task.function, message["traceback"])
            call.pending.extend(self._tasks(task.function, task.rows, by_row=True))
            self._retire(call, running) if running.soft_stopped else self._check_in(call, running)
        else:
            if message["traceback"]:
                self._note(call, task.function, message["traceback"])
            verdicts = [Verdict(s, status, parts, detail, sec) for s, status, parts, detail, sec in message["verdicts"]]
            rows = task.rows[running.done : running.done + len(verdicts)]
            self._put(call, task, rows, verdicts)
            for column, values in message["extras"].items():
                target = call.extras.setdefault(column, [None] * len(call.inputs["completions"]))
                for row, value in zip(rows, values, strict=True):
                    target[row] = value
            for name, value in message["metrics"].items():
                call.metrics.setdefault(name, []).append(value)
            running.done += len(verdicts)
            running.since = now
            if running.soft_stopped or (running.detached and running.done == len(task.rows)):
                self._requeue_rest(call, running)
                self._retire(call, running)
            elif running.done == len(task.rows):
                self._check_in(call, running)

    # --- time ---------------------------------------------------------------------------------------------------

    def _next_event(self, call: _Call, running: _Running) -> float:
        if not running.worker.ready:
            return running.since + self._start_timeout_s
        if running.soft_stopped:
            return running.since + self.timeout_s + SOFT_GRACE_S
        if self._may_detach(call, running):
            return running.since + min(SLOW_ROW_S, self.timeout_s)
        return running.since + self.timeout_s

    def _may_detach(self, call: _Call, running: _Running) -> bool:
        others = len(running.task.rows) > running.done + 1 or call.pending or self._num_waiting
        return bool(running.task.by_row and not running.detached and others and self._num_detached < MAX_SLOW_ROWS)

    def _keep_time(self, call: _Call, running: _Running) -> None:
        elapsed = time.monotonic() - running.since
        if not running.worker.ready:
            if elapsed >= self._start_timeout_s:
                detail = f"importing the reward functions took more than {self._start_timeout_s:g} s"
                self._put(call, running.task, running.task.rows, [Verdict(0.0, TIMEOUT, detail=detail)])
                self._retire(call, running)
        elif elapsed >= self.timeout_s + SOFT_GRACE_S:
            detail = f"past its deadline of {self.timeout_s:g} s; killed in code that takes no signals"
            self._fail(call, running, Verdict(0.0, TIMEOUT, detail=detail, seconds=elapsed))
        elif elapsed >= self.timeout_s and not running.soft_stopped:
            running.soft_stopped = True
            with contextlib.suppress(ForkServerDied):  # then the worker's channel ends, and that is handled
                running.worker.soft_stop()
        elif elapsed >= SLOW_ROW_S and self._may_detach(call, running):
            self._detach(call, running)

    def _detach(self, call: _Call, running: _Running) -> None:
        """Leave the current row alone with its process; its other rows and its place in the pool go to a fresh one."""
        running.detached = True
        self._requeue_rest(call, running, first=running.done + 1)
        running.task.rows = running.task.rows[: running.done + 1]
        with self._changed:
            self._num_detached += 1
            self._idle.append(self._fork())
            self._changed.notify()

    # --- failures -----------------------------------------------------------------------------------------------

    def _died(self, call: _Call, running: _Running, started: bool = True) -> None:
        try:
            how = running.worker.end()
        except ForkServerDied:
            how, started = "the fork server died", False
        if not started and running.task.innocent_deaths < 3:
            rest = running.task.rows[running.done :]
            call.pending.append(
                _Task(running.task.function, rest, running.task.by_row, running.task.innocent_deaths + 1)
            )
            self._retire(call, running)
            return
        self._fail(call, running, Verdict(0.0, ERROR, detail=f"the reward process died while grading: {how}"))

    def _fail(self, call: _Call, running: _Running, verdict: Verdict) -> None:
        """The process is lost: the row it was at gets ``verdict``; a batch is repeated row by row."""
        self._note(call, running.task.function, verdict.detail)
        if running.single:
            self._put(call, running.task, [running.task.rows[running.done]], [verdict])
            running.done += 1
            self._requeue_rest(call, running)
        else:
            call.pending.extend(self._tasks(running.task.function, running.task.rows, by_row=True))
        self._retire(call, running)

    def _requeue_rest(self, call: _Call, running: _Running, first: int | None = None) -> None:
        rest = running.task.rows[running.done if first is None else first :]
        if rest:
            call.pending.appendleft(_Task(running.task.function, rest, running.task.by_row))

    def _put(self, call: _Call, task: _Task, rows: Iterable[int], verdicts: Sequence[Verdict]) -> None:
        """Write ``verdicts`` (one for all, or one each) to ``rows`` of the call."""
        rows = list(rows)
        for row, verdict in zip(rows, list(verdicts) * (len(rows) if len(verdicts) == 1 else 1), strict=True):
            call.verdicts[task.function][row] = verdict

    def _note(self, call: _Call, function: str, text: str) -> None:
        call.tracebacks.setdefault(function, text)
        self.first_tracebacks.setdefault(function, text)

    # --- workers ------------------------------------------------------------------------------------------------

    def _check_out(self, wait: bool) -> Worker | None:
        with self._changed:
            while not self._idle:
                if self._closed:
                    raise RuntimeError("this RewardPool was closed while rows were waiting")
                if not wait:
                    return None
                self._num_waiting += 1
                self._changed.wait()
                self._num_waiting -= 1
            worker = self._idle.pop()
            if worker.idle_and_dead:
                worker = self._replace(worker)
            return worker

    def _check_in(self, call: _Call, running: _Running) -> None:
        del call.running[running.worker]
        with self._changed:
            self._idle.append(running.worker)
            self._changed.notify()

    def _retire(self, call: _Call, running: _Running) -> None:
        """End the process; a fresh one takes its place unless that has happened already."""
        del call.running[running.worker]
        with self._changed:
            if running.detached:
                self._num_detached -= 1
                self._end(running.worker)
            elif not self._closed:
                self._idle.append(self._replace(running.worker))
                self._changed.notify()

    def _end(self, worker: Worker) -> None:
        with contextlib.suppress(ForkServerDied):  # its workers died with it
            worker.end()

    def _replace(self, worker: Worker) -> Worker:
        self._end(worker)
        return self._fork()

    def _fork(self) -> Worker:
        """A fresh worker, from a fresh fork server where the old one has died. Hold ``_changed``."""
        self.num_restarts += 1
        try:
            return self._server.fork()
        except ForkServerDied:
            self._server.close()
            self._server = ForkServer(self._targets, self._start_timeout_s)
            return self._server.fork()

    def pids(self) -> list[int]:
        """Of the fork server and the idle workers."""
        with self._changed:
            return [self._server.pid, *(worker.pid for worker in self._idle)]

    @property
    def num_idle(self) -> int:
        return len(self._idle)

    def close(self) -> None:
        """End every process of the pool; returns when they are gone. A pool that is closed stays closed."""
        with self._changed:
            self._closed = True
            for worker in self._idle:
                worker.channel.close()
            self._idle.clear()
            self._changed.notify_all()
            self._server.close()

    def __enter__(self) -> RewardPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _parts(verdicts: Mapping[str, Sequence[Verdict | None]], row: int) -> dict[str, Verdict]:
    parts = {name: of_function[row] for name, of_function in verdicts.items()}
    if None in parts.values():
        raise RuntimeError(f"row {row} came back without a verdict: {parts}; this is a bug in rewards/runner.py")
    return {name: part for name, part in parts.items() if part is not None}


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
