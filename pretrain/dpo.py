"""Direct preference optimisation: pairs of answers in, a Hugging Face folder out. Ray Train and DeepSpeed, as SFT.

    driver: rows -> Pairs (checked, masked) -> Ray's object store -> every rank
    rank:   reference log-probabilities, once, by the weights as they came ─► reference_logprobs.npz
            pretrain/loop.py with the DPO loss -> metrics.jsonl, model/

loss = -log sigmoid(beta ((log pi(chosen) - log pi(rejected)) - (log ref(chosen) - log ref(rejected))))

Rafailov et al. 2023, arXiv 2305.18290, eq. 7; sums over the answer's tokens. Reference-free leaves the reference's
difference out. Pairs are never split over ranks or micro-batches; the loss is the mean over all pairs of the step.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from model.chat import encode_segments, render_segments
from model.moe import RouterRecord
from pretrain.loop import export, measure, my_micro_batches, train_steps
from pretrain.preference_data import PairColumns, Pairs, held_out, read_pairs
from pretrain.preference_step import members
from pretrain.setup import TrainingResult, engine_for, fit, model_options, prepare, received, write_dropped
from pretrain.step import packed
from pretrain.train import broadcast
from rlplatform.config import DPOConfig
from rlplatform.datafiles import DataError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from actors.engine import TrainEngine

REFERENCE = "reference_logprobs.npz"


def run_dpo(
    config: DPOConfig,
    *,
    rows: Iterable[Mapping[str, Any]] | None = None,
    heldout_rows: Iterable[Mapping[str, Any]] | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> TrainingResult:
    """Train ``config.model.path`` to prefer the chosen answers; rows as for reward models (docs/preference.md).

    Per-step metrics: ``loss`` (nats a pair), ``dpo/accuracy``, ``dpo/margin`` (of implicit rewards, beta times the log
    ratio to the reference), ``dpo/chosen_reward``, ``dpo/rejected_reward``, those of supervised training, and
    ``heldout/dpo/...`` every ``config.evaluate_every`` steps. Pairs that are too long or hold the same answer twice are
    listed in ``dropped_rows.jsonl``. A killed run goes on from its newest checkpoint, with the reference it began with.
    Needs ``ray.init()`` before.

    Raises:
        DataError: the rows cannot be used; no worker was started.
        ConfigError: no tokenizer, the cluster is too small, or the checkpoint belongs to other data.
        RunStopped: too many steps in a row with a gradient that is not finite.
        TrainingError: more worker failures than ``config.max_failures``.
    """
    began = time.perf_counter()
    folder, tokenizer = prepare(config)
    load = partial(load_dpo_pairs, config, tokenizer)
    aside = partial(held_out, seed=config.seed, share=config.heldout_share)
    heldout: Pairs | None = None
    if heldout_rows is not None or config.heldout.path:
        pairs, dropped = load(rows, lambda prompt: True)
        heldout, more = load_dpo_pairs(config, tokenizer, heldout_rows, lambda prompt: True, heldout=True)
        dropped += more
    else:
        rows = None if rows is None else list(rows)
        pairs, dropped = load(rows, lambda prompt: not aside(prompt))
        if config.heldout_share:
            try:
                heldout, more = load(rows, aside)
            except DataError as error:
                raise DataError(
                    f"{error}; of heldout_share={config.heldout_share:g}: raise it, set it to 0, or name a heldout.path"
                ) from error
            dropped += more
    write_dropped(folder, dropped, num_kept=len(pairs), why=f"are equal or longer than {config.max_tokens} tokens")
    trained = fit(dpo_worker, config, folder, rows=pairs, heldout=heldout, progress=progress)
    summary = {
        "rows": len(pairs),
        "dropped_rows": len(dropped),
        **trained,
        "seconds": round(time.perf_counter() - began, 1),
    }
    folder.save_json("summary.json", summary)
    return TrainingResult(folder.model, folder.metrics_file, summary)


def load_dpo_pairs(
    config: DPOConfig,
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[Mapping[str, Any]] | None,
    select: Callable[[str], bool],
    *,
    heldout: bool = False,
) -> tuple[Pairs, list[dict[str, Any]]]:
    """Pairs whose targets are the assistant's tokens, and ``{"id", "why", "tokens", "max_tokens"}`` of those left out.

    An earlier turn of the assistant counts in both answers alike and cancels.

    Raises:
        DataError: an unreadable row, a missing column, or not one usable pair.
    """
    data = config.heldout if heldout else config.data

    def write(prompt: Any, answer: Any, tools: Any) -> tuple[np.ndarray, np.ndarray, int]:
        token_ids, mask = encoded(tokenizer, prompt, answer, tools, data.enable_thinking, data.system)
        return token_ids, mask, int(mask.sum())

    columns = PairColumns(config.chosen, config.rejected)
    return read_pairs(data, write, columns=columns, max_tokens=config.max_tokens, rows=rows, select=select)


def encoded(
    tokenizer: PreTrainedTokenizerBase, prompt: Any, answer: Any, tools: Any, enable_thinking: bool, system: str
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and mask of the assistant's tokens of one whole conversation."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    if system and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    said = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else list(answer)
    segments = render_segments(tokenizer, [*messages, *said], tools=tools, enable_thinking=enable_thinking)
    return encode_segments(tokenizer, segments)


# --- on every rank --------------------------------------------------------------------------------------------------


def dpo_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """Build the engine, take the reference, continue where a checkpoint stands, train, measure, export."""
    import ray.train

    from model.hf import load_policy
    from model.logprobs import TokenScorer

    config: DPOConfig = settings["config"]
    folder, pairs, heldout = received(settings)
    engine = engine_for(TokenScorer(load_policy(settings["model_path"], **model_options(config))), config)
    made = partial(with_reference, engine, config, folder)
    objective, measured = made(pairs, "train"), None if heldout is None else made(heldout, "heldout")

    def after_step(row: Mapping[str, Any]) -> Mapping[str, float]:
        last = row["step"] >= config.num_steps
        if measured is None or not (last or (config.evaluate_every and row["step"] % config.evaluate_every == 0)):
            return {}
        found = measure(engine, measured, config)
        return {f"heldout/{name}": value for name, value in found.items() if name != "pairs"}

    row = train_steps(engine, objective, config, folder, after_step=after_step)
    summary = {
        "steps": engine.num_steps,
        "skipped_steps": engine.num_skipped,
        **{name: value for name, value in row.items() if name == "loss" or "dpo/" in name or "heldout/" in name},
    }
    export(engine, folder)
    ray.train.report({"steps": engine.num_steps})
    return summary


def with_reference(engine: TrainEngine, config: DPOConfig, folder: Any, pairs: Pairs, name: str) -> DirectPreference:
    """The objective with the reference's log-probabilities, taken once and kept: the weights before any step."""
    bare = DirectPreference(pairs, np.zeros(2 * len(pairs)), config.beta, config.learner.logprob_chunk_tokens)
    if config.reference_free:
        return bare
    path: Path = folder.path / f"{name}_{REFERENCE}"
    mark = hashlib.blake2b(f"{pairs.fingerprint()} {config.model.path}".encode(), digest_size=16).hexdigest()
    logprobs = broadcast(_kept(path, mark) if engine.rank == 0 else None)  # or some ranks would score, others not
    if logprobs is None:
        logprobs = score_answers(engine, bare, config)
        if engine.rank == 0:
            temporary = path.with_suffix(".tmp")
            with open(temporary, "wb") as file:
                np.savez(file, logprobs=logprobs, mark=np.array(mark))
            temporary.replace(path)
    return replace(bare, reference=logprobs)


