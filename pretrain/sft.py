"""Supervised fine-tuning: messages in, a Hugging Face folder out. Ray Train runs the ranks, DeepSpeed the steps.

    driver: rows -> Examples (checked, masked) -> Ray's object store -> every rank
    rank:   plan_steps -> its micro-batches -> backward ... -> step -> metrics.jsonl, checkpoints -> model/

The loss is the mean over all targets of the step: one denominator, whatever the ranks and micro-batches.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from model.moe import RouterRecord
from pretrain.examples import Examples, load_examples
from pretrain.step import count_experts, micro_batch_loss, plan_steps, rank_micro_batches
from pretrain.train import drop_metrics_after, load_checkpoint, run_on_ray_train, save_checkpoint
from rlplatform.config import ConfigError, SFTConfig
from rlplatform.runs import RunFolder, write_atomically
from rlplatform.servable import check_positions, tokenizer_of

if TYPE_CHECKING:
    from actors.engine import TrainEngine
    from model.balance import RouterStep

LOGGER = logging.getLogger(__name__)
GET_TIMEOUT_S = 300.0  # examples, from Ray's object store
DROPPED_ROWS = "dropped_rows.jsonl"
STOP_WINDOW = 20  # steps whose mean ``stop_at_probability`` is compared with
SKIPPED_STEPS = "skipped_steps.jsonl"  # the row ids of steps whose gradient was not finite


@dataclass(frozen=True)
class SFTResult:
    model: Path  # the exported Hugging Face folder
    metrics_file: Path
    summary: Mapping[str, Any] = field(default_factory=dict)  # rows, dropped, steps, loss, heldout_loss, seconds, ...


def run_sft(
    config: SFTConfig,
    *,
    rows: Iterable[Mapping[str, Any]] | None = None,
    heldout_rows: Iterable[Mapping[str, Any]] | None = None,
    stop_at_probability: float = 0.0,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> SFTResult:
    """Train ``config.model.path`` on the dataset of ``config.data``, or on ``rows`` of the same columns.

    Per-step metrics go to ``metrics.jsonl`` in ``config.run_dir``: ``step`` (1 after the first optimiser step),
    ``loss`` (nats per target, mean over the step, without the routers' losses), ``target_probability``,
    ``optimizer/lr``, ``optimizer/grad_norm``, ``tokens``, ``loss_tokens``, ``seconds``, ``tokens_per_s``, ``epoch``,
    with experts ``router/...`` (docs/moe.md); ``progress`` is given each of them. Rows longer than
    ``config.max_tokens`` are left out and listed in ``dropped_rows.jsonl``. A run that was killed continues from its
    newest complete checkpoint. Needs ``ray.init()`` before.

    ``target_probability`` is the mean over the step's rows of the probability that sampling at temperature 1 gives
    exactly the row's target: where rows are not repeated, an estimate of held-out accuracy from below that costs
    nothing. With ``stop_at_probability`` > 0 training ends early, once its mean over ``STOP_WINDOW`` steps is that
    high: so a warm-up ends at a chosen ability, not at a chosen step.

    Raises:
        DataError: the rows cannot be used; no worker was started.
        ConfigError: no tokenizer, the cluster is too small, or the checkpoint belongs to other data.
        RunStopped: too many steps in a row with a gradient that is not finite.
        TrainingError: more worker failures than ``config.max_failures``.
    """
    import ray

    began = time.perf_counter()
    if not config.model.path:
        raise ConfigError("model.path: expected a Hugging Face folder or hub id to train, got nothing")
    check_positions(config.model.path, config.model)
    folder = RunFolder(config.run_dir)
    folder.path.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_of(config.model.path, trust_remote_code=config.model.trust_remote_code)
    limits: dict[str, Any] = {"completion": config.completion, "max_tokens": config.max_tokens}
    examples, dropped = load_examples(config.data, tokenizer, rows=rows, **limits)
    write_atomically(folder.path / DROPPED_ROWS, "".join(json.dumps(row) + "\n" for row in dropped))
    if dropped:
        LOGGER.warning(
            "%d of %d rows are longer than %d tokens and are left out; see %s",
            len(dropped),
            len(examples) + len(dropped),
            config.max_tokens,
            folder.path / DROPPED_ROWS,
        )
    heldout = None
    if heldout_rows is not None:
        heldout, _ = load_examples(config.data, tokenizer, rows=heldout_rows, **limits)
    trained = run_on_ray_train(
        sft_worker,
        {
            "config": config,
            "folder": str(folder.path.resolve()),
            "model_path": _absolute(config.model.path),
            "examples": ray.put(examples),
            "heldout": None if heldout is None else ray.put(heldout),
            "stop_at_probability": stop_at_probability,
        },
        folder=folder,
        learner=config.learner,
        max_failures=config.max_failures,
        progress=progress,
    )
    summary = {
        "rows": len(examples),
        "dropped_rows": len(dropped),
        **trained,
        "seconds": round(time.perf_counter() - began, 1),
    }
    folder.save_json("summary.json", summary)
    return SFTResult(folder.model, folder.metrics_file, summary)


def _absolute(path: str) -> str:
    """A worker's working directory is not the driver's; a hub id stays what it is."""
    return str(Path(path).resolve()) if Path(path).is_dir() else path


# --- on every rank --------------------------------------------------------------------------------------------------


def sft_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """Build the engine, continue where a checkpoint stands, train, measure, export."""
    import ray
    import ray.train

    from actors.engine import TrainEngine
    from model.hf import load_policy
    from model.logprobs import TokenScorer

    config: SFTConfig = settings["config"]
    folder = RunFolder(settings["folder"])
    examples: Examples = ray.get(settings["examples"], timeout=GET_TIMEOUT_S)
    policy = load_policy(
        settings["model_path"],
        dtype=config.model.dtype,
        activation_checkpointing=config.learner.activation_checkpointing,
        trust_remote_code=config.model.trust_remote_code,
        rope=config.model.rope,
    )
    engine = TrainEngine(
        TokenScorer(policy),
        config.optimizer,
        config.learner,
        dtype=config.model.dtype,
        num_optimizer_steps=config.num_steps,
        seed=config.seed,
    )
    row = train_steps(engine, examples, config, folder, stop_at_probability=settings["stop_at_probability"])
    summary = {
        "steps": engine.num_steps,
        "loss": row["loss"],
        "target_probability": row["target_probability"],
        "skipped_steps": engine.num_skipped,
    }
    if settings["heldout"] is not None:
        heldout = ray.get(settings["heldout"], timeout=GET_TIMEOUT_S)
        summary |= {f"heldout_{name}": value for name, value in measure(engine, heldout, config).items()}
    export(engine, folder)
    ray.train.report(summary)
    return summary


def train_steps(
    engine: TrainEngine, examples: Examples, config: SFTConfig, folder: RunFolder, *, stop_at_probability: float = 0.0
) -> dict[str, Any]:
    """All optimiser steps from the newest checkpoint on; returns the metrics of the last one."""
    identity = {
        "seed": config.seed,
        "tokens_per_step": config.tokens_per_step,
        "shuffle": config.data.shuffle,
        "examples": examples.fingerprint(),
    }
    state = load_checkpoint(folder.checkpoints, engine)
    if state is not None and state["identity"] != identity:
        raise ConfigError(
            f"the checkpoints in {folder.checkpoints} were written with {state['identity']}, this run has {identity}: "
            "the order of rows would differ; use the same data and seed, or another run_dir"
        )
    row: dict[str, Any] = {} if state is None else state["metrics"]
    seen = 0 if state is None else int(state["rows_seen"])
    recent: list[float] = [] if state is None else list(state["recent"])  # target_probability of the last steps
    if engine.rank == 0:
        drop_metrics_after(folder, engine.num_steps)
    steps = plan_steps(
        examples.lengths,
        seed=config.seed,
        tokens_per_step=config.tokens_per_step,
        shuffle=config.data.shuffle,
        start=engine.num_steps,
    )
    engine.train()
    every = config.checkpoint.every
    done = _finished(engine, config, recent, stop_at_probability)
    while not done:
        rows = next(steps)
        seen += len(rows)
        row = {**one_step(engine, examples, rows, config, folder), "epoch": round(seen / len(examples), 4)}
        if engine.rank == 0:
            folder.append_metrics(row)
        recent = [*recent, row["target_probability"]][-STOP_WINDOW:]
        done = _finished(engine, config, recent, stop_at_probability)
        if done or (every and engine.num_steps % every == 0):
            state = {"identity": identity, "rows_seen": seen, "recent": recent, "metrics": row}
            save_checkpoint(folder.checkpoints, engine, state=state, keep_last=config.checkpoint.keep_last)
    return row


def _finished(engine: TrainEngine, config: SFTConfig, recent: list[float], stop_at_probability: float) -> bool:
    """``recent`` is equal on every rank, so every rank decides alike."""
    able = stop_at_probability > 0 and len(recent) == STOP_WINDOW and sum(recent) / STOP_WINDOW >= stop_at_probability
    return able or engine.num_steps >= config.num_steps


def one_step(
    engine: TrainEngine, examples: Examples, rows: np.ndarray, config: SFTConfig, folder: RunFolder
) -> dict[str, Any]:
    """One optimiser step on ``rows``; its metrics, equal on every rank but for the time."""
    began = time.perf_counter()
    denominator = int(examples.loss_tokens[rows].sum())
    parts = _my_micro_batches(engine, examples, rows, config)
    tokens = int(examples.lengths[rows].sum())
    router = _router_step(engine, examples, parts, config, num_tokens=tokens)
    total, probability = 0.0, 0.0
    for index, part in enumerate(parts):
        record = None if router is None else RouterRecord()
        loss, probabilities = _loss(engine, examples, part, denominator, config, record)
        total += float(loss.detach())
        if router is not None:
            loss = loss + router.loss(record if len(part) else None)
        engine.backward(loss, last=index == len(parts) - 1)
        probability += float(probabilities.sum())
    routing = {} if router is None else router.metrics()
    result = engine.step()
    loss_mean, probability = _sum_over_ranks(engine, total, probability)
    seconds = time.perf_counter() - began
    if result.skipped and engine.rank == 0:
        with open(folder.path / SKIPPED_STEPS, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": engine.num_steps, "rows": [examples.ids[row] for row in rows]}) + "\n")
    return {
        "step": engine.num_steps,
        "loss": loss_mean,
        "target_probability": probability / len(rows),
        "optimizer/lr": result.lr,
        "optimizer/grad_norm": result.grad_norm,
        "tokens": tokens,
        "loss_tokens": denominator,
        "seconds": round(seconds, 4),
        "tokens_per_s": round(tokens / seconds, 1),
        **routing,
    }


def _router_step(
    engine: TrainEngine, examples: Examples, parts: list[np.ndarray], config: SFTConfig, *, num_tokens: int
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
            record = count_experts(engine, examples, part, device=engine.device)
            router.count(record if len(part) else None)
    return router


def measure(engine: TrainEngine, examples: Examples, config: SFTConfig) -> dict[str, float]:
    """``loss``, nats per target over all rows, and ``target_probability``; changes nothing."""
    import torch

    engine.eval()
    parts = _my_micro_batches(engine, examples, np.arange(len(examples)), config)
    denominator = int(examples.loss_tokens.sum())
    total, probability = 0.0, 0.0
    with torch.no_grad():
        for part in parts:
            loss, probabilities = _loss(engine, examples, part, denominator, config)
            total += float(loss)
            probability += float(probabilities.sum())
    engine.train()
    total, probability = _sum_over_ranks(engine, total, probability)
    return {"loss": total, "target_probability": probability / len(examples)}


def export(engine: TrainEngine, folder: RunFolder) -> None:
    """The Hugging Face folder appears whole or not at all."""
    import torch.distributed as dist

    temporary = folder.path / ".model-writing"
    engine.export(temporary)
    if engine.rank == 0:
        shutil.rmtree(folder.model, ignore_errors=True)
        os.replace(temporary, folder.model)
    dist.barrier()


def _my_micro_batches(engine: TrainEngine, examples: Examples, rows: np.ndarray, config: SFTConfig) -> list[np.ndarray]:
    return rank_micro_batches(
        rows,
        examples.lengths,
        rank=engine.rank,
        world_size=engine.world_size,
        max_tokens=config.learner.max_tokens_per_micro_batch,
    )


def _loss(
    engine: TrainEngine,
    examples: Examples,
    rows: np.ndarray,
    denominator: int,
    config: SFTConfig,
    router: RouterRecord | None = None,
) -> Any:
    return micro_batch_loss(
        engine,
        examples,
        rows,
        denominator=denominator,
        device=engine.device,
        chunk_tokens=config.learner.logprob_chunk_tokens,
        router=router,
    )


def _sum_over_ranks(engine: TrainEngine, *values: float) -> list[float]:
    import torch
    import torch.distributed as dist

    totals = torch.tensor(values, dtype=torch.float64, device=engine.device)
    dist.all_reduce(totals)
    return [float(total) for total in totals]
