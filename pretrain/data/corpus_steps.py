"""Steps that need to see all documents before they decide about one: duplicates, and paragraphs that stand everywhere.

    shard ─ units of each document ─ Sketch ─► sketch-00007.npz     one task a shard
                                                    │ all of them
                                              unit ─► root: the first unit that is the same     (one task a band)
                                                    │
    shard ◄─ answers of its documents ◄─────────────┘

Units are numbered in document order over all shards: the numbers do not depend on where shards begin.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pretrain.data.duplicates import Near, Units, band_keys, signatures
from pretrain.data.edits import Answer, Decision, Edit, Edited
from pretrain.data.words import Hashes, exact_key, shingles, words
from rlplatform.datafiles import DataError

Span = tuple[int, int]
KEY = np.dtype("V16")


@dataclass
class Sketch:
    """What of one shard's units the others need to know. Grows batch by batch."""

    near: Near | None  # None: equal texts
    rows: list[int] = field(default_factory=list)  # [U] the document's row in the shard
    spans: list[Span] = field(default_factory=list)  # [U] characters of the document as the step saw it
    keys: list[bytes] = field(default_factory=list)  # [U] 16 bytes each; exact steps
    sets: list[Hashes] = field(default_factory=list)  # [U] sorted shingles; near steps
    bands: list[Hashes] = field(default_factory=list)  # blocks of [*, bands]

    def add(self, units: Sequence[tuple[int, Span, str]]) -> None:
        """Units as (row in the shard, span, text), in order. A near unit without a word is like no other: left out."""
        if self.near is None:
            for row, span, text in units:
                self._place(row, span)
                self.keys.append(exact_key(text))
            return
        sets = []
        for row, span, text in units:
            found = shingles(text, self.near.ngram)
            if len(found):
                self._place(row, span)
                sets.append(found)
        self.sets += sets
        self.bands.append(band_keys(signatures(sets, self.near), self.near))

    def _place(self, row: int, span: Span) -> None:
        self.rows.append(row)
        self.spans.append(span)

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """As arrays of one file each; a near step's ``sets`` is flat, with ``offsets`` [U + 1]."""
        found: dict[str, NDArray[np.generic]] = {
            "rows": np.array(self.rows, np.int64),
            "spans": np.array(self.spans, np.int64).reshape(-1, 2),
        }
        if self.near is None:
            return found | {"keys": np.frombuffer(b"".join(self.keys), KEY)}
        empty = np.empty((0, self.near.bands), np.uint64)
        return found | {
            "sets": np.concatenate([np.empty(0, np.uint64), *self.sets]),
            "offsets": np.cumsum([0, *map(len, self.sets)], dtype=np.int64),
            "bands": np.concatenate([empty, *self.bands]),
        }


@dataclass(frozen=True)
class Corpus:
    """All units of a stage. U units, S shards."""

    shards: NDArray[np.int64]  # [U] shard of each unit
    rows: NDArray[np.int64]  # [U] row in the shard
    spans: NDArray[np.int64]  # [U, 2]

    def document(self, unit: int) -> tuple[int, int]:
        """(shard, row)"""
        return int(self.shards[unit]), int(self.rows[unit])


class CorpusStep(Protocol):
    """A step in two passes."""

    @property
    def near(self) -> Near | None: ...

    def units(self, text: str) -> list[Span]:
        """What of a document is compared."""
        ...

    def wanted(self, corpus: Corpus, roots: Units) -> set[int]:
        """Units whose documents' ids ``answers`` asks for."""
        ...

    def answers(
        self, corpus: Corpus, roots: Units, ids: Mapping[int, str], similarity: Mapping[int, float]
    ) -> dict[tuple[int, int], Answer]:
        """(shard, row) -> the answer of every document that does not stay as it is.

        Args:
            roots: [U] the first unit that each unit is the same as.
            ids: of the ``wanted`` units' documents.
            similarity: unit -> its Jaccard index with its root; near steps.
        """
        ...


@dataclass(frozen=True)
class ExactDuplicates:
    """Drop documents whose normalised text (``words.exact_key``) an earlier document has. Reason: ``duplicate``."""

    @property
    def near(self) -> Near | None:
        return None

    def units(self, text: str) -> list[Span]:
        return [(0, len(text))]

    def wanted(self, corpus: Corpus, roots: Units) -> set[int]:
        return set(roots[roots != np.arange(len(roots))].tolist())

    def answers(
        self, corpus: Corpus, roots: Units, ids: Mapping[int, str], similarity: Mapping[int, float]
    ) -> dict[tuple[int, int], Answer]:
        return {
            corpus.document(unit): Decision("duplicate", f"of {ids[int(roots[unit])]}")
            for unit in np.flatnonzero(roots != np.arange(len(roots))).tolist()
        }


@dataclass(frozen=True)
class NearDuplicates(ExactDuplicates):
    """Drop documents that are nearly an earlier one, or nearly one that is (``duplicates.Near`` has the settings).

    Of each connected component the first document stays. Reason: ``near_duplicate``; the detail has the Jaccard index
    with the document that stays, which may lie below the threshold where a chain leads to it.
    """

    threshold: float = Near.threshold
    ngram: int = Near.ngram
    bands: int = Near.bands
    rows: int = Near.rows
    seed: int = Near.seed
    max_compare: int = Near.max_compare

    def __post_init__(self) -> None:
        _ = self.near

    @property
    def near(self) -> Near | None:
        return Near(**vars(self))

    def answers(
        self, corpus: Corpus, roots: Units, ids: Mapping[int, str], similarity: Mapping[int, float]
    ) -> dict[tuple[int, int], Answer]:
        return {
            corpus.document(unit): Decision(
                "near_duplicate", f"of {ids[int(roots[unit])]}, Jaccard {similarity[unit]:.3f}"
            )
            for unit in np.flatnonzero(roots != np.arange(len(roots))).tolist()
        }


