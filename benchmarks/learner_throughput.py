"""Trained tokens per second of the learner's engine, divided by a bare torch loop on the same packed tokens.

    .venv/bin/python -m benchmarks.learner_throughput [--model FOLDER] [--stages 0 1 2 3]

One process, one thread, one model, the same micro-batches of short rows (128 of 50 to 80 tokens). "Bare" is the loop
one would write by hand: the same packed forward, the plain log-softmax over all tokens, clip_grad_norm_, AdamW. Bare
and engine alternate and the median of each is taken, so that a busy machine disturbs both alike. A second table shows
what a step costs beside the arithmetic: one row of 8 tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: what a rank on CPU has

import numpy as np
import torch
import transformers

from actors.engine import TrainEngine
from actors.micro_batch import MicroBatch
from actors.step_losses import policy_loss
from actors.training_process import init_process_group
from benchmarks.common import report, tiny_model
from model.hf import load_policy
from model.logprobs import TokenScorer
from rlplatform.config import AlgorithmConfig, LearnerConfig, OptimizerConfig
from rlplatform.types import RolloutBatch, TrainBatch


def batch_of(lengths: np.ndarray, vocabulary: int) -> TrainBatch:
    """Random rows, a third of each the prompt."""
    rng = np.random.default_rng(0)
    total = int(lengths.sum())
    positions = np.concatenate([np.arange(n) for n in lengths])
    mask = positions >= np.repeat(np.maximum(lengths // 3, 1), lengths)
    batch = RolloutBatch(
        token_ids=rng.integers(0, vocabulary, total).astype(np.int32),
        cu_seqlens=np.concatenate(([0], np.cumsum(lengths))).astype(np.int32),
        loss_mask=mask,
        rollout_logprobs=np.where(mask, np.float32(-7.6), np.float32(0.0)),
        advantages=np.where(mask, rng.normal(size=total), 0.0).astype(np.float32),
        rewards=np.zeros(len(lengths), dtype=np.float32),
        group_ids=np.zeros(len(lengths), dtype=np.int32),
        oldest_version=0,
    )
    return TrainBatch(batch, None, None)


def bare_step(model: str, batch: TrainBatch) -> Callable[[], None]:
    """REINFORCE by hand on the packed tokens."""
    policy = load_policy(model)
    policy.train()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)
    micro_batch = MicroBatch.of(batch, range(batch.batch.num_rows), torch.device("cpu"))

    def step() -> None:
        hidden = policy(micro_batch.token_ids, micro_batch.positions, micro_batch.cu_seqlens)
        log_p = torch.log_softmax(hidden @ policy.lm_head_weight.T, dim=-1)
        logprobs = log_p[micro_batch.scored - 1].gather(1, micro_batch.token_ids[micro_batch.scored, None])[:, 0]
        loss = -(micro_batch.advantages * logprobs).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def engine_step(model: str, batch: TrainBatch, stage: int) -> Callable[[], None]:
    """What one rank does in LearnerWorker.update: plan in, metrics out."""
    engine = TrainEngine(
        TokenScorer(load_policy(model)),
        OptimizerConfig(lr=1e-4),
        LearnerConfig(zero_stage=stage),  # type: ignore[arg-type]
        dtype="float32",
        num_optimizer_steps=1000,
    )
    engine.train()
    algorithm = AlgorithmConfig()

    def step() -> None:
        micro_batch = MicroBatch.of(batch, range(batch.batch.num_rows), engine.device)
        logprobs, entropy = engine(*micro_batch.forward_arguments, with_entropy=True)
        loss, sums = policy_loss(logprobs, entropy, micro_batch, algorithm, float(batch.batch.num_loss_tokens))
        torch.stack([value.double() for value in sums.values()]).tolist()
        engine.backward(loss, last=True)
        engine.step()

    return step


def seconds(steps: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Median seconds of each step, taken in turns after one warm-up."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 1):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            if repeat:
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="a Hugging Face folder; default: a random Qwen3 of 1M parameters")
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 1, 2, 3], help="ZeRO stages")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--smoke", action="store_true", help="a few rows, one repeat")
    options = parser.parse_args()
    rows, repeats = (4, 1) if options.smoke else (options.rows, options.repeats)
    transformers.logging.disable_progress_bar()
    init_process_group(0, 1, "127.0.0.1", free_port(), timeout_s=60, use_gpu=False)
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or str(tiny_model(Path(folder)))
        vocabulary = json.loads((Path(model) / "config.json").read_text())["vocab_size"]
        results = {}
        for title, lengths in (
            ("throughput", np.random.default_rng(1).integers(50, 81, rows)),
            ("overhead", np.array([8])),
        ):
            batch = batch_of(lengths, vocabulary)
            steps = {"bare": bare_step(model, batch)}
            steps |= {f"zero{stage}": engine_step(model, batch, stage) for stage in options.stages}
            results[title] = (int(lengths.sum()), seconds(steps, repeats))
    tokens, times = results["throughput"]
    print(f"{'':8}{'tokens/s':>10}{'/ bare':>8}{'ms beside the arithmetic':>28}")
    for name, spent in times.items():
        beside = (results["overhead"][1][name] - results["overhead"][1]["bare"]) * 1e3
        print(f"{name:8}{tokens / spent:>10,.0f}{times['bare'] / spent:>8.2f}{beside:>28.1f}")
    report("learner_throughput", tokens=tokens, seconds={name: round(spent, 4) for name, spent in times.items()})
    torch.distributed.destroy_process_group()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    main()
