"""Numbers out of run folders. Shares are from 0 to 1, intervals are half of a 95 % one unless called low and high.

An interval is over problems, whose means over samples are independent. A difference between two models, or two modes,
is taken problem by problem: both answered the same ones.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.findings.study import Unfinished, shown
from rlplatform.evaluation.runner import interval95
from rlplatform.metrics import pass_at_k
from rlplatform.runs import RunFolder

Means = dict[str, float]  # problem -> mean score over its samples


def eval_file(folder: Path, step: int | None = None) -> Path:
    """The recorded held-out rollouts of a stage: of ``step``, or the last.

    Raises:
        Unfinished: there are none.
    """
    files = sorted((folder / "eval").glob("step-*.parquet"))
    if step is not None:
        files = [file for file in files if int(file.stem.split("-")[1]) == step]
    if not files:
        raise Unfinished(f"{shown(folder / 'eval')}: no held-out rollouts{'' if step is None else f' of step {step}'}")
    return files[-1]


def eval_steps(folder: Path) -> list[int]:
    return sorted(int(file.stem.split("-")[1]) for file in (folder / "eval").glob("step-*.parquet"))


def scores(file: Path, metric: str) -> dict[str, list[float]]:
    """Problem -> the metric's score of each recorded sample; 0 where its verdict is not ok or does not speak of it."""
    import pandas as pd

    found: dict[str, list[float]] = {}
    frame = pd.read_parquet(file, columns=["prompt_id", "status", "parts"])
    for problem, status, parts in frame.itertuples(index=False):
        score = float(json.loads(parts).get(metric, 0.0)) if status == "ok" else 0.0
        found.setdefault(str(problem), []).append(score)
    return found


def problem_means(file: Path, metric: str, num_samples: int) -> Means:
    """A sample that the engine gave up is not recorded and counts 0.

    Raises:
        ValueError: more samples of a problem than ``num_samples``.
    """
    found = scores(file, metric)
    most = max(map(len, found.values()))
    if most > num_samples:
        raise ValueError(f"{file}: expected {num_samples} samples a problem, got {most}")
    return {problem: sum(values) / num_samples for problem, values in found.items()}


def pass_at(file: Path, metric: str, num_samples: int, k: int) -> tuple[float, float]:
    """Unbiased pass@k (arXiv 2107.03374) and half its interval over problems."""
    values = [
        pass_at_k(num_samples, sum(score >= 1 - 1e-6 for score in found), k) for found in scores(file, metric).values()
    ]
    return mean_of(values)


def mean_of(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Mean and half its interval."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()), interval95(array)


def difference(after: Means, before: Means) -> list[float]:
    """Problem by problem.

    Raises:
        ValueError: they are not of the same problems.
    """
    if after.keys() != before.keys():
        odd = sorted(after.keys() ^ before.keys())
        raise ValueError(f"expected the same problems in both, {len(odd)} are in one only, e.g. {odd[:3]}")
    return [after[problem] - before[problem] for problem in before]


def pooled(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Mean of independent means, and half its interval: sqrt(sum of squares) / number."""
    means, halves = zip(*parts, strict=True)
    return sum(means) / len(parts), math.sqrt(sum(half**2 for half in halves)) / len(parts)


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """``metrics.jsonl``.

    Raises:
        Unfinished: there is none.
    """
    if not (folder / "metrics.jsonl").is_file():
        raise Unfinished(f"{shown(folder)}: no metrics.jsonl")
    return RunFolder(folder).read_metrics()


def value(number: float, half: float) -> dict[str, float]:
    """As JSON has it."""
    return {"value": round(number, 6), "ci95": round(half, 6)}
