"""How far off is the learning rate that small models predict for a larger one?

    .venv/bin/python -m benchmarks.scaling_law

configs/recipe/scaling_law.yaml: four sizes swept and fitted, the fifth, larger than any of them, swept to hold the law
to it. What it should show: the prediction within a factor of two of its swept optimum.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from benchmarks.common import ROOT, report

RECIPE = ROOT / "configs/recipe/scaling_law.yaml"


def main() -> None:
    from omegaconf import OmegaConf

    from rlplatform.configfile import load_values
    from rlplatform.pipeline import run_config

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "scaling-law")
    args = parser.parse_args()
    raw = OmegaConf.to_container(OmegaConf.load(RECIPE))
    run_config(load_values({**raw, "seed": args.seed, "run_dir": str(args.out)}))  # type: ignore[dict-item]
    law = json.loads((args.out / "law" / "law.json").read_text())
    shutil.copy(args.out / "law" / "scaling.png", ROOT / "docs" / "images" / "scaling_law.png")
    (check,) = law["checks"]
    report(
        "scaling_law",
        parameters=law["parameters"],
        optima={one["size"]: one["value"] for one in law["optima"]},
        at_edge=[one["size"] for one in law["optima"] if one["at_edge"]],
        exponents=law["laws"]["lr"]["exponents"],
        residuals=law["laws"]["lr"]["residuals"],
        predicted=check["predicted"],
        ratio=check["ratio"],
        seconds=json.loads((args.out / "law" / "done.json").read_text())["seconds"],
    )


if __name__ == "__main__":
    main()
