r"""The `math` reward: is the final answer equal to the reference?

Only the text after ``</think>`` is graded, and of it only the last complete ``\boxed{...}``. Plain numbers, words and
choice letters are compared as they are written; everything else by math-verify (sympy behind a LaTeX parser), between
guards for what it is known to accept wrongly: contradictions (``8=7``), enumerations (``6, 7``), words as products of
letters (``dog`` = ``god``), and numbers that agree only in absolute terms (1/2004! and 1/2006!).

math-verify's own timers are off: they turn "took too long" into "wrong". The deadline is the runner's.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rewards.answer import (
    Quantity,
    after_thoughts,
    canonical_unit,
    last_box,
    names_unit,
    read_quantity,
    same_quantity,
    tidy,
    unwrap_text,
)
from rewards.base import UNPARSEABLE, Verdict, rowwise
from rewards.format import prompt_opens_block, text_of

_MAX_SHOWN = 200  # characters of an answer in a verdict's detail


@rowwise
def math_reward(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    answer: Sequence[Any],
    prompt_text: Sequence[str] | None = None,
    **columns: Any,
) -> list[Verdict]:
    r"""1.0 where the final answer equals column ``answer``, else 0.0.

    No box after the thoughts, an unclosed think block and an unreadable box score 0 with status ok. A reference that
    cannot be read is ``unparseable``, whatever the completion says.
    """
    verdicts = []
    for row, completion in enumerate(completions):
        opened = prompt_opens_block(prompts[row], prompt_text[row] if prompt_text else None)
        verdicts.append(grade(gold=answer[row], completion=text_of(completion), opened=opened))
    return verdicts


def grade(*, gold: Any, completion: str, opened: bool = False) -> Verdict:
    """The verdict on one completion; ``opened``: the prompt ends inside a think block."""
    reference = _reference_text(gold)
    if reference is None or not _read(reference).readable:
        return Verdict(0.0, UNPARSEABLE, detail=f"the reference answer {_shown(gold)} cannot be read")
    text = after_thoughts(completion, opened=opened)
    if text is None:
        return Verdict(0.0, detail="the think block is not closed")
    box = last_box(text)
    if box is None:
        return Verdict(0.0, detail=r"no complete \boxed{} after the thoughts")
    equal = is_equal(gold=reference, pred=box)
    return Verdict(float(equal), detail=f"answer {_shown(box)}, reference {_shown(reference)}")


def is_equal(*, gold: str, pred: str) -> bool:
    """Does the answer ``pred`` equal the reference ``gold``? Both are bare answers, without a box."""
    reference, answer = _read(gold), tidy(pred)
    key = _key(answer)
    if not key:
        return False
    if key == reference.key:
        return True
    if reference.letter:
        return reference.letter == _choice_letter(answer)
    if reference.words:
        return reference.words == _words(answer)
    quantity = read_quantity(answer)
    if reference.quantity is not None and quantity is not None:
        return same_quantity(reference.quantity, quantity)
    if reference.literal or _is_literal(answer) or (quantity is None and _has_words(_split_unit(answer)[0])):
        return False
    return _equal_expressions(reference, answer)


def warm_up() -> None:
    """Import the grader and let its parser learn the usual forms; forks inherit both, and no row pays for them."""
    for gold, pred in _WARM_UP:
        is_equal(gold=gold, pred=pred)


_WARM_UP = [
    (r"\frac{1}{2}", "x+1"),
    (r"\frac{\pi}{2}", r"-\frac{3\sqrt{2}}{4}"),
    (r"(1, -\frac{1}{2})", r"(2, 3 \sqrt{5})"),
    (r"(-\infty, 2] \cup [3, 4)", "[1, 2]"),
    (r"\{1, 2\}", "1, 2"),
    ("x^2+2x+1", "(x-1)(x+2)^{3}"),
    ("y = 2x", "x^2 + y^2 = 1"),
    (r"\sin x", r"\log_2 8 - e^{x}"),
    ("x < 2", r"x \ge 2"),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
]


# --- the reference --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Reference:
    """What is known about a reference answer before any completion is seen."""

    text: str  # tidied
    key: str  # without spaces
    quantity: Quantity | None  # it is a plain number
    letter: str  # it is a choice, e.g. "B"
    words: str  # it is prose, compared as prose
    literal: bool  # compared as written only: 11:30, 1, 3, ..., 2n-1
    readable: bool


def _reference_text(gold: Any) -> str | None:
    r"""The bare answer of a reference: a number, a string, the box in a worked solution, what follows ``####``."""
    if isinstance(gold, (int, float)) and not isinstance(gold, bool):
        return repr(gold)
    if not isinstance(gold, str):
        return None
    if "####" in gold:
        gold = gold.rpartition("####")[2]
    box = last_box(gold)
    return gold if box is None else box


