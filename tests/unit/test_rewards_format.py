"""Strings that tried to get a format reward elsewhere."""

from __future__ import annotations

import pytest

from rewards.format import format_reward, is_well_formed, text_of

# (completion, thinking, block opened by the prompt, expected)
TABLE = [
    # thinking, the model writes the whole block
    ("<think>2+2=4</think>4", True, False, 1),
    ("<think>\n2+2=4\n</think>\n\nThe answer is 4.", True, False, 1),
    ("\n<think>a</think>b", True, False, 1),
    ("<think>a</think>b<|im_end|>", True, False, 1),
    ("<think>x < y and <b>bold</b></think>5 > 4", True, False, 1),
    ("<think>I think, therefore</think>I think so", True, False, 1),
    ("<think></think>4", True, False, 0),
    ("<think> \n </think>4", True, False, 0),
    ("<think><|pad|></think>4", True, False, 0),
    ("<think>2+2=4</think>", True, False, 0),
    ("<think>2+2=4</think> \n", True, False, 0),
    ("<think>2+2=4</think><|im_end|><|endoftext|>", True, False, 0),
    ("<think>2+2=4", True, False, 0),
    ("2+2=4</think>4", True, False, 0),
    ("4", True, False, 0),
    ("", True, False, 0),
    ("   ", True, False, 0),
    ("</think>4<think>", True, False, 0),
    ("</think><think>a</think>b", True, False, 0),
    ("<think>a</think>b</think>c", True, False, 0),
    ("<think>a</think><think>b</think>c", True, False, 0),
    ("<think>a</think>b<think>c</think>d", True, False, 0),
    ("<think><think>a</think></think>b", True, False, 0),
    ("<think>a<think>b</think>c", True, False, 0),
    ("<think>a</think>my `<think>` tag", True, False, 0),
    ("<think>the tag </think> closes</think>b", True, False, 0),
    ("Sure! <think>a</think>b", True, False, 0),
    ("4<think>a</think>", True, False, 0),
    ("<THINK>a</THINK>b", True, False, 0),
    ("<Think>a</think>b", True, False, 0),
    ("< think >a</ think >b", True, False, 0),
    ("<think >a</think>b", True, False, 0),
    ("<think/>a</think>b", True, False, 0),
    ("<think id='1'>a</think>b", True, False, 0),
    ("<think>a</think>b<think", True, False, 0),
    ("<think>a</think>b</think ", True, False, 0),
    ("<thinking>a</thinking>b", True, False, 0),
    ("<think>a</thinking>b", True, False, 0),
    ("&lt;think&gt;a&lt;/think&gt;b", True, False, 0),
    ("<|think|>a<|/think|>b", True, False, 0),
    # thinking, the prompt opened the block
    ("2+2=4</think>4", True, True, 1),
    ("\n2+2=4\n</think>\n4", True, True, 1),
    ("<think>2+2=4</think>4", True, True, 0),
    ("2+2=4", True, True, 0),
    ("</think>4", True, True, 0),
    (" \n</think>4", True, True, 0),
    ("2+2=4</think>", True, True, 0),
    ("a</think>b</think>c", True, True, 0),
    ("a</think><think>b</think>c", True, True, 0),
    ("", True, True, 0),
    # no thinking
    ("4", False, False, 1),
    ("I think it is 4", False, False, 1),
    ("<think></think>4", False, False, 1),
    ("<think>\n\n</think>\n\n4", False, False, 1),
    ("</think>4", False, True, 1),
    ("\n\n</think>4", False, True, 1),
    ("<think>a</think>4", False, False, 0),
    ("<think></think>", False, False, 0),
    ("<think></think><think></think>4", False, False, 0),
    ("4<think></think>", False, False, 0),
    ("4</think>", False, False, 0),
    ("<think>4", False, False, 0),
    ("a</think>4", False, True, 0),
    ("4", False, True, 0),
    ("", False, False, 0),
]


@pytest.mark.parametrize(("completion", "thinking", "opened", "expected"), TABLE)
def test_table(completion, thinking, opened, expected):
    assert is_well_formed(completion, thinking=thinking, opened=opened) == bool(expected)
    prompt = "<|im_start|>assistant\n" + "<think>\n" * opened
    assert format_reward([prompt], [completion], thinking=[thinking]) == [float(expected)]


def test_thinking_is_true_where_nothing_is_said():
    completions = ["<think>a</think>b", "b"]
    assert format_reward(["p", "p"], completions) == [1.0, 0.0]
    assert format_reward(["p", "p"], completions, thinking=[None, None]) == [1.0, 0.0]
    assert format_reward(["p", "p"], completions, thinking=[False, False]) == [0.0, 1.0]


def test_the_rendered_prompt_wins_over_the_messages():
    messages = [{"role": "user", "content": "mention <think>"}]
    completion = [{"role": "assistant", "content": "a</think>b"}]
    assert format_reward([messages], [completion], prompt_text=["...assistant\n<think>\n"]) == [1.0]
    assert format_reward([messages], [completion], prompt_text=["...assistant\n"]) == [0.0]
    assert format_reward([messages], [completion]) == [0.0]


def test_a_block_that_the_prompt_closed_is_not_open():
    assert format_reward(["assistant\n<think>\n\n</think>\n\n"], ["4"], thinking=[False]) == [1.0]


@pytest.mark.parametrize("value", ["yes", 2, "false"])
def test_column_thinking_must_be_true_or_false(value):
    with pytest.raises(ValueError, match="column 'thinking', row 0: expected true or false"):
        format_reward(["p"], ["b"], thinking=[value])


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        ("a", "a"),
        ([], ""),
        ([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "a"),
        ([{"role": "assistant", "content": None, "tool_calls": []}], ""),  # not the word None
        ([{"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}], "ab"),
        ([{"role": "assistant", "content": [{"type": "image", "url": "x"}]}], ""),
    ],
)
def test_the_text_of_a_completion(completion, text):
    assert text_of(completion) == text
