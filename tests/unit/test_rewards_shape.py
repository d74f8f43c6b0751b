"""`length` and `repetition`, with numbers computed by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.base import OK, UNPARSEABLE, RewardLoadError, Verdict
from rewards.composition import compose, read_parts
from rewards.runner import RewardPool
from rewards.shape import group_length_reward, length_reward, length_score, new_share, repetition_reward

# (words, target, score): too long 1 - (x/l - 1)/3, too short 1 - (l/x - 1)/2
LENGTHS = [
    (100, 100, 1),
    (200, 100, 2 / 3),
    (250, 100, 1 / 2),
    (400, 100, 0),
    (1000, 100, 0),
    (50, 100, 1 / 2),
    (80, 100, 0.875),
    (30, 100, 0),
    (0, 100, 0),
    (0, [1, 5], 0),
    (100, [100, 200], 1),
    (150, [100, 200], 1),
    (200, [100, 200], 1),
    (400, [100, 200], 2 / 3),
    (50, [100, 200], 1 / 2),
    (1, 1, 1),
    (2, 1, 2 / 3),
    (3, 2.5, 1 - 0.2 / 3),
]


@pytest.mark.parametrize(("words", "target", "score"), LENGTHS)
def test_length(words, target, score):
    [verdict] = length_reward(["x"], ["word " * words], [target])
    assert verdict.status == OK
    assert verdict.score == pytest.approx(score)


# (completion, unit, length)
COUNTED = [
    ("one two three", "words", 3),
    ("one, two - three!", "words", 3),
    ("don't stop", "words", 2),
    ("今天天气好", "words", 5),
    ("今天 is good", "words", 4),
    ("<think>a b c d</think>one two", "words", 2),
    ("!!! ???", "words", 0),
    ("ab cd\n", "characters", 4),
    ("<think>abc</think>ab", "characters", 2),
    ("今天", "characters", 2),
    ("one two", None, 2),
    ("<think>one two", "words", 0),
    ("one two three", "tokens", 5),
    ("", "tokens", 5),
]


@pytest.mark.parametrize(("completion", "unit", "length"), COUNTED)
def test_what_is_counted(completion, unit, length):
    [verdict] = length_reward(["x"], [completion], [max(length, 1)], [unit], completion_ids=[[1, 2, 3, 4, 5]])
    assert verdict.detail.startswith(f"{length} ")
    assert verdict.score == float(length > 0)


@pytest.mark.parametrize(
    "target", [None, 0, -5, "100", True, [], [5], [5, 1], [0, 5], [1, 2, 3], float("nan"), float("inf"), {"low": 1}]
)
def test_targets_that_cannot_be_read(target):
    [verdict] = length_reward(["x"], ["one"], [target])
    assert verdict.status == UNPARSEABLE


def test_units():
    [verdict] = length_reward(["x"], ["one"], [1], ["pages"])
    assert verdict.status == UNPARSEABLE
    assert "words, characters, tokens" in verdict.detail
    with pytest.raises(ValueError, match="needs completion_ids"):
        length_reward(["x"], ["one"], [1], ["tokens"])


@given(st.integers(0, 10**6), st.integers(1, 10**6))
def test_the_target_is_the_best_length(length, target):
    assert 0.0 <= length_score(length, target, target) <= 1.0
    assert (length_score(length, target, target) == 1.0) == (length == target)


# (completion, share of new four-grams)
REPETITION = [
    ("", 1),
    ("a b c", 1),
    ("a b c d", 1),
    ("a b c d e f", 1),
    ("a a a a a", 1 / 2),  # two four-grams, one kind
    ("a a a a a a a a", 1 / 5),
    ("a b c d a b c d", 4 / 5),  # abcd bcda cdab dabc abcd
    ("a b c d. A B C D!", 4 / 5),
    ("我我我我我", 1 / 2),
    ("<think>a b c d</think>", 1),
    ("a b " * 50, 2 / 97),
    ("ha" * 50, 2 / 97),
    ("!" * 100, 1 / 97),
    ("!!! " * 100, 1 / 97),
    ("今天天气很好", 1),
]


@pytest.mark.parametrize(("completion", "share"), REPETITION)
def test_repetition(completion, share):
    [verdict] = repetition_reward(completions=[completion])
    assert verdict.status == OK
    assert verdict.score == pytest.approx(share)


def test_thoughts_repeat_too():
    loop = "wait let me check " * 50
    assert new_share(f"<think>{loop}</think>The answer is seven.") < 0.1


@given(st.text(max_size=200))
def test_repetition_is_a_share(text):
    assert 0.0 < new_share(text) <= 1.0
    assert new_share(text + " x y z " * 100) < 0.5


# 0.5 - (length - min) / (max - min)
GROUP_LENGTHS = [
    ([10, 20, 30], [0.5, 0.0, -0.5]),
    ([10, 15, 30], [0.5, 0.25, -0.5]),
    ([1000, 0], [-0.5, 0.5]),  # an empty completion is the shortest: gate it with correctness
    ([7, 7, 7], [0, 0, 0]),
    ([7], [0]),
    ([0, 0], [0, 0]),
    ([5, 5, 6], [0.5, 0.5, -0.5]),
    ([1, 1, 1, 100_000], [0.5, 0.5, 0.5, -0.5]),  # one runaway decides what is short
]


@pytest.mark.parametrize(("lengths", "expected"), GROUP_LENGTHS)
def test_group_length(lengths, expected):
    by_tokens = group_length_reward(["x"] * len(lengths), [[0] * n for n in lengths])
    assert [v.score for v in by_tokens] == pytest.approx(expected)
    by_words = group_length_reward(["word " * n for n in lengths], unit="words")
    by_characters = group_length_reward([" y\n" * n for n in lengths], unit="characters")
    assert [v.score for v in by_words] == [v.score for v in by_characters] == [v.score for v in by_tokens]


@given(st.lists(st.integers(0, 500), min_size=1, max_size=16), st.data())
def test_kimis_length_reward_is_a_composition(lengths, data):
    """Of right answers 0.5 - (length - min) / (max - min), of wrong ones at most 0 (arXiv 2501.12599)."""
    right = data.draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)))
    parts = read_parts(
        {
            "math": 0.0,
            "too_long": {"function": "group_length", "clip": [-0.5, 0]},
            "short": {"function": "group_length", "clip": [0, 0.5], "needs": "math"},
        }
    )
    said = group_length_reward(["x"] * len(lengths), [[0] * n for n in lengths])
    for length, is_right, verdict in zip(lengths, right, said, strict=True):
        whole = compose({"math": Verdict(float(is_right)), "too_long": verdict, "short": verdict}, parts)
        spread = max(lengths) - min(lengths)
        score = 0.5 - (length - min(lengths)) / spread if spread else 0.0
        assert whole.score == pytest.approx(score if is_right else min(0.0, score))


def test_group_length_in_a_pool():
    with RewardPool({"group_length": {"args": {"unit": "words"}}}) as pool:
        found = pool.score(["p"] * 4, ["a b", "a", "a b c", "a b c d"], groups=[0, 1, 0, 1])
        assert [v.score for v in found] == [0.5, 0.5, -0.5, -0.5]
        with pytest.raises(RewardLoadError, match="compares the completions of one prompt"):
            pool.score(["p"], ["a"])
    with pytest.raises(ValueError, match="needs completion_ids"):
        group_length_reward(["a"])
    with pytest.raises(ValueError, match="unit: expected one of"):
        group_length_reward(["a"], unit="bytes")
