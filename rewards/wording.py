r"""Answers compared as they are written: words, choice letters, and notations that mean too many things.

Such notations are ratios, times, numbers in a base, residues and sequences with dots: none is computed with.
"""

from __future__ import annotations

import re
from fractions import Fraction

from rewards.answer import unwrap_text
from rewards.structure import is_name, sides

_FUNCTIONS = ("arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "sqrt")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_WORD = re.compile(r"[A-Za-z]{4,}")


def key_of(text: str) -> str:
    """For equality as written: without spaces, except between digits; ``1, 234`` is not ``1,234``."""
    text = re.sub(r"([_^])\{(\w)\}", r"\1\2", re.sub(r"(?<=\d,)\s+(?=\d{3}(?!\d))", "\0", text))
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text)


def has_words(text: str) -> bool:
    """Prose, which a LaTeX parser would read as a product of letters."""
    bare = _COMMAND.sub(" ", re.sub(r"\\(?:begin|end)\{[a-z]+\}", " ", unwrap_text(text)))
    return any(word not in _FUNCTIONS for word in _WORD.findall(bare))


def is_wrapped_text(text: str) -> bool:
    return re.fullmatch(r"\\(?:text|textbf|textit|textrm|mbox)\s*\{[^{}]*[A-Za-z][^{}]*\}", text) is not None


def words_of(text: str) -> str:
    words = re.findall(r"\w+", _COMMAND.sub(" ", unwrap_text(text)).casefold())
    return " ".join(words[1:] if len(words) > 1 and words[0] in ("a", "an", "the") else words)


def same_short_word(gold: str, pred: str) -> bool:
    """``yes`` and ``Yes``; two or three letters in other cases are products."""
    if re.fullmatch("[A-Za-z]{2,3}", gold) is None or gold.isupper() or pred.isupper():
        return False
    return gold.capitalize() == pred.capitalize()


NO_SOLUTION = ("no solution", "no solutions", "no real solution", "no real solutions", "empty set")


def without_names(text: str) -> str:
    """Without what stands before an equals sign: ``area = 5``."""
    *names, value = sides(text)
    return value if names and all(is_name(name) for name in names) else text


def choice_letter(text: str, *, lower: bool = False) -> str:
    r"""``B``, ``(B)``, ``\textbf{(B)}\ 7``, ``B. seven``: the letter; "" where the answer is something else.

    ``lower``: an answer may also say ``b``, ``(b)`` or ``option B``.
    """
    bare = unwrap_text(text)
    if lower:
        bare = re.sub(r"^(?:option|choice|answer)\s*:?\s+(?=\(?[A-Ja-j]\)?\W*$)", "", bare, flags=re.IGNORECASE)
        if re.fullmatch(r"[a-j]|\(\s*[a-j]\s*\)", bare):
            bare = bare.upper()
    match = re.match(r"^\(\s*([A-J])\s*\)|^([A-J])(?:\s*[.:)]|$)", bare)
    return (match[1] or match[2]) if match else ""


def is_literal(text: str) -> bool:
    """Ratios, times, bases, residues, sequences with dots and digits apart mean too many things to compute with."""
    pattern = r":|\.\.\.|…|\\[lcv]?dots|(?<![_^\d])\d+ \d+(?![\d/])|\\pmod|^\d[\dA-F]*_\{?\d+\}?$"
    return re.search(pattern, text) is not None


_BASED = re.compile(r"^(\d[\dA-Fa-f]*)(?:_\{?(\d+)\}?)?$")
_TIME = re.compile(r"^(\d{1,2}):(\d\d)([ap]m)?$")


def equal_literals(gold: str, pred: str) -> bool:
    r"""``101_2`` and ``101`` (the question names the base), ``9:30`` and ``9:30 \text{ a.m.}``, ``2:3`` and ``4/6``."""
    gold, pred = (re.sub(r"[\s.]|\\!", "", unwrap_text(text)) if "dots" not in text else text for text in (gold, pred))
    based = _BASED.match(gold), _BASED.match(pred)
    if based[0] and based[1] and based[0][2]:
        return based[0][1] == based[1][1] and based[1][2] in (None, based[0][2])
    times = _TIME.match(gold.casefold()), _TIME.match(pred.casefold())
    if times[0] and times[1]:
        same = [int(part) for part in times[0].groups()[:2]] == [int(part) for part in times[1].groups()[:2]]
        return same and (not times[0][3] or not times[1][3] or times[0][3] == times[1][3])
    ratio = _ratio(gold)
    return ratio is not None and ":" in gold and ratio == _ratio(pred)


def _ratio(text: str) -> Fraction | None:
    r"""``2:3`` (minutes would have two digits), ``2/3``, ``\frac{2}{3}``."""
    match = re.fullmatch(r"(\d{1,9}):(\d|\d{3,9})|(\d{1,9})/(\d{1,9})|\\frac\{(\d{1,9})\}\{(\d{1,9})\}", text)
    if match is None:
        return None
    numerator, denominator = (int(part) for part in match.groups() if part is not None)
    return Fraction(numerator, denominator) if denominator else None
