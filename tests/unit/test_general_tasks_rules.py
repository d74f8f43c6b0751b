"""The suite's own reward functions, and the language-consistency reward on its six languages."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from rewards.base import OK, UNPARSEABLE
from rewards.language import language_reward
from rlplatform.tasks.general import TASKS
from rlplatform.tasks.general.languages import LANGUAGES, PHRASES
from rlplatform.tasks.general.rules import checklist_reward, items_reward, list_items


def checked(text: str, *points: dict[str, Any], **settings: Any) -> float:
    (verdict,) = checklist_reward([""], [text], [list(points)], **settings)
    assert verdict.status == OK
    return verdict.score


@pytest.mark.parametrize(
    ("text", "point", "met"),
    [
        ("Could you PLEASE come?", {"says": ["please", "kindly"]}, True),
        ("a pleasing thing", {"says": ["please"]}, False),
        ("I can’t help", {"says": ["can't help"]}, True),
        ("go now", {"avoids": ["now"]}, False),
        ("I know", {"avoids": ["now"]}, True),
        ("first the cat, then the dog", {"order": ["cat", "dog"]}, True),
        ("first the dog, then the cat", {"order": ["cat", "dog"]}, False),
        ("only the cat", {"order": ["cat", "dog"]}, False),
        ("the category dog", {"order": ["cat", "dog"]}, False),
        ("Dear Anna, hello", {"starts": ["dear"]}, True),
        ("Oh dear", {"starts": ["dear"]}, False),
        ("It ends. Goodbye.", {"ends": ["Goodbye."]}, True),
        ("one two three", {"max_words": 3}, True),
        ("one two three four", {"max_words": 3}, False),
        ("one two", {"min_words": 3}, False),
        ("<think>\nplease\n</think>\n\ncome", {"says": ["please"]}, False),
        ("<think>\nnow\n</think>\n\nplease come", {"avoids": ["now"]}, True),
        ("<think>\nplease come", {"max_words": 9}, False),  # an open block has no answer
        ("...", {"avoids": ["now"]}, False),  # no words, no merit
        ("please<|im_end|>", {"ends": ["please"]}, True),
    ],
)
def test_one_point(text: str, point: dict[str, Any], met: bool) -> None:
    assert checked(text, point) == float(met)


def test_points_are_shared_out_or_needed_all() -> None:
    points = [{"says": ["a"]}, {"says": ["b"]}, {"avoids": ["c"]}, {"max_words": 2}]
    assert checked("a c", *points) == 0.5
    assert checked("a c", *points, scoring="all") == 0.0
    assert checked("a b", *points, scoring="all") == 1.0
    assert checked("a b", {"says": ["a"], "max_words": None}) == 1.0  # as a table of structs reads back
    (verdict,) = checklist_reward([""], ["a c"], [points])
    assert verdict.parts == {"says": 0.5, "avoids": 0.0, "max_words": 1.0}
    assert "says ['b']" in verdict.detail
    assert "avoids ['c']" in verdict.detail
    with pytest.raises(ValueError, match="expected one of share, all"):
        checklist_reward([""], ["a"], [points], scoring="most")


@pytest.mark.parametrize(
    "points",
    [
        None,
        [],
        "says",
        [{}],
        [["says"]],
        [{"say": ["a"]}],
        [{"says": []}],
        [{"says": "a"}],
        [{"max_words": 0}],
        [{"max_words": True}],
        [{"says": ["a"], "avoids": ["b"]}],
    ],
)
def test_points_that_cannot_be_read_say_so(points: Any) -> None:
    (verdict,) = checklist_reward([""], ["a"], [points])
    assert verdict.status == UNPARSEABLE
    assert "checklist" in verdict.detail


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("- cat\n- dog", 1.0),
        ("* Cat.\n* DOG", 1.0),
        ("cat and dog", 1.0),
        ("cat, dog", 1.0),
        ("- cat", 0.5),
        ("- cat\n- cat", 0.5),
        ("- cat\n- lion", 0.5),
        ("- cat\n- dog\n- cow", 2 / 3),
        ("- cat\n- dog\n- lion\n- tiger", 0.5),
        ("I have no idea", 0.0),
        ("", 0.0),
    ],
)
def test_items(text: str, score: float) -> None:
    (verdict,) = items_reward([""], [text], [["cat", "dog", "cow"]], [2])
    assert (verdict.status, verdict.score) == (OK, pytest.approx(score))


@pytest.mark.parametrize(("options", "number"), [("cat", 1), ([1], 1), (["cat"], 0), (["cat"], True), (None, 2)])
def test_items_that_cannot_be_read_say_so(options: Any, number: Any) -> None:
    (verdict,) = items_reward([""], ["- cat"], [options], [number])
    assert verdict.status == UNPARSEABLE


def test_list_items_by_hand() -> None:
    assert list_items("Here:\n- Red cat\n- dog.") == ["red cat", "dog"]
    assert list_items("cat, dog and hen.") == ["cat", "dog", "hen"]


# --- languages ------------------------------------------------------------------------------------------------------


def in_language(texts: list[str], code: str) -> list[float]:
    verdicts = language_reward([""] * len(texts), texts, [code] * len(texts))
    assert {verdict.status for verdict in verdicts} == {OK}
    return [verdict.score for verdict in verdicts]


def all_texts(code: str) -> list[str]:
    """Every answer that the language tasks can ask for, each alone, and every thought."""
    words = PHRASES[code]
    sentences = [
        words.sentence.format(owner=owner, what=what, where=where)
        for owner, what, where in itertools.product(words.owner, words.what, words.where)
    ]
    thoughts = [words.think.format(who=who) for who in words.who]
    return [*sentences, *thoughts, words.sum_answer.format(total=41), words.sum_think.format(a=40, b=1, total=41)]


@pytest.mark.parametrize("code", LANGUAGES)
def test_everything_said_in_a_language_is_found_to_be_in_it(code: str) -> None:
    texts = all_texts(code)
    assert [text for text, score in zip(texts, in_language(texts, code), strict=True) if score < 1.0] == []


@pytest.mark.parametrize("code", LANGUAGES)
def test_and_in_none_of_the_others(code: str) -> None:
    texts = random.Random(0).sample(all_texts(code), 30) + all_texts(code)[-8:]
    for other in LANGUAGES:
        if other != code:
            assert [text for text, score in zip(texts, in_language(texts, other), strict=True) if score > 0.0] == []


@pytest.mark.parametrize("name", ["asked_language", "reading_languages", "sums_languages"])
def test_every_language_is_drawn_and_prompts_are_in_it(name: str) -> None:
    rows = TASKS[name].rows(0, num_train=300)["train"]
    assert {row["language"] for row in rows} == set(LANGUAGES) == set(TASKS[name].languages)
    assert len(LANGUAGES) >= 5
    right = [row["messages"][-1]["content"] for row in rows]
    for code in LANGUAGES:
        mine = [place for place, row in enumerate(rows) if row["language"] == code]
        assert set(in_language([right[place] for place in mine], code)) == {1.0}
        assert set(in_language([rows[place]["rejected"] for place in mine], code)) == {0.0}


def test_the_lists_of_all_languages_say_the_same_things() -> None:
    sizes = {(len(w.who), len(w.owner), len(w.what), len(w.where)) for w in PHRASES.values()}
    assert sizes == {(6, 6, 8, 6)}
    assert all(len(set(w.what)) == 8 and len(set(w.where)) == 6 and len(set(w.owner)) == 6 for w in PHRASES.values())
