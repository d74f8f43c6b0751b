"""What docs/general_rl.md and configs/rl/general.yaml hold of the tasks: the table, and the reward section.

python -m rlplatform.tasks.general.page table
python -m rlplatform.tasks.general.page reward
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from rlplatform.tasks.general.suite import TASKS, reward_functions
from rlplatform.tasks.general.task import ABILITIES, Task

_HEADER = "| task | ability | judged by | reward | languages | what | example |"
_KINDS = {"rule": "rule", "with_reference": "reference", "without_reference": "no reference"}
_LONGEST = 110  # characters of an example


def table() -> str:
    """One line a task, abilities in the report's order; the example is the last user message of the first test row."""
    tasks = sorted(TASKS.values(), key=lambda task: ABILITIES.index(task.ability))
    return "\n".join([_HEADER, f"|{'---|' * (_HEADER.count('|') - 1)}", *map(_line, tasks)])


def _line(task: Task) -> str:
    rewards = ", ".join(f"`{_function(name, value)}`" for name, value in task.functions.items())
    prompt = task.rows(0, num_test=1)["test"][0]["prompt"]
    text = next(message["content"] for message in reversed(prompt) if message["role"] == "user")
    text = text.replace("\n", " ⏎ ").replace("|", "\\|")
    shown = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
    cells = (
        task.name,
        task.ability,
        _KINDS[task.kind],
        rewards,
        " ".join(task.languages),
        task.about,
        shown,
    )
    return f"| {' | '.join(cells)} |"


def _function(name: str, value: Any) -> str:
    """``length 0.6``; own functions without their module."""
    settings = value if isinstance(value, Mapping) else {"weight": value}
    function = settings.get("function", name).rpartition(":")[2].removesuffix("_reward")
    return f"{function} {settings['weight']:g}"


def reward_yaml() -> str:
    """``reward_functions()`` for all tasks as lines of YAML, two spaces a level, to stand under ``functions:``."""
    lines = []
    for name, part in reward_functions().items():
        lines.append(f"{name}:")
        for key, value in part.items():
            if key == "when":
                lines += ["  when:", "    task:", *(f"      - {task}" for task in value["task"])]
            else:
                lines.append(f"  {key}: {value if isinstance(value, str) else json.dumps(value)}")
    return "\n".join(lines)


if __name__ == "__main__":
    pages = {"table": table, "reward": reward_yaml}
    if len(sys.argv) != 2 or sys.argv[1] not in pages:
        sys.exit(f"expected one of {', '.join(pages)}, got {sys.argv[1:]}")
    print(pages[sys.argv[1]]())
