"""One ``score`` call of an async ``rowwise`` function: its rows run side by side in the event loop of one worker.

    rows ─► limit ─► worker: ConcurrentRows (rewards/child.py) ─► verdicts, whoever finished first
                       a row past its deadline: cancelled, timeout; the others go on
                       a silent worker (a row blocks the loop): soft signal, then SIGKILL
                         the row that the signal hit is a timeout; rows that were lost with it run again, and where
                         nobody knows which of them it was, one by one

Limits are kept here, in the process of the pool (``rewards/limits.py``): a row that waits for its turn has not started,
and no clock runs for it.
"""

from __future__ import annotations

import contextlib
import selectors
import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from rewards.base import ERROR, TIMEOUT, Verdict
from rewards.grading import MAX_INNOCENT_DEATHS, SOFT_GRACE_S
from rewards.plans import Plan, Task, job_of
from rewards.processes import ForkServerDied, Worker, WorkerPool

DEFAULT_CONCURRENCY = 16  # rows at the same time in one worker
_OVERDUE_S = 5.0  # a worker's own clocks are given this much more
_MIN_SILENCE_S = 1.0  # on a busy machine a heartbeat may be late by itself
_RECHECK_S = 0.05  # a place under a limit may come free in another thread


class StreamCall:
    """Grade the rows of a plan; ``run`` fills the fields below.

    Args:
        workers: where a worker is borrowed; it is back, or replaced, when ``run`` ends.
        plan: with a ``limit``.
        inputs: as of ``rewards.grading.GradingCall``.
    """

    def __init__(self, workers: WorkerPool, function: str, plan: Plan, inputs: Mapping[str, Any]) -> None:
        if plan.limit is None:
            raise ValueError(f"{function}: a stream needs a limit, e.g. RowLimit({DEFAULT_CONCURRENCY})")
        self._workers, self._function, self._plan, self._inputs = workers, function, plan, inputs
        self._limit = plan.limit
        self._pending = deque(plan.rows)
        self._suspects: deque[int] = deque()  # one of them may have ended its worker: each runs alone
        self._in_flight: dict[int, float] = {}  # row -> when it was sent
        self._alone = False  # the row in flight is a suspect
        self._num_deaths = 0  # of workers without a row in hand, or while they imported
        self._num_rows = len(inputs["completions"])
        self.verdicts: list[Verdict | None] = [None] * self._num_rows
        self.extras: dict[str, list[Any]] = {}
        self.metrics: dict[str, list[float]] = {}
        self.traceback = ""  # of the first failure

    def run(self) -> None:
        while self._pending or self._suspects:
            worker = self._workers.check_out(wait=True)
            if worker is None:
                continue
            usable = False
            try:
                usable = self._serve(worker)
            finally:
                for _ in self._in_flight:
                    self._limit.give_back()
                self._in_flight.clear()
                if usable:
                    self._workers.check_in(worker)
                else:
                    self._workers.replace(worker)

    # --- one worker ---------------------------------------------------------------------------------------------

    def _serve(self, worker: Worker) -> bool:
        """Have rows graded until none is left or the worker is lost. True: it can be used again."""
        if not worker.ready and not self._await_ready(worker):
            return False
        stream = {"stream": True, "function": self._function, "timeout_s": self._plan.timeout_s}
        self._heard = time.monotonic()
        self._soft_at = 0.0  # when the soft signal was sent
        self._left_behind = False
        try:
            worker.send(stream)
            while self._feed(worker) or self._in_flight:
                messages = self._listen(worker)
                if messages is None:
                    return self._lost(self._how_it_ended(worker), ERROR)
                for message in messages:
                    if "interrupted" in message:
                        return self._lost("its event loop was blocked past the deadline", TIMEOUT)
                    if "row" in message:
                        self._take(message)
                if self._soft_at and any("row" in message for message in messages):
                    self._requeue(self._in_flight)  # the signal hit the row that has its verdict now
                    return False
                if self._soft_at and time.monotonic() >= self._soft_at + SOFT_GRACE_S:
                    deadline = f"past its deadline of {self._plan.timeout_s:g} s"
                    return self._lost(f"{deadline}; killed in code that takes no signals", TIMEOUT)
            worker.send({"end": True})
            return self._await_end(worker)
        except OSError:  # the channel broke between two messages
            return self._lost(self._how_it_ended(worker), ERROR)

    def _await_ready(self, worker: Worker) -> bool:
        messages = _receive(worker, self._workers.start_timeout_s)
        if messages and "ready" in messages[0]:
            worker.ready = True
            return True
        if messages and "failed" in messages[0]:
            self._note(messages[0]["traceback"])
            self._give_up(ERROR, messages[0]["failed"])
        elif messages is None and self._num_deaths < MAX_INNOCENT_DEATHS:
            self._num_deaths += 1
        else:
            self._give_up(TIMEOUT if messages == [] else ERROR, "the reward process did not start")
        return False

    def _feed(self, worker: Worker) -> bool:
        """Send what may start now. True while rows are left that this worker can be given."""
        while not self._left_behind and not self._soft_at:
            queue = self._suspects or self._pending
            if not queue:
                return False
            if (self._in_flight and (self._alone or self._suspects)) or not self._limit.take():
                return True
            self._alone = bool(self._suspects)
            row = queue.popleft()
            self._in_flight[row] = time.monotonic()
            worker.send(job_of(Task(self._function, [row], by_row=True), self._plan, self._inputs))
        return False

    def _listen(self, worker: Worker) -> list[dict[str, Any]] | None:
        """What arrives before the next event; sends the soft signal when the worker has been silent for too long."""
        now = time.monotonic()
        wait_s = max(0.0, (self._soft_at + SOFT_GRACE_S if self._soft_at else self._due()) - now)
        if self._pending or self._suspects:
            wait_s = min(wait_s, _RECHECK_S, self._limit.delay_s() or _RECHECK_S)
        messages = _receive(worker, wait_s)
        if messages:
            self._heard = time.monotonic()
        if messages is not None and not self._soft_at and time.monotonic() >= self._due():
            self._soft_at = time.monotonic()
            with contextlib.suppress(ForkServerDied):  # then the channel ends, and that is handled
                worker.soft_stop()
        return messages

    def _due(self) -> float:
        """When the worker has been silent for too long, or has kept a row for longer than it would by itself."""
        silent_at = self._heard + max(self._plan.timeout_s, _MIN_SILENCE_S)
        oldest = min(self._in_flight.values(), default=time.monotonic())
        return min(silent_at, oldest + 2 * self._plan.timeout_s + _OVERDUE_S)

    def _await_end(self, worker: Worker) -> bool:
        deadline = time.monotonic() + self._plan.timeout_s
        while (left_s := deadline - time.monotonic()) > 0:
            messages = _receive(worker, left_s)
            if messages is None:
                return False
            for message in messages:
                if "ended" in message:
                    return not message["left_behind"]
        return False

    # --- verdicts -----------------------------------------------------------------------------------------------

    def _take(self, message: Mapping[str, Any]) -> None:
        row = message["row"]
        if row not in self._in_flight:
            return
        del self._in_flight[row]
        self._limit.give_back()
        self._left_behind = message["left_behind"]
        (score, status, parts, detail, seconds) = message["verdicts"][0]
        self.verdicts[row] = Verdict(score, status, parts, detail, seconds)
        self._note(message["traceback"])
        for column, values in message["extras"].items():
            self.extras.setdefault(column, [None] * self._num_rows)[row] = values[0]
        for name, value in message["metrics"].items():
            self.metrics.setdefault(name, []).append(value)

    def _note(self, text: str) -> None:
        self.traceback = self.traceback or text

    def _how_it_ended(self, worker: Worker) -> str:
        try:
            return f"the reward process died while grading: {worker.end()}"
        except ForkServerDied:
            return "the fork server died"

    def _lost(self, reason: str, status: str) -> bool:
        """The worker is gone with the rows in flight: a single one is to blame, of several each runs alone."""
        innocent = not self._in_flight or "fork server" in reason
        if innocent and self._num_deaths < MAX_INNOCENT_DEATHS:
            self._num_deaths += 1
            self._requeue(self._in_flight)
        elif len(self._in_flight) == 1:
            ((row, since),) = self._in_flight.items()
            self.verdicts[row] = Verdict(0.0, status, detail=reason, seconds=time.monotonic() - since)
            self._note(reason)
        elif self._in_flight:
            self._suspects.extend(sorted(self._in_flight))
        else:
            self._give_up(status, reason)
        return False

    def _give_up(self, status: str, detail: str) -> None:
        for row in [*self._pending, *self._suspects]:
            self.verdicts[row] = Verdict(0.0, status, detail=detail)
        self._pending.clear()
        self._suspects.clear()
        self._note(detail)

    def _requeue(self, rows: Iterable[int]) -> None:
        self._pending.extendleft(sorted(rows, reverse=True))


def _receive(worker: Worker, timeout_s: float) -> list[dict[str, Any]] | None:
    """Messages that arrive within the time, ``[]`` where none does, None when the worker is dead."""
    with selectors.DefaultSelector() as selector:
        selector.register(worker.channel, selectors.EVENT_READ)
        return worker.receive() if selector.select(timeout_s) else []
