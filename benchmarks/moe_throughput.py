"""A mixture of experts forward and backward: this project's grouped experts against transformers' three ways.

    .venv/bin/python -m benchmarks.moe_throughput [--hidden 256 --inner 128 --experts 64 --top-k 8 --layers 4]

The same random weights, the same packed rows, float32, one thread, no optimiser; arms take turns and the median counts,
of CPU seconds: on a shared machine the wall clock measures the neighbours.

    native       model/moe.py
    grouped_mm   transformers' Qwen3Moe as it comes: experts="grouped_mm"
    eager        transformers' loop over experts
    loop         our own loop, autograd's backward: what the tests compare with (the layer alone)

First the layer alone, then the whole model behind the same packed attention and the same head. Peak memory is what the
process's resident set grows by in the first step, its gradients and a step of a few tokens already behind it; each arm
in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: what a rank on CPU has

import torch
import transformers

from benchmarks.common import cpu_seconds, peak_resident_mib, report
from benchmarks.native_vs_transformers import Shape, packed_rows, scorer_step
from model.config import PRESETS, Qwen3Config
from model.hf import load_policy
from model.moe import MoE
from model.qwen3 import Qwen3
from model.transformers_lm import load_transformers

ARMS = {"layer": ("native", "grouped_mm", "eager", "loop"), "model": ("native", "grouped_mm", "eager")}
GOALS = {"grouped_mm": 1.0, "eager": 1.5}


def config_of(options: argparse.Namespace) -> Qwen3Config:
    return replace(
        PRESETS["tiny-moe"],
        hidden_size=options.hidden,
        moe_intermediate_size=options.inner,
        num_experts=options.experts,
        num_experts_per_tok=options.top_k,
        num_hidden_layers=options.layers,
        num_attention_heads=8,
        vocab_size=2048,
    )


def layer_step(arm: str, config: Qwen3Config, num_tokens: int) -> Callable[[], float]:
    """Forward and backward of one block on ``num_tokens`` random tokens; returns a number all arms agree on."""
    torch.manual_seed(0)
    ours = MoE(config)
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    x, direction = torch.randn(num_tokens, config.hidden_size), torch.randn(num_tokens, config.hidden_size)
    module: torch.nn.Module = ours
    if arm in ("grouped_mm", "eager"):
        from transformers.models.qwen3_moe import modeling_qwen3_moe as theirs

        settings = transformers.Qwen3MoeConfig(**config.to_hf())
        settings._experts_implementation = arm
        module = theirs.Qwen3MoeSparseMoeBlock(settings)
        module.load_state_dict(ours.state_dict())
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def forward(inputs: torch.Tensor) -> torch.Tensor:
        if arm == "native":
            return ours(inputs)[0]
        if arm == "loop":
            weights, experts, *_ = ours.gate(inputs)
            return ours.experts.loop(inputs, weights, experts)
        return module(inputs[None])[0]

    def step() -> float:
        inputs = x.detach().requires_grad_()
        loss = (forward(inputs) * direction).mean()
        loss.backward()
        module.zero_grad(set_to_none=False)
        return float(loss.detach())

    return step


def model_step(arm: str, folder: str, shape: Shape) -> Callable[[], float]:
    policy: torch.nn.Module
    if arm == "native":
        policy = load_policy(folder)
    else:
        policy = load_transformers(
            folder, dtype=torch.float32, activation_checkpointing="none", meta=False, trust_remote_code=False
        )
        policy.hf.set_experts_implementation(arm)  # type: ignore[attr-defined]
    for parameter in policy.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return scorer_step(policy, packed_rows(shape)[1])


def build(level: str, arm: str, config: Qwen3Config, folder: str, *, rows: int, tokens: int) -> Callable[[], float]:
    return layer_step(arm, config, tokens) if level == "layer" else model_step(arm, folder, Shape(config, rows))


def peak_mib(level: str, arm: str, folder: str) -> float:
    """In a fresh process with this one's arguments."""
    command = [sys.executable, "-m", "benchmarks.moe_throughput", *sys.argv[1:], "--memory", level, arm, folder]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    return float(done.stdout.splitlines()[-1])


def measure_memory(level: str, arm: str, config: Qwen3Config, folder: str, rows: int, tokens: int) -> None:
    build(level, arm, config, folder, rows=1, tokens=8)()  # libraries and thread pools
    step = build(level, arm, config, folder, rows=rows, tokens=tokens)
    before = peak_resident_mib(reset=True)
    step()
    print(peak_resident_mib() - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("hidden", 256), ("inner", 128), ("experts", 64), ("top-k", 8), ("layers", 4)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--rows", type=int, default=16, help="of 50 to 200 tokens, of the whole model")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--smoke", action="store_true", help="a small shape, one repeat, the peak of one arm")
    parser.add_argument("--memory", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.smoke:
        options.hidden, options.inner, options.experts, options.top_k, options.layers = 64, 32, 8, 2, 2
        options.rows, options.repeats = 2, 1
    transformers.logging.disable_progress_bar()
    config = config_of(options)
    tokens = len(packed_rows(Shape(config, options.rows))[1][0])
    if options.memory:
        measure_memory(*options.memory[:2], config, options.memory[2], options.rows, tokens)
        return
    results = {}
    with TemporaryDirectory() as folder:
        policy = Qwen3(config).init_weights(seed=0)
        state = policy.to_checkpoint((name, p.detach()) for name, p in policy.hf_named_parameters())
        policy.save_pretrained(Path(folder), state)
        for level, arms in ARMS.items():
            steps = {arm: build(level, arm, config, folder, rows=options.rows, tokens=tokens) for arm in arms}
            seconds = cpu_seconds(steps, options.repeats)
            peaks = {arm: peak_mib(level, arm, folder) for arm in (arms[:1] if options.smoke else arms)}
            print(f"{level}: {tokens} tokens, {config.num_experts} experts, {config.num_experts_per_tok} a token")
            print(f"  {'':12}{'CPU ms':>8}{'tokens/s':>10}{'native / it':>13}{'goal':>6}{'peak MiB':>10}")
            for arm, spent in seconds.items():
                speed, goal = spent / seconds["native"], GOALS.get(arm, "")
                peak = f"{peaks[arm]:>10,.0f}" if arm in peaks else ""
                print(
                    f"  {arm:12}{spent * 1e3:>8.0f}{tokens / spent:>10,.0f}{speed:>13.2f}{goal:>6}{peak}",
                    flush=True,
                )
            results[level] = {"seconds": seconds, "peak_mib": peaks}
    report("moe_throughput", tokens=tokens, cpu_seconds_and_peaks=results)


if __name__ == "__main__":
    main()
