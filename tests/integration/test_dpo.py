"""DPO with real Ray Train and DeepSpeed ranks, its numbers against transformers and against hand-made ones."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.init import init_model
from model.tokenizer import chat_texts, train_bpe
from pretrain.dpo import DirectPreference, dpo_losses, load_dpo_pairs, run_dpo
from pretrain.setup import TrainingResult
from pretrain.step import plan_steps
from rlplatform.config import (
    CheckpointConfig,
    ConfigError,
    DPOConfig,
    LearnerConfig,
    ModelConfig,
    OptimizerConfig,
)
from rlplatform.datafiles import DataError
from rlplatform.runs import RunFolder

pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.timeout(1200)]

STEPS = 20


def pairs_of(num: int, seed: int) -> list[dict[str, Any]]:
    """The better answer counts on; the worse one counts back."""
    rng = np.random.default_rng(seed)
    rows = []
    for k in range(num):
        start = int(rng.integers(3, 60))
        rows.append(
            {
                "id": f"pair-{seed}-{k}",
                "prompt": f"Go on: {start - 2} {start - 1}",
                "chosen": " ".join(map(str, range(start, start + 4))),
                "rejected": " ".join(map(str, range(start, start - 3, -1))),
            }
        )
    return rows


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    texts = chat_texts([{"role": "user", "content": row["prompt"] + row["chosen"]}] for row in pairs_of(60, 0))
    train_bpe(texts, 320, folder / "tokenizer")
    init_model(folder, folder / "tokenizer", {"num_hidden_layers": 2, "hidden_size": 64})
    return folder


def config_of(model: Path, run_dir: Path, **changes: Any) -> DPOConfig:
    config = DPOConfig(
        run_dir=str(run_dir),
        num_steps=STEPS,
        tokens_per_step=1024,
        max_tokens=64,
        model=ModelConfig(path=str(model)),
        optimizer=OptimizerConfig(lr=1e-3, warmup_steps=2),
        learner=LearnerConfig(num_workers=2, zero_stage=2, max_tokens_per_micro_batch=256),
        checkpoint=CheckpointConfig(every=10),
        evaluate_every=10,
        max_failures=0,
    )
    return replace(config, **changes)


@pytest.fixture(scope="module")
def run(cluster: None, model: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    config = config_of(model, tmp_path_factory.mktemp("run"))
    return run_dpo(config, rows=pairs_of(60, 0), heldout_rows=pairs_of(16, 1))


def plain_logprobs(folder: Path, pairs: Any) -> np.ndarray:
    """Summed log-probabilities of every answer by transformers, one unpadded row at a time."""
    from transformers import AutoModelForCausalLM

    policy = AutoModelForCausalLM.from_pretrained(str(folder)).eval()
    examples, sums = pairs.examples, []
    for row in range(len(examples)):
        span = slice(examples.cu_seqlens[row], examples.cu_seqlens[row + 1])
        ids = torch.from_numpy(examples.token_ids[span]).long()
        mask = torch.from_numpy(examples.loss_mask[span])[1:]
        with torch.no_grad():
            logprobs = policy(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        sums.append(float(logprobs[mask].double().sum()))
    return np.array(sums).reshape(-1, 2)


def loaded(config: DPOConfig, rows: list[dict[str, Any]]) -> Any:
    from rlplatform.servable import tokenizer_of

    tokenizer = tokenizer_of(config.model.path, trust_remote_code=False)
    return load_dpo_pairs(config, tokenizer, rows, lambda prompt: True)[0]


def test_the_loss_by_hand() -> None:
    chosen, rejected = torch.tensor([-1.0, -2.0]), torch.tensor([-3.0, -2.0])
    losses = dpo_losses(chosen, rejected, torch.tensor([1.0, 0.0]), beta=0.5)
    assert losses.tolist() == pytest.approx([math.log(1 + math.exp(-0.5 * (2.0 - 1.0))), math.log(2)])


def test_only_the_answer_is_a_target(model: Path, tmp_path: Path) -> None:
    config = config_of(model, tmp_path)
    pairs = loaded(config, pairs_of(1, 0))
    from rlplatform.servable import tokenizer_of

    tokenizer = tokenizer_of(str(model), trust_remote_code=False)
    ids = pairs.examples.token_ids[pairs.examples.loss_mask]
    text = tokenizer.decode(ids)
    row = pairs_of(1, 0)[0]
    assert row["chosen"] in text
    assert row["rejected"] in text
    assert "Go on" not in text


@pytest.mark.slow
def test_it_learns_to_prefer_and_the_margin_rises_on_held_out_pairs(run: TrainingResult) -> None:
    rows = RunFolder(run.model.parent).read_metrics()
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)  # policy and reference are the same
    assert rows[0]["dpo/margin"] == pytest.approx(0.0, abs=1e-5)
    margins = [row["heldout/dpo/margin"] for row in rows if "heldout/dpo/margin" in row]
    assert len(margins) == 2
    assert 0 < margins[0] < margins[1]
    assert run.summary["heldout/dpo/accuracy"] == 1.0


@pytest.mark.slow
def test_held_out_numbers_are_transformers_on_both_models(run: TrainingResult, model: Path, tmp_path: Path) -> None:
    config = config_of(model, tmp_path)
    pairs = loaded(config, pairs_of(16, 1))
    before, after = plain_logprobs(model, pairs), plain_logprobs(run.model, pairs)
    rewards = config.beta * (after - before)
    margins = rewards[:, 0] - rewards[:, 1]
    assert run.summary["heldout/dpo/margin"] == pytest.approx(margins.mean(), rel=1e-4)
    assert run.summary["heldout/dpo/chosen_reward"] == pytest.approx(rewards[:, 0].mean(), rel=1e-4)
    assert run.summary["heldout/loss"] == pytest.approx(np.log1p(np.exp(-margins)).mean(), rel=1e-4)
    kept = np.load(run.model.parent / "heldout_reference_logprobs.npz")["logprobs"].reshape(-1, 2)
    assert kept == pytest.approx(before, rel=1e-5)


def test_the_loss_does_not_depend_on_how_pairs_are_cut(model: Path, tmp_path: Path) -> None:
    from model.hf import load_policy
    from model.logprobs import TokenScorer

    config = config_of(model, tmp_path)
    pairs = loaded(config, pairs_of(12, 2))
    scorer = TokenScorer(load_policy(str(model)))

    class Engine:
        device = "cpu"

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return scorer(*args, **kwargs)

    engine: Any = Engine()
    reference = np.random.default_rng(0).normal(size=2 * len(pairs))
    objective = DirectPreference(pairs, reference, 0.3, 64)
    rows = np.arange(len(pairs))
    whole, numbers = objective.loss(engine, rows, len(rows))
    for cut in ([[0, 1, 2], list(range(3, 12))], [[k] for k in range(12)], [list(range(12)), []]):
        parts = [objective.loss(engine, np.array(part, dtype=np.int64), len(rows)) for part in cut]
        assert sum(float(loss.detach()) for loss, _ in parts) == pytest.approx(float(whole.detach()), rel=1e-5)
        sums = np.sum([part for _, part in parts], axis=0)
        assert sums == pytest.approx(numbers, rel=1e-4)


@pytest.mark.slow
def test_reference_free_leaves_the_reference_out(model: Path, tmp_path: Path) -> None:
    config = config_of(model, tmp_path, reference_free=True, num_steps=1, heldout_share=0.0)
    result = run_dpo(config, rows=pairs_of(8, 3))
    assert not list(tmp_path.glob("*.npz"))
    pairs = loaded(config, pairs_of(8, 3))
    (row,) = RunFolder(tmp_path).read_metrics()
    logprobs = plain_logprobs(model, pairs)
    rows = next(plan_steps(pairs.lengths, seed=0, tokens_per_step=config.tokens_per_step))  # it begins a second round
    margins = config.beta * (logprobs[rows, 0] - logprobs[rows, 1])
    assert row["pairs"] == len(rows)
    assert row["loss"] == pytest.approx(np.log1p(np.exp(-margins)).mean(), rel=1e-4)
    assert result.summary["steps"] == 1


def test_what_cannot_be_used_is_refused(model: Path, tmp_path: Path) -> None:
    same = [{"prompt": "a", "chosen": "b", "rejected": "b"}]
    with pytest.raises(DataError, match="expected at least one pair of two different conversations"):
        run_dpo(config_of(model, tmp_path), rows=same)
    with pytest.raises(DataError, match=r"of heldout_share=0\.001: raise it"):
        run_dpo(config_of(model, tmp_path, heldout_share=0.001), rows=pairs_of(4, 0))
    with pytest.raises(ConfigError, match="beta: expected > 0"):
        DPOConfig(beta=0.0)
