"""The chat template against golden renderings; training examples whose mask is exact."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from model.chat import (
    CHAT_TEMPLATE,
    RenderError,
    Segment,
    answer_segments,
    encode_segments,
    render_chat,
    render_example,
    render_segments,
)
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


@pytest.fixture(scope="module")
def published_template() -> str:
    """Qwen3's template as TRL ships it: not our text."""
    found = importlib.util.find_spec("trl")
    path = Path(str(found.origin)).parent / "chat_templates" / "qwen3.jinja" if found else Path("trl")
    if not path.exists():
        pytest.skip(f"{path} is absent: TRL's copy of Qwen3's template is needed for this comparison")
    return path.read_text()


@pytest.mark.parametrize("case", golden_cases())
def test_golden_conversations_render_byte_for_byte(tokenizer, published_template: str, case: dict) -> None:
    shown = tokenizer.apply_chat_template(
        case["messages"],
        tools=case["tools"],
        tokenize=False,
        add_generation_prompt=case["add_generation_prompt"],
        **case["kwargs"],
    )
    assert shown == case["expected"]
    options = {"tools": case["tools"], "add_generation_prompt": case["add_generation_prompt"]}
    assert render_chat(tokenizer, case["messages"], template_kwargs=case["kwargs"], **options) == case["expected"]
    tokenizer.chat_template = published_template  # the checkpoint's own
    try:
        assert render_chat(tokenizer, case["messages"], template_kwargs=case["kwargs"], **options) == case["expected"]
    finally:
        tokenizer.chat_template = CHAT_TEMPLATE


PIECE = st.sampled_from(
    ["", "\n", "\n\n", " ", "a", "/no_think", "<think>", "</think>", "<tool_response>", "</tool_response>", "é", '"<&']
)
ANY_TEXT = st.lists(PIECE, max_size=6).map("".join)
CALL = st.builds(
    lambda name, arguments, wrapped: (
        {"function": {"name": name, "arguments": arguments}} if wrapped else {"name": name, "arguments": arguments}
    ),
    st.sampled_from(["f", "g"]),
    st.one_of(ANY_TEXT, st.dictionaries(st.sampled_from(["x", "ü"]), st.one_of(ANY_TEXT, st.integers()), max_size=2)),
    st.booleans(),
)
ANY_MESSAGE = st.one_of(
    st.builds(lambda role, content: {"role": role, "content": content}, st.sampled_from(["system", "user"]), ANY_TEXT),
    st.builds(lambda content: {"role": "tool", "content": content}, ANY_TEXT),
    st.builds(
        lambda content, extra: {"role": "assistant", "content": content, **extra},
        st.one_of(st.none(), ANY_TEXT),
        st.fixed_dictionaries(
            {},
            optional={
                "reasoning_content": st.one_of(st.none(), ANY_TEXT),
                "tool_calls": st.one_of(st.none(), st.lists(CALL, max_size=3)),
            },
        ),
    ),
)
TOOL = {"type": "function", "function": {"name": "f", "description": "wärmer & <b>", "parameters": {"x": [1, None]}}}


@settings(deadline=None, max_examples=400)
@given(
    st.lists(ANY_MESSAGE, min_size=1, max_size=7),
    st.sampled_from([None, [], [TOOL], [TOOL, TOOL]]),
    st.booleans(),
    st.sampled_from([{}, {"enable_thinking": True}, *({"enable_thinking": v} for v in (False, None, 0, "false"))]),
)
def test_template_equals_the_published_one(tokenizer, published_template, messages, tools, prompt, kwargs) -> None:
    options = {"tools": tools, "add_generation_prompt": prompt, "tokenize": False, **kwargs}
    ours = tokenizer.apply_chat_template(messages, chat_template=CHAT_TEMPLATE, **options)
    assert ours == tokenizer.apply_chat_template(messages, chat_template=published_template, **options)


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


def test_an_answer_apart_stands_behind_what_an_engine_is_prompted_with(tokenizer) -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>\nt1\n</think>\n\nb"},
        {"role": "user", "content": "c /no_think"},
        {"role": "assistant", "content": "<think>\n\n</think>\n\nd"},
    ]
    first, second = answer_segments(tokenizer, messages)
    assert [segment.trained for segment in first + second] == [False, True, False, True]
    assert first[1].text == "<think>\nt1\n</think>\n\nb<|im_end|>"
    assert second[0].text == (
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
        "<|im_start|>user\nc /no_think<|im_end|>\n<|im_start|>assistant\n"
    )
    assert second[1].text == "<think>\n\n</think>\n\nd<|im_end|>"
    assert second[0].text == render_chat(tokenizer, messages[:3], add_generation_prompt=True)
    prompted = answer_segments(tokenizer, messages, enable_thinking=False)[1]
    assert prompted[0].text == render_chat(
        tokenizer, messages[:3], add_generation_prompt=True, template_kwargs={"enable_thinking": False}
    )
    assert prompted[1].text == "d<|im_end|>"


