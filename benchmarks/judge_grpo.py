"""GRPO with a judge for a reward: held-out accuracy by another grader, and what the judge cost the loop.

    .venv/bin/python -m benchmarks.judge_grpo

Starts the rule-based stand-in (``examples/stand_in_judge.py``) where the recipe expects its judge, runs
``configs/recipe/judge.yaml``, and prints the curve, how often judge and `math` agreed on what was trained on, and the
seconds in which the loop waited for verdicts alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pandas as pd

from benchmarks.common import ROOT, report
from benchmarks.grpo_curve import draw, held_out, run_recipe, show
from rlplatform.configfile import load

CONFIG = ROOT / "configs" / "recipe" / "judge.yaml"
METRICS = ("eval/accuracy", "eval/greedy_accuracy", "eval/part/judge", "eval/part/format")
PANELS = ("eval/accuracy", "eval/greedy_accuracy", "reward/mean")
START_S = 60


@contextmanager
def judge(url: str) -> Iterator[None]:
    """The stand-in as a process of its own, at the address of the recipe."""
    script = [sys.executable, str(ROOT / "examples" / "stand_in_judge.py")]
    process = subprocess.Popen([*script, "--port", str(urlsplit(url).port), "--rule", "exact"])
    try:
        end = time.monotonic() + START_S
        while True:
            if process.poll() is not None:
                raise SystemExit(f"the stand-in judge ended; is the port of {url} taken?")
            try:
                urllib.request.urlopen(f"{url}/models", timeout=1).close()
                break
            except OSError:
                if time.monotonic() > end:
                    raise SystemExit(f"no judge at {url} after {START_S} s") from None
                time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(timeout=30)


def agreement(rollouts: Path) -> tuple[float, int]:
    """Share of rollouts with equal verdicts of judge and math, and how many there were."""
    frames = [pd.read_parquet(path) for path in sorted(rollouts.glob("step-*.parquet"))]
    frame = pd.concat(frames)
    pairs = pd.DataFrame([json.loads(parts) for parts in frame["parts"]])[["judge", "math"]].dropna()
    return float((pairs["judge"] == pairs["math"]).mean()), len(pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "judge-grpo")
    parser.add_argument("--image", type=Path, help="where the picture goes (default: into the run folder)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    recipe: Any = load(CONFIG)
    url = recipe.stages["rl"]["reward"]["functions"]["judge"]["args"]["base_url"]
    with judge(url):
        rows = run_recipe(CONFIG, args.out, seed=args.seed, smoke=args.smoke)
    show(rows, METRICS)
    draw(rows, PANELS, args.image or args.out / "judge_grpo.png")
    first, *_, last = held_out(rows, METRICS)
    steps = [row for row in rows if "score/critical_seconds" in row]
    waited = sum(row["score/critical_seconds"] for row in steps)
    seconds = sum(row["time/step"] - row.get("time/evaluate", 0.0) for row in steps)
    folder = Path(f"{args.out}-smoke" if args.smoke else args.out)
    share, num_rollouts = agreement(folder / "rl" / "rollouts")
    print(f"judge and math agree on {share:.2%} of {num_rollouts} rollouts")
    print(f"waited for verdicts alone: {waited:.2f} s of {seconds:.1f} s, {waited / seconds:.1%}")
    report(
        "judge_grpo",
        seed=args.seed,
        before=first,
        after=last,
        agreement=share,
        critical_seconds=waited,
        seconds=seconds,
        judge_seconds_p50=[row.get("score/seconds_p50/judge") for row in steps][-1],
        retries_a_row=sum(row.get("score/custom/judge/retries", 0.0) for row in steps) / len(steps),
    )


if __name__ == "__main__":
    main()
