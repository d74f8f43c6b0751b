"""Labels by a small classifier that ``kind: train_labeller`` trained."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

from pretrain.data.label_schema import MEANINGS, UNKNOWN
from pretrain.data.labels import Value, labeller
from pretrain.data.ngrams import load
from rlplatform.config import ConfigError
from rlplatform.datafiles import DataError


@labeller(version="1", files=("model",))
def classifier(texts: Sequence[str], *, model: str, min_probability: float = 0.0) -> list[Mapping[str, Value]]:
    """The label that the model was trained for; the score is the probability of its class.

    A label that is a number in the schema (``educational_value``) is the mean of its levels, by their probabilities.

    Args:
        model: ``labeller.npz``: ``stage:NAME`` of a train_labeller stage.
        min_probability: below, a class is ``unknown``.

    Raises:
        DataError: ``model`` cannot be read.
    """
    loaded = load_cached(model)
    answers: list[Mapping[str, Value]] = []
    if loaded.label in MEANINGS and MEANINGS[loaded.label].kind == "number":
        if loaded.levels is None:
            raise DataError(f"{model}: label {loaded.label} is a number, its classes are {', '.join(loaded.classes)}")
        return [{loaded.label: float(row @ loaded.levels)} for row in loaded.probabilities(texts)]
    for row in loaded.probabilities(texts):
        best = int(row.argmax())
        name = loaded.classes[best] if row[best] >= min_probability else UNKNOWN
        answers.append({loaded.label: (name, float(row[best]))})
    return answers


def check_settings(**settings: object) -> None:
    """Raises ConfigError."""
    value = settings.get("min_probability", 0.0)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ConfigError(f"min_probability: expected a number from 0 to 1, got {value!r}")


classifier.check_settings = check_settings  # type: ignore[attr-defined]
load_cached = functools.lru_cache(maxsize=8)(load)
