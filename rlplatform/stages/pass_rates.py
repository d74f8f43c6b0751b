"""How often a model solved a query: counts of verdicts, and Wilson's interval around their share."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from rewards.base import OK, STATUSES
from rewards.response import parse
from rlplatform.stages.records import Row, row_key, text_column

CORRECT = 1.0 - 1e-6  # a score from here on is right, as in evaluation


@dataclass(frozen=True)
class PassRate:
    """Verdicts on the samples of one query. Those that are not ok say nothing and are counted apart."""

    num_correct: int
    num_samples: int  # verdicts that are ok
    num_not_ok: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.num_correct <= self.num_samples or self.num_not_ok < 0:
            raise ValueError(f"PassRate: expected 0 <= num_correct <= num_samples, got {self}")

    @property
    def rate(self) -> float:
        """NaN without a sample."""
        return self.num_correct / self.num_samples if self.num_samples else math.nan

    def interval(self) -> tuple[float, float]:
        """Wilson's, 95 %; (0, 1) without a sample."""
        return wilson(self.rate, self.num_samples) if self.num_samples else (0.0, 1.0)


def wilson(share: float, num: int, z: float = 1.959964) -> tuple[float, float]:
    """The score interval of a share of ``num`` trials (J. Am. Stat. Assoc. 22, 1927), 95 % by default.

    ``(p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)``: unlike p ± z·s it is never empty at p = 0 or 1.
    """
    scale = 1 + z * z / num
    middle = (share + z * z / (2 * num)) / scale
    half = z * math.sqrt(share * (1 - share) / num + z * z / (4 * num * num)) / scale
    return max(middle - half, 0.0), min(middle + half, 1.0)


def status_of(row: Row) -> str:
    """Column ``status`` of a verdict row.

    Raises:
        ValueError: not one of ``rewards.base.STATUSES``.
    """
    status = row.get("status")
    if status not in STATUSES:
        raise ValueError(f"row {row_key(row)!r}: expected status to be one of {', '.join(STATUSES)}, got {status!r}")
    return str(status)


def is_correct(row: Row) -> bool:
    """Verdict ok and score 1.

    Raises:
        ValueError: an ok verdict without a finite score.
    """
    if status_of(row) != OK:
        return False
    score = row.get("score")
    if not isinstance(score, (int, float)) or isinstance(score, bool) or not math.isfinite(score):
        raise ValueError(f"row {row_key(row)!r}: expected a finite score with status ok, got {score!r}")
    return score >= CORRECT


def measure(verdicts: Iterable[Row], *, thinking: bool | None = None) -> dict[str, PassRate]:
    """Pass rates by query, in order of first appearance; rows have ``id``, ``sample``, ``status`` and ``score``.

    Args:
        thinking: False refuses samples whose ``response`` holds a thought, True those that hold none.

    Raises:
        ValueError: the same sample twice, a broken verdict, or a sample in the other mode.
    """
    seen: set[str] = set()
    counts: dict[str, list[int]] = {}
    for row in verdicts:
        key = row_key(row)
        if key in seen:
            raise ValueError(f"pass rates: sample {key!r} came twice; every sample counts once")
        seen.add(key)
        if thinking is not None and parse(text_column(row, "response")).has_thought != thinking:
            raise ValueError(
                f"pass rates: sample {key!r}: expected a response {'with' if thinking else 'without'} a thought; "
                "sample the model in that mode"
            )
        count = counts.setdefault(text_column(row, "id"), [0, 0, 0])
        count[0] += is_correct(row)
        count[1 if status_of(row) == OK else 2] += 1
    return {name: PassRate(*count) for name, count in counts.items()}
