"""The ``documents`` stage: raw files to documents.

    sources ── plan ──► tasks (files of one source) ── Ray Data ──► parts of each task ── named in order ──► shards
                                                        reader ── items ─┬─ documents-00000.parquet ...
                                                                         └─ dropped-00000.parquet ... (reason, detail)

Which document stands in which shard follows from the files, their order and the settings alone. A stage that was
stopped goes on with the tasks that are not finished.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from pretrain.data.document import (
    DOCUMENTS,
    DROPPED,
    DROPPED_SCHEMA,
    SCHEMA,
    Row,
    ShardWriter,
    document,
    shard_name,
)
from pretrain.data.items import Counted, Found, Item, error
from pretrain.data.pdf import read_pdfs
from pretrain.data.readers import read_hub_dataset, read_jsonl, read_parquet, read_text
from pretrain.data.shards import FINISHED, Counts, Progress, Workers, is_finished, run_tasks, total
from pretrain.data.sources import Task, plan
from pretrain.data.synthetic_documents import read_responses
from pretrain.data.web import read_html, read_warc
from rlplatform.config.corpus_documents import DocumentsConfig, SourceConfig, WorkersConfig
from rlplatform.datafiles import DataError
from rlplatform.runs import write_atomically

READERS: dict[str, Callable[[Path, SourceConfig], Iterator[Found]]] = {
    "jsonl": read_jsonl,
    "parquet": read_parquet,
    "text": read_text,
    "html": read_html,
    "warc": read_warc,
    "responses": read_responses,
}  # beside them pdf, which reads many files together, and hub, whose paths are ids
STEP = "documents"  # column `step` of what is dropped here
SUMMARY = "summary.json"
_PARTS = ".parts"  # folder of what tasks wrote, until all have
_WRITE_ROWS = 512  # rows in a row group


def make_documents(config: DocumentsConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Read all sources into ``config.run_dir`` and return the summary. Needs ``ray.init()`` before.

    Raises:
        ConfigError: a source without files, or settings that a reader cannot use.
        DataError: more than ``config.max_errors`` unreadable rows, files or pages, or no document at all.
    """
    folder = Path(config.run_dir)
    tasks, ignored = plan(config)
    key = repr((config.documents_per_shard, config.shard_mib))
    _make_way(tasks, folder, key)
    counts = run_tasks(
        ReadTask(folder, config.documents_per_shard, config.shard_mib << 20, config.max_errors),
        tasks,
        folder,
        key=key,
        workers=workers_of(config.workers),
        progress=progress,
        check=lambda counted: _check_errors(counted, config.max_errors, folder),
    )
    if not total(counts).get(DOCUMENTS, 0):
        raise DataError(f"no document in {', '.join(config.sources)}: {json.dumps(total(counts))}")
    _name_in_order(counts, folder)
    result = summary(tasks, counts, ignored)
    write_atomically(folder / SUMMARY, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return result


def workers_of(config: WorkersConfig) -> Workers:
    return Workers(config.num_workers, config.cpus, config.gpus, config.memory_gib)


def _check_errors(counted: Counts, max_errors: int, folder: Path) -> None:
    if counted.get("errors", 0) > max_errors:
        reasons = {name: number for name, number in counted.items() if name.startswith("error: ")}
        raise DataError(
            f"{counted['errors']} unreadable rows, files or pages, more than max_errors={max_errors}: {reasons}; "
            f"{folder / _PARTS}/{DROPPED}-* name each; repair them, or raise max_errors to leave them out"
        )


# --- one task -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReadTask:
    """Reads one task's files into parts of at most so many documents and bytes of text."""

    folder: Path
    documents_per_part: int
    bytes_per_part: int
    max_errors: int

    def __call__(self, index: int, task: Task) -> Counts:
        counts: Counter[str] = Counter({DOCUMENTS: 0})
        with (
            PartWriter(self.folder, DOCUMENTS, index, self.documents_per_part, self.bytes_per_part) as kept,
            PartWriter(self.folder, DROPPED, index, self.documents_per_part, self.bytes_per_part) as dropped,
            closing(found_in(task)) as items,
        ):
            for place, name, found in items:
                if isinstance(found, Counted):
                    counts[f"seen: {found.name}"] += found.num
                    continue
                item = (
                    found if found.reason or found.text.strip() else Item(found.place, reason="empty", meta=found.meta)
                )
                item, row = as_row(task.name, place, name, item)
                if not item.reason:
                    kept.add(row)
                    counts.update({DOCUMENTS: 1, "characters": len(row["text"])})
                    if counts[DOCUMENTS] == task.source.limit:
                        break
                    continue
                dropped.add({**row, "step": STEP, "reason": item.reason, "detail": item.detail})
                counts.update({DROPPED: 1, f"{'error' if item.is_error else 'dropped'}: {item.reason}": 1})
                if item.is_error:
                    counts["errors"] += 1
                    if counts["errors"] > self.max_errors:
                        raise DataError(f"{row['where']}: {item.reason}: {item.detail} (max_errors={self.max_errors})")
        return dict(counts) | {"parts": kept.num_parts, "dropped parts": dropped.num_parts}


def found_in(task: Task) -> Generator[tuple[str, str, Found], None, None]:
    """(place of the file within the source, its name for people, item) of everything in a task's files. A file that is
    broken is an item, behind what could be read of it."""
    if task.format == "pdf":
        places = {Path(file.path): file.place for file in task.files}
        for path, found in read_pdfs(list(places), task.source):
            yield places[path], str(path), found
        return
    for file in task.files:
        if task.format == "hub":
            for found in read_hub_dataset(file.path, task.source):
                yield file.place, file.path, found
            continue
        try:
            for found in READERS[task.format](Path(file.path), task.source):
                yield file.place, file.path, found
        except DataError as broken:
            yield file.place, file.path, error("", "file", str(broken))


def as_row(source: str, place: str, name: str, item: Item) -> tuple[Item, Row]:
    """The item as a document row; one whose text or meta cannot be kept becomes an error, with a row without both."""
    where = item.where or _where(name, item.place)
    whole = f"{place}#{item.place}"
    try:
        row = document(source, whole, where, item.text, item.meta)
    except DataError as wrong:
        return error(item.place, "unkeepable", str(wrong)), document(source, whole, where, "")
    return item, {**row, "labels": [dict(entry) for entry in item.labels]}


def _where(name: str, place: str) -> str:
    """``file:12`` for lines, ``file page 3`` and the like for others."""
    if place.startswith("line "):
        return f"{name}:{place.removeprefix('line ')}"
    return f"{name} {place}".strip()


class PartWriter:
    """Rows of one task to numbered parts, each closed when it is full. Entering removes the task's older parts."""

    def __init__(self, folder: Path, prefix: str, index: int, max_rows: int, max_bytes: int) -> None:
        self._folder, self._prefix, self._index = folder / _PARTS, prefix, index
        self._max_rows, self._max_bytes = max_rows, max_bytes
        self._writer: ShardWriter | None = None
        self._rows: list[Row] = []
        self._bytes = self._num_rows = 0
        self.num_parts = 0

    def __enter__(self) -> PartWriter:
        for left in self._folder.glob(f"{self._prefix}-{self._index:05d}-*.parquet"):
            left.unlink()
        return self

    def add(self, row: Row) -> None:
        """Append a row."""
        if self._writer is None:
            schema = DROPPED_SCHEMA if self._prefix == DROPPED else SCHEMA
            name = part_name(self._prefix, self._index, self.num_parts)
            self._writer = ShardWriter(self._folder / name, schema).__enter__()
            self._bytes = self._num_rows = 0
        self._rows.append(row)
        self._num_rows += 1
        self._bytes += len(row["text"].encode())
        full = self._num_rows == self._max_rows or self._bytes >= self._max_bytes
        if full or len(self._rows) == _WRITE_ROWS:
            self._writer.write(self._rows)
            self._rows = []
        if full:
            self._end(None)

    def _end(self, error: BaseException | None) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            try:
                if error is None:
                    writer.write(self._rows)
                    self._rows = []
            finally:
                writer.__exit__(type(error) if error else None, error, None)
            self.num_parts += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._end(error)


def part_name(prefix: str, index: int, part: int) -> str:
    return f"{prefix}-{index:05d}-{part:05d}.parquet"


# --- all tasks ------------------------------------------------------------------------------------------------------


def _make_way(tasks: Sequence[Task], folder: Path, key: str) -> None:
    """Remove what an attempt on other files left: their shards have other numbers."""
    if is_finished(tasks, folder, key=key):
        return
    shards = [path for prefix in (DOCUMENTS, DROPPED) for path in folder.glob(f"{prefix}-*.parquet")]
    if shards:
        for path in shards:
            path.unlink()
        shutil.rmtree(folder / FINISHED, ignore_errors=True)
        shutil.rmtree(folder / _PARTS, ignore_errors=True)


def _name_in_order(counts: Sequence[Counts], folder: Path) -> None:
    """Parts become shards, numbered through in the order of tasks; may be stopped anywhere and done again."""
    for prefix, name in ((DOCUMENTS, "parts"), (DROPPED, "dropped parts")):
        parts = [part_name(prefix, index, part) for index, entry in enumerate(counts) for part in range(entry[name])]
        for number, part in enumerate(parts):
            source, target = folder / _PARTS / part, folder / shard_name(number, prefix)
            if source.exists():
                os.replace(source, target)
            elif not target.exists():
                raise DataError(f"{source}: is missing though its task is finished; start the stage over with --fresh")
    shutil.rmtree(folder / _PARTS, ignore_errors=True)


def summary(tasks: Sequence[Task], counts: Sequence[Counts], ignored: dict[str, list[str]]) -> dict[str, Any]:
    """What was read of each source: files, documents, characters, what was dropped for which reason, what was seen."""
    sources: dict[str, Any] = {}
    for name in dict.fromkeys(task.name for task in tasks):
        counted = total([entry for task, entry in zip(tasks, counts, strict=True) if task.name == name])
        sources[name] = {
            "files": sum(len(task.files) for task in tasks if task.name == name),
            "ignored files": len(ignored.get(name, [])),
            "documents": counted[DOCUMENTS],
            "characters": counted.get("characters", 0),
            "errors": counted.get("errors", 0),
            "dropped": {
                entry.partition(": ")[2]: number
                for entry, number in sorted(counted.items())
                if entry.startswith(("dropped: ", "error: "))
            },
            "seen": {
                entry.removeprefix("seen: "): number
                for entry, number in sorted(counted.items())
                if entry.startswith("seen: ")
            },
        }
    return {
        "documents": sum(entry["documents"] for entry in sources.values()),
        "characters": sum(entry["characters"] for entry in sources.values()),
        "dropped": sum(sum(entry["dropped"].values()) for entry in sources.values()),
        "shards": sum(entry["parts"] for entry in counts),
        "sources": sources,
    }
