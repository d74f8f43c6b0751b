"""The actor that a reward service starts for the `preference` reward: one reward model, loaded once."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from actors.fleet_actor import FleetActor
from actors.grading_request import GradingRequest, PartScore
from actors.preference import PreferenceScorer


class PreferenceWorker(FleetActor):
    """Scores with ``PreferenceScorer``; on a GPU where the actor was given one. See ``actors/grading_request.py``.

    Args:
        args: settings of ``preference_reward``.
        timeout_s: seconds a row may take; rows of a request share the sum.
        sys_path: the driver's import path.
    """

    def __init__(self, args: Mapping[str, Any], timeout_s: float, sys_path: Sequence[str]) -> None:
        import ray
        import torch

        sys.path.extend(entry for entry in sys_path if entry not in sys.path)
        on_gpu = bool(ray.get_gpu_ids())
        if not on_gpu:  # more threads than this actor's share of the cores spin against everybody else's
            torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or 1))
        self._timeout_s = timeout_s
        self._scorer = PreferenceScorer(**args, device="cuda" if on_gpu else "cpu")

    def score(self, request: GradingRequest) -> PartScore:
        """One verdict a row, in order."""
        columns = request.columns
        verdicts = self._scorer.verdicts(
            request.prompts,
            request.completions,
            columns.get("tools"),
            columns.get("prompt_text"),
            timeout_s=self._timeout_s,
        )
        reason = next((verdict.detail for verdict in verdicts if not verdict.ok), "")
        return PartScore(verdicts, tracebacks=(reason,) if reason else (), version=self._scorer.version)

    def version(self) -> str:
        """The model's path and the hash of its weights."""
        return self._scorer.version
