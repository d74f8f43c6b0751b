"""One fleet of reward actors and the queue of each function that it grades.

    put ─► queue of `math`   ─┐  a worker has at most MAX_IN_FLIGHT calls: one is graded, one so that it never waits;
           queue of `format` ─┴► worker 0, worker 1, ...       the rest wait here, the oldest goes first
    collect ◄─ (job, score or error), whoever finished first

Functions that share a lane are asked about a group in one call, and about several groups while they take next to no
time: then it is calls that cost. A lane of an async or served function merges groups into one request, whose rows its
actor grades side by side. A worker that dies or passes the deadline of a call is restarted and its jobs are sent again,
once, each in a call of its own; a job that loses its worker twice comes back as an error. (A call that waited behind
another at the lost worker does not count as sent.)
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from actors.fleet import Err, Fleet, Ok
from actors.grading_request import GradingRequest, PartScore
from actors.reward_worker import RewardWorker
from rewards.base import ERROR, TIMEOUT
from rlplatform.types import RolloutGroup

MAX_IN_FLIGHT = 2  # calls at a worker
MAX_SENDS = 2  # times a job is sent before it is an error
BUNDLE_S = 0.1  # of grading in one call, as far as earlier rows of the same functions tell
BUNDLE_ROWS = 128


@dataclass(eq=False)
class Job:
    """One function's look at one group."""

    group: RolloutGroup
    request: GradingRequest  # of this group alone
    queued_at: float = field(default_factory=time.monotonic)
    num_sends: int = 0


@dataclass
class QueueStatistics:
    """Of one function, since they were last asked for."""

    longest: int = 0  # groups that waited at the same time
    longest_wait_s: float = 0.0  # of a group, from submission to being sent


