"""What benchmarks ask, as text: what a training corpus must not hold (``pretrain/data/contamination.py``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pretrain.data.contamination import Item
from rlplatform.config import BenchmarksConfig
from rlplatform.evaluation.benchmarks import Benchmark, select
from rlplatform.evaluation.prompts import Row
from rlplatform.evaluation.rows import files_of, rows_of
from rlplatform.stages.texts import prompt_text


def items_of(settings: Mapping[str, Any]) -> list[Item]:
    """The items of a contamination step, every one of every benchmark.

    Args:
        settings: ``benchmarks`` (names in the table; none = all of them), ``data_dir`` (a folder with the files of the
            table; none = the hub), ``paths`` (benchmark -> a file, folder or hub id of its own).

    Raises:
        ConfigError, DataError: an unknown benchmark, or a set that is not there.
    """
    config = _config(settings)
    found = []
    for benchmark in select(config.benchmarks):
        rows = rows_of(benchmark, data_dir=config.data_dir, path=config.paths.get(benchmark.name, ""))
        found += [Item(benchmark.name, row["id"], asked(benchmark, row)) for row in rows]
    return found


def item_files(settings: Mapping[str, Any]) -> list[str]:
    """The local files that ``items_of`` reads."""
    return files_of(_config(settings))


def _config(settings: Mapping[str, Any]) -> BenchmarksConfig:
    return BenchmarksConfig(
        benchmarks=tuple(settings.get("benchmarks") or ()),
        data_dir=settings.get("data_dir") or "",
        paths=dict(settings.get("paths") or {}),
    )


def asked(benchmark: Benchmark, row: Row) -> str:
    """The question: the last user message, since exemplars before it are no test items; of a dialogue all its turns."""
    if benchmark.multi_turn:
        return "\n".join(row["users"])
    prompt = row["prompt"]
    return prompt_text({"prompt": prompt if isinstance(prompt, str) else prompt[-1:]})
