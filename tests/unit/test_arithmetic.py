"""The demo's task: traces checked by hand and by arithmetic, splits that share no problem."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlplatform.tasks.arithmetic import make_row, num_problems, problems, shuffle_answers, worked_answer


def key(row: dict) -> tuple[str, int, int]:
    a, operation, b = re.fullmatch(r"What is (\d+) ([+-]) (\d+)\?", row["prompt"]).groups()
    return operation, max(int(a), int(b)), min(int(a), int(b))


def test_addition_trace_by_hand() -> None:
    expected = "<think>\n7+5=12 carry 1\n4+8+1=13 carry 1\n3+2+1=6\n</think>\n\n\\boxed{632}"
    assert worked_answer(347, 285, "+") == expected


def test_addition_whose_last_column_overflows_by_hand() -> None:
    assert worked_answer(95, 17, "+") == "<think>\n5+7=12 carry 1\n9+1+1=11\n</think>\n\n\\boxed{112}"


def test_subtraction_trace_by_hand() -> None:
    # units 2-7 borrow: 12-7=5; tens 0-4-1 borrow: 10-4-1=5; hundreds 5-1-1=3
    expected = "<think>\n12-7=5 borrow 1\n10-4-1=5 borrow 1\n5-1-1=3\n</think>\n\n\\boxed{355}"
    assert worked_answer(502, 147, "-") == expected


def test_a_negative_difference_is_refused() -> None:
    with pytest.raises(ValueError, match="not negative"):
        worked_answer(3, 5, "-")


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.sampled_from("+-"))
def test_every_line_of_a_trace_is_true_and_spells_the_answer(a: int, b: int, operation: str) -> None:
    a, b = max(a, b), min(a, b)
    text = worked_answer(a, b, operation)
    thought, boxed = re.fullmatch(r"<think>\n(.+)\n</think>\n\n\\boxed\{(\d+)\}", text, re.DOTALL).groups()
    assert int(boxed) == (a + b if operation == "+" else a - b)
    written = ""
    for line in thought.split("\n"):
        left, right, _ = re.fullmatch(r"([\d+-]+)=(\d+)( carry 1| borrow 1)?", line).groups()
        assert eval(left) == int(right)
        written = right[-1] + written
    written = right[:-1] + written  # the last column may have two digits
    assert int(written) == int(boxed)


def test_splits_share_no_problem_not_even_mirrored() -> None:
    splits = problems(3, num_sft=2000, num_train=2000, num_test=300, digits={2: 0.7, 3: 0.3}, operations="+-")
    assert {name: len(rows) for name, rows in splits.items()} == {"sft": 2000, "train": 2000, "test": 300}
    keys = [key(row) for rows in splits.values() for row in rows]
    assert len(set(keys)) == 4300
    ids = [row["id"] for rows in splits.values() for row in rows]
    assert len(set(ids)) == 4300


def test_equal_seeds_give_equal_rows_and_held_out_problems_do_not_depend_on_the_other_splits() -> None:
    first, again = (problems(1, num_sft=50, num_train=50, num_test=50) for _ in range(2))
    assert first == again
    assert problems(2, num_sft=50, num_train=50, num_test=50)["test"] != first["test"]
    assert problems(1, num_sft=500, num_train=0, num_test=50)["test"] == first["test"]


def test_shares_of_digits_are_met() -> None:
    rows = problems(0, num_sft=0, num_train=4000, num_test=0, digits={"2": 1, "4": 3})["train"]
    counts = Counter(row["digits"] for row in rows)
    assert abs(counts[4] / 4000 - 0.75) < 0.03  # more than 4 standard deviations
    assert set(counts) == {2, 4}


def test_answer_and_messages_agree_with_the_prompt() -> None:
    row = make_row(12, 30, "+", row_id="x-1")
    assert row["answer"] == "42"
    assert row["messages"][0] == {"role": "user", "content": row["prompt"]}
    assert row["messages"][1]["content"].endswith("\\boxed{42}")


def test_number_of_problems_by_hand() -> None:
    assert num_problems(1, "+") == 45  # unordered pairs of 1..9 with repetition: 9 * 10 / 2
    assert len(problems(0, num_sft=20, num_train=20, num_test=5, digits={1: 1})["sft"]) == 20


def test_more_problems_than_exist_are_refused_with_the_arithmetic() -> None:
    with pytest.raises(ValueError, match="45 different problems with 1 digits"):
        problems(0, num_sft=30, num_train=10, num_test=6, digits={1: 1})


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"digits": {0: 1}}, "digits"), ({"digits": {2: 0}}, "digits"), ({"operations": "*"}, "operations")],
)
def test_wrong_arguments_are_named(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        problems(0, **kwargs)


@pytest.mark.parametrize("seed", range(5))
def test_shuffled_answers_are_the_same_answers_and_none_stays(seed: int) -> None:
    rows = problems(seed, num_sft=0, num_train=300, num_test=0, digits={1: 0.05, 2: 0.95})[
        "train"
    ]  # many equal answers
    shuffled = shuffle_answers(rows, seed)
    assert Counter(row["answer"] for row in shuffled) == Counter(row["answer"] for row in rows)
    assert all(new["answer"] != old["answer"] for new, old in zip(shuffled, rows, strict=True))
    assert all(
        new["prompt"] == old["prompt"] and "messages" not in new for new, old in zip(shuffled, rows, strict=True)
    )
    assert shuffle_answers(rows, seed) == shuffled


def test_answers_that_cannot_be_shuffled_are_refused() -> None:
    row = make_row(1, 2, "+", row_id="a")
    with pytest.raises(ValueError, match="two different answers"):
        shuffle_answers([row, row], 0)
    other = make_row(1, 3, "+", row_id="b")
    with pytest.raises(ValueError, match="too frequent"):
        shuffle_answers([row, row, other], 0)
