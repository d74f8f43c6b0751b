"""Held-out margin and accuracy of direct preference optimisation, with the reference and without.

    .venv/bin/python -m benchmarks.dpo_margin

configs/preference/dpo.yaml twice from the same fine-tuned model. Draws docs/images/dpo_margin.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, report
from benchmarks.findings.drawing import canvas, save

ARMS = {"dpo": "with the reference", "free": "reference-free"}


def main() -> None:
    from omegaconf import OmegaConf

    from rlplatform.configfile import load_values
    from rlplatform.pipeline import run_config
    from rlplatform.runs import RunFolder

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "dpo-margin")
    args = parser.parse_args()
    raw: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(ROOT / "configs/preference/dpo.yaml"))  # type: ignore[assignment]
    raw["stages"]["free"] = {**raw["stages"]["dpo"], "reference_free": True}
    run_config(load_values({**raw, "run_dir": str(args.out)}))
    figure, (left, right) = canvas(columns=2)
    found = {}
    for arm, label in ARMS.items():
        rows = [row for row in RunFolder(args.out / arm).read_metrics() if "heldout/dpo/margin" in row]
        steps = [row["step"] for row in rows]
        for axis, name in ((left, "margin"), (right, "accuracy")):
            axis.plot(steps, [row[f"heldout/dpo/{name}"] for row in rows], marker="o", label=label)
            axis.set_ylabel(f"held-out {name}")
            axis.set_xlabel("step")
            axis.legend()
        names = ("margin", "accuracy", "chosen_reward", "rejected_reward")
        found[arm] = {name: [round(row[f"heldout/dpo/{name}"], 4) for row in rows] for name in names} | {"step": steps}
    save(figure, ROOT / "docs" / "images" / "dpo_margin.png")
    report("dpo_margin", **found)


if __name__ == "__main__":
    main()
