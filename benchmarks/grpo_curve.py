"""Run a recipe whose last stage is GRPO, print what was held out along the way, and draw it.

    .venv/bin/python -m benchmarks.grpo_curve configs/recipe/code.yaml eval/accuracy eval/part/format eval/length_mean

One line a held-out evaluation, one panel a metric; the picture goes to ``--image``. Also shown: the share of a step's
seconds that the loop waited for verdicts alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, report
from rlplatform.config import RecipeConfig, RLConfig
from rlplatform.configfile import load
from rlplatform.pipeline import run_config
from rlplatform.runs import RunFolder
from rlplatform.smoke import shorten

Rows = Sequence[Mapping[str, Any]]


def run_recipe(config: Path, run_dir: Path, *, seed: int = 0, smoke: bool = False) -> list[dict[str, Any]]:
    """The metrics of the recipe's last RL stage, one row a step; a recipe that is finished is not run again."""
    recipe = load(config, [f"run_dir={run_dir}", f"seed={seed}"])
    if smoke:
        recipe = shorten(recipe)
    assert isinstance(recipe, RecipeConfig)
    run_config(recipe)
    stage = [name for name, values in recipe.stages.items() if values["kind"] == RLConfig.kind][-1]
    return RunFolder(Path(recipe.run_dir) / stage).read_metrics()  # --smoke has a folder of its own


def held_out(rows: Rows, metrics: Sequence[str]) -> list[dict[str, float]]:
    """Step and metrics of every row that has them all."""
    return [{name: row[name] for name in ("step", *metrics)} for row in rows if all(name in row for name in metrics)]


def show(rows: Rows, metrics: Sequence[str]) -> None:
    print("  step  " + "  ".join(metrics))
    for row in held_out(rows, metrics):
        print(f"{row['step']:6.0f}  " + "  ".join(f"{row[name]:{len(name)}.3f}" for name in metrics))


def draw(rows: Rows, metrics: Sequence[str], image: Path) -> None:
    """One panel a metric, steps below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(metrics), figsize=(4.5 * len(metrics), 3.6), layout="constrained", squeeze=False)
    for axis, name in zip(axes[0], metrics, strict=True):
        points = [row for row in rows if name in row]
        steps, values = [row["step"] for row in points], [row[name] for row in points]
        axis.plot(steps, values, marker="o" if len(points) < 15 else None)
        if name == "eval/accuracy":
            errors = [row.get("eval/accuracy_ci95", 0.0) for row in points]
            low, high = zip(*((v - e, v + e) for v, e in zip(values, errors, strict=True)), strict=True)
            axis.fill_between(steps, low, high, alpha=0.2)
        axis.set_title(name)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    image.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(image, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("metrics", nargs="+", help="columns of metrics.jsonl, e.g. eval/accuracy")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="run folder (default: runs/curve-NAME)")
    parser.add_argument("--image", type=Path, help="where the picture goes (default: into the run folder)")
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    out = args.out or ROOT / "runs" / f"curve-{args.config.stem}"
    rows = run_recipe(args.config, out, seed=args.seed, smoke=args.smoke)
    show(rows, args.metrics)
    draw(rows, args.metrics, args.image or out / "curve.png")
    first, *_, last = held_out(rows, args.metrics)
    report(f"grpo_curve {args.config.stem}", seed=args.seed, before=first, after=last)


if __name__ == "__main__":
    main()
