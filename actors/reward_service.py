"""The reward service: groups in, verdicts out (``roles.Scorer``).

    submit ─► jobs, one a (group, function) ─► Lane `reward`:  queues of the functions that share the workers
                                           ├─► Lane `judge`:   a queue and a fleet of its own, so that a slow function
                                           │                   never holds up the others
    poll   ◄─ compose, when a group's last part is in ◄─┘

The verdicts of ``environment`` come with the rollouts and need no lane. What functions of text grade is the last turn.

A function has a lane of its own when it is async or ``served_by`` an actor class, and when the config gives it workers,
GPUs, a concurrency or a rate. Limits are divided over its workers, so that together they keep what is configured; in a
worker the pool keeps them over its processes (``rewards/limits.py``).

How much is outstanding is the loop's business: it submits at most ``max_lag + 1`` batches of groups, and asks for no
more before those are trained on. Here at most MAX_IN_FLIGHT calls are at a worker; the rest waits in its queue.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray

from actors.fleet import Err
from actors.grading_request import GradingRequest, PartScore
from actors.reward_lane import Job, Lane
from actors.reward_lanes import plan_lanes, start_lane
from actors.reward_records import Records, Window
from actors.reward_versions import source_file, versions
from rewards.base import ERROR, NOT_APPLICABLE, TIMEOUT, RewardFn, Verdict, absolute, resolve
from rewards.composition import check_part, compose
from rewards.runner import as_messages
from rlplatform.config import RewardConfig
from rlplatform.roles import RunStopped
from rlplatform.types import Metrics, Prompt, RolloutGroup, ScoredGroup

EARLY_STOP_VERDICTS = 32  # from here on a hopeless error rate stops the run before the step is over
WAIT_S = 0.25  # at most, between two looks at deadlines and lost workers


@dataclass(eq=False)
class _Open:
    """A group whose parts are being graded."""

    group: RolloutGroup
    step: int
    missing: set[str]
    verdicts: dict[str, Sequence[Verdict]] = field(default_factory=dict)  # part -> one a rollout


class RewardService:
    """Reward workers behind ``roles.Scorer``. For one thread of the driver.

    Every function is resolved in the driver first, so a typing error costs no actor.

    Args:
        config: what grades, and with how many workers.
        folder: of the run, for slow rows and first failures; None writes neither.

    Raises:
        RewardLoadError: a function cannot be loaded, cannot take completions, or does not take its settings.
    """

    def __init__(self, config: RewardConfig, folder: str | Path | None = None) -> None:
        self._parts = {name: replace(part, function=absolute(part.function)) for name, part in config.parts.items()}
        self._resolved: dict[str, RewardFn] = {name: resolve(part.function) for name, part in self._parts.items()}
        self._signatures = {name: check_part(part, self._resolved[name]) for name, part in self._parts.items()}
        self._max_error_rate = config.max_error_rate
        sources = {name: source_file(fn) for name, fn in self._resolved.items()}
        self._records = Records(Path(folder) if folder is not None else None, sources)
        self._window = Window()
        self._open: dict[int, _Open] = {}  # id(group) -> what is known of it
        self._scored: list[ScoredGroup] = []
        self._carried = {name for name, fn in self._resolved.items() if getattr(fn, "comes_with_rollout", False)}
        asked = {name: part for name, part in self._parts.items() if name not in self._carried}
        plans = plan_lanes(config, asked, self._resolved)
        self._lanes: list[Lane] = []
        with ThreadPoolExecutor(len(plans) or 1) as pool:
            starts = [pool.submit(start_lane, plan, config, list(sys.path)) for plan in plans]
            errors = []
            for start in starts:
                try:
                    self._lanes.append(start.result())
                except Exception as error:  # close what did start, then raise
                    errors.append(error)
        if errors:
            self.close()
            raise errors[0]
        self._lane_of = {name: lane for lane in self._lanes for name in lane.functions}

    def graders(self, prompt: Prompt) -> list[str]:
        """The functions that grade this prompt's rollouts."""
        row = {**prompt.columns, "prompt_text": prompt.text}
        return [name for name, part in self._parts.items() if part.applies(row)]

    def submit(self, groups: Sequence[RolloutGroup], *, step: int) -> None:
        """Send groups for grading; ``step`` is what functions see as ``trainer_state.global_step``."""
        for group in groups:
            if not group.rollouts:
                self._scored.append(ScoredGroup(group, ()))
                continue
            row = {**group.prompt.columns, "prompt_text": group.prompt.text}
            wanted = self.graders(group.prompt)
            opened = _Open(group, step, set(wanted))
            self._open[id(group)] = opened
            for name in wanted:
                if name not in self._carried:
                    self._lane_of[name].put(Job(group, self._request(name, group, row, step)))
            for name in self._carried.intersection(wanted):
                verdicts = [rollout.verdict or Verdict(0.0, NOT_APPLICABLE) for rollout in group.rollouts]
                failures = [verdict.detail for verdict in verdicts if verdict.status in (ERROR, TIMEOUT)]
                self._settle(group, name, verdicts, failures)
            if not wanted:
                self._finish(opened)
        self._advance()

    def poll(self, timeout_s: float) -> list[ScoredGroup]:
        """The groups whose verdicts are there; waits up to ``timeout_s`` for the first one.

        Raises:
            RunStopped: the error rate is hopeless, or a worker was lost too often.
        """
        began = time.monotonic()
        scored = self._poll(timeout_s)
        if timeout_s > 0:
            self._window.waited_s += time.monotonic() - began
        return scored

    def score(self, groups: Sequence[RolloutGroup], *, step: int) -> list[ScoredGroup]:
        """Grade and wait: these groups, in their order. What ``submit`` sent goes on and stays for ``poll``."""
        mine = {id(group): place for place, group in enumerate(groups)}
        found: dict[int, ScoredGroup] = {}
        others: list[ScoredGroup] = []
        self.submit(groups, step=step)
        while len(found) < len(groups):
            for scored in self._poll(1.0):
                if id(scored.group) in mine:
                    found[mine[id(scored.group)]] = scored
                else:
                    others.append(scored)
        self._scored.extend(others)
        return [found[place] for place in range(len(groups))]

    @property
    def num_pending(self) -> int:
        """Groups submitted and not yet returned by ``poll``."""
        return len(self._open) + len(self._scored)

    def metrics(self) -> Metrics:
        """Since the last call: latency, queues, error rate, what functions logged; restarts since the start.

        Raises:
            RunStopped: the share of ``error`` and ``timeout`` verdicts is above ``reward.max_error_rate``.
        """
        self._check_error_rate(limit=self._max_error_rate)
        window, self._window = self._window, Window()
        self._records.write_slow_rows()
        metrics = window.metrics()
        for lane in self._lanes:
            for name, statistics in lane.statistics().items():
                metrics[f"score/queue_groups/{name}"] = float(statistics.longest)
                metrics[f"score/queue_seconds/{name}"] = statistics.longest_wait_s
        metrics["score/restarts"] = float(sum(lane.num_restarts for lane in self._lanes))
        return metrics

    @property
    def first_tracebacks(self) -> dict[str, str]:
        """Function -> the traceback of its first failure since the start."""
        return dict(self._records.tracebacks)

    def versions(self) -> dict[str, Any]:
        """What grades, for graders.json and results; see ``actors.reward_versions``."""
        served = {name: version for lane in self._lanes for name, version in lane.versions().items()}
        return versions(self._parts, self._resolved, served)

    def close(self) -> None:
        """End every worker and its child processes."""
        if self._lanes:
            with ThreadPoolExecutor(len(self._lanes)) as pool:
                list(pool.map(lambda lane: lane.fleet.close(), self._lanes))

    # --- inside -------------------------------------------------------------------------------------------------

    def _request(self, name: str, group: RolloutGroup, row: Mapping[str, Any], step: int) -> GradingRequest:
        signature, num_rows = self._signatures[name], len(group.rollouts)
        prompt: Any = [dict(message) for message in group.prompt.messages] or group.prompt.text
        return GradingRequest(
            function=name,
            prompts=[prompt] * num_rows,
            completions=[as_messages(prompt, rollout.final_text) for rollout in group.rollouts],
            columns={column: [value] * num_rows for column, value in row.items() if signature.accepts(column)},
            group_sizes=(num_rows,),
            completion_ids=[rollout.token_ids.tolist() for rollout in group.rollouts]
            if signature.accepts("completion_ids")
            else None,
            step=step,
        )

    def _poll(self, timeout_s: float) -> list[ScoredGroup]:
        deadline = time.monotonic() + timeout_s
        while True:
            self._advance()
            left_s = deadline - time.monotonic()
            if self._scored or left_s <= 0 or not self._open:
                break
            refs = [ref for lane in self._lanes for ref in lane.open_refs]
            if refs:
                ray.wait(refs, num_returns=1, timeout=min(left_s, WAIT_S))
            else:  # every worker is lost, and not yet asked whether it is back
                time.sleep(min(left_s, 0.05))
        if self._window.num_verdicts >= EARLY_STOP_VERDICTS:
            self._check_error_rate(limit=(1 + self._max_error_rate) / 2)
        scored, self._scored = self._scored, []
        return scored

    def _advance(self) -> None:
        for lane in self._lanes:
            for job, result in lane.advance():
                self._take(job, result)

    def _take(self, job: Job, result: PartScore | Err) -> None:
        name, prompt_id, num_rows = job.request.function, job.group.prompt.prompt_id, job.request.num_rows
        if isinstance(result, PartScore) and len(result.verdicts) == num_rows:
            verdicts: Sequence[Verdict] = [
                replace(verdict, detail=_with_extras(verdict.detail, {c: v[row] for c, v in result.extras.items()}))
                for row, verdict in enumerate(result.verdicts)
            ]
            for metric, value in result.metrics.items():
                self._window.custom.setdefault(metric, []).append(value)
            tracebacks = list(result.tracebacks)
        else:
            said = f"{len(result.verdicts)} verdicts for {num_rows} rows" if isinstance(result, PartScore) else result
            detail = f"prompt {prompt_id}: {said}"
            verdicts, tracebacks = [Verdict(0.0, ERROR, detail=detail)] * num_rows, [detail]
        self._settle(job.group, name, verdicts, tracebacks)

    def _settle(self, group: RolloutGroup, name: str, verdicts: Sequence[Verdict], tracebacks: Sequence[str]) -> None:
        """The verdicts of one part of a group are in."""
        for text in tracebacks[:1]:
            self._window.tracebacks.setdefault(name, text)
            self._records.note_failure(name, group.prompt.prompt_id, text)
        self._window.note(name, verdicts)
        opened = self._open[id(group)]
        self._records.note_rows(name, group, opened.step, verdicts)
        opened.verdicts[name] = verdicts
        opened.missing.discard(name)
        if not opened.missing:
            self._finish(opened)

    def _finish(self, opened: _Open) -> None:
        """The last part of a group is in: compose."""
        del self._open[id(opened.group)]
        composed = tuple(
            compose({name: verdicts[row] for name, verdicts in opened.verdicts.items()}, self._parts)
            for row in range(len(opened.group.rollouts))
        )
        self._window.statuses.update(verdict.status for verdict in composed)
        self._window.row_seconds.extend(verdict.seconds for verdict in composed)
        self._scored.append(ScoredGroup(opened.group, composed))

    def _check_error_rate(self, limit: float) -> None:
        window = self._window
        if window.error_rate <= limit:
            return
        first = [
            f"first failure of {name}: {self._records.headline(name, text)}" for name, text in window.tracebacks.items()
        ]
        raise RunStopped(
            "\n".join(
                [
                    f"reward: {window.error_rate:.0%} of {window.num_verdicts} verdicts are errors or timeouts "
                    f"({dict(window.statuses)}), above reward.max_error_rate={self._max_error_rate:g}.",
                    *first,
                    *(f"{name}:\n{text.rstrip()}" for name, text in window.tracebacks.items()),
                    "Try the function alone: rlplatform reward test NAME --data rows.jsonl",
                ]
            )
        )


def _with_extras(detail: str, extras: Mapping[str, Any]) -> str:
    lines = [f"{column}: {value}" for column, value in extras.items() if value is not None]
    return "\n".join([detail, *lines] if detail else lines)