@functools.lru_cache(maxsize=4096)
def _read(gold: str) -> _Reference:
    text = tidy(gold)
    quantity = read_quantity(text)
    letter = _choice_letter(text) if quantity is None else ""
    is_prose = quantity is None and not letter and (_has_words(_split_unit(text)[0]) or _is_wrapped_text(text))
    words = _words(text) if is_prose else ""
    literal = _is_literal(text)
    readable = bool(quantity or letter or words or literal) or bool(_parse(_split_percent(_split_unit(text)[0])[0]))
    return _Reference(text, _key(text), quantity, letter, words, literal, readable and bool(_key(text)))


_FUNCTIONS = ("arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "sqrt")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_WORD = re.compile(r"[A-Za-z]{4,}")


def _key(text: str) -> str:
    """For equality as written: without spaces, except between digits."""
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text)


def _has_words(text: str) -> bool:
    """Prose, which a LaTeX parser would read as a product of letters."""
    bare = _COMMAND.sub(" ", re.sub(r"\\(?:begin|end)\{[a-z]+\}", " ", unwrap_text(text)))
    return any(word not in _FUNCTIONS for word in _WORD.findall(bare))


def _is_wrapped_text(text: str) -> bool:
    return re.fullmatch(r"\\(?:text|textbf|textit|textrm|mbox)\s*\{[^{}]*[A-Za-z][^{}]*\}", text) is not None


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", _COMMAND.sub(" ", unwrap_text(text)).casefold()))


def _choice_letter(text: str) -> str:
    r"""``B``, ``(B)``, ``\textbf{(B)}\ 7``, ``B. seven``: the letter; "" where the answer is something else."""
    bare = unwrap_text(text)
    match = re.match(r"^\(\s*([A-J])\s*\)|^([A-J])(?:\s*[.:)]|$)", bare)
    return (match[1] or match[2]) if match else ""


def _is_literal(text: str) -> bool:
    """Ratios, times, sequences with dots and digits apart mean too many things to be computed with."""
    return re.search(r":|\.\.\.|…|\\[lcv]?dots|(?<![_^\d])\d+ \d+(?![\d/])", text) is not None


# --- expressions ----------------------------------------------------------------------------------------------------

_EQUALS = re.compile(r"(?<![<>!\\:=])=(?!=)")
_RELATION = re.compile(r"[<>]|\\(?:le|ge|lt|gt|ne|neq|in|approx|equiv|sim|to)(?![A-Za-z])")
_GREEK = r"\\(?:alpha|beta|gamma|delta|epsilon|theta|lambda|mu|phi|psi|omega|sigma|tau|rho)"
_SYMBOL = rf"(?:[A-Za-z]|{_GREEK})'*(?:_\{{?\w+\}}?)?(?:\(\w+(?:,\w+)*\))?"
_NAME = re.compile(rf"{_SYMBOL}|\\(?:angle|triangle)?\s*[A-Z]{{2,4}}|[A-Za-z ]{{3,}}")
_UNIT_BEHIND = re.compile(r"\\(?:text|textrm|mathrm|mbox)\s*\{\s*([A-Za-z][A-Za-z ./]*)\}(\^\{?\d\}?)?$")
_MEMBER = re.compile(r"^\s*[A-Za-z]\s*\\in(?![A-Za-z])\s*")


def _equal_expressions(reference: _Reference, answer: str) -> bool:
    gold, pred = _MEMBER.sub("", reference.text), _MEMBER.sub("", answer)
    if _num_alternatives(gold) == 1 and _num_alternatives(pred) != 1:
        return False  # an enumeration of candidates is no answer
    if not _same_brackets(gold, pred):
        return False
    gold_sides, pred_sides = _sides(gold), _sides(pred)
    if len(gold_sides) == 1 and len(pred_sides) > 1:
        values = [side for side in pred_sides if not _NAME.fullmatch(unwrap_text(side))]
        return bool(values) and all(_verify(gold, side) for side in values)  # 2+3=5 is 5; 8=7 is not 7
    if len(gold_sides) == 2 and len(pred_sides) == 1 and _NAME.fullmatch(gold_sides[0]):
        return _verify(gold_sides[1], pred)
    return _verify(gold, pred)


def _sides(text: str) -> list[str]:
    """The sides of an equation or chain of equations; one where there is none, or a list of several."""
    if _RELATION.search(text) or _num_alternatives(text) > 1 or "\\begin" in text:
        return [text]
    return [side.strip() for side in _EQUALS.split(text)]


