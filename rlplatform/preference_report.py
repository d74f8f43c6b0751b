"""What a reward model's scores of held-out pairs say: accuracy, length bias, calibration; numbers and a page.

Everything here is a function of the scores and lengths of ``P`` pairs. ``margin`` is the chosen score minus the
rejected one, ``P(chosen) = sigmoid(margin)`` what the model believes.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from rlplatform.report import image_tag, page
from rlplatform.runs import RunFolder
from rlplatform.stages.pass_rates import wilson

CONFIDENCE_BINS = np.linspace(0.5, 1.0, 11)  # of the side the model prefers
MARGIN_BINS = 20


def pair_report(scores: np.ndarray, completion_tokens: np.ndarray) -> dict[str, Any]:
    """The held-out numbers of ``P`` pairs, as JSON holds them.

    Args:
        scores: float [P, 2], chosen and rejected.
        completion_tokens: int [P, 2].

    Returns:
        ``pairs``; ``loss`` (nats, without margin and centring); ``accuracy`` with its 95 % interval (Wilson 1927),
        ties counting half; ``margin_mean``, ``score_mean``, ``score_std``; ``length``: accuracy where the chosen answer
        is the shorter, the longer and an equally long one, what always preferring the shorter would reach, Pearson
        correlations of length with score (of all answers) and of length difference with margin (of pairs; None where
        one does not vary); ``calibration``: bins of the confidence sigmoid(|margin|) and their expected calibration
        error (Guo et al. 2017, arXiv 1706.04599, eq. 3); ``margin_histogram``.

    Raises:
        ValueError: no pair, or a score that is not finite.
    """
    scores, tokens = np.asarray(scores, dtype=np.float64), np.asarray(completion_tokens, dtype=np.float64)
    if not len(scores) or not np.isfinite(scores).all():
        raise ValueError(f"pair_report: expected at least one pair and finite scores, got {len(scores)} pairs")
    margins = scores[:, 0] - scores[:, 1]
    right = (margins > 0) + 0.5 * (margins == 0)
    low, high = wilson(float(right.mean()), len(right))
    counts, edges = np.histogram(margins, bins=MARGIN_BINS)
    return {
        "pairs": len(scores),
        "loss": float(np.logaddexp(0.0, -margins).mean()),
        "accuracy": float(right.mean()),
        "accuracy_low": low,
        "accuracy_high": high,
        "ties": int((margins == 0).sum()),
        "margin_mean": float(margins.mean()),
        "score_mean": float(scores.mean()),
        "score_std": float(scores.std()),
        "length": _length_bias(scores, tokens, right),
        "calibration": _calibration(margins, right),
        "margin_histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }


def _length_bias(scores: np.ndarray, tokens: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    longer = tokens[:, 0] - tokens[:, 1]
    kinds = {"chosen_shorter": longer < 0, "chosen_longer": longer > 0, "equally_long": longer == 0}
    by_kind = {
        name: {"pairs": int(where.sum()), "accuracy": float(right[where].mean()) if where.any() else None}
        for name, where in kinds.items()
    }
    shorter = (longer < 0) + 0.5 * (longer == 0)
    return {
        **by_kind,
        "prefer_shorter_accuracy": float(shorter.mean()),
        "score_length_correlation": _correlation(tokens.ravel(), scores.ravel()),
        "margin_length_correlation": _correlation(longer, scores[:, 0] - scores[:, 1]),
    }


def _correlation(left: np.ndarray, right: np.ndarray) -> float | None:
    if left.std() == 0 or right.std() == 0:
        return None
    return float(np.corrcoef(left, right)[0, 1])


def _calibration(margins: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    confidence = 1.0 / (1.0 + np.exp(-np.abs(margins)))
    place = np.clip(np.digitize(confidence, CONFIDENCE_BINS) - 1, 0, len(CONFIDENCE_BINS) - 2)
    bins = []
    for index, (low, high) in enumerate(pairwise(CONFIDENCE_BINS)):
        inside = place == index
        if inside.any():
            mean, share = float(confidence[inside].mean()), float(right[inside].mean())
            bins.append(
                {
                    "from": float(low),
                    "to": float(high),
                    "pairs": int(inside.sum()),
                    "confidence": mean,
                    "accuracy": share,
                }
            )
    error = sum(b["pairs"] * abs(b["accuracy"] - b["confidence"]) for b in bins) / len(margins)
    return {"expected_calibration_error": float(error), "bins": bins}


# --- the page -------------------------------------------------------------------------------------------------------


def plot(
    rows: Sequence[Mapping[str, Any]],
    report: Mapping[str, Any],
    scores: np.ndarray,
    completion_tokens: np.ndarray,
    path: Path,
) -> Path:
    """Loss, accuracy, margins, calibration and score against length, as one PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 5, figsize=(23, 4.2), layout="constrained")
    for axis, title, names in (
        (axes[0], "Loss", ("loss", "eval/pair_loss")),
        (axes[1], "Pair accuracy", ("preference/accuracy", "eval/pair_accuracy")),
    ):
        for name in names:
            points = [(row["step"], row[name]) for row in rows if name in row]
            if points:
                axis.plot(*zip(*points, strict=True), label=name, marker="o" if len(points) < 12 else None)
        axis.set(title=title, xlabel="step", ylabel="nats" if title == "Loss" else "share")
        axis.legend(fontsize=8)
    histogram = report["margin_histogram"]
    axes[2].stairs(histogram["counts"], histogram["edges"], fill=True)
    axes[2].axvline(0.0, color="black", linewidth=0.8)
    axes[2].set(title="Held-out margins", xlabel="chosen - rejected", ylabel="pairs")
    bins = report["calibration"]["bins"]
    axes[3].plot([0.5, 1.0], [0.5, 1.0], color="black", linewidth=0.8)
    axes[3].plot([b["confidence"] for b in bins], [b["accuracy"] for b in bins], marker="o")
    axes[3].set(title="Calibration", xlabel="confidence of the preferred side", ylabel="share right")
    for side, label in enumerate(("chosen", "rejected")):
        axes[4].scatter(completion_tokens[:, side], scores[:, side], s=8, alpha=0.6, label=label)
    axes[4].set(title="Score against length", xlabel="tokens of the answer", ylabel="score")
    axes[4].legend(fontsize=8)
    for axis in axes:
        axis.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return path


