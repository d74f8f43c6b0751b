"""A conversation through a tokenizer's own chat template, checked first.

Qwen3's template writes nothing where it does not understand something: content that is a list of parts, an unknown
role, ``reasoning_content`` that is not a string. What would be lost that way is an error here.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, Any]

ROLES = ("system", "user", "assistant", "tool")


class RenderError(ValueError):
    """A conversation that cannot be rendered as it stands; the message says which turn and why."""


def check_messages(messages: Any, tools: Any = None, *, template: str = "") -> None:
    """Refuse what a template would drop without a word.

    Content is a string. An assistant's may be None or absent: a call or a thought alone has none. ``template``: the
    template's source; a role beyond system, user, assistant and tool is accepted where the source names it.

    Raises:
        RenderError: naming the message by its index from 0.
    """
    if not _is_list(messages) or not messages:
        raise RenderError(f"messages: expected a list of at least one message, got {_shown(messages)}")
    for index, message in enumerate(messages):
        try:
            _check_message(message, template)
        except RenderError as error:
            raise RenderError(f"message {index}: {error}") from None
    if tools is not None and not (_is_list(tools) and all(isinstance(tool, Mapping) for tool in tools)):
        raise RenderError(f"tools: expected a list of JSON schemas (objects), got {_shown(tools)}")


def _check_message(message: Any, template: str) -> None:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise RenderError(f"expected an object with a role and content, got {_shown(message)}")
    role, content = message["role"], message.get("content")
    if role not in ROLES and f"'{role}'" not in template and f'"{role}"' not in template:
        raise RenderError(f"expected a role of {', '.join(ROLES)}, got {role!r}: the template would leave it out")
    if not isinstance(content, str) and not (content is None and role == "assistant"):
        hint = "; join the text of its parts into one string" if _is_list(content) else ""
        raise RenderError(f"{role}: expected content to be a string, got {_shown(content)}{hint}")
    for key in ("reasoning_content", "tool_calls"):
        if message.get(key) and role != "assistant":
            raise RenderError(f"{role}: only an assistant's message has {key}; the template would leave it out")
    reasoning = message.get("reasoning_content")
    if reasoning is not None and not isinstance(reasoning, str):
        raise RenderError(f"expected reasoning_content to be a string, got {_shown(reasoning)}")
    calls = message.get("tool_calls")
    if calls is not None and not _is_list(calls):
        raise RenderError(f"expected tool_calls to be a list, got {_shown(calls)}")
    for number, call in enumerate(calls or ()):
        function = (call.get("function") or call) if isinstance(call, Mapping) else None
        if (
            not isinstance(function, Mapping)
            or not isinstance(function.get("name"), str)
            or "arguments" not in function
        ):
            raise RenderError(f"tool call {number}: expected a name and arguments, got {_shown(call)}")


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 80 else text[:77] + '...'} ({type(value).__name__})"


# --- the template's own rendering -----------------------------------------------------------------------------------


def render_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = False,
    template_kwargs: Mapping[str, Any] | None = None,
) -> str:
    """The conversation as the tokenizer's own chat template writes it, for inference.

    ``template_kwargs`` are variables of the template, e.g. ``{"enable_thinking": False}``.

    Raises:
        RenderError: no template, a conversation that it refuses or would show in part only, or a keyword that is an
            argument of ``apply_chat_template`` instead of a variable of the template.
    """
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise RenderError("the tokenizer has no chat template; set tokenizer.chat_template")
    check_messages(messages, tools, template=str(tokenizer.chat_template))
    variables = dict(template_kwargs or {})
    odd = sorted(set(variables) & _arguments(type(tokenizer)))  # type: ignore[arg-type]
    if odd:
        raise RenderError(f"template_kwargs: expected variables of the chat template, got {', '.join(odd)}")
    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tools=[dict(tool) for tool in tools] if tools else None,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **variables,
        )
    except (TemplateError, TypeError) as error:
        raise RenderError(f"the chat template refuses the conversation: {error}") from error
    return str(text)


@functools.cache
def _arguments(kind: type) -> frozenset[str]:
    """The names that ``apply_chat_template`` keeps for itself."""
    return frozenset({"messages", *inspect.signature(kind.apply_chat_template).parameters})  # type: ignore[attr-defined]
