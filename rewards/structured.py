"""The `json_schema` reward: is the answer one JSON value that its schema allows? And the one strict reading of JSON.

``read_json`` and ``schema_complaint`` serve `tool_calls` and `instruction` as well. Nothing is ever fetched: a ``$ref``
to another document makes a schema broken.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rewards.answer import after_thoughts
from rewards.base import UNPARSEABLE, Verdict, rowwise
from rewards.format import prompt_opens_block, text_of
from rewards.text import unreadable

FENCED = ("allowed", "required", "forbidden")
_FENCE = re.compile(r"(?P<fence>`{3,}|~{3,})[ \t]*(?:json)?[ \t]*\r?\n(?P<body>.*)\n[ \t]*(?P=fence)", re.DOTALL | re.I)
_SPECIAL_TOKEN = re.compile(r"<\|[^<>|]*\|>")
# What the validator raises on values it cannot compute with: nested too deeply, numbers beyond floats.
_CANNOT_CHECK = (RecursionError, ArithmeticError, ValueError, TypeError)


class BrokenSchema(ValueError):
    """A schema that decides nothing; the message says why."""


@rowwise
def json_schema_reward(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    schema: Sequence[Any],
    answer: Sequence[Any] | None = None,
    prompt_text: Sequence[str] | None = None,
    *,
    fenced: str = "allowed",
    **columns: Any,
) -> list[Verdict]:
    """1.0 where all that stands after the thoughts is one JSON value, valid against column ``schema``; else 0.0.

    Column ``schema`` is a JSON Schema, a dict or better its JSON text (a dataset that stores dicts as structs fills
    absent keys with nulls). ``$schema`` picks the draft, 2020-12 where absent; ``format`` is a mere remark there.
    Column ``answer`` (optional): JSON text, or a value that is no text; the value must then also equal it. The order
    of keys does not count, true is not 1, 5 is 5.0, text is equal as written. Null asks for nothing.

    The value stands alone, or in one fence marked ``json`` or not at all; ``fenced`` is ``allowed``, ``required`` or
    ``forbidden``. Prose around it, two values, a key that stands twice, NaN, a trailing comma, a number beyond what a
    float holds score 0. Parts: ``parses``, ``valid``, ``equal``.

    A schema's ``pattern`` can take for ever on some text: the row then ends at ``reward.timeout_s`` as a ``timeout``.
    """
    if fenced not in FENCED:
        raise ValueError(f"json_schema reward: fenced: expected one of {', '.join(FENCED)}, got {fenced!r}")
    verdicts = []
    for row, completion in enumerate(completions):
        try:
            validator = read_schema(schema[row])
        except BrokenSchema as error:
            verdicts.append(Verdict(0.0, UNPARSEABLE, detail=f"column schema: {error}"))
            continue
        expected = None if answer is None else answer[row]
        if isinstance(expected, str):
            try:
                expected = read_json(expected)
            except ValueError:
                verdicts.append(unreadable("column answer: expected JSON;", expected))
                continue
        opened = prompt_opens_block(prompts[row], prompt_text[row] if prompt_text else None)
        text = after_thoughts(text_of(completion), opened=opened)
        verdicts.append(
            _grade(text, validator, expected, fenced, compare=answer is not None and answer[row] is not None)
        )
    return verdicts


def _grade(text: str | None, validator: Any, expected: Any, fenced: str, *, compare: bool) -> Verdict:
    parts = {"parses": 0.0, "valid": 0.0} | ({"equal": 0.0} if compare else {})
    if text is None:
        return Verdict(0.0, parts=parts, detail="the think block is not closed")
    try:
        value = read_json(out_of_fence(text, fenced))
    except ValueError as error:
        return Verdict(0.0, parts=parts, detail=str(error))
    parts["parses"] = 1.0
    try:
        complaint = schema_complaint(validator, value)
    except BrokenSchema as error:
        return Verdict(0.0, UNPARSEABLE, detail=f"column schema: {error}")
    parts["valid"] = float(not complaint)
    if compare:
        parts["equal"] = float(_equal(expected, value))
        complaint = complaint or ("" if parts["equal"] else "not equal to the answer")
    return Verdict(float(not complaint), parts=parts, detail=complaint)


# --- reading --------------------------------------------------------------------------------------------------------


def without_special_tokens(text: str) -> str:
    """Without the special tokens (``<|im_end|>``) and white space at its end."""
    text = text.rstrip()
    while text.endswith("|>") and _SPECIAL_TOKEN.fullmatch(text, start := max(text.rfind("<|"), 0)):
        text = text[:start].rstrip()
    return text


def out_of_fence(text: str, fenced: str = "allowed") -> str:
    """What may be JSON in an answer. Raises ValueError where a fence is missing or forbidden."""
    text = without_special_tokens(text).strip()
    fence = _FENCE.fullmatch(text)
    if fence is None and fenced == "required":
        raise ValueError("expected one json fence and nothing around it")
    if fence is not None and fenced == "forbidden":
        raise ValueError("a fence where none is allowed")
    return text if fence is None else fence["body"]


def read_json(text: str) -> Any:
    """The one JSON value that ``text`` is (RFC 8259). Raises ValueError, saying why, where it is not one."""
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise ValueError("not JSON: nested too deeply") from None
    except ValueError as error:  # also an integer of more than 4,300 digits
        raise ValueError(f"not JSON: {error}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not a JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{digits[:20]} is beyond what a float holds")
    return value


# --- schemas --------------------------------------------------------------------------------------------------------


def read_schema(value: Any) -> Any:
    """A validator for a schema, given as a dict or as JSON text. Raises BrokenSchema."""
    if not isinstance(value, str):
        if not isinstance(value, Mapping):
            raise BrokenSchema(f"expected a JSON Schema or its text, got {type(value).__name__}")
        try:
            value = json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise BrokenSchema(f"no JSON: {error}") from None
    found = _read_schema(value)
    if isinstance(found, str):
        raise BrokenSchema(found)
    return found


@functools.lru_cache(maxsize=1024)
def _read_schema(text: str) -> Any:
    """The validator, or what is wrong as a string."""
    try:
        schema = read_json(text)
    except ValueError as error:
        return str(error)
    if not isinstance(schema, dict):
        return f"expected an object, got {text[:60]}"
    try:
        return validator_for(schema)
    except BrokenSchema as error:
        return str(error)


def validator_for(schema: Mapping[str, Any]) -> Any:
    """Raises BrokenSchema where it breaks its draft, or refers to what it does not hold."""
    import jsonschema
    import jsonschema_specifications

    draft = jsonschema.validators.validator_for(schema, default=None if "$schema" in schema else _default_draft())
    if draft is None:
        raise BrokenSchema(f"unknown $schema {str(schema['$schema'])[:100]!r}")
    try:
        draft.check_schema(schema)
        validator = draft(schema, registry=jsonschema_specifications.REGISTRY)  # a registry that fetches nothing
        _look_up_references(schema)
        next(validator.iter_errors(None), None)  # "$ref": "#" alone would run for ever
    except jsonschema.SchemaError as error:
        raise BrokenSchema(f"{error.json_path}: {error.message[:200]}") from None
    except RecursionError:
        raise BrokenSchema("nested without end") from None
    except Exception as error:  # the validator wraps failed references in a private type
        raise BrokenSchema(f"{type(error).__name__}: {str(error)[:200]}") from None
    return validator


def _default_draft() -> Any:
    import jsonschema

    return jsonschema.Draft202012Validator


def _look_up_references(schema: Mapping[str, Any]) -> None:
    """Every ``$ref`` now, so that a broken one does not depend on what a completion says."""
    import jsonschema_specifications
    import referencing
    import referencing.jsonschema

    root = referencing.Resource.from_contents(schema, default_specification=referencing.jsonschema.DRAFT202012)
    resolver = jsonschema_specifications.REGISTRY.resolver_with_root(root)
    found: list[Any] = [schema]
    held: list[str] = []
    while found:
        one = found.pop()
        if isinstance(one, dict):
            if isinstance(one.get("$id"), str) and one is not schema:
                return  # other base addresses: looked up when they are used
            held += [one["$ref"]] if isinstance(one.get("$ref"), str) else []
            found += [value for key, value in one.items() if key not in ("const", "enum", "default", "examples")]
        elif isinstance(one, list):
            found += one
    for reference in set(held):
        resolver.lookup(reference)


def schema_complaint(validator: Any, value: Any) -> str:
    """What is wrong with a value, "" where nothing. Raises BrokenSchema where a reference leads nowhere."""
    import referencing.exceptions

    try:
        error = next(validator.iter_errors(value), None)
    except referencing.exceptions.Unresolvable as unresolvable:
        raise BrokenSchema(f"{type(unresolvable).__name__}: {str(unresolvable)[:200]}") from None
    except _CANNOT_CHECK as failure:
        return f"cannot be checked: {type(failure).__name__}: {str(failure)[:100]}"
    return "" if error is None else f"{error.json_path}: {error.message[:200]}"


def _equal(expected: Any, value: Any) -> bool:
    try:
        return same_json(expected, value)
    except RecursionError:
        return False


def same_json(a: Any, b: Any) -> bool:
    """Equality of JSON values: keys in any order, 5 is 5.0, true is not 1."""
    if isinstance(a, Mapping):
        return isinstance(b, Mapping) and set(a) == set(b) and all(same_json(one, b[key]) for key, one in a.items())
    if isinstance(a, (list, tuple)):
        return isinstance(b, (list, tuple)) and len(a) == len(b) and all(map(same_json, a, b))
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    return not isinstance(b, (Mapping, list, tuple)) and bool(a == b)


def warm_up() -> None:
    """Import the validator once; forks inherit it."""
    schema_complaint(validator_for({"type": "object"}), {})
