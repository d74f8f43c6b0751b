"""One ``score`` call of a RewardPool: its rows become tasks, tasks go to workers, verdicts come back.

    rows ─► tasks ─► workers (num_processes, warm)             a row that is slow keeps its process and its place in
      │       a batch function: one task, all rows             the pool is taken by a fresh fork; it ends at timeout_s:
      │       a rowwise one:    chunks of rows                 soft signal, then SIGKILL
      └◄─ verdicts, row by row or a batch at once
          a batch that raises, dies or runs out of time ─► the same rows, row by row

One bad row has one bad status, and costs the others ``SLOW_ROW_S`` instead of its whole deadline.
"""

from __future__ import annotations

import contextlib
import selectors
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewards.base import ERROR, TIMEOUT, Verdict
from rewards.processes import ForkServerDied, Worker, WorkerPool

SLOW_ROW_S = 0.3  # computed or slept so long, a row no longer holds up the rows behind it
STARVED_ROW_S = 1.0  # the same for a row that mostly waits for a core; less where other rows took much less
RECHECK_S = 0.1
SOFT_GRACE_S = 0.25  # between the soft signal and SIGKILL
MAX_CHUNK = 32  # rows a task of a rowwise function
MAX_INNOCENT_DEATHS = 3  # times a task is sent again because its worker was lost through no fault of a row


@dataclass
class _Task:
    """Rows of one function, for one worker."""

    function: str
    rows: list[int]
    by_row: bool
    innocent_deaths: int = 0


@dataclass
class _Running:
    task: _Task
    worker: Worker
    job: dict[str, Any]
    since: float  # when the current row (or batch) started
    cpu_s: float = 0.0  # CPU seconds of the process at that time
    check_at: float = 0.0  # when to ask whether the row is slow
    done: int = 0  # rows with a verdict
    soft_stopped: bool = False
    detached: bool = False  # beyond num_processes; ends with its row


