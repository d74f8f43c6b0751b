"""The loop that supervised fine-tuning and reward models share: steps, metrics, checkpoints, export. On every rank.

    plan_steps -> micro-batches of this rank -> Objective.loss -> backward ... -> step -> metrics.jsonl, checkpoints

An ``Objective`` says what a row is and what it costs. A row is what a step takes whole: a conversation, or a pair of
them. One denominator a step, whatever the ranks and micro-batches.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from model.moe import RouterRecord
from pretrain.setup import StepConfig
from pretrain.step import count_experts, plan_steps, rank_micro_batches
from pretrain.train import Checkpoints, drop_lines_after
from rlplatform.config import ConfigError
from rlplatform.runs import RunFolder

if TYPE_CHECKING:
    import torch

    from actors.engine import TrainEngine
    from model.balance import RouterStep

SKIPPED_STEPS = "skipped_steps.jsonl"  # the row ids of steps whose gradient was not finite
STOP_WINDOW = 20  # steps that ``stop`` is shown


class Objective(Protocol):
    """What a kind of training does with its ``N`` rows."""

    @property
    def watched(self) -> str: ...  # the metric whose last values ``stop`` is shown

    @property
    def lengths(self) -> np.ndarray: ...  # int64 [N], tokens

    @property
    def ids(self) -> Sequence[Any]: ...  # [N], names a row in every report

    def fingerprint(self) -> str: ...  # changes with anything that a step could see

    def packed(
        self, rows: np.ndarray, device: torch.device | str
    ) -> tuple[torch.Tensor, ...]: ...  # token ids, positions, row boundaries, targets: what ``count_experts`` runs

    def denominator(self, rows: np.ndarray) -> int: ...  # of the loss of a step that takes ``rows``

    def loss(
        self, engine: TrainEngine, rows: np.ndarray, denominator: int, router: RouterRecord | None = None
    ) -> tuple[torch.Tensor, list[float]]: ...  # a micro-batch's share, and numbers that are summed over the step

    def metrics(self, sums: Sequence[float], rows: np.ndarray) -> dict[str, float]: ...


def train_steps(
    engine: TrainEngine,
    objective: Objective,
    config: StepConfig,
    folder: RunFolder,
    *,
    stop: Callable[[Sequence[float]], bool] = lambda recent: False,
    after_step: Callable[[Mapping[str, Any]], Mapping[str, float]] = lambda row: {},
) -> dict[str, Any]:
    """All optimiser steps from the newest checkpoint on; returns the metrics of the last one.

    ``stop`` is given the watched metric of the last ``STOP_WINDOW`` steps and ends training early. ``after_step`` is
    given a step's metrics on every rank; what it returns is added to them.
    """
    identity = {
        "seed": config.seed,
        "tokens_per_step": config.tokens_per_step,
        "shuffle": config.data.shuffle,
        "examples": objective.fingerprint(),
    }
    checkpoints = Checkpoints(folder.checkpoints, engine, config.checkpoint)
    state = checkpoints.load()
    if state is not None and state["identity"] != identity:
        raise ConfigError(
            f"the checkpoints in {folder.checkpoints} were written with {state['identity']}, this run has {identity}: "
            "the order of rows would differ; use the same data and seed, or another run_dir"
        )
    row: dict[str, Any] = {} if state is None else state["metrics"]
    seen = 0 if state is None else int(state["rows_seen"])
    tokens_seen = 0 if state is None else int(state["tokens_seen"])
    recent: list[float] = [] if state is None else list(state["recent"])  # equal on every rank, so all decide alike
    if engine.rank == 0:
        for path in (folder.metrics_file, folder.path / SKIPPED_STEPS):
            drop_lines_after(path, engine.num_steps)
    steps = plan_steps(
        objective.lengths,
        seed=config.seed,
        tokens_per_step=config.tokens_per_step,
        shuffle=config.data.shuffle,
        start=engine.num_steps,
    )
    engine.train()
    every = config.checkpoint.every
    done = stop(recent) or engine.num_steps >= config.num_steps
    while not done:
        rows = next(steps)
        row = one_step(engine, objective, rows, config, folder)
        seen, tokens_seen = seen + len(rows), tokens_seen + row["tokens"]
        row |= {"epoch": round(seen / len(objective.lengths), 4), "tokens_seen": tokens_seen}
        row |= after_step(row)
        if engine.rank == 0:
            folder.append_metrics(row)
        recent = [*recent, row[objective.watched]][-STOP_WINDOW:]
        done = stop(recent) or engine.num_steps >= config.num_steps
        if done or (every and engine.num_steps % every == 0):
            state = {
                "identity": identity,
                "rows_seen": seen,
                "tokens_seen": tokens_seen,
                "recent": recent,
                "metrics": row,
            }
            checkpoints.save(state)
    checkpoints.wait()
    return row


def one_step(
    engine: TrainEngine, objective: Objective, rows: np.ndarray, config: StepConfig, folder: RunFolder
) -> dict[str, Any]:
    """One optimiser step on ``rows``; its metrics, equal on every rank but for the time."""
    began = time.perf_counter()
    denominator = objective.denominator(rows)
    parts = my_micro_batches(engine, objective, rows, config)
    tokens = int(objective.lengths[rows].sum())
    router = _router_step(engine, objective, parts, config, num_tokens=tokens)
    sums: list[list[float]] = []
    for index, part in enumerate(parts):
        record = None if router is None else RouterRecord()
        loss, numbers = objective.loss(engine, part, denominator, record)
        sums.append(numbers)
        if router is not None:
            loss = loss + router.loss(record if len(part) else None)
        engine.backward(loss, last=index == len(parts) - 1)
    routing = {} if router is None else router.metrics()
    result = engine.step()
    totals = sum_over_ranks(engine, [sum(column) for column in zip(*sums, strict=True)])
    seconds = time.perf_counter() - began
    if result.skipped and engine.rank == 0:
        with open(folder.path / SKIPPED_STEPS, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": engine.num_steps, "rows": [objective.ids[row] for row in rows]}) + "\n")
    return {
        "step": engine.num_steps,
        **objective.metrics(totals, rows),
        "optimizer/lr": result.lr,
        "optimizer/grad_norm": result.grad_norm,
        "tokens": tokens,
        "seconds": round(seconds, 4),
        "tokens_per_s": round(tokens / seconds, 1),
        **routing,
    }


def _router_step(
    engine: TrainEngine, objective: Objective, parts: list[np.ndarray], config: StepConfig, *, num_tokens: int
) -> RouterStep | None:
    """The routers' losses of one step, expert counts taken where they must come first; None without experts."""
    from actors.router import router_losses, router_step
    from model.balance import counting_pass

    losses = router_losses(engine, config.learner, default_coef=None)
    if losses is None:
        return None
    router = router_step(engine, losses, num_tokens=num_tokens, num_micro_batches=len(parts))
    with counting_pass(engine.device):
        for part in parts if router.must_count else ():
            record = count_experts(engine, *objective.packed(part, engine.device))
            router.count(record if len(part) else None)
    return router


