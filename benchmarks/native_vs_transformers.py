"""Training tokens per second and peak memory of the native Qwen3, divided by transformers' on the same weights.

    .venv/bin/python -m benchmarks.native_vs_transformers [--shapes tiny smol moe] [--repeats 7]

A step is the cross-entropy of every token, forward and backward, in float32 on one thread, no optimiser. Arms of one
shape hold the same weights and take turns; the median of each counts, of CPU seconds: on a shared machine the wall
clock measures the neighbours.

    native          model/qwen3.py, packed rows, chunked log-probabilities
    compiled        the same with every layer under torch.compile
    packed          transformers' layers behind the same packed attention and head (model/transformers_lm.py)
    padded          transformers as it comes: rows padded to the longest, SDPA, its own loss
    eager loop      packed, with transformers' experts="eager" (a mixture of experts only; its default is grouped_mm)

Peak memory is the growth of the process's resident set over a step, each arm in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: what a rank on CPU has

import numpy as np
import torch
import transformers

from benchmarks.common import cpu_seconds, peak_resident_mib, report
from model.config import PRESETS, Qwen3Config
from model.hf import load_policy
from model.logprobs import TokenScorer
from model.qwen3 import Qwen3


@dataclass(frozen=True)
class Shape:
    config: Qwen3Config
    rows: int  # of 50 to 200 tokens


SHAPES = {
    "tiny": Shape(replace(PRESETS["tiny"], vocab_size=2048), rows=48),
    # SmolLM2-135M's sizes in Qwen3's architecture.
    "smol": Shape(
        replace(PRESETS["tiny"], hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
                num_key_value_heads=3, head_dim=64, vocab_size=49_152),
        rows=8,
    ),
    # Experts as fine as Qwen3-30B-A3B's relative to the hidden size, half as many.
    "moe": Shape(
        replace(PRESETS["tiny-moe"], hidden_size=256, num_experts=64, num_experts_per_tok=8, moe_intermediate_size=96,
                num_attention_heads=8, num_key_value_heads=2, vocab_size=2048),
        rows=24,
    ),
}  # fmt: skip


def packed_rows(shape: Shape) -> tuple[list[torch.Tensor], tuple[torch.Tensor, ...]]:
    """Random rows, and (token_ids, positions, cu_seqlens, scored) of them end to end."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(50, 201, shape.rows)
    rows = [torch.from_numpy(rng.integers(0, shape.config.vocab_size, n)) for n in lengths]
    positions = torch.cat([torch.arange(n) for n in lengths])
    cu_seqlens = torch.from_numpy(np.concatenate(([0], np.cumsum(lengths))).astype(np.int32))
    return rows, (torch.cat(rows), positions, cu_seqlens, torch.nonzero(positions)[:, 0])


def scorer_step(policy: torch.nn.Module, packed: tuple[torch.Tensor, ...]) -> Callable[[], float]:
    scorer = TokenScorer(policy)

    def step() -> float:
        logprobs, _ = scorer(*packed)[:2]
        loss = -logprobs.mean()
        loss.backward()
        scorer.zero_grad()
        return float(loss.detach())

    return step


def padded_step(folder: str, rows: list[torch.Tensor]) -> Callable[[], float]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").train()
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    labels = ids.masked_fill(mask == 0, -100)

    def step() -> float:
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        model.zero_grad()
        return float(loss.detach())

    return step


def build(arm: str, folder: str, shape: Shape) -> Callable[[], float]:
    rows, packed = packed_rows(shape)
    if arm == "padded":
        return padded_step(folder, rows)
    if arm in ("native", "compiled"):
        policy = load_policy(folder)
        return scorer_step(policy.compile_layers() if arm == "compiled" else policy, packed)
    from model.transformers_lm import load_transformers

    policy = load_transformers(
        folder, dtype=torch.float32, activation_checkpointing="none", meta=False, trust_remote_code=False
    )
    if arm == "eager loop":
        policy.hf.set_experts_implementation("eager")
    return scorer_step(policy, packed)


def arms(shape: Shape) -> list[str]:
    return ["native", "compiled", "packed", "padded", *(["eager loop"] if shape.config.is_moe else [])]


def peak_mib(arm: str, folder: str, shape_name: str) -> float:
    command = [sys.executable, "-m", "benchmarks.native_vs_transformers", "--memory", arm, folder, shape_name]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    return float(done.stdout.splitlines()[-1])


def measure_memory(arm: str, folder: str, shape_name: str) -> None:
    step = build(arm, folder, SHAPES[shape_name])
    step()  # gradients, thread pools and buffers are there before the count begins
    before = peak_resident_mib(reset=True)
    step()
    print(peak_resident_mib() - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--smoke", action="store_true", help="the tiny shape, one repeat")
    parser.add_argument("--memory", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    transformers.logging.disable_progress_bar()
    if options.memory:
        measure_memory(*options.memory)
        return
    shapes, repeats = (["tiny"], 1) if options.smoke else (options.shapes, options.repeats)
    results = {}
    for name in shapes:
        shape = SHAPES[name]
        with TemporaryDirectory() as folder:
            model = Qwen3(shape.config).init_weights(seed=0)
            model.save_pretrained(folder, model.to_checkpoint(model.hf_named_parameters()))
            tokens = len(packed_rows(shape)[1][0])
            seconds = cpu_seconds({arm: build(arm, folder, shape) for arm in arms(shape)}, repeats)
            peaks = {arm: peak_mib(arm, folder, name) for arm in arms(shape)}
        print(f"{name}: {shape.config.num_parameters() / 1e6:.1f}M parameters, {tokens} tokens a step")
        for arm, spent in seconds.items():
            ratio, speed = spent / seconds["native"], tokens / spent
            print(f"  {arm:12}{speed:>10,.0f} tokens/CPU s   native / it = {ratio:.2f}   peak {peaks[arm]:,.0f} MiB")
        results[name] = {"cpu_seconds": seconds, "peak_mib": peaks, "tokens": tokens}
    report("native_vs_transformers", results=json.loads(json.dumps(results)))


if __name__ == "__main__":
    main()
