"""How often each document is taken: parts with their shares of the tokens, weights within a part, whole copies.

    documents ─► size, part, weight of each ─► expected copies (a part's weights scaled to its share, none over
                 max_copies) ─► whole copies: the floor, and one more with the rest's probability, from (seed, id)

numpy only. What a part cannot give is an error, never filled up from another part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


class MixtureError(ValueError):
    """A mixture that the documents cannot give; the message says which part and what it holds."""


@dataclass(frozen=True)
class Part:
    """A share of the tokens, and which documents it is taken from."""

    share: float  # of all tokens; the shares of a mixture sum to 1
    labels: Mapping[str, Sequence[str]]  # label (or ``source``) -> values that belong to it; all must hold
    min_size: int = 0  # tokens of the document
    max_size: int = 0  # 0 = no bound


def assign(sizes: np.ndarray, values: Mapping[str, np.ndarray], parts: Mapping[str, Part]) -> np.ndarray:
    """int64 ``[N]``: the first part that each document belongs to, -1 for none.

    Args:
        sizes: ``[N]``, tokens.
        values: of every label that a part names, the value of each document, str ``[N]``.
    """
    found = np.full(len(sizes), -1, dtype=np.int64)
    for number, part in enumerate(parts.values()):
        belongs = (sizes >= part.min_size) & ((sizes <= part.max_size) if part.max_size else True)
        for name, allowed in part.labels.items():
            belongs = belongs & np.isin(values[name], list(allowed))
        found[(found < 0) & belongs] = number
    return found


def expected_copies(
    sizes: np.ndarray,
    weights: np.ndarray,
    part_of: np.ndarray,
    parts: Mapping[str, Part],
    *,
    num_tokens: float,
    max_copies: float,
) -> np.ndarray:
    """float64 ``[N]``: copies proportional to the weights within a part, so that each part gives its share.

    Args:
        sizes: ``[N]``, tokens.
        weights: ``[N]``, >= 0: how often a document should be taken beside the others of its part.
        part_of: ``[N]``, as ``assign`` says.
        num_tokens: of the whole mixture.
        max_copies: of any document; where it holds some back, the others of the part are taken more often.

    Raises:
        MixtureError: even at ``max_copies`` a part does not hold its share.
    """
    copies = np.zeros(len(sizes), dtype=np.float64)
    for number, (name, part) in enumerate(parts.items()):
        own = np.flatnonzero((part_of == number) & (weights > 0))
        wanted = part.share * num_tokens
        holds = max_copies * float(sizes[own].sum())
        if wanted > holds * (1 + 1e-9):
            raise MixtureError(
                f"part {name!r}: expected {wanted:,.0f} tokens ({part.share:.1%} of {num_tokens:,.0f}), its "
                f"{len(own):,} documents hold {holds:,.0f} at max_copies={max_copies:g}; lower num_tokens or "
                "the share, raise max_copies, or add documents"
            )
        if wanted:
            copies[own] = _filled(sizes[own], weights[own], wanted, max_copies)
    return copies


def _filled(sizes: np.ndarray, weights: np.ndarray, wanted: float, cap: float) -> np.ndarray:
    """min(cap, s w) with the s for which the sizes sum to ``wanted``: caps are reached in the order of the weights."""
    order = np.argsort(-weights, kind="stable")
    mass = weights[order] * sizes[order]
    full = cap * np.concatenate(([0.0], np.cumsum(sizes[order])[:-1]))  # tokens of the k heaviest, all at their cap
    rest = mass[::-1].cumsum()[::-1]  # weight of the others
    scales = (wanted - full) / rest  # if exactly the first k are at their cap
    fits = scales * weights[order] <= cap * (1 + 1e-12)
    scale = scales[int(np.argmax(fits))] if fits.any() else np.inf
    return np.minimum(cap, scale * weights)


def whole_copies(expected: np.ndarray, ids: Sequence[str], *, seed: int) -> np.ndarray:
    """int64 ``[N]``: the floor, and one more with the probability of the rest; a document's draw depends on its id."""
    floor = np.floor(expected)
    draws = np.array([_uniform(seed, document) for document in ids])
    return (floor + (draws < expected - floor)).astype(np.int64)


def _uniform(seed: int, document: str) -> float:
    digest = hashlib.blake2b(f"{seed}\0{document}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2.0**64