def my_micro_batches(
    engine: TrainEngine, objective: Objective, rows: np.ndarray, config: StepConfig
) -> list[np.ndarray]:
    """This rank's, equally many on every rank."""
    return rank_micro_batches(
        rows,
        objective.lengths,
        rank=engine.rank,
        world_size=engine.world_size,
        max_tokens=config.learner.max_tokens_per_micro_batch,
    )


def measure(engine: TrainEngine, objective: Objective, config: StepConfig) -> dict[str, float]:
    """The objective's metrics over all of its rows; changes nothing."""
    import torch

    engine.eval()
    rows = np.arange(len(objective.lengths))
    denominator = objective.denominator(rows)
    with torch.no_grad():
        sums = [
            objective.loss(engine, part, denominator)[1] for part in my_micro_batches(engine, objective, rows, config)
        ]
    engine.train()
    return objective.metrics(sum_over_ranks(engine, [sum(column) for column in zip(*sums, strict=True)]), rows)


def sum_over_ranks(engine: TrainEngine, values: Sequence[float]) -> list[float]:
    import torch
    import torch.distributed as dist

    totals = torch.tensor(values, dtype=torch.float64, device=engine.device)
    dist.all_reduce(totals)
    return [float(total) for total in totals]


def export(engine: TrainEngine, folder: RunFolder) -> None:
    """The Hugging Face folder appears whole or not at all."""
    import torch.distributed as dist

    temporary = folder.path / ".model-writing"
    engine.export(temporary)
    if engine.rank == 0:
        shutil.rmtree(folder.model, ignore_errors=True)
        os.replace(temporary, folder.model)
    dist.barrier()
