"""All tasks together: mixed splits for a dataset stage, and the reward that grades every row by its own task."""

from __future__ import annotations

import difflib
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlplatform.tasks.general import agent, form, instruction, languages, preference, specialised
from rlplatform.tasks.general.task import FLAG_SHARES, SPLITS, SYSTEM_SHARE, Row, Task

_MODULES = (instruction, form, preference, agent, specialised, languages)
TASKS: dict[str, Task] = {task.name: task for module in _MODULES for task in module.TASKS}

Selection = Sequence[str] | Mapping[str, float] | None


def select(tasks: Selection = None) -> dict[Task, float]:
    """Tasks and their weights: all equally (None), some equally (names), or as a mapping says.

    Raises:
        ValueError: an unknown name, a name twice, no task at all, or a weight that is not positive.
    """
    names = list(TASKS) if tasks is None else list(tasks)
    for name in names:
        if name not in TASKS:
            close = difflib.get_close_matches(str(name), TASKS, n=1, cutoff=0.5)
            raise ValueError(
                f"general tasks: expected some of {', '.join(TASKS)}; got {name!r}"
                f"{f'; did you mean {close[0]!r}?' if close else ''}"
            )
    weights = {name: float(tasks[name]) if isinstance(tasks, Mapping) else 1.0 for name in names}
    if not weights or len(weights) != len(names) or not min(weights.values()) > 0:
        raise ValueError(f"general tasks: expected different names with weights > 0, got {tasks}")
    return {TASKS[name]: weight for name, weight in weights.items()}


def suite(
    seed: int,
    *,
    tasks: Selection = None,
    num_sft: int = 8192,
    num_train: int = 8192,
    num_test: int = 512,
    difficulty: int = 1,
    flag_shares: Mapping[str, float] = FLAG_SHARES,
    system_share: float = SYSTEM_SHARE,
) -> dict[str, list[Row]]:
    """Splits ``test``, ``train`` and ``sft`` of all tasks together, shuffled; equal arguments give equal rows.

    A split is divided by the weights of ``tasks`` to the nearest row. Rows: see ``Task.rows``; ``sft`` rows are meant
    for supervised warm-up on their ``messages``. A split of size 0 is left out. ``flag_shares`` holds the shares of
    ``think``, ``no_think`` and ``none``; tasks about the flags themselves place their own.

    Raises:
        ValueError: see ``select`` and ``Task.rows``.
    """
    weights = select(tasks)
    sizes = {"sft": num_sft, "train": num_train, "test": num_test}
    if min(sizes.values()) < 0:
        raise ValueError(f"general tasks: expected sizes >= 0, got {sizes}")
    shares = {split: apportion(size, list(weights.values())) for split, size in sizes.items()}
    mixed: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for place, task in enumerate(weights):
        made = task.rows(
            seed,
            num_sft=shares["sft"][place],
            num_train=shares["train"][place],
            num_test=shares["test"][place],
            difficulty=difficulty,
            flag_shares=flag_shares,
            system_share=system_share,
        )
        for split, rows in made.items():
            mixed[split] += rows
    for split, rows in mixed.items():
        random.Random(f"general/{seed}/{split}").shuffle(rows)
    return {split: rows for split, rows in mixed.items() if rows}


def apportion(total: int, weights: Sequence[float]) -> list[int]:
    """``total`` divided by weights: largest remainders, earlier places first among equal ones.

    >>> apportion(10, [1.0, 1.0, 2.0])
    [3, 2, 5]
    """
    exact = [total * weight / sum(weights) for weight in weights]
    counts = [int(one) for one in exact]
    order = sorted(range(len(exact)), key=lambda place: (counts[place] - exact[place], place))
    for place in order[: total - sum(counts)]:
        counts[place] += 1
    return counts


def reward_functions(
    tasks: Selection = None,
    *,
    with_reference: Mapping[str, Any] | None = None,
    without_reference: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The ``reward.functions`` section for these tasks: every part is routed to the tasks that have it.

    The parts of every task have weights that sum to 1. ``with_reference`` and ``without_reference`` are parts beside
    them, for models as graders, e.g. ``{"preference": {"weight": 0.5, "clip": [-4, 4], "args": {...}}}`` or
    ``{"judge": {...}}``: the former for the tasks with a reference in words (not those whose answers are tool calls),
    the latter for those without.

    Raises:
        ValueError: see ``select``; or a name that stands for two different parts.
    """
    chosen = list(select(tasks))
    found: dict[str, dict[str, Any]] = {}
    for task in chosen:
        _route(found, task.functions, [task.name])
    texts = [task.name for task in chosen if task.kind == "with_reference" and task.ability != "agent"]
    _route(found, with_reference or {}, texts)
    _route(found, without_reference or {}, [task.name for task in chosen if task.kind == "without_reference"])
    return found


def _route(found: dict[str, dict[str, Any]], parts: Mapping[str, Any], names: Iterable[str]) -> None:
    for name, value in parts.items():
        settings = dict(value) if isinstance(value, Mapping) else {"weight": value}
        known = found.setdefault(name, {**settings, "when": {"task": []}})
        if {key: one for key, one in known.items() if key != "when"} != settings:
            raise ValueError(f"general tasks: two parts are called {name!r}: {known} and {settings}; rename one")
        known["when"]["task"] += names
