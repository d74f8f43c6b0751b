"""The reward contract over HTTP: what ``rlplatform reward serve`` reads and writes, and what the `remote` reward does.

    POST /score   {"prompts": [...], "completions": [...], "columns": {"answer": [...]},
                   "completion_ids": [[...]], "groups": [...], "step": 7}            the last three are optional
    200           {"verdicts": [{"score": 1.0, "status": "ok", "parts": {...}, "detail": "...", "seconds": 0.01}],
                   "extras": {...}, "metrics": {...}, "tracebacks": {...}, "version": "3f0c..."}
    422, 413, ... {"error": {"field": "columns.answer", "row": 3, "message": "..."}}

Lists have a value a row. ``score`` is null where the status is not ``ok``, so that nobody trains on it by mistake.
Nothing is NaN or infinite, on neither way. ``groups`` says which rows are completions of one prompt; without it, rows
of equal prompts are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewards.base import OK, SUPPLIED, Verdict, nearest
from rewards.runner import Scored

FIELDS = ("prompts", "completions", "columns", "completion_ids", "groups", "step")


class WireError(ValueError):
    """A request or a reply that breaks the contract; it names the field, and the row where there is one."""

    def __init__(self, field: str, message: str, row: int | None = None) -> None:
        super().__init__(f"{field}{f', row {row}' if row is not None else ''}: {message}")
        self.field, self.row, self.message = field, row, message


@dataclass(frozen=True)
class ScoreRequest:
    """``n`` rows to grade."""

    prompts: Sequence[Any]  # [n], a string or a list of messages each
    completions: Sequence[Any]  # [n], likewise
    columns: Mapping[str, Sequence[Any]]  # name -> [n]
    completion_ids: Sequence[Sequence[int]] | None = None  # [n]
    groups: Sequence[Any] | None = None  # [n]
    step: int = 0


@dataclass(frozen=True)
class ScoreReply:
    """What a server said of the rows of a request."""

    verdicts: list[Verdict]  # [n]
    extras: dict[str, list[Any]]  # column -> [n]
    metrics: dict[str, float]
    version: str


# --- requests ---------------------------------------------------------------------------------------------------------


def write_request(request: ScoreRequest) -> bytes:
    """Raises WireError when a value is no JSON: NaN, bytes, an object."""
    body = {name: getattr(request, name) for name in FIELDS}
    body = {name: value for name, value in body.items() if value is not None}
    try:
        return json.dumps(body, allow_nan=False).encode()
    except (TypeError, ValueError):
        raise _culprit(body) from None


def _culprit(body: Mapping[str, Any]) -> WireError:
    """The first value that is no JSON, by field and row."""
    fields = {**body, **{f"columns.{name}": values for name, values in body["columns"].items()}}
    del fields["columns"]
    for field, values in fields.items():
        for row, value in enumerate(values if isinstance(values, (list, tuple)) else [values]):
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError) as error:
                return WireError(field, f"cannot be sent as JSON: {error}", row)
    return WireError("columns", "cannot be sent as JSON: a name that is no string")


def read_request(body: bytes) -> ScoreRequest:
    """Raises WireError naming field and row."""
    value = _read_json(body)
    if not isinstance(value, dict):
        raise WireError("body", f"expected a JSON object, got {_kind(value)}")
    for name in value:
        if name not in FIELDS:
            raise WireError(name, f"expected one of {', '.join(FIELDS)}{nearest(name, FIELDS)}")
    completions = _texts(value, "completions", None)
    num_rows = len(completions)
    columns = value.get("columns", {})
    if not isinstance(columns, dict):
        raise WireError("columns", f"expected an object of lists, got {_kind(columns)}")
    for name, values in columns.items():
        if name in SUPPLIED:
            raise WireError(f"columns.{name}", "this keyword is supplied by the platform; rename the column")
        _of_length(f"columns.{name}", values, num_rows)
    ids, groups, step = value.get("completion_ids"), value.get("groups"), value.get("step", 0)
    if ids is not None:
        for row, one in enumerate(_of_length("completion_ids", ids, num_rows)):
            if not isinstance(one, list) or not all(type(token) is int for token in one):
                raise WireError("completion_ids", "expected a list of integers", row)
    if groups is not None:
        for row, one in enumerate(_of_length("groups", groups, num_rows)):
            if type(one) not in (int, str):
                raise WireError("groups", f"expected an integer or a string, got {_kind(one)}", row)
    if type(step) is not int or step < 0:
        raise WireError("step", f"expected an integer >= 0, got {step!r:.40}")
    return ScoreRequest(_texts(value, "prompts", num_rows), completions, columns, ids, groups, step)


def groups_of(request: ScoreRequest) -> list[str]:
    """``[n]``: the group of each row; without ``groups``, rows of one prompt are one group."""
    if request.groups is not None:
        return [repr(group) for group in request.groups]
    return [json.dumps(prompt, sort_keys=True) for prompt in request.prompts]


def _texts(value: Mapping[str, Any], field: str, num_rows: int | None) -> list[Any]:
    if field not in value:
        raise WireError(field, "expected a list of strings, or of lists of messages; there is none")
    texts = _of_length(field, value[field], num_rows)
    for row, text in enumerate(texts):
        if isinstance(text, list):
            fits = bool(text) and all(isinstance(m, dict) and {"role", "content"} <= set(m) for m in text)
        else:
            fits = isinstance(text, str)
        if not fits:
            raise WireError(field, f"expected a string or a list of messages, got {_kind(text)}", row)
    return texts


def _of_length(field: str, values: Any, num_rows: int | None) -> list[Any]:
    if not isinstance(values, list):
        raise WireError(field, f"expected a list, a value a row, got {_kind(values)}")
    if num_rows is not None and len(values) != num_rows:
        raise WireError(field, f"expected {num_rows} values, one a completion, got {len(values)}")
    if not values:
        raise WireError(field, "expected at least one row")
    return values


# --- replies ----------------------------------------------------------------------------------------------------------


def write_reply(scored: Scored, version: str) -> bytes:
    """``scored`` as JSON; numbers that are not finite are null, and objects that JSON does not know are their repr."""
    verdicts = [
        {
            "score": float(v.score) if v.ok else None,
            "status": v.status,
            "parts": v.parts,
            "detail": v.detail,
            "seconds": v.seconds,
        }
        for v in scored.verdicts
    ]
    reply = {
        "verdicts": verdicts,
        "extras": scored.extras,
        "metrics": scored.metrics,
        "tracebacks": scored.tracebacks,
        "version": version,
    }
    return json.dumps(_plain(reply), allow_nan=False).encode()


def write_error(error: WireError) -> bytes:
    return json.dumps({"error": {"field": error.field, "row": error.row, "message": error.message}}).encode()


def read_reply(body: bytes, num_rows: int) -> ScoreReply:
    """Raises WireError when it is not a verdict for each of ``num_rows`` rows."""
    value = _read_json(body)
    if not isinstance(value, dict):
        raise WireError("body", f"expected a JSON object, got {_kind(value)}")
    verdicts = [_verdict(row, one) for row, one in enumerate(_of_length("verdicts", value.get("verdicts"), num_rows))]
    extras, metrics = value.get("extras") or {}, value.get("metrics") or {}
    if not isinstance(extras, dict) or not isinstance(metrics, dict):
        raise WireError("extras, metrics", "expected objects")
    for column, values in extras.items():
        _of_length(f"extras.{column}", values, num_rows)
    numbers = {name: float(number) for name, number in metrics.items() if isinstance(number, (int, float))}
    return ScoreReply(verdicts, extras, numbers, str(value.get("version", "")))


def _verdict(row: int, value: Any) -> Verdict:
    try:
        if value["status"] == OK and value["score"] is None:
            raise ValueError("an ok verdict without a score")
        return Verdict(
            score=0.0 if value["score"] is None else float(value["score"]),
            status=value["status"],
            parts={name: float(part) for name, part in value.get("parts", {}).items() if part is not None},
            detail=str(value.get("detail", "")),
            seconds=float(value.get("seconds", 0.0)),
        )
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise WireError("verdicts", f"expected score, status, parts, detail, seconds: {error!r}", row) from error


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int, bool)) else repr(value)


def _read_json(body: bytes) -> Any:
    def refuse(word: str) -> Any:
        raise WireError("body", f"{word} is no JSON")

    def number(word: str) -> float:
        return value if math.isfinite(value := float(word)) else refuse(word)

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise WireError("body", f"the name {name!r:.80} stands twice in an object")
            found[name] = value
        return found

    try:
        return json.loads(body, parse_constant=refuse, parse_float=number, object_pairs_hook=once)
    except WireError:
        raise
    except (ValueError, RecursionError) as error:
        raise WireError("body", f"expected JSON: {error}") from error


def _kind(value: Any) -> str:
    return {type(None): "null", dict: "an object", list: "a list", str: "a string", bool: "a boolean"}.get(
        type(value), "a number"
    )
