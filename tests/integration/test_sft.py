"""SFT with real Ray Train and DeepSpeed ranks: it learns, survives kill -9, and exports what it trained."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.init import init_model
from model.tokenizer import chat_texts, train_bpe
from pretrain.examples import load_examples
from pretrain.setup import TrainingResult
from pretrain.sft import run_sft
from pretrain.step import plan_steps
from pretrain.train import TrainingError
from rlplatform.config import (
    CheckpointConfig,
    ConfigError,
    DataConfig,
    LearnerConfig,
    ModelConfig,
    OptimizerConfig,
    SFTConfig,
)
from rlplatform.runs import RunFolder
from rlplatform.tasks.arithmetic import problems
from tests.integration.processes import kill_a_rank

STEPS = 160
TIMING = ("seconds", "tokens_per_s")


@pytest.fixture(scope="module")
def _ray():
    import ray

    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=200 * 2**20,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def data() -> dict[str, list[dict]]:
    splits = problems(0, num_sft=300, num_train=0, num_test=40, digits={2: 1})
    splits["sft"][7]["messages"][1]["content"] += " and so on" * 30  # the one row that is too long
    return splits


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, data: dict[str, list[dict]]) -> Path:
    folder = tmp_path_factory.mktemp("model")
    train_bpe(chat_texts(row["messages"] for row in data["sft"]), 320, folder / "tokenizer")
    init_model(folder, folder / "tokenizer", {"num_hidden_layers": 2, "hidden_size": 64})
    return folder


def sft_config(model: Path, run_dir: Path) -> SFTConfig:
    return SFTConfig(
        run_dir=str(run_dir),
        num_steps=STEPS,
        tokens_per_step=512,
        max_tokens=96,
        model=ModelConfig(path=os.path.relpath(model)),  # the workers have another working directory
        data=DataConfig(prompt="messages"),
        optimizer=OptimizerConfig(lr=3e-3, warmup_steps=10, decay="cosine"),
        learner=LearnerConfig(num_workers=2, zero_stage=2, max_tokens_per_micro_batch=160),
        checkpoint=CheckpointConfig(every=20, keep_last=2),
        max_failures=1,
    )


@pytest.fixture(scope="module")
def run(_ray, model: Path, data, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingResult, list[dict]]:
    """The uninterrupted run, and what its progress callback was given."""
    shown: list[dict] = []
    config = sft_config(model, tmp_path_factory.mktemp("sft"))
    result = run_sft(config, rows=data["sft"], heldout_rows=data["test"], progress=shown.append)
    return result, shown


def metrics_of(result: TrainingResult) -> list[dict]:
    return RunFolder(result.model.parent).read_metrics()


def plain_loss(folder: Path, data: list[dict], rows: np.ndarray | None = None) -> float:
    """Token mean of the cross-entropy by transformers, one unpadded row at a time."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    examples, _ = load_examples(DataConfig(prompt="messages"), tokenizer, rows=data, max_tokens=96)
    model = AutoModelForCausalLM.from_pretrained(str(folder)).eval()
    total, count = 0.0, 0
    for row in range(len(examples)) if rows is None else rows:
        span = slice(examples.cu_seqlens[row], examples.cu_seqlens[row + 1])
        ids = torch.from_numpy(examples.token_ids[span]).long()
        mask = torch.from_numpy(examples.loss_mask[span])[1:]
        with torch.no_grad():
            logprobs = model(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        total -= float(logprobs[mask].double().sum())
        count += int(mask.sum())
    return total / count


def test_it_learns_and_reports_every_step_once(run: tuple[TrainingResult, list[dict]]) -> None:
    result, shown = run
    rows = metrics_of(result)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1)) == [row["step"] for row in shown]
    assert rows[0]["loss"] > 5.0  # near log(320) = 5.8
    assert np.mean([row["loss"] for row in rows[-10:]]) < 1.2
    assert rows[-1]["loss"] == result.summary["loss"]
    assert all(row["tokens"] <= 512 for row in rows)
    assert rows[9]["optimizer/lr"] == pytest.approx(3e-3)
    assert rows[-1]["optimizer/lr"] == pytest.approx(0.0, abs=1e-12)
    assert all(0 < row["optimizer/grad_norm"] < 1e3 for row in rows)
    assert result.summary["skipped_steps"] == 0
    assert result.summary["target_probability"] == rows[-1]["target_probability"]
    assert (
        0.0 <= rows[0]["target_probability"] < 1e-12 < np.mean([row["target_probability"] for row in rows[-10:]]) < 1.0
    )
    assert not (result.model.parent / "skipped_steps.jsonl").exists()