def _num_alternatives(text: str) -> int:
    r"""How many answers stand side by side: ``7`` 1, ``6 or 7`` 2, ``\{1, 2\}`` 2, ``\pm 7`` 2, ``(1, 2)`` 1."""
    text = text.strip()
    if text.startswith(r"\{") and text.endswith(r"\}"):
        text = text[2:-2]
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)  # thousands
    text = re.sub(r"\\text\s*\{\s*(or|and)\s*\}|\b(or|and)\b|\\(?:lor|vee|wedge)(?![A-Za-z])|;", ",", text)
    depth, count = 0, 1 + len(re.findall(r"\\(?:pm|mp)(?![A-Za-z])", text))
    for character in re.sub(r"\\[{}]", lambda m: "(" if m[0] == r"\{" else ")", text):
        depth += (character in "([{") - (character in ")]}")
        count += character == "," and depth <= 0
    return count


def _same_brackets(gold: str, pred: str) -> bool:
    """Open and closed ends differ: ``(1, 2]`` is not ``[1, 2]``, which a parser may forget."""
    pattern = re.compile(r"^([\[(]).*,.*([\])])$", re.DOTALL)
    ends = [match.groups() if (match := pattern.match(text)) else None for text in (gold.strip(), pred.strip())]
    return None in ends or ends[0] == ends[1]


def _split_percent(text: str) -> tuple[str, bool]:
    bare = re.sub(r"\s*\\?%$", "", text)
    return bare, bare != text


def _split_unit(text: str) -> tuple[str, str]:
    """An expression and the unit behind it in a text command; "" where there is none."""
    match = _UNIT_BEHIND.search(text)
    if match is None or not text[: match.start()].strip() or not names_unit(match[1]):
        return text, ""
    return text[: match.start()].strip(), canonical_unit(match[1] + (match[2] or ""))


def _verify(gold: str, pred: str) -> bool:
    (gold, gold_unit), (pred, pred_unit) = _split_unit(gold), _split_unit(pred)
    if gold_unit and pred_unit and gold_unit != pred_unit:
        return False
    (gold, gold_percent), (pred, pred_percent) = _split_percent(gold), _split_percent(pred)
    if _same(gold, pred):
        return True
    if gold_percent != pred_percent:
        percent, plain = (gold, pred) if gold_percent else (pred, gold)
        scaled = rf"\frac{{{percent}}}{{100}}"
        return _same(scaled, plain) if gold_percent else _same(plain, scaled)
    return False


def _same(gold: str, pred: str) -> bool:
    import math_verify

    reference, answer = _parse(gold), _parse(pred)
    if not reference or not answer:
        return False
    accepted = math_verify.verify(list(reference), list(answer), timeout_seconds=None, allow_set_relation_comp=True)
    return accepted and not _differ(reference[0], answer[0])


@functools.lru_cache(maxsize=4096)
def _parse(latex: str) -> tuple[Any, ...]:
    """math-verify's reading of a bare answer; empty where it has none."""
    import math_verify.grader
    import math_verify.parser

    # Without timers by design (module docstring); this is its own switch against repeating the warning.
    math_verify.parser.TIMEOUT_WARNING_SHOWN = math_verify.grader.TIMEOUT_WARNING_SHOWN = True
    # Units are read by rewards/answer.py: math-verify's list takes the variables in `2 t` and `b + c` for units.
    normalization = replace(math_verify.LatexExtractionConfig().normalization_config, units=False)
    config = math_verify.LatexExtractionConfig(
        boxed_match_priority=0, try_extract_without_anchor=False, normalization_config=normalization
    )
    parsed = math_verify.parse(
        rf"\boxed{{{latex}}}", extraction_config=[config], fallback_mode="no_fallback", parsing_timeout=None
    )
    return tuple(parsed)


def _differ(gold: Any, pred: Any) -> bool:
    """True when both are numbers, or collections of numbers, and not the same ones to 25 (with decimals: 6) digits.

    math-verify rounds to six decimals before it compares, so it takes every two tiny numbers for equal.
    """
    import sympy

    golds, preds = _elements(gold), _elements(pred)
    if len(golds) != len(preds):
        return False  # math-verify compared them by their meaning
    for a, b in zip(golds, preds, strict=True):
        if not all(isinstance(e, sympy.Expr) and not e.free_symbols for e in (a, b)):
            return False
        exact = not any(e.atoms(sympy.Float) for e in (a, b))
        x, y = sympy.N(a, 30), sympy.N(b, 30)
        scale = max(abs(x), abs(y))
        if scale.is_finite and x != 0 and y != 0 and abs(x - y) > scale * (1e-25 if exact else 2e-6):
            return True
    return False


def _elements(value: Any) -> list[Any]:
    import sympy

    if isinstance(value, sympy.Tuple):
        return list(value)
    if type(value).__name__ == "FiniteSet":
        return sorted(value.args, key=sympy.default_sort_key)
    return [value]


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return repr(text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "...")
