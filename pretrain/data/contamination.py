"""Benchmark items inside training documents, found by n-grams of words (GPT-3, arXiv 2005.14165, appendix C).

An item's question is cut into its 13-grams of words (``words.py``: folded, without signs; a character is a word in
scripts without spaces). A document that holds one of them is contaminated, and is dropped whole or cut open around it.

- Items of 8 to 12 words are looked for as a whole; shorter ones cannot be told from ordinary language, are not looked
  for, and are counted (GPT-3 uses n between 8 and 13 by the length of a set's items).
- Lines and grams that more than ``max_items`` items of one benchmark share (instructions, worked examples, options) are
  the prompt's own wording, not an item's, and are not looked for. An item of nothing else is counted, too.
- Grams are compared by 64-bit hashes: with 10**6 of them, 10**12 grams of text give 0.05 false hits.

``cut`` follows GPT-3: the gram and ``window`` characters on both sides go, whole words; what is left between cuts and
is shorter than ``min_piece`` characters goes as well; a document that would be cut more than ``max_cuts`` times is
dropped.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pretrain.data.document import Row
from pretrain.data.edits import KEEP, Answer, Decision, Edit, Edited
from pretrain.data.words import Hashes, fold, gram_hashes, words
from rlplatform.datafiles import DataError

DROP, CUT = "drop", "cut"
MODES = (DROP, CUT)
SHORTEST, LONGEST = 8, 13  # words; GPT-3's bounds


class Item(NamedTuple):
    """One question of a benchmark."""

    benchmark: str
    name: str  # the item's id
    text: str


@dataclass(frozen=True)
class Index:
    """Where each gram comes from. G grams in all, sorted within a length."""

    n: int  # words of the longest grams
    items: tuple[str, ...]  # BENCHMARK/ITEM
    grams: Mapping[int, Hashes]  # words in a gram -> sorted hashes
    owners: Mapping[int, NDArray[np.int64]]  # the first item, in the order given, that has the gram
    counts: Mapping[str, int]  # "BENCHMARK: looked for", "...: too short", "...: shared wording only"

    def save(self, path: Path) -> None:
        """As one ``.npz`` file."""
        arrays: dict[str, Any] = {f"grams_{n}": values for n, values in self.grams.items()}
        arrays |= {f"owners_{n}": values for n, values in self.owners.items()}
        np.savez(path, n=np.array(self.n), items=np.array(self.items, dtype=np.str_), **arrays)

    @staticmethod
    def load(path: Path) -> Index:
        """What ``save`` wrote; its counts stay with who made it."""
        with np.load(path) as file:
            lengths = sorted(int(name.removeprefix("grams_")) for name in file.files if name.startswith("grams_"))
            return Index(
                int(file["n"]),
                tuple(file["items"].tolist()),
                {n: file[f"grams_{n}"] for n in lengths},
                {n: file[f"owners_{n}"] for n in lengths},
                {},
            )


def build_index(items: Iterable[Item], *, n: int = LONGEST, shortest: int = SHORTEST, max_items: int = 10) -> Index:
    """The grams of all items.

    Raises:
        DataError: no item at all, or not 1 <= shortest <= n.
    """
    if not 1 <= shortest <= n:
        raise DataError(f"contamination: expected 1 <= shortest <= n words, got shortest {shortest} and n {n}")
    items = list(items)
    own_lines = _own_lines(items, max_items)
    names: list[str] = []
    found: list[tuple[str, int, Hashes]] = []
    shared: dict[str, Counter[int]] = defaultdict(Counter)  # benchmark -> gram -> items that have it
    for item, text in zip(items, own_lines, strict=True):
        hashes = words(text).hashes
        size = min(n, len(hashes))
        grams = np.unique(gram_hashes(hashes, size)) if size >= shortest else np.empty(0, np.uint64)
        names.append(f"{item.benchmark}/{item.name}")
        found.append((item.benchmark, size, grams))
        shared[item.benchmark].update(grams.tolist())
    if not found:
        raise DataError("contamination: expected at least one benchmark item")
    owners: dict[int, dict[int, int]] = defaultdict(dict)
    counts: Counter[str] = Counter()
    for place, (benchmark, size, grams) in enumerate(found):
        own = [gram for gram in grams.tolist() if shared[benchmark][gram] <= max_items]
        for gram in own:
            owners[size].setdefault(gram, place)
        counts[f"{benchmark}: {_state(size < shortest, bool(own))}"] += 1
    sorted_grams = {size: np.array(sorted(owners[size]), np.uint64) for size in sorted(owners)}
    placed = {size: np.array([owners[size][int(g)] for g in grams], np.int64) for size, grams in sorted_grams.items()}
    return Index(n, tuple(names), sorted_grams, placed, dict(counts))


def _own_lines(items: Sequence[Item], max_items: int) -> list[str]:
    """Each item's text without lines that more than ``max_items`` of its benchmark's items have."""
    holders: dict[str, Counter[str]] = defaultdict(Counter)
    for item in items:
        holders[item.benchmark].update({fold(line).strip() for line in item.text.splitlines()})
    return [
        "\n".join(line for line in item.text.splitlines() if holders[item.benchmark][fold(line).strip()] <= max_items)
        for item in items
    ]


def _state(too_short: bool, has_own: bool) -> str:
    if too_short:
        return "too short"
    return "looked for" if has_own else "shared wording only"


class Hit(NamedTuple):
    """One gram of an item in a text."""

    start: int  # characters
    end: int
    item: str  # BENCHMARK/ITEM
    n: int  # words in the gram


def hits(text: str, index: Index) -> list[Hit]:
    """Every gram of the index in ``text``, by place."""
    found = words(text)
    hit: list[Hit] = []
    for n, grams in index.grams.items():
        hashes = gram_hashes(found.hashes, n)
        if not len(hashes) or not len(grams):
            continue
        near = np.minimum(np.searchsorted(grams, hashes), len(grams) - 1)
        for k in np.nonzero(grams[near] == hashes)[0].tolist():
            item = index.items[int(index.owners[n][near[k]])]
            hit.append(Hit(int(found.starts[k]), int(found.ends[k + n - 1]), item, n))
    return sorted(hit)


def contamination(
    rows: Sequence[Row],
    index: Index,
    *,
    mode: str = DROP,
    window: int = 200,
    min_piece: int = 200,
    max_cuts: int = 10,
) -> list[Answer]:
    """Drop or cut documents that hold a benchmark's item.

    Reasons: the benchmark's name, of the first hit; ``too_many_cuts``; of edits also ``short_piece``. The detail names
    every item that was hit (twenty at most) and how many of its grams there are.

    Raises:
        DataError: an unknown mode or a negative number.
    """
    if mode not in MODES:
        raise DataError(f"contamination: expected mode to be one of {', '.join(MODES)}, got {mode!r}")
    if min(window, min_piece, max_cuts) < 0:
        raise DataError(f"contamination: expected numbers >= 0, got {window=}, {min_piece=}, {max_cuts=}")
    answers: list[Answer] = []
    for row in rows:
        found = hits(row["text"], index)
        if not found:
            answers.append(KEEP)
        elif mode == DROP:
            answers.append(Decision(benchmark_of(found[0].item), described(found)))
        else:
            answers.append(_cut(row["text"], found, window, min_piece, max_cuts))
    return answers


def benchmark_of(item: str) -> str:
    return item.partition("/")[0]


def described(found: Sequence[Hit]) -> str:
    """``gsm8k/gsm8k-00012: 34 of 13 words; ...``: items in the order of their first hit, with numbers of grams."""
    grams = Counter((hit.item, hit.n) for hit in found)
    parts = [f"{item}: {number} of {n} words" for (item, n), number in grams.items()]
    return "; ".join(parts[:20]) + (f"; and {len(parts) - 20} more" if len(parts) > 20 else "")


def _cut(text: str, found: Sequence[Hit], window: int, min_piece: int, max_cuts: int) -> Answer:
    spans: list[tuple[int, int, list[Hit]]] = []  # that share no character
    for hit in found:
        start, end = _whole_words(text, hit.start - window, hit.end + window)
        if spans and start <= spans[-1][1]:
            first, last, inside = spans[-1]
            inside.append(hit)
            spans[-1] = (min(first, start), max(last, end), inside)
        else:
            spans.append((start, end, [hit]))
    if len(spans) > max_cuts:
        return Decision("too_many_cuts", f"{len(spans)} > {max_cuts}; {described(found)}")
    cuts = [Edit(a, b, "", benchmark_of(inside[0].item), described(inside)) for a, b, inside in spans]
    edges = [0, *(place for a, b, _ in spans for place in (a, b)), len(text)]
    short = [
        Edit(a, b, "", "short_piece", f"{b - a} < {min_piece} characters left between cuts")
        for a, b in zip(edges[::2], edges[1::2], strict=True)
        if 0 < b - a < min_piece
    ]
    return Edited(tuple(sorted((*cuts, *short), key=lambda edit: edit.start)))


def _whole_words(text: str, start: int, end: int) -> tuple[int, int]:
    """The span inside the text, widened to where no word is cut: by 200 characters at most, for texts without gaps."""
    start, end = max(start, 0), min(end, len(text))
    for _ in range(200):
        if start == 0 or text[start - 1].isspace():
            break
        start -= 1
    for _ in range(200):
        if end == len(text) or text[end].isspace():
            break
        end += 1
    return start, end
