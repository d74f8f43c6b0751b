r"""Exact and near duplicates, as pure functions of keys, signatures and sets.

    text ─ exact_key ─────────────────────────────────────► equal keys: the first stays
    text ─ shingles ─ MinHash signature ─ bands ─ buckets ─ candidate pairs ─ true Jaccard ≥ threshold ─ edges
                                                                edges ─ connected components: the first stays

A *unit* is a document or a paragraph, numbered in document order; that order alone decides what stays, so the answer
depends neither on how many shards there are nor on which is finished first.

MinHash (Broder 1997): each slot of a signature is equal for two sets with probability J, their Jaccard index. Cut into
b bands of r slots, two sets share a band with probability 1 - (1 - J**r)**b: they become candidates, whose true Jaccard
index over all shingles is then computed. So a wrong pair is never taken, and what may be missed is in the curve. At the
default 20 bands of 6 slots it is 99.8 % at J = 0.8, 91.8 % at 0.7 and 27.0 % at 0.5.

Signatures are rensa's (full-set R-MinHash, in Rust): it takes hashes as numpy arrays and follows the curve in our tests
as datasketch does, at over twenty times its speed. Connected components: A like B and B like C leaves A alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pretrain.data.words import Hashes, mix
from rlplatform.datafiles import DataError

Units = NDArray[np.int64]
Edges = NDArray[np.int64]  # [E, 2] units, the earlier first


@dataclass(frozen=True)
class Near:
    """Which sets count as near duplicates, and how hard we look."""

    threshold: float = 0.8  # Jaccard index from which on two are one
    ngram: int = 5  # words in a shingle
    bands: int = 20
    rows: int = 6  # slots in a band
    seed: int = 1
    max_compare: int = 1000  # earlier units of its bucket that a unit is compared with, the nearest first

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise DataError(f"threshold: expected a Jaccard index in (0, 1], got {self.threshold}")
        numbers = {name: getattr(self, name) for name in ("ngram", "bands", "rows", "max_compare")}
        if min(numbers.values()) < 1:
            raise DataError(f"expected whole numbers >= 1, got {numbers}")

    def recall(self, similarity: float) -> float:
        """The probability that two sets of this Jaccard index become candidates: 1 - (1 - s**r)**b.

        >>> round(Near().recall(0.8), 4)
        0.9977
        """
        return float(1 - (1 - similarity**self.rows) ** self.bands)


# --- signatures -----------------------------------------------------------------------------------------------------


def signatures(sets: Sequence[Hashes], near: Near) -> NDArray[np.uint32]:
    """MinHash signatures, [len(sets), bands * rows]. An empty set's slots are all of the largest value."""
    from rensa import RMinHash

    slots = near.bands * near.rows
    if not sets:
        return np.empty((0, slots), np.uint32)
    offsets = np.cumsum([0, *map(len, sets)], dtype=np.uint64)
    flat = np.concatenate(sets).astype(np.uint64, copy=False)
    found = RMinHash.digest_matrix_from_flat_token_hashes(flat, offsets, slots, near.seed)
    return np.array(found.to_rows(), np.uint32).reshape(len(sets), slots)


def band_keys(signed: NDArray[np.uint32], near: Near) -> Hashes:
    """One 64-bit key a band, [units, bands]: equal where all slots of the band are (else with probability 2**-64)."""
    slots = signed.reshape(len(signed), near.bands, near.rows).astype(np.uint64)
    keys = np.zeros(slots.shape[:2], np.uint64)
    for row in range(near.rows):
        keys = mix(keys ^ slots[:, :, row] + np.uint64(0x9E3779B97F4A7C15))
    return keys


# --- candidates, verified -------------------------------------------------------------------------------------------


def buckets(keys: Hashes, units: Units) -> Iterator[Units]:
    """Units of equal key, where there are two or more: each bucket in order, buckets by their key."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    edges = np.flatnonzero(np.diff(ordered)) + 1
    for places in np.split(order, edges):
        if len(places) > 1:
            yield np.sort(units[places])


class Components:
    """Connected components of numbered units; the root of each is its first unit."""

    def __init__(self, num: int) -> None:
        self.parents = np.arange(num, dtype=np.int64)

    def root(self, unit: int) -> int:
        parents = self.parents
        top = unit
        while parents[top] != top:
            top = int(parents[top])
        while parents[unit] != top:  # the next time it is one step
            parents[unit], unit = top, int(parents[unit])
        return top

    def join(self, a: int, b: int) -> None:
        first, second = sorted((self.root(a), self.root(b)))
        self.parents[second] = first

    def roots(self) -> Units:
        """[num] the first unit of each unit's component."""
        roots = self.parents
        while np.any(roots != (above := roots[roots])):
            roots = above
        return roots


def verified(
    grouped: Iterable[Units], similarity: Callable[[int, int, float], float], near: Near
) -> tuple[list[tuple[int, int]], int]:
    """Pairs of units that share a bucket and are at least ``near.threshold`` alike, but for those that earlier pairs
    connect already: the components are those of all such pairs, and a bucket of n equal units costs n - 1 comparisons.

    In a bucket of more than ``near.max_compare`` units that are not alike (pages of one template) each is compared with
    that many only; how many units that concerns is the second answer.
    """
    parents: dict[int, int] = {}

    def root(unit: int) -> int:
        while parents.setdefault(unit, unit) != unit:
            parents[unit] = parents[parents[unit]]
            unit = parents[unit]
        return unit

    edges: list[tuple[int, int]] = []
    cut_short = 0
    for bucket in grouped:
        groups: dict[int, list[int]] = {}  # root -> the bucket's units so far that are connected to it
        for unit in bucket.tolist():
            compared = 0
            for name in reversed(list(groups)):
                own = root(unit)
                if name == own or name not in groups:  # connected before, or merged by a match of this unit
                    continue
                tried = groups[name][: compared - near.max_compare - 1 : -1]  # the nearest first
                alike = (other for other in tried if similarity(other, unit, near.threshold) >= near.threshold)
                match = next(alike, None)
                if match is not None:
                    compared += tried.index(match) + 1
                    edges.append((match, unit))
                    parents[max(own, name)] = min(own, name)
                    groups[min(own, name)] = sorted(groups.pop(name) + groups.pop(own, []))
                    continue
                compared += len(tried)
                if len(tried) < len(groups[name]):
                    cut_short += 1
                    break
            groups.setdefault(root(unit), []).append(unit)
    return edges, cut_short


def similarity_of(sets: Callable[[int], Hashes]) -> Callable[[int, int, float], float]:
    """The Jaccard index of two units' sets; 0 where their sizes alone keep it below the threshold that is asked for."""
    from pretrain.data.words import jaccard

    def similarity(a: int, b: int, threshold: float) -> float:
        first, second = sets(a), sets(b)
        small, large = sorted((len(first), len(second)))
        return jaccard(first, second) if small >= threshold * large and small else 0.0

    return similarity


# --- equal keys -----------------------------------------------------------------------------------------------------


def first_of_equal(keys: NDArray[np.void]) -> Units:
    """[units] the first unit with each unit's key."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return first.astype(np.int64)[inverse.reshape(-1)]
