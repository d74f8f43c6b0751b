"""The reward service: groups in, verdicts out (``roles.Scorer``).

    submit ─► backlog ─► RewardWorker 0 ─► RewardPool: killable child processes     at most MAX_IN_FLIGHT groups wait
                    └──► RewardWorker 1 ─► RewardPool                               at a worker; the rest wait here
    poll   ◄─ scored groups, whoever finished first

A group is sent the moment it is submitted and a worker has room. A worker that dies or passes the deadline of a call is
restarted and its groups are sent again, once; a group that loses its worker twice gets ``error`` verdicts.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import sys
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from actors.fleet import Fleet, FleetActor, Ok
from rewards.base import ERROR, TIMEOUT, Verdict, absolute, resolve
from rewards.composition import Part
from rewards.runner import RewardPool
from rlplatform.config import RewardConfig
from rlplatform.roles import RunStopped
from rlplatform.types import Metrics, RolloutGroup, ScoredGroup

MAX_IN_FLIGHT = 2  # groups at a worker: one being graded, one so that it never waits
MAX_SENDS = 2  # times a group is sent before its verdicts are `error`
EARLY_STOP_VERDICTS = 32  # from here on a hopeless error rate stops the run before the step is over
_GRADERS = ("math-verify", "latex2sympy2-extended", "sympy")


# --- the actor ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GroupScore:
    """What a worker returns for one group."""

    verdicts: tuple[Verdict, ...]
    custom: dict[str, float]  # what functions gave to log_metric
    tracebacks: dict[str, str]  # function -> traceback of its first failure on this group
    num_restarts: int  # child processes replaced in this worker's life


class RewardWorker(FleetActor):
    """One actor around a ``RewardPool``.

    Args:
        parts: what grades; files are named by their absolute path.
        sys_path: the driver's import path; a user's package is found here as it was there.
    """

    def __init__(
        self,
        parts: Mapping[str, Part],
        num_processes: int,
        timeout_s: float,
        sys_path: Sequence[str],
    ) -> None:
        sys.path.extend(entry for entry in sys_path if entry not in sys.path)
        self._pool = RewardPool(parts, num_processes, timeout_s)

    def score(self, group: RolloutGroup, step: int) -> GroupScore:
        """Grade every rollout of a group, in order."""
        prompt, num_rows = group.prompt, len(group.rollouts)
        messages: Any = [dict(message) for message in prompt.messages] or prompt.text
        columns = {name: [value] * num_rows for name, value in prompt.columns.items()}
        columns["prompt_text"] = [prompt.text] * num_rows
        scored = self._pool.score_detailed(
            prompts=[messages] * num_rows,
            completions=[rollout.text for rollout in group.rollouts],
            columns=columns,
            completion_ids=[rollout.token_ids.tolist() for rollout in group.rollouts],
            trainer_state={"global_step": step},
            groups=[0] * num_rows,
        )
        verdicts = tuple(
            replace(verdict, detail=_with_extras(verdict.detail, {c: v[row] for c, v in scored.extras.items()}))
            for row, verdict in enumerate(scored.verdicts)
        )
        return GroupScore(verdicts, scored.metrics, scored.tracebacks, self._pool.num_restarts)

    def shutdown(self) -> None:
        self._pool.close()


def _with_extras(detail: str, extras: Mapping[str, Any]) -> str:
    lines = [f"{column}: {value}" for column, value in extras.items() if value is not None]
    return "\n".join([detail, *lines] if detail else lines)


# --- the driver's side ----------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Job:
    group: RolloutGroup
    step: int
    num_sends: int = 0


@dataclass
class _Window:
    """What came back since the last ``metrics()``."""

    statuses: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    custom: dict[str, list[float]] = field(default_factory=dict)
    tracebacks: dict[str, str] = field(default_factory=dict)

    @property
    def num_verdicts(self) -> int:
        return sum(self.statuses.values())

    @property
    def error_rate(self) -> float:
        return (self.statuses[ERROR] + self.statuses[TIMEOUT]) / max(1, self.num_verdicts)


class RewardService:
    """``config.num_workers`` reward workers behind ``roles.Scorer``. For one thread of the driver.

    Every function is resolved in the driver first, so a typing error costs no actor.

    Raises:
        RewardLoadError: a function cannot be loaded, or cannot take completions.
    """

    def __init__(self, config: RewardConfig) -> None:
        parts = {name: replace(part, function=absolute(part.function)) for name, part in config.parts.items()}
        self._resolved = {name: resolve(part.function) for name, part in parts.items()}
        self._max_error_rate = config.max_error_rate
        arguments = (parts, config.processes_per_worker, config.timeout_s, list(sys.path))
        self._fleet: Fleet[RewardWorker] = Fleet(
            RewardWorker,
            "reward",
            config.num_workers,
            cpus=0.0,  # grading fills the gaps that generation and training leave; it reserves no core
            actor_args=lambda worker: arguments,
            env={"OMP_NUM_THREADS": "1"},
            call_timeout_s=config.call_timeout_s,
            change="reward.num_workers",
        )
        self._backlog: deque[_Job] = deque()
        self._in_flight: dict[int, _Job] = {}  # fleet call -> job
        self._at_worker: Counter[int] = Counter()
        self._scored: deque[ScoredGroup] = deque()
        self._window = _Window()
        self._tracebacks: dict[str, str] = {}
        self._child_restarts: dict[int, int] = {}

    def submit(self, groups: Sequence[RolloutGroup], *, step: int) -> None:
        """Send groups for grading; ``step`` is what functions see as ``trainer_state.global_step``."""
        for group in groups:
            if group.rollouts:
                self._backlog.append(_Job(group, step))
            else:
                self._scored.append(ScoredGroup(group, ()))
        self._dispatch()

    def poll(self, timeout_s: float) -> list[ScoredGroup]:
        """The groups whose verdicts are there; waits up to ``timeout_s`` for the first one.

        Raises:
            RunStopped: the error rate is hopeless, or a worker was lost too often.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            self._dispatch()
            waiting = bool(self._in_flight or self._backlog) and not self._scored
            for reply in self._fleet.ready(max(0.0, deadline - time.monotonic()) if waiting else 0.0):
                self._at_worker[reply.worker] -= 1
                self._take(self._in_flight.pop(reply.call), reply.worker, reply.result)
            self._dispatch()
            if self._scored or time.monotonic() >= deadline or not self.num_pending:
                break
        if self._window.num_verdicts >= EARLY_STOP_VERDICTS:
            self._check_error_rate(limit=(1 + self._max_error_rate) / 2)
        scored = list(self._scored)
        self._scored.clear()
        return scored

    def score(self, groups: Sequence[RolloutGroup], *, step: int) -> list[ScoredGroup]:
        """Grade and wait: these groups, in their order. What ``submit`` sent goes on and stays for ``poll``."""
        mine = {id(group): place for place, group in enumerate(groups)}
        found: dict[int, ScoredGroup] = {}
        others: list[ScoredGroup] = []
        self.submit(groups, step=step)
        while len(found) < len(groups):
            for scored in self.poll(1.0):
                if id(scored.group) in mine:
                    found[mine[id(scored.group)]] = scored
                else:
                    others.append(scored)
        self._scored.extend(others)
        return [found[place] for place in range(len(groups))]

    @property
    def num_pending(self) -> int:
        """Groups submitted and not yet returned by ``poll``."""
        return len(self._backlog) + len(self._in_flight) + len(self._scored)

    def metrics(self) -> Metrics:
        """Since the last call: latency a row, error rate, what functions logged; restarts since the start.

        Raises:
            RunStopped: the share of ``error`` and ``timeout`` verdicts is above ``reward.max_error_rate``.
        """
        self._check_error_rate(limit=self._max_error_rate)
        window, self._window = self._window, _Window()
        seconds = window.seconds or [0.0]
        return {
            "score/seconds_p50": float(np.percentile(seconds, 50)),
            "score/seconds_p99": float(np.percentile(seconds, 99)),
            "score/error_rate": window.error_rate,
            "score/restarts": float(self._fleet.num_restarts + sum(self._child_restarts.values())),
            **{f"score/custom/{name}": sum(values) / len(values) for name, values in window.custom.items()},
        }

    @property
    def first_tracebacks(self) -> dict[str, str]:
        """Function -> the traceback of its first failure since the start."""
        return dict(self._tracebacks)

    def versions(self) -> dict[str, str]:
        """What graded: package versions, and a hash of each function's source file."""
        versions = {name: importlib.metadata.version(name) for name in _GRADERS}
        for name, fn in self._resolved.items():
            source = inspect.getsourcefile(fn) if inspect.isroutine(fn) else inspect.getsourcefile(type(fn))
            if source:
                versions[name] = hashlib.sha256(Path(source).read_bytes()).hexdigest()[:12]
        return versions

    def close(self) -> None:
        """End every worker and its child processes."""
        self._fleet.close()

    # --- inside -------------------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        while self._backlog:
            free = [worker for worker in self._fleet.live_workers if self._at_worker[worker] < MAX_IN_FLIGHT]
            if not free:
                return
            worker = min(free, key=lambda worker: self._at_worker[worker])
            job = self._backlog.popleft()
            job.num_sends += 1
            call = self._fleet.call_async(worker, RewardWorker.score, job.group, job.step)
            self._in_flight[call] = job
            self._at_worker[worker] += 1

    def _take(self, job: _Job, worker: int, result: Ok[GroupScore] | Any) -> None:
        if isinstance(result, Ok):
            score: GroupScore = result.value
            self._note(score.tracebacks)
            for name, value in score.custom.items():
                self._window.custom.setdefault(name, []).append(value)
            self._child_restarts[worker] = score.num_restarts
            self._finish(job, score.verdicts)
        elif result.lost and job.num_sends < MAX_SENDS:
            self._backlog.appendleft(job)
        else:
            detail = f"prompt {job.group.prompt.prompt_id}: {result}"
            self._note({"the reward service": detail})
            self._finish(job, (Verdict(0.0, ERROR, detail=detail),) * len(job.group.rollouts))

    def _note(self, tracebacks: Mapping[str, str]) -> None:
        for name, text in tracebacks.items():
            self._window.tracebacks.setdefault(name, text)
            self._tracebacks.setdefault(name, text)

    def _finish(self, job: _Job, verdicts: tuple[Verdict, ...]) -> None:
        self._window.statuses.update(verdict.status for verdict in verdicts)
        self._window.seconds.extend(verdict.seconds for verdict in verdicts)
        self._scored.append(ScoredGroup(job.group, verdicts))

    def _check_error_rate(self, limit: float) -> None:
        window = self._window
        if window.error_rate <= limit:
            return
        first = "\n".join(f"first failure of {name}:\n{text}" for name, text in window.tracebacks.items())
        raise RunStopped(
            f"reward: {window.error_rate:.0%} of {window.num_verdicts} verdicts are errors or timeouts "
            f"({dict(window.statuses)}), above reward.max_error_rate={self._max_error_rate:g}.\n{first}\n"
            "Try the function alone: rlplatform reward test NAME --data rows.jsonl"
        )
