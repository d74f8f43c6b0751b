"""GRPO samples/s ÷ TRL's GRPOTrainer: same model, prompts, group size, lengths and steps, one after the other.

    .venv/bin/python -m benchmarks.grpo_vs_trl

TRL lives in an environment of its own (.venv-trl, made on the first run). Both sides skip their first step.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common import ROOT, report, tiny_model
from rlplatform.configfile import load_values
from rlplatform.launch import run_rl
from rlplatform.runs import RunFolder

TRL = ("trl==1.16.0", "torch==2.13.0", "transformers==5.19.0")


def trl_python() -> Path:
    """The interpreter of TRL's own environment."""
    python = ROOT / ".venv-trl" / "bin" / "python"
    if not python.exists():
        uv = [str(Path(sys.executable).with_name("uv"))]
        subprocess.run([*uv, "venv", "-q", "--python", sys.executable, str(ROOT / ".venv-trl")], check=True)
        from_links = ["--torch-backend", "cpu"]
        found = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
        links = [line.split("=", 1)[1].strip("'") for line in found.splitlines() if "find-links" in line]
        if links:
            from_links = [part for link in links for part in ("--find-links", link)]
        subprocess.run([*uv, "pip", "install", "-q", "--python", str(python), *from_links, *TRL], check=True)
    return python


def ours(model: Path, prompts: Path, folder: Path, args: argparse.Namespace) -> dict[str, float]:
    config = load_values(
        {
            "kind": "rl",
            "name": "bench",
            "run_dir": str(folder),
            "num_steps": args.steps + 1,
            "prompts_per_step": args.prompts_per_step,
            "group_size": args.group_size,
            "model": {"path": str(model)},
            "data": {"path": str(prompts), "chat": False, "max_prompt_tokens": 64},
            "sampling": {"max_new_tokens": args.max_new_tokens},
            "rollout": {"num_workers": 2, "cpus_per_worker": 0.5},
            "learner": {"num_workers": 2, "cpus_per_worker": 0.5, "zero_stage": 0},
            "reward": {"functions": {f"{Path(__file__).resolve()}:distinct_tokens": 1.0}},
            "optimizer": {"lr": 1e-6},
            "algorithm": {"drop_zero_variance": False},
        }
    )
    run_rl(config)  # type: ignore[arg-type]
    rows = RunFolder(folder).read_metrics()[-args.steps :]
    seconds = sum(row["time/step"] - row.get("time/save", 0.0) for row in rows)
    phases = {key: sum(row.get(key, 0.0) for row in rows) for key in ("time/generate", "time/train", "time/publish")}
    samples = args.steps * args.prompts_per_step * args.group_size
    return {"seconds": seconds, "samples_per_s": samples / seconds, **phases}


def distinct_tokens(completions: list[str], **_: object) -> list[float]:
    return [len(set(text)) / max(len(text), 1) for text in completions]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--prompts-per-step", type=int, default=8)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    if args.smoke:
        args.steps = 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = tiny_model(folder)
        prompts = folder / "prompts.jsonl"
        prompts.write_text("".join(json.dumps({"prompt": f"def f{i}(x): return"}) + "\n" for i in range(256)))
        mine = ours(model, prompts, folder / "run", args)
        command = [str(trl_python()), str(ROOT / "benchmarks" / "trl_grpo.py"), "--model", str(model)]
        command += ["--prompts", str(prompts), "--out", str(folder / "trl")]
        for option in ("steps", "prompts_per_step", "group_size", "max_new_tokens"):
            command += [f"--{option.replace('_', '-')}", str(getattr(args, option))]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"TRL's side failed:\n{done.stderr[-3000:]}")
        theirs = json.loads(done.stdout.strip().splitlines()[-1])
    report("grpo_vs_trl", ours=mine, trl=theirs, ratio=mine["samples_per_s"] / theirs["samples_per_s"])


if __name__ == "__main__":
    main()
