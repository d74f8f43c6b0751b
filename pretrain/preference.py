"""A reward model from preferences: pairs in, a Hugging Face folder with a scalar head and a held-out report out.

    driver: rows -> Pairs (checked, rendered) -> Ray's object store -> every rank
    rank:   pretrain/loop.py with the Bradley-Terry loss -> model/, results.json, report/

Pairs are never split over ranks or micro-batches, and the loss is the mean over all pairs of the step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from model.moe import RouterRecord
from pretrain.loop import export, my_micro_batches, train_steps
from pretrain.preference_data import PairColumns, Pairs, held_out, load_pairs
from pretrain.preference_step import members, micro_batch_pair_loss, pair_scores
from pretrain.setup import TrainingResult, engine_for, fit, model_options, prepare, received, write_dropped
from pretrain.step import packed
from rlplatform.config import PreferenceConfig
from rlplatform.datafiles import DataError
from rlplatform.preference_report import pair_report, write_report
from rlplatform.preference_text import RewardText

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from actors.engine import TrainEngine


def run_preference(
    config: PreferenceConfig,
    *,
    rows: Iterable[Mapping[str, Any]] | None = None,
    heldout_rows: Iterable[Mapping[str, Any]] | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> TrainingResult:
    """Train a scalar head and the backbone ``config.model.path``, or go on with a reward model that is there.

    Per-step metrics: ``loss`` (nats a pair, with margin and centring), ``preference/...``, those of supervised
    training (``optimizer/...``, ``tokens``, ``seconds``), and ``eval/pair_...`` every ``config.evaluate_every`` steps.
    Pairs that are too long or hold the same answer twice are listed in ``dropped_rows.jsonl``. A run that was killed
    continues from its newest complete checkpoint. Needs ``ray.init()`` before.

    Raises:
        DataError: the rows cannot be used; no worker was started.
        ConfigError: no tokenizer, the cluster is too small, or the checkpoint belongs to other data.
        RunStopped: too many steps in a row with a gradient that is not finite.
        TrainingError: more worker failures than ``config.max_failures``.
    """
    began = time.perf_counter()
    folder, tokenizer = prepare(config)
    pairs, heldout, dropped = both_splits(config, tokenizer, rows, heldout_rows)
    write_dropped(folder, dropped, num_kept=len(pairs), why=f"are equal or longer than {config.max_tokens} tokens")
    trained = fit(preference_worker, config, folder, rows=pairs, heldout=heldout, progress=progress)
    scores = np.array(trained.pop("scores"), dtype=np.float64)
    summary = {"rows": len(pairs), "dropped_rows": len(dropped), **trained}
    if heldout is not None:
        tokens = heldout.completion_tokens.reshape(-1, 2)
        summary["heldout"] = pair_report(scores, tokens)
        write_report(folder, summary["heldout"], scores, tokens)
    summary["seconds"] = round(time.perf_counter() - began, 1)
    folder.save_json("results.json", summary)
    return TrainingResult(folder.model, folder.metrics_file, summary)


def text_of(config: PreferenceConfig) -> RewardText:
    """How this run writes conversations; kept in the model's folder for serving."""
    return RewardText(
        thoughts=config.thoughts,
        enable_thinking=config.data.enable_thinking,
        system=config.data.system,
        max_tokens=config.max_tokens,
    )


def both_splits(
    config: PreferenceConfig,
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[Mapping[str, Any]] | None = None,
    heldout_rows: Iterable[Mapping[str, Any]] | None = None,
) -> tuple[Pairs, Pairs | None, list[dict[str, Any]]]:
    """Training pairs, held-out pairs (None where nothing is held out), and what was left out of either."""
    columns = PairColumns(config.chosen, config.rejected, config.margin_column, config.margin)
    load = partial(load_pairs, tokenizer=tokenizer, text=text_of(config), columns=columns)
    if heldout_rows is not None or config.heldout.path:
        pairs, dropped = load(config.data, rows=rows)
        heldout, heldout_dropped = load(config.heldout, rows=heldout_rows)
        return pairs, heldout, dropped + heldout_dropped
    if not config.heldout_share:
        pairs, dropped = load(config.data, rows=rows)
        return pairs, None, dropped
    rows = None if rows is None else list(rows)
    aside = partial(held_out, seed=config.seed, share=config.heldout_share)
    pairs, dropped = load(config.data, rows=rows, select=lambda prompt: not aside(prompt))
    try:
        heldout, heldout_dropped = load(config.data, rows=rows, select=aside)
    except DataError as error:
        raise DataError(
            f"{error}; of heldout_share={config.heldout_share:g}: raise it, or name a heldout.path"
        ) from error
    return pairs, heldout, dropped + heldout_dropped


