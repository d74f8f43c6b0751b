"""The chat template of Qwen3 and the rendering of training examples with their loss masks.

Prompts are rendered by the tokenizer's own template, through ``apply_chat_template`` (``render_chat``). A training
example is rendered turn by turn instead, because Qwen3's template is made for inference: it drops the thinking of
earlier turns, so that the rendering of a conversation is no prefix of the rendering of its continuation. Here every
assistant turn stands as it stood when it was produced, and what the model is prompted with at inference is exactly what
precedes it here. ``differences`` says where the two renderings part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from model.messages import Message, RenderError, render_chat
from model.turns import Conversation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "CHAT_TEMPLATE",
    "Difference",
    "RenderError",
    "Segment",
    "answer_segments",
    "differences",
    "encode_segments",
    "encode_whole",
    "render_chat",
    "render_example",
    "render_segments",
    "stock_segments",
]

CHAT_TEMPLATE = r"""
{#- Head: the system message and the tools. There is no default system message. -#}
{%- set has_system = messages and messages[0].role == 'system' -%}
{%- if tools %}
{{- '<|im_start|>system\n' }}
{%- if has_system %}
{{- messages[0].content + '\n\n' }}
{%- endif %}
{{- '# Tools\n\nYou may call one or more functions to assist with the user query.\n\n' }}
{{- 'You are provided with function signatures within <tools></tools> XML tags:\n<tools>' }}
{%- for tool in tools %}
{{- '\n' + (tool | tojson) }}
{%- endfor %}
{{- '\n</tools>\n\nFor each function call, return a json object with function name and arguments' }}
{{- ' within <tool_call></tool_call> XML tags:\n<tool_call>\n' }}
{{- '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n' }}
{%- elif has_system %}
{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{#- Thinking is shown after the last message a user really wrote; a wrapped tool response is not one. -#}
{%- set last = namespace(query=messages | length - 1) -%}
{%- for message in messages %}
{%- if message.role == 'user' and message.content is string
       and not (message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
{%- set last.query = loop.index0 %}
{%- endif %}
{%- endfor %}
{%- for message in messages %}
{%- set content = message.content if message.content is string else '' %}
{%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
{{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}
{%- elif message.role == 'assistant' %}
{%- set reasoning = '' %}
{%- if message.reasoning_content is string %}
{%- set reasoning = message.reasoning_content %}
{%- elif '</think>' in content %}
{%- set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\n') %}
{%- endif %}
{{- '<|im_start|>assistant\n' }}
{%- if loop.index0 > last.query and (loop.last or reasoning) %}
{{- '<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
{%- else %}
{{- content }}
{%- endif %}
{%- for call in message.tool_calls or [] %}
{%- if content or not loop.first %}
{{- '\n' }}
{%- endif %}
{%- set function = call.function or call %}
{{- '<tool_call>\n{"name": "' + function.name + '", "arguments": ' }}
{{- function.arguments if function.arguments is string else function.arguments | tojson }}
{{- '}\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\n' }}
{%- elif message.role == 'tool' %}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
{{- '<|im_start|>user' }}
{%- endif %}
{{- '\n<tool_response>\n' + content + '\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}
{{- '<|im_end|>\n' }}
{%- endif %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}
{{- '<think>\n\n</think>\n\n' }}
{%- endif %}
{%- endif %}
""".strip()


@dataclass(frozen=True)
class Segment:
    """A stretch of a rendered conversation."""

    text: str
    trained: bool  # True: assistant text and the token that ends its turn


@dataclass(frozen=True)
class Difference:
    """One place where the training rendering is not what the template writes for the whole conversation."""

    message: int  # index of the assistant message; -1: the two cannot be laid side by side
    reason: str
    training: str  # the turn's text here, without the token that ends it
    stock: str  # the same in the template's rendering


def render_segments(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    enable_thinking: bool = True,
    add_generation_prompt: bool = False,
    template_kwargs: Mapping[str, Any] | None = None,
) -> list[Segment]:
    """Prompt and completion of every assistant turn, in order; joined they are the training text.

    The prompt of a turn is what the tokenizer's own template gives for inference. With ``enable_thinking=False`` its
    empty think block is part of the prompt, unless the turn holds a thought of its own: then it was not prompted so.
    Content that holds a think block is taken word for word. Without one, or with ``reasoning_content``, the turn is
    what the template writes for a last turn, with the empty block that Qwen3 produces when it does not think. Tool
    calls are the template's. Messages after the last assistant turn, and the next generation prompt if that is asked
    for, stand at the end untrained. Raises ``RenderError``, also where there is nothing to train on and no generation
    prompt is asked for.
    """
    conversation = Conversation(
        tokenizer,
        messages,
        tools=tools,
        enable_thinking=enable_thinking,
        add_generation_prompt=add_generation_prompt,
        template_kwargs=template_kwargs,
    )
    if not conversation.turns and not add_generation_prompt:
        roles = [message["role"] for message in messages]
        raise RenderError(f"expected at least one assistant message to train on, got roles {roles}")
    return training_segments(conversation)


def training_segments(conversation: Conversation) -> list[Segment]:
    """The training rendering; a conversation without assistant is one untrained segment."""
    segments: list[Segment] = []
    block, end = conversation.closed_block, conversation.end
    for turn in conversation.turns:
        prompted = block if turn.text.startswith(block) else ""
        segments.append(Segment(turn.before + prompted, trained=False))
        segments.append(Segment(turn.text.removeprefix(prompted) + end, trained=True))
    return [*segments, Segment(conversation.tail, trained=False)] if conversation.tail else segments


def answer_segments(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    enable_thinking: bool = True,
) -> list[list[Segment]]:
    """Every assistant turn as an example of its own, behind what the template prompts with for it: of the turns before
    it, Qwen3's shows the answers without their thoughts. That is what an engine is asked that renders each request from
    messages. The turn's own text is that of ``render_segments``.

    Raises:
        RenderError: as ``render_segments``.
    """
    examples = []
    conversation = Conversation(tokenizer, messages, tools=tools, enable_thinking=enable_thinking)
    block, end = conversation.closed_block, conversation.end
    for turn in conversation.turns:
        asked = messages[: turn.message]
        before = render_chat(tokenizer, asked, tools=tools, add_generation_prompt=True) if asked else turn.before
        prompted = block if turn.text.startswith(block) else ""
        text = turn.text.removeprefix(prompted) + end
        examples.append([Segment(before + prompted, trained=False), Segment(text, trained=True)])
    if not examples:
        roles = [message["role"] for message in messages]
        raise RenderError(f"expected at least one assistant message to train on, got roles {roles}")
    return examples


def stock_segments(conversation: Conversation) -> list[Segment]:
    """The template's own rendering of the whole conversation, cut at the assistant's text.

    Trained is what stands there of the assistant's turns, with the tokens that end them. Raises ``RenderError`` where
    the turns cannot be found in it, or one holds the token that ends it.
    """
    for turn in conversation.turns:
        if conversation.end in turn.text:
            raise RenderError(f"message {turn.message}: its text holds {conversation.end!r}, which ends a turn")
    text, spans = conversation.stock, conversation.stock_spans
    if spans is None:
        raise RenderError(
            "the assistant's text cannot be found in the template's rendering of the whole conversation; the training "
            "rendering goes turn by turn and can show it"
        )
    segments: list[Segment] = []
    block, position = conversation.closed_block, 0
    for start, stop in spans:
        start += len(block) if text.startswith(block, start, stop) else 0
        stop += len(conversation.end)
        segments += [Segment(text[position:start], trained=False), Segment(text[start:stop], trained=True)]
        position = stop
    return [*segments, Segment(text[position:], trained=False)] if text[position:] else segments


def differences(conversation: Conversation) -> list[Difference]:
    """Where the training rendering and the template's own differ, turn by turn; empty where they are equal."""
    ours = "".join(segment.text for segment in training_segments(conversation))
    stock, spans = conversation.stock, conversation.stock_spans
    if spans is None:
        return [
            Difference(-1, "the template writes other text between the turns of the whole conversation", ours, stock)
        ]
    found = []
    for turn, (start, stop) in zip(conversation.turns, spans, strict=True):
        if turn.text != stock[start:stop]:
            found.append(Difference(turn.message, _reason(turn.text, stock[start:stop]), turn.text, stock[start:stop]))
    return found


def _reason(ours: str, stock: str) -> str:
    kept = ours.removesuffix(stock) if stock else ours
    if ours.endswith(stock) and kept.strip().startswith("<think>") and kept.strip().endswith("</think>"):
        thought = kept.strip().removeprefix("<think>").removesuffix("</think>").strip()
        if thought:
            return f"the thinking ({len(thought)} characters) is kept; the template drops it"
        return "the empty think block is kept; the template writes none here"
    if stock.endswith(ours):
        return f"taken word for word; the template puts {stock.removesuffix(ours)!r} before it"
    return "taken word for word; the template rewrites it"


def render_example(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    enable_thinking: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """``(token_ids, loss_mask)``, int32 [T] and bool [T]; see ``render_segments``.

    The mask is True on assistant text and on the token that ends its turn, so ``decode(token_ids[loss_mask])`` is
    exactly that text (NFC-normalised where the tokenizer does so); generation prompts and the newline after the end of
    a turn are False.
    """
    return encode_segments(
        tokenizer, render_segments(tokenizer, messages, tools=tools, enable_thinking=enable_thinking)
    )


def encode_segments(tokenizer: PreTrainedTokenizerBase, segments: Sequence[Segment]) -> tuple[np.ndarray, np.ndarray]:
    """Each segment encoded on its own, joined: no token spans prompt and completion. The mask is ``trained``.

    Returns int32 [T] and bool [T].
    """
    ids = tokenizer([segment.text for segment in segments], add_special_tokens=False)["input_ids"]
    token_ids = np.array([token for part in ids for token in part], dtype=np.int32)
    mask = np.repeat([segment.trained for segment in segments], [len(part) for part in ids])
    return token_ids, mask.astype(np.bool_)


def encode_whole(tokenizer: PreTrainedTokenizerBase, segments: Sequence[Segment]) -> tuple[np.ndarray, np.ndarray]:
    """The segments' text encoded in one go, as an engine encodes a prompt; int32 [T] and bool [T].

    The mask is True on tokens that lie wholly inside trained segments. A token that spans a boundary, e.g. a prompt's
    newline and the text's, is not trained: that is what ``encode_segments`` avoids.
    """
    text = "".join(segment.text for segment in segments)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    trained = np.repeat([segment.trained for segment in segments], [len(segment.text) for segment in segments])
    mask = [stop > start and bool(trained[start:stop].all()) for start, stop in encoded["offset_mapping"]]
    return np.array(encoded["input_ids"], dtype=np.int32), np.array(mask, dtype=np.bool_)
