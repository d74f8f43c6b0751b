r"""Finding and tidying a final answer: what stands after the thoughts, in the last complete ``\boxed{}``."""

from __future__ import annotations

import re

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
        (r"\\frac\s*(\\[a-z]+)\s*(\w)", r"\\frac{\1}{\2}"),
        (r"\\phantom\s*(?:\{[^{}]*\}|\S)", ""),
        (r",\\!(?=\d{3}(?!\d))|\\!|\{\}", ""),
        (r"(?<=\d)\\,(?=\d{3}(?!\d))", ""),
        (r"(?<!\\)\\[,;: ]|\\q?quad(?![A-Za-z])|~", " "),
        (r"(?<=\d)\{,\}(?=\d{3}(?!\d))", ""),
        (r"\{,\}", ","),
        (r"^\s*\\approx(?![A-Za-z])", ""),
        (r"\\(?:math(?:rm|bf|it|sf)|text(?:bf|rm|it)?)\{([A-Za-z]|[-+]?[\d.,]+)\}", r"\1"),
        (r"\\(?:displaystyle|textstyle|limits)(?![A-Za-z])", ""),
        (r"\\varnothing(?![A-Za-z])|∅|^\\\{\s*\\\}$", r"\\emptyset "),
        (r"\\langle(?![A-Za-z])|⟨", "("),
        (r"\\rangle(?![A-Za-z])|⟩", ")"),
        (r"±", r"\\pm "),
        (r"(?<=[\d}])\s*(?:\\text\{\s*percent\s*\}|percent\b)", r"\\%"),
        (r"\s*\\[pb]?mod(?![A-Za-z])\s*(?:\{(\w+)\}|(\w+))", r" \\pmod{\1\2}"),
        (r"(?<![\d.,/])(\d+) +(\d+)/(\d+)(?![\d/])", r"\1\\frac{\2}{\3}"),
        (r"^([-+]?\d+(?:\.\d+)?)[eE]([-+]?\d{1,3})$", r"\1 \\times 10^{\2}"),
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
    return re.sub(r"(?<!\\)[.,;]\s*$", "", _REPEATING.sub(_as_fraction, text)).strip()


_REPEATING = re.compile(r"(?<![\d.])(\d{0,20})\.(\d{0,20})\\overline\{(\d{1,20})\}")


def _as_fraction(match: re.Match[str]) -> str:
    r"""``0.1\overline{6}`` is 15/90: (16 - 1) over one 9 a repeating digit and one 0 a digit before them."""
    whole, before, repeated = match.groups()
    numerator = int(whole + before + repeated) - int(whole + before or "0")
    return rf"\frac{{{numerator}}}{{{'9' * len(repeated)}{'0' * len(before)}}}"


def unwrap_text(text: str) -> str:
    r"""``\text{...}`` and its relatives replaced by what they hold."""
    return _TEXT.sub(r" \1 ", text).strip()
