"""Checklists: items from columns, graded by callables; a language model's items through two callables."""

from __future__ import annotations

import pytest

from rlplatform.stages.checklists import ALWAYS, check_responses, checklist


def row(response: str, **columns: object) -> dict:
    return {"id": "q", "sample": 0, "prompt": "Say something.", "response": response, **columns}


SCHEMA = '{"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}'
DE = "Der Zug verlässt den Bahnhof am Mittag und kommt am Abend an."
TABLE = [
    (row("Yes."), ""),
    (row(""), "failed:not_empty"),
    (row("  \n"), "failed:not_empty"),
    (row("<think>\n\n</think>\n\nYes."), ""),
    (row("<think>\nhm\n</think>\n\nYes."), "failed:no_thought"),
    (row("<think>\nhm"), "failed:not_empty"),
    (row("```python\nx = 1"), "failed:complete"),
    (row("```python\nx = 1\n```"), ""),
    (row("Yes", finish="length"), "failed:complete"),
    (row("no no no no " * 20), "failed:no_loop"),
    (row("A red Fox ran.", must_contain=["fox", "red"]), ""),
    (row("A red dog ran.", must_contain=["fox", "red"]), "failed:must_contain"),
    (row("A red fox ran.", must_not_contain=["fox"]), "failed:must_not_contain"),
    (row("A foxglove grew.", must_not_contain=["fox"]), ""),
    (row("- one\n- two\n- three", num_bullets=3), ""),
    (row("1. one\n2) two", num_bullets=2), ""),
    (row("- one\n- two", num_bullets=3), "failed:num_bullets"),
    (row("one\n\ntwo", num_paragraphs=2), ""),
    (row("one\ntwo", num_paragraphs=2), "failed:num_paragraphs"),
    (row("one two three", length_target=3), ""),
    (row("one two three four five six", length_target=3), "failed:length_target"),
    (row("one two three four", length_target=[3, 5]), ""),
    (row("one two", length_target=2, length_unit="characters"), "failed:length_target"),
    (row(DE, language="de"), ""),
    (row(DE, language="en"), "failed:language"),
    (row('{"a": 1}', schema=SCHEMA), ""),
    (row('{"a": "x"}', schema=SCHEMA), "failed:schema"),
    (row("no commas here", instruction_id_list=["punctuation:no_comma"], kwargs=[{}]), ""),
    (row("one, two", instruction_id_list=["punctuation:no_comma"], kwargs=[{}]), "failed:instruction_id_list"),
    (row(r"\boxed{5}", grader="math", answer="5"), ""),
    (row(r"\boxed{6}", grader="math", answer="5"), "failed:correct"),
    (row("the red fox ran", grader="rouge_l", grader_min_score=0.5, answer="a red fox"), ""),
    (row("the red fox ran", grader="rouge_l", answer="a red fox"), "failed:correct"),
    (row("Yes.", must_contain=None, length_target=None), ""),  # a table's empty columns
    # the grader cannot tell: not assumed
    (row("Yes.", length_target="many"), "ungraded:length_target"),
    (row("Yes.", grader="math", answer=""), "ungraded:correct"),
    (row("Yes.", language="klingon"), "ungraded:language"),
    (row("<think>\nhm\n</think>\n\nYes.", language="klingon"), "failed:no_thought"),  # failed comes first
]


@pytest.mark.parametrize(("given", "reason"), TABLE)
def test_items(given: dict, reason: str) -> None:
    assert check_responses([given])[0].reason == reason


def test_every_failure_is_listed_and_every_item_counted() -> None:
    decision = check_responses([row("a dog", must_contain=["fox"], num_bullets=2)])[0]
    assert decision.detail == "must_contain (contains ['fox']); num_bullets (is a list of 2 items)"
    assert check_responses([row("a fox", must_contain=["fox"])])[0].detail == f"{len(ALWAYS) + 1} items"
    assert [item.name for item in checklist(row("", language="de", grader="exact"))][-2:] == ["language", "correct"]
    with pytest.raises(ValueError, match="expected grader to be one of math"):
        checklist(row("", grader="vibes"))


def test_written_items() -> None:
    """A language model's part, played by two functions."""
    asked = []

    def write(rows):
        return [["names a fox", "is kind"] if "fox" in r["prompt"] else [] for r in rows]

    def grade(given, response, items):
        asked.append((given["id"], tuple(items)))
        return ["fox" in response if "fox" in item else None for item in items]

    rows = [
        {**row("A fox."), "id": "a", "prompt": "About a fox, kindly."},
        {**row("A dog."), "id": "b", "prompt": "About a fox, kindly."},
        {**row("Hm."), "id": "c"},
        {**row(""), "id": "d", "prompt": "About a fox, kindly."},
    ]
    both = {"write_items": write, "grade_items": grade}
    decisions = check_responses(rows, **both, min_share=0.5)
    assert [decision.reason for decision in decisions] == ["", "failed:written_items", "", "failed:not_empty"]
    assert asked == [("a", ("names a fox", "is kind")), ("b", ("names a fox", "is kind"))]
    assert decisions[1].detail == "names a fox; is kind"
    strict = check_responses(rows, **both)
    assert strict[0].detail == "is kind"  # not gradable is not met


def test_callables_that_break_the_contract() -> None:
    rows = [row("Yes.")]
    with pytest.raises(ValueError, match="both write_items and grade_items"):
        check_responses(rows, write_items=lambda r: [[]])
    with pytest.raises(ValueError, match="for each of 1 rows, got 0"):
        check_responses(rows, write_items=lambda r: [], grade_items=lambda *a: [])
    with pytest.raises(ValueError, match="for each of 1 items"):
        check_responses(rows, write_items=lambda r: [["x"]], grade_items=lambda *a: ["yes"])
    with pytest.raises(ValueError, match="min_share"):
        check_responses(rows, min_share=2.0)
