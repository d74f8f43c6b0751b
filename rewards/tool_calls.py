"""The `tool_calls` reward: are the right tools called with the right arguments?

Calls are Hermes blocks, as Qwen3's template teaches: ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``, one
object a block, after the thoughts. Expected calls are plain calls or BFCL's possible answers; they are compared as the
Berkeley Function Calling Leaderboard's AST check does (Patil et al. 2023, arXiv 2305.15334, and its leaderboard).
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rewards.answer import after_thoughts
from rewards.base import Verdict, rowwise
from rewards.format import prompt_opens_block, text_of
from rewards.response import has_content
from rewards.structured import BrokenSchema, read_json, read_schema, schema_complaint
from rewards.text import unreadable

_BLOCK = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_TAG = re.compile(r"<\s*/?\s*tool_call\b", re.IGNORECASE)
# BFCL writes Python's, Java's and JavaScript's type names into its schemas.
_TYPES = {
    "dict": "object",
    "hashmap": "object",
    "float": "number",
    "double": "number",
    "long": "integer",
    "short": "integer",
    "byte": "integer",
    "bigint": "integer",
    "tuple": "array",
    "list": "array",
    "arraylist": "array",
    "set": "array",
    "char": "string",
    "bool": "boolean",
}
_JSON_TYPES = frozenset({"object", "number", "integer", "array", "string", "boolean", "null"})


@rowwise
def tool_calls_reward(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    answer: Sequence[Any],
    tools: Sequence[Any] | None = None,
    prompt_text: Sequence[str] | None = None,
    **columns: Any,
) -> list[Verdict]:
    """1.0 where the calls are the expected ones, in any order, none left out and none too many; else 0.0.

    Column ``answer`` (a list, or JSON of one) holds calls ``{"name": ..., "arguments": {...}}``, or BFCL's
    ``{name: {argument: [allowed values]}}``, where ``""`` among the values makes an argument optional. The empty list
    says that no tool fits: a call then scores 0, an answer in words 1. Null says that nothing certain is expected: then
    every call (at least one) must be of a function of column ``tools`` and fit its schema.
    Column ``tools`` (optional): the functions on offer, as JSON schemas, bare or in OpenAI's ``{"type": "function",
    "function": ...}``. Where calls are expected these decide, and the schemas only fill the part ``schema``: BFCL's own
    answers break its schemas at times (a variable's name where an object is declared).
    Text compares without case, spaces and the signs ``,./-_*^``, as BFCL does; true is not 1, and 5 is 5.0.
    A block that is not closed or holds no such object makes the whole answer score 0. Parts: ``well_formed``,
    ``names``, ``schema``.
    """
    verdicts = []
    for row, completion in enumerate(completions):
        schemas = {} if tools is None or tools[row] is None else read_tools(tools[row])
        by_schema = answer[row] is None and bool(schemas)
        expected = [] if by_schema else read_expected(answer[row])
        if expected is None:
            verdicts.append(unreadable("the expected calls", answer[row]))
            continue
        if schemas is None:
            verdicts.append(unreadable("column tools", tools[row] if tools is not None else None))
            continue
        opened = prompt_opens_block(prompts[row], prompt_text[row] if prompt_text else None)
        text = after_thoughts(text_of(completion), opened=opened)
        verdicts.append(_grade(text, None if by_schema else expected, schemas))
    return verdicts


def _grade(text: str | None, expected: list[Expected] | None, schemas: Mapping[str, Any]) -> Verdict:
    if text is None:
        return Verdict(0.0, detail="the think block is not closed")
    calls = read_calls(text)
    if calls is None:
        return Verdict(0.0, parts={"well_formed": 0.0}, detail="a tool call that cannot be read")
    if expected == [] and not calls:
        return Verdict(float(has_content(text)), parts={"well_formed": 1.0}, detail="no call, as expected")
    complaint = next((found for name, arguments in calls if (found := complaint_of(name, arguments, schemas))), "")
    parts = {"well_formed": 1.0} | ({"schema": float(not complaint)} if schemas else {})
    if expected is None:
        return Verdict(float(bool(calls) and not complaint), parts=parts, detail=complaint or f"{len(calls)} calls")
    parts["names"] = float(sorted(name for name, _ in calls) == sorted(name for name, _ in expected))
    right = _all_match(expected, calls)
    shown = f"called {json.dumps(calls, ensure_ascii=False)[:300]}"
    return Verdict(float(right), parts=parts, detail="as expected" if right else complaint or shown)


# --- what was called ------------------------------------------------------------------------------------------------


def read_calls(text: str) -> list[tuple[str, dict[str, Any]]] | None:
    """The calls of an answer; None where a block is not closed, or is no call."""
    if _TAG.search(_BLOCK.sub("", text)):
        return None
    calls = []
    for block in _BLOCK.findall(text):
        try:
            call = read_json(block)
        except ValueError:
            return None
        if not isinstance(call, dict) or set(call) != {"name", "arguments"}:
            return None
        if not isinstance(call["name"], str) or not isinstance(call["arguments"], dict):
            return None
        calls.append((call["name"], call["arguments"]))
    return calls


def complaint_of(name: str, arguments: dict[str, Any], schemas: Mapping[str, Any]) -> str:
    """What a call does against the tools on offer; "" where nothing, or where no tools are given."""
    if not schemas:
        return ""
    if name not in schemas:
        return f"no tool is called {name!r}"
    unknown = set(arguments) - set(schemas[name].get("properties", {}))
    if unknown and schemas[name].get("additionalProperties") is not True:
        return f"{name}: no argument {sorted(unknown)[0]!r}"
    complaint = schema_complaint(read_schema(schemas[name]), arguments)
    return f"{name}: {complaint}" if complaint else ""


# --- what was expected ----------------------------------------------------------------------------------------------

Expected = tuple[str, dict[str, list[Any]]]  # a name, and the allowed values of each argument


def read_expected(value: Any) -> list[Expected] | None:
    """Both notations as one; None where it is neither."""
    value = _from_json(value)
    if not isinstance(value, list):
        return None
    expected: list[Expected] = []
    for call in value:
        if not isinstance(call, dict) or not call:
            return None
        if set(call) == {"name", "arguments"} and isinstance(call["name"], str):
            arguments = _from_json(call["arguments"])
            if not isinstance(arguments, dict):
                return None
            expected.append((call["name"], {key: [_Plain(one)] for key, one in arguments.items()}))
            continue
        if len(call) != 1:
            return None
        ((name, allowed),) = call.items()
        if not isinstance(allowed, dict) or not all(isinstance(values, list) for values in allowed.values()):
            return None
        expected.append((name, {key: values or [[]] for key, values in allowed.items()}))
    return expected


def read_tools(value: Any) -> dict[str, Any] | None:
    """Function name -> schema of its arguments, in JSON Schema's type names; None where it is no list of functions."""
    try:
        return _read_tools(value if isinstance(value, str) else json.dumps(value))
    except (TypeError, ValueError):
        return None


@functools.lru_cache(maxsize=1024)
def _read_tools(text: str) -> dict[str, Any] | None:
    value = _from_json(text)
    if not isinstance(value, list):
        return None
    found = {}
    for tool in value:
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            return None
        schema = _json_schema(function.get("parameters") or {"type": "object", "properties": {}})
        try:
            read_schema(schema)
        except BrokenSchema:
            return None
        found[function["name"]] = schema
    return found


def _from_json(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None


def _json_schema(schema: Any) -> Any:
    """With JSON's type names; a type that JSON does not know (``any``) allows everything."""
    if isinstance(schema, list):
        return [_json_schema(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: value for key, value in schema.items() if key in ("enum", "const", "default", "description")}
    for key, value in schema.items():
        if key == "type" and isinstance(value, str):
            name = _TYPES.get(value.lower(), value.lower())
            if name in _JSON_TYPES:
                found["type"] = name
        elif key == "properties" and isinstance(value, dict):
            found[key] = {name: _json_schema(one) for name, one in value.items()}
        elif key == "required" and not isinstance(value, list):
            continue
        elif key not in found and key not in ("optional", "format"):
            found[key] = _json_schema(value)
    return found


# --- the comparison -------------------------------------------------------------------------------------------------


class _Plain:
    """A value that means itself, lists and objects too: no alternatives inside."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _all_match(expected: list[Expected], calls: list[tuple[str, dict[str, Any]]]) -> bool:
    """One call to each expected one (augmenting paths: a call may fit several)."""
    if len(expected) != len(calls):
        return False
    taken: dict[int, int] = {}

    def place(k: int, seen: set[int]) -> bool:
        for n, call in enumerate(calls):
            if n not in seen and matches(expected[k], call):
                seen.add(n)
                if n not in taken or place(taken[n], seen):
                    taken[n] = k
                    return True
        return False

    return all(place(k, set()) for k in range(len(expected)))


def matches(expected: Expected, call: tuple[str, dict[str, Any]]) -> bool:
    """The same function, and every argument among its allowed values."""
    (name, allowed), (called, arguments) = expected, call
    return name == called and _same_arguments(allowed, arguments)


def _same_arguments(allowed: Mapping[str, list[Any]], arguments: Mapping[str, Any]) -> bool:
    if any(key not in allowed for key in arguments):
        return False
    missing = [key for key in allowed if key not in arguments]
    if any(not any(isinstance(one, str) and one == "" for one in allowed[key]) for key in missing):
        return False
    return all(any(_same(one, value) for one in allowed[key]) for key, value in arguments.items())


def _same(allowed: Any, value: Any) -> bool:
    """In an allowed object every value is a list of alternatives in its turn (BFCL)."""
    if isinstance(allowed, _Plain):
        return _same_plain(allowed.value, value)
    if isinstance(allowed, dict):
        if not isinstance(value, dict):
            return False
        lists = {key: one if isinstance(one, list) else [one] for key, one in allowed.items()}
        return _same_arguments(lists, value)
    if isinstance(allowed, list):
        return isinstance(value, list) and len(allowed) == len(value) and all(map(_same, allowed, value))
    return _same_plain(allowed, value)


def _same_plain(expected: Any, value: Any) -> bool:
    if isinstance(expected, dict):
        return (
            isinstance(value, dict)
            and set(expected) == set(value)
            and all(_same_plain(one, value[key]) for key, one in expected.items())
        )
    if isinstance(expected, list):
        return isinstance(value, list) and len(expected) == len(value) and all(map(_same_plain, expected, value))
    if isinstance(expected, bool) or isinstance(value, bool):
        return expected is value
    if isinstance(expected, str):
        return isinstance(value, str) and _standard(expected) == _standard(value)
    return not isinstance(value, str) and bool(expected == value)


def _standard(text: str) -> str:
    return re.sub(r"[ ,./\-_*^]", "", text).casefold().replace("'", '"')


def warm_up() -> None:
    """Import the validator once; forks inherit it."""
    complaint_of("f", {}, {"f": {"type": "object"}})
