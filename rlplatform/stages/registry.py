"""The filters that a recipe's ``filter`` stage names: which settings each takes, and what stands behind a path.

    steps:
      solved_without_thinking: {rates: "stage:reference/responses.jsonl", min_pass_rate: 0.5}

A step is a name of ``FILTERS``, or has ``function: package.module:fn`` (a filter of one's own: ``rows, **settings ->
decisions``). Settings are the function's parameters. ``seed`` is the stage's unless it is set; ``rates`` is a file of
judged responses, which are counted; ``used`` and ``validation`` are files of rows, or lists of them; ``labeller`` and
the like name functions.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from rewards.base import NOT_APPLICABLE, load_function
from rewards.response import parse
from rlplatform.stages.checklists import check_responses
from rlplatform.stages.fusion import usable
from rlplatform.stages.pass_rates import PassRate, measure
from rlplatform.stages.query_filters import balance_domains, hold_out, not_verifiable, solved_without_thinking
from rlplatform.stages.query_selection import select_queries
from rlplatform.stages.records import Filter, Row, text_column
from rlplatform.stages.response_filters import (
    disagreement,
    guessing,
    mixed_languages,
    repetition,
    similar_to_validation,
    wrong_answer,
)
from rlplatform.stages.sample_selection import select_samples

FILTERS: Mapping[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        hold_out,
        not_verifiable,
        solved_without_thinking,
        balance_domains,
        wrong_answer,
        repetition,
        guessing,
        disagreement,
        mixed_languages,
        similar_to_validation,
        select_samples,
        select_queries,
        usable,
        check_responses,
    )
}
RATES, ROWS = "rates", ("used", "validation")
FUNCTIONS = ("labeller", "same", "write_items", "grade_items")
MODE_OF_RATES = {"solved_without_thinking": False}  # samples of the other mode do not count

ReadRows = Callable[[str], list[dict[str, Any]]]


def filter_function(name: str, settings: Mapping[str, Any]) -> Callable[..., Any]:
    """The function of one step.

    Raises:
        ValueError: no such filter, or no such function.
    """
    wanted = str(settings.get("function", name))
    if wanted in FILTERS:
        return FILTERS[wanted]
    if ":" in wanted:
        return load_function(wanted, f"steps.{name}.function")
    near = difflib.get_close_matches(wanted, FILTERS, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(
        f"steps.{name}: expected one of {', '.join(FILTERS)}, or function: package.module:fn, got {wanted!r}{hint}"
    )


def check_step(name: str, settings: Any) -> None:
    """Raises ValueError where the filter does not exist, has no such setting, or lacks one that it needs."""
    if not isinstance(settings, Mapping):
        raise ValueError(f"steps.{name}: expected a mapping of settings ({{}} for the defaults), got {settings!r}")
    parameters = dict(list(inspect.signature(filter_function(name, settings)).parameters.items())[1:])  # after `rows`
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    unknown = [key for key in settings if key != "function" and key not in parameters]
    if unknown:
        near = difflib.get_close_matches(unknown[0], parameters, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"steps.{name}.{unknown[0]}: expected one of the settings {', '.join(parameters) or 'none'}{hint}"
        )
    missing = [
        key
        for key, parameter in parameters.items()
        if parameter.default is inspect.Parameter.empty and key not in settings and key != "seed"
    ]
    if missing:
        raise ValueError(f"steps.{name}: expected the settings {', '.join(missing)}")


def bind(name: str, settings: Mapping[str, Any], *, seed: int, read: ReadRows) -> Filter:
    """The step as a filter of rows, with what its paths hold.

    Raises:
        ValueError: see ``check_step``; or a file that does not hold what the filter needs.
    """
    check_step(name, settings)
    function = filter_function(name, settings)
    bound = {key: value for key, value in settings.items() if key != "function"}
    if "seed" in inspect.signature(function).parameters:
        bound.setdefault("seed", seed)
    if isinstance(bound.get(RATES), str):
        bound[RATES] = rates_of(read(bound[RATES]), thinking=MODE_OF_RATES.get(function.__name__))
    for key in ROWS:
        if key in bound:
            paths: Sequence[str] = [bound[key]] if isinstance(bound[key], str) else bound[key]
            bound[key] = [row for path in paths for row in read(path)]
    for key in FUNCTIONS:
        if isinstance(bound.get(key), str):
            bound[key] = load_function(bound[key], f"steps.{name}.{key}")
    return partial(function, **bound)


def rates_of(rows: Sequence[Row], *, thinking: bool | None) -> dict[str, PassRate]:
    """Pass rates of judged responses. A stray one in the other mode, e.g. with a ``</think>`` of its own, says nothing.

    Raises:
        ValueError: more than half of them are in the other mode: the model was sampled in it.
    """
    if thinking is None:
        return measure(rows)
    stray = [parse(text_column(row, "response")).has_thought != thinking for row in rows]
    if sum(stray) * 2 > len(rows):
        return measure(rows, thinking=thinking)
    silent = {"status": NOT_APPLICABLE, "score": None}
    return measure({**row, **silent} if astray else row for row, astray in zip(rows, stray, strict=True))


def files_of(settings: Mapping[str, Any]) -> list[str]:
    """The paths among a step's settings, for hashing what they hold."""
    found = [settings[RATES]] if isinstance(settings.get(RATES), str) else []
    for key in ROWS:
        value = settings.get(key, [])
        found += [value] if isinstance(value, str) else list(value)
    return found
