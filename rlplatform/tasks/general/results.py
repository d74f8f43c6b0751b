"""Results task by task, from the rollouts that a run of the general recipe records, beside the rows they answer.

python -m rlplatform.tasks.general.results RUN         the table of a run, e.g. of runs/general
python -m rlplatform.tasks.general.results RUN PAGE    and into PAGE, between the comments BEGIN and END
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlplatform.datafiles import read_jsonl
from rlplatform.runs import RunFolder
from rlplatform.tasks.general.task import Row

BEGIN, END = "<!-- measured -->", "<!-- /measured -->"
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
        rewards[_task_of(rows, record["prompt_id"])].append(_reward(record) or 0.0)
    return {
        task: TaskResult(len(found), sum(found) / len(found), sum(one >= _FULL for one in found) / len(found))
        for task, found in rewards.items()
        if found
    }


def differing(rows: Sequence[Row], records: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Task -> share of its groups whose rewards are not all equal: the others teach nothing.

    A group is what ``records`` hold of one ``step`` and ``index``; only rewards that are there count.

    Raises:
        ValueError: a prompt_id that is none of these rows.
    """
    groups: dict[tuple[Any, Any, str], list[float]] = defaultdict(list)
    for record in records:
        reward = _reward(record)
        found = groups[record["step"], record["index"], _task_of(rows, record["prompt_id"])]
        found += [] if reward is None else [reward]
    differ: dict[str, list[bool]] = defaultdict(list)
    for (_, _, task), found in groups.items():
        differ[task].append(max(found, default=0.0) - min(found, default=0.0) > 1e-6)
    return {task: sum(found) / len(found) for task, found in differ.items()}


def _reward(record: Mapping[str, Any]) -> float | None:
    reward = record["reward"]
    return None if reward is None or reward != reward else float(reward)


def _task_of(rows: Sequence[Row], prompt_id: Any) -> str:
    index = str(prompt_id).rpartition("-")[2]
    if not index.isdecimal() or int(index) >= len(rows):
        raise ValueError(
            f"per_task: expected a prompt_id from SPLIT-0 to SPLIT-{len(rows) - 1}, got {prompt_id!r}; "
            "are these the rows that the run was evaluated on?"
        )
    return str(rows[int(index)]["task"])


def comparison(
    before: Mapping[str, TaskResult], after: Mapping[str, TaskResult], differ: Mapping[str, float] | None = None
) -> str:
    """A table of both, in Markdown, with a last line for all tasks, each counted once; a task that is in one of them
    only has a dash in the other, and stands in no mean of both. ``differ``: a column of those shares beside it.
    """
    names = list(dict.fromkeys([*before, *after]))
    lines = [
        f"| task | solved before | after | reward before | after |{' groups that differ |' if differ else ''}",
        f"|{'---|' * (6 if differ else 5)}",
    ]
    for task in names:
        lines.append(_line(task, before.get(task), after.get(task), differ.get(task, 0.0) if differ else None))
    both = [task for task in names if task in before and task in after]
    if both:
        first, last = (_mean([results[task] for task in both]) for results in (before, after))
        share = sum(differ.get(task, 0.0) for task in both) / len(both) if differ else None
        lines.append(_line(f"**mean of {len(both)} tasks**", first, last, share))
    return "\n".join(lines)


def _mean(results: Sequence[TaskResult]) -> TaskResult:
    scores, solved = ([getattr(one, name) for one in results] for name in ("score", "solved"))
    return TaskResult(sum(one.num for one in results), sum(scores) / len(scores), sum(solved) / len(solved))


def _line(name: str, before: TaskResult | None, after: TaskResult | None, share: float | None) -> str:
    found = (before, after)
    solved = [f"{one.solved:.1%}" if one else "–" for one in found]
    scores = [f"{one.score:.3f}" if one else "–" for one in found]
    return f"| {' | '.join([name, *solved, *scores, *([] if share is None else [f'{share:.0%}'])])} |"


def table_of_run(path: str | Path) -> str:
    """The table of a finished run of ``configs/rl/general.yaml``: before its first RL step, and after the last that was
    evaluated; tasks in the suite's order.

    Raises:
        FileNotFoundError: there is no such run, or its RL stage recorded nothing yet.
    """
    from rlplatform.tasks.general.suite import TASKS

    folder = RunFolder(Path(path) / "rl")
    held_out, trained = (read_rows_of(Path(path) / "data" / f"{split}.jsonl") for split in ("test", "train"))
    frame = folder.read_rollouts("eval")
    found = [per_task(held_out, frame[frame.step == step].to_dict("records")) for step in (0, frame.step.max())]
    before, after = ({task: one[task] for task in TASKS if task in one} for one in found)
    rollouts = folder.read_rollouts()[["step", "index", "prompt_id", "reward"]].to_dict("records")
    return comparison(before, after, differing(trained, rollouts))


def write_into(page: Path, table: str) -> None:
    """Put the table between BEGIN and END.

    Raises:
        ValueError: the page has not both of them, once each and in this order.
    """
    text = page.read_text(encoding="utf-8")
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in tail:
        raise ValueError(f"{page}: expected one {BEGIN} with one {END} after it")
    page.write_text(f"{head}{BEGIN}\n\n{table}\n\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(f"expected RUN or RUN PAGE, got {sys.argv[1:]}")
    measured = table_of_run(sys.argv[1])
    print(measured)
    if len(sys.argv) == 3:
        write_into(Path(sys.argv[2]), measured)
