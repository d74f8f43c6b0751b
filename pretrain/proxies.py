"""Many small runs in parallel: one process and one thread each, on Ray Tune. For mixtures and scaling laws.

    points ─ run_points ─► a Ray Tune trial a point ─► FOLDER/points/KEY.json      finished points are not run again
    rows   ─ train_small ─► plain PyTorch around the native model: loss of held-out rows

No DeepSpeed: a proxy fits into one process, and thousands of short runs should not pay for an engine each.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from rlplatform.config import ConfigError
from rlplatform.runs import write_atomically


class ProxyError(RuntimeError):
    """A small run failed; the message holds its error."""


@dataclass(frozen=True)
class TextRows:
    """Rows of tokens in memory; a row is made of texts that do not see each other."""

    token_ids: np.ndarray  # int32 [T]
    cu_texts: np.ndarray  # int64 [P + 1], tokens
    cu_rows: np.ndarray  # int64 [R + 1], tokens

    def __len__(self) -> int:
        return len(self.cu_rows) - 1

    def slice(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and text boundaries of the rows ``first`` to ``last - 1``."""
        start, end = int(self.cu_rows[first]), int(self.cu_rows[last])
        inside = self.cu_texts[(self.cu_texts >= start) & (self.cu_texts <= end)]
        return self.token_ids[start:end], inside - start


@dataclass(frozen=True)
class SmallRun:
    """One pass over its rows with AdamW: a linear rise, then a linear fall to a tenth."""

    architecture: Mapping[str, Any]  # as in the kind `init_model`
    vocab_size: int
    rows_per_step: int
    lr: float
    seed: int = 0
    warmup_share: float = 0.05
    weight_decay: float = 0.1


@dataclass(frozen=True)
class Trained:
    """What a small run ended with."""

    heldout: dict[str, float] = field(default_factory=dict)  # nats per target of each held-out set
    parameters: int = 0  # those of the embedding not counted
    tokens: int = 0


def train_small(run: SmallRun, rows: TextRows, heldout: Mapping[str, TextRows]) -> Trained:
    """Train a fresh model on ``rows`` in their order, once, and measure it. Equal arguments give equal numbers."""
    import torch

    from actors.engine import learning_rate
    from model.logprobs import TokenScorer
    from pretrain.step import model_inputs
    from rlplatform.config import OptimizerConfig

    torch.set_num_threads(1)
    policy = fresh_model(run)
    scorer = TokenScorer(policy)
    decayed = [p for p in policy.parameters() if p.ndim >= 2]
    others = [p for p in policy.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": run.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=run.lr, betas=(0.9, 0.95), fused=True)
    num_steps = -(-len(rows) // run.rows_per_step)
    warmup = round(run.warmup_share * num_steps)
    schedule = OptimizerConfig(lr=run.lr, warmup_steps=warmup, decay="linear", final_lr_ratio=0.1)
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(schedule, step, num_steps)
        first = step * run.rows_per_step
        inputs = model_inputs(*rows.slice(first, min(first + run.rows_per_step, len(rows))), "cpu")
        logprobs, _ = scorer(*inputs)
        optimizer.zero_grad()
        (-logprobs.mean()).backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
    return Trained(
        heldout={name: heldout_loss(scorer, texts, run.rows_per_step) for name, texts in heldout.items()},
        parameters=size_of_model(run.architecture, run.vocab_size),
        tokens=len(rows.token_ids),
    )


def fresh_model(run: SmallRun) -> Any:
    import torch

    from model.hf import allocate
    from model.qwen3 import Qwen3

    with torch.device("meta"):
        policy = Qwen3(_config(run.architecture, run.vocab_size))
    allocate(policy).init_weights(run.seed)
    return policy


def _config(architecture: Mapping[str, Any], vocab_size: int) -> Any:
    from model.init import build_config

    return replace(build_config(architecture), vocab_size=vocab_size)


def size_of_model(architecture: Mapping[str, Any], vocab_size: int) -> int:
    """Parameters, those of the embedding (and of an output matrix of its own) not counted."""
    config = _config(architecture, vocab_size)
    matrices = 1 if config.tie_word_embeddings else 2
    return int(config.num_parameters() - matrices * vocab_size * config.hidden_size)


def heldout_loss(scorer: Any, rows: TextRows, rows_at_once: int) -> float:
    """Nats per target over all rows."""
    import torch

    from pretrain.step import model_inputs

    total, count = 0.0, 0
    with torch.no_grad():
        for first in range(0, len(rows), rows_at_once):
            logprobs, _ = scorer(*model_inputs(*rows.slice(first, min(first + rows_at_once, len(rows))), "cpu"))
            total -= float(logprobs.double().sum())
            count += len(logprobs)
    return total / count


# --- many of them ---------------------------------------------------------------------------------------------------


def run_points(
    function: Callable[..., dict[str, Any]],
    points: Sequence[Mapping[str, Any]],
    folder: Path,
    *,
    shared: Mapping[str, Any],
    key: str,
    num_parallel: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """``function(**shared, **point)`` for every point, as trials of Ray Tune; the results in the points' order.

    Args:
        points: plain values; a point's results lie in ``folder/points`` under the hash of (key, point).
        shared: large arguments, put into Ray's object store once.
        key: what the results follow from beside the point.
        num_parallel: trials at a time; 0 = as many as the cluster has CPUs.

    Raises:
        ConfigError: Ray is not running here.
        ProxyError: a trial failed; those that finished stay finished.
    """
    import ray

    if not ray.is_initialized():
        raise ConfigError("Ray is not running in this process: call ray.init() before small runs start")
    paths = [folder / "points" / f"{_hash(key, point)}.json" for point in points]
    todo = [index for index, path in enumerate(paths) if not path.exists()]
    if progress is not None:
        progress(len(points) - len(todo), len(points))
    if todo:
        _tune(
            function,
            [(dict(points[index]), str(paths[index].resolve())) for index in todo],
            folder,
            shared,
            num_parallel,
        )
        if progress is not None:
            progress(len(points), len(points))
    return [json.loads(path.read_text()) for path in paths]


def _hash(key: str, point: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps([key, dict(point)], sort_keys=True).encode(), digest_size=10).hexdigest()


def _tune(
    function: Callable[..., dict[str, Any]],
    todo: Sequence[tuple[dict[str, Any], str]],
    folder: Path,
    shared: Mapping[str, Any],
    num_parallel: int,
) -> None:
    from ray import tune

    def trial(config: dict[str, Any], function: Any, shared: Mapping[str, Any], todo: Any) -> dict[str, Any]:
        point, path = todo[config["index"]]
        write_atomically(Path(path), json.dumps(function(**shared, **point)))
        return {"finished": 1}

    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(trial, function=function, shared=dict(shared), todo=list(todo)), {"cpu": 1}
        ),
        param_space={"index": tune.grid_search(list(range(len(todo))))},
        tune_config=tune.TuneConfig(max_concurrent_trials=num_parallel or None),
        run_config=tune.RunConfig(name="ray_tune", storage_path=str(folder.resolve()), verbose=0),
    )
    failed = tuner.fit().errors
    if failed:
        raise ProxyError(f"{len(failed)} of {len(todo)} small runs failed, the first with: {failed[0]}")
