"""Scripts, words, and the labellers by rule, against numbers computed by hand and brute force."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.document import document, label
from pretrain.data.label_schema import MEANINGS
from pretrain.data.labellers.length import length
from pretrain.data.labellers.quality import GOPHER, c4, gopher, quality, repetition, signals, stop_words
from pretrain.data.labellers.safety import terms
from pretrain.data.labellers.source import from_source
from pretrain.data.labellers.stop_words import STOP_WORDS
from pretrain.data.languages import LANGUAGES
from pretrain.data.scripts import script, scripts, spaceless_share, words
from rlplatform.datafiles import DataError

# --- scripts and words ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Hello", "Latn"),
        ("ｆｕｌｌ ｗｉｄｔｈ", "Latn"),
        ("Привет, world", "Cyrl"),
        ("नमस्ते", "Deva"),
        ("สวัสดี", "Thai"),
        ("안녕하세요", "Hang"),
        ("日本語のテキスト", "Jpan"),
        ("ｶﾀｶﾅ", "Jpan"),
        ("国家权利", "Hans"),
        ("國家權利", "Hant"),
        ("中文", "Hani"),  # the same in both
        ("1234 !?", "Zyyy"),
        ("", "Zyyy"),
        ("ᚠᚢᚦ", "Zzzz"),  # runes have no code in the table
        ("ab вг", "Cyrl"),  # a tie goes to the alphabet's first
    ],
)
def test_the_script_of_most_letters(text: str, code: str) -> None:
    assert script(text) == code


def test_letters_by_script() -> None:
    assert scripts("ab в 中") == Counter({"Latn": 2, "Cyrl": 1, "Hani": 1})
    assert spaceless_share("ab в 中") == 0.25
    assert spaceless_share("") == 0.0
    assert scripts("ﾊﾝｶｸ ﾡ コーヒー 人々") == Counter({"Kana": 8, "Hani": 2, "Hang": 1})


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Hello, wide  world!\n", ["Hello,", "wide", "world!"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),  # marks stay with their letters
        ("我们 good好", ["我", "们", "good", "好"]),
        ("ที่นี่", ["ที่", "นี่"]),
        ("", []),
    ],
)
def test_words_are_runs_or_single_characters(text: str, found: list[str]) -> None:
    assert words(text) == found


@settings(deadline=None)
@given(st.text())
def test_words_keep_every_character_but_white_space(text: str) -> None:
    assert "".join(words(text)) == regex.sub(r"\s", "", text)


# --- length, terms, source ------------------------------------------------------------------------------------------


def test_length_of_astral_and_spaceless_text() -> None:
    assert length(["one two", "我们😀", ""]) == [
        {"length.characters": 7, "length.words": 2},
        {"length.characters": 3, "length.words": 3},
        {"length.characters": 0, "length.words": 0},
    ]


def test_explicit_terms_per_thousand_words(tmp_path: Path) -> None:
    assert terms(["Free PORN! here now", "a chicken breast recipe", ""]) == [
        {"safety.terms": 250.0},
        {"safety.terms": 0.0},
        {"safety.terms": None},
    ]
    own = tmp_path / "own.txt"
    own.write_text("# mine\nChicken  # a bird\n")
    assert terms(["a chicken breast recipe"], file=str(own)) == [{"safety.terms": 250.0}]
    for content, said in (("# nothing\n", "it has none"), ("two words\n", "'two words' is more than one word")):
        bad = tmp_path / f"{len(content)}.txt"
        bad.write_text(content)
        with pytest.raises(DataError, match=said):
            terms(["x"], file=str(bad))
    with pytest.raises(DataError, match="expected a list of words"):
        terms(["x"], file=str(tmp_path / "absent.txt"))


def test_source_gives_the_label() -> None:
    rows = [document("wiki", "1", "w:1", "a"), document("shop", "1", "s:1", "b")]
    values = {"wiki": "encyclopedia", "shop": "advertisement"}
    assert from_source(["a", "b"], rows, values=values) == [{"domain": "encyclopedia"}, {"domain": "advertisement"}]
    with pytest.raises(DataError, match="no entry for source 'shop'"):
        from_source(["a", "b"], rows, values={"wiki": "encyclopedia"})


# --- quality --------------------------------------------------------------------------------------------------------

TEXT = """The quick brown fox and the dog.
- a bullet # line ...
The quick brown fox and the dog.

