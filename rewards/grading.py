"""One ``score`` call of a RewardPool: its rows become tasks, tasks go to workers, verdicts come back.

    rows ─► tasks ─► workers (num_processes, warm)             a row that is slow keeps its process and its place in
      │       a batch function: one task, all rows             the pool is taken by a fresh fork; it ends at timeout_s:
      │       a rowwise one:    chunks of rows                 soft signal, then SIGKILL
      │       a groupwise one:  one task a group
      └◄─ verdicts, row by row, or a batch or group at once
          a batch that raises, dies or runs out of time ─► the same rows, row by row
          a group that does                             ─► all its rows have that status

One bad row has one bad status, and costs the others ``SLOW_ROW_S`` instead of its whole deadline.
"""

from __future__ import annotations

import contextlib
import selectors
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rewards.base import ERROR, TIMEOUT, Verdict
from rewards.plans import Plan, Running, Task, job_of, tasks_of
from rewards.processes import ForkServerDied, Worker, WorkerPool

SLOW_ROW_S = 0.3  # computed or slept so long, a row no longer holds up the rows behind it
STARVED_ROW_S = 1.0  # the same for a row that mostly waits for a core; less where other rows took much less
RECHECK_S = 0.1
SOFT_GRACE_S = 0.25  # between the soft signal and SIGKILL
MAX_INNOCENT_DEATHS = 3  # times a task is sent again because its worker was lost through no fault of a row


