"""The chat template against golden renderings; training examples whose mask is exact."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from model.chat import RenderError, Segment, encode_segments, render_example, render_segments
from model.tokenizer import train_bpe
from rlplatform.tasks.arithmetic import make_row

GOLDEN = Path(__file__).parents[2].parent / "shared" / "data" / "chat_template_qwen3" / "golden.jsonl"
USER = {"role": "user", "content": "q?"}
THOUGHT = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nyes"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory):
    texts = ["What is 347 + 285?", "7+5=12 carry 1\n4+8+1=13\n\nuser assistant system", "\n\n\n"] * 9
    return train_bpe(texts, 320, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def foreign_tokenizer():
    """Another family: default system message, own markers, no newline after a turn, a turn-ending eos."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="</s>",
        chat_template="{% if messages[0].role != 'system' %}[SYS]Be kind.{% endif %}{% for m in messages %}"
        "[{{ m.role }}]{{ m.content }}{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}",
    )


def trained_text(tokenizer, messages, **kwargs) -> str:
    token_ids, mask = render_example(tokenizer, messages, **kwargs)
    return tokenizer.decode(token_ids[mask])


# --- the template ---------------------------------------------------------------------------------------------------


def golden_cases() -> list:
    if not GOLDEN.exists():
        return [pytest.param(None, marks=pytest.mark.skip(reason=f"{GOLDEN} is absent: published renderings needed"))]
    return [pytest.param(case, id=case["name"]) for case in map(json.loads, GOLDEN.read_text().splitlines())]


@pytest.mark.parametrize("case", golden_cases())
def test_golden_conversations_render_byte_for_byte(tokenizer, case: dict) -> None:
    shown = tokenizer.apply_chat_template(
        case["messages"],
        tools=case["tools"],
        tokenize=False,
        add_generation_prompt=case["add_generation_prompt"],
        **case["kwargs"],
    )
    assert shown == case["expected"]


def test_template_by_hand(tokenizer) -> None:
    shown = tokenizer.apply_chat_template([USER, THOUGHT, USER], tokenize=False, add_generation_prompt=True)
    assert shown == (
        "<|im_start|>user\nq?<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
        "<|im_start|>user\nq?<|im_end|>\n<|im_start|>assistant\n"
    )
    off = tokenizer.apply_chat_template([USER], tokenize=False, add_generation_prompt=True, enable_thinking=False)
    assert off == "<|im_start|>user\nq?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


# --- training examples ----------------------------------------------------------------------------------------------


def test_segments_of_one_turn_by_hand(tokenizer) -> None:
    assert render_segments(tokenizer, [USER, THOUGHT]) == [
        Segment("<|im_start|>user\nq?<|im_end|>\n<|im_start|>assistant\n", trained=False),
        Segment("<think>\nhm\n</think>\n\nyes<|im_end|>", trained=True),
        Segment("\n", trained=False),
    ]


def test_generation_prompt_and_newline_after_the_turn_are_not_trained(tokenizer) -> None:
    token_ids, mask = render_example(tokenizer, make_row(347, 285, "+", row_id="x")["messages"])
    prompt = tokenizer.apply_chat_template(
        [make_row(347, 285, "+", row_id="x")["messages"][0]], add_generation_prompt=True
    )
    assert token_ids[: len(prompt["input_ids"])].tolist() == prompt["input_ids"]
    assert mask.tolist() == [False] * len(prompt["input_ids"]) + [True] * (len(mask) - len(prompt["input_ids"]) - 1) + [
        False
    ]
    assert tokenizer.decode(token_ids[-1:]) == "\n"
    assert token_ids[-2] == tokenizer.eos_token_id
    assert mask[-2]


def test_earlier_turns_keep_their_thinking(tokenizer) -> None:
    assert trained_text(tokenizer, [USER, THOUGHT, USER, THOUGHT]) == (THOUGHT["content"] + "<|im_end|>") * 2


def test_a_turn_without_thinking_gets_the_empty_block(tokenizer) -> None:
    plain = {"role": "assistant", "content": "yes"}
    assert trained_text(tokenizer, [USER, plain]) == "<think>\n\n</think>\n\nyes<|im_end|>"
    off = render_segments(tokenizer, [USER, plain], enable_thinking=False)
    assert off[0].text.endswith("<think>\n\n</think>\n\n")  # then the block is the prompt's
    assert off[1] == Segment("yes<|im_end|>", trained=True)


