"""Which of these numbers is the largest? A task that a small pretrained model gets right now and then.

    prompt   Which of these numbers is the largest: 412, 98, 733, 560?
    answer   733
    trace    <think>
             733 is more than 412, 98 and 560.
             </think>

             \\boxed{733}

The trace names its choice at once, so right or wrong is decided at the first number: what a reward on the answer can
teach, and little else.
"""

from __future__ import annotations

import random
from typing import Any

Row = dict[str, Any]


def problems(
    seed: int, *, num_sft: int = 512, num_train: int = 2048, num_test: int = 256, count: int = 4, below: int = 1000
) -> dict[str, list[Row]]:
    """Disjoint splits ``sft``, ``train`` and ``test`` of ``count`` different numbers from 1 to ``below - 1``.

    Raises:
        ValueError: fewer than two numbers a question, or not enough different ones.
    """
    if count < 2 or below - 1 < 2 * count:
        raise ValueError(f"largest: expected count >= 2 and below > 2 x count, got count={count}, below={below}")
    rng = random.Random(f"largest/{seed}")
    taken: set[tuple[int, ...]] = set()
    splits: dict[str, list[Row]] = {}
    for split, size in (("test", num_test), ("train", num_train), ("sft", num_sft)):
        rows: list[Row] = []
        while len(rows) < size:
            numbers = tuple(rng.sample(range(1, below), count))
            if tuple(sorted(numbers)) not in taken:
                taken.add(tuple(sorted(numbers)))
                rows.append(make_row(numbers, row_id=f"{split}-{len(rows):06d}"))
        splits[split] = rows
    return splits


def make_row(numbers: tuple[int, ...], *, row_id: str) -> Row:
    """One dataset row."""
    best = max(numbers)
    others = [str(number) for number in numbers if number != best]
    listed = f"{', '.join(others[:-1])} and {others[-1]}" if len(others) > 1 else others[0]
    prompt = f"Which of these numbers is the largest: {', '.join(map(str, numbers))}?"
    text = f"<think>\n{best} is more than {listed}.\n</think>\n\n\\boxed{{{best}}}"
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]
    return {"id": row_id, "prompt": prompt, "answer": str(best), "messages": messages}
