"""The ``mixture`` stage: labelled documents in, how often each is taken out.

copies-00000.npy ...   int64 [documents of the shard], beside the input's shards
summary.json           of every part: documents, tokens, what was asked and what came out
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.data.document import label_of, num_documents, read_batches, shards_of
from pretrain.data.mixture import MixtureError, Part, assign, expected_copies, whole_copies
from pretrain.data.tokens import copies_path, group_of
from rlplatform.config import ConfigError, MixtureConfig
from rlplatform.datafiles import DataError
from rlplatform.runs import RunFolder

EVERYTHING = {"all": Part(1.0, {})}


def make_mixture(config: MixtureConfig) -> dict[str, Any]:
    """Write the copies of every document; returns the summary.

    Raises:
        DataError: no documents, or one without the size label.
        ConfigError: a part that does not hold its share.
    """
    folder = RunFolder(config.run_dir)
    shards = shards_of(config.documents)
    parts = parts_of(config) or EVERYTHING
    columns = read_columns(shards, config.size, sorted({name for part in parts.values() for name in part.labels}))
    sizes = columns.pop("size")
    ids = columns.pop("id")
    part_of = assign(sizes, columns, parts)
    weights = np.ones(len(sizes))
    num_tokens = config.num_tokens or float(sizes[part_of >= 0].sum())
    try:
        expected = expected_copies(sizes, weights, part_of, parts, num_tokens=num_tokens, max_copies=config.max_copies)
    except MixtureError as error:
        raise ConfigError(f"stage {config.name}: {error}") from error
    copies = whole_copies(expected, ids.tolist(), seed=config.seed)
    first = 0
    for number, path in enumerate(shards):
        last = first + num_documents(path)
        np.save(copies_path(folder.path, number), copies[first:last])
        first = last
    summary = {
        "documents": len(sizes),
        "taken": int((copies > 0).sum()),
        "tokens": int((copies * sizes).sum()),
        "in_no_part": int((part_of < 0).sum()),
        "parts": {
            name: part_summary(sizes, copies, part_of == number, part.share * num_tokens)
            for number, (name, part) in enumerate(parts.items())
        },
    }
    folder.save_json("summary.json", summary)
    return summary


def parts_of(config: MixtureConfig) -> dict[str, Part]:
    def listed(value: Any) -> list[str]:
        return [str(one) for one in value] if isinstance(value, list | tuple) else [str(value)]

    return {
        name: Part(
            part.share,
            {label: listed(value) for label, value in part.labels.items()},
            part.min_size,
            part.max_size,
        )
        for name, part in config.parts.items()
    }


def read_columns(shards: list[Path], size: str, labels: list[str]) -> dict[str, np.ndarray]:
    """``id`` (str), ``size`` (int64) and the value of each label (str), of all documents in order.

    Raises:
        DataError: a document without the size.
    """
    columns: dict[str, list[Any]] = {"id": [], "size": [], **{name: [] for name in labels}}
    for path in shards:
        for rows in read_batches(path):
            for row in rows:
                columns["id"].append(row["id"])
                columns["size"].append(size_of(row, size, path))
                for name in labels:
                    columns[name].append(group_of(row, name))
    return {
        name: np.array(values, dtype=np.int64) if name == "size" else np.array(values, dtype=str)
        for name, values in columns.items()
    }


def size_of(row: Mapping[str, Any], name: str, path: Path) -> int:
    entry = label_of(row, name)
    if entry is None or entry["score"] is None:
        raise DataError(
            f"{path}: document {row['id']!r}: expected the label {name!r} with a number; let an annotate stage run "
            "the labeller `length` with the tokenizer first"
        )
    return int(entry["score"])


def part_summary(sizes: np.ndarray, copies: np.ndarray, own: np.ndarray, wanted: float) -> dict[str, Any]:
    return {
        "documents": int(own.sum()),
        "taken": int((copies[own] > 0).sum()),
        "most_copies": int(copies[own].max(initial=0)),
        "tokens_there": int(sizes[own].sum()),
        "tokens_asked": round(wanted),
        "tokens": int((copies[own] * sizes[own]).sum()),
    }
