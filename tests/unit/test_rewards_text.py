"""`exact`, `multiple_choice`, `f1` and `rouge_l` against tables and slow references."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.base import OK, UNPARSEABLE
from rewards.text import (
    exact_reward,
    f1,
    f1_reward,
    lcs_length,
    multiple_choice_reward,
    rouge_l,
    rouge_l_reward,
    tokens,
)

# (reference, completion, prompt opened a block, score)
EXACT = [
    ("Paris", "Paris", False, 1),
    ("Paris", "  Paris\n", False, 1),
    ("New York", "New  York", False, 1),
    ("Paris", "<think>London</think>\nParis", False, 1),
    ("Paris", "hm</think>Paris", True, 1),
    ("Paris", r"It is \boxed{Paris}", False, 1),
    ("Paris", r"\boxed{\text{Paris}}", False, 1),
    ("café", "cafe\u0301", False, 1),
    (["Paris", "Paname"], "Paname", False, 1),
    (42, "42", False, 1),
    ("Paris", "paris", False, 0),
    ("Paris", "Paris.", False, 0),
    ("Paris", "Paris, France", False, 0),
    ("Paris", "The answer is Paris", False, 0),
    ("Paris", "Paris Paris", False, 0),
    ("Paris", "London", False, 0),
    ("Paris", "", False, 0),
    ("Paris", "<think>Paris", False, 0),
    ("Paris", "<think>Paris</think>", False, 0),
    ("Paris", "<think>Paris</think>London", False, 0),
    ("Paris", "Paris", True, 0),
    ("Paris", r"\boxed{London} Paris", False, 0),
    ("Paris", "P a r i s", False, 0),
    ("Paris", "Рaris", False, 0),  # a Cyrillic letter
    (42, "42.0", False, 0),
    (["a", "b"], "a b", False, 0),
]


@pytest.mark.parametrize(("answer", "completion", "opened", "score"), EXACT)
def test_exact(answer, completion, opened, score):
    [verdict] = exact_reward(["x<think>" if opened else "x"], [completion], [answer])
    assert (verdict.status, verdict.score) == (OK, score)


@pytest.mark.parametrize("reward", [exact_reward, f1_reward, rouge_l_reward])
@pytest.mark.parametrize("answer", [None, "", "  ", [], [""], ["a", None], {"a": 1}, True, 3j, b"a"])
def test_references_that_cannot_be_read(reward, answer):
    for completion in ("a", "", "<think>"):
        [verdict] = reward(["x"], [completion], [answer])
        assert (verdict.status, verdict.score) == (UNPARSEABLE, 0.0)
        assert "cannot be read" in verdict.detail


# (reference, completion, F1, ROUGE-L), by hand: 2 common / (words of both)
OVERLAP = [
    ("the cat sat", "cat sat", 1.0, 4 / 5),
    ("the cat sat", "The cat sat.", 1.0, 1.0),
    ("the cat sat", "sat cat", 1.0, 2 / 5),
    ("the cat sat", "a dog", 0.0, 0.0),
    ("police killed the gunman", "police kill the gunman", 4 / 6, 6 / 8),
    ("police killed the gunman", "the gunman kill police", 4 / 6, 4 / 8),
    ("cat", "cat cat cat cat", 2 / 5, 2 / 5),
    ("cat cat", "cat", 2 / 3, 2 / 3),
    ("the", "the", 1.0, 1.0),
    ("an apple", "apple", 1.0, 2 / 3),
    ("3.5 apples", "3,5 apples", 1.0, 1.0),
    ("don't", "don't", 1.0, 1.0),
    ("don't", "don", 0.0, 0.0),
    ("北京市", "北京", 4 / 5, 4 / 5),
    ("北京市", "市北京", 1.0, 4 / 6),
    ("Straße", "STRASSE", 1.0, 1.0),
    ("ﬁne", "fine", 1.0, 1.0),
    ("cat", "", 0.0, 0.0),
    ("cat", "!!!", 0.0, 0.0),
    ("cat", "<think>cat</think>dog", 0.0, 0.0),
    ("cat", "<think>cat", 0.0, 0.0),
    ("cat", "<think>dog</think>cat", 1.0, 1.0),
    ("cat", r"the dog or \boxed{cat}", 1.0, 1.0),
    (["dog", "black cat"], "black cat", 1.0, 1.0),
    (["dog", "black cat"], "cat", 2 / 3, 2 / 3),
]


@pytest.mark.parametrize(("answer", "completion", "by_f1", "by_rouge"), OVERLAP)
def test_overlap(answer, completion, by_f1, by_rouge):
    for reward, score in ((f1_reward, by_f1), (rouge_l_reward, by_rouge)):
        [verdict] = reward(["x"], [completion], [answer])
        assert verdict.status == OK
        assert verdict.score == pytest.approx(score)


def slow_lcs(a, b):
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@given(st.lists(st.sampled_from("abc"), max_size=30), st.lists(st.sampled_from("abc"), max_size=30))
@settings(max_examples=200)
def test_longest_common_subsequence(a, b):
    assert lcs_length(a, b) == slow_lcs(a, b)


@given(st.text(max_size=40), st.text(max_size=40))
def test_overlaps_are_symmetric_and_bounded(a, b):
    for measure in (f1, rouge_l):
        assert 0.0 <= measure(a, b) <= 1.0
        assert measure(a, b) == measure(b, a)
        assert measure(a, a) == float(bool(tokens(a)))


# (reference, completion, score)
CHOICES = [
    ("B", "B", 1),
    ("(B)", "B", 1),
    ("B.", "(B)", 1),
    ("B", "B.", 1),
    ("B", "**B**", 1),
    ("B", "B) seven", 1),
    ("B", "(B) seven", 1),
    ("B", "B. Seven apples", 1),
    ("B", "The answer is B", 1),
    ("B", "The answer is (B).", 1),
    ("B", "The answer is **B**.", 1),
    ("B", "Answer: B", 1),
    ("B", "ANSWER: B", 1),
    ("B", "A is wrong, so the answer is B.", 1),
    ("B", "The answer is A. No, wait: the answer is B.", 1),
    ("B", "The correct option is B because 7 is odd", 1),
    ("B", r"So \boxed{B}", 1),
    ("B", r"\boxed{\text{(B)}}", 1),
    ("B", r"\boxed{A} no, \boxed{B}", 1),
    ("B", "<think>A, the answer is A</think>B", 1),
    ("A", "B", 0),
    ("A", "A or B", 0),
    ("A", "A and B", 0),
    ("A", "A, B", 0),
    ("A", "A/B", 0),
    ("A", "(A) or (B)", 0),
    ("A", "The answer is A or B.", 0),
    ("A", r"\boxed{A, B}", 0),
    ("A", r"\boxed{A} \boxed{B}", 0),
    ("A", "A. one\nB. two\nC. three", 0),
    ("A", "A cat sat on the mat", 0),
    ("A", "The answer is A cat", 0),
    ("A", "ABCD", 0),
    ("A", "a", 0),
    ("A", "The answer is not A.", 0),
    ("A", "<think>The answer is A</think>", 0),
    ("A", "<think>The answer is A", 0),
    ("A", "<think>The answer is A</think>The answer is B", 0),
    ("A", "", 0),
    ("I", "I think so", 0),
]


@pytest.mark.parametrize(("answer", "completion", "score"), CHOICES)
def test_multiple_choice(answer, completion, score):
    [verdict] = multiple_choice_reward(["x"], [completion], [answer])
    assert (verdict.status, verdict.score) == (OK, score)


@pytest.mark.parametrize("answer", [None, "", "b", "AB", "1", 1, ["B"], "A or B"])
def test_letters_that_cannot_be_read(answer):
    [verdict] = multiple_choice_reward(["x"], ["B"], [answer])
    assert verdict.status == UNPARSEABLE


def test_a_reference_beyond_the_choices():
    verdicts = multiple_choice_reward(["x"] * 3, ["C"] * 3, ["C"] * 3, choices=[["a", "b"], ["a", "b", "c"], None])
    assert [verdict.status for verdict in verdicts] == [UNPARSEABLE, OK, OK]
