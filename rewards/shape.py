"""Rewards on the shape of a text: `length`, `group_length` (shorter than its siblings), `repetition` (what is new)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rewards.answer import after_thoughts
from rewards.base import Verdict, groupwise, rowwise
from rewards.format import prompt_opens_block, text_of
from rewards.text import tokens, unreadable

UNITS = ("words", "characters", "tokens")
_TOO_LONG, _TOO_SHORT = 3.0, 2.0  # slopes of the source
_NGRAM = 4


@rowwise
def length_reward(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    length_target: Sequence[Any],
    length_unit: Sequence[str | None] | None = None,
    completion_ids: Sequence[Sequence[int]] | None = None,
    prompt_text: Sequence[str] | None = None,
    **columns: Any,
) -> list[Verdict]:
    """How close the length of the answer is to column ``length_target``, a number or ``[low, high]``.

    1 at the target or inside the range. Beyond the nearest bound l, a length x scores 1 - (x/l - 1)/3 when too long and
    1 - (l/x - 1)/2 when too short, never below 0: the length score of LongWriter (Bai et al. 2024, arXiv 2408.07055)
    divided by 100, so that four times or a third of the target is worth nothing.

    Column ``length_unit``: ``words`` (where absent; a word a character in Chinese, Japanese and Thai), ``characters``
    (without white space), or ``tokens`` (all sampled ones, thoughts too; the others count the answer alone).
    """
    verdicts = []
    for row, completion in enumerate(completions):
        bounds = _bounds(length_target[row])
        unit = "words" if length_unit is None or length_unit[row] is None else length_unit[row]
        if bounds is None:
            verdicts.append(
                unreadable("column length_target: expected a positive number or [low, high];", length_target[row])
            )
            continue
        if unit not in UNITS:
            verdicts.append(unreadable(f"column length_unit: expected one of {', '.join(UNITS)};", unit))
            continue
        if unit == "tokens":
            if completion_ids is None:
                raise ValueError("length_unit 'tokens' needs completion_ids: use words or characters here")
            length = len(completion_ids[row])
        else:
            opened = prompt_opens_block(prompts[row], prompt_text[row] if prompt_text else None)
            text = after_thoughts(text_of(completion), opened=opened) or ""
            length = _length(text, unit)
        verdicts.append(Verdict(length_score(length, *bounds), detail=f"{length} {unit}, target {length_target[row]}"))
    return verdicts


def _bounds(target: Any) -> tuple[float, float] | None:
    pair = target if isinstance(target, (list, tuple)) else (target, target)
    if len(pair) != 2 or not all(isinstance(n, (int, float)) and not isinstance(n, bool) for n in pair):
        return None
    low, high = pair
    return (float(low), float(high)) if 0 < low <= high < float("inf") else None


def length_score(length: float, low: float, high: float) -> float:
    """See ``length_reward``; 0 for nothing at all."""
    if length <= 0:
        return 0.0
    if length > high:
        return max(0.0, 1 - (length / high - 1) / _TOO_LONG)
    return max(0.0, 1 - (low / length - 1) / _TOO_SHORT) if length < low else 1.0


@groupwise
def group_length_reward(
    completions: Sequence[Any],
    completion_ids: Sequence[Sequence[int]] | None = None,
    *,
    unit: str = "tokens",
    **columns: Any,
) -> list[Verdict]:
    """From 0.5 for the shortest completion of a prompt to -0.5 for the longest; 0 where all are equally long.

    0.5 - (length - min) / (max - min) over the group: the length reward of Kimi k1.5 (Kimi Team 2025, arXiv 2501.12599,
    section "Length Penalty"). There a wrong answer earns min(0, it); with gates and clips of a composition that is::

        too_long: {function: group_length, clip: [-0.5, 0]}
        short: {function: group_length, clip: [0, 0.5], needs: math}

    ``unit``: ``tokens`` (all sampled ones), ``words`` or ``characters`` of the completion, thoughts included.
    """
    if unit not in UNITS:
        raise ValueError(f"group_length: unit: expected one of {', '.join(UNITS)}, got {unit!r}")
    if unit == "tokens":
        if completion_ids is None:
            raise ValueError("group_length: unit 'tokens' needs completion_ids: use words or characters here")
        lengths = [len(ids) for ids in completion_ids]
    else:
        lengths = [_length(text_of(completion), unit) for completion in completions]
    shortest, longest = min(lengths), max(lengths)
    return [
        Verdict(
            0.5 - (length - shortest) / (longest - shortest) if shortest < longest else 0.0,
            detail=f"{length} {unit} of {shortest} to {longest} in the group",
        )
        for length in lengths
    ]


def _length(text: str, unit: str) -> int:
    return len(tokens(text)) if unit == "words" else len(re.sub(r"\s", "", text))


@rowwise
def repetition_reward(completions: Sequence[Any], **columns: Any) -> list[Verdict]:
    """The share of four-word sequences that are new to the text: 1 where none is repeated, near 0 for a loop.

    All of the completion counts, thoughts too. One minus it is "rep-n" (Welleck et al. 2019, arXiv 1908.04319, 1 -
    unique n-grams / n-grams). A text of fewer than four words has nothing to repeat: 1, so combine it with others.
    A word of more than 40 letters counts letter by letter, so that "hahaha..." is a loop as well.
    """
    shares = [new_share(text_of(completion)) for completion in completions]
    return [Verdict(share, detail=f"{1 - share:.1%} of {_NGRAM}-grams are repeated") for share in shares]


def new_share(text: str, n: int = _NGRAM) -> float:
    words = [piece for word in _words_and_signs(text) for piece in (word if len(word) > 40 else [word])]
    num_grams = len(words) - n + 1
    if num_grams <= 0:
        return 1.0
    return len({tuple(words[k : k + n]) for k in range(num_grams)}) / num_grams


def _words_and_signs(text: str) -> list[str]:
    """Words, or where there are next to none, what stands between spaces (``!!! !!! !!!``)."""
    words = tokens(text)
    return (
        words
        if len(words) >= _NGRAM
        else [piece for part in text.split() for piece in (part if len(part) > 40 else [part])]
    )
