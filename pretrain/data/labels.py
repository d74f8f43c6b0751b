"""Labels of documents: what they mean, who gives them, and how a labeller is written.

A labeller is a function of texts. A user's is five lines in a file, named in the config as ``my.py:exclamations``::

    def exclamations(texts):
        return [{"exclamations": text.count("!")} for text in texts]

It answers one mapping a text, label -> value. A value is a class (str), a number (int, float), yes or no (bool), a pair
(class, score), ``None`` where the label does not apply, or ``Failed`` where nobody knows: a failed call is a label that
says so, never a value. Keyword-only parameters are settings of the config. A parameter ``documents`` is given the whole
rows. Models are loaded once a process: by a function under ``functools.cache``.

Every label names its labeller: ``quality@1``, or ``classifier@1+3f9a0c21d4e7`` where settings and model files decide
what it says; the hash is of both, and ``summary.json`` of the stage says what stands behind it.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import numbers
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pretrain.data.document import Row, label
from pretrain.data.label_schema import MEANINGS
from rewards.base import (
    ERROR,
    NOT_APPLICABLE,
    TIMEOUT,
    UNPARSEABLE,
    RewardLoadError,
    absolute,
    load_function,
    nearest,
)
from rlplatform.config import ConfigError
from rlplatform.datafiles import DataError

_Fn = TypeVar("_Fn", bound=Callable[..., Any])
_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)*")
FAILED_MARK = "!"  # a label's value that begins so is no value: "!timeout: no reply within 60 s"
STATUSES = (ERROR, TIMEOUT, UNPARSEABLE, NOT_APPLICABLE)
_MAX_DETAIL = 300  # characters


# Lazy, so that listing the names imports nothing.
LABELLERS: dict[str, str] = {
    "language": "pretrain.data.labellers.language:language",
    "length": "pretrain.data.labellers.length:length",
    "quality": "pretrain.data.labellers.quality:quality",
    "terms": "pretrain.data.labellers.safety:terms",
    "from_source": "pretrain.data.labellers.source:from_source",
    "classifier": "pretrain.data.labellers.classifier:classifier",
    "llm": "pretrain.data.labellers.llm:llm",
    "perplexity": "pretrain.data.labellers.perplexity:perplexity",
}


# --- what a labeller says -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Failed:
    """Why a label has no value."""

    status: str  # of STATUSES
    detail: str = ""

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"Failed.status: expected one of {STATUSES}, got {self.status!r}")

    @property
    def value(self) -> str:
        """How the label is written."""
        detail = " ".join(self.detail.split())[:_MAX_DETAIL]
        return f"{FAILED_MARK}{self.status}{': ' * bool(detail)}{detail}"


Value = str | float | bool | tuple[str, float] | Failed | None


def failure_of(entry: Mapping[str, Any]) -> str:
    """The status of a label without a value: ``error``, ``timeout``, ``unparseable``, ``not_applicable``; else ""."""
    value = entry["value"]
    return value[1:].partition(":")[0] if value.startswith(FAILED_MARK) else ""


def labeller(*, version: str, files: Sequence[str] = (), where: Sequence[str] = ()) -> Callable[[_Fn], _Fn]:
    """Declare a labeller's version, and which of its settings need more than their text.

    Args:
        version: another one means that the same text may get another label.
        files: settings that name files or folders whose content decides the labels.
        where: settings that only say where and how fast (an address, a time limit): not part of what it says.
    """

    def mark(fn: _Fn) -> _Fn:
        fn.version, fn.files, fn.where = version, tuple(files), tuple(where)  # type: ignore[attr-defined]
        return fn

    return mark


@dataclass(frozen=True)
class Labeller:
    """A labeller with its settings, ready to be sent to another process."""

    name: str  # as the config calls it
    target: str  # package.module:fn or path/file.py:fn
    settings: Mapping[str, Any] = field(default_factory=dict)
    identity: str = ""  # what its labels bear

    @property
    def function(self) -> Callable[..., Any]:
        return load_function(self.target, f"labeller {self.name!r}")

    def __call__(self, rows: Sequence[Row]) -> list[list[Row]]:
        """The labels of each document, in order.

        Raises:
            DataError: the function answered something that is not one mapping of labels a text.
        """
        texts = [row["text"] for row in rows]
        wants_rows = "documents" in inspect.signature(self.function).parameters
        given = {"documents": list(rows)} if wants_rows else {}
        return to_labels(self, self.function(texts, **given, **self.settings), len(rows))


def to_labels(by: Labeller, answers: Any, num_rows: int) -> list[list[Row]]:
    """Labels from what a labeller returned, one list a document.

    Raises:
        DataError: it is not one mapping a document, or a value is none; the message counts documents from 0.
    """
    if isinstance(answers, (str, bytes, Mapping)) or not isinstance(answers, Sequence) or len(answers) != num_rows:
        got = f"{len(answers)} answers" if isinstance(answers, Sequence) else type(answers).__name__
        raise DataError(f"labeller {by.name!r}: expected a list of {num_rows} mappings, one a text, got {got}")
    found = []
    for number, answer in enumerate(answers):
        if not isinstance(answer, Mapping):
            raise DataError(
                f"labeller {by.name!r}, text {number}: expected a mapping label -> value, got {answer!r:.80}"
            )
        found.append([_to_label(by, number, name, value) for name, value in answer.items()])
    return found


def _to_label(by: Labeller, number: int, name: Any, value: Any) -> Row:
    where = f"labeller {by.name!r}, text {number}"
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise DataError(f"{where}: expected a label's name like quality.lines, got {name!r}")
    if hasattr(value, "item"):  # numpy's scalars
        value = value.item()
    if value is None:
        value = Failed(NOT_APPLICABLE)
    if isinstance(value, Failed):
        return label(name, value.value, by.identity)
    kind = MEANINGS[name].kind if name in MEANINGS else None
    if isinstance(value, bool) and kind in (None, "flag"):
        return label(name, "yes" if value else "no", by.identity)
    if isinstance(value, numbers.Real) and not isinstance(value, bool) and kind in (None, "number"):
        if not math.isfinite(value):
            raise DataError(f"{where}: label {name}: expected a finite number, got {value}; say Failed(...) or None")
        text = str(value) if isinstance(value, int) else f"{value:.6g}"
        return label(name, text, by.identity, float(value))
    said, score = value if isinstance(value, tuple) and len(value) == 2 else (value, None)
    if isinstance(said, str) and said and not said.startswith(FAILED_MARK) and kind in (None, "class"):
        if score is not None and not (isinstance(score, numbers.Real) and math.isfinite(score)):
            raise DataError(f"{where}: label {name}: expected a finite score of {said!r}, got {score!r}")
        return label(name, said, by.identity, None if score is None else float(score))
    expected = f"a {kind}" if kind else "a class, a number, a bool, (class, score), None or Failed"
    raise DataError(f"{where}: label {name}: expected {expected}, got {value!r:.80}")


# --- from a config to labellers -------------------------------------------------------------------------------------


def bind(name: str, settings: Mapping[str, Any] | None = None) -> Labeller:
    """The labeller that the config calls ``name``: a key of LABELLERS, a dotted path, or any name with a ``use``.

    Raises:
        ConfigError: nothing of that name, a setting it does not have, or settings it refuses.
    """
    given = dict(settings or {})
    used = str(given.pop("use", name))
    if used not in LABELLERS and ":" not in used:
        raise ConfigError(
            f"labellers.{name}: expected one of {', '.join(LABELLERS)}, package.module:fn or path/file.py:fn, as its "
            f"name or under `use`, got {used!r}{nearest(used, LABELLERS)}"
        )
    target = LABELLERS.get(used) or absolute(used)
    try:
        function = load_function(target, f"labeller {name!r}")
    except RewardLoadError as error:
        raise ConfigError(str(error)) from error
    parameters = inspect.signature(function).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    for setting in given:
        if setting not in known:
            raise ConfigError(
                f"labellers.{name}: no setting {setting!r}{nearest(setting, known)}; "
                + (f"there are {', '.join(known)}" if known else "it has none")
            )
    missing = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty and p.name not in given]
    if missing:
        raise ConfigError(f"labellers.{name}: expected {', '.join(missing)}")
    check = getattr(function, "check_settings", None)
    if check is not None:
        try:
            check(**given)
        except ConfigError as error:
            raise ConfigError(f"labellers.{name}: {error}") from error
    return Labeller(name, target, given)


def identified(bound: Labeller) -> Labeller:
    """The same labeller with its identity: reads the files that its settings name.

    Raises:
        DataError: such a file is not there.
    """
    function = bound.function
    version = getattr(function, "version", "") or f"file-{source_hash(function)}"
    stem = next((name for name, target in LABELLERS.items() if target == bound.target), bound.target.rpartition(":")[2])
    where, files = getattr(function, "where", ()), getattr(function, "files", ())
    said = {k: v for k, v in bound.settings.items() if k not in where}
    contents = {k: content_hash(v) for k, v in said.items() if k in files and v}
    decides = {**said, **contents}
    if not decides:
        return Labeller(bound.name, bound.target, bound.settings, f"{stem}@{version}")
    text = json.dumps(decides, sort_keys=True, default=str, ensure_ascii=False)
    digest = hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
    return Labeller(bound.name, bound.target, bound.settings, f"{stem}@{version}+{digest}")


def described(bound: Labeller) -> dict[str, Any]:
    """What stands behind an identity, for ``summary.json``."""
    files = getattr(bound.function, "files", ())
    contents = {k: content_hash(v) for k, v in bound.settings.items() if k in files and v}
    return {"name": bound.name, "target": bound.target, "settings": dict(bound.settings), "files": contents}


def content_hash(path: Any) -> str:
    """12 hex digits of the content of a file, or of all files in a folder with their names.

    Raises:
        DataError: nothing is there.
    """
    place = Path(str(path))
    if not place.exists():
        raise DataError(f"{path}: no such file or folder")
    digest = hashlib.blake2b(digest_size=6)
    for file in sorted(place.rglob("*")) if place.is_dir() else [place]:
        if file.is_file():
            digest.update(str(file.relative_to(place)).encode())
            with open(file, "rb") as handle:
                while chunk := handle.read(1 << 20):
                    digest.update(chunk)
    return digest.hexdigest()


def source_hash(function: Callable[..., Any]) -> str:
    """``content_hash`` of the file that a function stands in; what it imports is not looked at."""
    source = inspect.getsourcefile(function)
    return content_hash(source) if source else "unknown"
