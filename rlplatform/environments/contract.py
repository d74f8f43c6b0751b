"""What environments say and are told, and the checks of it."""

from __future__ import annotations

import math
import numbers
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

from model.messages import RenderError, check_messages
from rlplatform.types import Message

Row = Mapping[str, Any]  # a dataset row
# ``await chat(messages, tools)``: all messages so far in, the next assistant message out
Chat = Callable[..., Awaitable[Message]]


class EnvironmentLoadError(ValueError):
    """An environment that cannot be found, imported or made; the message says what to change."""


class ContractError(RuntimeError):
    """An environment said something that the contract does not allow; the episode's status is ``error``."""


class LimitReached(Exception):
    """Raised by ``chat`` where the episode may have no further turn; an async environment may catch it and still grade.

    Uncaught it is a score of 0: that the model did not come to an end in time is its own fault.
    """


class Opening(NamedTuple):
    """How an episode begins. It depends on the row alone: all episodes of a row share one prompt."""

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] = ()  # JSON schemas, for the head of the prompt


class Step(NamedTuple):
    """What follows an assistant message; gymnasium's five values. The score of an episode is the sum of its rewards."""

    messages: Sequence[Message]  # tool or user messages; not shown to the model where the episode is over
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    info: Mapping[str, Any] = {}  # of the last step: "parts" (name -> score) and "detail" go into the verdict


@runtime_checkable
class TextEnvironment(Protocol):
    """One episode at a time; a class or a function without required arguments makes one for each episode.

    ``close()``, where there is one, is called at the end. Calls come from one thread, which they may block until the
    deadline of a step.
    """

    def reset(self, *, seed: int, row: Row) -> Opening: ...

    def step(self, message: Message) -> Step: ...


@dataclass
class Dialogue:
    """The messages of an episode so far. They are only ever continued: a rewritten past has no tokens."""

    messages: list[Message] = field(default_factory=list)
    tools: tuple[Mapping[str, Any], ...] = ()
    num_turns: int = 0  # of the assistant

    def extend(self, messages: Any, tools: Any = None) -> list[Message]:
        """Take a history that continues this one; returns what is new.

        Raises:
            ContractError: it does not, or its new messages cannot be shown to a model.
        """
        if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes)):
            raise ContractError(f"expected a list of messages, got {type(messages).__name__} {str(messages)[:60]!r}")
        known = len(self.messages)
        for index, (ours, theirs) in enumerate(zip(self.messages, messages, strict=False)):
            same = isinstance(theirs, Mapping) and all(ours.get(key) == theirs.get(key) for key in ("role", "content"))
            if not same:
                raise ContractError(
                    f"message {index}: the history was rewritten; hand the messages so far, assistant's included, and "
                    f"append to them: expected {str(ours)[:80]}, got {str(theirs)[:80]}"
                )
        new = list(messages[known:])
        if not new:
            raise ContractError(f"expected new messages after the {known} so far, got none: the model has just spoken")
        if tools is not None and known and tuple(tools) != self.tools:
            raise ContractError(
                "the tools are part of the first prompt; they cannot change in the middle of an episode"
            )
        try:
            check_messages(new, None if tools is None else list(tools))
        except RenderError as error:
            raise ContractError(f"new messages: {error}") from None
        if known and any(message["role"] == "assistant" for message in new):
            raise ContractError("expected new messages of roles tool, user or system; the assistant's are the model's")
        if new[-1]["role"] == "assistant":
            raise ContractError("expected the last message to be another's than the assistant's, whose turn it is")
        if not known:
            self.tools = tuple(tools or ())
        self.messages += [dict(message) for message in new]
        return new

    def reply(self, message: Message) -> None:
        """Take the assistant's next message."""
        self.messages.append(message)
        self.num_turns += 1


def read_opening(value: Any, where: str) -> Opening:
    """``reset``'s answer: an Opening, ``{"messages", "tools"}``, messages, or gymnasium's (observation, info).

    Raises:
        ContractError: none of these.
    """
    if isinstance(value, Opening):
        return value
    if isinstance(value, Mapping) and "messages" in value:
        return Opening(value["messages"], tuple(value.get("tools") or ()))
    tools: Any = ()
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], Mapping):
        value, tools = value[0], value[1].get("tools") or ()
    messages = as_messages(value)
    if not messages:
        raise ContractError(f"{where}: reset: expected messages or text, got {str(value)[:80]!r}")
    return Opening(messages, tuple(tools))


def read_step(value: Any, where: str) -> Step:
    """``step``'s five values, checked.

    Raises:
        ContractError: other values; a reward that is not a finite number, or flags that are not true or false.
    """
    if not isinstance(value, tuple) or len(value) != 5:
        raise ContractError(
            f"{where}: step: expected (messages, reward, terminated, truncated, info), got {str(value)[:80]!r}"
        )
    observed, reward, terminated, truncated, info = value
    if hasattr(reward, "item"):  # numpy
        reward = reward.item()
    if isinstance(reward, bool) or not isinstance(reward, numbers.Real) or not math.isfinite(reward):
        raise ContractError(f"{where}: step: expected a finite reward, got {reward!r}")
    for name, flag in (("terminated", terminated), ("truncated", truncated)):
        if flag not in (True, False):
            raise ContractError(f"{where}: step: {name}: expected true or false, got {flag!r}")
    messages = as_messages(observed)
    if messages is None or (not messages and not terminated and not truncated):
        raise ContractError(f"{where}: step: expected messages or text, got {str(observed)[:80]!r}")
    return Step(messages, float(reward), bool(terminated), bool(truncated), info or {})


def as_messages(value: Any) -> list[Message] | None:
    """An observation as messages: text is one of the user's. None where it is neither."""
    if value is None:
        return []
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if isinstance(value, Sequence) and all(isinstance(one, Mapping) and "role" in one for one in value):
        return [dict(one) for one in value]
    return None
