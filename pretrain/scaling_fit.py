"""Scaling laws from a grid of small runs: the best learning rate and batch of each size, and power laws through them.

    losses over lr ─ optimum ─► lr*(N, D, B) ─┐
    losses over B  ─ optimum ─► B*(N, D) ─────┴─ fit_power_law ─► c N^a D^b ─► a size that was never run

mu_opt(N, D) and B_opt(N, D) as the Qwen2.5 report has them (arXiv 2412.15115, section 3.2); its forms and values are
not published. Here an optimum is the vertex of a parabola in log lr (or log B) through the lowest point and its
neighbours, and a law is a least-squares line in logarithms. numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Optimum:
    """The lowest point of a curve over a positive setting."""

    value: float  # of the setting
    loss: float  # nats per target, of the parabola there
    at_edge: bool  # the lowest run was the first or the last: the true optimum may lie outside


def optimum(settings: Sequence[float], losses: Sequence[float]) -> Optimum:
    """The vertex of the parabola in log(setting) through the lowest loss and its two neighbours.

    A run that diverged (a loss that is not finite) counts as worse than all others. Where the lowest is the first or
    the last, it is the answer itself and ``at_edge``.

    Raises:
        ValueError: fewer than three runs, settings that are not positive and increasing, or no finite loss.
    """
    given, y = np.asarray(settings, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    increasing = len(given) > 2 and given[0] > 0 and bool((np.diff(given) > 0).all())
    if not increasing or len(given) != len(y) or not np.isfinite(y).any():
        raise ValueError(
            f"optimum: expected at least three increasing settings > 0 with a finite loss among them, got "
            f"{list(settings)} with {list(losses)}"
        )
    x, y = np.log(given), np.where(np.isfinite(y), y, np.inf)
    low = int(np.argmin(y))
    if low in (0, len(x) - 1) or not np.isfinite(y[low - 1 : low + 2]).all():
        return Optimum(float(settings[low]), float(y[low]), low in (0, len(x) - 1))
    curve = np.polynomial.Polynomial.fit(x[low - 1 : low + 2], y[low - 1 : low + 2], 2).convert()
    _, slope, bend = (*curve.coef, 0.0)[:3]
    if bend <= 0:  # three equal losses
        return Optimum(float(settings[low]), float(y[low]), False)
    vertex = -slope / (2 * bend)
    return Optimum(float(np.exp(vertex)), float(curve(vertex)), False)


@dataclass(frozen=True)
class PowerLaw:
    """value = exp(intercept) * prod(variable ** exponent)"""

    intercept: float
    exponents: Mapping[str, float]
    residuals: tuple[float, ...]  # log(value / law), of each point fitted

    def __call__(self, **variables: float) -> float:
        return float(np.exp(self.intercept + sum(k * np.log(variables[name]) for name, k in self.exponents.items())))

    @property
    def spread(self) -> float:
        """Root mean square of the residuals, as a factor: 1.1 is within 10 %."""
        return float(np.exp(np.sqrt(np.mean(np.square(self.residuals)))))


def fit_power_law(variables: Mapping[str, Sequence[float]], values: Sequence[float]) -> PowerLaw:
    """Least squares in logarithms. A variable that does not vary gets no exponent.

    Raises:
        ValueError: fewer points than coefficients, or a number that is not positive.
    """
    logs = {name: np.log(np.asarray(column, dtype=np.float64)) for name, column in variables.items()}
    logs = {name: column for name, column in logs.items() if np.ptp(column) > 0}
    y = np.log(np.asarray(values, dtype=np.float64))
    if len(y) < len(logs) + 1 or not all(np.isfinite(column).all() for column in (*logs.values(), y)):
        raise ValueError(
            f"fit_power_law: expected at least {len(logs) + 1} points of positive numbers for a law in "
            f"{', '.join(logs) or 'nothing'}, got {len(y)}"
        )
    design = np.stack([np.ones(len(y)), *logs.values()], axis=1)
    coefficients, *_ = np.linalg.lstsq(design, y, rcond=None)
    exponents = dict(zip(logs, coefficients[1:].tolist(), strict=True))
    return PowerLaw(float(coefficients[0]), exponents, tuple((y - design @ coefficients).tolist()))
