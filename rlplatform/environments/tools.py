"""Tools of an environment: declared by JSON schema, called strictly, and every wrong call answered with the reason.

What a model gets wrong (a call that cannot be read, an unknown tool, arguments that break the schema, a value that a
tool refuses) comes back to it as the text of a tool message that begins with ``error:``. An exception of a tool itself
is the environment's own fault and passes through.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewards.answer import after_thoughts
from rewards.tool_calls import complaint_of, read_calls
from rlplatform.environments.contract import Opening, Row, Step
from rlplatform.types import Message

MAX_CALLS = 8  # of one turn that are carried out
MAX_RESULT = 2000  # characters of a result that a model is shown
UNREADABLE = (
    'error: expected <tool_call>{"name": ..., "arguments": {...}}</tool_call>, one JSON object a block, each closed'
)


class ToolError(Exception):
    """What a tool answers to arguments that it refuses; the message is for the model."""


@dataclass(frozen=True)
class Tool:
    """``run`` takes the arguments by name and returns the result's text."""

    name: str
    description: str
    properties: Mapping[str, Any]  # argument -> JSON schema; all are required, no others allowed
    run: Callable[..., str]

    @property
    def parameters(self) -> dict[str, Any]:
        return {"type": "object", "properties": dict(self.properties), "required": list(self.properties)}

    @property
    def schema(self) -> dict[str, Any]:
        """As the head of a prompt lists it."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class Said:
    """An assistant message read: calls, or else an answer."""

    answer: str  # after the thought, stripped; "" where there are calls
    calls: tuple[tuple[str, dict[str, Any]], ...] = ()
    readable: bool = True  # False: there are tool call tags, but no calls that can be read


def read_message(message: Message) -> Said:
    """Calls stand after the thought; a turn whose thought is not closed has said nothing."""
    text = after_thoughts(message["content"])
    if text is None:
        return Said("")
    calls = read_calls(text)
    if calls is None:
        return Said("", readable=False)
    return Said("" if calls else text.strip(), tuple(calls))


def tool_message(text: str) -> dict[str, Any]:
    """A result, cut visibly where it is too long for a prompt."""
    if len(text) > MAX_RESULT:
        text = f"{text[:MAX_RESULT]}\n... ({len(text) - MAX_RESULT} more characters)"
    return {"role": "tool", "content": text}


def call_text(name: str, arguments: Mapping[str, Any]) -> str:
    """A call as the chat template writes it."""
    import json

    return f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments, ensure_ascii=False)}}}\n</tool_call>'


class ToolEnvironment:
    """A text environment around tools: calls are carried out, a message without calls is the final answer.

    Score 1.0 where ``grade`` says so, else 0.0. With ``needs_tool`` an episode in which no call succeeded scores 0,
    whatever the answer: what is trained here is the use of tools.
    """

    def __init__(self, *, needs_tool: bool = True, show_tools: bool = True) -> None:
        self._needs_tool, self._show_tools = needs_tool, show_tools
        self._tools: dict[str, Tool] = {}
        self._schemas: dict[str, Any] = {}
        self._row: Row = {}
        self.num_calls = self.num_errors = 0

    # --- what a subclass gives --------------------------------------------------------------------------------------

    def tools(self) -> Sequence[Tool]:
        """Fresh ones for the episode of ``self.row``."""
        raise NotImplementedError

    def grade(self, answer: str) -> tuple[bool, Mapping[str, float], str]:
        """(is it right, parts, detail) of a final answer."""
        raise NotImplementedError

    # --- the contract -----------------------------------------------------------------------------------------------

    @property
    def row(self) -> Row:
        return self._row

    def reset(self, *, seed: int, row: Row) -> Opening:
        self._row, self.num_calls, self.num_errors = row, 0, 0
        self._tools = {tool.name: tool for tool in self.tools()}
        self._schemas = {name: tool.parameters for name, tool in self._tools.items()}
        shown = tuple(tool.schema for tool in self._tools.values()) if self._show_tools else ()
        return Opening(prompt_messages(row["prompt"]), shown)

    def step(self, message: Message) -> Step:
        said = read_message(message)
        if not said.readable:
            self.num_errors += 1
            return Step([tool_message(UNREADABLE)])
        if said.calls:
            return Step([tool_message(self._call(n, *call)) for n, call in enumerate(said.calls)])
        right, parts, detail = self.grade(said.answer)
        used = self.num_calls > 0
        parts = {**parts, "used_tool": float(used), "tool_errors": float(self.num_errors)}
        if self._needs_tool and not used:
            right, detail = False, "answered without a tool"
        return Step([], float(right), terminated=True, info={"parts": parts, "detail": detail})

    def _call(self, number: int, name: str, arguments: dict[str, Any]) -> str:
        try:
            if number >= MAX_CALLS:
                raise ToolError(f"at most {MAX_CALLS} calls a turn")
            complaint = complaint_of(name, arguments, self._schemas)
            if complaint:
                raise ToolError(complaint)
            result = self._tools[name].run(**arguments)
        except ToolError as error:
            self.num_errors += 1
            return f"error: {error}"
        self.num_calls += 1
        return result


def prompt_messages(prompt: Any) -> list[Message]:
    """A row's prompt: a text of the user's, or messages."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(one) for one in prompt]
