"""A small text classifier for CPUs: hashed character and word n-grams, multinomial logistic regression.

Features as in fastText's classifier (Joulin et al. 2016, arXiv:1607.01759) without the hidden layer: counts of n-grams,
hashed into buckets (Weinberger et al. 2009, arXiv:0902.2206), ``log(1 + count)``, each text of length 1. The model is
convex, so the same texts give the same weights. Hashing and fitting are scikit-learn's.
"""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlplatform.datafiles import DataError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

FORMAT = 1
MODEL_FILE = "labeller.npz"  # in the folder of a train_labeller stage
_MAX_PROBES = 4  # texts kept with their logits, to know on loading that hashing is still the same
_PROBE_CHARACTERS = 200


@dataclass(frozen=True)
class Features:
    """What of a text a classifier sees. Raises ValueError."""

    characters: tuple[int, int] = (1, 4)  # shortest and longest character n-gram within a word; (0, 0) = none
    words: tuple[int, int] = (0, 0)  # shortest and longest word n-gram; (0, 0) = none
    buckets: int = 2**15  # of each kind
    max_characters: int = 2000  # of a text's beginning that are read

    def __post_init__(self) -> None:
        for name in ("characters", "words"):
            low, high = getattr(self, name)
            if not (0 < low <= high or low == high == 0):
                raise ValueError(f"{name}: expected [shortest, longest] n-gram or [0, 0], got [{low}, {high}]")
        if self.characters == self.words == (0, 0):
            raise ValueError("characters, words: expected n-grams of at least one kind")
        if self.buckets < 2 or self.max_characters < 1:
            raise ValueError(
                f"expected buckets >= 2 and max_characters >= 1, got {self.buckets} and {self.max_characters}"
            )

    def matrix(self, texts: Sequence[str]) -> csr_matrix:
        """Sparse float32 [len(texts), D]; rows of length 1, of zeros for a text without n-grams."""
        from scipy.sparse import csr_matrix, hstack
        from sklearn.feature_extraction.text import HashingVectorizer
        from sklearn.preprocessing import normalize

        shown = [normalised(text[: self.max_characters]) for text in texts]
        kinds = [("char_wb", self.characters), ("word", self.words)]
        parts = [
            HashingVectorizer(
                analyzer=analyzer,
                ngram_range=size,
                n_features=self.buckets,
                alternate_sign=False,
                norm=None,
                lowercase=False,
                token_pattern=r"\S+",
                dtype=np.float32,
            ).transform(shown)
            for analyzer, size in kinds
            if size != (0, 0)
        ]
        return csr_matrix(normalize(hstack(parts).log1p()), dtype=np.float32)


def normalised(text: str) -> str:
    """What n-grams are taken of: NFC, case folded, every digit a 0, white space as single spaces."""
    folded = unicodedata.normalize("NFC", text).casefold()
    return " ".join("".join("0" if c.isdecimal() else c for c in folded).split())


@dataclass(frozen=True)
class NgramModel:
    """A trained classifier."""

    label: str  # the label it gives
    classes: tuple[str, ...]
    features: Features
    weights: np.ndarray  # float32 [C, D]
    bias: np.ndarray  # float32 [C]
    trained_on: dict[str, Any] = field(default_factory=dict)  # for people: data, seed, scores

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """float64 [len(texts), C]."""
        return np.asarray(self.features.matrix(texts) @ self.weights.T.astype(np.float64)) + self.bias

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """float64 [len(texts), C], rows sum to 1."""
        logits = self.logits(texts)
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))

    @cached_property
    def levels(self) -> np.ndarray | None:
        """float64 [C], the classes as numbers; None where one is none."""
        try:
            return np.array([float(name) for name in self.classes])
        except ValueError:
            return None

    @cached_property
    def digest(self) -> str:
        """12 hex digits of what decides its answers."""
        about = json.dumps([self.label, self.classes, asdict(self.features)], ensure_ascii=False)
        parts = [about.encode(), self.weights.tobytes(), self.bias.tobytes()]
        return hashlib.blake2b(b"\0".join(parts), digest_size=6).hexdigest()


def fit(
    texts: Sequence[str],
    gold: Sequence[str],
    *,
    label: str,
    features: Features = Features(),
    strength: float = 10.0,
    max_iterations: int = 200,
) -> NgramModel:
    """The classifier of ``texts`` with answers ``gold``.

    Args:
        strength: scikit-learn's C: the weight of the texts against the penalty on the weights.

    Raises:
        DataError: fewer than two classes, or no convergence.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    classes = tuple(sorted(set(gold)))
    if len(classes) < 2:
        raise DataError(f"label {label!r}: expected texts of at least two classes, got {list(classes)}")
    index = {name: k for k, name in enumerate(classes)}
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            solver = LogisticRegression(C=strength, max_iter=max_iterations, tol=1e-3)
            solver.fit(features.matrix(texts), np.array([index[name] for name in gold]))
        except ConvergenceWarning as warning:
            raise DataError(
                f"label {label!r}: logistic regression did not converge in {max_iterations} iterations; raise "
                f"max_iterations or lower strength ({strength:g})"
            ) from warning
    weights, bias = solver.coef_.astype(np.float32), solver.intercept_.astype(np.float32)
    if len(classes) == 2:  # one row is kept: the other class's logit is 0
        weights, bias = np.concatenate([0 * weights, weights]), np.concatenate([0 * bias, bias])
    return NgramModel(label, classes, features, weights, bias)


# --- files ----------------------------------------------------------------------------------------------------------


def save(model: NgramModel, path: Path, probes: Sequence[str]) -> None:
    """One ``.npz`` without pickles, whole or not at all; some of ``probes`` are kept with their logits."""
    kept = [text[:_PROBE_CHARACTERS] for text in probes[:_MAX_PROBES]]
    about = {
        "format": FORMAT,
        "label": model.label,
        "classes": model.classes,
        "features": asdict(model.features),
        "trained_on": model.trained_on,
        "probes": kept,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            np.savez_compressed(
                file,
                weights=model.weights,
                bias=model.bias,
                logits=model.logits(kept),
                about=np.array(json.dumps(about)),
            )
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: str | Path) -> NgramModel:
    """The model in a file of ``save``.

    Raises:
        DataError: no such file, not of this format, or its probes get other logits here than where it was trained.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            weights, bias, logits = file["weights"], file["bias"], file["logits"]
        sizes: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in about["features"].items()}
        model = NgramModel(
            about["label"], tuple(about["classes"]), Features(**sizes), weights, bias, about["trained_on"]
        )
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; a train_labeller stage leaves one") from None
    except Exception as error:
        raise DataError(f"{path}: expected a classifier of format {FORMAT}: {type(error).__name__}: {error}") from error
    if about["format"] != FORMAT:
        raise DataError(f"{path}: expected a classifier of format {FORMAT}, got {about['format']}; train it again")
    if about["probes"] and not np.allclose(model.logits(about["probes"]), logits, atol=1e-4):
        raise DataError(
            f"{path}: its probes get other logits here than where it was trained: scikit-learn hashes n-grams in "
            "another way; train it again with this version"
        )
    return model
