"""Short Python functions from a description: a programming task small enough for a one-million-parameter model.

    prompt   Write f(x): multiply by 7, subtract 12, take the remainder by 5.
    tests    [{"call": [3], "expected": 4}, ...]      for the `code` reward; entry_point f
    trace    <think>
             x * 7
             x - 12
             x % 5
             </think>

             ```python
             def f(x):
                 x = x * 7
                 x = x - 12
                 x = x % 5
                 return x
             ```

Every step of a description is one line of the program, so the task is learnable line by line, and one wrong line fails
the tests: what a reward by running the program can teach. The splits share no description.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
Step = tuple[str, int]  # operation, its number

OPERATIONS = {  # description, expression; both take the number n
    "add": ("add {n}", "x + {n}"),
    "subtract": ("subtract {n}", "x - {n}"),
    "multiply": ("multiply by {n}", "x * {n}"),
    "remainder": ("take the remainder by {n}", "x % {n}"),
    "divide": ("divide by {n} and round down", "x // {n}"),
    "at_least": ("raise to {n} if it is less", "max(x, {n})"),
    "at_most": ("lower to {n} if it is more", "min(x, {n})"),
    "square": ("square it", "x * x"),
    "negate": ("change the sign", "-x"),
}
NUM_TESTS = 6
NUMBERS = range(2, 100)


def problems(
    seed: int, *, num_sft: int = 8192, num_train: int = 4096, num_test: int = 256, steps: Sequence[int] = (2, 3)
) -> dict[str, list[Row]]:
    """Disjoint splits ``sft``, ``train`` and ``test``; ``steps`` are the numbers of operations, equally often.

    A row has ``id``, ``prompt``, ``tests``, ``entry_point``, ``answer`` (the program) and ``messages``.
    Raises ``ValueError`` for a number of steps outside 1 to 6.
    """
    if not steps or not all(1 <= number <= 6 for number in steps):
        raise ValueError(f"programs.steps: expected numbers from 1 to 6, got {list(steps)}")
    taken: set[tuple[Step, ...]] = set()
    splits: dict[str, list[Row]] = {}
    for split, size in (("test", num_test), ("train", num_train), ("sft", num_sft)):
        rng = random.Random(f"programs/{seed}/{split}")
        rows: list[Row] = []
        while len(rows) < size:
            drawn = tuple(_draw(rng) for _ in range(rng.choice(list(steps))))
            if drawn not in taken:
                taken.add(drawn)
                rows.append(make_row(drawn, rng, row_id=f"{split}-{len(rows):06d}"))
        splits[split] = rows
    return splits


def _draw(rng: random.Random) -> Step:
    operation = rng.choice(list(OPERATIONS))
    return operation, 0 if operation in ("square", "negate") else rng.choice(NUMBERS)


def make_row(steps: tuple[Step, ...], rng: random.Random, *, row_id: str) -> Row:
    """One dataset row, with ``NUM_TESTS`` tests at small and large arguments of both signs."""
    described = ", ".join(OPERATIONS[operation][0].format(n=n) for operation, n in steps)
    lines = [OPERATIONS[operation][1].format(n=n) for operation, n in steps]
    program = "\n".join(["def f(x):", *(f"    x = {line}" for line in lines), "    return x"])
    arguments = [rng.randint(-10, 10), rng.randint(-10, 10), *(rng.randint(-999, 999) for _ in range(NUM_TESTS - 2))]
    prompt = f"Write f(x): {described}."
    text = "<think>\n" + "\n".join(lines) + f"\n</think>\n\n```python\n{program}\n```"
    return {
        "id": row_id,
        "prompt": prompt,
        "tests": [{"call": [x], "expected": run(steps, x)} for x in arguments],
        "entry_point": "f",
        "answer": program,
        "messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}],
    }


def run(steps: Sequence[Step], x: int) -> int:
    """What the program returns."""
    for operation, n in steps:
        if operation == "add":
            x += n
        elif operation == "subtract":
            x -= n
        elif operation == "multiply":
            x *= n
        elif operation == "remainder":
            x %= n
        elif operation == "divide":
            x //= n
        elif operation == "at_least":
            x = max(x, n)
        elif operation == "at_most":
            x = min(x, n)
        elif operation == "square":
            x *= x
        else:
            x = -x
    return x
