r"""Plain numbers as answers write them: ``1,234``, ``\$18``, ``45\%``, ``5\text{ cm}^2``, ``3 dozen``.

Compared as they are written, without floating point; units of one kind are converted exactly.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import ROUND_DOWN, ROUND_HALF_UP, Context, Decimal
from fractions import Fraction

_NUMBER = r"(?P<sign>[-+]?)\s*(?:\\?\$\s*)?(?P<whole>\d{1,3}(?:[, ]\d{3})+|\d*)(?:\.(?P<fraction>\d*))?"
_UNIT = r"[A-Za-z¢][A-Za-z' ./]*(?:\^\{?\d\}?)?(?:/[a-z]+)?"
_QUANTITY = re.compile(
    rf"^(?P<dollar>\\?\$\s*)?{_NUMBER}\s*(?:(?P<percent>\\?%)|(?P<circle>\^\\circ)|(?P<unit>{_UNIT}))?$",
)
_TEXT_UNIT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mbox)\s*\{\s*([A-Za-z¢][A-Za-z' ./]*?)\s*\}")
# Words that change the number instead of naming what is counted.
_NO_UNIT = re.compile(
    r"\b(?:hundred|thousand|million|billion|trillion|dozen|score|half|halves|third|quarter|percent|percentage|"
    r"or|and|to|from|plus|minus|times|not|mod|squared|cubed|[kKM])\b"
)
_MULTIPLIERS = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}

# kind -> one tuple a unit: its size in the kind's first unit (exact by definition), then its names
_KINDS: dict[str, list[tuple[str, ...]]] = {
    "length": [
        ("1", "m", "meter", "metre"),
        ("0.001", "mm", "millimeter", "millimetre"),
        ("0.01", "cm", "centimeter", "centimetre"),
        ("1000", "km", "kilometer", "kilometre"),
        ("0.0254", "in", "inch", "inches"),
        ("0.3048", "ft", "foot", "feet"),
        ("0.9144", "yd", "yard"),
        ("1609.344", "mi", "mile"),
    ],
    "mass": [
        ("1", "g", "gram"),
        ("0.001", "mg", "milligram"),
        ("1000", "kg", "kilogram"),
        ("453.59237", "lb", "lbs", "pound"),
        ("28.349523125", "oz", "ounce"),
    ],
    "time": [
        ("1", "s", "sec", "second"),
        ("60", "min", "minute"),
        ("3600", "h", "hr", "hour"),
        ("86400", "day"),
        ("604800", "week"),
    ],
    "volume": [("1", "l", "liter", "litre"), ("0.001", "ml", "milliliter", "millilitre")],
    "money": [("1", "dollar", "usd"), ("0.01", "cent", "¢")],
    "angle": [("1", "degree", "deg")],
}
_SIZES = {names[0]: (kind, Fraction(size)) for kind, units in _KINDS.items() for size, *names in units}
_UNITS = {alias: names[0] for units in _KINDS.values() for _, *names in units for alias in names}

_MAX_DECIMAL = 50  # characters of a number that is computed with; longer ones are compared as written
_MIN_DIGITS = 6  # significant digits that a rounded number needs
_EXACT = Context(prec=_MAX_DECIMAL + 10)


@dataclass(frozen=True)
class Quantity:
    """A plain number as written, with what stands behind it."""

    number: str  # canonical decimal: no sign when zero, no leading or trailing zeros
    percent: bool
    unit: str  # "" where none is written

    @property
    def is_integer(self) -> bool:
        return "." not in self.number


def read_quantity(text: str, *, lone_letters: bool = False) -> Quantity | None:
    r"""``1,234``, ``-0.50``, ``\$18``, ``45\%``, ``90^\circ``, ``72 dollars``, ``5\text{ cm}^2``; else None.

    ``text`` is tidied. ``lone_letters``: a letter after a space may be a unit (``2000 m``).
    Digits are never converted, so a number of any length is read in linear time.
    """
    wrapped = _TEXT_UNIT.search(text) is not None
    match = _QUANTITY.match(_TEXT_UNIT.sub(r" \1", text))
    if match is None:
        return None
    whole, fraction, unit = re.sub("[, ]", "", match["whole"]), match["fraction"] or "", (match["unit"] or "").strip()
    if not whole and not fraction:
        return None
    times, unit = _split_multiplier(unit)
    if unit and (
        not names_unit(unit)
        or not (
            wrapped
            or (lone_letters and canonical_unit(unit) in _SIZES and " " in text)
            or _is_bare_unit(unit, match.string, match.start("unit"))
        )
    ):
        return None
    number = _canonical(match["sign"], whole, fraction)
    if times != 1:
        if len(number) > _MAX_DECIMAL:
            return None
        sign, digits = ("-", number[1:]) if number.startswith("-") else ("", number)
        whole, _, fraction = f"{_EXACT.multiply(Decimal(digits), times):f}".partition(".")
        number = _canonical(sign, whole, fraction)
    unit = "degree" if match["circle"] else canonical_unit(unit)
    if not unit and "$" in match.string:
        unit = "dollar"
    return Quantity(number, bool(match["percent"]), unit)


def _canonical(sign: str, whole: str, fraction: str) -> str:
    whole, fraction = whole.lstrip("0") or "0", fraction.rstrip("0")
    number = f"{whole}.{fraction}" if fraction else whole
    return f"-{number}" if sign == "-" and number != "0" else number


def _split_multiplier(unit: str) -> tuple[int, str]:
    """``dozen eggs`` is (12, "eggs")."""
    word, _, rest = unit.partition(" ")
    return (_MULTIPLIERS[word], rest.strip()) if word in _MULTIPLIERS else (1, unit)


def names_unit(words: str) -> bool:
    """Words that say what is counted, and do not change the number (``dozen``) or offer another (``or``)."""
    return _NO_UNIT.search(words) is None


def _is_bare_unit(unit: str, text: str, start: int) -> bool:
    """Without a text command letters are variables (``5x``, ``5ab``), but for known units and words after a space."""
    word = re.sub(r"\^.*", "", unit)
    spaced = text[start - 1] == " "
    if canonical_unit(word) in _SIZES and (len(word) > 1 or (word == "m" and "^" in unit and spaced)):
        return True
    words = word.replace("/", " ").split()
    return (
        spaced
        and all(len(part) >= 3 or part in _UNITS or part in ("sq", "cu") for part in words)
        and (len(words) > 1 or len(word) >= 3)
    )


def canonical_unit(unit: str) -> str:
    """One name a unit: ``centimeters`` is ``cm``, ``square feet`` is ``ft^2``, ``miles per hour`` is ``mi/h``."""
    unit = re.sub(r"[{}.]", "", unit.casefold()).strip()
    unit = {"mph": "mi/h", "kph": "km/h"}.get(unit, unit)
    if "/" in unit or " per " in unit:
        return "/".join(canonical_unit(part) for part in re.split(r"\s*/\s*|\s+per\s+", unit))
    for word, power in (("square ", "^2"), ("sq ", "^2"), ("cubic ", "^3"), ("cu ", "^3")):
        if unit.startswith(word):
            return canonical_unit(unit.removeprefix(word)) + power
    word, caret, power = unit.partition("^")
    word = word.strip()
    if word not in _UNITS and word.endswith("s") and len(word) > 2:
        word = word[:-1]
    return _UNITS.get(word, word) + caret + power


def unit_ratio(gold: str, pred: str) -> Fraction | None:
    """How many of unit ``pred`` make one of ``gold``: 100 for m and cm; None where they measure different things."""
    if gold == pred:
        return Fraction(1)
    (gold_word, _, gold_power), (pred_word, _, pred_power) = gold.partition("^"), pred.partition("^")
    if gold_power != pred_power or gold_word not in _SIZES or pred_word not in _SIZES:
        return None
    (gold_kind, gold_size), (pred_kind, pred_size) = _SIZES[gold_word], _SIZES[pred_word]
    return (gold_size / pred_size) ** int(gold_power or 1) if gold_kind == pred_kind else None


def same_quantity(gold: Quantity, pred: Quantity) -> bool:
    """Equal numbers. A unit counts only where both write one; ``50%`` is 50 and 1/2, as references write either."""
    if (gold.percent and pred.unit) or (gold.unit and pred.percent):
        return False
    if gold.unit and pred.unit and gold.unit != pred.unit:
        ratio = unit_ratio(gold.unit, pred.unit)
        if ratio is None or max(len(gold.number), len(pred.number)) > _MAX_DECIMAL:
            return False
        return Fraction(gold.number) * ratio == Fraction(pred.number)
    if same_number(gold.number, pred.number):
        return True
    if gold.percent != pred.percent:
        percent, plain = (gold, pred) if gold.percent else (pred, gold)
        if max(len(percent.number), len(plain.number)) <= _MAX_DECIMAL:
            return Decimal(percent.number) == _EXACT.multiply(Decimal(plain.number), 100)
    return False


def same_number(gold: str, pred: str) -> bool:
    """Equal digits; or one is the other rounded, to at least six significant digits. An integer equals only itself."""
    if gold == pred:
        return True
    if "." not in gold or "." not in pred or max(len(gold), len(pred)) > _MAX_DECIMAL:
        return False
    short, long = sorted((Decimal(gold), Decimal(pred)), key=lambda number: len(number.as_tuple().digits))
    return _num_digits(short) >= _MIN_DIGITS and long.quantize(short, ROUND_HALF_UP, _EXACT) == short


def shows(number: str, value: str) -> bool:
    """Is the decimal ``number`` the exact ``value`` rounded or cut off, with six digits and six decimals or more?"""
    if len(number.partition(".")[2]) < _MIN_DIGITS or len(number) > _MAX_DECIMAL:
        return False
    short, long = Decimal(number), Decimal(value)
    if _num_digits(short) < _MIN_DIGITS or abs(long) > 10**20:
        return False
    return short in (long.quantize(short, ROUND_HALF_UP, _EXACT), long.quantize(short, ROUND_DOWN, _EXACT))


def _num_digits(number: Decimal) -> int:
    return len(number.as_tuple().digits)