class GradingCall:
    """Grade ``inputs`` as planned; ``run`` fills the fields below.

    Args:
        workers: where workers are borrowed; all are back, or replaced, when ``run`` ends.
        plans: name of a function -> which rows, and how.
        inputs: prompts, completions, completion_ids: ``[n]`` each, or None; columns: name -> ``[n]``; trainer_state.
    """

    def __init__(self, workers: WorkerPool, plans: Mapping[str, Plan], inputs: Mapping[str, Any]) -> None:
        self._workers = workers
        self._plans = plans
        self._inputs = inputs
        self._num_rows = len(inputs["completions"])
        self._running: dict[Worker, Running] = {}
        self._pending: deque[Task] = deque()
        self._limited_until = 0.0  # when the first task that a limit holds back may start
        for function, plan in plans.items():
            if plan.groups is not None:
                self._pending.extend(Task(function, list(group), False, whole=True) for group in plan.groups if group)
            else:
                self._pending.extend(self._tasks(function, list(plan.rows), plan.by_row))
        self.verdicts: dict[str, list[Verdict | None]] = {
            name: [None] * self._num_rows for name in plans
        }  # None: not asked
        self._num_graded = 0
        self._row_seconds = 0.0  # wall-clock time of the graded rows
        self.extras: dict[str, list[Any]] = {}  # column -> [n]; None where no function logged anything
        self.metrics: dict[str, list[float]] = {}  # name -> a value a call
        self.tracebacks: dict[str, str] = {}  # function -> of its first failure

    def _tasks(self, function: str, rows: list[int], by_row: bool) -> list[Task]:
        return tasks_of(function, self._plans[function], rows, by_row, self._workers.num_processes)

    def run(self) -> None:
        try:
            while self._pending or self._running:
                self._start_tasks()
                self._collect()
                for running in list(self._running.values()):
                    self._keep_time(running)
        finally:  # also when the caller is interrupted: whoever still runs is ended, and the pool is whole again
            for running in list(self._running.values()):
                self._retire(running)

    def add(
        self,
        function: str,
        verdicts: list[Verdict | None],
        extras: Mapping[str, list[Any]],
        metrics: Mapping[str, list[float]],
        text: str,
    ) -> None:
        """What another call said of the same rows."""
        self.verdicts[function] = verdicts
        for column, values in extras.items():
            target = self.extras.setdefault(column, [None] * self._num_rows)
            target[:] = [old if new is None else new for old, new in zip(target, values, strict=True)]
        for name, logged in metrics.items():
            self.metrics.setdefault(name, []).extend(logged)
        if text:
            self._note(function, text)

    # --- work out, verdicts in ----------------------------------------------------------------------------------

    def _start_tasks(self) -> None:
        """Give tasks to idle workers, in order, but for those that a limit holds back."""
        waiting: list[Task] = []
        full: set[str] = set()
        self._limited_until = 0.0
        while self._pending:
            task = self._pending.popleft()
            limit = self._plans[task.function].limit
            if limit is not None and (task.function in full or (delay_s := limit.delay_s()) > 0):
                if task.function not in full:
                    until = time.monotonic() + delay_s
                    self._limited_until = min(self._limited_until or until, until)
                full.add(task.function)
                waiting.append(task)
                continue
            worker = self._workers.check_out(wait=not self._running)
            if worker is None:
                waiting.append(task)
                break
            if limit is None or limit.take():
                self._start(worker, task)
            else:  # another thread was faster
                self._workers.check_in(worker)
                waiting.append(task)
        self._pending.extendleft(reversed(waiting))

    def _start(self, worker: Worker, task: Task) -> None:
        job = job_of(task, self._plans[task.function], self._inputs)
        running = self._running[worker] = Running(task, worker, job, 0.0)
        self._restart_clock(running, worker.cpu_s)
        if worker.ready:  # else with its first message: it is importing and does not listen
            self._send(running)

    def _send(self, running: Running) -> None:
        try:
            running.worker.send(running.job)
        except OSError:  # it died between two jobs
            self._died(running, innocent=True)

    def _collect(self) -> None:
        """Wait for the next message or deadline, and take what has arrived."""
        now = time.monotonic()
        wait_s = min((self._next_event(running) for running in self._running.values()), default=now + 1.0) - now
        if self._pending:
            wait_s = min(wait_s, 0.05)  # a worker, or a place under a limit, may come free in another thread
        if self._limited_until:
            wait_s = min(wait_s, self._limited_until - now)
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

    def _take(self, running: Running, message: dict[str, Any]) -> None:
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

    def _take_verdicts(self, running: Running, message: dict[str, Any]) -> None:
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

    def _put(self, task: Task, rows: Sequence[int], verdict: Verdict) -> None:
        for row in rows:
            self.verdicts[task.function][row] = verdict

    def _note(self, function: str, text: str) -> None:
        self.tracebacks.setdefault(function, text)

    # --- time ---------------------------------------------------------------------------------------------------

    def _restart_clock(self, running: Running, cpu_s: float) -> None:
        running.since = time.monotonic()
        running.cpu_s = running.worker.cpu_s = cpu_s
        running.check_at = running.since + min(SLOW_ROW_S, self._timeout_s(running))

    def _timeout_s(self, running: Running) -> float:
        return self._plans[running.task.function].timeout_s

    def _next_event(self, running: Running) -> float:
        if not running.worker.ready:
            return running.since + self._workers.start_timeout_s
        if running.soft_stopped:
            return running.since + self._timeout_s(running) + SOFT_GRACE_S
        deadline = running.since + self._timeout_s(running)
        return min(deadline, running.check_at) if self._may_detach(running) else deadline

    def _may_detach(self, running: Running) -> bool:
        others = len(running.task.rows) > running.done + 1 or self._pending or self._workers.others_wait
        return bool(running.task.by_row and not running.detached and others and self._workers.can_add_spare)

    def _keep_time(self, running: Running) -> None:
        elapsed, timeout_s = time.monotonic() - running.since, self._timeout_s(running)
        if not running.worker.ready:
            if elapsed >= self._workers.start_timeout_s:
                detail = f"importing the reward functions took more than {self._workers.start_timeout_s:g} s"
                self._put(running.task, running.task.rows, Verdict(0.0, TIMEOUT, detail=detail))
                self._retire(running)
        elif elapsed >= timeout_s + SOFT_GRACE_S:
            detail = f"past its deadline of {timeout_s:g} s; killed in code that takes no signals"
            self._fail(running, Verdict(0.0, TIMEOUT, detail=detail, seconds=elapsed))
        elif elapsed >= timeout_s and not running.soft_stopped:
            running.soft_stopped = True
            with contextlib.suppress(ForkServerDied):  # then the worker's channel ends, and that is handled
                running.worker.soft_stop()
        elif time.monotonic() >= running.check_at and self._may_detach(running):
            running.check_at = time.monotonic() + RECHECK_S
            if self._is_slow(running):
                self._detach(running)

    def _is_slow(self, running: Running) -> bool:
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

    def _detach(self, running: Running) -> None:
        """Leave the current row alone with its process; its other rows and its place in the pool go to a fresh one."""
        running.detached = True
        self._requeue(running, first=running.done + 1)
        running.task.rows = running.task.rows[: running.done + 1]
        self._workers.add_spare()

    # --- ends ---------------------------------------------------------------------------------------------------

    def _finish(self, running: Running) -> None:
        """Its work is done. A worker that was interrupted is not used again: who knows what it was in the middle of."""
        if running.soft_stopped or running.detached:
            self._retire(running)
        else:
            self._leave(running)
            self._workers.check_in(running.worker)

    def _leave(self, running: Running) -> None:
        del self._running[running.worker]
        limit = self._plans[running.task.function].limit
        if limit is not None:
            limit.give_back()

    def _retire(self, running: Running) -> None:
        self._leave(running)
        if running.detached:
            self._workers.end_spare(running.worker)
        else:
            self._workers.replace(running.worker)

    def _died(self, running: Running, *, innocent: bool) -> None:
        """A worker is gone. ``innocent``: it had no row in hand, so its rows are sent again."""
        task = running.task
        try:
            how = running.worker.end()
        except ForkServerDied:
            how, innocent = "the fork server died", True
        if innocent and task.innocent_deaths < MAX_INNOCENT_DEATHS:
            rest = task.rows[running.done :]
            self._pending.append(Task(task.function, rest, task.by_row, task.whole, task.innocent_deaths + 1))
            self._retire(running)
        else:
            self._fail(running, Verdict(0.0, ERROR, detail=f"the reward process died while grading: {how}"))

    def _fail(self, running: Running, verdict: Verdict) -> None:
        """The process is lost: the row it was at gets ``verdict``, or the whole group; a batch is repeated by rows."""
        task = running.task
        self._note(task.function, verdict.detail)
        if task.whole:
            self._put(task, task.rows, replace(verdict, seconds=verdict.seconds / len(task.rows)))
        elif task.by_row or len(task.rows) == 1:
            self._put(task, [task.rows[running.done]], verdict)
            self._requeue(running, first=running.done + 1)
        else:
            self._pending.extend(self._tasks(task.function, task.rows, by_row=True))
        self._retire(running)

    def _requeue(self, running: Running, *, first: int) -> None:
        rest = running.task.rows[first:]
        if rest:
            self._pending.appendleft(Task(running.task.function, rest, running.task.by_row))