def test_a_single_answer_apart_is_the_training_rendering(tokenizer) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (only,) = answer_segments(tokenizer, messages)
    assert only == render_segments(tokenizer, messages)[:2]
    with pytest.raises(RenderError, match="at least one assistant"):
        answer_segments(tokenizer, messages[:1])


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


def test_a_conversation_without_assistant_is_refused(tokenizer) -> None:
    with pytest.raises(RenderError, match=r"at least one assistant message .* \['user'\]"):
        render_example(tokenizer, [USER])


# --- what a template would drop without a word ------------------------------------------------------------------------

ASKED = {"name": "f", "arguments": {}}
REFUSED = {
    "no list": ("hello", r"messages: expected a list of at least one message, got 'hello' \(str\)"),
    "no message": ([], "messages: expected a list of at least one message"),
    "no object": ([USER, "yes"], "message 1: expected an object with a role"),
    "no role": ([{"content": "x"}], "message 0: expected an object with a role"),
    "unknown role": ([{"role": "developer", "content": "x"}], "got 'developer': the template would leave it out"),
    "content parts": (
        [{"role": "user", "content": [{"type": "text", "text": "x"}]}],
        r"message 0: user: expected content to be a string, got .* \(list\); join the text of its parts",
    ),
    "content of an assistant": ([USER, {"role": "assistant", "content": {"a": 1}}], "message 1: assistant: .*dict"),
    "number": ([{"role": "tool", "content": 42}], r"message 0: tool: .* got 42 \(int\)"),
    "user without content": ([{"role": "user", "content": None}], "message 0: user: .* got None"),
    "system without content": ([{"role": "system"}, USER], "message 0: system: .* got None"),
    "reasoning": (
        [USER, {"role": "assistant", "content": "", "reasoning_content": ["a"]}],
        "reasoning_content to be a",
    ),
    "reasoning of a user": ([{**USER, "reasoning_content": "a"}], "user: only an assistant's message has reasoning"),
    "calls of a user": ([{**USER, "tool_calls": [ASKED]}], "user: only an assistant's message has tool_calls"),
    "calls as an object": ([USER, {"role": "assistant", "tool_calls": ASKED}], "tool_calls to be a list"),
    "call without a name": (
        [USER, {"role": "assistant", "tool_calls": [{"arguments": {}}]}],
        "tool call 0: expected a name",
    ),
    "call without arguments": ([USER, {"role": "assistant", "tool_calls": [ASKED, {"name": "f"}]}], "tool call 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_template_would_leave_out_is_refused(tokenizer, name: str) -> None:
    messages, reason = REFUSED[name]
    with pytest.raises(RenderError, match=reason):
        render_chat(tokenizer, messages)
    with pytest.raises(RenderError, match=reason):
        render_segments(tokenizer, messages)


def test_tools_and_variables_are_checked(tokenizer, foreign_tokenizer) -> None:
    with pytest.raises(RenderError, match=r"tools: expected a list of JSON schemas \(objects\), got .*str"):
        render_chat(tokenizer, [USER], tools='[{"name": "f"}]')
    with pytest.raises(
        RenderError, match="expected variables of the chat template, got continue_final_message, tokenize"
    ):
        render_chat(tokenizer, [USER], template_kwargs={"tokenize": True, "continue_final_message": True, "x": 1})
    with pytest.raises(RenderError, match="enable_thinking: expected true or false, got 'false'"):
        render_segments(tokenizer, [USER, THOUGHT], enable_thinking="false")
    template, foreign_tokenizer.chat_template = foreign_tokenizer.chat_template, "{{ raise_exception('no tools') }}"
    try:
        with pytest.raises(RenderError, match="the chat template refuses the conversation: no tools"):
            render_chat(foreign_tokenizer, [USER])
        foreign_tokenizer.chat_template = None
        with pytest.raises(RenderError, match="has no chat template"):
            render_chat(foreign_tokenizer, [USER])
    finally:
        foreign_tokenizer.chat_template = template


def test_a_role_that_the_template_names_is_accepted(foreign_tokenizer) -> None:
    template = foreign_tokenizer.chat_template
    foreign_tokenizer.chat_template = template + "{% if messages[0].role == 'developer' %}!{% endif %}"
    try:
        shown = render_chat(foreign_tokenizer, [{"role": "developer", "content": "x"}])
        assert shown == "[SYS]Be kind.[developer]x!"
    finally:
        foreign_tokenizer.chat_template = template
