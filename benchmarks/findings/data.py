"""Datasets of the studies, for ``dataset`` stages: sums that no run has seen, and GSM8K in both modes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlplatform.tasks import arithmetic
from rlplatform.tasks.gsm8k import HUB_ID, think_format

Row = dict[str, Any]
_SUM = re.compile(r"(\d+) \+ (\d+)")


def sums_in(folders: Sequence[str]) -> set[tuple[int, int]]:
    """Every ``a + b`` in any text of the folders' JSONL files, smaller number first.

    Raises:
        ValueError: a folder has no such file.
    """
    found: set[tuple[int, int]] = set()
    for folder in folders:
        files = sorted(Path(folder).glob("*.jsonl"))
        if not files:
            raise ValueError(f"{folder}: expected JSONL files of an earlier run")
        for file in files:
            for a, b in _SUM.findall(file.read_text(encoding="utf-8")):
                found.add((min(int(a), int(b)), max(int(a), int(b))))
    return found


def fresh_sums(
    seed: int,
    *,
    unlike: Sequence[str],
    num_validation: int = 256,
    num_test: int = 256,
    digits: Mapping[Any, float] | None = None,
) -> dict[str, list[Row]]:
    """Splits ``validation`` and ``test``: no sum in both, none that stands in the folders ``unlike``.

    Every second row of ``validation`` has ``/no_think`` behind its prompt; rows of ``test`` have no flag.

    Raises:
        ValueError: see ``sums_in``; or too few sums are left.
    """
    taken = sums_in(unlike)
    wanted = num_validation + num_test
    made = arithmetic.problems(seed + 1_000_003, num_sft=0, num_train=0, num_test=4 * wanted, digits=digits)["test"]
    rows = []
    for row in made:
        a, b = (int(one) for one in _SUM.findall(row["prompt"])[0])
        if (min(a, b), max(a, b)) not in taken:
            rows.append({key: row[key] for key in ("prompt", "answer")})
    if len(rows) < wanted:
        raise ValueError(f"fresh_sums: expected {wanted} sums that {list(unlike)} have not, found {len(rows)}")
    validation = [
        {**row, "id": f"validation-{k}", "prompt": row["prompt"] + " /no_think" * (k % 2), "thinking": k % 2 == 0}
        for k, row in enumerate(rows[:num_validation])
    ]
    return {"validation": validation, "test": [{**row, "id": f"test-{k}"} for k, row in enumerate(rows[-num_test:])]}


ASKED = "Put the final answer in \\boxed{}."


def gsm8k(
    seed: int,
    *,
    path: str = HUB_ID,
    num_cold: int = 600,
    num_plain: int = 600,
    num_train: int = 1000,
    num_queries: int = 160,
    num_test: int = 150,
) -> dict[str, list[Row]]:
    """GSM8K without an instruction to think: the mode is to come from flags.

    ``cold``: worked examples in ``messages``, the rationale as the thought. ``plain``: the rationale as the answer, for
    the fusion. ``train`` and ``queries``: questions with answers. ``test_thinking``, ``test_plain``: the same held-out
    questions, the latter with ``/no_think``; column ``thinking`` is what the format reward reads.

    Raises:
        DataError, ValueError: see ``rlplatform.tasks.gsm8k.think_format``.
    """
    made = think_format(
        seed, path=path, num_sft=num_cold + num_plain, num_train=num_train + num_queries, num_test=num_test
    )
    rows = {split: [_asked(row, f"{split}-{k}") for k, row in enumerate(own)] for split, own in made.items()}
    worked = [{**row, "messages": _messages(row, full)} for row, full in zip(rows["sft"], made["sft"], strict=True)]
    return {
        "cold": worked[:num_cold],
        "plain": [_plain(row) for row in worked[num_cold:]],
        "train": rows["train"][:num_train],
        "queries": rows["train"][num_train:],
        "test_thinking": [{**row, "thinking": True} for row in rows["test"]],
        "test_plain": [{**row, "prompt": f"{row['prompt']} /no_think", "thinking": False} for row in rows["test"]],
    }


def _asked(row: Row, name: str) -> Row:
    question = row["prompt"].rpartition("\n")[0]
    return {
        "id": name,
        "prompt": f"{question}\n{ASKED}",
        "answer": row["answer"],
        "worked": row["messages"][-1]["content"],  # --smoke's demonstration
    }


def _messages(row: Row, made: Row) -> list[Row]:
    return [{"role": "user", "content": row["prompt"]}, made["messages"][-1]]


def _plain(row: Row) -> Row:
    thought, _, answer = row["messages"][-1]["content"].removeprefix("<think>\n").partition("\n</think>\n\n")
    kept = {key: row[key] for key in ("id", "prompt", "answer")}
    return {**kept, "response": f"{thought}\n{answer}", "task": "gsm8k", "grader": "math"}
