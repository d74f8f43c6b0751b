"""Held-out evaluation: one runner, for the loop, for ``rlplatform eval`` and for recipes.

Accuracy is pass@1 sampled at the given temperature, averaged over samples and problems; its interval is over problems.
Seeds depend on the run seed and the problem alone, so two evaluations of one model are identical and two models meet
the same randomness. A verdict that is not ok counts as wrong and is counted in ``eval/not_ok``. Accuracy, and
the mean of a reward part, are over the problems that the part applies to: with parts routed by task, that task's own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
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
Graders = Callable[[Prompt], Collection[str]]  # names of the reward functions that grade a problem


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
    graders: Graders | None = None,
) -> Evaluation:
    """Sample ``num_samples`` completions a problem (and one greedy one), grade them, and reduce.

    ``metric`` names the reward part that counts as right when it is at least 1; its mean is the accuracy. ``graders``
    says which functions grade a problem, so that one that failed there altogether is not forgotten.
    """
    sampled = _ask(prompts, generate, score, sampling, num_samples, seed)
    metrics = reduce(sampled, metric=metric, num_samples=num_samples, graders=graders)
    firsts: list[ScoredGroup] = []
    if greedy:
        firsts = _ask(prompts, generate, score, replace(sampling, temperature=0.0), 1, seed)
        own = _own(firsts, metric, graders)
        metrics["eval/greedy_accuracy"] = float(np.mean([scores(group, metric, 1).mean() for group in own]))
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


def scores(group: ScoredGroup, metric: str, num_samples: int) -> np.ndarray:
    """The metric's score of each sample; rejected rollouts and verdicts that are not ok count as 0."""
    scores = np.zeros(num_samples)
    for place, verdict in enumerate(group.verdicts[:num_samples]):
        scores[place] = verdict.parts.get(metric, 0.0) if verdict.ok else 0.0
    return scores


def applies(part: str, group: ScoredGroup, graders: Collection[str] | None = None) -> bool:
    """Does a reward part speak of this problem?

    It does where it has a score of one of the samples, and where its function, one of the problem's ``graders``, could
    grade none of them: that counts against it. Not knowing the graders (None), a problem without any score counts
    against every part. A function that said that it has nothing to say about the problem does not count.
    """
    verdicts, function = group.verdicts, part.partition("/")[0]
    if any(part in verdict.parts for verdict in verdicts):
        return True
    failed = not verdicts or any(not verdict.ok and verdict.status != NOT_APPLICABLE for verdict in verdicts)
    if not failed or any(function in verdict.parts for verdict in verdicts):
        return False
    return not any(verdict.parts for verdict in verdicts) if graders is None else function in graders


def _own(groups: Sequence[ScoredGroup], part: str, graders: Graders | None) -> Sequence[ScoredGroup]:
    """The problems that a part applies to; all of them where it applies to none."""
    asked = [(group, graders(group.group.prompt) if graders else None) for group in groups]
    return [group for group, names in asked if applies(part, group, names)] or groups


def interval95(means: np.ndarray) -> float:
    """Half the normal 95 % interval of the mean of problems' means, float [problems]; 0 for a single problem."""
    return 1.96 * float(means.std(ddof=1) / np.sqrt(len(means))) if len(means) > 1 else 0.0


def reduce(groups: Sequence[ScoredGroup], *, metric: str, num_samples: int, graders: Graders | None = None) -> Metrics:
    """Accuracy with its interval, pass@k, means of the parts, lengths and verdicts that are not ok."""
    own = _own(groups, metric, graders)
    table = np.stack([scores(group, metric, num_samples) for group in own])  # [problems, samples]
    means = table.mean(axis=1)
    correct = (table >= 1.0 - 1e-6).sum(axis=1)
    rollouts = [rollout for group in groups for rollout in group.group.rollouts]
    verdicts = [verdict for group in groups for verdict in group.verdicts]
    metrics: Metrics = {
        "eval/accuracy": float(means.mean()),
        "eval/accuracy_ci95": interval95(means),
        "eval/not_ok": float(sum(not verdict.ok for verdict in verdicts)),
        "eval/length_mean": float(np.mean([len(rollout) for rollout in rollouts])) if rollouts else 0.0,
        "eval/truncated_share": float(np.mean([r.finish == FINISH_LENGTH for r in rollouts])) if rollouts else 0.0,
    }
    k = 1
    while k < num_samples:
        k = min(2 * k, num_samples)
        metrics[f"eval/pass_at_{k}"] = float(np.mean([pass_at_k(num_samples, int(c), k) for c in correct]))
    for part in sorted({name for verdict in verdicts for name in verdict.parts}):
        of_part = _own(groups, part, graders)
        metrics[f"eval/part/{part}"] = float(np.mean([scores(group, part, num_samples).mean() for group in of_part]))
    return metrics
