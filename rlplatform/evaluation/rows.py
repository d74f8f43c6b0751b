"""A benchmark's rows, read from the hub or a file, prepared, thinned out evenly and written where they are measured."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlplatform.config import BenchmarksConfig, DataConfig
from rlplatform.data import DataError, read_rows
from rlplatform.evaluation.benchmarks import Benchmark, Source, select
from rlplatform.evaluation.prompts import Exemplars, Row
from rlplatform.runs import write_atomically

_BBH_TASK, _MBPP_EXEMPLARS = "task", (2, 3, 4)


def rows_of(benchmark: Benchmark, *, data_dir: str = "", path: str = "", seed: int = 0, limit: int = 0) -> list[Row]:
    """The prepared rows of a benchmark, each with ``prompt``, ``category``, ``id`` and its reward's columns.

    Args:
        data_dir: a folder with the files of ``Source.local``; "" = the hub.
        path: a file, folder or hub id instead; exemplars still come from ``data_dir`` or the hub.
        seed: of the generators.
        limit: at most so many rows, spread evenly over the set, so that every category is met; 0 = all.

    Raises:
        DataError: no such set, a row without a column, or not one row.
    """
    if benchmark.generator is not None:
        found = [(f"{benchmark.name} row {n}", row) for n, row in enumerate(benchmark.generator(seed)["test"], 1)]
    else:
        assert benchmark.source is not None
        found = list(_read(benchmark.name, benchmark.source, data_dir, path))
    exemplars = _exemplars(benchmark, data_dir)
    prepared: list[Row] = []
    for where, row in found:
        try:
            made = row if benchmark.multi_turn else benchmark.prepare(row, exemplars)
        except (DataError, ValueError, TypeError, IndexError) as error:
            raise DataError(f"{benchmark.name}: {where}: {error}") from error
        if made is not None:
            prepared.append({"id": f"{benchmark.name}-{len(prepared):05d}", **made})
    if not prepared:
        raise DataError(f"{benchmark.name}: expected at least one row, and all {len(found)} were left out")
    return spread(prepared, limit)


def files_of(config: BenchmarksConfig) -> list[str]:
    """The local files that a run reads: a change of one of them is another run."""
    found = list(config.paths.values())
    for one in select(config.benchmarks):
        found += [
            str(Path(config.data_dir) / own.local) for own in (one.source, one.exemplars) if own and config.data_dir
        ]
    return sorted(set(found))


def spread(rows: list[Row], limit: int) -> list[Row]:
    """``limit`` of the rows in equal steps; all of them for 0 or more than there are.

    >>> spread([{"n": n} for n in range(10)], 3)
    [{'n': 0}, {'n': 3}, {'n': 6}]
    """
    if not 0 < limit < len(rows):
        return rows
    return [rows[place * len(rows) // limit] for place in range(limit)]


def write_rows(rows: list[Row], path: Path) -> Path:
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def _read(name: str, source: Source, data_dir: str, path: str) -> Iterator[tuple[str, Row]]:
    if not path and data_dir:
        file = Path(data_dir) / source.local
        if not file.is_file():
            raise DataError(
                f"{name}: {file} is not there; expected {source.local} in data_dir, or paths.{name} with a file, "
                f"folder or hub id, or data_dir='' to read {source.hub or 'nothing: this set is on no hub'}"
            )
        path = str(file)
    if path or source.hub:
        where = path or source.hub
        for subset in source.subsets if "{}" in where else ("",):
            for place, row in read_rows(DataConfig(path=where.replace("{}", subset), split=source.split)):
                named = {source.subset_column: subset} if subset and source.subset_column not in row else {}
                yield place, {**row, **named}
        return
    raise DataError(f"{name}: expected data_dir to hold {source.local}, which is on no hub")


def _exemplars(benchmark: Benchmark, data_dir: str) -> Exemplars:
    """By category: subjects (MMLU), tasks (BBH), or "" alone (MBPP); the first ``few_shot`` of each."""
    if benchmark.exemplars is None:
        return {}
    found: dict[str, list[Mapping[str, Any]]] = {}
    for _, row in _read(f"{benchmark.name} exemplars", benchmark.exemplars, data_dir, ""):
        if "task_id" in row and int(row["task_id"]) not in _MBPP_EXEMPLARS:
            continue
        found.setdefault(str(row.get("subject") or row.get(_BBH_TASK) or ""), []).append(row)
    return {name: rows[: benchmark.few_shot] for name, rows in found.items()}
