"""From the losses of proxy runs to a better weighting: a ridge regression of loss on theta. numpy only.

Each proxy was trained on the mixture of one theta. Near equal weights the loss is nearly linear in theta, so the best
theta at a given distance lies against the gradient. How far that holds is what ``rank_correlation`` says: of every
proxy, predicted by the fit to the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PENALTIES = tuple(10.0**k for k in range(-3, 4))


@dataclass(frozen=True)
class Fit:
    """loss ~ intercept + slope . theta"""

    intercept: float
    slope: np.ndarray  # float64 [F]
    penalty: float
    rank_correlation: float  # Spearman, of each proxy's loss with where the others' fit puts it beside their mean

    def best(self, radius: float) -> np.ndarray:
        """float64 [F]: the theta of this length with the lowest predicted loss; zeros where the fit is flat."""
        length = float(np.linalg.norm(self.slope))
        return -radius * self.slope / length if length > 0 else np.zeros_like(self.slope)


def draw_thetas(num: int, num_features: int, *, radius: float, seed: int) -> np.ndarray:
    """float64 ``[num, F]``: directions of length ``radius``, in pairs of opposite ones, from ``seed``."""
    rng = np.random.default_rng([seed, num_features])
    half = rng.normal(size=(-(-num // 2), num_features))
    half *= radius / np.linalg.norm(half, axis=1, keepdims=True)
    return np.stack([half, -half], axis=1).reshape(-1, num_features)[:num]


def fit_losses(thetas: np.ndarray, losses: np.ndarray) -> Fit:
    """The ridge regression whose penalty predicts left-out proxies best.

    Args:
        thetas: ``[P, F]``.
        losses: ``[P]``, nats per target.

    Raises:
        ValueError: fewer than four proxies, or a loss that is not finite.
    """
    if len(losses) < 4 or not np.isfinite(losses).all():
        raise ValueError(f"fit_losses: expected at least four finite losses, got {losses.tolist()}")
    levels = (losses.sum() - losses) / (len(losses) - 1)  # what each is predicted at without any theta
    left_out = {penalty: _left_out(thetas, losses, penalty) for penalty in PENALTIES}
    penalty = min(PENALTIES, key=lambda one: float(((left_out[one] - losses) ** 2).sum()))
    slope, intercept = _ridge(thetas, losses, penalty)
    # The others' mean is lower the higher the one left out: with it, noise would correlate at -1.
    return Fit(intercept, slope, penalty, spearman(left_out[penalty] - levels, losses))


def _ridge(thetas: np.ndarray, losses: np.ndarray, penalty: float) -> tuple[np.ndarray, float]:
    center, level = thetas.mean(axis=0), float(losses.mean())
    x, y = thetas - center, losses - level
    slope = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y)
    return slope, level - float(center @ slope)


def _left_out(thetas: np.ndarray, losses: np.ndarray, penalty: float) -> np.ndarray:
    predicted = np.empty_like(losses)
    for row in range(len(losses)):
        others = np.arange(len(losses)) != row
        slope, intercept = _ridge(thetas[others], losses[others], penalty)
        predicted[row] = intercept + thetas[row] @ slope
    return predicted


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation, ties at their mean rank; 0 where one of them does not vary."""
    from scipy.stats import spearmanr

    varies = len(set(a.tolist())) > 1 and len(set(b.tolist())) > 1
    return float(spearmanr(a, b).statistic) if varies else 0.0
