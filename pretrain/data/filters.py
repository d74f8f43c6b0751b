"""Filters by what annotation said of a document, and by its length. Each is ``rows, settings -> decisions``.

A label is looked up by its name, and by its labeller where one is named; where several say something, the last counts,
as in ``document.label_of``. A document without the label, or with one that failed or does not apply, is an error until
``missing`` says what becomes of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pretrain.data.document import Row, label_of
from pretrain.data.edits import KEEP, Decision
from pretrain.data.label_schema import HARMS
from pretrain.data.labels import failure_of
from rlplatform.datafiles import DataError

KEEP_MISSING, DROP_MISSING, REFUSE_MISSING = "keep", "drop", "error"
MISSING = (REFUSE_MISSING, KEEP_MISSING, DROP_MISSING)
UNSAFE = (*(harm for harm in HARMS if harm != "safe"), "unsafe")


def label(
    rows: Sequence[Row],
    *,
    name: str,
    keep: Sequence[str] = (),
    drop: Sequence[str] = (),
    min_score: float = -math.inf,
    labeller: str = "",
    missing: str = REFUSE_MISSING,
) -> list[Decision]:
    """Keep documents whose label ``name`` has one of the values ``keep`` (any, if empty) and none of ``drop``.

    Reasons: ``value``, named in the detail; ``low_score``: less sure than ``min_score``; ``no_label``.

    Raises:
        DataError: a document without the label (``missing: error``), or without a score that is asked for.
    """
    _check_missing(missing)
    wanted, refused = frozenset(_texts("keep", keep)), frozenset(_texts("drop", drop))
    if wanted & refused:
        raise DataError(f"label: expected keep and drop to share no value, got {sorted(wanted & refused)} in both")
    return [_by_label(row, name, wanted, refused, min_score, labeller, missing) for row in rows]


def _texts(setting: str, values: Sequence[str]) -> Sequence[str]:
    """Raises DataError for one string, whose letters would be taken for values."""
    if isinstance(values, str) or not all(isinstance(value, str) for value in values):
        raise DataError(f"label: expected {setting} to be a list of strings, got {values!r}; quote words such as no")
    return values


def _by_label(
    row: Row,
    name: str,
    keep: frozenset[str],
    drop: frozenset[str],
    min_score: float,
    labeller: str,
    missing: str,
) -> Decision:
    found = _said(row, name, labeller)
    if found is None:
        return _missing(row, name, labeller, missing)
    value, who = found["value"], found["labeller"]
    if value in drop or (keep and value not in keep):
        return Decision("value", f"{name} is {value} ({who})")
    if min_score > -math.inf and _score(row, found) < min_score:
        return Decision("low_score", f"{name} is {value} with {found['score']:.4g} < {min_score:.4g} ({who})")
    return KEEP


def safety(
    rows: Sequence[Row],
    *,
    name: str = "safety",
    drop: Sequence[str] = UNSAFE,
    min_score: float = -math.inf,
    labeller: str = "",
    missing: str = REFUSE_MISSING,
) -> list[Decision]:
    """Drop documents whose safety label has one of the values ``drop``, or that are not called safe with ``min_score``.

    Reasons and errors: as ``label``.
    """
    return label(rows, name=name, drop=drop, min_score=min_score, labeller=labeller, missing=missing)


def signal(
    rows: Sequence[Row],
    *,
    name: str,
    min: float = -math.inf,
    max: float = math.inf,
    labeller: str = "",
    missing: str = REFUSE_MISSING,
) -> list[Decision]:
    """Keep documents whose quality signal, the score of label ``name``, lies in [min, max].

    Reasons: ``too_low``, ``too_high``, ``no_label``.

    Raises:
        DataError: no bound at all, bounds that nothing fits between, or a document without the label or a score.
    """
    _check_missing(missing)
    _check_bounds("signal", min, max)
    decisions = []
    for row in rows:
        found = _said(row, name, labeller)
        decisions.append(
            _missing(row, name, labeller, missing) if found is None else _inside(_score(row, found), name, min, max)
        )
    return decisions


def length(rows: Sequence[Row], *, min: float = 1, max: float = math.inf) -> list[Decision]:
    """Keep documents of ``min`` to ``max`` characters. Reasons: ``too_low``, ``too_high``."""
    _check_bounds("length", min, max)
    return [_inside(len(row["text"]), "characters", min, max) for row in rows]


def _check_bounds(step: str, low: float, high: float) -> None:
    if not low <= high or (low == -math.inf and high == math.inf):
        raise DataError(f"{step}: expected min, max or both with min <= max, got min {low} and max {high}")


def _inside(value: float, name: str, low: float, high: float) -> Decision:
    if value < low:
        return Decision("too_low", f"{name} {value:.6g} < {low:.6g}")
    if value > high:
        return Decision("too_high", f"{name} {value:.6g} > {high:.6g}")
    return KEEP


def _said(row: Row, name: str, labeller: str) -> Row | None:
    found = label_of(row, name, labeller)
    return None if found is None or failure_of(found) else found


def _check_missing(missing: str) -> None:
    if missing not in MISSING:
        raise DataError(f"missing: expected one of {', '.join(MISSING)}, got {missing!r}")


def _missing(row: Row, name: str, labeller: str, missing: str) -> Decision:
    if missing == REFUSE_MISSING:
        there = sorted({" ".join([e["name"], *failure_of(e).split(), f"({e['labeller']})"]) for e in row["labels"]})
        wanted = f"{name!r} by {labeller}" if labeller else repr(name)
        raise DataError(
            f"expected a label {wanted}, there are {', '.join(there) or 'none'}; annotate it before, or set missing: "
            "keep or missing: drop"
        )
    return KEEP if missing == KEEP_MISSING else Decision("no_label", f"no label {name}")


def _score(row: Row, found: dict[str, Any]) -> float:
    score = found["score"]
    if score is None or math.isnan(score):
        raise DataError(f"document {row['id']!r}: expected label {found['name']!r} to have a score, got {score}")
    return float(score)
