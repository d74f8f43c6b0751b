"""Episodes of one row as a scored group: the environment's verdicts are the scores, no reward service is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlplatform.environments.driver import EpisodeResult
from rlplatform.types import Message, Prompt, RolloutGroup, ScoredGroup


def scored_group(
    results: Sequence[EpisodeResult],
    *,
    prompt_id: str,
    step: int,
    index: int = 0,
    columns: Mapping[str, Any] | None = None,
) -> ScoredGroup:
    """The episodes of one row, in order, as ``rlplatform.batching`` takes them.

    An episode without a usable sample is left out and counted. One whose environment failed stays, with a status that
    keeps it out of statistics and loss.

    Raises:
        ValueError: no episodes, or openings that differ: then they are no samples of one prompt.
    """
    if not results:
        raise ValueError(f"scored_group {prompt_id}: expected at least one episode, got none")
    known = [result for result in results if len(result.prompt_ids)] or list(results)
    first = known[0]
    for result in known:
        if not np.array_equal(result.prompt_ids, first.prompt_ids):
            raise ValueError(
                f"scored_group {prompt_id}: episodes {first.episode_id} and {result.episode_id} begin with different "
                "prompts; an environment's opening must depend on the row alone"
            )
    kept = [(result.rollout, result.verdict) for result in results if result.rollout is not None]
    group = RolloutGroup(
        prompt=Prompt(prompt_id, opening(first), first.prompt_ids, first.prompt_text, dict(columns or {})),
        rollouts=tuple(rollout for rollout, _ in kept),
        step=step,
        index=index,
        num_rejected=len(results) - len(kept),
        seconds=max(result.seconds for result in results),
    )
    return ScoredGroup(group, tuple(verdict for _, verdict in kept))


def opening(result: EpisodeResult) -> tuple[Message, ...]:
    """The messages before the model's first."""
    spoken = [message["role"] == "assistant" for message in result.messages]
    return result.messages[: spoken.index(True)] if True in spoken else result.messages
