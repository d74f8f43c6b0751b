"""Words, n-grams and keys: compared with tuples of strings and with sets."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.words import exact_key, fold, gram_hashes, jaccard, shingles, words


def spans(text: str) -> list[str]:
    found = words(text)
    return [text[a:b] for a, b in zip(found.starts, found.ends, strict=True)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't stop, 3.5 km/h!", ["Don", "t", "stop", "3", "5", "km", "h"]),
        ("世界 is 大", ["世", "界", "is", "大"]),
        ("カタカナとabc", ["カ", "タ", "カ", "ナ", "と", "abc"]),
        ("हिन्दी में", ["हिन्दी", "में"]),  # vowel signs and virama belong to their word
        ("cafe\u0301 latte", ["cafe\u0301", "latte"]),  # an accent written apart
        ("snake_case __x__", ["snake", "case", "x"]),
        ("한국어 말", ["한국어", "말"]),  # Korean has spaces
        ("", []),
        ("... --- !!!", []),
    ],
)
def test_words_are_found_where_they_stand(text: str, expected: list[str]) -> None:
    assert spans(text) == expected


def test_thai_lao_khmer_and_burmese_are_split_into_characters() -> None:
    for text in ("สวัสดี", "ສະບາຍດີ", "សួស្តី", "မင်္ဂလာပါ"):
        assert spans(text) == list(text)


def test_words_are_compared_folded() -> None:
    same = ["STRASSE", "strasse", "straße", "Straße", "ｓｔｒａｓｓｅ"]
    assert len({int(words(text).hashes[0]) for text in same}) == 1
    assert fold("ﬁne") == "fine"
    assert words("Cafe\u0301").hashes[0] == words("CAFÉ").hashes[0]
    assert words("cafe").hashes[0] != words("café").hashes[0]


def test_characters_that_nobody_sees_are_not_compared() -> None:
    hidden = "con\u00adtam\u00adi\u200bna\u2060tion \u200b世\u200b界\ufeff"
    assert spans(hidden) == ["con\u00adtam\u00adi\u200bna\u2060tion", "世", "界"]
    assert words(hidden).hashes.tolist() == words("Contamination 世界").hashes.tolist()
    assert words("می\u200cخواهم").hashes.tolist() == words("میخواهم").hashes.tolist()
    assert exact_key("co\u00adoperate") == exact_key("cooperate") != exact_key("co-operate")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "c", "dd", "ee"]), max_size=30), st.integers(1, 6))
def test_gram_hashes_are_equal_exactly_where_the_grams_are(tokens: list[str], n: int) -> None:
    hashes = gram_hashes(words(" ".join(tokens)).hashes, n)
    grams = [tuple(tokens[k : k + n]) for k in range(len(tokens) - n + 1)]
    assert len(hashes) == len(grams)
    for a, first in zip(hashes, grams, strict=True):
        for b, second in zip(hashes, grams, strict=True):
            assert (a == b) == (first == second)


def test_the_order_of_words_counts() -> None:
    one, other = (gram_hashes(words(text).hashes, 3) for text in ("red green blue", "blue green red"))
    assert one[0] != other[0]
    with pytest.raises(ValueError, match="at least 1 word"):
        gram_hashes(words("a b").hashes, 0)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from("abcdefgh"), max_size=25),
    st.lists(st.sampled_from("abcdefgh"), max_size=25),
    st.integers(1, 5),
)
def test_jaccard_is_that_of_sets_of_tuples(a: list[str], b: list[str], n: int) -> None:
    def grams(tokens: list[str]) -> set[tuple[str, ...]]:
        size = min(n, len(tokens))
        return {tuple(tokens[k : k + size]) for k in range(len(tokens) - size + 1)} if tokens else set()

    first, second = grams(a), grams(b)
    expected = len(first & second) / len(first | second) if first | second else 0.0
    assert jaccard(shingles(" ".join(a), n), shingles(" ".join(b), n)) == pytest.approx(expected)


def test_shingles_are_sorted_and_unique() -> None:
    found = shingles("the cat and the cat and the cat", 2)
    assert found.dtype == np.uint64
    assert len(found) == 3  # the cat, cat and, and the
    assert np.all(found[:-1] < found[1:])
    assert len(shingles("only two", 5)) == 1
    assert len(shingles("?!", 5)) == 0


def test_the_exact_key_ignores_case_white_space_and_compatibility_forms_alone() -> None:
    assert exact_key("  Hello\n\tWORLD ") == exact_key("hello world")
    assert exact_key("ﬁne") == exact_key("FINE")
    assert exact_key(unicodedata.normalize("NFD", "é")) == exact_key("é")
    assert len({exact_key(text) for text in ("7 + 2", "7 - 2", "7+2", "72", "7 2")}) == 5
    assert len(exact_key("")) == 16
