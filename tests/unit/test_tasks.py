from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlplatform.tasks import gsm8k, largest


def test_largest_splits_are_disjoint_and_right() -> None:
    splits = largest.problems(3, num_sft=20, num_train=30, num_test=25)
    assert [len(splits[name]) for name in ("sft", "train", "test")] == [20, 30, 25]
    seen = [
        frozenset(row["prompt"].partition(": ")[2].strip("?").split(", ")) for rows in splits.values() for row in rows
    ]
    assert len(seen) == len(set(seen))
    for rows in splits.values():
        for row in rows:
            numbers = [int(n) for n in row["prompt"].partition(": ")[2].strip("?").split(", ")]
            assert row["answer"] == str(max(numbers))
            assert row["messages"][1]["content"].endswith(f"\\boxed{{{max(numbers)}}}")
    assert largest.problems(3, num_sft=20, num_train=30, num_test=25) == splits


def test_largest_trace_by_hand() -> None:
    row = largest.make_row((412, 98, 733, 560), row_id="r")
    assert row["messages"][1]["content"] == "<think>\n733 is more than 412, 98 and 560.\n</think>\n\n\\boxed{733}"
    with pytest.raises(ValueError, match="expected count >= 2"):
        largest.problems(0, count=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, count in (("train", 8), ("test", 3)):
        rows = [
            {"question": f"{split} {i}?", "answer": f"It is 1,00{i}<<1000+{i}=100{i}>> in all.\n#### 1,00{i}"}
            for i in range(count)
        ]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_gsm8k_rows_hold_the_rationale_without_annotations(folder: Path) -> None:
    splits = gsm8k.think_format(0, path=str(folder), num_sft=3, num_train=5, num_test=2)
    questions = [row["prompt"] for rows in splits.values() for row in rows]
    assert len(questions) == len(set(questions)) == 10
    row = splits["sft"][0]
    assert row["answer"].startswith("100")
    assert row["messages"][1]["content"] == (
        f"<think>\nIt is 1,00{row['answer'][-1]} in all.\n</think>\n\n\\boxed{{{row['answer']}}}"
    )
    assert {row["prompt"].split()[0] for row in splits["test"]} == {"test"}


def test_gsm8k_says_when_it_has_too_few(folder: Path) -> None:
    with pytest.raises(ValueError, match="expected 9 questions for split train"):
        gsm8k.think_format(0, path=str(folder), num_sft=3, num_train=9, num_test=2)