12 34"""


def test_signals_computed_by_hand() -> None:
    found = signals(TEXT)
    assert found["mean_word_length"] == pytest.approx((26 + 1 + 1 + 6 + 1 + 4 + 3 + 26 + 2 + 2) / 22)
    assert found["symbol_ratio"] == 1 / 22  # one #, one ellipsis: the larger of the two
    assert found["bullet_lines"] == found["ellipsis_lines"] == 1 / 4
    assert found["alphabetic_words"] == 17 / 22
    assert found["stop_words"] == 2  # the, and
    assert found["duplicate_lines"] == 1 / 4
    assert found["duplicate_line_characters"] == 32 / (32 + 21 + 32 + 5)
    assert found["duplicate_paragraphs"] == 0.0
    assert found["punctuated_lines"] == 2 / 4
    assert found["short_lines"] == 2 / 4
    assert found["sentences"] == 3
    assert found["unreadable"] == 0.0


def test_repetition_by_hand() -> None:
    found = repetition(["a", "bb", "a", "bb", "a", "bb", "c"])  # 10 characters
    assert found["top_2_gram"] == 9 / 10  # "a bb" three times: words 0 to 5
    assert found["top_3_gram"] == 8 / 10  # twice each: "a bb a" covers words 0 to 4, 7; "bb a bb" words 1 to 5, 8
    assert found["top_4_gram"] == 9 / 10  # "a bb a bb" at 0 and 2
    assert found["duplicate_5_grams"] == 0.0
    line = "one two three four five six"
    again = repetition(f"{line} x {line}".split())
    assert again["duplicate_5_grams"] == again["duplicate_6_grams"] == 22 / 45  # the second time counts
    assert again["duplicate_7_grams"] == 0.0
    assert repetition([]) == dict.fromkeys(found, None)
    assert repetition(["a"]) == dict.fromkeys(found, 0.0)


def brute(tokens: list[str], n: int) -> tuple[float, float]:
    """(top, duplicate) share: every n-gram compared with every other."""
    grams = [tuple(tokens[k : k + n]) for k in range(len(tokens) - n + 1)]
    total = sum(map(len, tokens))

    def share(starts: list[int]) -> float:
        inside = [any(start <= k < start + n for start in starts) for k in range(len(tokens))]
        return sum(len(t) for t, covered in zip(tokens, inside, strict=True) if covered) / total

    most = max((grams.count(g) for g in grams), default=0)
    tops = [share([k for k, h in enumerate(grams) if h == g]) for g in set(grams) if grams.count(g) == most]
    later = share([k for k, g in enumerate(grams) if g in grams[:k]])
    return (max(tops) if most > 1 else 0.0), later


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a", "bb", "ccc"]), min_size=1, max_size=30))
def test_repetition_equals_brute_force(tokens: list[str]) -> None:
    found = repetition(tokens)
    for n in range(2, 11):
        top, later = brute(tokens, n)
        if n <= 4:
            assert found[f"top_{n}_gram"] == pytest.approx(top)
        else:
            assert found[f"duplicate_{n}_grams"] == pytest.approx(later)


@settings(deadline=None)
@given(st.text(max_size=300))
def test_every_share_of_any_text_is_a_share(text: str) -> None:
    for name, value in signals(text).items():
        if value is not None and name not in ("mean_word_length", "symbol_ratio", "stop_words", "sentences"):
            assert 0.0 <= value <= 1.0, name


def good(**changes: float | None) -> dict[str, Any]:
    return {**{name: low if low else 0.0 for name, low, _ in GOPHER}, **changes}


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("length.words", 50, 49),
        ("length.words", 100_000, 100_001),
        ("mean_word_length", 3, 2.99),
        ("mean_word_length", 10, 10.01),
        ("symbol_ratio", 0.1, 0.11),
        ("bullet_lines", 0.9, 0.91),
        ("ellipsis_lines", 0.3, 0.31),
        ("alphabetic_words", 0.8, 0.79),
        ("stop_words", 2, 1),
        ("duplicate_lines", 0.3, 0.31),
        ("duplicate_paragraphs", 0.3, 0.31),
        ("duplicate_line_characters", 0.2, 0.21),
        ("duplicate_paragraph_characters", 0.2, 0.21),
        ("top_2_gram", 0.2, 0.21),
        ("top_3_gram", 0.18, 0.19),
        ("top_4_gram", 0.16, 0.17),
        ("duplicate_5_grams", 0.15, 0.16),
        ("duplicate_10_grams", 0.1, 0.11),
    ],
)
def test_gophers_bounds_are_the_papers(name: str, inside: float, outside: float) -> None:
    assert gopher(good(**{name: inside})) == "pass"
    assert gopher(good(**{name: outside})) == name
    assert gopher(good(**{name: None})) == "pass"  # what does not apply breaks no rule


def test_c4() -> None:
    line = "This sentence has more than five words. "
    assert c4("\n".join([line] * 3)) == "pass"
    assert c4("\n".join([line] * 2)) == "few_sentences"
    assert c4("\n".join([line] * 2 + ["Too short."])) == "few_sentences"
    assert c4("\n".join([line] * 2 + ["This line has no punctuation at the end"])) == "few_sentences"
    assert c4("\n".join([line] * 2 + ["Please enable Javascript to see this page."])) == "few_sentences"
    assert c4("\n".join([line] * 3) + "\nLorem ipsum dolor") == "lorem_ipsum"
    assert c4("\n".join([line] * 3) + "\nx = {}") == "curly_bracket"
    assert c4("他们赋有理性和良心。" * 3) == "pass"


def test_stop_words_follow_the_language_label() -> None:
    text = "der Hund und die Katze sind nicht in dem Haus"
    row = document("s", "1", "s:1", text)
    german = {**row, "labels": [label("language", "deu_Latn", "language@1", 1.0)]}
    unknown = {**row, "labels": [label("language", "unknown", "language@1", 0.0)]}
    found = [answer["quality.stop_words"] for answer in quality([text] * 3, [row, german, unknown])]
    assert found == [0, 5, None]
    assert stop_words(["“The", "and,", "THE"], "eng") == 2
    assert set(STOP_WORDS) <= {one.iso for one in LANGUAGES}
    assert STOP_WORDS["eng"] == {"the", "be", "to", "of", "and", "that", "have", "with"}


def test_every_signal_is_in_the_schema() -> None:
    [answer] = quality(["x"], [document("s", "1", "s:1", "x")])
    assert set(answer) <= set(MEANINGS)
    assert {name for name in MEANINGS if name.startswith("quality.")} == set(answer)
