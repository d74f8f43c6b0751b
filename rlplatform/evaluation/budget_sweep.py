"""Accuracy against the thinking budget: the same problems and seeds at every budget, on one engine.

A budget is the column ``thinking_budget`` of a prompt, so nothing is restarted between two points of the curve. Since
problems and seeds are the same, two budgets are compared by problem: the interval is that of the mean difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rewards.format import prompt_opens_block
from rlplatform.budget import budget_tokens, count
from rlplatform.evaluation.runner import interval95, scores
from rlplatform.types import Prompt, ScoredGroup

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def with_budget(prompts: Sequence[Prompt], budget: int | None) -> tuple[Prompt, ...]:
    """The same prompts with a budget of thinking tokens; None: without one."""
    columns = [{name: value for name, value in p.columns.items() if name != "thinking_budget"} for p in prompts]
    own = {} if budget is None else {"thinking_budget": budget}
    return tuple(replace(p, columns={**kept, **own}) for p, kept in zip(prompts, columns, strict=True))


def token_counts(groups: Sequence[ScoredGroup], tokenizer: PreTrainedTokenizerBase, stop_text: str) -> dict[str, float]:
    """Means a completion: sampled thinking tokens (think tags included), inserted ones, the answer's; and the share of
    completions whose thought was cut by the budget."""
    found, cut = [], []
    for group in groups:
        opened = prompt_opens_block("", group.group.prompt.text)
        tokens = budget_tokens(tokenizer, stop_text, opened=opened)
        for rollout in group.group.rollouts:
            one = count(rollout.token_ids, rollout.loss_mask, tokens)
            found.append((one.thinking, one.inserted, one.answer))
            cut.append(one.inserted > 0)
    if not found:
        return {}
    thinking, inserted, answer = np.array(found, dtype=np.float64).mean(axis=0)
    return {
        "thinking_tokens": float(thinking),
        "inserted_tokens": float(inserted),
        "answer_tokens": float(answer),
        "cut_share": float(np.mean(cut)),
    }


def problem_means(groups: Sequence[ScoredGroup], metric: str, num_samples: int) -> np.ndarray:
    """float64 [problems], in their order."""
    return np.array([scores(group, metric, num_samples).mean() for group in groups])


@dataclass(frozen=True)
class Point:
    """One budget. ``means`` float64 [problems]: the same problems in the same order at every point."""

    budget: int
    means: np.ndarray
    tokens: dict[str, float]

    @property
    def accuracy(self) -> float:
        return float(self.means.mean())

    @property
    def ci95(self) -> float:
        return interval95(self.means)


def check(points: Sequence[Point]) -> dict[str, Any]:
    """Is the curve free of drops? A step down counts where its interval lies below 0 as a whole.

    ``rise`` is the largest budget's accuracy less the smallest one's. All differences are of shares, with half their
    95 % interval over problems.

    Raises:
        ValueError: points of different problems, or a budget twice.
    """
    ordered = sorted(points, key=lambda point: point.budget)
    if len({len(point.means) for point in ordered}) > 1 or len({point.budget for point in ordered}) < len(ordered):
        raise ValueError("budget sweep: expected different budgets on the same problems")
    steps = []
    for before, after in pairwise(ordered):
        difference = after.means - before.means
        mean, half = float(difference.mean()), interval95(difference)
        steps.append({"from": before.budget, "to": after.budget, "difference": mean, "ci95": half})
    rise = ordered[-1].means - ordered[0].means
    return {
        "monotone": all(step["difference"] + step["ci95"] >= 0 for step in steps),
        "steps": steps,
        "rise": float(rise.mean()),
        "rise_ci95": interval95(rise),
    }


def plot(points: Sequence[Point], path: Path, *, title: str, non_thinking: tuple[float, float] | None = None) -> Path:
    """Accuracy over the budget on a log-2 axis, and the non-thinking accuracy (value, half interval) as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    ordered = sorted(points, key=lambda point: point.budget)
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    budgets = [point.budget for point in ordered]
    values, errors = [100 * point.accuracy for point in ordered], [100 * point.ci95 for point in ordered]
    axis.errorbar(budgets, values, yerr=errors, marker="o", capsize=3, label="thinking")
    if non_thinking is not None:
        value, half = (100 * number for number in non_thinking)
        axis.axhline(value, linestyle="--", color="grey", label="non-thinking")
        axis.axhspan(value - half, value + half, color="grey", alpha=0.15)
    if budgets[0] == 0:
        axis.set_xscale("symlog", base=2, linthresh=1)
    else:
        axis.set_xscale("log", base=2)
    axis.set_xticks(budgets, [f"{budget:,}" for budget in budgets])
    axis.set_xlabel("thinking budget, tokens")
    axis.set_ylabel("pass@1, %, 95 % interval over problems")
    axis.set_title(title)
    axis.grid(alpha=0.3)
    axis.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
