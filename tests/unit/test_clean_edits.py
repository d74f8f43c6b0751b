"""Edits of a text, and what a document's fate does to it: forwards, back again, and through files."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.document import document
from pretrain.data.edits import KEEP, Answer, Decision, Edit, Edited, edit_text, undo
from pretrain.data.fates import UNTOUCHED, Fate, apply_step, changes, current
from rlplatform.datafiles import DataError


@st.composite
def edited_text(draw: Any) -> tuple[str, list[Edit]]:
    text = draw(st.text(max_size=40))
    places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pairs = zip(places[::2], places[1::2], strict=False)
    return text, [Edit(a, b, draw(st.sampled_from(["", "[X]", "é"])), "reason") for a, b in pairs]


@settings(max_examples=200, deadline=None)
@given(edited_text())
def test_undo_gives_the_text_back(case: tuple[str, list[Edit]]) -> None:
    text, edits = case
    assert undo(edit_text(text, edits), edits, [text[edit.start : edit.end] for edit in edits]) == text


@pytest.mark.parametrize("pairs", [[(3, 2)], [(0, 2), (1, 3)], [(0, 11)], [(-1, 2)], [(5, 6), (0, 1)]])
def test_edits_outside_the_text_or_out_of_order_are_refused(pairs: list[tuple[int, int]]) -> None:
    with pytest.raises(DataError, match="expected spans in order inside 10 characters"):
        edit_text("0123456789", [Edit(a, b, "", "x") for a, b in pairs])


def rows(*texts: str) -> list[dict[str, Any]]:
    return [document("s", str(k), f"s:{k}", text) for k, text in enumerate(texts)]


def test_a_step_is_counted_by_hand() -> None:
    answers: list[Answer] = [
        KEEP,
        Decision("bad", "why"),
        Edited((Edit(0, 3, "[X]", "mail"), Edit(4, 5, "", "cut"))),
        Edited(()),
        Edited((Edit(0, 4, " ", "cut"),)),
    ]
    given_rows = rows("one", "two!!", "abc de", "four", "five")
    counts: Counter[str] = Counter()
    got, fates = apply_step("step", lambda left: answers, given_rows, [UNTOUCHED] * 5, counts)
    assert [row["text"] for row in got] == ["one", "two!!", "[X] e", "four", "five"]
    assert [fate.dropped for fate in fates] == [
        None,
        ("step", "bad", "why"),
        None,
        None,
        ("step", "nothing_left", "1 cut"),
    ]
    assert counts == {
        "step|documents": 5,
        "step|characters": 3 + 5 + 6 + 4 + 4,
        "step|dropped|bad": 1,
        "step|dropped_characters|bad": 5,
        "step|dropped|nothing_left": 1,
        "step|dropped_characters|nothing_left": 4,
        "step|edited": 1,
        "step|shortened": 1,
        "step|edits|mail": 1,
        "step|edits|cut": 1,
    }


def test_a_dropped_document_is_not_shown_to_later_steps() -> None:
    seen: list[list[str]] = []

    def drop_short(left: list[dict[str, Any]]) -> list[Decision]:
        seen.append([row["text"] for row in left])
        return [Decision("short") if len(row["text"]) < 3 else KEEP for row in left]

    counts: Counter[str] = Counter()
    first = apply_step("a", drop_short, rows("x", "long", "y", "longer"), [UNTOUCHED] * 4, counts)
    apply_step("b", drop_short, *first, counts)
    assert seen == [["x", "long", "y", "longer"], ["long", "longer"]]
    assert counts["b|documents"] == 2


@pytest.mark.parametrize("answers", [[], [KEEP], [KEEP, KEEP, KEEP], [True, False], [None, KEEP]])
def test_an_answer_too_few_or_of_another_kind_is_an_error(answers: list[Any]) -> None:
    with pytest.raises(DataError, match="step 'mine': expected a Decision or Edited for each of 2 documents"):
        apply_step("mine", lambda left: answers, rows("a", "b"), [UNTOUCHED] * 2, Counter())


def test_edits_outside_the_text_name_step_and_document() -> None:
    given_rows = rows("abc")
    with pytest.raises(DataError, match=f"step 'mine', document '{given_rows[0]['id']}': edits: expected spans"):
        apply_step("mine", lambda left: [Edited((Edit(1, 9, "", "x"),))], given_rows, [UNTOUCHED], Counter())


def test_a_fate_goes_through_its_file_and_its_changes_undo_it() -> None:
    (row,) = rows("mail bob@x.org now, menu. text")
    fate = Fate(
        ("last", "bad", "détail"),
        (
            ("menu", (Edit(20, 26, "", "repeated", "in 3 documents"),)),
            ("privacy", (Edit(5, 14, "[EMAIL]", "email", "9 characters", secret=True),)),
        ),
    )
    assert Fate.from_json(fate.to_json()) == fate
    assert Fate.from_json(UNTOUCHED.to_json()) == UNTOUCHED
    assert current(row, fate)["text"] == "mail [EMAIL] now, text"
    assert row["text"] == "mail bob@x.org now, menu. text"
    found = changes(row, fate)
    assert [(c["step"], c["removed"], c["put"]) for c in found] == [
        ("menu", "menu. ", ""),
        ("privacy", "", "[EMAIL]"),
    ]
    assert [change["secret"] for change in found] == [False, True]
    assert "bob@x.org" not in json.dumps(found)
    before_privacy = undo(current(row, fate)["text"], fate.edits[1][1], ["bob@x.org"])
    assert undo(before_privacy, fate.edits[0][1], ["menu. "]) == row["text"]
