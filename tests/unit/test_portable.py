"""Portable checkpoints on one rank, without Ray: what goes on is what would have gone on."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from actors import portable
from actors.engine import TrainEngine
from actors.training_process import init_process_group
from model.logprobs import TokenScorer
from pretrain.proxies import SmallRun, fresh_model
from pretrain.step import model_inputs
from rlplatform.config import LearnerConfig, OptimizerConfig

VOCAB, TOKENS = 64, 24


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> Iterator[None]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:  # what a group sets is as before when it ends
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            patch.setenv(name, "0")
        init_process_group(0, 1, "127.0.0.1", port, timeout_s=60, use_gpu=False)
        yield
        dist.destroy_process_group()


def engine_of(zero_stage: int = 0, dtype: str = "float32") -> TrainEngine:
    architecture = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 64}
    policy = fresh_model(SmallRun(architecture, VOCAB, rows_per_step=1, lr=0.0)).to(getattr(torch, dtype))
    learner = LearnerConfig(zero_stage=zero_stage)  # type: ignore[arg-type]
    optimizer = OptimizerConfig(lr=1e-2, weight_decay=0.1)
    return TrainEngine(TokenScorer(policy), optimizer, learner, dtype=dtype, num_optimizer_steps=20)


def train(engine: TrainEngine, steps: range) -> None:
    for step in steps:
        ids = np.random.default_rng(step).integers(0, VOCAB, TOKENS).astype(np.int32)
        logprobs, _ = engine(*model_inputs(ids, np.array([0, TOKENS]), "cpu"))
        engine.backward(-logprobs.mean(), last=True)
        engine.step()


def saved(engine: TrainEngine, folder: Path) -> Path:
    folder.mkdir()
    portable.gather(engine)(folder)
    return folder


def weights_of(engine: TrainEngine) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in engine.full_state()}


def check_equal(one: TrainEngine, other: TrainEngine) -> None:
    expected = weights_of(other)
    for name, tensor in weights_of(one).items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize(
    ("zero_stage", "dtype"), [(0, "float32"), (2, "float32"), (0, "bfloat16"), (1, "bfloat16"), (2, "bfloat16")]
)
def test_every_engine_goes_on_bit_for_bit(zero_stage: int, dtype: str, tmp_path: Path) -> None:
    whole = engine_of(zero_stage, dtype)
    train(whole, range(3))
    folder = saved(whole, tmp_path / "three")
    train(whole, range(3, 6))
    again = engine_of(zero_stage, dtype)
    portable.load(again, folder)
    assert again.num_steps == 3
    train(again, range(3, 6))
    check_equal(again, whole)


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_a_stage_that_took_moments_over_goes_on_bit_for_bit(zero_stage: int, tmp_path: Path) -> None:
    """Adam has taken more steps than this stage: its bias correction must not begin again."""
    before = engine_of(zero_stage)
    train(before, range(5))
    first = saved(before, tmp_path / "first")
    whole = engine_of(zero_stage)
    portable.load(whole, first, counters=False)
    train(whole, range(5, 7))
    middle = saved(whole, tmp_path / "middle")
    train(whole, range(7, 9))
    again = engine_of(zero_stage)
    portable.load(again, middle)
    assert again.num_steps == 2
    train(again, range(7, 9))
    check_equal(again, whole)


def test_what_is_drawn_at_random_goes_on_as_well(tmp_path: Path) -> None:
    engine = engine_of()
    folder = saved(engine, tmp_path / "zero")
    drawn = (random.random(), np.random.random(), torch.rand(2).tolist())
    portable.load(engine, folder)
    assert (random.random(), np.random.random(), torch.rand(2).tolist()) == drawn
    portable.load(engine, folder, counters=False)  # another stage: its own seed counts
    assert torch.rand(2).tolist() != drawn[2]
