"""From the sketches of all shards to a corpus step's answer for every document.

    sketches ─┬─ equal keys ──────────────────────────────► first unit of each
              └─ one task a band: buckets ─ true Jaccard ─► edges ─ connected components ─► first unit of each

The driver holds a few numbers a unit (its place and its root, 48 bytes); sets of shingles are mapped from disk by the
tasks that compare them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pretrain.data.clean_steps import Step
from pretrain.data.corpus_steps import Corpus, corpus_of, load_sketch
from pretrain.data.duplicates import Components, Near, buckets, first_of_equal, similarity_of, verified
from pretrain.data.edits import Answer, Decision, Edit, Edited
from pretrain.data.shards import Counts, Workers, run_tasks, total
from pretrain.data.words import Hashes, jaccard
from rlplatform.runs import write_atomically

Task = tuple[str, int, int]


def plan_step(step: Step, tasks: Sequence[Task], sketches: Path, *, key: str, workers: Workers) -> tuple[Path, int]:
    """(the folder of the answers, units that were compared with some of their bucket only)."""
    corpus_step = step.corpus
    assert corpus_step is not None
    corpus = corpus_of(sketches, len(tasks))
    cut_short, similarity = 0, {}
    if corpus_step.near is None:
        keys = [np.asarray(load_sketch(sketches, index, "keys")) for index in range(len(tasks))]
        roots = first_of_equal(np.concatenate(keys))
    else:
        folder = sketches / "bands"
        bands = Bands(sketches, folder, len(tasks), corpus_step.near)
        cut_short = total(run_tasks(bands, range(corpus_step.near.bands), folder, key=key, workers=workers)).get(
            "cut_short", 0
        )
        joined = Components(len(corpus.rows))
        for band in range(corpus_step.near.bands):
            for a, b in np.load(folder / f"{band:05d}.npy").tolist():
                joined.join(a, b)
        roots = joined.roots()
        sets = _Sets(sketches, len(tasks))
        repeats = np.flatnonzero(roots != np.arange(len(roots)))
        similarity = {unit: jaccard(sets(unit), sets(int(roots[unit]))) for unit in repeats.tolist()}
    ids = _ids(tasks, corpus, corpus_step.wanted(corpus, roots))
    answers = corpus_step.answers(corpus, roots, ids, similarity)
    folder = sketches / "answers"
    by_shard: dict[int, dict[int, Answer]] = {index: {} for index in range(len(tasks))}
    for (shard, row), answer in answers.items():
        by_shard[shard][row] = answer
    for index, own in by_shard.items():
        write_atomically(_answers_file(folder, index), json.dumps({row: _plain(own[row]) for row in sorted(own)}))
    return folder, cut_short


@dataclass(frozen=True)
class Bands:
    """One band's buckets over all shards, compared: ``00007.npy`` [edges, 2] of band 7."""

    sketches: Path
    folder: Path
    num_shards: int
    near: Near

    def __call__(self, index: int, task: int) -> Counts:
        columns = [np.asarray(load_sketch(self.sketches, k, "bands")[:, task]) for k in range(self.num_shards)]
        keys = np.concatenate(columns)
        sets = _Sets(self.sketches, self.num_shards)
        grouped = buckets(keys, np.arange(len(keys), dtype=np.int64))
        edges, cut_short = verified(grouped, similarity_of(sets), self.near)
        np.save(self.folder / f"{task:05d}.npy", np.array(edges, np.int64).reshape(-1, 2))
        return {"edges": len(edges), "cut_short": cut_short}


class _Sets:
    """The shingles of any unit of any shard, mapped from disk."""

    def __init__(self, sketches: Path, num_shards: int) -> None:
        self._sets = [load_sketch(sketches, index, "sets") for index in range(num_shards)]
        self._offsets = [load_sketch(sketches, index, "offsets") for index in range(num_shards)]
        self._starts = np.cumsum([0, *(len(offsets) - 1 for offsets in self._offsets)])

    def __call__(self, unit: int) -> Hashes:
        shard = int(np.searchsorted(self._starts, unit, side="right")) - 1
        offsets = cast("NDArray[np.int64]", self._offsets[shard])
        place = unit - int(self._starts[shard])
        return np.asarray(self._sets[shard][offsets[place] : offsets[place + 1]], np.uint64)


def _ids(tasks: Sequence[Task], corpus: Corpus, units: set[int]) -> dict[int, str]:
    """Unit -> its document's id."""
    found: dict[int, str] = {}
    by_shard: dict[int, list[int]] = {}
    for unit in sorted(units):
        by_shard.setdefault(int(corpus.shards[unit]), []).append(unit)
    for shard, own in by_shard.items():
        column = pq.read_table(tasks[shard][0], columns=["id"])["id"]
        found |= {unit: column[int(corpus.rows[unit])].as_py() for unit in own}
    return found


# --- answers as files -----------------------------------------------------------------------------------------------


def _answers_file(folder: Path, index: int) -> Path:
    return folder / f"{index:05d}.json"


def _plain(answer: Answer) -> list[object]:
    if isinstance(answer, Decision):
        return ["drop", answer.reason, answer.detail]
    return ["edit", *(list(vars(edit).values()) for edit in answer.edits)]


def read_answers(folder: Path, index: int) -> dict[int, Answer]:
    """Row of the shard -> the step's answer; rows that stay as they are have none."""
    values = json.loads(_answers_file(folder, index).read_text(encoding="utf-8"))
    return {
        int(row): Decision(*rest) if kind == "drop" else Edited(tuple(Edit(*edit) for edit in rest))
        for row, (kind, *rest) in values.items()
    }
