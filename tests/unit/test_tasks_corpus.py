"""The generated corpus of pretraining in miniature, and the texts in which a planted password is looked for."""

from __future__ import annotations

import re

import pytest

from rlplatform.tasks.corpus import QUESTION, documents, needles

SIZES = {"num_sums": 20, "num_stories": 20, "num_facts": 20, "num_recalls": 20, "num_long": 20, "num_heldout": 5}
PASSWORD = re.compile(rf"{QUESTION} (\w+(?: \w+){{5}})\.")


def words(text: str) -> int:
    return len(text.split())


def test_equal_arguments_give_equal_rows_and_no_text_is_in_two_splits() -> None:
    made = documents(0, **SIZES)
    assert made == documents(0, **SIZES) != documents(1, **SIZES)
    assert {name: len(rows) for name, rows in made.items()} == {
        **dict.fromkeys(("sums", "stories", "facts", "recalls", "long"), 20),
        **{f"heldout_{name}": 5 for name in ("sums", "stories", "facts", "recalls")},
    }
    texts = [row["text"] for rows in made.values() for row in rows]
    assert len(set(texts)) == len(texts)
    with pytest.raises(ValueError, match="expected sizes >= 1"):
        documents(0, num_recalls=0)


def test_one_split_does_not_depend_on_the_size_of_another() -> None:
    assert documents(0, **SIZES)["stories"] == documents(0, **{**SIZES, "num_recalls": 7})["stories"]


def test_sums_are_right() -> None:
    for row in documents(0, **SIZES)["sums"]:
        for line in row["text"].splitlines():
            asked, _, said = line.partition(" = ")
            assert re.fullmatch(r"\d+ [+-] \d+", asked)
            assert eval(asked) == int(said)


def test_what_is_planted_is_said_again() -> None:
    made = documents(0, **SIZES)
    for name, times in (("recalls", 3), ("long", 2)):
        for row in made[name]:
            found = PASSWORD.findall(row["text"])
            assert len(found) == times
            assert len(set(found)) == 1
            assert row["text"].endswith(f"{found[0]}.")


def test_a_needle_stands_once_in_a_text_that_ends_with_the_question() -> None:
    made = list(needles(0, 10, 300, words))
    assert made == list(needles(0, 10, 300, words))
    for place, needle in enumerate(made):
        assert 280 < words(needle.text) <= 300
        assert needle.text.endswith(f" {QUESTION}")
        assert PASSWORD.findall(needle.text) == [needle.answer]
        assert place / 10 <= needle.depth < (place + 1) / 10
        before = words(needle.text[: needle.text.index(needle.answer)])
        assert abs(before / 300 - needle.depth) < 0.1
    with pytest.raises(ValueError, match="expected max_tokens >= 12, got 5"):
        next(needles(0, 1, 5, words))
