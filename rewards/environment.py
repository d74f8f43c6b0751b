"""The `environment` reward: the verdict that an environment gave of an episode (docs/environments.md).

    reward: {functions: {environment: 1.0, format: {weight: 0.1}}}

It comes with the rollout, so a reward service asks no worker for it; weight, clip, gates and routing are those of any
part. A rollout that no environment took part in is ``not_applicable``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewards.base import NOT_APPLICABLE, Verdict, comes_with_rollout


@comes_with_rollout
def environment_reward(completions: Sequence[Any]) -> list[Verdict]:
    """For completions without their episodes: there is nothing to say."""
    return [Verdict(0.0, NOT_APPLICABLE, detail="no environment took part") for _ in completions]
