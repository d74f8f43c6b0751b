"""A pure function over the shards of a stage, with Ray Data: streamed, resumable, the same output in any order of work.

    driver            Ray Data: one block a shard                              folder
    shard 0..n ─────► map(process one shard) ── rows ─ function ─ rows ──────► documents-00007.parquet   tmp + rename
       ▲                  in tasks, or in an actor pool where the              .finished/00007.json      then its mark
       └── counts ◄────── function is a class (a model that loads once)

A shard with a mark of the same key is not done again. Output is in the order of the shards whatever finishes first. An
error stops the run and names the shard and the documents; what is finished stays finished.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pretrain.data.document import (
    DOCUMENTS,
    Row,
    ShardWriter,
    read_batches,
    shard_name,
    shards_of,
)
from rlplatform.config import ConfigError
from rlplatform.datafiles import DataError
from rlplatform.runs import write_atomically

Counts = dict[str, int]  # what a shard's work counted; "" is never a key
Process = Callable[[int, Any], Counts]  # (index, task) -> counts; writes its own output, atomically
Function = Callable[[list[Row]], list[Row]]  # same rows in the same order, with more labels
Progress = Callable[[int, int], None]  # (shards finished, shards in all)

_LOG = logging.getLogger(__name__)
FINISHED = ".finished"  # folder of marks
ERRORS: Mapping[str, type[Exception]] = {
    "DataError": DataError,
    "ConfigError": ConfigError,
}  # raised again as they were


@dataclass(frozen=True)
class Workers:
    """How shards are worked on: ``num_workers`` tasks or actors at a time (0: as many as the cluster has room for)."""

    num_workers: int = 0
    cpus: float = 1.0
    gpus: float = 0.0
    memory_gib: float = 0.0  # Ray's logical memory of each


@dataclass(frozen=True)
class Stateful:
    """A class whose instances are the function: made once in every actor of a pool as ``factory(**arguments)``."""

    factory: Callable[..., Any]
    arguments: Mapping[str, Any] = field(default_factory=dict)


# --- the machinery --------------------------------------------------------------------------------------------------


def run_tasks(
    process: Process | Stateful,
    tasks: Sequence[Any],
    folder: Path,
    *,
    key: str,
    workers: Workers = Workers(),
    progress: Progress | None = None,
    check: Callable[[Counts], None] | None = None,
    quiet_s: float = 600.0,
) -> list[Counts]:
    """``process(index, task)`` for every task that has no mark of ``key`` yet; the counts of all, in the tasks' order.

    Args:
        process: writes into ``folder`` what it makes, whole or not at all; its name may depend on the index alone.
        key: what the output follows from beside the task (settings, versions); another key is other work.
        check: is given the sum of all counts when a task ends, and raises to stop.
        quiet_s: seconds without a finished task after which a warning says what is waited for, again and again.

    Raises:
        DataError, ConfigError: a task raised one.
        RuntimeError: a task raised anything else; the message ends with its traceback.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.rglob(".*.tmp"):  # of an attempt that was killed
        left.unlink()
    keys = [_digest(key, task) for task in tasks]
    counts: dict[int, Counts] = {}
    for index, task_key in enumerate(keys):
        mark = _read_mark(folder, index)
        if mark is not None and mark["key"] == task_key:
            counts[index] = mark["counts"]
    for other in (folder / FINISHED).glob("*.json"):  # marks of work that this one writes over
        if int(other.stem) not in counts:
            other.unlink()
    if check is not None:
        check(total(list(counts.values())))
    open_tasks = [index for index in range(len(tasks)) if index not in counts]
    if progress is not None:
        progress(len(counts), len(tasks))
    with _watch(lambda: [index for index in open_tasks if index not in counts], tasks, quiet_s) as tick:
        for row in _on_ray(process, [(index, tasks[index]) for index in open_tasks], workers):
            index = int(row["index"])
            if row["error"]:
                raise ERRORS.get(row["kind"], RuntimeError)(row["error"])
            counts[index] = json.loads(row["counts"])
            mark = {"key": keys[index], "counts": counts[index]}
            write_atomically(folder / FINISHED / f"{index:05d}.json", json.dumps(mark))
            tick()
            if progress is not None:
                progress(len(counts), len(tasks))
            if check is not None:
                check(total(list(counts.values())))
    return [counts[index] for index in range(len(tasks))]


@contextmanager
def _watch(left: Callable[[], list[int]], tasks: Sequence[Any], quiet_s: float) -> Iterator[Callable[[], None]]:
    """Logs what is waited for whenever ``quiet_s`` passed without a call of what it gives."""
    news, over = threading.Event(), threading.Event()

    def look() -> None:
        while not over.is_set():
            if news.wait(quiet_s):
                news.clear()
            else:
                waiting = left()
                shown = f"{tasks[waiting[0]]!r:.300}" if waiting else "none"
                _LOG.warning("nothing finished for %.0f s; %d to go, the first is %s", quiet_s, len(waiting), shown)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield news.set
    finally:
        over.set()
        news.set()
        thread.join()


def is_finished(tasks: Sequence[Any], folder: Path, *, key: str) -> bool:
    """Has every task a mark of ``key``?"""
    marks = [_read_mark(folder, index) for index in range(len(tasks))]
    return all(mark is not None and mark["key"] == _digest(key, task) for mark, task in zip(marks, tasks, strict=True))


def _digest(key: str, task: Any) -> str:
    return hashlib.blake2b(f"{key}\0{task!r}".encode(), digest_size=16).hexdigest()


def _read_mark(folder: Path, index: int) -> dict[str, Any] | None:
    try:
        mark: dict[str, Any] = json.loads((folder / FINISHED / f"{index:05d}.json").read_text())
    except FileNotFoundError:
        return None
    return mark