class Lane:
    """A fleet and what waits for it. For one thread of the driver.

    Args:
        fleet: ``RewardWorker``, or a class as ``actors.grading_request`` describes.
        functions: names of the parts that it grades.
        merge_rows: rows up to which groups of one function travel in one call; 0 = each group for itself.
        rows_per_second: of one worker, where it is limited: calls are given so much more time.
    """

    def __init__(
        self,
        fleet: Fleet[Any],
        functions: Sequence[str],
        *,
        merge_rows: int = 0,
        rows_per_second: float = math.inf,
    ) -> None:
        self.fleet = fleet
        self.functions = tuple(functions)
        self._queues: dict[str, deque[Job]] = {name: deque() for name in functions}
        self._statistics = {name: QueueStatistics() for name in functions}
        self._merge_rows = merge_rows
        self._each = merge_rows == 0 and issubclass(fleet.actor_class, RewardWorker)  # requests travel one by one
        self._row_seconds: dict[str, float] = {}  # function -> a row took lately
        self._rows_per_second = rows_per_second
        self._call_timeout_s = fleet.call_timeout_s
        self._in_flight: dict[int, list[Job]] = {}  # call -> its jobs
        self._at_worker: Counter[int] = Counter()
        self._child_restarts: dict[int, int] = {}

    def put(self, job: Job) -> None:
        queue = self._queues[job.request.function]
        queue.append(job)
        statistics = self._statistics[job.request.function]
        statistics.longest = max(statistics.longest, len(queue))

    def advance(self) -> list[tuple[Job, PartScore | Err]]:
        """Take what has finished and send what there is room for. Never waits. Raises RunStopped."""
        finished: list[tuple[Job, PartScore | Err]] = []
        replies = sorted(self.fleet.ready(0.0), key=lambda reply: reply.call)
        lost: set[int] = set()
        for reply in replies:
            if isinstance(reply.result, Err) and reply.result.lost:
                if reply.worker in lost:  # it stood behind the call that was being graded, so it is not to blame
                    for job in self._in_flight[reply.call]:
                        job.num_sends -= 1
                lost.add(reply.worker)
        for reply in reversed(replies):  # the oldest of what is sent again comes first again
            finished += self._take(reply.call, reply.worker, reply.result)
        self._dispatch()
        return finished

    @property
    def open_refs(self) -> list[Any]:
        return self.fleet.open_refs

    @property
    def num_waiting(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    @property
    def num_restarts(self) -> int:
        """Workers and child processes, since the start."""
        return self.fleet.num_restarts + sum(self._child_restarts.values())

    def versions(self) -> dict[str, str]:
        """Function -> what its actors say of themselves; {} where they do not. Waits for one of them."""
        method = getattr(self.fleet.actor_class, "version", None)
        live = self.fleet.live_workers
        if method is None or not live:
            return {}
        said = self.fleet.call(live[0], method)
        return dict.fromkeys(self.functions, str(said))

    def statistics(self) -> dict[str, QueueStatistics]:
        """Function -> how its queue was since the last call."""
        now = time.monotonic()
        for name, queue in self._queues.items():
            if queue:
                self._note_wait(name, now - queue[0].queued_at)
        statistics = self._statistics
        self._statistics = {name: QueueStatistics(len(queue)) for name, queue in self._queues.items()}
        return statistics

    # --- inside -------------------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        while any(self._queues.values()):
            live = self.fleet.live_workers
            free = [worker for worker in live if self._at_worker[worker] < MAX_IN_FLIGHT]
            if not free:
                return
            worker = min(free, key=lambda worker: self._at_worker[worker])
            jobs = self._next_jobs(len(live))
            now = time.monotonic()
            for job in jobs:
                job.num_sends += 1
                self._note_wait(job.request.function, now - job.queued_at)
            self._in_flight[self._send(worker, jobs)] = jobs
            self._at_worker[worker] += 1

    def _next_jobs(self, num_workers: int) -> list[Job]:
        """The oldest job, and what travels with it; a job that was lost before travels alone."""
        most = -(-max(len(queue) for queue in self._queues.values()) // num_workers)  # leave other workers their share
        jobs = self._jobs_of_oldest_group()
        if jobs[0].num_sends:
            return jobs
        for _ in range(most - 1):
            group = self._jobs_of_oldest_group()
            if not self._fits(jobs, group):
                for job in reversed(group):
                    self._queues[job.request.function].appendleft(job)
                break
            jobs += group
        return jobs

    def _jobs_of_oldest_group(self) -> list[Job]:
        """Taken off their queues; [] where nothing waits."""
        waiting = [queue for queue in self._queues.values() if queue]
        if not waiting:
            return []
        first = min(waiting, key=lambda queue: queue[0].queued_at)[0]
        if first.num_sends:
            return [self._queues[first.request.function].popleft()]
        return [queue.popleft() for queue in waiting if queue[0].group is first.group and not queue[0].num_sends]

    def _fits(self, jobs: Sequence[Job], more: Sequence[Job]) -> bool:
        if not more or any(job.num_sends for job in more):
            return False
        requests = [job.request for job in (*jobs, *more)]
        rows = sum(request.num_rows for request in requests)
        if not self._each:
            return rows <= self._merge_rows and all(_mergeable(requests[0], job.request) for job in more)
        seconds = sum(self._row_seconds.get(request.function, math.inf) * request.num_rows for request in requests)
        return rows <= BUNDLE_ROWS and seconds <= BUNDLE_S

    def _send(self, worker: int, jobs: Sequence[Job]) -> int:
        rows = sum(job.request.num_rows for job in jobs)
        self.fleet.call_timeout_s = self._call_timeout_s + MAX_IN_FLIGHT * rows / self._rows_per_second
        if self._each:
            return self.fleet.call_async(worker, RewardWorker.score_each, [job.request for job in jobs])
        method: Any = self.fleet.actor_class.score
        return self.fleet.call_async(worker, method, _merged([job.request for job in jobs]))

    def _take(self, call: int, worker: int, result: Ok[Any] | Err) -> list[tuple[Job, PartScore | Err]]:
        jobs = self._in_flight.pop(call)
        self._at_worker[worker] -= 1
        if isinstance(result, Ok):
            try:
                scores = result.value if self._each else _split(result.value, [job.request for job in jobs])
            except ValueError as error:
                return [(job, Err("ValueError", str(error))) for job in jobs]
            self._child_restarts[worker] = max(self._child_restarts.get(worker, 0), *(s.restarts for s in scores))
            for job, score in zip(jobs, scores, strict=True):
                self._note_speed(job.request.function, score)
            return list(zip(jobs, scores, strict=True))
        again = [job for job in jobs if result.lost and job.num_sends < MAX_SENDS]
        for job in reversed(again):
            self._queues[job.request.function].appendleft(job)
        return [(job, result) for job in jobs if job not in again]

    def _note_speed(self, function: str, score: PartScore) -> None:
        seconds = sum(verdict.seconds for verdict in score.verdicts) / max(1, len(score.verdicts))
        self._row_seconds[function] = (self._row_seconds.get(function, seconds) + seconds) / 2

    def _note_wait(self, function: str, seconds: float) -> None:
        statistics = self._statistics[function]
        statistics.longest_wait_s = max(statistics.longest_wait_s, seconds)


def _mergeable(a: GradingRequest, b: GradingRequest) -> bool:
    return a.step == b.step and a.columns.keys() == b.columns.keys()


def _merged(requests: Sequence[GradingRequest]) -> GradingRequest:
    """One request about the groups of all, in order."""
    first = requests[0]
    if len(requests) == 1:
        return first
    return replace(
        first,
        prompts=[prompt for r in requests for prompt in r.prompts],
        completions=[completion for r in requests for completion in r.completions],
        columns={name: [value for r in requests for value in r.columns[name]] for name in first.columns},
        group_sizes=tuple(size for r in requests for size in r.group_sizes),
        completion_ids=None
        if first.completion_ids is None
        else [ids for r in requests for ids in r.completion_ids or ()],
    )


def _split(score: PartScore, requests: Sequence[GradingRequest]) -> list[PartScore]:
    """The score of a merged request, request by request.

    Raises ValueError when it has not one verdict a row: nobody can tell which row such verdicts belong to.
    """
    num_rows = sum(request.num_rows for request in requests)
    if len(score.verdicts) != num_rows:
        raise ValueError(
            f"{requests[0].function}: its actor answered {len(score.verdicts)} verdicts for {num_rows} rows"
        )
    scores, start, tracebacks = [], 0, score.tracebacks
    for number, request in enumerate(requests):
        rows = slice(start, start + request.num_rows)
        verdicts = score.verdicts[rows]
        failed = any(verdict.status in (ERROR, TIMEOUT) for verdict in verdicts)
        scores.append(
            replace(
                score,
                verdicts=verdicts,
                extras={column: values[rows] for column, values in score.extras.items()},
                metrics=score.metrics if number == 0 else {},
                tracebacks=tracebacks if failed else (),  # they tell of the first failure, so of the first that failed
            )
        )
        tracebacks = () if failed else tracebacks
        start += request.num_rows
    return scores
