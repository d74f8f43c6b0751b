"""GRPO against a trained reward model, and what its answers are really worth: configs/recipe/preference.yaml.

    .venv/bin/python -m benchmarks.preference_grpo [--kl 0.1] [--plot docs/images/preference_grpo.png]

Prints proxy (the reward model's score), gold (the rule behind the preferences) and length of every held-out evaluation,
and draws them. ``--kl`` adds the same run with a KL penalty towards the model before RL.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from benchmarks.common import ROOT, report
from rlplatform.config import RecipeConfig
from rlplatform.configfile import load_values
from rlplatform.pipeline import run_config
from rlplatform.runs import RunFolder
from rlplatform.smoke import shorten

CURVES = {"eval/part/preference": "proxy", "eval/part/gold": "gold", "eval/length_mean": "length"}


def run(folder: Path, *, kl: float, seed: int, smoke: bool) -> dict[str, list[dict[str, float]]]:
    """The recipe, with a second RL stage where ``kl`` is not 0; the held-out rows of each stage."""
    raw: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(ROOT / "configs/recipe/preference.yaml"))  # type: ignore[assignment]
    if kl:
        raw["stages"]["rl_kl"] = {**raw["stages"]["rl"], "algorithm": {"kl_coef": kl}}
    config = load_values({**raw, "seed": seed, "run_dir": str(folder)})
    config = shorten(config) if smoke else config
    assert isinstance(config, RecipeConfig)
    run_config(config)
    stages = ["rl", "rl_kl"] if kl else ["rl"]
    return {stage: held_out(Path(config.run_dir) / stage) for stage in stages}


def held_out(stage: Path) -> list[dict[str, float]]:
    rows = [row for row in RunFolder(stage).read_metrics() if "eval/part/gold" in row]
    return [{"step": row["step"], **{name: row[key] for key, name in CURVES.items()}} for row in rows]


def plot(curves: Mapping[str, Sequence[Mapping[str, float]]], path: Path) -> None:
    """Proxy and gold against steps, length against steps, and gold against proxy."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
    gold_axis = axes[0].twinx()
    for (stage, rows), style in zip(curves.items(), ("-", "--"), strict=False):
        steps, proxy, gold, length = ([row[key] for row in rows] for key in ("step", "proxy", "gold", "length"))
        label = "with KL penalty" if stage == "rl_kl" else "no KL penalty"
        axes[0].plot(steps, proxy, style, color="tab:blue", marker="o", markersize=3, label=f"proxy, {label}")
        gold_axis.plot(steps, gold, style, color="tab:orange", marker="o", markersize=3, label=f"gold, {label}")
        axes[1].plot(steps, length, style, color="tab:green", marker="o", markersize=3, label=label)
        axes[2].plot(proxy, gold, style, color="tab:red", marker="o", markersize=3, label=label)
    axes[0].set(title="Held-out reward", xlabel="step", ylabel="proxy: the reward model's score")
    gold_axis.set(ylabel="gold: the rule, 0 to 1", ylim=(-0.02, 1.0))
    axes[1].set(title="Held-out length", xlabel="step", ylabel="tokens")
    axes[2].set(title="Gold against proxy", xlabel="proxy", ylabel="gold")
    lines = [*axes[0].get_lines(), *gold_axis.get_lines()]
    axes[0].legend(lines, [line.get_label() for line in lines], fontsize=8)
    for axis in axes:
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=8)
    axes[2].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "preference-grpo")
    parser.add_argument("--plot", type=Path, default=None, help="default: beside the run")
    parser.add_argument("--kl", type=float, default=0.0, help="also with this weight of the KL to the initial model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="two steps, to see that it runs")
    arguments = parser.parse_args()
    curves = run(arguments.out, kl=arguments.kl, seed=arguments.seed, smoke=arguments.smoke)
    for stage, rows in curves.items():
        print(f"\n{stage}: step   proxy    gold   length, held out")
        for row in rows:
            print(f"{row['step']:>{len(stage) + 6}.0f} {row['proxy']:+7.2f} {row['gold']:7.3f} {row['length']:8.1f}")
    plot(curves, arguments.plot or arguments.out / "preference_grpo.png")
    for stage, rows in curves.items():
        best = max(rows, key=lambda row: row["gold"])
        report("preference_grpo", stage=stage, seed=arguments.seed, first=rows[0], best_gold=best, last=rows[-1])


if __name__ == "__main__":
    main()
