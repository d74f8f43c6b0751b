"""The ``annotate`` stage: every document through the labellers, in order.

    documents ── shards ──► Ray Data actors: labeller after labeller, batch by batch ──► documents with labels
                            (a labeller sees the labels of those before it)               summary.json

A labeller's exception stops the stage and names the document; what a labeller calls failed is a label and is counted,
and too many of them stop the stage as well.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pretrain.data import label_schema as schema
from pretrain.data.document import Row, shards_of
from pretrain.data.label_schema import MEANINGS
from pretrain.data.labels import FAILED_MARK, Labeller, bind, described, failure_of, identified
from pretrain.data.shards import FINISHED, Progress, Stateful, Workers, map_shards, remove_surplus
from rewards.base import NOT_APPLICABLE
from rlplatform.config.corpus_annotate import AnnotateConfig
from rlplatform.datafiles import DataError
from rlplatform.runs import write_atomically

SUMMARY = "summary.json"
_MIN_ANSWERS = 100  # of a label in one process, before its share of failures stops the stage
_MAX_VALUES = 200  # of a class in the summary; the rest are counted together


def labellers_of(config: AnnotateConfig) -> list[Labeller]:
    """The configured labellers without their files read. Raises ConfigError."""
    return [bind(name, settings) for name, settings in config.labellers.items()]


def annotate(config: AnnotateConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Label the documents of ``config.documents`` into ``config.run_dir`` and return the summary. Needs ``ray.init()``.

    Raises:
        ConfigError: a labeller or setting that does not exist.
        DataError: a document that a labeller cannot be run on, or too many failures of one label.
    """
    folder = Path(config.run_dir)
    labellers = [identified(one) for one in labellers_of(config)]
    shards = shards_of(config.documents)
    arguments = {"labellers": labellers, "replace": config.replace, "max_failed_share": config.max_failed_share}
    workers = config.workers
    counts = map_shards(
        Stateful(Annotator, arguments),
        shards,
        folder,
        key=json.dumps([schema.VERSION, [one.identity for one in labellers], config.replace]),
        batch_rows=config.batch_rows,
        workers=Workers(workers.num_workers, workers.cpus, workers.gpus, workers.memory_gib),
        progress=progress,
    )
    remove_surplus(folder, len(shards))
    known = _known_labellers(Path(config.documents)) | {one.identity: described(one) for one in labellers}
    found = summarise(shards_of(folder))
    summary = {
        "documents": sum(entry["documents"] for entry in counts),
        "shards": len(shards),
        "label_version": schema.VERSION,
        "labels": found,
        "labellers": {k: v for k, v in known.items() if any(k in entry["by"] for entry in found.values())},
    }
    try:
        for name, entry in found.items():
            _check_failed(name, entry["failed"], entry["answers"], config.max_failed_share)
    except DataError:
        shutil.rmtree(folder / FINISHED)  # what failed is asked again by the next attempt
        raise
    write_atomically(folder / SUMMARY, json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    return summary


def _known_labellers(documents: Path) -> dict[str, Any]:
    """What an earlier annotate stage says of the identities on its documents."""
    try:
        value = json.loads((documents / SUMMARY).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return dict(value.get("labellers", {}))


class Annotator:
    """The function of one process: documents in, the same documents with more labels out."""

    def __init__(self, labellers: Sequence[Labeller], *, replace: bool = False, max_failed_share: float = 1.0) -> None:
        self._labellers, self._replace, self._max_failed_share = labellers, replace, max_failed_share
        self._answers: Counter[str] = Counter()
        self._failed: dict[str, Counter[str]] = {}
        self._reasons: dict[str, str] = {}

    def __call__(self, rows: Sequence[Row]) -> list[Row]:
        """Raises DataError: see the module's head."""
        labelled = [dict(row) for row in rows]
        for one in self._labellers:
            for row, new in zip(labelled, one(labelled), strict=True):
                row["labels"] = merged(row, new, replace=self._replace)
                self._count(new)
        self._check()
        return labelled

    def _count(self, new: Sequence[Row]) -> None:
        for entry in new:
            name, status = entry["name"], failure_of(entry)
            self._answers[name] += 1
            if status:
                self._failed.setdefault(name, Counter())[status] += 1
                if status != NOT_APPLICABLE:
                    self._reasons.setdefault(name, entry["value"])

    def _check(self) -> None:
        for name, failed in self._failed.items():
            if self._answers[name] >= _MIN_ANSWERS:
                _check_failed(name, failed, self._answers[name], self._max_failed_share, self._reasons.get(name, ""))


def merged(row: Mapping[str, Any], new: Sequence[Row], *, replace: bool) -> list[Row]:
    """The document's labels and the new ones, one a name.

    Raises:
        DataError: a name is there already, and ``replace`` is false.
    """
    names = {entry["name"] for entry in new}
    kept = [entry for entry in row["labels"] if entry["name"] not in names]
    if len(kept) < len(row["labels"]) and not replace:
        double = next(entry for entry in row["labels"] if entry["name"] in names)
        raise DataError(
            f"document {row['id']!r} has a label {double['name']} by {double['labeller']}; set replace: true, or let "
            "one of the two labellers give another label"
        )
    return [*kept, *new]


def _check_failed(name: str, failed: Mapping[str, int], answers: int, most: float, first: str = "") -> None:
    broken = sum(number for status, number in failed.items() if status != NOT_APPLICABLE)
    if answers and broken / answers > most:
        raise DataError(
            f"label {name}: {broken} of {answers} answers failed ({dict(failed)}), more than max_failed_share={most:g}"
            + (f"; the first: {first}" if first else "")
        )


# --- what a stage says of its labels --------------------------------------------------------------------------------


def summarise(shards: Sequence[Path]) -> dict[str, Any]:
    """Label -> ``answers``, ``by`` (identities and how many), ``failed``, and ``values`` of a class or ``mean``,
    ``min``, ``max`` of a number. Reads one column, a shard at a time.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in shards:
        column = pq.read_table(path, columns=["labels"])["labels"].combine_chunks()
        entries = pa.Table.from_struct_array(pc.list_flatten(column))
        for name in sorted(set(entries["name"].to_pylist())):
            _add(found.setdefault(name, _empty()), name, entries.filter(pc.equal(entries["name"], name)))
    return {name: _finished(entry) for name, entry in sorted(found.items())}


def _empty() -> dict[str, Any]:
    return {"answers": 0, "by": Counter(), "failed": Counter(), "values": Counter(), "sum": 0.0, "min": [], "max": []}


def _add(entry: dict[str, Any], name: str, rows: pa.Table) -> None:
    entry["answers"] += rows.num_rows
    for value in pc.value_counts(rows["labeller"]).to_pylist():
        entry["by"][value["values"]] += value["counts"]
    failed = pc.starts_with(rows["value"], FAILED_MARK)
    for value in rows.filter(failed)["value"].to_pylist():
        entry["failed"][failure_of({"value": value})] += 1
    rows = rows.filter(pc.invert(failed))
    if not rows.num_rows:
        return
    if is_number(name, rows["value"][0].as_py(), rows["score"][0].as_py()):
        lowest_highest = pc.min_max(rows["score"]).as_py()
        entry["sum"] += pc.sum(rows["score"]).as_py()
        entry["min"].append(lowest_highest["min"])
        entry["max"].append(lowest_highest["max"])
    else:
        for value in pc.value_counts(rows["value"]).to_pylist():
            entry["values"][value["values"]] += value["counts"]


def is_number(name: str, value: str, score: float | None) -> bool:
    """Is the label a number? The schema says so; where it does not know the label, the value does."""
    if name in MEANINGS:
        return MEANINGS[name].kind == "number"
    try:
        return score is not None and float(value) == float(f"{score:.6g}")
    except ValueError:
        return False


def _finished(entry: Mapping[str, Any]) -> dict[str, Any]:
    failed = dict(sorted(entry["failed"].items()))
    found = {"answers": entry["answers"], "by": dict(sorted(entry["by"].items())), "failed": failed}
    num = entry["answers"] - sum(failed.values())
    if entry["min"]:
        return {**found, "mean": entry["sum"] / num, "min": min(entry["min"]), "max": max(entry["max"])}
    ranked = sorted(entry["values"].items(), key=lambda item: (-item[1], item[0]))
    values = dict(ranked[:_MAX_VALUES])
    if len(ranked) > _MAX_VALUES:
        values["(others)"] = sum(number for _, number in ranked[_MAX_VALUES:])
    return {**found, "values": values}


def table(summary: Mapping[str, Any]) -> list[str]:
    """What a person sees of the summary: a line a label."""
    lines = []
    for name, entry in summary["labels"].items():
        if "mean" in entry:
            said = f"mean {entry['mean']:.4g}, {entry['min']:.4g} to {entry['max']:.4g}"
        else:
            shares = list(entry["values"].items())[:5]
            said = ", ".join(f"{value} {number / entry['answers']:.0%}" for value, number in shares)
        failed = ", ".join(f"{status} {number}" for status, number in entry["failed"].items())
        lines.append(f"  {name:36} {said}{'  [' + failed + ']' if failed else ''}")
    return lines
