"""Rows of the built-in environments: disjoint splits, with the expert's episodes for supervised warm-up."""

from __future__ import annotations

import importlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlplatform.environments.base import ENVIRONMENTS, load_environment
from rlplatform.environments.contract import read_opening
from rlplatform.environments.text import Policy
from rlplatform.environments.tools import ToolEnvironment

Row = dict[str, Any]
SPLITS = ("test", "train", "sft")  # drawn in this order: held-out rows do not depend on the others' number
_MAX_TURNS = 12


def problems(
    seed: int,
    *,
    environment: str,
    num_sft: int = 2048,
    num_train: int = 2048,
    num_test: int = 256,
    levels: Sequence[int] = (1,),
    thinking: bool = True,
    show_tools: bool = True,
    **settings: Any,
) -> dict[str, list[Row]]:
    """Splits ``sft``, ``train`` and ``test`` of a built-in environment; no prompt is in two, equal arguments give equal
    rows.

    A row has ``id``, ``prompt``, ``tools``, ``answer``, ``environment``, ``level``, what the environment needs to play
    it, and ``messages``: an episode of the expert, ``thinking`` or not. ``levels`` are mixed evenly; ``settings`` go to
    the environment's ``make_row``. ``show_tools=False`` leaves the schemas out of the prompt.

    Raises:
        ValueError: an unknown environment or level, or more rows than there are different prompts.
    """
    module = module_of(environment)
    if not levels or not set(levels) <= set(module.LEVELS):
        raise ValueError(f"{environment}.levels: expected some of {module.LEVELS}, got {tuple(levels)}")
    sizes = {"sft": num_sft, "train": num_train, "test": num_test}
    taken: set[str] = set()
    splits: dict[str, list[Row]] = {}
    for split in SPLITS:
        rng = random.Random(f"{environment}/{seed}/{split}")
        rows: list[Row] = []
        misses = 0
        while len(rows) < sizes[split]:
            row = {"level": rng.choice(list(levels)), "environment": environment}
            row |= module.make_row(rng, row["level"], **settings)
            key = json.dumps(row["prompt"])
            misses = misses + 1 if key in taken else 0
            if misses > 200:
                raise ValueError(
                    f"{environment}: after {len(taken)} rows no new prompt in 200 draws; the splits {sizes} ask for "
                    f"more than levels {tuple(levels)} have"
                )
            if not misses:
                taken.add(key)
                rows.append({"id": f"{environment}-{split}-{len(rows):06d}", **row})
        splits[split] = [{**row, **_demonstrate(row, thinking, show_tools)} for row in rows]
    return splits


def module_of(environment: str) -> Any:
    """The module of a built-in environment: LEVELS, make_row, expert.

    Raises:
        ValueError: no such environment.
    """
    if environment not in ENVIRONMENTS:
        raise ValueError(f"environment: expected one of {', '.join(ENVIRONMENTS)}, got {environment!r}")
    return importlib.import_module(ENVIRONMENTS[environment].partition(":")[0])


def expert(row: Mapping[str, Any], *, thinking: bool = True) -> Policy:
    """The policy that solves a row."""
    make: Callable[..., Policy] = module_of(row["environment"]).expert
    return make(row, thinking=thinking)


def _demonstrate(row: Row, thinking: bool, show_tools: bool) -> dict[str, Any]:
    """The expert's episode, played here: thousands of them need no thread each."""
    settings: dict[str, Any] = {"show_tools": show_tools}
    if row["environment"] == "python_sandbox":
        settings["run"] = importlib.import_module("rlplatform.environments.python_sandbox").run_trusted
    environment: ToolEnvironment = load_environment(row["environment"], **settings).make(**settings)
    opening = read_opening(environment.reset(seed=0, row=row), row["environment"])
    messages, policy = list(opening.messages), expert(row, thinking=thinking)
    for _ in range(_MAX_TURNS):
        messages.append({"role": "assistant", "content": policy(messages)})
        step = environment.step(messages[-1])
        if step.terminated:
            if step.reward != 1.0:
                raise ValueError(f"{row['environment']}: the expert failed {row['prompt']!r}: {step.info}")
            return {"messages": messages, "tools": list(opening.tools)}
        messages += step.messages
    raise ValueError(f"{row['environment']}: the expert did not end within {_MAX_TURNS} turns: {row['prompt']!r}")
