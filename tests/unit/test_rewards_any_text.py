"""Whatever a model writes, every built-in function has a verdict on it: the status describes the grader."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.base import OK, resolve, to_verdicts
from rewards.runner import RewardPool

COLUMNS = {
    "answer": "B",
    "context": "Plan B is here.",
    "language": "en",
    "length_target": 10,
    "choices": ["one", "two"],
    "tools": [{"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}],
    "instruction_id_list": ["punctuation:no_comma", "keywords:existence"],
    "kwargs": [{}, {"keywords": ["B"]}],
    "schema": {"type": "object", "properties": {"name": {"type": "string"}}},
}
NAMES = ["exact", "multiple_choice", "f1", "rouge_l", "length", "repetition", "grounded_qa", "language", "instruction"]
CALLS = [{"name": "f", "arguments": {"x": 1}}]
PIECES = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    r"\boxed{",
    "}",
    "{",
    "(",
    ")",
    "B",
    "A or ",
    "answer is ",
]
PIECES += ["I don't know", "車", "ж", "\n", " ", "$", "%", "1", ",", "```", '"name"', "\x00", "\ud83d"]


ANSWERS = {"tool_calls": CALLS, "json_schema": '{"name": "B"}'}  # where a text is no answer


@pytest.mark.parametrize("name", [*NAMES, "format", *ANSWERS])
@given(text=st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=12).map("".join)))
@settings(max_examples=60, deadline=None)
def test_any_text_gets_an_ok_verdict_in_range(name, text):
    columns = {key: [value] for key, value in COLUMNS.items()} | {"answer": [ANSWERS.get(name, COLUMNS["answer"])]}
    for prompt in ("x", "x<think>"):
        result = resolve(name)(prompts=[prompt], completions=[text], **columns)
        [verdict] = to_verdicts(name, result, 1)
        assert verdict.status == OK
        assert 0.0 <= verdict.score <= 1.0


def test_all_of_them_in_one_pool():
    """Beside each other, with one set of columns, in child processes."""
    columns = {key: [value] * 2 for key, value in COLUMNS.items()}
    with RewardPool(dict.fromkeys(NAMES, 1.0), timeout_s=30.0) as pool:
        right, cut_off = pool.score(["q"] * 2, ["<think>Plan A is not it.</think>B", "<think>Plan"], columns)
    assert right.status == cut_off.status == OK
    whole = {name: right.parts[name] for name in NAMES}
    assert whole == pytest.approx(dict.fromkeys(NAMES, 1.0) | {"length": 0.0})  # 1 of 10 words
    assert {cut_off.parts[name] for name in NAMES if name not in ("repetition", "language")} == {0.0}
