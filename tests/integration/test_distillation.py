"""On-policy distillation on real DeepSpeed ranks and teacher actors, against the same arithmetic written out."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from actors.learner import LearnerGroup
from actors.teacher import TeacherFleet
from model.tokenizer import load_tokenizer
from rlplatform.config import (
    AlgorithmConfig,
    ConfigError,
    LearnerConfig,
    ModelConfig,
    OptimizerConfig,
    RewardConfig,
    RLConfig,
    TeacherConfig,
)
from rlplatform.types import RolloutBatch, TrainBatch, rows
from tests.integration import rollout_models as kit
from tests.integration.conftest import StartLearner

# w -= lr * g / (|g| + 1): the gradient itself is seen, and nothing is divided by a small number
PLAIN_GRADIENT = OptimizerConfig(lr=1.0, betas=(0.0, 0.0), eps=1.0, max_grad_norm=0.0)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> str:
    return kit.save(kit.make_model(seed=1), tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return kit.save(kit.make_model(seed=2), tmp_path_factory.mktemp("teacher"))


def configuration(teacher: str, ranks: int = 1, *, budget: int = 8192, top_k: int = 0, **algorithm: Any) -> RLConfig:
    return RLConfig(
        num_steps=4,
        prompts_per_step=3,
        group_size=2,
        reward=RewardConfig(functions={"math": 1.0}),
        algorithm=AlgorithmConfig(loss="distillation", **algorithm),
        teacher=TeacherConfig(
            path=teacher, num_workers=2, cpus_per_worker=0.5, top_k=top_k, max_tokens_per_micro_batch=64
        ),
        optimizer=PLAIN_GRADIENT,
        learner=LearnerConfig(
            num_workers=ranks, max_tokens_per_micro_batch=budget, logprob_chunk_tokens=16, call_timeout_s=300.0
        ),
    )


@pytest.fixture(scope="module")
def teachers(cluster: None, student: str, teacher: str) -> Iterator[Callable[[int], TeacherFleet]]:
    fleets: dict[int, TeacherFleet] = {}

    def started(top_k: int) -> TeacherFleet:
        if top_k not in fleets:
            config = configuration(teacher, top_k=top_k).teacher
            fleets[top_k] = TeacherFleet(config, ModelConfig(path=student))
        return fleets[top_k]

    yield started
    for fleet in fleets.values():
        fleet.close()


def rollouts(num_rows: int = 6, seed: int = 0) -> RolloutBatch:
    """Completions with a stretch in the middle that was given, not sampled."""
    rng = np.random.default_rng(seed)
    prompts, completions = rng.integers(3, 9, num_rows), rng.integers(6, 30, num_rows)
    cu_seqlens = np.concatenate(([0], np.cumsum(prompts + completions))).astype(np.int32)
    total = int(cu_seqlens[-1])
    mask = np.concatenate([np.repeat([False, True], [p, c]) for p, c in zip(prompts, completions, strict=True)])
    for start, prompt in zip(cu_seqlens[:-1], prompts, strict=True):
        mask[start + prompt + 2 : start + prompt + 4] = False
    return RolloutBatch(
        token_ids=rng.integers(8, kit.VOCAB, total).astype(np.int32),
        cu_seqlens=cu_seqlens,
        loss_mask=mask,
        rollout_logprobs=np.where(mask, -7.6, 0.0).astype(np.float32),
        advantages=np.zeros(total, dtype=np.float32),
        rewards=np.zeros(num_rows, dtype=np.float32),
        group_ids=(np.arange(num_rows) // 2).astype(np.int32),
        oldest_version=0,
    )


def plain(log_p: torch.Tensor, log_q: torch.Tensor, kind: str, top_k: int) -> torch.Tensor:
    """KL of two whole distributions, or of their top-k-and-rest versions; p the teacher's."""
    if top_k:
        ids = log_p.topk(top_k, dim=-1).indices
        log_p, log_q = (
            torch.cat((x.gather(1, ids), (1 - x.gather(1, ids).exp().sum(1, keepdim=True)).log()), dim=1)
            for x in (log_p, log_q)
        )
    p, q = log_p.exp(), log_q.exp()
    return (p * (log_p - log_q)).sum(1) if kind == "forward_kl" else (q * (log_q - log_p)).sum(1)


def one_step(student: str, teacher: str, batch: RolloutBatch, kind: str, top_k: int) -> tuple[float, dict[str, Any]]:
    """Mean divergence and the weights after the step: rows one by one, transformers, float64.

    Both models have rows for more ids than the tokenizer knows: those are left out.
    """
    known = len(load_tokenizer(student))
    assert known < kit.VOCAB
    own, frozen = (
        AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").double() for path in (student, teacher)
    )
    total = torch.zeros((), dtype=torch.float64)
    for span in rows(batch.cu_seqlens):
        tokens = torch.tensor(batch.token_ids[span], dtype=torch.long)
        mask = torch.tensor(batch.loss_mask[span][1:])
        with torch.no_grad():
            log_p = torch.log_softmax(frozen(tokens[None]).logits[0, :-1, :known][mask], dim=-1)
        log_q = torch.log_softmax(own(tokens[None]).logits[0, :-1, :known][mask], dim=-1)
        total = total + plain(log_p, log_q, kind, top_k).sum()
    loss = total / int(batch.loss_mask.sum())
    loss.backward()
    after = {
        name: (p - p.grad / (p.grad.abs() + 1.0)).detach().numpy()
        for name, p in own.named_parameters()
        if p.requires_grad
    }
    return loss.item(), after


