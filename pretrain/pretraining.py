"""Pretraining: packed tokens in, a Hugging Face folder out. Ray Train runs the ranks, DeepSpeed the steps.

    driver: opens and checks the packed tokens ─► every rank opens them, memory-mapped
    rank:   plan_steps ─► its rows ─► backward ... ─► step ─► metrics.jsonl, checkpoints ─► model/

The loss is the mean over all targets of the step, one denominator whatever the ranks and micro-batches; every group's
own mean (by source, by label) stands beside it. Which rows a step takes follows from (seed, step): any world size sees
the same.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from model.config import Qwen3Config, unsupported_reason
from model.moe import RouterRecord
from pretrain.data.token_store import Batch, TokenStore
from pretrain.data.tokens import SEPARATOR
from pretrain.loop import export, measure, train_steps
from pretrain.setup import TrainingResult, engine_for, model_options
from pretrain.step import model_inputs
from pretrain.train import drop_lines_after, run_on_ray_train
from rlplatform import checkpoint
from rlplatform.config import ConfigError, PretrainConfig
from rlplatform.flops import forward_flops
from rlplatform.runs import RunFolder
from rlplatform.servable import check_positions

if TYPE_CHECKING:
    import torch

    from actors.engine import TrainEngine

COMPLETIONS = "completions.jsonl"


def run_pretraining(
    config: PretrainConfig, *, progress: Callable[[dict[str, Any]], None] | None = None
) -> TrainingResult:
    """Train ``config.model.path`` on the packed tokens of ``config.data``.

    Per-step metrics go to ``metrics.jsonl`` in ``config.run_dir``: those of ``pretrain.sft.run_sft``; of every group
    that had documents in the step ``loss/GROUP=NAME``, nats per target; ``tflops``, 10^12 operations of the model in a
    step, forward and backward; with ``config.peak_tflops`` ``mfu``; where they are measured, ``heldout/loss`` and each
    group's. ``completions.jsonl`` holds what the model wrote. A run that was killed continues from its
    newest complete checkpoint. Needs ``ray.init()`` before.

    Raises:
        DataError: the packed tokens are not there, or not what their manifest says.
        ConfigError: rows that do not fill a step or are longer than the model's positions, another tokenizer's ids, a
            setting that only the native model knows, or the cluster is too small.
        RunStopped: too many steps in a row with a gradient that is not finite.
        TrainingError: more worker failures than ``config.max_failures``.
    """
    began = time.perf_counter()
    if not config.model.path:
        raise ConfigError("model.path: expected a Hugging Face folder or hub id to train, got nothing")
    values = check_positions(config.model.path, config.model)
    check_native(values, config)
    folder = RunFolder(config.run_dir)
    folder.path.mkdir(parents=True, exist_ok=True)
    store = TokenStore(config.data.tokens, verify=True)
    check_step(store, config)
    check_fit(store, config, values)
    if config.data.heldout:
        check_fit(TokenStore(config.data.heldout, verify=True), config, values)
    if config.optimizer_state:
        last_checkpoint(config.optimizer_state)
    trained = run_on_ray_train(
        pretraining_worker,
        {"config": absolute(config), "folder": str(folder.path.resolve())},
        folder=folder,
        learner=config.learner,
        max_failures=config.max_failures,
        progress=progress,
    )
    summary = {**trained, "seconds": round(time.perf_counter() - began, 1)}
    folder.save_json("summary.json", summary)
    return TrainingResult(folder.model, folder.metrics_file, summary)


def absolute(config: PretrainConfig) -> PretrainConfig:
    """The config with whole paths: a worker's working directory is not the driver's."""

    def whole(path: str) -> str:
        return str(Path(path).resolve()) if path and Path(path).exists() else path

    return replace(
        config,
        data=replace(config.data, tokens=whole(config.data.tokens), heldout=whole(config.data.heldout)),
        model=replace(config.model, path=whole(config.model.path)),
        optimizer_state=whole(config.optimizer_state),
    )


def check_native(values: Mapping[str, Any], config: PretrainConfig) -> None:
    """Raises ConfigError for a setting that a model which transformers serves (``load_policy``) has no answer to."""
    reason = unsupported_reason(values) or ("auto_map in config.json" if "auto_map" in values else "")
    for name, wanted in (("peak_tflops", config.peak_tflops), ("completions.prompts", config.completions.prompts)):
        if reason and wanted:
            raise ConfigError(f"{name}: expected a native model (qwen3, qwen3_moe) with it; {reason}; leave it out")


def check_step(store: TokenStore, config: PretrainConfig) -> None:
    """Raises ConfigError where the rows do not fill a step of every rank."""
    row_tokens = store.manifest.row_tokens
    if row_tokens * config.learner.num_workers > config.tokens_per_step:
        raise ConfigError(
            f"tokens_per_step={config.tokens_per_step}: expected at least row_tokens x learner.num_workers = "
            f"{row_tokens * config.learner.num_workers}, so that every rank has a row in every step"
        )
    if config.tokens_per_step % row_tokens:
        raise ConfigError(
            f"tokens_per_step={config.tokens_per_step}: expected a multiple of row_tokens={row_tokens}: rows are taken "
            "whole, and a step that they do not fill trains on fewer tokens than it counts for num_tokens"
        )


def check_fit(store: TokenStore, config: PretrainConfig, values: Mapping[str, Any]) -> None:
    """Raises ConfigError where rows and model do not fit; ``values`` is its config.json as this run sees it."""
    from transformers import AutoConfig

    row_tokens, longest = store.manifest.row_tokens, values.get("max_position_embeddings")
    if longest and row_tokens > longest:
        raise ConfigError(
            f"{store.folder}: rows of {row_tokens} tokens, the model {config.model.path} has positions for {longest}; "
            "make it with more max_position_embeddings, or pack shorter rows"
        )
    model = AutoConfig.from_pretrained(config.model.path, trust_remote_code=config.model.trust_remote_code)
    if store.manifest.separator >= model.vocab_size:
        raise ConfigError(
            f"{store.folder}: its ids go up to {store.manifest.separator} at least, the model {config.model.path} has "
            f"{model.vocab_size} embeddings; pack the documents with the model's tokenizer"
        )


def last_checkpoint(model: str) -> Path:
    """The portable checkpoint of the run that exported ``model``.

    Raises:
        ConfigError: that run left none.
    """
    from actors import portable

    found = checkpoint.latest(Path(model).parent / "checkpoints")
    if found is None or not portable.is_portable(found.learner):
        raise ConfigError(
            f"optimizer_state={model}: expected the model of a pretrain stage with checkpoint.portable, whose folder "
            "holds its last checkpoint"
        )
    return found.learner


# --- what a step sees -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PackedDocuments:
    """Cross-entropy of packed rows (``pretrain.loop.Objective``); a row is what ``TokenStore`` calls one."""

    store: TokenStore
    chunk_tokens: int
    cross_document_attention: bool = False
    architecture: Qwen3Config | None = None  # to count operations with; None: they are not counted
    watched: str = "loss"

    @property
    def lengths(self) -> np.ndarray:
        return self.store.lengths

    @property
    def ids(self) -> Sequence[int]:
        return range(len(self.store))

    def fingerprint(self) -> str:
        hashes = [shard.blake2b for shard in self.store.manifest.shards]
        text = json.dumps([hashes, self.cross_document_attention])
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    @cached_property
    def num_targets(self) -> np.ndarray:
        """int64 [R]: a row's tokens less those that nothing before them could predict."""
        return self.lengths - (1 if self.cross_document_attention else self.store.pieces_per_row)

    @cached_property
    def groups(self) -> list[tuple[str, tuple[str, ...], np.ndarray]]:
        """(column, its values, which of them each document has) of every group column."""
        return [(name, *self.store.groups(name)) for name in self.store.manifest.groups]

    def denominator(self, rows: np.ndarray) -> int:
        return int(self.num_targets[rows].sum())

    def packed(self, rows: np.ndarray, device: torch.device | str) -> tuple[torch.Tensor, ...]:
        return self._inputs(self.store.read(rows if len(rows) else [0]), device, has_rows=len(rows) > 0)

    def _inputs(self, batch: Batch, device: torch.device | str, *, has_rows: bool) -> tuple[torch.Tensor, ...]:
        bounds = batch.cu_rows if self.cross_document_attention else batch.cu_pieces
        return model_inputs(batch.token_ids, bounds, device, targets=None if has_rows else np.zeros(0, dtype=np.int64))

    def loss(
        self, engine: TrainEngine, rows: np.ndarray, denominator: int, router: RouterRecord | None = None
    ) -> tuple[torch.Tensor, list[float]]:
        """A micro-batch's share of the loss; and the summed loss, then sum and count of every value of every group."""
        import torch

        batch = self.store.read(rows if len(rows) else [0])
        arguments = self._inputs(batch, engine.device, has_rows=len(rows) > 0)
        logprobs, _ = engine(*arguments, chunk_tokens=self.chunk_tokens, router=router)
        piece = np.repeat(np.arange(len(batch.document)), np.diff(batch.cu_pieces))
        document = batch.document[piece[arguments[3].cpu().numpy()]]
        nll = -logprobs.detach().double()
        sums = [nll.sum()[None]]
        for _, names, codes in self.groups:
            code = torch.as_tensor(codes[document], dtype=torch.int64, device=engine.device)
            zeros = torch.zeros(len(names), dtype=torch.float64, device=engine.device)
            sums += [zeros.index_add(0, code, nll), torch.bincount(code, minlength=len(names)).double()]
        return -logprobs.sum() / denominator, torch.cat(sums).tolist()

    def metrics(self, sums: Sequence[float], rows: np.ndarray) -> dict[str, float]:
        targets = self.denominator(rows)
        found: dict[str, float] = {"loss": sums[0] / targets, "loss_tokens": targets}
        if self.architecture is not None:
            found["tflops"] = (
                3 * self._forward_flops(rows, self.architecture) / 1e12
            )  # a backward pass costs two forward passes
        place = 1
        for column, names, _ in self.groups:
            losses, counts = sums[place : place + len(names)], sums[place + len(names) : place + 2 * len(names)]
            place += 2 * len(names)
            for name, loss, count in zip(names, losses, counts, strict=True):
                if count:
                    found[f"loss/{column}={name}"] = loss / count
        return found

    def _forward_flops(self, rows: np.ndarray, architecture: Qwen3Config) -> int:
        lengths = (
            self.lengths[rows]
            if self.cross_document_attention
            else np.concatenate([self.store.piece_lengths(row) for row in rows])
        )
        different, counts = np.unique(lengths, return_counts=True)
        return sum(
            count * forward_flops(architecture, length)
            for length, count in zip(different.tolist(), counts.tolist(), strict=True)
        )


