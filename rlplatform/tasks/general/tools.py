"""The tools that agent tasks offer, how they stand in a prompt, and requests that call them."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlplatform.tasks.general.words import CITIES, FRUITS, NAMES, THINGS

_HEAD = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
_TAIL = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
    "</tool_call>"
)
_TEXTS = ("hello", "thanks", "sorry", "call me", "good luck", "come home", "well done", "wait here")


@dataclass(frozen=True)
class Tool:
    name: str
    about: str
    arguments: Mapping[str, str]  # name -> JSON type
    request: str  # a template over the arguments

    @property
    def schema(self) -> dict[str, Any]:
        """As chat templates take it."""
        properties = {name: {"type": kind} for name, kind in self.arguments.items()}
        parameters = {"type": "object", "properties": properties, "required": list(properties)}
        return {
            "type": "function",
            "function": {"name": self.name, "description": self.about, "parameters": parameters},
        }


TOOLS = {
    tool.name: tool
    for tool in (
        Tool("weather", "Weather of a city", {"city": "string"}, "What is the weather in {city}?"),
        Tool("time", "Time in a city", {"city": "string"}, "What time is it in {city}?"),
        Tool("add", "Add two numbers", {"a": "integer", "b": "integer"}, "Add {a} and {b}."),
        Tool("flight", "Find a flight", {"start": "string", "end": "string"}, "Find a flight from {start} to {end}."),
        Tool("message", "Send a message", {"to": "string", "text": "string"}, "Send {to} the message: {text}"),
        Tool("alarm", "Set an alarm", {"hour": "integer"}, "Wake me at {hour} o'clock."),
        Tool("order", "Order things", {"item": "string", "count": "integer"}, "Order {count} of this: {item}"),
        Tool("price", "Price of a thing", {"item": "string"}, "What does the {item} cost?"),
    )
}


def sample_arguments(rng: random.Random, tool: str) -> dict[str, Any]:
    start, end = rng.sample(CITIES, 2)
    drawn = {
        "city": start,
        "start": start,
        "end": end,
        "a": rng.randint(10, 999),
        "b": rng.randint(10, 999),
        "to": rng.choice(NAMES),
        "text": rng.choice(_TEXTS),
        "hour": rng.randint(1, 12),
        "item": rng.choice(THINGS + FRUITS),
        "count": rng.randint(2, 99),
    }
    return {name: drawn[name] for name in TOOLS[tool].arguments}


def offer(rng: random.Random, needed: Sequence[str], level: int, without: Sequence[str] = ()) -> str:
    """A system message with the needed tools among ``level`` or more others, in any order.

    At difficulty 3 it is word for word the head that Qwen3's chat template writes for tools; below, a short form.
    """
    others = [name for name in TOOLS if name not in {*needed, *without}]
    names = list(dict.fromkeys(needed)) + rng.sample(others, min(len(others), level + (not needed)))
    rng.shuffle(names)
    if level >= 3:
        return _HEAD + "".join(f"\n{json.dumps(TOOLS[name].schema, ensure_ascii=False)}" for name in names) + _TAIL
    lines = [f"{name}({', '.join(TOOLS[name].arguments)})" for name in names]
    return "Tools: " + "; ".join(lines) + ". Answer with <tool_call> blocks, or say that none of the tools fits."


def block(name: str, arguments: Mapping[str, Any]) -> str:
    """A call as Qwen3 writes it."""
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': dict(arguments)}, ensure_ascii=False)}\n</tool_call>"


def expected(*calls: tuple[str, Mapping[str, Any]]) -> str:
    """Column ``answer`` of the `tool_calls` reward: JSON text, so that files keep it as it is."""
    return json.dumps([{"name": name, "arguments": dict(arguments)} for name, arguments in calls], ensure_ascii=False)