def matrix_flops(folder: str, batch: RolloutBatch) -> float:
    """Two a weight and token in every linear layer; in the output layer of loss tokens alone."""
    layers = AutoModelForCausalLM.from_pretrained(folder).named_modules()
    weights = {name: layer.weight.numel() for name, layer in layers if isinstance(layer, torch.nn.Linear)}
    head = weights.pop("lm_head")
    return 2.0 * (sum(weights.values()) * len(batch.token_ids) + head * batch.num_loss_tokens)


@pytest.mark.parametrize(
    ("ranks", "budget", "kind", "top_k"),
    [(1, 8192, "reverse_kl", 0), (2, 40, "reverse_kl", 0), (1, 40, "forward_kl", 16), (2, 8192, "reverse_kl", 16)],
)
def test_one_update_is_the_plain_arithmetic(
    start_learner: StartLearner,
    teachers: Any,
    student: str,
    teacher: str,
    ranks: int,
    budget: int,
    kind: str,
    top_k: int,
) -> None:
    learner = start_learner(configuration(teacher, ranks, budget=budget, top_k=top_k, divergence=kind), student)
    learner.attach_teacher(teachers(top_k))
    before = learner.full_state()
    batch = rollouts()
    metrics = learner.update(learner.add_logprobs(batch))
    loss, expected = one_step(student, teacher, batch, kind, top_k)
    assert metrics["distill/divergence"] == pytest.approx(loss, rel=1e-4)
    assert metrics["loss/total"] == pytest.approx(loss, rel=1e-4)
    assert metrics["learner/loss_tokens"] == batch.num_loss_tokens
    assert metrics["teacher/tokens"] == len(batch.token_ids)
    products = matrix_flops(teacher, batch)
    assert products < metrics["teacher/flops"] < 1.1 * products  # attention's own are a few in a hundred here
    after = learner.full_state()
    for name, values in expected.items():
        change = np.linalg.norm(after[name] - values) / np.linalg.norm(values - before[name])
        assert change < 1e-3, name


def test_the_divergence_falls(start_learner: StartLearner, teachers: Any, student: str, teacher: str) -> None:
    config = configuration(teacher)
    learner = start_learner(replace(config, num_steps=30, optimizer=OptimizerConfig(lr=2e-3)), student)
    learner.attach_teacher(teachers(0))
    batch = learner.add_logprobs(rollouts())
    values = [learner.update(batch)["distill/divergence"] for _ in range(30)]
    assert values[-1] < 0.25 * values[0]


def test_a_student_that_is_its_teacher_has_nothing_to_learn(
    start_learner: StartLearner, teachers: Any, teacher: str
) -> None:
    learner: LearnerGroup = start_learner(configuration(teacher, top_k=16), teacher)
    learner.attach_teacher(teachers(16))
    before = learner.full_state()
    metrics = learner.update(learner.add_logprobs(rollouts()))
    assert 0 <= metrics["distill/divergence"] < 1e-5
    assert max(float(np.abs(after - before[name]).max()) for name, after in learner.full_state().items()) < 1e-4


def test_a_teacher_that_dies_is_asked_again(teachers: Any) -> None:
    fleet = teachers(16)
    batch = TrainBatch(rollouts(), None, None)
    whole = fleet.add_targets(batch).teacher
    os.kill(fleet._fleet.incarnation(0).pid, signal.SIGKILL)
    again = fleet.add_targets(batch).teacher
    assert np.array_equal(whole.ids, again.ids)
    np.testing.assert_array_equal(whole.logprobs, again.logprobs)


def test_another_vocabulary_is_refused_before_anything_starts(student: str, tmp_path: Path) -> None:
    other = kit.save(kit.make_model(seed=3), tmp_path)
    vocabulary = tmp_path / "tokenizer.json"
    vocabulary.write_text(vocabulary.read_text().replace('"<|im_end|>"', '"<|other|>"'))
    with pytest.raises(ConfigError, match=r"teacher.path .*"):
        TeacherFleet(configuration(other).teacher, ModelConfig(path=student))


def test_what_does_not_go_with_distillation() -> None:
    reward = RewardConfig(functions={"math": 1.0})
    with pytest.raises(ConfigError, match=r"teacher.path: expected a model with algorithm.loss=distillation"):
        RLConfig(reward=reward, algorithm=AlgorithmConfig(loss="distillation"))
    with pytest.raises(ConfigError, match=r"teacher.path: expected a model"):
        RLConfig(reward=reward, teacher=TeacherConfig(path="m"))
    with pytest.raises(ConfigError, match="expected kl_coef=0"):
        RLConfig(
            reward=reward,
            teacher=TeacherConfig(path="m"),
            algorithm=AlgorithmConfig(loss="distillation", kl_coef=0.1),
        )
