"""Held-out evaluation: one runner, for the loop, for ``rlplatform eval`` and for recipes.

Accuracy is pass@1 sampled at the given temperature, averaged over samples and problems; its interval is over problems.
Seeds depend on the run seed and the problem alone, so two evaluations of one model are identical and two models meet
the same randomness. A verdict that is not ok counts as wrong and is counted in ``eval/not_ok``. Problems that a part
has nothing to say about, e.g. those that its ``when`` leaves out, do not count for that part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rewards.base import NOT_APPLICABLE
from rlplatform.metrics import pass_at_k
from rlplatform.seeds import request_seed
from rlplatform.types import (
    FINISH_LENGTH,
    GenerationRequest,
    Metrics,
    Prompt,
    RolloutGroup,
    SamplingParams,
    ScoredGroup,
)

Generate = Callable[[Sequence[GenerationRequest], SamplingParams], list[RolloutGroup]]
Score = Callable[[Sequence[RolloutGroup]], list[ScoredGroup]]


@dataclass(frozen=True)
class Evaluation:
    metrics: Metrics  # registry names, eval/...
    sampled: tuple[ScoredGroup, ...]
    greedy: tuple[ScoredGroup, ...]


def evaluate(
    prompts: Sequence[Prompt],
    *,
    generate: Generate,
    score: Score,
    sampling: SamplingParams,
    num_samples: int,
    metric: str,
    seed: int,
    greedy: bool,
) -> Evaluation:
    """Sample ``num_samples`` completions a problem (and one greedy one), grade them, and reduce.

    ``metric`` names the reward part that counts as right when it is at least 1; its mean is the accuracy.
    """
    sampled = _ask(prompts, generate, score, sampling, num_samples, seed)
    metrics = _reduce(sampled, metric=metric, num_samples=num_samples)
    firsts: list[ScoredGroup] = []
    if greedy:
        firsts = _ask(prompts, generate, score, replace(sampling, temperature=0.0), 1, seed)
        metrics["eval/greedy_accuracy"] = _mean(firsts, metric, 1)
    return Evaluation(metrics, tuple(sampled), tuple(firsts))


def _ask(
    prompts: Sequence[Prompt],
    generate: Generate,
    score: Score,
    sampling: SamplingParams,
    num_samples: int,
    seed: int,
) -> list[ScoredGroup]:
    requests = [
        GenerationRequest(prompt, num_samples, 0, index, request_seed(seed, 0, index, num_samples, stream="eval"))
        for index, prompt in enumerate(prompts)
    ]
    scored = score(generate(requests, sampling))
    if len(scored) != len(prompts):
        raise RuntimeError(f"evaluation: expected {len(prompts)} scored groups, one a problem, got {len(scored)}")
    return sorted(scored, key=lambda group: group.group.index)


def _scores(group: ScoredGroup, metric: str, num_samples: int) -> np.ndarray:
    """The metric's score of each sample; rejected rollouts and verdicts that are not ok count as 0."""
    scores = np.zeros(num_samples)
    for place, verdict in enumerate(group.verdicts[:num_samples]):
        scores[place] = verdict.parts.get(metric, 0.0) if verdict.ok else 0.0
    return scores


def _of(groups: Sequence[ScoredGroup], part: str) -> Sequence[ScoredGroup]:
    """The problems that ``part`` graded, or would have: not those whose ok verdicts are without it."""
    return [
        group
        for group in groups
        if any(part in verdict.parts for verdict in group.verdicts)
        or not any(verdict.ok or verdict.status == NOT_APPLICABLE for verdict in group.verdicts)
    ] or groups


def _mean(groups: Sequence[ScoredGroup], part: str, num_samples: int) -> float:
    return float(np.mean([_scores(group, part, num_samples).mean() for group in _of(groups, part)]))


def _reduce(groups: Sequence[ScoredGroup], *, metric: str, num_samples: int) -> Metrics:
    table = np.stack([_scores(group, metric, num_samples) for group in _of(groups, metric)])  # [problems, samples]
    means = table.mean(axis=1)
    correct = (table >= 1.0 - 1e-6).sum(axis=1)
    error = means.std(ddof=1) / np.sqrt(len(means)) if len(means) > 1 else 0.0
    rollouts = [rollout for group in groups for rollout in group.group.rollouts]
    verdicts = [verdict for group in groups for verdict in group.verdicts]
    metrics: Metrics = {
        "eval/accuracy": float(means.mean()),
        "eval/accuracy_ci95": float(1.96 * error),
        "eval/not_ok": float(sum(not verdict.ok for verdict in verdicts)),
        "eval/length_mean": float(np.mean([len(rollout) for rollout in rollouts])) if rollouts else 0.0,
        "eval/truncated_share": float(np.mean([r.finish == FINISH_LENGTH for r in rollouts])) if rollouts else 0.0,
    }
    k = 1
    while k < num_samples:
        k = min(2 * k, num_samples)
        metrics[f"eval/pass_at_{k}"] = float(np.mean([pass_at_k(num_samples, int(c), k) for c in correct]))
    for part in sorted({name for verdict in verdicts for name in verdict.parts}):
        metrics[f"eval/part/{part}"] = _mean(groups, part, num_samples)
    return metrics
