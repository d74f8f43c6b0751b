"""Column arithmetic with the carries written out: a task small enough for a one-million-parameter model.

    prompt   What is 347 + 285?
    answer   632
    trace    <think>
             7+5=12 carry 1
             4+8+1=13 carry 1
             3+2+1=6
             </think>

             \\boxed{632}

Every line of a trace is a sum of at most two digits and a carry, so the task is learnable column by column, and a
wrong column makes the answer wrong: what a reward on the final answer can teach. The splits share no problem, and
``a + b`` and ``b + a`` count as one problem.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

Row = dict[str, Any]

OPERATIONS = ("+", "-")
SPLITS = ("test", "train", "sft")  # drawn in this order: the held-out problems do not depend on the others' sizes
DIGITS = {3: 1.0}


def problems(
    seed: int,
    *,
    num_sft: int = 8192,
    num_train: int = 8192,
    num_test: int = 256,
    digits: Mapping[Any, float] | None = None,
    operations: Sequence[str] = ("+",),
) -> dict[str, list[Row]]:
    """Disjoint splits ``sft``, ``train`` and ``test`` of generated problems; equal arguments give equal rows.

    ``digits`` maps the number of digits of both operands to its share of the problems (default: three each).
    A row has ``id``, ``prompt``, ``answer`` (a string), ``digits``, ``operation`` and ``messages``: the prompt and the
    worked trace, for supervised training. Raises ``ValueError`` for an unknown operation, shares that are not positive
    or more problems than exist.
    """
    shares = {int(level): float(share) for level, share in (digits or DIGITS).items()}
    if not shares or min(shares) < 1 or min(shares.values()) <= 0:
        raise ValueError(f"arithmetic.digits: expected {{number of digits >= 1: share > 0}}, got {digits}")
    if not operations or not set(operations) <= set(OPERATIONS):
        raise ValueError(f"arithmetic.operations: expected some of {OPERATIONS}, got {tuple(operations)}")
    sizes = {"sft": num_sft, "train": num_train, "test": num_test}
    if min(sizes.values()) < 0:
        raise ValueError(f"arithmetic: expected sizes >= 0, got {sizes}")

    taken: set[tuple[str, int, int]] = set()
    used: dict[int, int] = dict.fromkeys(shares, 0)
    splits: dict[str, list[Row]] = {}
    for split in SPLITS:
        rng = random.Random(f"arithmetic/{seed}/{split}")
        rows: list[Row] = []
        for index in range(sizes[split]):
            level = rng.choices(list(shares), weights=list(shares.values()))[0]
            used[level] += 1
            capacity = num_problems(level, operations)
            if used[level] > capacity:
                raise ValueError(
                    f"arithmetic: {capacity} different problems with {level} digits exist, fewer than the splits "
                    f"{sizes} need at the shares {shares}; lower the sizes or the share of {level} digits"
                )
            while (key := _draw(rng, level, operations)) in taken:
                pass
            taken.add(key)
            operation, a, b = key
            if operation == "+" and rng.random() < 0.5:
                a, b = b, a
            rows.append(make_row(a, b, operation, row_id=f"{split}-{index:06d}"))
        splits[split] = rows
    return splits


def num_problems(level: int, operations: Sequence[str]) -> int:
    """How many problems with ``level``-digit operands exist: unordered pairs for each operation."""
    operands = 10**level - 10 ** (level - 1)
    return len(set(operations)) * operands * (operands + 1) // 2


def _draw(rng: random.Random, level: int, operations: Sequence[str]) -> tuple[str, int, int]:
    a, b = (rng.randrange(10 ** (level - 1), 10**level) for _ in range(2))
    return rng.choice(list(operations)), max(a, b), min(a, b)


def make_row(a: int, b: int, operation: str, *, row_id: str) -> Row:
    """One dataset row. ``a`` and ``b`` are positive; a difference is not negative."""
    answer = a + b if operation == "+" else a - b
    prompt = f"What is {a} {operation} {b}?"
    return {
        "id": row_id,
        "prompt": prompt,
        "answer": str(answer),
        "digits": max(len(str(a)), len(str(b))),
        "operation": operation,
        "messages": [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": worked_answer(a, b, operation)},
        ],
    }


def worked_answer(a: int, b: int, operation: str) -> str:
    """The trace a careful pupil writes, then the boxed answer."""
    lines, answer = (_addition if operation == "+" else _subtraction)(a, b)
    return "<think>\n" + "\n".join(lines) + f"\n</think>\n\n\\boxed{{{answer}}}"


def _columns(a: int, b: int) -> list[tuple[int, int]]:
    """Digits of both numbers, units first."""
    width = max(len(str(a)), len(str(b)))
    return [(int(x), int(y)) for x, y in zip(f"{a:0{width}}"[::-1], f"{b:0{width}}"[::-1], strict=True)]


def _addition(a: int, b: int) -> tuple[list[str], int]:
    lines, carry = [], 0
    columns = _columns(a, b)
    for place, (x, y) in enumerate(columns):
        total = x + y + carry
        line = f"{x}+{y}+1={total}" if carry else f"{x}+{y}={total}"
        carry = total // 10
        if carry and place < len(columns) - 1:
            line += " carry 1"
        lines.append(line)
    return lines, a + b


def _subtraction(a: int, b: int) -> tuple[list[str], int]:
    if a < b:
        raise ValueError(f"arithmetic: expected a difference that is not negative, got {a} - {b}")
    lines, borrow = [], 0
    for x, y in _columns(a, b):
        lent = x - y - borrow < 0
        digit = x - y - borrow + 10 * lent
        left = f"{x + 10 * lent}-{y}" + ("-1" if borrow else "")
        lines.append(f"{left}={digit}" + (" borrow 1" if lent else ""))
        borrow = int(lent)
    return lines, a - b


def shuffle_answers(rows: Sequence[Row], seed: int) -> list[Row]:
    """The rows with their answers dealt out anew, none keeping its own: the control run of a reward.

    A model rewarded for these answers can learn the format but nothing about the problems. The traces in ``messages``
    are left out, since they would contradict the answer. Raises ``ValueError`` where all answers are equal.
    """
    answers = [row["answer"] for row in rows]
    if len(set(answers)) < 2:
        raise ValueError("shuffle_answers: expected at least two different answers")
    rng = random.Random(f"arithmetic/shuffle/{seed}")
    order = list(range(len(rows)))
    rng.shuffle(order)
    dealt = answers[:]
    for here, there in zip(order, order[1:] + order[:1], strict=True):  # one cycle: every answer moves
        dealt[here] = answers[there]
    for here in order:  # equal answers may have met: swap with a row where both then differ from their own
        if dealt[here] == answers[here]:
            for there in order:
                if dealt[there] != answers[here] and dealt[here] != answers[there]:
                    dealt[here], dealt[there] = dealt[there], dealt[here]
                    break
            else:
                raise ValueError(
                    f"shuffle_answers: the answer {answers[here]!r} is too frequent to give every row another"
                )
    return [
        {**{key: value for key, value in row.items() if key != "messages"}, "answer": answer}
        for row, answer in zip(rows, dealt, strict=True)
    ]