def _kept(path: Path, mark: str) -> np.ndarray | None:
    if not path.exists():
        return None
    kept = np.load(path)
    return kept["logprobs"] if str(kept["mark"]) == mark else None


def dpo_losses(chosen: torch.Tensor, rejected: torch.Tensor, reference: torch.Tensor, beta: float) -> torch.Tensor:
    """float32 [P]: of summed log-probabilities of both answers, and the reference's difference, each [P]."""
    import torch.nn.functional as F

    return -F.logsigmoid(beta * (chosen - rejected - reference))


@dataclass(frozen=True)
class DirectPreference:
    """The DPO loss (``pretrain.loop.Objective``); a row is a pair."""

    pairs: Pairs
    reference: np.ndarray  # float64 [2 P], summed log-probabilities of every answer; zeros: reference-free
    beta: float
    chunk_tokens: int
    watched: str = "dpo/accuracy"

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

    def answers(self, engine: Any, rows: np.ndarray, router: RouterRecord | None = None) -> torch.Tensor:
        """float32 [P, 2]: summed log-probabilities of the chosen and the rejected answer; [0, 2] without rows."""
        import torch

        inputs = self.packed(rows, engine.device)
        logprobs, _ = engine(*inputs, chunk_tokens=self.chunk_tokens, router=router)
        if not len(rows):
            return logprobs.sum() * torch.zeros(0, 2, device=engine.device)
        owner = np.repeat(np.arange(2 * len(rows)), self.pairs.examples.loss_tokens[members(rows)])
        sums = torch.zeros(2 * len(rows), device=engine.device)
        return sums.index_add(0, torch.as_tensor(owner, device=engine.device), logprobs).view(-1, 2)

    def loss(
        self, engine: Any, rows: np.ndarray, denominator: int, router: RouterRecord | None = None
    ) -> tuple[torch.Tensor, list[float]]:
        import torch

        answers = self.answers(engine, rows, router)
        reference = torch.as_tensor(self.reference.reshape(-1, 2)[rows], dtype=torch.float32, device=engine.device)
        losses = dpo_losses(answers[:, 0], answers[:, 1], reference[:, 0] - reference[:, 1], self.beta)
        rewards = self.beta * (answers.detach() - reference).double()
        margins = rewards[:, 0] - rewards[:, 1]
        right = (margins > 0).double() + 0.5 * (margins == 0)
        sums = [losses.detach().sum(), right.sum(), margins.sum(), rewards[:, 0].sum(), rewards[:, 1].sum()]
        return losses.sum() / denominator, [float(value) for value in sums]

    def metrics(self, sums: Sequence[float], rows: np.ndarray) -> dict[str, float]:
        loss, right, margin, chosen, rejected = (value / len(rows) for value in sums)
        return {
            "loss": loss,
            "dpo/accuracy": right,
            "dpo/margin": margin,
            "dpo/chosen_reward": chosen,
            "dpo/rejected_reward": rejected,
            "pairs": len(rows),
        }


def score_answers(engine: TrainEngine, objective: DirectPreference, config: DPOConfig) -> np.ndarray:
    """float64 [2 P] on every rank: summed log-probabilities of every answer; changes nothing."""
    import torch
    import torch.distributed as dist

    engine.eval()
    scores = torch.zeros(len(objective.pairs), 2, dtype=torch.float64, device=engine.device)
    with torch.no_grad():
        for part in my_micro_batches(engine, objective, np.arange(len(objective.pairs)), config):
            scores[torch.as_tensor(part)] = objective.answers(engine, part).double()
    engine.train()
    dist.all_reduce(scores)
    found: np.ndarray = scores.view(-1).cpu().numpy()
    return found
