"""``rlplatform inspect RUN``: the run's course and its rollouts on a terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from rewards.base import STATUSES
from rlplatform.config import ConfigError
from rlplatform.runs import RunFolder

COLUMNS = (
    ("reward/mean", "reward", "{:.3f}"),
    ("eval/accuracy", "held-out", "{:.1%}"),
    ("policy/entropy", "entropy", "{:.2f}"),
    ("rollout/length_mean", "length", "{:.0f}"),
    ("rollout/truncated_share", "cut", "{:.0%}"),
    ("rollout/duplicate_share", "dupl.", "{:.0%}"),
    ("mismatch/abs_logprob_diff_mean", "mismatch", "{:.1e}"),
    ("optimizer/grad_norm", "grad", "{:.2f}"),
)
SORTS = ("best", "worst", "longest", "order")


def show(
    run_dir: Path,
    *,
    step: int | None,
    status: str | None,
    sort: str,
    rows: int,
    held_out: bool,
    console: Console | None = None,
) -> None:
    """Print a table of steps, warnings, and ``rows`` rollouts.

    Raises:
        ConfigError: no run there, no recorded rollouts, or an unknown sort or status.
    """
    console = console or Console()
    if sort not in SORTS:
        raise ConfigError(f"--sort: expected one of {', '.join(SORTS)}, got {sort!r}")
    if status is not None and status not in STATUSES:
        raise ConfigError(f"--status: expected one of {', '.join(STATUSES)}, got {status!r}")
    if not run_dir.is_dir():
        raise ConfigError(f"{run_dir}: no such run folder")
    folder = RunFolder(run_dir)
    nested = sorted(path.parent.name for path in run_dir.glob("*/metrics.jsonl"))
    try:
        frame = folder.read_rollouts("eval" if held_out else "rollouts")
    except FileNotFoundError as error:
        hint = f"; it has stages: {', '.join(f'{run_dir}/{name}' for name in nested)}" if nested else ""
        raise ConfigError(f"{error}{hint}") from error
    metrics = folder.read_metrics()
    console.print(_steps(metrics))
    for warning in warnings(metrics):
        console.print(f"[yellow]look: {warning}[/yellow]")
    console.print(_statuses(frame))
    chosen = frame if step is None else frame[frame["step"] == step]
    if status is not None:
        chosen = chosen[chosen["status"] == status]
    if chosen.empty:
        raise ConfigError(
            f"no rollout with step={step}, status={status}; steps recorded: {sorted(frame['step'].unique())}"
        )
    if sort == "best":
        chosen = chosen.sort_values("reward", ascending=False, kind="stable", na_position="last")
    elif sort == "worst":
        chosen = chosen.sort_values("reward", kind="stable", na_position="last")
    elif sort == "longest":
        chosen = chosen.sort_values("length", ascending=False, kind="stable")
    for _, row in chosen.head(rows).iterrows():
        console.print(_panel(row))


def _steps(metrics: list[dict[str, Any]], most: int = 20) -> Table:
    table = Table("step", *(title for _, title, _ in COLUMNS), title="steps", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    stride = max(len(metrics) // most, 1)
    for place, row in enumerate(metrics):
        if place % stride == 0 or place == len(metrics) - 1:
            cells = [text.format(row[name]) if name in row else "" for name, _, text in COLUMNS]
            table.add_row(str(row["step"]), *cells)
    return table


def _statuses(frame: Any) -> Table:
    table = Table("status", "rollouts", "share", title="verdicts")
    for name, count in frame["status"].value_counts().items():
        table.add_row(str(name), str(count), f"{count / len(frame):.1%}")
    return table


def _panel(row: Any) -> Panel:
    reward = "none" if row["reward"] is None or row["reward"] != row["reward"] else f"{row['reward']:.3f}"
    parts = ", ".join(f"{name} {score:g}" for name, score in json.loads(row["parts"]).items())
    title = f"step {row['step']}  prompt {row['prompt_id']}  sample {row['sample']}  reward {reward} ({parts})"
    body = Text(str(row["prompt"]), style="dim")
    body.append(str(row["completion"]), style="not dim")
    if row["detail"]:
        body.append(f"\n{row['detail']}", style="red")
    foot = (
        f"{row['status']}, {row['finish']}, {row['length']} tokens, version {row['version_min']}..{row['version_max']}"
    )
    return Panel(body, title=title, subtitle=f"{foot}, answer {row['answer']}", title_align="left")


def warnings(metrics: list[dict[str, Any]]) -> list[str]:
    """What a person should look at: reward up while held-out accuracy falls, many truncated or duplicate rollouts."""
    found = []
    evaluated = [row for row in metrics if "eval/accuracy" in row]
    trained = [row for row in metrics if "reward/mean" in row]
    if len(evaluated) >= 2 and len(trained) >= 2:
        margin = evaluated[0].get("eval/accuracy_ci95", 0.0) + evaluated[-1].get("eval/accuracy_ci95", 0.0)
        drop = evaluated[0]["eval/accuracy"] - evaluated[-1]["eval/accuracy"]
        if trained[-1]["reward/mean"] > trained[0]["reward/mean"] and drop > margin:
            found.append(f"the reward rises while held-out accuracy falls by {drop:.1%}: the reward may be gamed")
    for row in trained[-1:]:
        if row.get("rollout/truncated_share", 0.0) > 0.3:
            found.append(f"{row['rollout/truncated_share']:.0%} of the last rollouts hit sampling.max_new_tokens")
        if row.get("rollout/duplicate_share", 0.0) > 0.5:
            found.append(f"{row['rollout/duplicate_share']:.0%} of the last rollouts repeat another one of their group")
        if row.get("score/error_rate", 0.0) > 0.05:
            found.append(f"{row['score/error_rate']:.0%} of the last verdicts are errors or timeouts")
    return found
