"""The ``clean`` stage: documents through named steps; what is kept, what is dropped and what is changed, all on disk.

    shard ─ steps that decide row by row ─┬─ sketch ─► all sketches ─► who repeats whom ─┐     once for every step
      ▲                                   │                                               │     that needs the corpus
      └────────── answers of that step ◄──┼───────────────────────────────────────────────┘
                                          └─► documents-00007.parquet  dropped-00007.parquet  changes-00007.parquet

Texts are read from the input each time and written once, at the end. In between a shard has a file of *fates*: for each
document the step that dropped it, and the edits so far. Passes are resumed at the shard where they stopped. Nothing
depends on how many shards there are or on what finishes first, but for which shard a document lies in: its own.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pretrain.data.clean_steps import Step, index_settings, local_step, steps_of
from pretrain.data.contamination import Index, Item, build_index
from pretrain.data.corpus_plan import plan_step, read_answers
from pretrain.data.corpus_steps import Sketch, save_sketch
from pretrain.data.document import (
    DOCUMENTS,
    DROPPED,
    DROPPED_SCHEMA,
    Row,
    ShardWriter,
    read_batches,
    shard_name,
    shards_of,
)
from pretrain.data.edits import Answer, Decision
from pretrain.data.fates import CHANGES, CHANGES_SCHEMA, UNTOUCHED, Fate, apply_step, changes, current
from pretrain.data.flow import Flow, flow_of, save, table
from pretrain.data.shards import Counts, Progress, Workers, checked, fingerprints, remove_surplus, run_tasks, total
from rlplatform.config import CleanConfig
from rlplatform.datafiles import DataError
from rlplatform.runs import write_atomically

WORK = "work"  # the folder of everything that is gone once the stage is finished


# --- one shard ------------------------------------------------------------------------------------------------------

Task = tuple[str, int, int]  # path, bytes, modification time: see shards.fingerprints


@dataclass(frozen=True)
class Pass:
    """The steps between two looks at the whole corpus, over one shard."""

    folder: Path  # of the fates and sketches it leaves
    before: Path | None  # of the fates that the pass before left
    answered: tuple[Step, Path] | None  # the corpus step that this pass begins with, and its answers
    local: tuple[Step, ...]
    sketched: Step | None  # the corpus step that the next pass begins with
    indexes: Path
    batch_rows: int

    def __call__(self, index: int, task: Task) -> Counts:
        functions = {step.name: local_step(step, self.indexes) for step in self.local}
        answers = read_answers(self.answered[1], index) if self.answered else {}
        corpus = self.sketched.corpus if self.sketched else None
        sketch = Sketch(corpus.near) if corpus else None
        counts: Counter[str] = Counter()
        lines: list[str] = []
        for rows, fates in _batches(task[0], self.before, index, self.batch_rows):
            first = len(lines)
            rows = [current(row, fate) for row, fate in zip(rows, fates, strict=True)]
            if self.answered:
                places = [first + place for place, fate in enumerate(fates) if fate.dropped is None]
                known = _Known([answers.get(place, Decision()) for place in places])
                rows, fates = apply_step(self.answered[0].name, known, rows, fates, counts)
            for name, function in functions.items():
                named = partial(checked, function, path=task[0])
                rows, fates = apply_step(name, named, rows, fates, counts)
            if sketch is not None and corpus is not None:
                left = [(place, row["text"]) for place, row in enumerate(rows, first)]
                alive = [pair for pair, fate in zip(left, fates, strict=True) if fate.dropped is None]
                sketch.add([(place, (a, b), text[a:b]) for place, text in alive for a, b in corpus.units(text)])
            lines += [fate.to_json() for fate in fates]
        if sketch is not None:
            save_sketch(sketch, self.folder, index)
        write_atomically(_fates_file(self.folder, index), "".join(f"{line}\n" for line in lines))
        return dict(counts)


@dataclass(frozen=True)
class _Known:
    """Answers that were found by looking at the whole corpus, as a step."""

    answers: list[Answer]

    def __call__(self, rows: list[Row]) -> list[Answer]:
        return self.answers


def _fates_file(folder: Path, index: int) -> Path:
    return folder / f"{index:05d}-fates.jsonl"


def _batches(path: str, before: Path | None, index: int, batch_rows: int) -> Iterator[tuple[list[Row], list[Fate]]]:
    lines = _fates_file(before, index).read_text(encoding="utf-8").split("\n") if before else []
    at = 0
    for rows in read_batches(path, batch_rows):
        fates = [Fate.from_json(line) for line in lines[at : at + len(rows)]] if before else [UNTOUCHED] * len(rows)
        at += len(rows)
        yield rows, fates


@dataclass(frozen=True)
class Write:
    """The end: kept and dropped documents and all changes of one shard."""

    folder: Path
    before: Path
    batch_rows: int

    def __call__(self, index: int, task: Task) -> Counts:
        with (
            ShardWriter(self.folder / shard_name(index)) as kept,
            ShardWriter(self.folder / shard_name(index, DROPPED), DROPPED_SCHEMA) as dropped,
            ShardWriter(self.folder / shard_name(index, CHANGES), CHANGES_SCHEMA) as changed,
        ):
            for rows, fates in _batches(task[0], self.before, index, self.batch_rows):
                pairs = list(zip(rows, fates, strict=True))
                kept.write([current(row, fate) for row, fate in pairs if fate.dropped is None])
                ends = ("step", "reason", "detail")
                dropped.write(
                    [
                        current(row, fate) | dict(zip(ends, fate.dropped, strict=True))
                        for row, fate in pairs
                        if fate.dropped is not None
                    ]
                )
                changed.write([change for row, fate in pairs for change in changes(row, fate)])
        return {"kept": kept.num_rows, "dropped": dropped.num_rows, "changes": changed.num_rows}


# --- the stage ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cleaned:
    """What a stage did."""

    flow: Flow
    contamination: Mapping[str, Mapping[str, int]]  # step -> "BENCHMARK: looked for | too short | ..." -> items
    not_compared: Mapping[str, int]  # near step -> units that were compared with some of their bucket only

    @property
    def table(self) -> str:
        return table(self.flow)

    @property
    def summary(self) -> dict[str, Any]:
        """Counts of the whole stage, as ``summary.json`` has them."""
        flow = self.flow
        found: dict[str, Any] = {
            "documents": flow.documents,
            "kept": flow.kept,
            "dropped": flow.documents - flow.kept,
            "characters": flow.characters,
            "kept_characters": flow.kept_characters,
            "by_step": {step.name: {"dropped": dict(step.dropped), "edits": dict(step.edits)} for step in flow.steps},
        }
        if self.contamination:
            found["benchmark_items"] = {step: dict(counts) for step, counts in self.contamination.items()}
        if self.not_compared:
            found["not_compared_with_all"] = dict(self.not_compared)
        return found


def clean_documents(
    config: CleanConfig, *, items: Callable[[Step], Sequence[Item]], progress: Callable[[str], Progress | None]
) -> Cleaned:
    """The stage of ``config``: documents, what was dropped and changed, flow and summary in its folder.

    Needs ``ray.init()`` before. Arguments and errors as ``clean``; DataError also where nothing is left.
    """
    folder, asked = Path(config.run_dir), config.workers
    cleaned = clean(
        shards_of(config.documents),
        folder,
        steps_of(config.steps),
        items=items,
        workers=Workers(asked.num_workers, asked.cpus, asked.gpus, asked.memory_gib),
        batch_rows=config.batch_documents,
        progress=progress,
    )
    save(cleaned.flow, folder)
    write_atomically(folder / "flow.md", cleaned.table + "\n")
    write_atomically(folder / "summary.json", json.dumps(cleaned.summary, indent=1, ensure_ascii=False) + "\n")
    if not cleaned.flow.kept:
        raise DataError(f"{config.name}: nothing is left; {folder}/dropped-*.parquet say why\n{cleaned.table}")
    return cleaned


def clean(
    shards: Sequence[Path],
    folder: Path,
    steps: Sequence[Step],
    *,
    items: Callable[[Step], Sequence[Item]],
    workers: Workers,
    batch_rows: int = 1024,
    progress: Callable[[str], Progress | None] = lambda name: None,
) -> Cleaned:
    """All steps over all shards, in a running Ray cluster.

    Args:
        items: the benchmark items of a contamination step.
        progress: what shows the shards of a pass, from the pass's name.

    Raises:
        DataError: a document, a setting or an answer that cannot be used; it names shard, document and step.
        RuntimeError: documents were lost or doubled between input and output.
    """
    work = folder / WORK
    indexes = work / "indexes"
    indexes.mkdir(parents=True, exist_ok=True)
    tasks = fingerprints(shards)
    looked_for, key = {}, hashlib.blake2b(repr(tasks).encode())
    for step in steps:
        key.update(f"{step!r}{step.code}".encode())
        if step.function == "contamination":
            index = build_index(items(step), **index_settings(step))
            index.save(indexes / f"{step.name}.npz")
            looked_for[step.name] = dict(index.counts)
            key.update(_mark(index))
    before: Path | None = None
    answered: tuple[Step, Path] | None = None
    counts: list[Counts] = []
    not_compared = {}
    for number, (local, corpus_step) in enumerate(passes(steps)):
        here = work / f"pass-{number:02d}"
        one = Pass(here, before, answered, local, corpus_step, indexes, batch_rows)
        name = ", ".join([step.name for step in local] + ([f"sketch of {corpus_step.name}"] if corpus_step else []))
        counts += run_tasks(
            one, tasks, here, key=f"{key.hexdigest()} {number}", workers=workers, progress=progress(name or "answers")
        )
        before = here
        if corpus_step is not None:
            answers, cut_short = plan_step(corpus_step, tasks, here, key=key.hexdigest(), workers=workers)
            answered = (corpus_step, answers)
            if cut_short:
                not_compared[corpus_step.name] = cut_short
        else:
            answered = None
    assert before is not None
    written = total(
        run_tasks(
            Write(folder, before, batch_rows),
            tasks,
            folder,
            key=key.hexdigest(),
            workers=workers,
            progress=progress("write"),
        )
    )
    flow = flow_of([step.name for step in steps], total(counts))
    _check_balance(flow, written, sum(pq.read_metadata(path).num_rows for path in shards))
    for prefix in (DOCUMENTS, DROPPED, CHANGES):
        remove_surplus(folder, len(shards), prefix)
    shutil.rmtree(work)
    return Cleaned(flow, looked_for, not_compared)


def passes(steps: Sequence[Step]) -> list[tuple[tuple[Step, ...], Step | None]]:
    """(steps row by row, the corpus step after them), in order; the last ends with none."""
    found: list[tuple[tuple[Step, ...], Step | None]] = []
    local: list[Step] = []
    for step in steps:
        if step.corpus is None:
            local.append(step)
        else:
            found.append((tuple(local), step))
            local = []
    return [*found, (tuple(local), None)]


def _mark(index: Index) -> bytes:
    digest = hashlib.blake2b(repr((index.n, index.items)).encode())
    for n, grams in index.grams.items():
        digest.update(str(n).encode() + grams.tobytes())
    return digest.digest()


def _check_balance(flow: Flow, written: Mapping[str, int], documents: int) -> None:
    came = (documents, documents - flow.documents + flow.kept, documents - flow.kept)
    got = (flow.documents, written["kept"], written["dropped"])
    if came != got:
        raise RuntimeError(f"clean: expected (documents, kept, dropped) = {came}, got {got}: documents were lost")
