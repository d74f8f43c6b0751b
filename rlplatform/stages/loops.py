"""Text that goes round in circles: the longest stretch that repeats itself with a fixed period."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlplatform.stages.texts import pieces

MAX_PERIOD = 64  # words and signs, or lines; a longer cycle shows up among the repeated n-grams
_MAX_WORD = 40  # letters; a longer word counts letter by letter, so that hahaha... is a loop as well


def units(text: str) -> list[str]:
    """Words and signs; digits stay together however many: a long number repeats nothing."""
    found = pieces(text)
    return [unit for word in found for unit in ([word] if len(word) <= _MAX_WORD or word.isdigit() else word)]


def repeated_share(text: str, n: int) -> float:
    """1 - different n-grams / n-grams ("rep-n", Welleck et al., arXiv 1908.04319); 0 for a text shorter than n."""
    words = units(text)
    num_grams = len(words) - n + 1
    if num_grams < 1:
        return 0.0
    return 1.0 - len({tuple(words[k : k + n]) for k in range(num_grams)}) / num_grams


def longest_loop(text: str, *, min_cycles: int, min_tokens: int) -> str:
    """What loops, for people; "" where nothing does. Words first, then lines (without blank ones and outer spaces)."""
    words = units(text)
    start, length, period = longest_cycle(words, min_cycles)
    if length >= min_tokens:
        return f"{length // period} times {' '.join(words[start : start + period])[:80]!r}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    start, length, period = longest_cycle(lines, min_cycles)
    if sum(len(pieces(line)) for line in lines[start : start + length]) >= min_tokens:
        return f"{length // period} times the lines {' / '.join(lines[start : start + period])[:80]!r}"
    return ""


def longest_cycle(items: Sequence[str], min_cycles: int) -> tuple[int, int, int]:
    """``(start, length, period)`` of the longest stretch with ``items[k] == items[k + period]`` throughout that holds
    ``min_cycles`` whole periods; the shortest period where several fit; (0, 0, 1) where there is none."""
    numbers: dict[str, int] = {}
    ids = np.array([numbers.setdefault(item, len(numbers)) for item in items], dtype=np.int64)
    best = (0, 0, 1)
    for period in range(1, min(MAX_PERIOD, len(ids) // min_cycles) + 1):
        equal = np.concatenate(([False], ids[period:] == ids[:-period], [False])).astype(np.int8)
        edges = np.flatnonzero(np.diff(equal))
        starts, stops = edges[::2], edges[1::2]
        if not len(starts):
            continue
        longest = int(np.argmax(stops - starts))
        length = int(stops[longest] - starts[longest]) + period
        if length >= min_cycles * period and length > best[1]:
            best = (int(starts[longest]), length, period)
    return best