class GradingCall:
    """Grade ``inputs`` with every function; ``run`` fills the fields below.

    Args:
        workers: where workers are borrowed; all are back, or replaced, when ``run`` ends.
        rowwise: function -> is it called row by row from the start?
        inputs: prompts, completions, completion_ids: ``[n]`` each, or None; columns: name -> ``[n]``; trainer_state.
        timeout_s: seconds a row, or a whole batch, may take.
    """

    def __init__(
        self, workers: WorkerPool, rowwise: Mapping[str, bool], inputs: Mapping[str, Any], timeout_s: float
    ) -> None:
        self._workers = workers
        self._inputs = inputs
        self._timeout_s = timeout_s
        self._num_rows = len(inputs["completions"])
        self._running: dict[Worker, _Running] = {}
        self._pending: deque[_Task] = deque()
        for function, by_row in rowwise.items():
            self._pending.extend(self._tasks(function, list(range(self._num_rows)), by_row))
        self._verdicts: dict[str, list[Verdict | None]] = {name: [None] * self._num_rows for name in rowwise}
        self._num_graded = 0
        self._row_seconds = 0.0  # wall-clock time of the graded rows
        self.extras: dict[str, list[Any]] = {}  # column -> [n]; None where no function logged anything
        self.metrics: dict[str, list[float]] = {}  # name -> a value a call
        self.tracebacks: dict[str, str] = {}  # function -> of its first failure

    def _tasks(self, function: str, rows: list[int], by_row: bool) -> list[_Task]:
        if not rows:
            return []
        # Several chunks a process, so that a process with slow rows takes fewer of them.
        size = max(1, min(MAX_CHUNK, -(-len(rows) // (4 * self._workers.num_processes)))) if by_row else len(rows)
        return [_Task(function, rows[i : i + size], by_row) for i in range(0, len(rows), size)]

    def run(self) -> None:
        try:
            while self._pending or self._running:
                while self._pending and (worker := self._workers.check_out(wait=not self._running)) is not None:
                    self._start(worker, self._pending.popleft())
                self._collect()
                for running in list(self._running.values()):
                    self._keep_time(running)
        finally:  # also when the caller is interrupted: whoever still runs is ended, and the pool is whole again
            for running in list(self._running.values()):
                self._retire(running)

    def parts(self, row: int) -> dict[str, Verdict]:
        """Function -> its verdict on a row."""
        parts = {name: of_function[row] for name, of_function in self._verdicts.items()}
        missing = [name for name, verdict in parts.items() if verdict is None]
        if missing:
            raise RuntimeError(
                f"row {row} came back without a verdict of {missing}; this is a bug in rewards/grading.py"
            )
        return {name: verdict for name, verdict in parts.items() if verdict is not None}

    # --- work out, verdicts in ----------------------------------------------------------------------------------

    def _start(self, worker: Worker, task: _Task) -> None:
        job: dict[str, Any] = {"function": task.function, "by_row": task.by_row, "rows": task.rows}
        for name, values in self._inputs.items():
            if name == "columns":
                job[name] = {column: [v[row] for row in task.rows] for column, v in values.items()}
            elif name == "trainer_state" or values is None:
                job[name] = values
            else:
                job[name] = [values[row] for row in task.rows]
        running = self._running[worker] = _Running(task, worker, job, 0.0)
        self._restart_clock(running, worker.cpu_s)
        if worker.ready:  # else with its first message: it is importing and does not listen
            self._send(running)

    def _send(self, running: _Running) -> None:
        try:
            running.worker.send(running.job)
        except OSError:  # it died between two jobs
            self._died(running, innocent=True)

    def _collect(self) -> None:
        """Wait for the next message or deadline, and take what has arrived."""
        if not self._running:
            return
        wait_s = min(self._next_event(running) for running in self._running.values()) - time.monotonic()
        if self._pending:
            wait_s = min(wait_s, 0.05)  # a worker may come free in another thread
        with selectors.DefaultSelector() as selector:
            for worker in self._running:
                selector.register(worker.channel, selectors.EVENT_READ, worker)
            ready = [key.data for key, _ in selector.select(max(0.0, wait_s))]
        for worker in ready:
            messages = worker.receive()
            if messages is None:
                self._died(self._running[worker], innocent=not worker.ready)
            for message in messages or ():
                if worker in self._running:  # else a detached row's process ran on into rows that others have
                    self._take(self._running[worker], message)

    def _take(self, running: _Running, message: dict[str, Any]) -> None:
        task = running.task
        if "ready" in message:
            running.worker.ready = True
            self._restart_clock(running, message["cpu_s"])
            self._send(running)
        elif "failed" in message:  # it loads in other workers, and not in this one
            self._note(task.function, message["traceback"])
            self._put(task, task.rows[running.done :], Verdict(0.0, ERROR, detail=message["failed"]))
            self._retire(running)
        elif "split" in message:
            self._note(task.function, message["traceback"])
            self._pending.extend(self._tasks(task.function, task.rows, by_row=True))
            self._finish(running)
        else:
            self._take_verdicts(running, message)

    def _take_verdicts(self, running: _Running, message: dict[str, Any]) -> None:
        task = running.task
        if message["traceback"]:
            self._note(task.function, message["traceback"])
        rows = task.rows[running.done : running.done + len(message["verdicts"])]
        for row, (score, status, parts, detail, seconds) in zip(rows, message["verdicts"], strict=True):
            self._put(task, [row], Verdict(score, status, parts, detail, seconds))
        for column, values in message["extras"].items():
            target = self.extras.setdefault(column, [None] * self._num_rows)
            for row, value in zip(rows, values, strict=True):
                target[row] = value
        for name, value in message["metrics"].items():
            self.metrics.setdefault(name, []).append(value)
        running.done += len(rows)
        self._num_graded += len(rows)
        self._row_seconds += time.monotonic() - running.since
        self._restart_clock(running, message["cpu_s"])
        if running.soft_stopped or running.done == len(task.rows):
            self._requeue(running, first=running.done)
            self._finish(running)

    def _put(self, task: _Task, rows: Sequence[int], verdict: Verdict) -> None:
        for row in rows:
            self._verdicts[task.function][row] = verdict

    def _note(self, function: str, text: str) -> None:
        self.tracebacks.setdefault(function, text)

    # --- time ---------------------------------------------------------------------------------------------------

    def _restart_clock(self, running: _Running, cpu_s: float) -> None:
        running.since = time.monotonic()
        running.cpu_s = running.worker.cpu_s = cpu_s
        running.check_at = running.since + min(SLOW_ROW_S, self._timeout_s)

    def _next_event(self, running: _Running) -> float:
        if not running.worker.ready:
            return running.since + self._workers.start_timeout_s
        if running.soft_stopped:
            return running.since + self._timeout_s + SOFT_GRACE_S
        deadline = running.since + self._timeout_s
        return min(deadline, running.check_at) if self._may_detach(running) else deadline

    def _may_detach(self, running: _Running) -> bool:
        others = len(running.task.rows) > running.done + 1 or self._pending or self._workers.others_wait
        return bool(running.task.by_row and not running.detached and others and self._workers.can_add_spare)

    def _keep_time(self, running: _Running) -> None:
        elapsed = time.monotonic() - running.since
        if not running.worker.ready:
            if elapsed >= self._workers.start_timeout_s:
                detail = f"importing the reward functions took more than {self._workers.start_timeout_s:g} s"
                self._put(running.task, running.task.rows, Verdict(0.0, TIMEOUT, detail=detail))
                self._retire(running)
        elif elapsed >= self._timeout_s + SOFT_GRACE_S:
            detail = f"past its deadline of {self._timeout_s:g} s; killed in code that takes no signals"
            self._fail(running, Verdict(0.0, TIMEOUT, detail=detail, seconds=elapsed))
        elif elapsed >= self._timeout_s and not running.soft_stopped:
            running.soft_stopped = True
            with contextlib.suppress(ForkServerDied):  # then the worker's channel ends, and that is handled
                running.worker.soft_stop()
        elif time.monotonic() >= running.check_at and self._may_detach(running):
            running.check_at = time.monotonic() + RECHECK_S
            if self._is_slow(running):
                self._detach(running)

    def _is_slow(self, running: _Running) -> bool:
        """It has slept, or has had a core, for SLOW_ROW_S.

        On a busy machine every row waits for a core, and more processes do not help: such a row is slow only compared
        with the others of this call.
        """
        usual_s = 10 * self._row_seconds / self._num_graded if self._num_graded >= 5 else STARVED_ROW_S
        usage = running.worker.usage()
        if usage is None or time.monotonic() >= running.since + min(usual_s, STARVED_ROW_S):
            return True
        computing, cpu_s = usage
        return not computing or cpu_s - running.cpu_s >= SLOW_ROW_S

    def _detach(self, running: _Running) -> None:
        """Leave the current row alone with its process; its other rows and its place in the pool go to a fresh one."""
        running.detached = True
        self._requeue(running, first=running.done + 1)
        running.task.rows = running.task.rows[: running.done + 1]
        self._workers.add_spare()

    # --- ends ---------------------------------------------------------------------------------------------------

    def _finish(self, running: _Running) -> None:
        """Its work is done. A worker that was interrupted is not used again: who knows what it was in the middle of."""
        if running.soft_stopped or running.detached:
            self._retire(running)
        else:
            del self._running[running.worker]
            self._workers.check_in(running.worker)

    def _retire(self, running: _Running) -> None:
        del self._running[running.worker]
        if running.detached:
            self._workers.end_spare(running.worker)
        else:
            self._workers.replace(running.worker)

    def _died(self, running: _Running, *, innocent: bool) -> None:
        """A worker is gone. ``innocent``: it had no row in hand, so its rows are sent again."""
        task = running.task
        try:
            how = running.worker.end()
        except ForkServerDied:
            how, innocent = "the fork server died", True
        if innocent and task.innocent_deaths < MAX_INNOCENT_DEATHS:
            self._pending.append(_Task(task.function, task.rows[running.done :], task.by_row, task.innocent_deaths + 1))
            self._retire(running)
        else:
            self._fail(running, Verdict(0.0, ERROR, detail=f"the reward process died while grading: {how}"))

    def _fail(self, running: _Running, verdict: Verdict) -> None:
        """The process is lost: the row it was at gets ``verdict``; a batch is repeated row by row."""
        task = running.task
        self._note(task.function, verdict.detail)
        if task.by_row or len(task.rows) == 1:
            self._put(task, [task.rows[running.done]], verdict)
            self._requeue(running, first=running.done + 1)
        else:
            self._pending.extend(self._tasks(task.function, task.rows, by_row=True))
        self._retire(running)

    def _requeue(self, running: _Running, *, first: int) -> None:
        rest = running.task.rows[first:]
        if rest:
            self._pending.appendleft(_Task(running.task.function, rest, running.task.by_row))