BLANK_LINE, LINE = "blank_line", "line"
_SEPARATORS = {BLANK_LINE: re.compile(r"\n[^\S\n]*\n\s*"), LINE: re.compile(r"\n\s*")}


@dataclass(frozen=True)
class RepeatedParagraphs:
    """Take paragraphs that stand in more than ``max_documents`` documents out of them: menus, notices, boilerplate.

    Reason of the edits: ``repeated_paragraph``; a document of which nothing is left is dropped as ``nothing_left``.
    """

    max_documents: int = 2  # in which the same paragraph may stand
    keep_first: bool = True  # its first occurrence stays
    split: str = BLANK_LINE  # or line: each line is a paragraph, as in web text without blank lines
    min_words: int = 8  # shorter paragraphs (headings, "Yes.") may stand anywhere
    similarity: float = 1.0  # 1: the same but for case and white space; below: MinHash at this Jaccard index
    ngram: int = 3  # words in a shingle, for similarity < 1
    bands: int = Near.bands
    rows: int = Near.rows
    seed: int = Near.seed
    max_compare: int = Near.max_compare

    def __post_init__(self) -> None:
        if self.max_documents < 1:
            raise DataError(f"max_documents: expected >= 1, got {self.max_documents}")
        if self.split not in _SEPARATORS:
            raise DataError(f"split: expected one of {', '.join(_SEPARATORS)}, got {self.split!r}")
        self._near()

    def _near(self) -> Near:
        return Near(self.similarity, self.ngram, self.bands, self.rows, self.seed, self.max_compare)

    @property
    def near(self) -> Near | None:
        return self._near() if self.similarity < 1 else None

    def units(self, text: str) -> list[Span]:
        return [(a, b) for a, b in paragraphs(text, self.split) if len(words(text[a:b])) >= self.min_words]

    def _repeated(self, corpus: Corpus, roots: Units) -> dict[int, int]:
        """Root -> documents that hold it, where those are too many."""
        held = np.unique(np.stack([roots, corpus.shards, corpus.rows], axis=1), axis=0)[:, 0]
        found, counts = np.unique(held, return_counts=True)
        return {int(root): int(n) for root, n in zip(found, counts, strict=True) if n > self.max_documents}

    def wanted(self, corpus: Corpus, roots: Units) -> set[int]:
        return set(self._repeated(corpus, roots))

    def answers(
        self, corpus: Corpus, roots: Units, ids: Mapping[int, str], similarity: Mapping[int, float]
    ) -> dict[tuple[int, int], Answer]:
        repeated = self._repeated(corpus, roots)
        edits: dict[tuple[int, int], list[Edit]] = {}
        for unit in np.flatnonzero(np.isin(roots, list(repeated))).tolist():
            root = int(roots[unit])
            if self.keep_first and unit == root:
                continue
            start, end = corpus.spans[unit].tolist()
            detail = f"in {repeated[root]} documents, first in {ids[root]}"
            edits.setdefault(corpus.document(unit), []).append(Edit(start, end, "", "repeated_paragraph", detail))
        return {document: Edited(tuple(found)) for document, found in edits.items()}


def paragraphs(text: str, split: str) -> list[Span]:
    """Spans that together are the text: each paragraph with the separator after it.

    >>> text = "One.\\n\\nTwo,\\nstill two.\\n\\n\\nThree."
    >>> [text[a:b] for a, b in paragraphs(text, "blank_line")]
    ['One.\\n\\n', 'Two,\\nstill two.\\n\\n\\n', 'Three.']
    """
    edges = [0, *(match.end() for match in _SEPARATORS[split].finditer(text)), len(text)]
    return [(a, b) for a, b in pairwise(edges) if a < b]


# --- files of a sketch ----------------------------------------------------------------------------------------------


def save_sketch(sketch: Sketch, folder: Path, index: int) -> None:
    """One ``.npy`` file an array, so that each can be mapped into memory."""
    for name, values in sketch.arrays().items():
        np.save(folder / f"{index:05d}-{name}.npy", values)


def load_sketch(folder: Path, index: int, name: str) -> NDArray[np.generic]:
    """Mapped, not read."""
    path = folder / f"{index:05d}-{name}.npy"
    loaded: NDArray[np.generic] = np.load(path, mmap_mode="r" if path.stat().st_size > 4096 else None)
    return loaded


def corpus_of(folder: Path, num_shards: int) -> Corpus:
    """Where all units stand, in document order."""
    rows = [np.asarray(load_sketch(folder, index, "rows"), np.int64) for index in range(num_shards)]
    spans = [np.asarray(load_sketch(folder, index, "spans"), np.int64) for index in range(num_shards)]
    shards = [np.full(len(found), index, np.int64) for index, found in enumerate(rows)]
    return Corpus(np.concatenate(shards), np.concatenate(rows), np.concatenate(spans))
