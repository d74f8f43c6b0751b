r"""The `math` reward: is the final answer equal to the reference?

Only the text after ``</think>`` is graded, and of it only the last complete ``\boxed{...}``. Plain numbers
(``rewards/quantity.py``), words, choice letters and notations that are not computed with (``rewards/wording.py``) are
compared as they are written; candidates, tuples, matrices and inequalities are taken apart (``rewards/structure.py``);
what remains are single expressions, which math-verify and a second checker by values compare
(``rewards/expressions.py``).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rewards.answer import after_thoughts, last_box, tidy, unwrap_text
from rewards.base import UNPARSEABLE, Verdict, rowwise
from rewards.expressions import disagreements, equal_expressions, parse, split_percent, split_unit
from rewards.format import prompt_opens_block, text_of
from rewards.quantity import Quantity, read_quantity, same_quantity
from rewards.structure import as_intervals, bounds, candidates, cells, components, is_name, named_values, sides
from rewards.wording import (
    NO_SOLUTION,
    choice_letter,
    equal_literals,
    has_words,
    is_literal,
    is_wrapped_text,
    key_of,
    same_short_word,
    without_names,
    words_of,
)

_MAX_SHOWN = 200  # characters of an answer in a verdict's detail
_MAX_CHARACTERS, _MAX_TIMES_LONGER = 1000, 10  # of an expression, beside its reference
_MAX_CANDIDATES = 200  # compared pairwise


@rowwise
def math_reward(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    answer: Sequence[Any],
    prompt_text: Sequence[str] | None = None,
    log_metric: Callable[[str, float], None] | None = None,
    **columns: Any,
) -> list[Verdict]:
    r"""1.0 where the final answer equals column ``answer``, else 0.0.

    No box after the thoughts, an unclosed think block and an unreadable box score 0 with status ok. A reference that
    cannot be read is ``unparseable``, whatever the completion says. The metric ``math_checkers_disagree`` is the share
    of rows whose detail tells that math-verify and the check by values disagreed.
    """
    verdicts = []
    for row, completion in enumerate(completions):
        opened = prompt_opens_block(prompts[row], prompt_text[row] if prompt_text else None)
        verdicts.append(grade(gold=answer[row], completion=text_of(completion), opened=opened))
    if log_metric is not None and verdicts:
        log_metric("math_checkers_disagree", sum(DISAGREE in v.detail for v in verdicts) / len(verdicts))
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
    with disagreements() as notes:
        equal = is_equal(gold=reference, pred=box)
    detail = f"answer {_shown(box)}, reference {_shown(reference)}"
    if notes:
        detail += f"; {DISAGREE}: {notes[0]}"
    return Verdict(float(equal), detail=detail)


DISAGREE = "the checkers disagree"


def is_equal(*, gold: str, pred: str) -> bool:
    """Does the answer ``pred`` equal the reference ``gold``? Both are bare answers, without a box."""
    reference, answer = _read(gold), tidy(pred)
    if not key_of(answer):
        return False
    if reference.letter and key_of(answer) != reference.key:
        return reference.letter == choice_letter(answer, lower=True)
    return _equal(reference, answer)


def _equal(reference: _Reference, answer: str) -> bool:
    key = key_of(answer)
    if not key:
        return False
    if key == reference.key:
        return True
    if reference.words:
        if reference.words in NO_SOLUTION and key == r"\emptyset":
            return True
        return reference.words == words_of(answer)
    if same_short_word(unwrap_text(reference.text), unwrap_text(answer)):
        return True
    quantity = read_quantity(answer, lone_letters=reference.quantity is not None and bool(reference.quantity.unit))
    if reference.quantity is not None and quantity is not None:
        return same_quantity(reference.quantity, quantity)
    if reference.literal or is_literal(answer):
        return equal_literals(reference.text, answer)
    if reference.key == r"\emptyset" and words_of(answer) in NO_SOLUTION:
        return True
    if len(answer) > _MAX_TIMES_LONGER * len(reference.text) + _MAX_CHARACTERS:
        return False  # not simplified, or padding: the parser would take minutes
    if quantity is None and has_words(without_names(split_unit(answer)[0])):
        return False
    return _equal_structures(reference.text, answer)


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
    letter = choice_letter(text) if quantity is None else ""
    is_prose = quantity is None and not letter and (has_words(split_unit(text)[0]) or is_wrapped_text(text))
    words = words_of(text) if is_prose else ""
    literal = is_literal(text)
    readable = bool(quantity or letter or words or literal) or _readable(text)
    return _Reference(text, key_of(text), quantity, letter, words, literal, readable and bool(key_of(text)))


def _readable(text: str, depth: int = 0) -> bool:
    """The parser reads all of it, or every part of it."""
    if parse(split_percent(split_unit(text)[0])[0]):
        return True
    if depth > 4:
        return False
    rows, found, items = cells(text), components(text), candidates(text).items
    parts = [cell for row in rows for cell in row] if rows else found[1] if found else items
    if parts == [text]:
        parts = sides(text)
    return len(parts) > 1 and all(part and _readable(part, depth + 1) for part in parts)


# --- structures and expressions -------------------------------------------------------------------------------------

_MEMBER = re.compile(r"^\s*[A-Za-z]\s*\\in(?![A-Za-z])\s*")


def _equal_part(gold: str, pred: str) -> bool:
    """As ``is_equal``, inside of a structure, where a letter is a variable and no choice."""
    return _equal(_read(gold), tidy(pred))


def _equal_structures(gold: str, pred: str) -> bool:
    gold, pred = _MEMBER.sub("", gold), _MEMBER.sub("", pred)
    by_bounds = _equal_bounds(gold, pred)
    if by_bounds is not None:
        return by_bounds
    golds, preds = candidates(gold), candidates(pred)
    pair, answer_pair = components(gold), components(pred)
    if len(golds.items) == 1 and len(preds.items) > 1:
        # an enumeration of candidates is no answer, but (3, 4) may have lost its brackets
        return pair is not None and not preds.is_set and _equal_in_order(pair[1], preds.items)
    if len(golds.items) > 1 and len(preds.items) == 1:
        return answer_pair is not None and not golds.is_set and _equal_in_order(golds.items, answer_pair[1])
    if len(golds.items) > 1:
        return _equal_candidates(golds.items, preds.items, golds.is_set or preds.is_set)
    gold, pred = golds.items[0], preds.items[0]
    pair, answer_pair = components(gold), components(pred)
    if pair and answer_pair:
        return pair[0] == answer_pair[0] and _equal_in_order(pair[1], answer_pair[1])
    rows, answer_rows = cells(gold), cells(pred)
    if rows and answer_rows:
        return len(rows) == len(answer_rows) and all(map(_equal_in_order, rows, answer_rows))
    return _equal_sides(gold, pred)


def _equal_bounds(gold: str, pred: str) -> bool | None:
    r"""``x \le 2`` and ``(-\infty, 2]``; None where neither is an inequality, or not a simple one."""
    reference, answer = bounds(gold), bounds(pred)
    if reference is None and answer is None:
        return None
    golds = reference.intervals if reference else as_intervals(gold)
    preds = answer.intervals if answer else as_intervals(pred)
    if golds is None or preds is None:
        return None
    if reference and answer and reference.name != answer.name:
        return False
    return _equal_candidates(golds, preds, is_set=True) or (
        max(len(golds), len(preds)) > 1 and equal_expressions(r" \cup ".join(golds), r" \cup ".join(preds))
    )


def _equal_in_order(golds: list[str], preds: list[str]) -> bool:
    named = named_values(preds)
    if named is not None and named_values(golds) is None:
        preds = [named[name] for name in sorted(named)]
    return len(golds) == len(preds) and all(map(_equal_part, golds, preds))


def _equal_candidates(golds: list[str], preds: list[str], is_set: bool) -> bool:
    """The same answers in any order; in a set each counts once."""
    if max(len(golds), len(preds)) > _MAX_CANDIDATES or (len(golds) != len(preds) and not is_set):
        return False
    left = list(preds)
    for gold in golds:
        match = next((pred for pred in (left or preds) if key_of(pred) == key_of(gold)), None)
        if match is None:
            match = next((pred for pred in left if _equal_part(gold, pred)), None)
        if match is None and is_set:
            match = next((pred for pred in preds if _equal_part(gold, pred)), None)
        if match is None:
            return False
        if match in left:
            left.remove(match)
        elif not is_set:
            return False
    return all(any(_equal_part(gold, pred) for gold in golds) for pred in left) if is_set else not left


def _equal_sides(gold: str, pred: str) -> bool:
    gold_sides, pred_sides = sides(gold), sides(pred)
    if len(gold_sides) == 1 and len(pred_sides) > 1:
        values = [side for side in pred_sides if not is_name(side)]
        return bool(values) and all(_equal_value(gold, side) for side in values)  # 2+3=5 is 5; 8=7 is not 7
    if len(gold_sides) == 2 and is_name(gold_sides[0]):
        if len(pred_sides) == 1:
            return _equal_value(gold_sides[1], pred)
        if len(pred_sides) == 2 and gold_sides[0] == pred_sides[0] and _equal_value(gold_sides[1], pred_sides[1]):
            return True
    return equal_expressions(gold, pred)


def _equal_value(gold: str, pred: str) -> bool:
    quantities = read_quantity(gold), read_quantity(pred)
    if quantities[0] is not None and quantities[1] is not None:
        return same_quantity(quantities[0], quantities[1])
    pair, answer_pair = components(gold), components(pred)
    if pair and answer_pair:
        return pair[0] == answer_pair[0] and _equal_in_order(pair[1], answer_pair[1])
    return equal_expressions(gold, pred)


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return repr(text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "...")
