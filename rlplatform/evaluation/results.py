"""What an evaluation leaves behind: one record a benchmark and mode, ``results.json``, a table and a plot.

Nothing in ``results.json`` depends on time or place, so that the same model, seed and versions give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlplatform.config import ConfigError
from rlplatform.evaluation.benchmarks import Benchmark
from rlplatform.evaluation.runner import Evaluation, reduce
from rlplatform.lineage import LINEAGE
from rlplatform.types import ScoredGroup

Record = dict[str, Any]
REJECTED = "rejected"  # a sample that the engine gave up: no verdict, counts as wrong


def record(benchmark: Benchmark, evaluation: Evaluation, *, metric: str, num_samples: int) -> Record:
    """Score, interval, pass@k, breakdown and verdicts of one benchmark in one mode.

    Problems of the category that is not counted stand in ``categories`` alone; ``verdicts`` are of all samples.
    """
    groups = evaluation.sampled
    counted = [group for group in groups if category_of(group) != benchmark.not_counted or not benchmark.not_counted]
    if not counted:
        raise ConfigError(f"{benchmark.name}: none of its {len(groups)} problems count; raise limit")
    found = reduce(counted, metric=metric, num_samples=num_samples)
    return {
        **{name.removeprefix("eval/"): value for name, value in found.items()},
        "problems": len(counted),
        "num_samples": num_samples,
        "categories": by_category(groups, metric=metric, num_samples=num_samples),
        "verdicts": verdict_counts(groups, num_samples),
    }


def category_of(group: ScoredGroup) -> str:
    return str(group.group.prompt.columns.get("category") or "")


def by_category(groups: Sequence[ScoredGroup], *, metric: str, num_samples: int) -> dict[str, dict[str, float]]:
    """Accuracy of each category, in alphabetical order; nothing where there is none."""
    found: dict[str, dict[str, float]] = {}
    for name in sorted({category_of(group) for group in groups} - {""}):
        own = [group for group in groups if category_of(group) == name]
        values = reduce(own, metric=metric, num_samples=num_samples)
        found[name] = {
            "accuracy": values["eval/accuracy"],
            "accuracy_ci95": values["eval/accuracy_ci95"],
            "not_ok": values["eval/not_ok"],
            "problems": len(own),
        }
    return found


def verdict_counts(groups: Sequence[ScoredGroup], num_samples: int) -> dict[str, int]:
    """Samples by the status of their verdict, and those without one; the sum is problems x samples."""
    counts = Counter(verdict.status for group in groups for verdict in group.verdicts)
    if rejected := len(groups) * num_samples - counts.total():
        counts[REJECTED] = rejected
    return dict(sorted(counts.items()))


# --- what it was measured with --------------------------------------------------------------------------------------


def file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def template_hash(tokenizer: Any) -> str:
    """SHA-256 of the chat template's text."""
    return hashlib.sha256(str(tokenizer.chat_template or "").encode()).hexdigest()


def lineage_key(model: str) -> str | None:
    """The key of the stage that made the model; None where it came without a lineage."""
    file = Path(model) / LINEAGE
    if not file.is_file():
        return None
    return str(json.loads(file.read_text(encoding="utf-8"))["stages"][-1]["key"])


# --- showing it -----------------------------------------------------------------------------------------------------


def published(benchmark: Benchmark, model: str, mode: str) -> float | None:
    """The report's percentage for this model and mode, or for its base model."""
    for name in (model, f"{model.removesuffix('-Base')}-Base"):
        if name in benchmark.figures:
            value = benchmark.figures[name].of(mode)
            return value if value is not None else benchmark.figures[name].single
    return None


def label(entry: Record) -> str:
    budget = entry.get("budget")
    return str(entry["mode"]) if budget is None else f"{entry['mode']}, budget {budget}"


def _not_ok(entry: Record) -> str:
    bad = {status: count for status, count in entry.get("verdicts", {}).items() if status != "ok"}
    if entry.get("num_too_long"):
        bad["too long"] = entry["num_too_long"]
    if entry.get("num_rejected"):
        bad[REJECTED] = entry["num_rejected"]
    if entry.get("left_out"):
        bad["left out"] = entry["left_out"]
    return ", ".join(f"{count} {status}" for status, count in bad.items()) or "-"


def _pass_at(entry: Record) -> str:
    ks = sorted(int(name.removeprefix("pass_at_")) for name in entry if name.startswith("pass_at_"))
    if "per_dialogue" in entry:
        return f"{entry['per_dialogue']:.1%} of dialogues"
    return f"{entry[f'pass_at_{ks[-1]}']:.1%} (k={ks[-1]})" if ks else "-"


def table_rows(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """(benchmark, mode, problems x samples, pass@1, pass@k, not ok, the report's) of every entry."""
    rows: list[tuple[str, ...]] = []
    for entry in results["entries"]:
        reported = entry.get("report")
        rows.append(
            (
                entry["benchmark"],
                label(entry),
                f"{entry['problems']} x {entry['num_samples']}",
                f"{entry['accuracy']:.1%} ± {entry['accuracy_ci95']:.1%}",
                _pass_at(entry),
                _not_ok(entry),
                "-" if reported is None else f"{reported:.1f}%",
            )
        )
    return rows


def print_results(results: Mapping[str, Any], folder: Path) -> None:
    """The table on the terminal, drops of budget sweeps, and where everything lies."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    headers = ("benchmark", "mode", "problems", "pass@1", "pass@k", "not ok", str(results["report_model"]))
    table = Table(*headers, title=f"{results['model']}, seed {results['seed']}")
    for row in table_rows(results):
        table.add_row(*row)
    console.print(table)
    for name, sweep in results["sweeps"].items():
        said = "no drop beyond the interval" if sweep["monotone"] else "a drop beyond the interval"
        console.print(f"{name}: {said}; rise {100 * sweep['rise']:.1f} ± {100 * sweep['rise_ci95']:.1f} points")
    console.print(f"results  {folder / 'results.json'}", soft_wrap=True)


def plot(results: Mapping[str, Any], path: Path) -> Path:
    """A bar an entry with its interval, and the report's figure as a mark; sweeps have plots of their own."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    entries = [entry for entry in results["entries"] if entry.get("budget") is None]
    figure, axis = plt.subplots(figsize=(8, 1.2 + 0.35 * len(entries)), layout="constrained")
    places = list(range(len(entries)))[::-1]
    colours = {"thinking": "C0", "non_thinking": "C1"}
    axis.barh(
        places,
        [100 * entry["accuracy"] for entry in entries],
        xerr=[100 * entry["accuracy_ci95"] for entry in entries],
        color=[colours.get(entry["mode"], "C2") for entry in entries],
        capsize=2,
    )
    reported = [(entry["report"], place) for entry, place in zip(entries, places, strict=True) if entry["report"]]
    if reported:
        values, heights = zip(*reported, strict=True)
        axis.scatter(values, heights, marker="|", s=150, color="k", label=str(results["report_model"]))
        axis.legend()
    axis.set_yticks(places, [f"{entry['benchmark']}, {label(entry)}" for entry in entries])
    axis.set_xlim(0, 100)
    axis.set_xlabel("pass@1, %, 95 % interval over problems")
    axis.grid(axis="x", alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
