"""Supervised fine-tuning, tokens/s ÷ TRL's SFTTrainer with padding: same model, conversations and batch, in turns.

    .venv/bin/python -m benchmarks.sft_vs_trl

Ours: two ranks of one thread, packed rows. TRL's: one process of two threads, padded, its mode that keeps conversations
apart on a CPU; it lives in an environment of its own (.venv-trl, made on the first run). Both have their defaults: our
loss is of the assistant's tokens and computes logits of those alone, TRL's is of all. Tokens are those of the
conversations, padding not counted; the median step counts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: what a rank on CPU has

from benchmarks.common import ROOT, report, tiny_model
from benchmarks.grpo_vs_trl import trl_python


def ours(model: Path, rows: Path, folder: Path, args: argparse.Namespace, tokens_per_step: int) -> dict[str, Any]:
    from pretrain.sft import run_sft
    from rlplatform.config import DataConfig, LearnerConfig, ModelConfig, OptimizerConfig, SFTConfig
    from rlplatform.runs import RunFolder

    config = SFTConfig(
        run_dir=str(folder),
        num_steps=args.steps + 2,
        tokens_per_step=tokens_per_step,
        max_tokens=256,
        model=ModelConfig(str(model)),
        data=DataConfig(path=str(rows), prompt="messages"),
        optimizer=OptimizerConfig(lr=1e-3),
        learner=LearnerConfig(num_workers=2, cpus_per_worker=0.5, zero_stage=0),
    )
    run_sft(config)
    steps = RunFolder(folder).read_metrics()[2:]  # the first two warm up
    seconds, tokens = (statistics.median(row[name] for row in steps) for name in ("seconds", "tokens"))
    return {"tokens_per_s": statistics.median(row["tokens_per_s"] for row in steps), "tokens": tokens, "s": seconds}


def theirs(model: Path, rows: Path, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    command = [str(trl_python()), str(ROOT / "benchmarks" / "trl_sft.py"), "--model", str(model)]
    command += ["--rows", str(rows), "--out", str(folder), "--threads", "2"]
    command += ["--steps", str(args.steps), "--rows-per-step", str(args.rows_per_step)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "2"})
    if done.returncode:
        raise SystemExit(f"TRL's side failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rows-per-step", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()

    import ray

    from rlplatform.tasks.arithmetic import problems

    found: dict[str, list[dict[str, Any]]] = {"ours": [], "trl": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, rows = tiny_model(folder), folder / "rows.jsonl"
        made = problems(0, num_sft=4000, num_train=0, num_test=0)["sft"]
        rows.write_text("".join(json.dumps({"messages": row["messages"]}) + "\n" for row in made))
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        for repeat in range(args.repeats):
            found["trl"].append(theirs(model, rows, folder / f"trl{repeat}", args))
            step = round(found["trl"][0]["tokens_per_step"])
            found["ours"].append(ours(model, rows, folder / f"run{repeat}", args, step))
        ray.shutdown()
    speed = {arm: statistics.mean(one["tokens_per_s"] for one in own) for arm, own in found.items()}
    report("sft_vs_trl", **found, tokens_per_s=speed, ratio=speed["ours"] / speed["trl"])


if __name__ == "__main__":
    main()
