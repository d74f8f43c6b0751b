"""The actor around a pool of child processes: what grades when a function is no model of its own."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping, Sequence

from actors.fleet_actor import FleetActor
from actors.grading_request import GradingRequest, PartScore
from rewards.base import ERROR, FROZEN, Verdict
from rewards.composition import Part
from rewards.runner import RewardPool


class RewardWorker(FleetActor):
    """One actor around a ``RewardPool``.

    Args:
        parts: what it grades with, by name; files are named by their absolute path.
        num_processes: of the pool.
        timeout_s: seconds a row may take, where a part says nothing else.
        sys_path: the driver's import path; a user's package is found here as it was there.
        sources: functions' files as the driver read them, also for an actor that is started again: ``rewards.base``.
    """

    def __init__(
        self,
        parts: Mapping[str, Part],
        num_processes: int,
        timeout_s: float,
        sys_path: Sequence[str],
        sources: Mapping[str, bytes],
    ) -> None:
        FROZEN.update(sources)
        sys.path.extend(entry for entry in sys_path if entry not in sys.path)
        self._pool = RewardPool(parts, num_processes, timeout_s)

    def score_each(self, requests: Sequence[GradingRequest]) -> list[PartScore]:
        """One answer a request, in order; an exception is an error of its own request alone."""
        scores = []
        for request in requests:
            try:
                scores.append(self.score(request))
            except Exception as error:
                verdict = Verdict(0.0, ERROR, detail=f"{type(error).__name__}: {error}")
                scores.append(PartScore([verdict] * request.num_rows, tracebacks=(traceback.format_exc(),)))
        return scores

    def score(self, request: GradingRequest) -> PartScore:
        graded = self._pool.grade(
            request.prompts,
            request.completions,
            request.columns,
            request.completion_ids,
            {"global_step": request.step},
            groups=request.groups,
            names=[request.function],
        )
        verdicts: list[Verdict] = [v for v in graded.verdicts[request.function] if v is not None]  # no `when` here: all
        return PartScore(
            verdicts,
            extras=graded.extras,
            metrics=graded.metrics,
            tracebacks=tuple(graded.tracebacks.values()),
            restarts=self._pool.num_restarts,
        )

    def shutdown(self) -> None:
        self._pool.close()
