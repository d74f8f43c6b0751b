"""Responses taken apart, against the published rule and against the rewards that stand on it."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rewards.response
from rewards.answer import after_thoughts
from rewards.format import is_well_formed
from rewards.response import Response, parse

# (text, block opened by the prompt, thinking, answer, finished, well formed)
TABLE = [
    ("<think>\nhm\n</think>\n\nyes", False, "hm", "yes", True, True),
    ("\n<think>\n\nhm\n\nso\n\n</think>\n\nyes\n", False, "hm\n\nso", "yes", True, True),
    ("<think>\n\n</think>\n\nyes", False, "", "yes", True, True),
    ("yes", False, "", "yes", True, True),
    ("\n\n yes \n", False, "", " yes ", True, True),
    ("", False, "", "", True, False),
    ("<|im_end|>", False, "", "<|im_end|>", True, False),
    ("<think>\nhm", False, "hm", "", False, False),
    ("<think>", False, "", "", False, False),
    ("hm\n</think>\n\nyes", True, "hm", "yes", True, True),
    ("\n\n</think>\n\nyes", True, "", "yes", True, True),
    ("hm", True, "hm", "", False, False),
    ("", True, "", "", False, False),
    ("<think>\nhm\n</think>\n\nyes", True, "<think>\nhm", "yes", True, False),
    ("hm\n</think>\n\nyes", False, "hm", "yes", True, False),  # the opening tag is missing and nobody prefilled it
    ("<think>\nhm\n</think>", False, "hm", "", True, False),
    ("<think>a</think>b</think>c", False, "a</think>b", "c", True, False),
    ("<think>a</think>b<think>c</think>d", False, "a</think>b<think>c", "d", True, False),
    ("<think>a</think>\n<think>b", False, "a</think>\n<think>b", "", False, False),
    ("a</think><think>b", True, "a</think><think>b", "", False, False),
    ("Sure! <think>a</think>b", False, "Sure! <think>a", "b", True, False),
    ("Write <think> before it.", False, "", "Write <think> before it.", True, False),
    ("<THINK>a</THINK>b", False, "", "<THINK>a</THINK>b", True, False),
    ('<think>\nhm\n</think>\n\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call><|im_end|>', False, "hm",
     '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call><|im_end|>', True, True),
]  # fmt: skip


@pytest.mark.parametrize(("text", "opened", "thinking", "answer", "finished", "well_formed"), TABLE)
def test_table(text, opened, thinking, answer, finished, well_formed) -> None:
    assert parse(text, opened=opened) == Response(thinking, answer, finished, well_formed)


def test_the_examples_of_the_docstring() -> None:
    assert doctest.testmod(rewards.response).failed == 0


TAGGED = st.lists(
    st.sampled_from(["<think>", "</think>", "\n", " ", "a", "<|im_end|>", "<Think>", "é"]), max_size=8
).map("".join)


@given(TAGGED)
def test_split_at_the_last_closing_tag_as_published(text: str) -> None:
    """Qwen3's documentation: the last id 151668 splits, newlines are stripped; without one everything is the answer."""
    response = parse(text)
    head, close, tail = text.rpartition("</think>")
    if response.finished:
        assert response.answer == tail.strip("\n")
        if close:
            assert response.thinking in head
        else:
            assert response.thinking == ""
    else:
        assert response.answer == ""
        assert tail.lstrip().startswith("<think>")


@given(TAGGED)
def test_a_prefilled_block_reads_as_if_the_model_had_written_it(text: str) -> None:
    prefilled, whole = parse(text, opened=True), parse("<think>" + text)
    assert prefilled == whole


@given(TAGGED, st.booleans())
def test_rewards_agree_with_it(text: str, opened: bool) -> None:
    response = parse(text, opened=opened)
    assert sum(is_well_formed(text, thinking=thinking, opened=opened) for thinking in (True, False)) == (
        response.well_formed
    )
    graded = after_thoughts(text, opened=opened)
    assert graded in (None, response.answer)
    if response.well_formed:
        assert graded == response.answer