def test_the_first_loss_is_that_of_the_untouched_model_on_the_planned_rows(run, model: Path, data) -> None:
    result, _ = run
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(model))
    examples, _ = load_examples(DataConfig(prompt="messages"), tokenizer, rows=data["sft"], max_tokens=96)
    rows = next(plan_steps(examples.lengths, seed=0, tokens_per_step=512))
    first = metrics_of(result)[0]
    assert first["loss"] == pytest.approx(plain_loss(model, data["sft"], rows), rel=1e-5)
    assert first["tokens"] == examples.lengths[rows].sum()
    assert first["loss_tokens"] == examples.loss_tokens[rows].sum()


def test_the_exported_folder_computes_what_the_engine_computed(run, model: Path, data) -> None:
    result, _ = run
    assert plain_loss(result.model, data["test"]) == pytest.approx(result.summary["heldout_loss"], rel=1e-5)
    assert result.summary["heldout_loss"] < plain_loss(model, data["test"]) / 4
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (result.model / name).read_bytes() == (model / name).read_bytes(), name


def test_rows_too_long_are_reported_with_their_ids(run, data) -> None:
    result, _ = run
    dropped = [json.loads(line) for line in (result.model.parent / "dropped_rows.jsonl").read_text().splitlines()]
    assert [row["id"] for row in dropped] == [data["sft"][7]["id"]]
    assert result.summary["dropped_rows"] == 1
    assert result.summary["rows"] == 299


@pytest.mark.slow
def test_kill_9_resumes_from_the_last_checkpoint_and_ends_bit_equal(run, model: Path, data, tmp_path: Path) -> None:
    """Killed once: Ray Train restarts the ranks. Killed again: it gives up, and the same command continues."""
    whole, _ = run
    config = sft_config(model, tmp_path)
    pending = [30, 90]  # between checkpoints

    def killer(row: dict) -> None:
        if pending and row["step"] >= pending[0]:
            pending.pop(0)
            kill_a_rank()

    with pytest.raises(TrainingError, match="failed 2 times"):
        run_sft(config, rows=data["sft"], heldout_rows=data["test"], progress=killer)
    assert pending == []
    kept = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert len(kept) == 2
    assert kept[-1] >= "step-000080"
    assert not (tmp_path / "model").exists()

    shown: list[int] = []
    result = run_sft(
        config, rows=data["sft"], heldout_rows=data["test"], progress=lambda row: shown.append(row["step"])
    )
    lines = [json.loads(line) for line in result.metrics_file.read_text().splitlines()]
    assert [row["step"] for row in lines] == list(range(1, STEPS + 1))  # repeated steps replaced their first record
    assert shown[-1] == STEPS
    assert shown[0] > 80

    def comparable(rows: list[dict]) -> list[dict]:
        return [{key: value for key, value in row.items() if key not in TIMING} for row in rows]

    assert comparable(lines) == comparable(metrics_of(whole))
    assert (result.model / "model.safetensors").read_bytes() == (whole.model / "model.safetensors").read_bytes()
    assert result.summary["heldout_loss"] == whole.summary["heldout_loss"]

    with pytest.raises(ConfigError, match="expected a Hugging Face folder"):
        run_sft(replace(config, model=ModelConfig()), rows=data["sft"])


@pytest.mark.usefixtures("_ray")
def test_a_cluster_too_small_is_refused_with_the_arithmetic(model: Path, data, tmp_path: Path) -> None:
    config = sft_config(model, tmp_path)
    crowded = replace(config, learner=replace(config.learner, num_workers=3))
    with pytest.raises(ConfigError, match=r"3 ranks x 1 CPU = 3, the Ray cluster has 2"):
        run_sft(crowded, rows=data["sft"])