def _on_ray(
    process: Process | Stateful, tasks: Sequence[tuple[int, Any]], workers: Workers
) -> Iterator[dict[str, Any]]:
    """The answer of every task as soon as it is there."""
    if not tasks:
        return iter(())
    import ray
    from ray.data import ActorPoolStrategy, TaskPoolStrategy

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    items = [{"index": index, "task": pickle.dumps(task)} for index, task in tasks]
    dataset: Any = ray.data.from_items(items, override_num_blocks=len(items))
    resources: dict[str, Any] = {"num_cpus": workers.cpus, "num_gpus": workers.gpus}
    if workers.memory_gib:
        resources["memory"] = int(workers.memory_gib * 2**30)
    if isinstance(process, Stateful):
        pool = ActorPoolStrategy(min_size=workers.num_workers or 1, max_size=workers.num_workers or len(items))
        answers = dataset.map(_Actor, fn_constructor_args=(process,), compute=pool, **resources)
    else:
        tasks_at_once = TaskPoolStrategy(workers.num_workers or None)
        answers = dataset.map(_answer, fn_args=(process,), compute=tasks_at_once, **resources)
    return iter(answers.iter_rows())


class _Actor:
    """One member of the pool."""

    def __init__(self, stateful: Stateful) -> None:
        self._process = stateful.factory(**stateful.arguments)

    def __call__(self, item: Mapping[str, Any]) -> dict[str, Any]:
        return _answer(item, self._process)


def _answer(item: Mapping[str, Any], process: Process) -> dict[str, Any]:
    """Counts or the error, as a row: the first error reaches the driver as it was raised."""
    answer = {"index": item["index"], "counts": "{}", "error": "", "kind": ""}
    try:
        counts = process(int(item["index"]), pickle.loads(item["task"]))
        return {**answer, "counts": json.dumps(counts)}
    except ConfigError as error:
        return {**answer, "error": str(error), "kind": type(error).__name__}
    except Exception as error:
        return {**answer, "error": f"shard {item['index']}: {error!r}\n{traceback.format_exc()}"}


# --- functions of rows ----------------------------------------------------------------------------------------------


def map_shards(
    function: Function | Stateful,
    shards: Sequence[Path],
    folder: Path,
    *,
    key: str,
    batch_rows: int = 1024,
    workers: Workers = Workers(),
    progress: Progress | None = None,
) -> list[Counts]:
    """Every shard through ``function``, batch by batch, to a shard of the same number; ``{"documents": n}`` of each.

    Raises:
        DataError: a row that is no document or that the function refuses, or it answers other rows than it was given.
    """
    if isinstance(function, Stateful):
        arguments = {"stateful": function, "folder": folder, "batch_rows": batch_rows}
        process: Process | Stateful = Stateful(_StatefulMap, arguments)
    else:
        process = _Map(function, folder, batch_rows)
    return run_tasks(process, fingerprints(shards), folder, key=key, workers=workers, progress=progress)


def remove_surplus(folder: Path, num_shards: int, prefix: str = DOCUMENTS) -> None:
    """Shards that an attempt on more of them left; the last first, so that none is ever missing between others."""
    for path in reversed(shards_of(folder, prefix)[num_shards:]):
        path.unlink()


def fingerprints(shards: Sequence[Path]) -> list[tuple[str, int, int]]:
    """(path, bytes, modification time in ns) of each: a shard that was written again is done again."""
    return [(str(path), (stat := os.stat(path)).st_size, stat.st_mtime_ns) for path in shards]


@dataclass(frozen=True)
class _Map:
    function: Function
    folder: Path
    batch_rows: int

    def __call__(self, index: int, task: tuple[str, int, int]) -> Counts:
        path = task[0]
        with ShardWriter(self.folder / shard_name(index)) as writer:
            for rows in read_batches(path, self.batch_rows):
                answered = checked(self._answer, rows, path)
                writer.write(answered)
        return {DOCUMENTS: writer.num_rows}

    def _answer(self, rows: list[Row]) -> list[Row]:
        answered = self.function(rows)
        _check_same(rows, answered)
        return answered


class _StatefulMap(_Map):
    def __init__(self, stateful: Stateful, folder: Path, batch_rows: int) -> None:
        super().__init__(stateful.factory(**stateful.arguments), folder, batch_rows)


def _check_same(asked: Sequence[Row], answered: Sequence[Row]) -> None:
    given, got = [row["id"] for row in asked], [row["id"] for row in answered]
    if given != got:
        at = next((k for k, (a, b) in enumerate(zip(given, got, strict=False)) if a != b), min(len(given), len(got)))
        raise DataError(
            f"the function must answer the {len(given)} documents it was given in their order; it answered {len(got)} "
            f"and differs from document {at} on"
        )


def checked(function: Callable[[list[Row]], Any], rows: list[Row], path: str | Path) -> Any:
    """``function(rows)``; what it raises names the shard, and the first document on which it fails alone."""
    try:
        return function(rows)
    except Exception as error:
        message = f"{path}, document {_culprit(function, rows)}: {error if str(error) else repr(error)}"
        if isinstance(error, DataError):
            raise DataError(message) from error
        error.add_note(message)
        raise


def _culprit(function: Callable[[list[Row]], Any], rows: list[Row]) -> str:
    for row in rows:
        try:
            function([row])
        except Exception:
            return repr(row.get("id"))
    return f"one of {rows[0].get('id')!r} to {rows[-1].get('id')!r}"


def total(counts: Sequence[Counts]) -> Counts:
    """The sum over shards."""
    summed: Counter[str] = Counter()
    for entry in counts:
        summed.update(entry)
    return dict(summed)
