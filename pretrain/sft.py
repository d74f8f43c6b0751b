"""Supervised fine-tuning: messages in, a Hugging Face folder out. Ray Train runs the ranks, DeepSpeed the steps.

    driver: rows -> Examples (checked, masked) -> Ray's object store -> every rank
    rank:   plan_steps -> its micro-batches -> backward ... -> step -> metrics.jsonl, checkpoints -> model/

The loss is the mean over all targets of the step: one denominator, whatever the ranks and micro-batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from model.moe import RouterRecord
from pretrain.examples import Examples, load_examples
from pretrain.loop import STOP_WINDOW, export, measure, train_steps
from pretrain.setup import TrainingResult, engine_for, fit, model_options, prepare, received, write_dropped
from pretrain.step import micro_batch_loss, packed
from rlplatform.config import SFTConfig

if TYPE_CHECKING:
    import torch

    from actors.engine import TrainEngine


def run_sft(
    config: SFTConfig,
    *,
    rows: Iterable[Mapping[str, Any]] | None = None,
    heldout_rows: Iterable[Mapping[str, Any]] | None = None,
    stop_at_probability: float = 0.0,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> TrainingResult:
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
    began = time.perf_counter()
    folder, tokenizer = prepare(config)
    reading: dict[str, Any] = {
        "completion": config.completion,
        "history": config.history,
        "max_tokens": config.max_tokens,
    }
    examples, dropped = load_examples(config.data, tokenizer, rows=rows, **reading)
    write_dropped(folder, dropped, num_kept=len(examples), why=f"are longer than {config.max_tokens} tokens")
    heldout = None
    if heldout_rows is not None:
        heldout, _ = load_examples(config.data, tokenizer, rows=heldout_rows, **reading)
    trained = fit(
        sft_worker,
        config,
        folder,
        rows=examples,
        heldout=heldout,
        progress=progress,
        stop_at_probability=stop_at_probability,
    )
    summary = {
        "rows": len(examples),
        "dropped_rows": len(dropped),
        **trained,
        "seconds": round(time.perf_counter() - began, 1),
    }
    folder.save_json("summary.json", summary)
    return TrainingResult(folder.model, folder.metrics_file, summary)


# --- on every rank --------------------------------------------------------------------------------------------------


def sft_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """Build the engine, continue where a checkpoint stands, train, measure, export."""
    import ray.train

    from model.hf import load_policy
    from model.logprobs import TokenScorer

    config: SFTConfig = settings["config"]
    folder, examples, heldout = received(settings)
    engine = engine_for(TokenScorer(load_policy(settings["model_path"], **model_options(config))), config)
    threshold: float = settings["stop_at_probability"]

    def able(recent: Sequence[float]) -> bool:
        return threshold > 0 and len(recent) == STOP_WINDOW and sum(recent) / STOP_WINDOW >= threshold

    chunk_tokens = config.learner.logprob_chunk_tokens
    row = train_steps(engine, NextToken(examples, chunk_tokens), config, folder, stop=able)
    summary = {
        "steps": engine.num_steps,
        "loss": row["loss"],
        "target_probability": row["target_probability"],
        "skipped_steps": engine.num_skipped,
    }
    if heldout is not None:
        summary |= {
            f"heldout_{name}": value
            for name, value in measure(engine, NextToken(heldout, chunk_tokens), config).items()
            if name != "loss_tokens"
        }
    export(engine, folder)
    ray.train.report(summary)
    return summary


@dataclass(frozen=True)
class NextToken:
    """Cross-entropy of the targets (``pretrain.loop.Objective``); a row is a conversation."""

    examples: Examples
    chunk_tokens: int
    watched: str = "target_probability"

    @property
    def lengths(self) -> np.ndarray:
        return self.examples.lengths

    @property
    def ids(self) -> tuple[str, ...]:
        return self.examples.ids

    def fingerprint(self) -> str:
        return self.examples.fingerprint()

    def packed(self, rows: np.ndarray, device: torch.device | str) -> tuple[torch.Tensor, ...]:
        return packed(self.examples, rows, device)

    def denominator(self, rows: np.ndarray) -> int:
        return int(self.examples.loss_tokens[rows].sum())

    def loss(
        self, engine: TrainEngine, rows: np.ndarray, denominator: int, router: RouterRecord | None = None
    ) -> tuple[torch.Tensor, list[float]]:
        loss, probabilities = micro_batch_loss(
            engine,
            self.examples,
            rows,
            denominator=denominator,
            device=engine.device,
            chunk_tokens=self.chunk_tokens,
            router=router,
        )
        return loss, [float(loss.detach()), float(probabilities.sum())]

    def metrics(self, sums: Sequence[float], rows: np.ndarray) -> dict[str, float]:
        loss, probability = sums
        return {
            "loss": loss,
            "target_probability": probability / len(rows),
            "loss_tokens": self.denominator(rows),
        }
