"""`rlplatform reward list` and `reward show`: which reward functions there are, and what one takes and gives."""

from __future__ import annotations

import inspect
import json
import re
import shutil
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rewards.base import REWARDS, SUPPLIED, RewardFn, RewardLoadError, Verdict, resolve
from rewards.examples import EXAMPLES, WITHOUT
from rewards.plugins import installed
from rewards.runner import RewardPool
from rlplatform.datafiles import DataError
from rlplatform.reward_rows import Row, agrees, columns_of, ids_of, read_row

BUILT_IN = "built in"
FROM_SERVICE = "prompt_text"  # a column that the reward service supplies
_EXAMPLE_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Described:
    """A reward function, seen from outside."""

    name: str
    origin: str  # "built in", a distribution and its version, or "" for a file or a package's function
    source: str  # file:line
    summary: str  # first line of the docstring
    docstring: str
    kind: str  # batch, rowwise, groupwise; async, served
    required: tuple[str, ...]  # columns
    optional: tuple[str, ...]  # columns, or settings where the function has no keyword-only parameters
    settings: Mapping[str, str]  # name -> "type = default"
    supplied: tuple[str, ...]  # of the platform, what it takes beside prompts and completions
    takes_all: bool


def describe(name: str) -> Described:
    """The function behind ``name``. Raises RewardLoadError."""
    fn = resolve(name)
    plain = inspect.unwrap(fn) if inspect.isroutine(fn) else type(fn)
    parameters = inspect.signature(fn).parameters.values()
    own = [p for p in parameters if p.name not in (*SUPPLIED, FROM_SERVICE) and p.kind not in (2, 4)]  # *args, **kwargs
    keyword_only = [p for p in own if p.kind is p.KEYWORD_ONLY and p.default is not p.empty]
    columns = [p for p in own if p not in keyword_only]
    docstring = inspect.getdoc(fn) or ""
    return Described(
        name=name,
        origin=_origin(name),
        source=_source(plain),
        summary=_first_sentence(docstring),
        docstring=docstring,
        kind=kind_of(fn),
        required=tuple(p.name for p in columns if p.default is p.empty),
        optional=tuple(p.name for p in columns if p.default is not p.empty),
        settings={p.name: _setting(p) for p in keyword_only},
        supplied=tuple(p.name for p in parameters if p.name in (*SUPPLIED[2:], FROM_SERVICE)),
        takes_all=any(p.kind is p.VAR_KEYWORD for p in parameters),
    )


def _first_sentence(docstring: str) -> str:
    paragraph = " ".join(docstring.split("\n\n")[0].split()).replace("``", "")
    return re.split(r"(?<=[.;]) ", paragraph)[0].rstrip(".;:")


def kind_of(fn: RewardFn) -> str:
    """How it is called: ``rowwise``, ``groupwise`` or ``batch``; and whether it is ``async``, or ``served``."""
    marks = [mark for mark in ("rowwise", "groupwise") if getattr(fn, mark, False)] or ["batch"]
    is_async = inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004
    return " ".join([*marks, *["async"] * is_async, *["served"] * bool(getattr(fn, "served_by", ""))])


def _origin(name: str) -> str:
    if name in REWARDS:
        return BUILT_IN
    return ", ".join(point.distribution for point in installed(name)) if ":" not in name else ""


def _source(plain: Any) -> str:
    try:
        return f"{inspect.getsourcefile(plain)}:{inspect.getsourcelines(plain)[1]}"
    except (TypeError, OSError):
        return ""  # written in C, or made at run time


def _setting(parameter: inspect.Parameter) -> str:
    annotation = parameter.annotation
    kind = "" if annotation is parameter.empty else annotation if isinstance(annotation, str) else annotation.__name__
    return f"{kind} = {parameter.default!r}".strip()


# --- list -------------------------------------------------------------------------------------------------------------


def list_rewards(*, as_json: bool = False) -> None:
    """Print the built-in functions and those of installed packages; the latter are not imported."""
    rows = [_listed(name) for name in sorted(REWARDS)]
    for point in installed():
        clash = "; its name is taken, see `reward show`" * (len(installed(point.name)) > 1 or point.name in REWARDS)
        rows.append(
            {
                "name": point.name,
                "summary": f"{point.target}{clash}",
                "kind": "",
                "columns": [],
                "from": point.distribution,
            }
        )
    if as_json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    indent = 2 + max(len(row["name"]) for row in rows)
    width = max(60, shutil.get_terminal_size().columns)
    for row in rows:
        takes = " ".join(row["columns"]) or "no columns"
        facts = f"{row['kind']}; {takes}" if row["kind"] else f"from {row['from']}"
        print(f"{row['name']:<{indent}}{facts}")
        print(textwrap.fill(row["summary"], width, initial_indent=" " * indent, subsequent_indent=" " * indent))
    print("\n[column] is optional. More of one: rlplatform reward show NAME")


