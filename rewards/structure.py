r"""What an answer is made of, read from its text: candidates, components of a tuple, cells of a matrix, bounds.

A LaTeX parser forgets some of it (the order in a pair, which ends of an interval are open, how often a number stands
in a list), so these parts are taken apart here and compared one by one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

GREEK = r"\\(?:alpha|beta|gamma|delta|epsilon|theta|lambda|mu|phi|psi|omega|sigma|tau|rho)"
SYMBOL = rf"(?:[A-Za-z]|{GREEK})'*(?:_\{{?\w+\}}?)?(?:\(\w+(?:,\w+)*\))?"
NAME = re.compile(rf"{SYMBOL}|m?\s*(?:\\(?:angle|triangle|overline|text)?\s*)?\{{?[A-Z]{{1,4}}\}}?|[A-Za-z ]{{3,}}")
RELATION = re.compile(r"[<>]|\\(?:le|ge|lt|gt|ne|neq|in|approx|equiv|sim|to)(?![A-Za-z])")
_EQUALS = re.compile(r"(?<![<>!\\:=])=(?!=)")
_OR = r"(?:,\s*)?(?:\\text\s*\{\s*(?:or|and)\s*\}|\b(?:or|and)\b)|\\(?:lor|vee|wedge)(?![A-Za-z])"
_SIGNS = re.compile(r"\\(pm|mp)(?![A-Za-z])")
_ENVIRONMENT = re.compile(r"^\\begin\{([pbB]?matrix|array)\}(?:\{[lcr|]+\})?(.*)\\end\{\1\}$", re.DOTALL)


def split_at_depth_0(text: str, separator: str = ",") -> list[str]:
    r"""Split outside of brackets. ``1,234`` stays whole; ``\{`` and ``\}`` are brackets too."""
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text) if separator == "," else text
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character == separator and depth <= 0:
            parts.append(text[start:position])
            start = position + 1
    return [part.strip() for part in [*parts, text[start:]]]


@dataclass(frozen=True)
class Candidates:
    """Answers that stand side by side."""

    items: list[str]
    is_set: bool  # in braces: order and repetition do not count


def candidates(text: str) -> Candidates:
    r"""``7`` is one, ``6 or 7`` two, ``\{1, 2\}`` two, ``\pm 7`` two, ``(1, 2)`` one.

    All signs of one ``\pm`` expression go together: ``a \pm b \mp c`` is a+b-c and a-b+c.
    """
    text = text.strip()
    is_set = text.startswith(r"\{") and text.endswith(r"\}") and text.count(r"\{") == 1
    if not is_set and text.startswith(r"\{") and text.endswith(r"\}"):
        is_set = len(split_at_depth_0(text)) == 1 and _closes_at_end(text[1:])
    is_set = is_set and r"\emptyset" not in text  # the set of the empty set is not the empty set
    if is_set:
        text = text[2:-2].strip()
    if r"\begin" in text or _is_condition(text):
        return Candidates([text], is_set)
    items = []
    for part in split_at_depth_0(re.sub(rf"{_OR}|;(?![^(\[]*[)\]])", ",", text)):
        if _SIGNS.search(part):
            items.append(_SIGNS.sub(lambda m: "+" if m[1] == "pm" else "-", part))
            items.append(_SIGNS.sub(lambda m: "-" if m[1] == "pm" else "+", part))
        else:
            items.append(part)
    return Candidates([re.sub(r"^\+\s*|(?<==)\s*\+", "", item) for item in items], is_set)


def _is_condition(text: str) -> bool:
    return RELATION.search(text) is not None or r"\cup" in text or r"\mid" in text


def _closes_at_end(text: str) -> bool:
    depth = 0
    for position, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0:
            return position == len(text) - 1
    return False


def components(text: str) -> tuple[str, list[str]] | None:
    """The brackets and what stands between them: ``(1, 2]`` is ("(]", ["1", "2"]); None for anything else."""
    text = text.strip()
    if len(text) < 3 or text[0] not in "([" or text[-1] not in ")]" or not _closes_at_end(text):
        return None
    inner = re.sub(r";", ",", text[1:-1])
    parts = split_at_depth_0(inner)
    return (text[0] + text[-1], parts) if len(parts) > 1 else None


def cells(text: str) -> list[list[str]] | None:
    """The rows of a matrix; None for anything else. A determinant (``vmatrix``) is a number."""
    match = _ENVIRONMENT.match(text.strip())
    if match is None:
        return None
    rows = [row for row in re.split(r"\\\\|\\cr(?![A-Za-z])", match[2]) if row.strip()]
    return [[cell.strip() for cell in row.split("&")] for row in rows]


def sides(text: str) -> list[str]:
    """The sides of an equation or chain of equations; one where there is none."""
    if RELATION.search(text) or "\\begin" in text or len(split_at_depth_0(text)) > 1:
        return [text]
    return [side.strip() for side in _EQUALS.split(text)]


def is_name(side: str) -> bool:
    """``x``, ``f(2)``, ``AB``, ``(x, y)``, ``the area``: a side that says what the other side is."""
    side = re.sub(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}", r"\1", side).strip()
    parts = components(side)
    if parts is not None:
        return parts[1] == sorted(parts[1]) and all(re.fullmatch(SYMBOL, part) for part in parts[1])
    return NAME.fullmatch(side) is not None


def named_values(items: list[str]) -> dict[str, str] | None:
    """``["y=2", "x=1"]`` is {"y": "2", "x": "1"}; None unless every item has a name of its own."""
    found: dict[str, str] = {}
    for item in items:
        both = sides(item)
        if len(both) != 2 or not re.fullmatch(SYMBOL, both[0]) or both[0] in found:
            return None
        found[both[0]] = both[1]
    return found


# --- inequalities ---------------------------------------------------------------------------------------------------

_LESS, _MORE = {"<": False, r"\lt": False, r"\le": True}, {">": False, r"\gt": False, r"\ge": True}
_SIGN = re.compile(r"(<|>|\\(?:lt|gt|le|ge)(?![A-Za-z]))")


@dataclass(frozen=True)
class Bounds:
    r"""``1 < x \le 2`` as the interval ``(1, 2]``; ``x < 1 or x > 2`` as a union."""

    name: str  # the variable; "" for a bare interval
    intervals: list[str]


def bounds(text: str) -> Bounds | None:
    """An inequality, or several joined by `or`, as intervals; None for anything else."""
    if not _SIGN.search(text):
        return None
    names, intervals = set(), []
    for piece in re.split(r"\\text\s*\{\s*or\s*\}|\bor\b|\\(?:lor|vee)(?![A-Za-z])|,", text):
        found = _interval(piece)
        if found is None:
            return None
        names.add(found[0])
        intervals.append(found[1])
    return Bounds(names.pop(), intervals) if len(names) == 1 else None


def _interval(piece: str) -> tuple[str, str] | None:
    parts = [part.strip() for part in _SIGN.split(piece)]
    values, signs = parts[::2], parts[1::2]
    if len(signs) in (1, 2) and all(sign in _MORE for sign in signs):  # from the smaller side
        values, signs = values[::-1], [{">": "<", r"\gt": "<", r"\ge": r"\le"}[sign] for sign in signs[::-1]]
    if len(signs) not in (1, 2) or not all(sign in _LESS for sign in signs) or not all(values):
        return None
    if len(signs) == 2:
        low, name, high = values
        left, right = "[" if _LESS[signs[0]] else "(", "]" if _LESS[signs[1]] else ")"
    elif re.fullmatch(SYMBOL, values[0]) and not re.fullmatch(SYMBOL, values[1]):
        name, low, high = values[0], r"-\infty", values[1]
        left, right = "(", "]" if _LESS[signs[0]] else ")"
    else:
        low, name, high = values[0], values[1], r"\infty"
        left, right = "[" if _LESS[signs[0]] else "(", ")"
    return (name, f"{left}{low}, {high}{right}") if re.fullmatch(SYMBOL, name) else None


def as_intervals(text: str) -> list[str] | None:
    r"""The parts of ``(1, 2] \cup [3, 4)``; None where a part is no interval."""
    parts = [part.strip() for part in re.split(r"\\cup(?![A-Za-z])|∪", text)]
    good = all((found := components(part)) is not None and len(found[1]) == 2 for part in parts)
    return parts if good else None