def test_reasoning_content_and_tool_calls(tokenizer) -> None:
    call = {
        "role": "assistant",
        "content": "",
        "reasoning_content": "look",
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}],
    }
    tool = {"role": "tool", "content": "42"}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    segments = render_segments(tokenizer, [USER, call, tool, tool, THOUGHT], tools=tools)
    called = '<think>\nlook\n</think>\n\n<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call><|im_end|>'
    assert segments[1] == Segment(called, trained=True)
    assert segments[2] == Segment(
        "\n<|im_start|>user\n<tool_response>\n42\n</tool_response>\n<tool_response>\n42\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n",
        trained=False,
    )
    stock = tokenizer.apply_chat_template([USER, call, tool, tool, THOUGHT], tools=tools, tokenize=False)
    assert "".join(segment.text for segment in segments) == stock  # within one tool chain Qwen3 keeps the thinking


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<|>␂"), max_size=20)


@st.composite
def conversations(draw: st.DrawFn) -> list[dict]:
    messages = [{"role": "system", "content": draw(TEXT)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 8))):
        messages.append({"role": "user", "content": draw(TEXT)})
        thought = f"<think>\n{draw(TEXT)}\n</think>\n\n" if draw(st.booleans()) else ""
        messages.append({"role": "assistant", "content": thought + draw(TEXT)})
    return messages


@settings(deadline=None, max_examples=60)
@given(conversations(), st.booleans())
def test_mask_is_exactly_the_assistant_text_and_every_prefix_is_a_prefix(tokenizer, messages, thinking) -> None:
    token_ids, mask = render_example(tokenizer, messages, enable_thinking=thinking)
    empty = "<think>\n\n</think>\n\n" if thinking else ""
    expected = ""
    for message in messages:
        if message["role"] == "assistant":
            content = message["content"]
            # a turn without a think block is written as the template writes it: empty block, leading newlines stripped
            expected += (content if "</think>" in content else empty + content.lstrip("\n")) + "<|im_end|>"
    assert tokenizer.decode(token_ids[mask]) == unicodedata.normalize("NFC", expected)
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    for index in turns:
        shorter, shorter_mask = render_example(tokenizer, messages[: index + 1], enable_thinking=thinking)
        assert token_ids[: len(shorter) - 1].tolist() == shorter[:-1].tolist()
        assert mask[: len(shorter) - 1].tolist() == shorter_mask[:-1].tolist()


def test_prompt_tokens_do_not_merge_with_the_completion(tokenizer) -> None:
    """Joined, the prompt's newline and the text's would be one token; the model never sees that at inference."""
    newlines = [Segment("a\n", trained=False), Segment("\n\nb", trained=True)]
    token_ids, mask = encode_segments(tokenizer, newlines)
    assert tokenizer.decode(token_ids[mask]) == "\n\nb"
    joined = tokenizer.encode("a\n\n\nb")
    assert token_ids.tolist() != joined  # the trap is real for this tokenizer


def test_another_familys_template(foreign_tokenizer) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 2
    assert render_segments(foreign_tokenizer, messages) == [
        Segment("[SYS]Be kind.[user]a[assistant]", trained=False),
        Segment("b</s>", trained=True),
        Segment("[user]a[assistant]", trained=False),
        Segment("b</s>", trained=True),
    ]
    stock = foreign_tokenizer.apply_chat_template(messages, tokenize=False)
    assert "".join(segment.text for segment in render_segments(foreign_tokenizer, messages)) == stock


def test_eos_is_trained_where_pad_is_the_same_token(tokenizer) -> None:
    pad, tokenizer.pad_token = tokenizer.pad_token, tokenizer.eos_token
    try:
        token_ids, mask = render_example(tokenizer, [USER, THOUGHT])
        assert token_ids[mask][-1] == tokenizer.eos_token_id
    finally:
        tokenizer.pad_token = pad


def test_a_conversation_without_assistant_is_refused(tokenizer) -> None:
    with pytest.raises(RenderError, match=r"at least one assistant message .* \['user'\]"):
        render_example(tokenizer, [USER])