def _listed(name: str) -> dict[str, Any]:
    try:
        one = describe(name)
    except RewardLoadError as error:
        return {"name": name, "summary": f"does not load: {error}", "kind": "", "columns": [], "from": BUILT_IN}
    columns = [*one.required, *(f"[{column}]" for column in one.optional)]
    return {"name": name, "summary": one.summary, "kind": one.kind, "columns": columns, "from": one.origin}


# --- show -------------------------------------------------------------------------------------------------------------


def show_reward(name: str, *, as_json: bool = False) -> None:
    """Print what ``name`` takes, gives and says of its examples, which are graded now.

    Raises:
        RewardLoadError: there is no such function, or its examples are no rows.
    """
    one = describe(name)
    rows = examples_of(name)
    verdicts = grade_examples(name, rows)
    if as_json:
        graded = [
            {"row": row, "score": v.score if v.ok else None, "status": v.status, "agrees": agrees(row.get("expect"), v)}
            for row, v in zip(rows, verdicts, strict=True)
        ]
        print(json.dumps({**asdict(one), "examples": graded}, indent=1, ensure_ascii=False))
        return
    print(f"{one.name}{f' ({one.origin})' * bool(one.origin)}, {one.kind}")
    if one.source:
        print(f"  {one.source}")
    print()
    for line in (one.docstring or "It has no docstring.").splitlines():
        print(f"  {line}".rstrip())
    print("\ncolumns")
    for column in one.required:
        print(f"  {column}")
    for column in one.optional:
        print(f"  {column}, optional")
    if one.takes_all:
        print("  any other: it takes **keywords")
    if not (one.required or one.optional or one.takes_all):
        print("  none")
    if one.settings:
        print("\nsettings (reward.functions.NAME.args in a config, --arg here)")
        for setting, value in one.settings.items():
            print(f"  {setting}: {value}")
    if one.supplied:
        print(f"\nsupplied in a run: {', '.join(one.supplied)}")
    print()
    _show_examples(name, rows, verdicts)


def examples_of(name: str) -> list[Row]:
    """Rows as `reward test` reads them: of a built-in, or what the function has as its attribute ``examples``.

    Raises RewardLoadError when they are no such rows.
    """
    if name in EXAMPLES:
        return [
            {
                "completion": example.completion,
                **({"prompt": example.prompt} if example.prompt else {}),
                **example.columns,
                "expect": example.status if example.score is None else example.score,
            }
            for example in EXAMPLES[name]
        ]
    rows = getattr(resolve(name), "examples", ())
    try:
        return [read_row(f"reward {name!r}: examples, row {number}", row) for number, row in enumerate(rows)]
    except (DataError, TypeError) as error:
        raise RewardLoadError(str(error)) from error


def grade_examples(name: str, rows: list[Row]) -> list[Verdict]:
    """What ``name`` says of the rows now. Raises RewardLoadError."""
    if not rows:
        return []
    with RewardPool({name: 1.0}, timeout_s=_EXAMPLE_TIMEOUT_S) as pool:
        return pool.score(
            [row.get("prompt", "") for row in rows],
            [row["completion"] for row in rows],
            columns_of(rows),
            ids_of(rows),
            groups=[row.get("group", 0) for row in rows],
        )


def _show_examples(name: str, rows: list[Row], verdicts: list[Verdict]) -> None:
    if not rows:
        print(f"no examples: {WITHOUT.get(name, 'try it on rows of your own with rlplatform reward test')}")
        return
    print("examples")
    for row, verdict in zip(rows, verdicts, strict=True):
        score = f"{verdict.score:.4g}" if verdict.ok else verdict.status
        columns = [f"{key}={_json(value)}" for key, value in row.items() if key not in ("completion", "expect")]
        print(f"  {score:>14}  {'  '.join([_json(row['completion']), *columns])}")
        if not agrees(row.get("expect"), verdict):
            print(f"  {'':>14}  expected {row['expect']}. {verdict.detail}")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
