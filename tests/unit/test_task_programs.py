from __future__ import annotations

import random
from typing import Any

import pytest

from rewards.code import Settings, grade
from rlplatform.tasks import programs


def test_a_row_by_hand() -> None:
    steps = (("multiply", 7), ("subtract", 12), ("remainder", 5))
    row = programs.make_row(steps, random.Random(0), row_id="r")
    assert row["prompt"] == "Write f(x): multiply by 7, subtract 12, take the remainder by 5."
    assert row["answer"] == "def f(x):\n    x = x * 7\n    x = x - 12\n    x = x % 5\n    return x"
    assert programs.run(steps, 3) == 4
    assert programs.run((("divide", 4), ("negate", 0)), -9) == 3  # rounded down to -3


def test_the_program_and_the_expected_values_come_from_different_code_and_agree() -> None:
    rows = [row for split in programs.problems(1, num_sft=60, num_train=60, num_test=60).values() for row in split]
    for row in rows:
        scope: dict[str, Any] = {}
        exec(row["answer"], scope)
        assert [scope["f"](*test["call"]) for test in row["tests"]] == [test["expected"] for test in row["tests"]]
    seen = {
        operation
        for row in rows
        for operation, (text, _) in programs.OPERATIONS.items()
        if text.partition(" {n}")[0] in row["prompt"]
    }
    assert seen == set(programs.OPERATIONS)


def test_splits_are_disjoint_and_repeatable() -> None:
    splits = programs.problems(3, num_sft=50, num_train=50, num_test=50)
    prompts = [row["prompt"] for rows in splits.values() for row in rows]
    assert len(prompts) == len(set(prompts)) == 150
    assert programs.problems(3, num_sft=50, num_train=50, num_test=50) == splits
    assert programs.problems(3, num_sft=1, num_train=50, num_test=50)["test"] == splits["test"]
    with pytest.raises(ValueError, match="1 to 6"):
        programs.problems(0, steps=[7])


def test_the_reward_accepts_the_trace_and_refuses_a_changed_line() -> None:
    row = programs.problems(5, num_sft=1, num_train=0, num_test=0)["sft"][0]
    trace = row["messages"][1]["content"]
    right = grade(trace, row["tests"], "python", "f", Settings(scoring="all"))
    assert (right.score, right.status) == (1.0, "ok"), right.detail
    wrong = grade(trace.replace("return x", "return x + 1"), row["tests"], "python", "f", Settings(scoring="all"))
    assert (wrong.score, wrong.status) == (0.0, "ok")
