"""The steps that a ``clean`` stage names: which settings each takes, and what stands behind a path.

    steps:
      english: {function: label, name: language, keep: [eng_Latn]}
      exact_duplicates: {}
      near_duplicates: {threshold: 0.8}
      contamination: {benchmarks: [gsm8k, mmlu], data_dir: data/benchmarks, mode: cut}
      mine: {function: my_package.filters:no_poems, max_lines: 40}

A step is a name of ``STEPS``, or has ``function`` with such a name (one function may stand twice) or with a path to a
function of one's own: ``rows, **settings -> answers``, an answer a row (``edits.Answer``). Settings are the
function's parameters, or the fields of a corpus step's dataclass.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.data.contamination import Index, Item, build_index, contamination
from pretrain.data.corpus_steps import CorpusStep, ExactDuplicates, NearDuplicates, RepeatedParagraphs
from pretrain.data.fates import LocalStep
from pretrain.data.filters import label, length, safety, signal
from pretrain.data.flow import SEPARATOR
from pretrain.data.labels import source_hash
from pretrain.data.privacy import privacy
from rewards.base import load_function
from rlplatform.datafiles import DataError

LOCAL: Mapping[str, Callable[..., Any]] = {
    function.__name__: function for function in (label, safety, signal, length, contamination, privacy)
}
CORPUS: Mapping[str, type] = {
    "exact_duplicates": ExactDuplicates,
    "near_duplicates": NearDuplicates,
    "repeated_paragraphs": RepeatedParagraphs,
}
STEPS = (*LOCAL, *CORPUS)
INDEXED = ("n", "shortest", "max_items")  # settings of contamination's index
SOURCES = ("benchmarks", "data_dir", "paths")  # where its items come from


@dataclass(frozen=True)
class Step:
    """One step of a stage, checked."""

    name: str
    function: str  # a name of STEPS or a path
    settings: Mapping[str, Any]

    @property
    def corpus(self) -> CorpusStep | None:
        """The step that needs to see all documents, or None: a step that decides row by row."""
        return CORPUS[self.function](**self.settings) if self.function in CORPUS else None

    @property
    def code(self) -> str:
        """Hash of the file with a function of one's own; "" for a name of STEPS."""
        if self.function in STEPS:
            return ""
        return source_hash(load_function(self.function, f"steps.{self.name}.function"))


def steps_of(config: Mapping[str, Any]) -> list[Step]:
    """The steps in order.

    Raises:
        DataError: no such step, function or setting; the nearest is named.
    """
    if not config:
        raise DataError("steps: expected at least one step, e.g. {exact_duplicates: {}}")
    return [_step(name, settings) for name, settings in config.items()]


def _step(name: str, settings: Any) -> Step:
    if SEPARATOR in name:
        raise DataError(f"steps.{name}: expected a name without {SEPARATOR}")
    if not isinstance(settings, Mapping):
        raise DataError(f"steps.{name}: expected a mapping of settings ({{}} for the defaults), got {settings!r}")
    function = str(settings.get("function", name))
    if function not in STEPS and ":" not in function:
        raise DataError(
            f"steps.{name}: expected one of {', '.join(STEPS)}, or function: package.module:fn, got {function!r}"
            f"{_nearest(function, STEPS)}"
        )
    own = {key: value for key, value in settings.items() if key != "function"}
    _check_settings(name, own, _parameters(name, function))
    step = Step(name, function, own)
    _check_values(step)
    return step


def _nearest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _parameters(name: str, function: str) -> dict[str, inspect.Parameter]:
    if function in CORPUS:
        return dict(inspect.signature(CORPUS[function]).parameters)
    target = LOCAL.get(function) or load_function(function, f"steps.{name}.function")
    found = dict(list(inspect.signature(target).parameters.items())[1:])  # after `rows`
    if function == "contamination":
        del found["index"]
        found |= {key: value for key, value in inspect.signature(build_index).parameters.items() if key in INDEXED}
        found |= {key: inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None) for key in SOURCES}
    return found


def _check_settings(name: str, settings: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]) -> None:
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for key in settings:
        if key not in parameters:
            known = ", ".join(parameters) or "none"
            raise DataError(
                f"steps.{name}.{key}: expected one of the settings {known}{_nearest(key, list(parameters))}"
            )
    missing = [key for key, one in parameters.items() if one.default is inspect.Parameter.empty and key not in settings]
    if missing:
        raise DataError(f"steps.{name}: expected the settings {', '.join(missing)}")


def _check_values(step: Step) -> None:
    """What a function says of its settings when no document comes."""
    try:
        if step.function in CORPUS:
            _ = step.corpus
        elif step.function == "contamination":
            build_index([Item("", "", "")], **index_settings(step))
            contamination([], build_index([Item("", "", "")]), **_row_settings(step))
        elif step.function in LOCAL:
            LOCAL[step.function]([], **step.settings)
    except (DataError, TypeError) as error:
        raise DataError(f"steps.{step.name}: {error}") from error


def index_settings(step: Step) -> dict[str, Any]:
    return {key: value for key, value in step.settings.items() if key in INDEXED}


def _row_settings(step: Step) -> dict[str, Any]:
    return {key: value for key, value in step.settings.items() if key not in (*INDEXED, *SOURCES)}


def local_step(step: Step, indexes: Path) -> LocalStep:
    """The step as a function of rows alone, with what it reads.

    Args:
        indexes: the folder with the index of each contamination step, ``STEP.npz``.
    """
    settings = _row_settings(step) if step.function == "contamination" else dict(step.settings)
    if step.function == "contamination":
        settings["index"] = Index.load(indexes / f"{step.name}.npz")
    function = LOCAL.get(step.function) or load_function(step.function, f"steps.{step.name}.function")
    return lambda rows: function(rows, **settings)
