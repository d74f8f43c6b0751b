"""The code reward on HumanEval's and MBPP's own solutions, which must all pass, and on mutants, which must all fail.

    .venv/bin/python -m benchmarks.code_datasets --data ../shared/data

``--data``: a folder with humaneval/HumanEval.jsonl and mbpp/mbpp.jsonl.gz.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rewards.code import Settings, close_sandboxes, grade

SETTINGS = Settings(timeout_s=20.0, total_s=20.0)


@dataclass(frozen=True)
class Task:
    """A problem with its dataset's own solution."""

    name: str
    program: str
    test: str
    entry_point: str


def human_eval(data: Path) -> list[Task]:
    rows = [json.loads(line) for line in (data / "humaneval" / "HumanEval.jsonl").read_text().splitlines()]
    return [
        Task(
            row["task_id"],
            row["prompt"] + row["canonical_solution"],
            f"{row['test']}\ncheck(candidate)",
            row["entry_point"],
        )
        for row in rows
    ]


def mbpp(data: Path) -> list[Task]:
    with gzip.open(data / "mbpp" / "mbpp.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    tasks = []
    for row in rows:
        test = "\n".join([row["test_setup_code"], *row["test_list"]])
        defined = re.findall(r"^(?:def|class) (\w+)", row["code"], re.MULTILINE)
        called = [name for name in defined if re.search(rf"\b{name}\(", test)]
        tasks.append(Task(f"MBPP/{row['task_id']}", row["code"], test, called[-1] if called else ""))
    return tasks


READERS: dict[str, Callable[[Path], list[Task]]] = {"humaneval": human_eval, "mbpp": mbpp}

MUTATIONS = (
    "    return object",  # a value that no test expects
    "    return type('Yes', (), {'__eq__': lambda s, o: True, '__bool__': lambda s: False, '__hash__': None})()",
)


def mutants(task: Task) -> list[str]:
    """The same program with its function replaced: it still runs, and returns something else."""
    name = task.entry_point
    head = f"{task.program}\n\n_right = {name}\ndef {name}(*args, **kwargs):\n    _right(*args, **kwargs)\n"
    return [f"{head}{mutation}\n" for mutation in MUTATIONS]


def passes(program: str, task: Task) -> str:
    """ "" where it passes, else the reason."""
    tests = [{"code": task.test}]
    verdict = grade(f"```python\n{program}\n```", tests, "python", task.entry_point, SETTINGS)
    return "" if verdict.ok and verdict.score == 1.0 else f"{verdict.status}: {verdict.detail}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    arguments = parser.parse_args()
    for name, read in READERS.items():
        started = time.perf_counter()
        tasks = read(arguments.data)
        right = {task.name: reason for task in tasks if (reason := passes(task.program, task))}
        mutated = [task.name for task in tasks for program in mutants(task) if not passes(program, task)]
        seconds = round(time.perf_counter() - started, 1)
        figures = {"tasks": len(tasks), "solutions_failed": right, "mutants_passed": mutated, "seconds": seconds}
        print(json.dumps({"benchmark": f"code_{name}", **figures}))
    close_sandboxes()


if __name__ == "__main__":
    main()
