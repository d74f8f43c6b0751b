"""Plots, the HTML page and the results table. Reads a run folder, touches no process."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rewards.base import OK
from rlplatform.config import RecipeConfig, RLConfig, RunConfig
from rlplatform.reads import reads_do_not_count
from rlplatform.runs import RunFolder, write_atomically

PANELS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("Reward", "reward", ("reward/mean", "reward/trained_mean")),
    ("Held-out accuracy", "share", ("eval/accuracy",)),
    ("Entropy", "nats a token", ("policy/entropy",)),
    ("Completion length", "tokens", ("rollout/length_mean", "rollout/terminated_length_mean")),
    ("Sampler against learner", "nats", ("mismatch/abs_logprob_diff_mean", "mismatch/abs_logprob_diff_max")),
    ("Time per phase", "s", ("time/generate", "time/train", "time/publish", "time/evaluate")),
)
LOGARITHMIC = {"Sampler against learner"}


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """One PNG with a panel each for reward, held-out accuracy, entropy, length, mismatch and time per phase."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(15, 7.5), layout="constrained")
    for axis, (title, unit, names) in zip(axes.flat, PANELS, strict=True):
        for name in names:
            points = [(row["step"], row[name]) for row in rows if name in row]
            if not points:
                continue
            steps, values = zip(*points, strict=True)
            axis.plot(steps, values, label=name, marker="o" if len(points) < 12 else None, linewidth=1.6)
            if name == "eval/accuracy":
                errors = [row.get("eval/accuracy_ci95", 0.0) for row in rows if name in row]
                low = [v - e for v, e in zip(values, errors, strict=True)]
                high = [v + e for v, e in zip(values, errors, strict=True)]
                axis.fill_between(steps, low, high, alpha=0.2, label="95 % interval")
        if title in LOGARITHMIC:
            axis.set_yscale("log")
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.set_ylabel(unit)
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def samples(folder: RunFolder, *, step: int, count: int = 4) -> list[dict[str, Any]]:
    """Rollouts of one step: first the lowest rewards' and then the highest rewards' share of ``count``."""
    import pandas as pd

    path = folder.path / "rollouts" / f"step-{step:06d}.parquet"
    if not path.is_file():
        return []
    frame = pd.read_parquet(path).sort_values("reward", kind="stable", na_position="first")
    half = max(count // 2, 1)
    return [*frame.head(half).to_dict("records"), *frame.tail(half).to_dict("records")]


def write_run_report(folder: RunFolder) -> Path:
    """``report/`` of one run: plots.png and index.html."""
    rows = folder.read_metrics()
    image = plot(rows, folder.report / "plots.png")
    steps = sorted(int(p.stem.split("-")[1]) for p in (folder.path / "rollouts").glob("step-*.parquet"))
    blocks = [f"<h1>{html.escape(folder.path.name)}</h1>", image_tag(image)]
    for label, step in (("Early", steps[0]), ("Late", steps[-1])) if steps else ():
        blocks.append(f"<h2>{label} rollouts (step {step})</h2>")
        blocks += [_rollout(row) for row in samples(folder, step=step)]
    diff = (folder.path / "config_diff.yaml").read_text(encoding="utf-8")
    blocks.append(f"<h2>Config, where it differs from the defaults</h2><pre>{html.escape(diff)}</pre>")
    return page(folder.report / "index.html", folder.path.name, blocks)


def image_tag(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="curves of the run" src="data:image/png;base64,{data}">'


def _rollout(row: Mapping[str, Any]) -> str:
    head = (
        f"reward {row['reward']}, {row['status']}, {row['finish']}, {row['length']} tokens, prompt {row['prompt_id']}"
    )
    prompt, completion = html.escape(str(row["prompt"])), html.escape(str(row["completion"]))
    return f"<p>{html.escape(head)}</p><pre>{prompt}<b>{completion}</b></pre>"


def page(path: Path, title: str, blocks: Sequence[str]) -> Path:
    style = (
        "body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}"
        "img{max-width:100%}pre{background:#f5f5f5;padding:.8em;overflow:auto;white-space:pre-wrap}"
        "td,th{padding:.2em 1em .2em 0;text-align:left}"
    )
    write_atomically(
        path,
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{style}</style></head><body>{''.join(blocks)}</body></html>\n",
    )
    return path


# --- recipes --------------------------------------------------------------------------------------------------------


def recipe_results(
    recipe: RecipeConfig, plan: Mapping[str, RunConfig], finished: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """``results.json``. For a recipe with an RL stage: held-out accuracy before and after its last one."""
    with reads_do_not_count():
        results: dict[str, Any] = {"name": recipe.name, "seed": recipe.seed}
    results["seconds"] = round(sum(done["seconds"] for done in finished.values()), 1)
    results["stages"] = {
        name: {"seconds": done["seconds"], **done["summary"], **_headline(done)} for name, done in finished.items()
    }
    rl = [name for name, config in plan.items() if isinstance(config, RLConfig)]
    if rl:
        summary = finished[rl[-1]]["summary"]
        before, after = summary["before"], summary["after"]
        results |= {
            "rl_stage": rl[-1],
            "accuracy_before_rl": before.get("eval/accuracy"),
            "accuracy_after_rl": after.get("eval/accuracy"),
            "problems": summary["problems"],
            "before_rl": {name.removeprefix("eval/"): value for name, value in before.items()},
            "after_rl": {name.removeprefix("eval/"): value for name, value in after.items()},
        }
    return results


def headline(kind: str, summary: Mapping[str, Any]) -> str:
    """One line for the results table; "" where a kind has none."""
    if kind == "sample":
        rate = "no verdict" if summary["pass_rate"] is None else f"pass rate {summary['pass_rate']:.1%}"
        not_ok = sum(count for status, count in summary["statuses"].items() if status != OK)
        more = f", {not_ok} verdicts not ok" if not_ok else ""
        return f"{summary['queries']} queries, {summary['responses']} responses, {rate}{more}"
    if kind == "filter":
        reasons = [f"{reason} {count}" for found in summary["by_filter"].values() for reason, count in found.items()]
        return f"{summary['kept']} of {summary['rows']} kept" + (f"; {', '.join(reasons)}" if reasons else "")
    if kind == "fusion":
        return (
            f"{summary['conversations']} conversations, {summary['thinking_turns']} of {summary['turns']} turns think"
        )
    if kind == "rl" and "eval/accuracy" in summary.get("after", {}):
        before, after = (summary[when].get("eval/accuracy", float("nan")) for when in ("before", "after"))
        return f"held out {before:.1%} before, {after:.1%} after"
    if kind == "eval" and "accuracy" in summary:
        return f"pass@1 {summary['accuracy']:.1%} ± {summary['accuracy_ci95']:.1%}"
    if kind == "benchmarks":
        found = [f"{_entry_name(one)} {one['accuracy']:.1%}" for one in summary["entries"] if one["budget"] is None]
        rises = [f"{name} by budget {_points(sweep)}" for name, sweep in summary["sweeps"].items()]
        return ", ".join([*found, *rises])
    return ""


def _entry_name(entry: Mapping[str, Any]) -> str:
    return str(entry["benchmark"]) if entry["mode"] == "dialogue" else f"{entry['benchmark']} {entry['mode']}"


def _points(sweep: Mapping[str, Any]) -> str:
    return f"{100 * sweep['rise']:+.1f} ± {100 * sweep['rise_ci95']:.1f} points"


def _headline(done: Mapping[str, Any]) -> dict[str, str]:
    said = headline(str(done["kind"]), done["summary"])
    return {"headline": said} if said else {}


def write_recipe_report(folder: RunFolder, plan: Mapping[str, RunConfig], results: Mapping[str, Any]) -> Path:
    """``report/index.html`` of a recipe: the results table, every RL stage's curves, early and late rollouts."""
    blocks = [f"<h1>{html.escape(str(results['name']))}</h1>", _results_table(results), _stages_table(results)]
    with reads_do_not_count():
        rl = [RunFolder(config.run_dir) for config in plan.values() if isinstance(config, RLConfig)]
    for stage in rl:
        name = stage.path.name
        image = plot(stage.read_metrics(), folder.report / ("plots.png" if stage is rl[-1] else f"plots_{name}.png"))
        blocks += [f"<h2>{html.escape(name)}</h2>", image_tag(image)]
        steps = sorted(int(p.stem.split("-")[1]) for p in (stage.path / "rollouts").glob("step-*.parquet"))
        for label, step in (("Early", steps[0]), ("Late", steps[-1])) if steps else ():
            blocks.append(f"<h3>{label} rollouts (step {step})</h3>")
            blocks += [_rollout(row) for row in samples(stage, step=step)]
    return page(folder.report / "index.html", str(results["name"]), blocks)


def _table_rows(results: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    before, after = results.get("before_rl", {}), results.get("after_rl", {})
    names = [("accuracy", "pass@1, sampled"), ("greedy_accuracy", "pass@1, greedy")]
    names += [(name, name.replace("pass_at_", "pass@")) for name in after if name.startswith("pass_at_")]
    names += [(name, name.removeprefix("part/") + " (share)") for name in after if name.startswith("part/")]
    rows = []
    for name, label in names:
        if name in after:
            interval = f" ± {after['accuracy_ci95']:.1%}" if name == "accuracy" and "accuracy_ci95" in after else ""
            values = [before.get(name, float("nan")), after[name]]
            if any(value < 0 or value > 1 for value in values):  # a score, e.g. a reward model's
                label = label.removesuffix(" (share)")
                rows.append((label, f"{values[0]:.3f}", f"{values[1]:.3f}"))
                continue
            rows.append((label, f"{values[0]:.1%}", f"{values[1]:.1%}{interval}"))
    return rows


def stage_rows(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(stage, what came out) of the stages that evaluate or make data, in order."""
    found = [(name, str(stage.get("headline", ""))) for name, stage in results["stages"].items()]
    return [(name, said) for name, said in found if said]


def _stages_table(results: Mapping[str, Any]) -> str:
    cells = "".join(f"<tr><td>{html.escape(a)}</td><td>{html.escape(b)}</td></tr>" for a, b in stage_rows(results))
    return f"<table><tr><th>stage</th><th></th></tr>{cells}</table>" if cells else ""


def _results_table(results: Mapping[str, Any]) -> str:
    cells = "".join(f"<tr><td>{a}</td><td>{b}</td><td>{c}</td></tr>" for a, b, c in _table_rows(results))
    return (
        f"<p>{results.get('problems', 0)} held-out problems, seed {results['seed']}, {results['seconds']:.0f} s.</p>"
        f"<table><tr><th></th><th>before {_of(results)}</th><th>after {_of(results)}</th></tr>{cells}</table>"
    )


def _of(results: Mapping[str, Any]) -> str:
    """What the results table is about: the recipe's only RL stage, or the last of several, by name."""
    several = sum("before" in stage for stage in results["stages"].values()) > 1
    return html.escape(str(results["rl_stage"])) if several else "RL"


def print_evaluation(summary: Mapping[str, Any]) -> None:
    """pass@1 with its interval, pass@k, greedy accuracy and every reward part."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", "share")
    table.caption = f"{summary['problems']} problems x {summary['num_samples']} samples"
    table.add_row("pass@1, sampled", f"{summary['accuracy']:.1%} ± {summary['accuracy_ci95']:.1%}")
    for name, value in summary.items():
        if name.startswith(("pass_at_", "part/")) or name == "greedy_accuracy":
            label = name.replace("pass_at_", "pass@").removeprefix("part/").replace("greedy_accuracy", "pass@1, greedy")
            table.add_row(label, f"{value:.1%}")
    Console().print(table)


def print_results(results: Mapping[str, Any], page: Path) -> None:
    """The results table on the terminal, and where everything lies."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    rows = _table_rows(results)
    if rows:
        title = f"{results['name']}: {results['problems']} held-out problems, seed {results['seed']}"
        table = Table("", f"before {_of(results)}", f"after {_of(results)}", title=title)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    if stages := stage_rows(results):
        table = Table("stage", "what came out")
        for name, said in stages:
            table.add_row(name, said)
        console.print(table)
    console.print(f"results  {page.parent.parent / 'results.json'}")
    console.print(f"report   {page}")
    if last := _last_rl(results):
        console.print(f"rollouts rlplatform inspect {page.parent.parent}/{last}", soft_wrap=True)


def _last_rl(results: Mapping[str, Any]) -> str:
    names = [name for name, stage in results["stages"].items() if "before" in stage]
    return names[-1] if names else ""
