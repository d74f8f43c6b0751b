"""The demo on several seeds, each with its control: the same RL run on verdicts shuffled inside each group.

    .venv/bin/python -m benchmarks.demo_seeds --seeds 0 1 2

What it should show: the warm-up ends at 30-60 % accuracy with at least 90 % format, RL alone lifts accuracy by at least
25 points, the control gains under 5, and a seed takes at most 10 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from benchmarks.common import ROOT, report
from rlplatform.config import RecipeConfig
from rlplatform.configfile import load_values
from rlplatform.pipeline import run_config
from rlplatform.smoke import shorten


def one_seed(seed: int, folder: Path, smoke: bool) -> dict[str, Any]:
    raw: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(ROOT / "configs/recipe/demo.yaml"))  # type: ignore[assignment]
    rl = raw["stages"]["rl"]
    raw["stages"]["control"] = {**rl, "reward": {**rl["reward"], "shuffle_control": True}}
    config = load_values({**raw, "seed": seed, "run_dir": str(folder / f"seed{seed}")})
    if smoke:
        config = shorten(config)
    run_config(config)
    assert isinstance(config, RecipeConfig)
    done = {name: json.loads((Path(config.run_dir) / name / "done.json").read_text()) for name in raw["stages"]}
    before, after = (done["rl"]["summary"][key] for key in ("before", "after"))
    control = done["control"]["summary"]
    gain = after["eval/accuracy"] - before["eval/accuracy"]
    return {
        "seed": seed,
        "accuracy_before_rl": before["eval/accuracy"],
        "format_before_rl": before["eval/part/format"],
        "accuracy_after_rl": after["eval/accuracy"],
        "greedy_after_rl": after["eval/greedy_accuracy"],
        "gain_points": 100 * gain,
        "control_gain_points": 100 * (control["after"]["eval/accuracy"] - control["before"]["eval/accuracy"]),
        "problems": done["rl"]["summary"]["problems"],
        "seconds": sum(stage["seconds"] for name, stage in done.items() if name != "control"),
        "sft_steps": done["sft"]["summary"]["steps"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "demo-seeds")
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    seeds = args.seeds[:1] if args.smoke else args.seeds
    rows = [one_seed(seed, args.out, args.smoke) for seed in seeds]
    for row in rows:
        print(
            f"seed {row['seed']}: {row['accuracy_before_rl']:.1%} -> {row['accuracy_after_rl']:.1%} "
            f"({row['gain_points']:+.1f} points; control {row['control_gain_points']:+.1f}), {row['seconds']:.0f} s"
        )
    report("demo_seeds", rows=rows)


if __name__ == "__main__":
    main()
