"""Trained tokens per second of the kind ``pretrain`` on two ranks, divided by bare torch DDP on the same rows.

    .venv/bin/python -m benchmarks.pretrain_throughput

Bare is what one would write by hand: the same model and packed rows in memory, DistributedDataParallel over gloo, plain
cross-entropy, clip_grad_norm_, fused AdamW. Ours is the whole stage: Ray Train, DeepSpeed, memory-mapped rows, the
loss of every source, metrics. Two ranks with one thread each, in turns, the median step of each counts. The share of
data loading is the time that opening rows and laying out their tensors takes, of one of our steps.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: what a rank on CPU has

from benchmarks.common import report, tiny_model

RANKS = 2


def packed(folder: Path, model: Path, row_tokens: int) -> Path:
    import ray

    from pretrain.data.document import document, write_shards
    from pretrain.data.tokens import TokenSettings, write_tokens
    from rlplatform.tasks.corpus import documents

    made = documents(0, num_sums=2000, num_stories=4000, num_facts=4000, num_long=1)
    rows = [
        document(name, row["id"], f"made:{row['id']}", row["text"])
        for name in ("sums", "stories", "facts")
        for row in made[name]
    ]
    write_shards(rows, folder / "documents", per_shard=5000)
    ray.init(address="local", num_cpus=RANKS, include_dashboard=False, log_to_driver=False)
    write_tokens(folder / "documents", folder / "tokens", str(model), TokenSettings(row_tokens=row_tokens))
    return folder / "tokens"


def ours(folder: Path, model: Path, tokens: Path, args: argparse.Namespace) -> list[float]:
    """Seconds of every step but the first two."""
    from pretrain.pretraining import run_pretraining
    from rlplatform.config import LearnerConfig, ModelConfig, OptimizerConfig, PackedDataConfig, PretrainConfig
    from rlplatform.runs import RunFolder

    config = PretrainConfig(
        run_dir=str(folder),
        num_tokens=args.steps * args.tokens_per_step,
        tokens_per_step=args.tokens_per_step,
        model=ModelConfig(str(model)),
        data=PackedDataConfig(tokens=str(tokens)),
        optimizer=OptimizerConfig(lr=1e-3),
        learner=LearnerConfig(num_workers=RANKS, cpus_per_worker=0.5, zero_stage=0),
    )
    run_pretraining(config)
    return [row["seconds"] for row in RunFolder(folder).read_metrics()][2:]


def bare_rank(rank: int, port: int, model: str, tokens: str, steps: int, tokens_per_step: int, queue: Any) -> None:
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    from model.hf import load_policy
    from pretrain.data.token_store import TokenStore
    from pretrain.step import model_inputs, plan_steps, rank_micro_batches

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=RANKS)
    policy = load_policy(model)
    policy.train()
    head = policy.lm_head_weight

    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.policy = policy

        def forward(self, ids: Any, positions: Any, bounds: Any, targets: Any) -> torch.Tensor:
            hidden = self.policy(ids, positions, bounds)
            logits = hidden[targets - 1] @ head.T
            return torch.nn.functional.cross_entropy(logits, ids[targets])

    module = DistributedDataParallel(Loss())
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3, betas=(0.9, 0.95), fused=True)
    store = TokenStore(Path(tokens))
    plan = plan_steps(store.lengths, seed=0, tokens_per_step=tokens_per_step, shuffle=True)
    batches = []
    for _ in range(steps):
        parts = rank_micro_batches(next(plan), store.lengths, rank=rank, world_size=RANKS, max_tokens=1 << 20)
        batch = store.read(parts[0])
        batches.append(model_inputs(batch.token_ids, batch.cu_pieces, "cpu"))
    seconds = []
    for batch in batches:
        began = time.perf_counter()
        module(*batch).backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - began)
    if rank == 0:
        queue.put(seconds[2:])
    dist.destroy_process_group()


def bare(model: Path, tokens: Path, args: argparse.Namespace) -> list[float]:
    import torch.multiprocessing as mp

    from benchmarks.learner_throughput import free_port

    context = mp.get_context("spawn")
    queue = context.Queue()
    arguments = (free_port(), str(model), str(tokens), args.steps, args.tokens_per_step, queue)
    processes = [context.Process(target=bare_rank, args=(rank, *arguments)) for rank in range(RANKS)]
    for process in processes:
        process.start()
    found: list[float] = queue.get(timeout=600)
    for process in processes:
        process.join()
    return found


def loading_seconds(tokens: Path, args: argparse.Namespace) -> float:
    """Median seconds that one rank's rows of a step take to become tensors."""
    from pretrain.data.token_store import TokenStore
    from pretrain.step import model_inputs, plan_steps, rank_micro_batches

    store = TokenStore(tokens)
    plan = plan_steps(store.lengths, seed=0, tokens_per_step=args.tokens_per_step, shuffle=True)
    times = []
    for _ in range(args.steps):
        began = time.perf_counter()
        rows = next(plan)
        for part in rank_micro_batches(rows, store.lengths, rank=0, world_size=RANKS, max_tokens=8192):
            batch = store.read(part)
            model_inputs(batch.token_ids, batch.cu_pieces, "cpu")
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--tokens-per-step", type=int, default=8192)
    parser.add_argument("--row-tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()

    import ray

    seconds: dict[str, list[float]] = {"ours": [], "bare": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = tiny_model(folder)
        tokens = packed(folder, model, args.row_tokens)
        for repeat in range(args.repeats):
            seconds["bare"] += bare(model, tokens, args)
            seconds["ours"] += ours(folder / f"run{repeat}", model, tokens, args)
        loading = loading_seconds(tokens, args)
        ray.shutdown()
    median = {arm: statistics.median(times) for arm, times in seconds.items()}
    report(
        "pretrain_throughput",
        tokens_per_s={arm: round(args.tokens_per_step / spent) for arm, spent in median.items()},
        ratio=median["bare"] / median["ours"],
        loading_share=loading / median["ours"],
        tokens_per_step=args.tokens_per_step,
        row_tokens=args.row_tokens,
    )


if __name__ == "__main__":
    main()
