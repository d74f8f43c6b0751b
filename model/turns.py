"""A conversation taken apart at its assistant turns, with any chat template.

What a template writes around a turn is found by rendering: a word that stands nowhere in the conversation takes the
place of the assistant's text, and what the template puts before and after it is the frame.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from model.messages import Message, RenderError, check_messages, render_chat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_USER = {"role": "user", "content": "x"}
_OPEN, _CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class Turn:
    message: int  # index of the assistant message
    before: str  # from the end token of the previous turn to the assistant's text, as prompted with thinking on
    text: str  # the assistant's, without the token that ends the turn


class Conversation:
    """The turns of one conversation, and what the template makes of the whole.

    Args:
        tokenizer: its own template is used.
        messages: with or without assistant turns; messages after the last one are kept.
        tools: JSON schemas for the template's head.
        enable_thinking: handed to the template. False prompts every turn that holds no thought of its own with what
            the template then adds.
        add_generation_prompt: the last thing written is the prompt of the next turn.
        template_kwargs: further variables of the template.

    Raises:
        RenderError: the conversation cannot be rendered (``render_chat``), or holds an assistant message without
            content, thought or call; or the template does not write a turn as it prompts for it.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        enable_thinking: bool = True,
        add_generation_prompt: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(enable_thinking, bool):
            raise RenderError(f"enable_thinking: expected true or false, got {enable_thinking!r}")
        self._tokenizer, self._tools = tokenizer, tools
        self._variables = {**(template_kwargs or {}), "enable_thinking": True}
        self._enable_thinking, self._add_generation_prompt = enable_thinking, add_generation_prompt
        check_messages(messages, tools, template=str(tokenizer.chat_template))
        self._messages = [_with_content(message, index) for index, message in enumerate(messages)]
        self._word = _absent_word(messages, tools)
        self._spoken = {"role": "assistant", "content": self._word}
        self._plain_prompt = self._render([_USER], prompt=True)

    @cached_property
    def closed_block(self) -> str:
        """What ``enable_thinking=False`` adds to a generation prompt: Qwen3's empty think block; "" with thinking."""
        if self._enable_thinking:
            return ""
        prompt = self._render([_USER], prompt=True, enable_thinking=False)
        if not prompt.startswith(self._plain_prompt):
            raise RenderError(
                "enable_thinking=false: expected the template to add to its generation prompt "
                f"{self._plain_prompt!r}, it writes {prompt!r}"
            )
        return prompt[len(self._plain_prompt) :]

    @cached_property
    def end(self) -> str:
        """The token that ends an assistant turn: eos, or the added token that the template writes there."""
        _, _, tail = self._render([_USER, self._spoken]).partition(self._word)
        known = [str(self._tokenizer.eos_token or ""), *(str(t) for t in self._tokenizer.get_added_vocab())]
        for token in known:
            if token and tail.startswith(token):
                return token
        raise RenderError(
            f"expected the template to end an assistant turn with eos {self._tokenizer.eos_token!r} or another added "
            f"token, it writes {tail!r}"
        )

    @cached_property
    def _unprompted(self) -> str:
        """What precedes the assistant's text in a conversation that starts with it."""
        opening = self._plain_prompt.removeprefix(self._render([_USER]))
        head, _, _ = self._render([self._spoken]).partition(self._word)
        start, found, _ = head.rpartition(opening)
        if not found:
            raise RenderError(
                f"message 0: the template does not write its generation prompt {opening!r} before an assistant "
                f"message that comes first; got {head!r}"
            )
        return start + opening

    @cached_property
    def turns(self) -> list[Turn]:
        found: list[Turn] = []
        previous = -1
        for index, message in enumerate(self._messages):
            if message["role"] != "assistant":
                continue
            between = self._messages[previous + 1 : index]
            if previous >= 0:
                before = self._after_a_turn(between, prompt=True)
            else:
                before = self._render(between, prompt=True) if between else self._unprompted
            found.append(Turn(index, before, self._text(message, index)))
            previous = index
        return found

    @cached_property
    def tail(self) -> str:
        """What follows the last turn's end token: a newline, messages after it, the next generation prompt. Without
        any turn it is the whole text."""
        if not self.turns:
            return self.stock
        rest = self._messages[self.turns[-1].message + 1 :]
        prompt = self._add_generation_prompt
        return self._after_a_turn(rest, prompt=prompt) + (self.closed_block if prompt else "")

    @cached_property
    def stock(self) -> str:
        """The template's own rendering of the whole conversation."""
        return self._render(self._messages, prompt=self._add_generation_prompt, enable_thinking=self._enable_thinking)

    @cached_property
    def stock_spans(self) -> list[tuple[int, int]] | None:
        """Where in ``stock`` each turn's text stands, without its end token; None where that cannot be told."""
        spans: list[tuple[int, int]] = []
        position = 0
        for number, turn in enumerate(self.turns):
            if not self.stock.startswith(turn.before, position):
                return None
            start = position + len(turn.before)
            if number + 1 < len(self.turns):
                stop = self.stock.find(self.end + self.turns[number + 1].before, start)
            else:
                stop = len(self.stock) - len(self.end + self.tail)
                stop = stop if self.stock.endswith(self.end + self.tail) else -1
            if stop < start:
                return None
            spans.append((start, stop))
            position = stop + len(self.end)
        return spans

    # --- by rendering -------------------------------------------------------------------------------------------------

    def _render(self, messages: Sequence[Message], *, prompt: bool = False, **variables: Any) -> str:
        return render_chat(
            self._tokenizer,
            messages,
            tools=self._tools,
            add_generation_prompt=prompt,
            template_kwargs=self._variables | variables,
        )

    def _after_a_turn(self, messages: Sequence[Message], *, prompt: bool) -> str:
        shown = self._render([_USER, self._spoken, *messages], prompt=prompt)
        _, found, tail = shown.partition(self._word + self.end)
        if not found:
            raise RenderError(f"the template does not write {self.end!r} after an assistant turn; got {shown!r}")
        return tail

    def _text(self, message: Message, index: int) -> str:
        content, calls, reasoning = message["content"], message.get("tool_calls"), message.get("reasoning_content")
        as_written = not reasoning and (_CLOSE in content or content.lstrip().startswith(_OPEN))
        if as_written:
            # A prompt may have opened the block itself.
            _, opening, after = self._plain_prompt.rpartition(_OPEN)
            content = content.removeprefix(opening + after) if opening and not after.strip() else content
            if not calls:
                return content
            if not content.rpartition(_CLOSE)[2].strip("\n"):  # nothing is said between the thought and the calls
                silent = {**message, "content": "", "reasoning_content": None}
                bare = self._text({**silent, "tool_calls": None}, index)
                return content + self._text(silent, index).removeprefix(bare)
            shown = self._render([_USER, {**message, "content": self._word, "reasoning_content": None}])
            return content + shown.partition(self._word)[2].rpartition(self.end)[0]
        shown = self._render([_USER, message])
        if not shown.startswith(self._plain_prompt):
            raise RenderError(
                f"message {index}: the template's rendering of the assistant turn does not start with its own "
                f"generation prompt {self._plain_prompt!r}; got {shown!r}"
            )
        return shown[len(self._plain_prompt) :].rpartition(self.end)[0]


def _with_content(message: Message, index: int) -> dict[str, Any]:
    """Absent content as an empty string: some templates refuse None, or write it as a word."""
    content = message.get("content")
    if content is None and not message.get("tool_calls") and not message.get("reasoning_content"):
        raise RenderError(f"message {index}: an assistant message without content, thought or tool call")
    return {**message, "content": content or ""}


def _absent_word(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None) -> str:
    everything = json.dumps([list(map(dict, messages)), list(tools or ())], ensure_ascii=False, default=str)
    word = "\u2402assistant\u2402"
    while word in everything:
        word += "\u2402"
    return word
