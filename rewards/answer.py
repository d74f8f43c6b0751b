r"""Finding and tidying a final answer: what stands after the thoughts, in the last complete ``\boxed{}``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Context, Decimal

from rewards.response import OPEN, parse

_BRACES = re.compile(r"(?P<box>\\+(?:boxed|fbox)\s*\{)|\\.|[{}]", re.DOTALL)


def after_thoughts(text: str, *, opened: bool = False) -> str | None:
    """The text after the last ``</think>``; None while a think block is open (``opened``: the prompt opened one)."""
    response = parse(text, opened=opened)
    # A tag in the middle of the answer may open a block too: what follows it is no final answer.
    return response.answer if response.finished and OPEN not in response.answer else None


def last_box(text: str) -> str | None:
    r"""What the last complete ``\boxed{...}`` holds, in linear time; ``\{`` and ``\}`` are characters, not braces."""
    opened: list[tuple[bool, int]] = []  # every brace still open: is it a box, and where its content starts
    last: tuple[int, int] | None = None
    for token in _BRACES.finditer(text):
        if token[0].endswith("{") and token[0] != r"\{":
            opened.append((token["box"] is not None, token.end()))
        elif token[0] == "}" and opened:
            is_box, start = opened.pop()
            if is_box and (last is None or start > last[0]):
                last = start, token.start()
    return None if last is None else text[last[0] : last[1]]


# --- tidying --------------------------------------------------------------------------------------------------------

_REWRITES: list[tuple[re.Pattern[str], str]] = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"\\(?:left|right|bigl?|bigr|Bigl?|Bigr)(?![A-Za-z])", ""),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r",\\!(?=\d{3}(?!\d))|\\!|\{\}", ""),
        (r"(?<=\d)\\,(?=\d{3}(?!\d))", ""),
        (r"(?<!\\)\\[,;: ]|\\q?quad(?![A-Za-z])|~", " "),
        (r"(?<=\d)\{,\}(?=\d{3}(?!\d))", ""),
        (r"\{,\}", ","),
        (r"^\s*\\approx(?![A-Za-z])", ""),
        (r"\\(?:math(?:rm|bf|it|sf)|text)\{([A-Za-z])\}", r"\1"),
        (r"\\(?:displaystyle|textstyle|limits)(?![A-Za-z])", ""),
        (r"\^\s*\{\s*\\circ\s*\}|\^\s*\\circ(?![A-Za-z])|\\degree(?![A-Za-z])|°", r"^\\circ "),
        (r"\\leq(?![A-Za-z])|\\leqslant(?![A-Za-z])|≤", r"\\le "),
        (r"\\geq(?![A-Za-z])|\\geqslant(?![A-Za-z])|≥", r"\\ge "),
        (r"[−–]", "-"),
        (r"×", r"\\times "),
        (r"π", r"\\pi "),
        (r"∞", r"\\infty "),
        (r"√\s*(\d+)", r"\\sqrt{\1}"),
        (r"\s+", " "),
    ]
]
_WRAPPERS = [("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")]
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")


def tidy(text: str) -> str:
    """The same mathematics, with fewer ways to write it: no spacing commands, no wrappers, ASCII signs."""
    text = text.strip()
    for left, right in _WRAPPERS:
        inner = text[len(left) : -len(right)]
        if text.startswith(left) and text.endswith(right) and len(text) > len(left + right) and left not in inner:
            text = inner.strip()
            break
    if not text.isdigit():
        for pattern, replacement in _REWRITES:
            text = pattern.sub(replacement, text)
    return re.sub(r"(?<!\\)[.,;]\s*$", "", text).strip()


def unwrap_text(text: str) -> str:
    r"""``\text{...}`` and its relatives replaced by what they hold."""
    return _TEXT.sub(r" \1 ", text).strip()


# --- numbers --------------------------------------------------------------------------------------------------------

_NUMBER = r"(?P<sign>[-+]?)\s*(?:\\?\$\s*)?(?P<whole>\d{1,3}(?:[, ]\d{3})+|\d*)(?:\.(?P<fraction>\d*))?"
_UNIT = r"[A-Za-z][A-Za-z ./]*(?:\^\{?\d\}?)?"
_QUANTITY = re.compile(
    rf"^(?:\\?\$\s*)?{_NUMBER}\s*(?:(?P<percent>\\?%)|(?P<circle>\^\\circ)|(?P<unit>{_UNIT}))?$",
)
_TEXT_UNIT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mbox)\s*\{\s*([A-Za-z][A-Za-z ./]*?)\s*\}")
# Words that change the number instead of naming what is counted.
_NO_UNIT = re.compile(
    r"\b(?:hundred|thousand|million|billion|trillion|dozen|score|half|halves|third|quarter|percent|percentage|"
    r"or|and|to|from|plus|minus|times|not|mod|squared|cubed|[kKM])\b"
)
_UNITS = {
    alias: names[0]
    for names in (
        ("mm", "millimeter", "millimetre"),
        ("cm", "centimeter", "centimetre"),
        ("m", "meter", "metre"),
        ("km", "kilometer", "kilometre"),
        ("in", "inch", "inches"),
        ("ft", "foot", "feet"),
        ("yd", "yard"),
        ("mi", "mile"),
        ("mg", "milligram"),
        ("g", "gram"),
        ("kg", "kilogram"),
        ("lb", "lbs", "pound"),
        ("oz", "ounce"),
        ("s", "sec", "second"),
        ("min", "minute"),
        ("h", "hr", "hour"),
        ("l", "liter", "litre"),
        ("ml", "milliliter", "millilitre"),
        ("cent", "¢"),
        ("dollar", "usd"),
        ("degree", "deg"),
    )
    for alias in names
}


_MAX_DECIMAL = 50  # characters of a number that is computed with; longer ones are compared as written
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


def read_quantity(text: str) -> Quantity | None:
    r"""``1,234``, ``-0.50``, ``\$18``, ``45\%``, ``90^\circ``, ``72 dollars``, ``5\text{ cm}^2``; else None.

    ``text`` is tidied. Digits are never converted, so a number of any length is read in linear time.
    """
    wrapped = _TEXT_UNIT.search(text) is not None
    match = _QUANTITY.match(_TEXT_UNIT.sub(r" \1", text))
    if match is None:
        return None
    whole, fraction, unit = re.sub("[, ]", "", match["whole"]), match["fraction"] or "", (match["unit"] or "").strip()
    if not whole and not fraction:
        return None
    if unit and (not names_unit(unit) or not (wrapped or _is_bare_unit(unit, match.string, match.start("unit")))):
        return None
    whole, fraction = whole.lstrip("0") or "0", fraction.rstrip("0")
    number = f"{whole}.{fraction}" if fraction else whole
    sign = "-" if match["sign"] == "-" and number != "0" else ""
    unit = "degree" if match["circle"] else canonical_unit(unit)
    return Quantity(sign + number, bool(match["percent"]), unit)


def names_unit(words: str) -> bool:
    """Words that say what is counted, and do not change the number (``dozen``) or offer another (``or``)."""
    return _NO_UNIT.search(words) is None


def _is_bare_unit(unit: str, text: str, start: int) -> bool:
    """Without a text command letters are variables (``5x``, ``5ab``), but for known units and words after a space."""
    word = re.sub(r"\^.*", "", unit)
    if canonical_unit(word) in _UNITS.values() and len(word) > 1:
        return True
    return text[start - 1] == " " and all(len(part) >= 3 for part in word.split())


def canonical_unit(unit: str) -> str:
    """One name a unit: ``centimeters`` is ``cm``, ``dollars`` is ``dollar``."""
    unit = re.sub(r"[{}.]", "", unit.casefold()).strip()
    word, caret, power = unit.partition("^")
    word = word.strip()
    if word not in _UNITS and word.endswith("s") and len(word) > 2:
        word = word[:-1]
    return _UNITS.get(word, word) + caret + power


def same_quantity(gold: Quantity, pred: Quantity) -> bool:
    """Equal numbers. A unit counts only where both write one; ``50%`` is 50 and 1/2, as references write either."""
    if gold.unit and pred.unit and gold.unit != pred.unit:
        return False
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
    return len(short.as_tuple().digits) >= 6 and long.quantize(short, ROUND_HALF_UP, _EXACT) == short
