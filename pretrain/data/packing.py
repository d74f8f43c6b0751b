"""Documents into rows of at most ``row_tokens`` tokens. numpy only; a function of the lengths alone.

    lengths ── concatenate ──► one stream, cut every row_tokens          no room is lost, most rows cut a document
            ── best_fit ─────► documents whole wherever they fit         few cuts, a little room is lost

A row is made of pieces, a piece is a span of one document. Nothing is dropped or padded: a row that is not full is
shorter, and the room it leaves is what ``Rows.waste`` counts.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Rows:
    """``R`` rows made of ``P`` pieces."""

    document: np.ndarray  # int64 [P], whose span it is
    start: np.ndarray  # int64 [P], first token within the document
    length: np.ndarray  # int64 [P], tokens
    cu_pieces: np.ndarray  # int64 [R + 1]; row r is made of the pieces slice(cu_pieces[r], cu_pieces[r + 1])
    row_tokens: int  # what a full row holds

    def __len__(self) -> int:
        return len(self.cu_pieces) - 1

    @property
    def lengths(self) -> np.ndarray:
        """int64 [R], tokens."""
        return np.diff(np.concatenate(([0], np.cumsum(self.length)))[self.cu_pieces])

    @property
    def waste(self) -> float:
        """Room that holds no token, as a share of all room."""
        room = len(self) * self.row_tokens
        return 1.0 - float(self.length.sum()) / room if room else 0.0


def concatenate(lengths: np.ndarray, row_tokens: int) -> Rows:
    """All documents in their order, end to end, cut every ``row_tokens`` tokens; only the last row may be shorter.

    Args:
        lengths: ``[N]``, tokens of each document, its separator included.

    Raises:
        ValueError: a length or ``row_tokens`` below 1.
    """
    lengths = _checked(lengths, row_tokens)
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    bounds = np.union1d(np.concatenate(([0], ends)), np.arange(0, total, row_tokens))
    starts = bounds[:-1]
    document = np.searchsorted(ends, starts, side="right")
    cu_pieces = np.concatenate((np.searchsorted(starts, np.arange(0, total, row_tokens)), [len(starts)]))
    return Rows(
        document=document.astype(np.int64),
        start=(starts - (ends - lengths)[document] if len(starts) else starts).astype(np.int64),
        length=np.diff(bounds).astype(np.int64),
        cu_pieces=cu_pieces.astype(np.int64),
        row_tokens=row_tokens,
    )


def best_fit(lengths: np.ndarray, row_tokens: int) -> Rows:
    """Whole documents wherever they fit, as in Ding et al., "Fewer Truncations" (arXiv 2404.10830).

    A document longer than a row fills whole rows, its rest is laid out like any other piece: longest first, each into
    the row with the least room that still holds it. Arguments and errors as in ``concatenate``.
    """
    lengths = _checked(lengths, row_tokens)
    rows: list[list[tuple[int, int, int]]] = []
    rests: list[tuple[int, int, int]] = []  # document, start, length
    for index, length in enumerate(lengths.tolist()):
        full = length - length % row_tokens
        rows.extend([(index, start, row_tokens)] for start in range(0, full, row_tokens))
        if length > full:
            rests.append((index, full, length - full))
    room: list[tuple[int, int]] = []  # (tokens left, row), sorted
    for piece in sorted(rests, key=lambda piece: -piece[2]):
        place = bisect.bisect_left(room, (piece[2], 0))
        if place == len(room):
            left, row = row_tokens, len(rows)
            rows.append([])
        else:
            left, row = room.pop(place)
        rows[row].append(piece)
        bisect.insort(room, (left - piece[2], row))
    pieces = np.array([piece for row in rows for piece in row], dtype=np.int64).reshape(-1, 3)
    return Rows(
        document=pieces[:, 0],
        start=pieces[:, 1],
        length=pieces[:, 2],
        cu_pieces=np.concatenate(([0], np.cumsum([len(row) for row in rows]))).astype(np.int64),
        row_tokens=row_tokens,
    )


PACKINGS: Mapping[str, Callable[[np.ndarray, int], Rows]] = {"concatenate": concatenate, "best_fit": best_fit}


def _checked(lengths: np.ndarray, row_tokens: int) -> np.ndarray:
    lengths = np.asarray(lengths, dtype=np.int64)
    if row_tokens < 1 or (len(lengths) and lengths.min() < 1):
        raise ValueError(
            f"packing: expected row_tokens >= 1 and documents of at least one token, got row_tokens={row_tokens} and "
            f"a shortest document of {lengths.min() if len(lengths) else 'none'}"
        )
    return lengths
