"""A weight for every document from its labels: exp(theta . phi), instance by instance.

    labels ─ features_of(corpus) ─► phi: a class's indicator or a number, less its mean, over its deviation
    theta ─ Weighting.weights ────► how often a document is taken beside the others (pretrain/data/mixture.py)

A label is known by its name and value, so a weighting found on one corpus weighs another. numpy only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlplatform.datafiles import DataError
from rlplatform.runs import write_atomically

BOUND = 3.0  # deviations beyond which a number counts as this far
MAX_LOG_WEIGHT = 3.0  # no document counts more than e^3 times, or less than e^-3 of, an average one
MIN_SHARE = 0.005  # a class with fewer of the corpus's documents has no feature of its own


@dataclass(frozen=True)
class Feature:
    """One coordinate of phi."""

    label: str  # or ``source``
    value: str | None  # the class; None: the label is a number
    mean: float  # over the corpus it was made for
    scale: float

    def of(self, column: np.ndarray) -> np.ndarray:
        """float64 ``[N]`` from the label's column: str of a class, float (nan: no such label) of a number."""
        if self.value is not None:
            return ((column == self.value).astype(np.float64) - self.mean) / self.scale
        known = np.where(np.isnan(column), self.mean, column)
        return np.clip((known - self.mean) / self.scale, -BOUND, BOUND)


@dataclass(frozen=True)
class Weighting:
    """theta over features; equal weights without any."""

    features: tuple[Feature, ...]
    theta: tuple[float, ...]

    def weights(self, columns: Mapping[str, np.ndarray], num: int) -> np.ndarray:
        """float64 ``[num]``, > 0.

        Args:
            columns: of every label that a feature names, ``[num]``.
        """
        logs = np.zeros(num)
        for feature, theta in zip(self.features, self.theta, strict=True):
            logs += theta * feature.of(columns[feature.label])
        return np.exp(np.clip(logs, -MAX_LOG_WEIGHT, MAX_LOG_WEIGHT))

    @property
    def classes(self) -> list[str]:
        """Labels that are read as classes."""
        return sorted({feature.label for feature in self.features if feature.value is not None})

    @property
    def numbers(self) -> list[str]:
        """Labels that are read as numbers."""
        return sorted({feature.label for feature in self.features if feature.value is None})

    def save(self, path: Path) -> None:
        write_atomically(path, json.dumps(asdict(self), indent=1) + "\n")

    @staticmethod
    def load(path: str | Path) -> Weighting:
        """Raises DataError: no such file, or no weighting."""
        try:
            values: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
            features = tuple(Feature(**feature) for feature in values["features"])
            return Weighting(features, tuple(float(one) for one in values["theta"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: expected the weights.json of a mixture_search stage: {error}") from error


def features_of(
    columns: Mapping[str, np.ndarray], sizes: np.ndarray, classes: Sequence[str], numbers: Sequence[str]
) -> tuple[Feature, ...]:
    """The features of a corpus: an indicator a class, and every number. A label without variation has none.

    Args:
        columns: as in ``Weighting.weights``.
        sizes: ``[N]``, tokens; means and deviations are over tokens.
    """
    features: list[Feature] = []
    total = float(sizes.sum())
    for name in classes:
        values, counts = np.unique(columns[name], return_counts=True)
        common = [str(v) for v, n in zip(values, counts, strict=True) if MIN_SHARE * len(sizes) <= n < len(sizes)]
        for value in common:
            share = float(sizes[columns[name] == value].sum()) / total
            features.append(Feature(name, value, share, 1.0))
    for name in numbers:
        known = ~np.isnan(columns[name])
        if not known.any():
            raise DataError(f"expected numbers in the label {name!r}, no document has one")
        mean = float(np.average(columns[name][known], weights=sizes[known]))
        deviation = float(np.average((columns[name][known] - mean) ** 2, weights=sizes[known])) ** 0.5
        if deviation > 0:
            features.append(Feature(name, None, mean, deviation))
    return tuple(features)