# --- on every rank --------------------------------------------------------------------------------------------------


def preference_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """Build the engine, continue where a checkpoint stands, train, score the held-out pairs, export."""
    import ray.train

    from model.reward_head import load_reward_model

    config: PreferenceConfig = settings["config"]
    folder, pairs, heldout = received(settings)
    model = load_reward_model(
        settings["model_path"],
        **model_options(config),
        bias=config.bias,
        seed=config.seed,
        settings=asdict(text_of(config)),
    )
    engine = engine_for(model, config, policy=model)

    def after_step(row: Mapping[str, Any]) -> Mapping[str, float]:
        if heldout is None or not config.evaluate_every or row["step"] % config.evaluate_every:
            return {}
        return measure(engine, Comparison(heldout, config.centring), config)

    row = train_steps(
        engine,
        Comparison(pairs, config.centring),
        config,
        folder,
        after_step=after_step,
    )
    summary = {
        "steps": engine.num_steps,
        "loss": row["loss"],
        "accuracy": row["preference/accuracy"],
        "skipped_steps": engine.num_skipped,
        "scores": [] if heldout is None else score_pairs(engine, Comparison(heldout), config).tolist(),
    }
    export(engine, folder)
    ray.train.report({"steps": engine.num_steps})
    return summary


@dataclass(frozen=True)
class Comparison:
    """The Bradley-Terry loss (``pretrain.loop.Objective``); a row is a pair."""

    pairs: Pairs
    centring: float = 0.0
    watched: str = "preference/accuracy"

    @property
    def lengths(self) -> np.ndarray:
        return self.pairs.lengths

    @property
    def ids(self) -> tuple[str, ...]:
        return self.pairs.ids

    def fingerprint(self) -> str:
        return self.pairs.fingerprint()

    def packed(self, rows: np.ndarray, device: torch.device | str) -> tuple[torch.Tensor, ...]:
        return packed(self.pairs.examples, members(rows), device)

    def denominator(self, rows: np.ndarray) -> int:
        return len(rows)

    def loss(
        self, engine: TrainEngine, rows: np.ndarray, denominator: int, router: RouterRecord | None = None
    ) -> tuple[torch.Tensor, list[float]]:
        scores = pair_scores(engine, self.pairs, rows, device=engine.device, router=router)
        loss = micro_batch_pair_loss(scores, self.pairs, rows, denominator=denominator, centring=self.centring)
        known = scores.detach().double()
        margins = known[:, 0] - known[:, 1]
        right = (margins > 0).double() + 0.5 * (margins == 0)
        sums = [loss.detach(), right.sum(), margins.sum(), known.sum(), known.square().sum()]
        return loss, [float(value) for value in sums]

    def metrics(self, sums: Sequence[float], rows: np.ndarray) -> dict[str, float]:
        loss, right, margins, total, squares = sums
        mean = total / (2 * len(rows))
        return {
            "loss": loss,
            "preference/accuracy": right / len(rows),
            "preference/margin": margins / len(rows),
            "preference/score_mean": mean,
            "preference/score_std": max(squares / (2 * len(rows)) - mean * mean, 0.0) ** 0.5,
            "pairs": len(rows),
        }


def score_pairs(engine: TrainEngine, objective: Comparison, config: PreferenceConfig) -> np.ndarray:
    """float64 [P, 2] on every rank: the scores of all pairs, chosen and rejected; changes nothing."""
    import torch
    import torch.distributed as dist

    engine.eval()
    rows = np.arange(len(objective.pairs))
    scores = torch.zeros(len(rows), 2, dtype=torch.float64, device=engine.device)
    with torch.no_grad():
        for part in my_micro_batches(engine, objective, rows, config):
            scores[torch.as_tensor(part)] = pair_scores(engine, objective.pairs, part, device=engine.device).double()
    engine.train()
    dist.all_reduce(scores)
    found: np.ndarray = scores.cpu().numpy()
    return found


def measure(engine: TrainEngine, objective: Comparison, config: PreferenceConfig) -> dict[str, float]:
    """Held-out ``eval/pair_accuracy``, ``eval/pair_loss`` and what a report says of length and calibration."""
    tokens = objective.pairs.completion_tokens.reshape(-1, 2)
    report = pair_report(score_pairs(engine, objective, config), tokens)
    found = {
        "eval/pair_accuracy": report["accuracy"],
        "eval/pair_loss": report["loss"],
        "eval/pair_margin": report["margin_mean"],
        "eval/pair_calibration_error": report["calibration"]["expected_calibration_error"],
    }
    correlation = report["length"]["margin_length_correlation"]
    return found if correlation is None else {**found, "eval/pair_length_correlation": correlation}
