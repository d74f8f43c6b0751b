"""The ``mixture`` stage: labelled documents in, how often each is taken out.

copies-00000.npy ...   int64 [documents of the shard], beside the input's shards
summary.json           of every part: documents, tokens, what was asked and what came out
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.data.document import label_of, num_documents, read_batches, shards_of
from pretrain.data.mixture import MixtureError, Part, assign, expected_copies, whole_copies
from pretrain.data.tokens import copies_path, group_of
from pretrain.data.weighting import Weighting
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
    weighting = Weighting.load(config.weights) if config.weights else Weighting((), ())
    classes = sorted({name for part in parts.values() for name in part.labels} | set(weighting.classes))
    columns = read_columns(shards, classes, sorted({config.size, *weighting.numbers}))
    sizes = sizes_of(columns, config.size, config.documents)
    part_of = assign(sizes, columns, parts)
    weights = weighting.weights(columns, len(sizes))
    num_tokens = config.num_tokens or float(sizes[part_of >= 0].sum())
    try:
        expected = expected_copies(sizes, weights, part_of, parts, num_tokens=num_tokens, max_copies=config.max_copies)
    except MixtureError as error:
        raise ConfigError(f"stage {config.name}: {error}") from error
    copies = whole_copies(expected, columns["id"].tolist(), seed=config.seed)
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


def read_columns(shards: list[Path], classes: Iterable[str], numbers: Iterable[str]) -> dict[str, np.ndarray]:
    """Of all documents in order: ``id`` and each class label's value (str), each number label's number (float64, nan
    where a document has none).

    Raises:
        DataError: a label is asked for as both.
    """
    classes, numbers = dict.fromkeys(classes), dict.fromkeys(numbers)
    both = next((name for name in classes if name in numbers), None)
    if both is not None:
        raise DataError(
            f"label {both!r}: expected a class (parts) or a number (weights, size), it is asked for as both"
        )
    columns: dict[str, list[Any]] = {"id": [], **{name: [] for name in (*classes, *numbers)}}
    for path in shards:
        for rows in read_batches(path):
            for row in rows:
                columns["id"].append(row["id"])
                for name in classes:
                    columns[name].append(group_of(row, name))
                for name in numbers:
                    columns[name].append(number_of(row, name))
    return {name: np.array(values, dtype=np.float64 if name in numbers else str) for name, values in columns.items()}


def number_of(row: Mapping[str, Any], name: str) -> float:
    entry = label_of(row, name)
    return math.nan if entry is None or entry["score"] is None else float(entry["score"])


def sizes_of(columns: Mapping[str, np.ndarray], name: str, documents: str) -> np.ndarray:
    """int64 ``[N]``, tokens.

    Raises:
        DataError: a document without the label.
    """
    missing = np.flatnonzero(np.isnan(columns[name]))
    if len(missing):
        raise DataError(
            f"{documents}: document {columns['id'][missing[0]]!r} and {len(missing) - 1} others: expected the label "
            f"{name!r} with a number; let an annotate stage run the labeller `length` with the tokenizer first"
        )
    return columns[name].astype(np.int64)


def part_summary(sizes: np.ndarray, copies: np.ndarray, own: np.ndarray, wanted: float) -> dict[str, Any]:
    return {
        "documents": int(own.sum()),
        "taken": int((copies[own] > 0).sum()),
        "most_copies": int(copies[own].max(initial=0)),
        "tokens_there": int(sizes[own].sum()),
        "tokens_asked": round(wanted),
        "tokens": int((copies[own] * sizes[own]).sum()),
    }
