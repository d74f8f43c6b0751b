"""Results task by task, from the rollouts that a run records: ``eval/step-*.parquet`` beside the rows of its split.

frame = RunFolder("runs/general/rl").read_rollouts("eval")
rows = read_rows_of("runs/general/data/test.jsonl")
before, after = (per_task(rows, frame[frame.step == step].to_dict("records")) for step in (0, 60))
print(comparison(before, after))
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlplatform.datafiles import read_jsonl
from rlplatform.tasks.general.task import Row

_FULL = 1.0 - 1e-6


@dataclass(frozen=True)
class TaskResult:
    """Of one task's rollouts."""

    num: int
    score: float  # mean reward; a rollout without one (its verdict is not ok) counts 0
    solved: float  # share with the full reward, 1


def read_rows_of(path: str | Path) -> list[Row]:
    """The rows of a split's JSONL file, in order."""
    return [row for _, row in read_jsonl(Path(path))]


def per_task(rows: Sequence[Row], records: Iterable[Mapping[str, Any]]) -> dict[str, TaskResult]:
    """Task -> result, in the order of their first rows; ``records`` have ``prompt_id`` (``SPLIT-INDEX``, the place of
    the row in its file) and ``reward``, which is None or NaN where the verdict is not ok.

    Raises:
        ValueError: a prompt_id that is none of these rows.
    """
    rewards: dict[str, list[float]] = {row["task"]: [] for row in rows}
    for record in records:
        index = str(record["prompt_id"]).rpartition("-")[2]
        if not index.isdecimal() or int(index) >= len(rows):
            raise ValueError(
                f"per_task: expected a prompt_id from SPLIT-0 to SPLIT-{len(rows) - 1}, got {record['prompt_id']!r}; "
                "are these the rows that the run was evaluated on?"
            )
        reward = record["reward"]
        rewards[rows[int(index)]["task"]].append(0.0 if reward is None or reward != reward else float(reward))
    return {
        task: TaskResult(len(found), sum(found) / len(found), sum(one >= _FULL for one in found) / len(found))
        for task, found in rewards.items()
        if found
    }


def comparison(before: Mapping[str, TaskResult], after: Mapping[str, TaskResult]) -> str:
    """A table of both, in Markdown; a task that is in one of them only has a dash in the other."""
    lines = ["| task | solved before | after | reward before | after |", "|---|---|---|---|---|"]
    for task in dict.fromkeys([*before, *after]):
        found = [result.get(task) for result in (before, after)]
        solved = [f"{one.solved:.1%}" if one else "–" for one in found]
        scores = [f"{one.score:.3f}" if one else "–" for one in found]
        lines.append(f"| {' | '.join([task, *solved, *scores])} |")
    return "\n".join(lines)
