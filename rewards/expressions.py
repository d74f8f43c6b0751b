"""Are two single expressions equal? math-verify (sympy behind a LaTeX parser) and a second checker by values.

Where the two disagree the values win, and the pair is noted: ``disagreements`` collects such notes for the verdict's
detail. math-verify's own timers are off: they turn "took too long" into "wrong". The deadline is the runner's.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

from rewards.numeric import same_value, value_of
from rewards.quantity import canonical_unit, names_unit, read_quantity, shows, unit_ratio

_NOTES: ContextVar[list[str] | None] = ContextVar("math_disagreements", default=None)
_UNIT_BEHIND = re.compile(r"\\(?:text|textrm|mathrm|mbox)\s*\{\s*([A-Za-z][A-Za-z ./]*)\}(\^\{?\d\}?)?$")
_TRIG = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_DEGREES = re.compile(r"(\d+(?:\.\d+)?|\\frac\{\d+\}\{\d+\})\s*\^\\circ")
_CONSTANT = re.compile(r"\+\s*[CcKk]$")


@contextlib.contextmanager
def disagreements() -> Iterator[list[str]]:
    """Inside, every pair on which the two checkers disagree is added to the list."""
    notes: list[str] = []
    token = _NOTES.set(notes)
    try:
        yield notes
    finally:
        _NOTES.reset(token)


def equal_expressions(gold: str, pred: str) -> bool:
    """Equal values, in whatever form, unit (where both have one), percent or degrees."""
    (gold, gold_unit), (pred, pred_unit) = split_unit(gold), split_unit(pred)
    if gold_unit and pred_unit and gold_unit != pred_unit:
        ratio = unit_ratio(gold_unit, pred_unit)
        if ratio is None:
            return False
        gold = rf"\frac{{{ratio.numerator}}}{{{ratio.denominator}}} \cdot ({gold})"
    (gold, gold_percent), (pred, pred_percent) = split_percent(gold), split_percent(pred)
    gold, pred = _in_radians(gold, pred), _in_radians(pred, gold)
    if _CONSTANT.search(gold) and _CONSTANT.search(pred):
        gold, pred = _CONSTANT.sub("+C", gold), _CONSTANT.sub("+C", pred)
    if _same(gold, pred):
        return True
    if gold_percent != pred_percent:
        percent, plain = (gold, pred) if gold_percent else (pred, gold)
        return _same(rf"\frac{{{percent}}}{{100}}", plain)
    return False


def split_percent(text: str) -> tuple[str, bool]:
    bare = re.sub(r"\s*\\?%$", "", text)
    return bare, bare != text


def split_unit(text: str) -> tuple[str, str]:
    """An expression and the unit behind it in a text command; "" where there is none."""
    match = _UNIT_BEHIND.search(text)
    if match is None or not text[: match.start()].strip() or not names_unit(match[1]):
        return text, ""
    return text[: match.start()].strip(), canonical_unit(match[1] + (match[2] or ""))


def _in_radians(text: str, other: str) -> str:
    r"""Degrees become radians where they are an argument (``\sin 30^\circ``) or the other answer is in radians."""
    if _TRIG.search(text) or (r"\pi" in other and r"\circ" not in other):
        return _DEGREES.sub(r"(\\frac{\1 \\pi}{180})", text)
    return text


def _same(gold: str, pred: str) -> bool:
    try:
        return _compare(gold, pred)
    except RecursionError:  # in sympy, e.g. for a power and a scaled matrix: it knows no way to compare them
        return False


def _compare(gold: str, pred: str) -> bool:
    import math_verify

    if _case_differs(gold, pred):
        return False  # the parser takes X for x
    reference, answer = parse(gold), parse(pred)
    if not reference or not answer:
        return False
    accepted = _shown_by_decimal(gold, pred, reference[0], answer[0])
    if accepted is not None:
        return accepted
    try:
        accepted = math_verify.verify(
            list(reference), list(answer), timeout_seconds=None, allow_set_relation_comp=True, raise_on_error=True
        )
    except TypeError:  # e.g. unevaluated functions that cannot be ordered
        accepted = False
    by_value = _by_value(reference[0], answer[0], real_roots=r"\sqrt[" in gold + pred)
    if by_value is None or by_value == accepted:
        return bool(accepted)
    notes = _NOTES.get()
    if notes is not None:
        says = "equal" if accepted else "different"
        notes.append(f"math-verify calls {gold[:80]!r} and {pred[:80]!r} {says}, their values say otherwise")
    return by_value


def _by_value(gold: Any, pred: Any, real_roots: bool) -> bool | None:
    import sympy

    golds, preds = _elements(gold), _elements(pred)
    if len(golds) != len(preds) or not golds:
        return None  # math-verify compared them by their meaning
    same = [same_value(a, b) for a, b in zip(golds, preds, strict=True)]
    if real_roots and isinstance(gold, sympy.Expr) and same != [True]:
        real = same_value(gold, pred, real_roots=True)
        same = [real if real is not None else same[0]]
    if any(one is False for one in same):
        return False
    return True if all(same) else None


def _elements(value: Any) -> list[Any]:
    import sympy

    if isinstance(value, sympy.Tuple):
        return list(value)
    if type(value).__name__ == "FiniteSet":
        return sorted(value.args, key=sympy.default_sort_key)
    return [value]


def _shown_by_decimal(gold: str, pred: str, reference: Any, answer: Any) -> bool | None:
    """1/3 is shown by 0.333333; None where neither text is a plain decimal."""
    for text, other in ((gold, answer), (pred, reference)):
        quantity = read_quantity(text)
        if quantity is not None and not quantity.is_integer:
            value = value_of(other)
            if value is not None and shows(quantity.number, value):
                return True
    return None


def _case_differs(gold: str, pred: str) -> bool:
    letters = [set(re.findall(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", " ", text))) for text in (gold, pred)]
    small = [{letter.lower() for letter in found} for found in letters]
    return small[0] == small[1] and letters[0] != letters[1]


_DECIMAL = re.compile(r"(?<![\d_^.])(\d{1,40})?\.(\d{1,40})(?![\d.])")


def _exact_decimals(latex: str) -> str:
    """Decimals as fractions, which the parser keeps exact."""
    return _DECIMAL.sub(lambda m: rf"(\frac{{{int((m[1] or '') + m[2])}}}{{1{'0' * len(m[2])}}})", latex)


@functools.lru_cache(maxsize=4096)
def parse(latex: str) -> tuple[Any, ...]:
    """math-verify's reading of a bare answer; empty where it has none."""
    import math_verify.grader
    import math_verify.parser

    # Without timers by design (module docstring); this is its own switch against repeating the warning.
    math_verify.parser.TIMEOUT_WARNING_SHOWN = math_verify.grader.TIMEOUT_WARNING_SHOWN = True
    # Units are read by rewards/quantity.py: math-verify's list takes the variables in `2 t` and `b + c` for units.
    normalization = replace(math_verify.LatexExtractionConfig().normalization_config, units=False)
    config = math_verify.LatexExtractionConfig(
        boxed_match_priority=0, try_extract_without_anchor=False, normalization_config=normalization
    )
    parsed = math_verify.parse(
        rf"\boxed{{{_exact_decimals(latex)}}}",
        extraction_config=[config],
        fallback_mode="no_fallback",
        parsing_timeout=None,
    )
    return tuple(parsed)
