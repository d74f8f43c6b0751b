"""Pretraining with real Ray Train and DeepSpeed ranks: what it counts, that it resumes, also on other ranks."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.init import init_model
from model.tokenizer import train_bpe
from pretrain.data.document import Row, document, label, write_shards
from pretrain.data.token_store import TokenStore
from pretrain.data.tokens import TokenSettings, write_tokens
from pretrain.pretraining import COMPLETIONS, run_pretraining
from pretrain.setup import TrainingResult
from pretrain.step import plan_steps
from pretrain.train import TrainingError
from rlplatform.config import (
    CheckpointConfig,
    CompletionsConfig,
    ConfigError,
    LearnerConfig,
    ModelConfig,
    OptimizerConfig,
    PackedDataConfig,
    PretrainConfig,
)
from rlplatform.runs import RunFolder
from tests.integration.processes import kill_a_rank

pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.timeout(1200)]

STEPS, TOKENS_PER_STEP = 24, 256
TIMING = ("seconds", "tokens_per_s")


def corpus(num: int, seed: int) -> list[Row]:
    """Counting up and counting down: two groups that differ in what comes next."""
    rng = np.random.default_rng(seed)
    rows = []
    for k in range(num):
        start, length, up = int(rng.integers(0, 60)), int(rng.integers(3, 30)), k % 3 > 0
        numbers = range(start, start + length) if up else range(start + length, start, -1)
        row = document("counting", str(k), f"made:{k}", " ".join(map(str, numbers)))
        rows.append({**row, "labels": [label("direction", "up" if up else "down", "rule@1")]})
    return rows


@pytest.fixture(scope="module")
def folder(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretraining")
    texts = {"train": corpus(150, seed=0), "heldout": corpus(20, seed=1)}
    train_bpe([row["text"] for row in texts["train"]], 300, folder / "tokenizer")
    for name, rows in texts.items():
        write_shards(rows, folder / name, per_shard=80)
        settings = TokenSettings(row_tokens=64, groups=("source", "direction"))
        write_tokens(folder / name, folder / f"{name}_tokens", str(folder / "tokenizer"), settings)
    init_model(folder / "model", folder / "tokenizer", {"num_hidden_layers": 2, "hidden_size": 64})
    return folder


def config_of(folder: Path, run_dir: Path, **changes: Any) -> PretrainConfig:
    config = PretrainConfig(
        run_dir=str(run_dir),
        num_tokens=STEPS * TOKENS_PER_STEP,
        tokens_per_step=TOKENS_PER_STEP,
        model=ModelConfig(path=str(folder / "model")),
        data=PackedDataConfig(tokens=str(folder / "train_tokens"), heldout=str(folder / "heldout_tokens")),
        optimizer=OptimizerConfig(lr=3e-3, decay="linear", weight_decay=0.1),
        warmup_tokens=4 * TOKENS_PER_STEP,
        decay_tokens=8 * TOKENS_PER_STEP,
        learner=LearnerConfig(num_workers=2, zero_stage=2, max_tokens_per_micro_batch=128),
        checkpoint=CheckpointConfig(every=6, keep_last=2, portable=True),
        evaluate_every=12,
        completions=CompletionsConfig(prompts=("7 8 9",), max_new_tokens=8),
        peak_tflops=1.0,
        max_failures=1,
    )
    return replace(config, **changes)


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    return run_pretraining(config_of(folder, tmp_path_factory.mktemp("run")))


def metrics_of(result: TrainingResult) -> list[dict[str, Any]]:
    return RunFolder(result.model.parent).read_metrics()


def weights_of(result: TrainingResult) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    found: dict[str, torch.Tensor] = load_file(result.model / "model.safetensors")
    return found


def plain_losses(model: Path, store: TokenStore, rows: Any, *, crossing: bool = False) -> dict[str, float]:
    """By transformers, one document at a time (or one row): nats per target over all, and of each direction."""
    from transformers import AutoModelForCausalLM

    policy = AutoModelForCausalLM.from_pretrained(str(model)).eval()
    names, codes = store.groups("direction")
    total = {"loss": [0.0, 0], **{name: [0.0, 0] for name in names}}
    for row in rows:
        batch = store.read([row])
        bounds = batch.cu_rows if crossing else batch.cu_pieces
        owner = np.repeat(batch.document, np.diff(batch.cu_pieces))
        for start, end in pairwise(bounds.tolist()):
            ids = torch.from_numpy(batch.token_ids[start:end]).long()
            if len(ids) < 2:
                continue
            with torch.no_grad():
                logprobs = policy(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0].double()
            for place, logprob in enumerate(logprobs.tolist(), start + 1):
                for key in ("loss", names[codes[owner[place]]]):
                    total[key][0] -= logprob
                    total[key][1] += 1
    return {key: loss / count for key, (loss, count) in total.items()}


def test_it_learns_on_its_schedule_and_reports_every_step(run: TrainingResult) -> None:
    rows = metrics_of(run)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert rows[0]["loss"] > 5.0
    assert rows[-1]["loss"] < rows[0]["loss"] - 1.5
    rates = [row["optimizer/lr"] for row in rows]
    assert rates[:4] == pytest.approx([0.75e-3, 1.5e-3, 2.25e-3, 3e-3])
    assert rates[4:16] == pytest.approx([3e-3] * 12)
    assert rates[16:] == pytest.approx([3e-3 * k / 8 for k in range(7, -1, -1)], abs=1e-12)
    assert [row["tokens_seen"] for row in rows] == np.cumsum([row["tokens"] for row in rows]).tolist()
    assert run.summary["tokens"] == rows[-1]["tokens_seen"]


def test_the_first_losses_are_those_of_the_untouched_model_document_by_document(
    run: TrainingResult, folder: Path
) -> None:
    store = TokenStore(folder / "train_tokens")
    rows = next(plan_steps(store.lengths, seed=0, tokens_per_step=TOKENS_PER_STEP))
    expected = plain_losses(folder / "model", store, rows)
    first = metrics_of(run)[0]
    assert first["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert first["loss/direction=up"] == pytest.approx(expected["up"], rel=1e-5)
    assert first["loss/direction=down"] == pytest.approx(expected["down"], rel=1e-5)
    assert first["loss/source=counting"] == pytest.approx(expected["loss"], rel=1e-5)
    assert first["tokens"] == store.lengths[rows].sum()
    assert first["loss_tokens"] == first["tokens"] - store.pieces_per_row[rows].sum()


def test_held_out_losses_are_measured_on_time_and_by_what_was_exported(run: TrainingResult, folder: Path) -> None:
    rows = metrics_of(run)
    assert [row["step"] for row in rows if "heldout/loss" in row] == [12, 24]
    store = TokenStore(folder / "heldout_tokens")
    expected = plain_losses(run.model, store, range(len(store)))
    assert run.summary["heldout/loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert run.summary["heldout/loss/direction=down"] == pytest.approx(expected["down"], rel=1e-5)


def test_operations_and_completions_are_reported(run: TrainingResult, folder: Path) -> None:
    from model.config import Qwen3Config
    from rlplatform.flops import forward_flops

    row = metrics_of(run)[0]
    store = TokenStore(folder / "train_tokens")
    rows = next(plan_steps(store.lengths, seed=0, tokens_per_step=TOKENS_PER_STEP))
    architecture = Qwen3Config.from_hf(json.loads((folder / "model" / "config.json").read_text()))
    lengths = np.concatenate([store.piece_lengths(row) for row in rows])
    operations = 3 * sum(forward_flops(architecture, int(length)) for length in lengths)
    assert row["tflops"] == pytest.approx(operations / 1e12)
    assert row["mfu"] == pytest.approx(row["tflops"] / row["seconds"] / 2, rel=0.01)
    written = [json.loads(line) for line in (run.model.parent / COMPLETIONS).read_text().splitlines()]
    assert [(line["step"], line["prompt"]) for line in written] == [(STEPS, "7 8 9")]
    assert written[0]["completion"]


@pytest.mark.slow
def test_kill_9_resumes_and_ends_bit_equal(run: TrainingResult, folder: Path, tmp_path: Path) -> None:
    pending = [8, 15]

    def killer(row: dict[str, Any]) -> None:
        if pending and row["step"] >= pending[0]:
            pending.pop(0)
            kill_a_rank()

    config = config_of(folder, tmp_path)
    with pytest.raises(TrainingError, match="failed 2 times"):
        run_pretraining(config, progress=killer)
    result = run_pretraining(config)
    for row, whole in zip(metrics_of(result), metrics_of(run), strict=True):
        assert {k: v for k, v in row.items() if k not in (*TIMING, "mfu")} == {
            k: v for k, v in whole.items() if k not in (*TIMING, "mfu")
        }
    for name, tensor in weights_of(run).items():
        assert torch.equal(weights_of(result)[name], tensor), name


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "zero_stage"), [(1, 0), (2, 3)])
def test_another_number_of_ranks_or_zero_stage_goes_on(
    run: TrainingResult, folder: Path, tmp_path: Path, ranks: int, zero_stage: int
) -> None:
    half = config_of(folder, tmp_path, completions=CompletionsConfig())
    stopped_at: list[int] = []

    def stopper(row: dict[str, Any]) -> None:
        if row["step"] >= 14 and len(stopped_at) < 2:
            stopped_at.append(row["step"])
            kill_a_rank()

    with pytest.raises(TrainingError):
        run_pretraining(replace(half, max_failures=0), progress=stopper)
    learner = replace(half.learner, num_workers=ranks, zero_stage=zero_stage)  # type: ignore[arg-type]
    result = run_pretraining(replace(half, learner=learner))
    rows, whole = metrics_of(result), metrics_of(run)
    assert [row["tokens_seen"] for row in rows] == [row["tokens_seen"] for row in whole]
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in whole], rel=2e-4)
    for name, tensor in weights_of(run).items():
        torch.testing.assert_close(weights_of(result)[name], tensor, rtol=0, atol=2e-3)


def test_moments_go_on_in_the_next_stage(run: TrainingResult, folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    quiet = OptimizerConfig(lr=0.0)
    short = {"num_tokens": TOKENS_PER_STEP, "warmup_tokens": 0, "decay_tokens": 0, "optimizer": quiet}
    config = config_of(folder, tmp_path, model=ModelConfig(path=str(run.model)), **short)
    result = run_pretraining(replace(config, optimizer_state=str(run.model)))
    (before,) = (run.model.parent / "checkpoints").glob("step-000024")
    (after,) = (tmp_path / "checkpoints").glob("step-*")
    old, new = (load_file(path / "learner" / "portable.safetensors") for path in (before, after))
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(old[name], new[name])  # the learning rate is 0
    moments = [f"{name}/exp_avg_sq" in tensors for tensors in (old, new)]
    assert moments == [True, True]
    # exp_avg_sq is 0.95 of what it was, and 0.05 of a gradient squared
    assert (new[f"{name}/exp_avg_sq"] >= 0.95 * old[f"{name}/exp_avg_sq"] * (1 - 1e-5)).all()
    assert result.summary["steps"] == 1
    with pytest.raises(ConfigError, match="expected the model of a pretrain stage"):
        run_pretraining(replace(config, run_dir=str(tmp_path / "none"), optimizer_state=str(folder / "model")))


def test_documents_may_see_each_other(folder: Path, tmp_path: Path) -> None:
    config = config_of(folder, tmp_path, num_tokens=TOKENS_PER_STEP, warmup_tokens=0, decay_tokens=0)
    result = run_pretraining(replace(config, data=replace(config.data, cross_document_attention=True)))
    store = TokenStore(folder / "train_tokens")
    rows = next(plan_steps(store.lengths, seed=0, tokens_per_step=TOKENS_PER_STEP))
    first = metrics_of(result)[0]
    assert first["loss"] == pytest.approx(plain_losses(folder / "model", store, rows, crossing=True)["loss"], rel=1e-5)
    assert first["loss_tokens"] == first["tokens"] - len(rows)


def test_what_does_not_fit_is_refused_before_anything_starts(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected at least row_tokens x learner"):
        run_pretraining(config_of(folder, tmp_path, tokens_per_step=100, warmup_tokens=0, decay_tokens=0))
    config = config_of(folder, tmp_path)
    with pytest.raises(ConfigError, match="expected packed tokens"):
        run_pretraining(replace(config, data=PackedDataConfig(tokens=str(tmp_path))))
    with pytest.raises(ConfigError, match="expected one of them, they say the same"):
        PretrainConfig(warmup_tokens=10, optimizer=OptimizerConfig(warmup_steps=1))