def write_report(
    folder: RunFolder, report: Mapping[str, Any], scores: np.ndarray, completion_tokens: np.ndarray
) -> Path:
    """``report/`` of a run: plots.png and index.html."""
    image = plot(folder.read_metrics(), report, scores, completion_tokens, folder.report / "plots.png")
    cells = "".join(f"<tr><td>{html.escape(a)}</td><td>{html.escape(b)}</td></tr>" for a, b in table(report))
    blocks = [f"<h1>{html.escape(folder.path.name)}</h1><table>{cells}</table>", image_tag(image)]
    return page(folder.report / "index.html", folder.path.name, blocks)


def table(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The report as rows of (what, value)."""
    length = report["length"]
    rows = [
        ("held-out pairs", str(report["pairs"])),
        (
            "pair accuracy",
            f"{report['accuracy']:.1%} (95 %: {report['accuracy_low']:.1%} to {report['accuracy_high']:.1%})",
        ),
        ("loss", f"{report['loss']:.3f} nats (0.693 = no opinion)"),
        ("always the shorter", f"{length['prefer_shorter_accuracy']:.1%}"),
    ]
    for name in ("chosen_shorter", "chosen_longer", "equally_long"):
        if length[name]["pairs"]:
            rows.append(
                (f"accuracy, {name.replace('_', ' ')}", f"{length[name]['accuracy']:.1%} of {length[name]['pairs']}")
            )
    for name in ("score_length_correlation", "margin_length_correlation"):
        value = length[name]
        rows.append((name.replace("_", " "), "-" if value is None else f"{value:+.2f}"))
    error = report["calibration"]["expected_calibration_error"]
    rows.append(("expected calibration error", f"{error:.3f} (10 bins of the confidence from 0.5 to 1)"))
    return rows
