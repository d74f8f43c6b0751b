"""Minimal samples: which of a query's good responses to train on (arXiv 2505.09388, section 4.1: "minimize both the
number of training samples and the training steps")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rlplatform.stages.records import KEEP, Decision, Row, by_query, row_key, text_column
from rlplatform.stages.texts import grams, jaccard, pieces, rank

How = Literal["shortest", "diverse", "random"]
_N = 3  # words and signs a gram, of the distance between responses


def select_samples(rows: Sequence[Row], *, per_query: int, how: How, seed: int) -> list[Decision]:
    """Keep at most ``per_query`` responses of each query; the others are dropped as ``not_selected``.

    ``shortest``: fewest words and signs. ``diverse``: the shortest, then each time the one whose nearest chosen one is
    farthest (1 - Jaccard index of 3-grams). ``random``: by (seed, id, sample) alone. Ties go by that as well, so the
    order of the rows does not matter. Give it rows that passed the six filters: it does not look at verdicts.

    Raises:
        ValueError: ``per_query`` below 1, or an unknown way.
    """
    if per_query < 1 or how not in ("shortest", "diverse", "random"):
        raise ValueError(
            f"select_samples: expected per_query >= 1 and how shortest, diverse or random, got {per_query}, {how!r}"
        )
    chosen: set[str] = set()
    for group in by_query(rows).values():
        shuffled = sorted(group, key=lambda row: rank(seed, "sample", row_key(row)))
        if how != "random":
            shuffled.sort(key=lambda row: len(pieces(text_column(row, "response"))))
        picked = shuffled[:per_query] if how != "diverse" else _spread(shuffled, per_query)
        chosen.update(row_key(row) for row in picked)
    return [KEEP if row_key(row) in chosen else Decision("not_selected", f"{per_query} a query, {how}") for row in rows]


def _spread(rows: list[Row], num: int) -> list[Row]:
    """Farthest-point traversal from the first row; the earlier row wins a tie."""
    texts = [grams(text_column(row, "response"), _N) for row in rows]
    picked = [0]
    nearest = [1.0 - jaccard(texts[0], text) for text in texts]
    while len(picked) < min(num, len(rows)):
        left = [place for place in range(len(rows)) if place not in picked]
        best = max(left, key=lambda place: nearest[place])
        picked.append(best)
        nearest = [min(old, 1.0 - jaccard(texts[best], text)) for old, text in zip(nearest, texts, strict=True)]
    return [rows[place] for place in picked]
