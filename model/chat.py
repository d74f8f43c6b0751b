"""The chat template of Qwen3 and the rendering of training examples with their loss masks.

Prompts are rendered by the tokenizer's own template, through ``apply_chat_template``. A training example is rendered
turn by turn instead, because Qwen3's template is made for inference: it drops the thinking of earlier turns, so that
the rendering of a conversation is no prefix of the rendering of its continuation. Here every assistant turn stands as
it stood when it was produced, and what the model is prompted with at inference is exactly what precedes it here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, Any]

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


class RenderError(ValueError):
    """A conversation that the template cannot show as prompt and completion; the message says which turn and why."""


@dataclass(frozen=True)
class Segment:
    """A stretch of a training example, encoded on its own, so that no token spans prompt and completion."""

    text: str
    trained: bool  # True: assistant text and the token that ends its turn


_USER = {"role": "user", "content": "x"}
_SENTINEL = "\u2402assistant\u2402"  # stands where an assistant's text goes, to find what follows it


def render_segments(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    enable_thinking: bool = True,
) -> list[Segment]:
    """Prompt and completion of every assistant turn, in order; joined they are the training text.

    The prompt of a turn is what the tokenizer's own template gives for inference, ``enable_thinking=False`` included
    (its empty think block is then part of the prompt). Assistant text that holds a think block is taken word for word;
    without one, or with ``reasoning_content`` or ``tool_calls``, it is what the template writes for a last turn.
    Differences to the template's own rendering of the whole conversation: the thinking of earlier turns stays, and
    earlier turns without any keep the empty block they were produced with. Messages after the last assistant turn
    train nothing and are left out. Raises ``RenderError`` where there is no assistant turn.
    """

    options: dict[str, Any] = {} if enable_thinking else {"enable_thinking": False}

    def render(turns: Sequence[Message], *, prompt: bool) -> str:
        text = tokenizer.apply_chat_template(
            [dict(turn) for turn in turns],
            tools=list(tools) if tools else None,
            tokenize=False,
            add_generation_prompt=prompt,
            **options,
        )
        return str(text)

    turns = [index for index, message in enumerate(messages) if message.get("role") == "assistant"]
    if not turns:
        roles = [message.get("role") for message in messages]
        raise RenderError(f"expected at least one assistant message to train on, got roles {roles}")
    end = _end_of_turn(tokenizer)
    segments: list[Segment] = []
    closing = ""  # what the template puts after the end of a turn, e.g. a newline: part of the next prompt
    previous = -1
    for index in turns:
        between = messages[previous + 1 : index]
        if previous < 0:
            prompt = render(between, prompt=True)
        else:
            shown = render([_USER, {"role": "assistant", "content": _SENTINEL}, *between], prompt=True)
            prompt = _after(shown, _SENTINEL + end, index)
        completion = _assistant_text(messages[index], index, end, render)
        segments += [Segment(prompt, trained=False), Segment(completion + end, trained=True)]
        previous = index
    closing = _after(
        render([_USER, {"role": "assistant", "content": _SENTINEL}], prompt=False), _SENTINEL + end, previous
    )
    return [*segments, Segment(closing, trained=False)] if closing else segments


def _assistant_text(message: Message, index: int, end: str, render: Any) -> str:
    content = message.get("content")
    if (
        isinstance(content, str)
        and not message.get("tool_calls")
        and not isinstance(message.get("reasoning_content"), str)
        and "</think>" in content
    ):
        return content
    prompt = render([_USER], prompt=True)
    shown = render([_USER, message], prompt=False)
    if not shown.startswith(prompt):
        raise RenderError(
            f"message {index}: the template's rendering of the assistant turn does not start with its own generation "
            f"prompt {prompt!r}; got {shown!r}"
        )
    return shown[len(prompt) :].rpartition(end)[0]


def _after(text: str, marker: str, index: int) -> str:
    _, found, tail = text.rpartition(marker)
    if not found:
        raise RenderError(
            f"message {index}: the template does not write {marker!r} after an assistant turn; got {text!r}"
        )
    return tail


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> str:
    if not isinstance(tokenizer.eos_token, str):
        raise RenderError("expected a tokenizer whose eos_token ends a turn, got none")
    return tokenizer.eos_token


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
    """Each segment encoded on its own, joined; the mask is the segments' ``trained``."""
    ids = tokenizer([segment.text for segment in segments], add_special_tokens=False)["input_ids"]
    token_ids = np.array([token for part in ids for token in part], dtype=np.int32)
    mask = np.repeat([segment.trained for segment in segments], [len(part) for part in ids])
    return token_ids, mask.astype(np.bool_)