# --- on every rank --------------------------------------------------------------------------------------------------


def pretraining_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """Build the engine, continue where a checkpoint stands, train, measure, export."""
    import ray.train

    from actors import portable
    from model.hf import load_policy
    from model.logprobs import TokenScorer

    config: PretrainConfig = settings["config"]
    folder = RunFolder(settings["folder"])
    policy = load_policy(config.model.path, **model_options(config))
    engine = engine_for(TokenScorer(policy), with_schedule_in_steps(config))
    objective = objective_of(config.data.tokens, config, policy)
    heldout = objective_of(config.data.heldout, config, policy) if config.data.heldout else None
    if config.optimizer_state:  # float32 weights and Adam moments; the schedule starts anew
        portable.load(engine, last_checkpoint(config.optimizer_state), counters=False)
    watch = Watch(engine, config, folder, heldout)
    row = train_steps(engine, objective, config, folder, after_step=watch)
    summary = {
        "steps": engine.num_steps,
        "tokens": row["tokens_seen"],
        "loss": row["loss"],
        "skipped_steps": engine.num_skipped,
        **{name: value for name, value in row.items() if name.startswith("heldout/")},
    }
    export(engine, folder)
    ray.train.report({"steps": engine.num_steps})
    return summary


def with_schedule_in_steps(config: PretrainConfig) -> PretrainConfig:
    """The config with what its schedule says in tokens said in optimiser steps."""
    optimizer = config.optimizer
    if config.warmup_tokens:
        optimizer = replace(optimizer, warmup_steps=config.steps_of(config.warmup_tokens))
    if config.decay_tokens:
        optimizer = replace(optimizer, decay_steps=config.steps_of(config.decay_tokens))
    return replace(config, optimizer=optimizer, warmup_tokens=0, decay_tokens=0)


