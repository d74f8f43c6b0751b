"""What the rollouts of a step say of the policy: rewards, lengths, episodes, how old their tokens are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from rewards.base import STATUSES
from rlplatform.types import FINISH_LENGTH, FINISH_STOP, Metrics, Rollout, ScoredGroup


def rollout_metrics(scored: Sequence[ScoredGroup], kept: Sequence[ScoredGroup], *, version: int) -> Metrics:
    """What the sampled groups say, before and after groups were dropped; ``version`` is the learner's now."""
    rollouts = [rollout for group in scored for rollout in group.group.rollouts]
    verdicts = [verdict for group in scored for verdict in group.verdicts]
    ok = [verdict for verdict in verdicts if verdict.ok]
    metrics: Metrics = {f"verdict/{status}": float(sum(v.status == status for v in verdicts)) for status in STATUSES}
    metrics["rollout/rejected"] = float(sum(group.group.num_rejected for group in scored))
    if ok:
        scores = np.array([verdict.score for verdict in ok], dtype=np.float64)
        metrics["reward/mean"], metrics["reward/std"] = float(scores.mean()), float(scores.std())
        for part in sorted({name for verdict in ok for name in verdict.parts}):
            metrics[f"reward/part/{part}"] = float(np.mean([v.parts[part] for v in ok if part in v.parts]))
        best = [max((v.score for v in group.verdicts if v.ok), default=-np.inf) for group in scored]
        metrics["reward/pass_at_group"] = float(np.mean(np.array(best) >= scores.max()))
    used = [verdict.score for group in kept for verdict in group.verdicts if verdict.ok]
    if used:
        metrics["reward/trained_mean"] = float(np.mean(used))
    if rollouts:
        metrics |= _length_metrics(rollouts) | _episode_metrics(rollouts)
        metrics["rollout/duplicate_share"] = float(
            np.mean([_duplicates(g.group.rollouts) for g in scored if g.verdicts])
        )
        lags = np.concatenate([version - rollout.policy_version[rollout.loss_mask] for rollout in rollouts])
        if len(lags):
            metrics["lag/mean"], metrics["lag/max"] = float(lags.mean()), float(lags.max())
    return metrics


def _length_metrics(rollouts: Sequence[Rollout]) -> Metrics:
    lengths = np.array([len(rollout) for rollout in rollouts])
    ended = np.array([rollout.finish == FINISH_STOP for rollout in rollouts])
    metrics = {
        "rollout/length_mean": float(lengths.mean()),
        "rollout/length_max": float(lengths.max()),
        "rollout/truncated_share": float(np.mean([rollout.finish == FINISH_LENGTH for rollout in rollouts])),
    }
    if ended.any():
        metrics["rollout/terminated_length_mean"] = float(lengths[ended].mean())
    return metrics


def _episode_metrics(rollouts: Sequence[Rollout]) -> Metrics:
    episodes = [rollout.episode for rollout in rollouts if rollout.episode is not None]
    if not episodes:
        return {}
    return {
        "episode/turns_mean": float(np.mean([episode.num_turns for episode in episodes])),
        "episode/tool_calls_mean": float(np.mean([episode.num_tool_calls for episode in episodes])),
        "episode/limit_share": float(np.mean([bool(episode.ended_by) for episode in episodes])),
    }


def _duplicates(rollouts: Sequence[Rollout]) -> float:
    counts = Counter(rollout.token_ids.tobytes() for rollout in rollouts)
    return 1.0 - len(counts) / len(rollouts)
