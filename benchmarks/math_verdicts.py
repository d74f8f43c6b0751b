"""How far the `math` reward can be trusted: its rates on tests/data/math_pairs.jsonl, as docs/rewards.md prints them.

    python -m benchmarks.math_verdicts           the table
    python -m benchmarks.math_verdicts --wrong   the pairs it gets wrong

A false positive accepts a different answer, a false negative rejects an equal one; a reference that it cannot read
counts as wrong either way. The labels are set by mathematics and by the conventions of docs/rewards.md. Pairs of the
split `tuned` were looked at while the grader was written, those of `held out` were written before it was run on them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewards.base import Verdict
from rewards.runner import RewardPool

PAIRS = Path(__file__).resolve().parents[1] / "tests" / "data" / "math_pairs.jsonl"


@dataclass(frozen=True)
class Rates:
    """Counts of one category."""

    num_different: int
    false_positives: int
    num_equal: int
    false_negatives: int


def load() -> list[dict[str, Any]]:
    return [json.loads(line) for line in PAIRS.read_text(encoding="utf-8").splitlines()]


def grade_all(rows: list[dict[str, Any]], num_processes: int = 2) -> list[Verdict]:
    """One verdict a pair, each with its own deadline."""
    answers = [rf"\boxed{{{row['answer']}}}" for row in rows]
    with RewardPool({"math": 1.0}, num_processes=num_processes, timeout_s=20.0) as pool:
        return pool.score(["q"] * len(rows), answers, {"answer": [row["gold"] for row in rows]})


def is_wrong(row: dict[str, Any], verdict: Verdict) -> bool:
    return not verdict.ok or verdict.score != row["label"]


def rates(rows: list[dict[str, Any]], verdicts: list[Verdict]) -> dict[str, Rates]:
    """By category, by split, and over all."""
    groups: dict[str, list[tuple[int, bool]]] = {}
    for row, verdict in zip(rows, verdicts, strict=True):
        for name in (row["category"], f"all, {row['split']}", "all"):
            groups.setdefault(name, []).append((row["label"], is_wrong(row, verdict)))
    totals = ("all, tuned", "all, held out", "all")
    names = [name for name in groups if name not in totals] + [name for name in totals if name in groups]
    counted = {}
    for name in names:
        equal = [wrong for label, wrong in groups[name] if label]
        different = [wrong for label, wrong in groups[name] if not label]
        counted[name] = Rates(len(different), sum(different), len(equal), sum(equal))
    return counted


def table(counted: dict[str, Rates]) -> Iterator[str]:
    """Markdown rows; `1 / 20` reads: one wrong of twenty."""
    yield "| category | false positives | false negatives |"
    yield "|---|---|---|"
    for name, r in counted.items():
        yield f"| {name} | {r.false_positives} / {r.num_different} | {r.false_negatives} / {r.num_equal} |"


def main() -> None:
    rows = load()
    verdicts = grade_all(rows)
    print("\n".join(table(rates(rows, verdicts))))
    if "--wrong" in sys.argv[1:]:
        for row, verdict in zip(rows, verdicts, strict=True):
            if is_wrong(row, verdict):
                print(json.dumps(row, ensure_ascii=False), verdict.status, verdict.score)


if __name__ == "__main__":
    main()