def objective_of(path: str, config: PretrainConfig, policy: Any) -> PackedDocuments:
    architecture = policy.config if isinstance(policy.config, Qwen3Config) else None
    return PackedDocuments(
        TokenStore(path), config.learner.logprob_chunk_tokens, config.data.cross_document_attention, architecture
    )


@dataclass
class Watch:
    """What is looked at after a step: use of the device, held-out loss, completions."""

    engine: TrainEngine
    config: PretrainConfig
    folder: RunFolder
    heldout: PackedDocuments | None

    def __call__(self, row: Mapping[str, Any]) -> dict[str, float]:
        step = int(row["step"])
        last = step >= self.config.num_steps
        found: dict[str, float] = {}
        if self.config.peak_tflops:
            found["mfu"] = row["tflops"] / row["seconds"] / (self.config.peak_tflops * self.engine.world_size)
        if self.heldout is not None and (last or due(step, self.config.evaluate_every)):
            measured = measure(self.engine, self.heldout, self.config)
            found |= {f"heldout/{name}": value for name, value in measured.items() if name.startswith("loss")}
        if self.config.completions.prompts and (last or due(step, self.config.completions.every)):
            self._complete(step)
        return found

    def _complete(self, step: int) -> None:
        """One line a prompt in ``completions.jsonl``, written by rank 0 while the others wait."""
        import torch.distributed as dist

        if self.engine.rank == 0:
            rows = complete(self.engine, self.config)
            lines = [json.dumps({"step": step, **row}, ensure_ascii=False) + "\n" for row in rows]
            path = self.folder.path / COMPLETIONS
            drop_lines_after(path, step - 1)  # of a run that got further before it was killed
            with open(path, "a", encoding="utf-8") as file:
                file.writelines(lines)
        dist.barrier()


def due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0


def complete(engine: TrainEngine, config: PretrainConfig) -> list[dict[str, Any]]:
    """``prompt`` and ``completion`` of every prompt, by the weights as they are."""
    from model.generate import generate
    from rlplatform.servable import tokenizer_of

    asked = config.completions
    tokenizer = tokenizer_of(config.model.path, trust_remote_code=config.model.trust_remote_code)
    engine.eval()
    completions = generate(
        engine.policy,  # type: ignore[arg-type]
        [tokenizer.encode(prompt, add_special_tokens=False) for prompt in asked.prompts],
        max_new_tokens=asked.max_new_tokens,
        temperature=asked.temperature,
        seed=config.seed,
        stop_token_ids=[tokenizer.convert_tokens_to_ids(SEPARATOR)],
    )
    engine.train()
    return [
        {"prompt": prompt, "completion": tokenizer.decode(completion.token_ids)}
        for prompt, completion in zip(asked.prompts, completions, strict=True)
    ]
