"""A mixture of experts on real DeepSpeed ranks: reinforcement updates and SFT, experts balanced over the whole step."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from actors.learner import LearnerGroup
from actors.learner_worker import LearnerWorker
from model.config import PRESETS
from model.hf import load_policy
from model.logprobs import TokenScorer
from model.moe import RouterRecord
from model.qwen3 import Qwen3
from model.tokenizer import chat_texts, train_bpe
from pretrain.examples import load_examples
from pretrain.sft import run_sft
from pretrain.step import micro_batch_loss, plan_steps
from rlplatform.config import (
    ConfigError,
    DataConfig,
    LearnerConfig,
    ModelConfig,
    OptimizerConfig,
    RLConfig,
    SFTConfig,
)
from rlplatform.roles import RunStopped
from rlplatform.runs import RunFolder
from rlplatform.tasks.arithmetic import problems
from rlplatform.types import RolloutBatch, rows
from tests.integration.test_learner import VOCABULARY, Reference, configuration, equal, relative_error, rollouts

MOE = replace(
    PRESETS["tiny-moe"],
    hidden_size=64,
    num_attention_heads=2,
    num_key_value_heads=1,
    num_hidden_layers=3,
    moe_intermediate_size=32,
    num_experts=16,
    num_experts_per_tok=2,
    vocab_size=VOCABULARY,
)


def save(config: Any, folder: Path) -> str:
    policy = Qwen3(config).init_weights(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(3.0 if parameter.ndim > 1 else 1.0)  # routing is decided, no expert's turn on a rounding
    policy.save_pretrained(folder, policy.to_checkpoint((n, p.detach()) for n, p in policy.hf_named_parameters()))
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(MOE, tmp_path_factory.mktemp("moe"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def start(cluster: None, model: str) -> Iterator[Callable[[RLConfig], LearnerGroup]]:
    """Processes of one and of two ranks are started once; a test loads its configuration into them."""
    groups: dict[int, LearnerGroup] = {}

    def started(config: RLConfig) -> LearnerGroup:
        ranks = config.learner.num_workers
        if ranks in groups:
            groups[ranks].restart(config, model)
        else:
            groups[ranks] = LearnerGroup(config, model)
        return groups[ranks]

    yield started
    for group in groups.values():
        group.close()


def moe_configuration(ranks: int = 1, *, balance_coef: float | None = 1.0, **changes: Any) -> RLConfig:
    learner = {name: changes.pop(name) for name in ("router_balance", "router_z_coef") if name in changes}
    checkpointing = changes.pop("activation_checkpointing", "none")
    config = configuration(ranks, **changes)
    learner |= {"router_balance_coef": balance_coef, "activation_checkpointing": checkpointing}
    return replace(config, learner=replace(config.learner, **learner))


def initial(model: str) -> dict[str, np.ndarray]:
    return {name: p.detach().numpy() for name, p in load_policy(model).hf_named_parameters()}


def update(learner: LearnerGroup, batch: RolloutBatch) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    metrics = learner.update(learner.add_logprobs(batch))
    return learner.full_state(), metrics


@pytest.fixture(scope="module")
def whole(start: Any) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """One rank, one micro-batch, no ZeRO: what every other layout must give."""
    return update(start(moe_configuration(stage=0, router_z_coef=0.1)), rollouts())


def test_one_update_is_transformers_with_the_losses_written_out(model: str, whole: Any) -> None:
    """Rows one by one through transformers' eager loop; f and p from its router logits."""
    reference, batch = Reference(model), rollouts()
    reference.hf.set_experts_implementation("eager")
    logits: list[list[torch.Tensor]] = [[], [], []]
    for span in rows(batch.cu_seqlens):
        tokens = torch.tensor(batch.token_ids[span]).long()
        for layer, of_row in enumerate(reference.hf(tokens[None], output_router_logits=True).router_logits):
            logits[layer].append(of_row)
    balance, z = torch.zeros(()), torch.zeros(())
    for of_rows in logits:
        of_layer = torch.cat(of_rows)
        chosen = torch.zeros_like(of_layer).scatter(1, of_layer.topk(2).indices, 1.0)
        balance = balance + 16 * (chosen.mean(0) / 2 * of_layer.softmax(-1).mean(0)).sum() / 3
        z = z + of_layer.logsumexp(-1).square().mean() / 3
    (balance + 0.1 * z).backward()
    policy = reference.step(batch, range(12))
    state, metrics = whole
    assert relative_error(state, reference.state(), initial(model)) < 1e-4
    assert metrics["router/balance_loss"] == pytest.approx(float(balance.detach()), rel=1e-5)
    assert metrics["router/z_loss"] == pytest.approx(float(z.detach()), rel=1e-5)
    assert metrics["loss/total"] == pytest.approx(policy + float((balance + 0.1 * z).detach()), rel=1e-5)


@pytest.mark.parametrize(
    ("ranks", "stage", "budget", "checkpointing"),
    [
        (1, 2, 160, "none"),
        (1, 2, 80, "selective"),
        (2, 0, 8192, "none"),
        (2, 2, 80, "none"),
        (1, 3, 160, "none"),
        (2, 3, 8192, "none"),
        (2, 3, 80, "none"),
        (2, 3, 160, "full"),
        (2, 3, 160, "selective"),
    ],
)
def test_one_update_is_the_same_for_any_ranks_stage_micro_batches_and_checkpointing(
    start: Any, model: str, whole: Any, ranks: int, stage: int, budget: int, checkpointing: str
) -> None:
    config = moe_configuration(
        ranks, stage=stage, budget=budget, router_z_coef=0.1, activation_checkpointing=checkpointing
    )
    state, metrics = update(start(config), rollouts())
    expected, wanted = whole
    assert relative_error(state, expected, initial(model)) < 1e-4
    for name in ("loss/total", "optimizer/grad_norm", *(name for name in wanted if name.startswith("router/"))):
        if name != "router/balance_loss_micro":
            assert metrics[name] == pytest.approx(wanted[name], rel=1e-4, abs=1e-7), name
    assert wanted["router/balance_loss"] > 1.0
    if ranks > 1 or budget < 8192:
        assert metrics["router/balance_loss_micro"] > wanted["router/balance_loss_micro"]
    router_terms = metrics["router/balance_loss"] + 0.1 * metrics["router/z_loss"]
    assert metrics["loss/total"] == pytest.approx(metrics["loss/policy"] + router_terms, rel=1e-4)


def leaves(worker: LearnerWorker) -> list[str]:
    """On a rank: the modules that ZeRO-3 gathers as a whole."""
    from deepspeed.utils import z3_leaf_module

    scorer = worker.engine._deepspeed.module
    return [name for name, module in scorer.named_modules() if z3_leaf_module(module)]


def test_each_mixture_is_one_leaf_of_zero_3(start: Any) -> None:
    learner = start(moe_configuration(2, stage=3))
    assert learner.workers.call(1, leaves) == [f"policy.model.layers.{layer}.mlp" for layer in range(3)]


@pytest.mark.parametrize("stage", [2, 3])
def test_bfloat16_on_two_ranks_stays_near_float32(start: Any, model: str, whole: Any, stage: int) -> None:
    config = moe_configuration(2, stage=stage, budget=80, router_z_coef=0.1, model=ModelConfig(dtype="bfloat16"))
    state, metrics = update(start(config), rollouts())
    assert all(np.isfinite(values).all() for values in state.values())
    for name in ("router/balance_loss", "router/z_loss", "router/entropy", "optimizer/grad_norm"):
        assert metrics[name] == pytest.approx(whole[1][name], rel=0.05), name


def test_the_balance_loss_is_what_moved_the_router_and_by_default_it_is_off(start: Any, model: str, whole: Any) -> None:
    off, metrics = update(start(moe_configuration(2, stage=3, budget=80, balance_coef=None)), rollouts())
    gate = "model.layers.1.mlp.gate.weight"
    start_weights = initial(model)
    moved, alone = whole[0][gate] - start_weights[gate], off[gate] - start_weights[gate]
    assert np.linalg.norm(moved - alone) > 0.1 * np.linalg.norm(moved)
    assert metrics["loss/total"] == pytest.approx(metrics["loss/policy"])
    assert metrics["router/balance_loss"] == pytest.approx(whole[1]["router/balance_loss"], rel=1e-4)  # still told


def test_the_micro_batch_form_depends_on_the_cut(start: Any, model: str, whole: Any) -> None:
    one, _ = update(start(moe_configuration(router_balance="micro_batch", router_z_coef=0.1)), rollouts())
    assert relative_error(one, whole[0], initial(model)) < 1e-4  # one micro-batch is the whole step
    cut, _ = update(start(moe_configuration(2, budget=80, router_balance="micro_batch", router_z_coef=0.1)), rollouts())
    assert relative_error(cut, whole[0], initial(model)) > 1e-2


@pytest.mark.parametrize("stage", [2, 3])
def test_a_rank_without_rows_and_experts_without_tokens_keep_step(start: Any, model: str, stage: int) -> None:
    """One row of one prompt token: most experts idle on rank 0, and rank 1 has none of the step's tokens."""
    batch = rollouts(num_rows=1)
    expected, wanted = update(start(moe_configuration(stage=0)), batch)
    state, metrics = update(start(moe_configuration(2, stage=stage)), batch)
    assert relative_error(state, expected, initial(model)) < 1e-4
    assert wanted["router/unused_share"] > 0.0
    for name in ("router/balance_loss", "router/balance_loss_micro", "router/unused_share", "router/entropy"):
        assert metrics[name] == pytest.approx(wanted[name], rel=1e-5), name


def test_several_steps_on_two_partitioned_ranks_follow_one_rank(start: Any, model: str) -> None:
    """Adam, three updates of two optimiser steps each, counts taken anew before each of them."""
    optimizer = OptimizerConfig(lr=1e-3, eps=1e-4)
    states = []
    for config in (
        moe_configuration(stage=0, balance_coef=0.1, optimizer=optimizer, updates_per_step=2),
        moe_configuration(2, stage=3, budget=80, balance_coef=0.1, optimizer=optimizer, updates_per_step=2),
    ):
        learner = start(config)
        for seed in range(3):
            state, metrics = update(learner, rollouts(seed=seed))
        assert metrics["optimizer/steps"] == 6.0
        states.append(state)
    assert relative_error(states[1], states[0], initial(model)) < 1e-2


def test_save_and_load_continue_bit_for_bit_and_the_export_loads_in_transformers(start: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    config = moe_configuration(2, stage=3, budget=80, optimizer=OptimizerConfig(lr=1e-3))
    learner = start(config)
    update(learner, rollouts(seed=1))
    (tmp_path / "checkpoint").mkdir()
    learner.save(str(tmp_path / "checkpoint"))
    expected, _ = update(learner, rollouts(seed=2))
    learner = start(config)
    learner.load(str(tmp_path / "checkpoint"))
    again, _ = update(learner, rollouts(seed=2))
    assert equal(again, expected)
    learner.export(str(tmp_path / "export"))
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "export").eval()
    batch = rollouts()
    logprobs = learner.logprobs(batch)
    span = slice(0, batch.cu_seqlens[1])
    tokens = torch.tensor(batch.token_ids[span]).long()
    with torch.no_grad():
        log_p = reference(tokens[None]).logits[0, :-1].log_softmax(-1).gather(1, tokens[1:, None])[:, 0].numpy()
    wanted = np.where(batch.loss_mask[span][1:], log_p, 0.0)
    np.testing.assert_allclose(logprobs[span][1:], wanted, atol=1e-4)
    assert json.loads((tmp_path / "export" / "config.json").read_text())["router_aux_loss_coef"] == pytest.approx(0.001)


def test_a_coefficient_for_a_dense_model_is_refused(cluster: None, tmp_path: Path) -> None:
    dense = replace(MOE, num_experts=0, intermediate_size=64)
    with pytest.raises((ConfigError, RunStopped), match=r"learner\.router_balance_coef=1\.0.*qwen3_moe, got qwen3"):
        LearnerGroup(moe_configuration(), save(dense, tmp_path))


# --- SFT ------------------------------------------------------------------------------------------------------------


def first_step(folder: str, data: list[dict], *, coef: float) -> tuple[float, float]:
    """Balance loss and gradient norm of the first optimiser step, all its rows in one packed pass in this process."""
    from transformers import AutoTokenizer

    examples, _ = load_examples(
        DataConfig(prompt="messages"), AutoTokenizer.from_pretrained(folder), rows=data, max_tokens=96
    )
    row_ids = next(plan_steps(examples.lengths, seed=SFTConfig().seed, tokens_per_step=512))
    policy, record = load_policy(folder), RouterRecord()
    denominator = int(examples.loss_tokens[row_ids].sum())
    loss, _ = micro_batch_loss(TokenScorer(policy), examples, row_ids, denominator=denominator, router=record)
    sums, counts = torch.stack(record.probability_sums), torch.stack(record.counts)
    f, p = counts / counts.sum(1, keepdim=True), sums / record.num_tokens
    balance = (counts.shape[1] * (f * p).sum(1)).mean()
    (loss + coef * balance).backward()
    grads = [parameter.grad for parameter in policy.parameters() if parameter.grad is not None]
    return float(balance.detach()), float(torch.nn.utils.get_total_norm(grads))


def test_sft_of_a_mixture_of_experts_learns_and_exports(cluster: None, tmp_path: Path) -> None:
    """Two ZeRO-3 ranks, several micro-batches a step, the checkpoint's own coefficient."""
    from transformers import AutoModelForCausalLM

    data = problems(0, num_sft=300, num_train=0, num_test=0, digits={2: 1})["sft"]
    train_bpe(chat_texts(row["messages"] for row in data), 320, tmp_path / "start")
    config = replace(MOE, vocab_size=320, balance_coef=1.0)
    policy = Qwen3(config).init_weights(0)
    state = policy.to_checkpoint((n, p.detach()) for n, p in policy.hf_named_parameters())
    policy.save_pretrained(tmp_path / "start", state)
    result = run_sft(
        SFTConfig(
            run_dir=str(tmp_path / "run"),
            num_steps=40,
            tokens_per_step=512,
            max_tokens=96,
            model=ModelConfig(path=str(tmp_path / "start")),
            data=DataConfig(prompt="messages"),
            optimizer=OptimizerConfig(lr=3e-3, warmup_steps=5),
            learner=LearnerConfig(num_workers=2, zero_stage=3, max_tokens_per_micro_batch=160),
        ),
        rows=data,
    )
    steps = RunFolder(result.model.parent).read_metrics()
    assert [step["step"] for step in steps] == list(range(1, 41))
    assert steps[-1]["loss"] < 0.6 * steps[0]["loss"]
    balance, norm = first_step(str(tmp_path / "start"), data, coef=1.0)
    assert steps[0]["router/balance_loss"] == pytest.approx(balance, rel=1e-5)
    assert steps[0]["optimizer/grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert abs(first_step(str(tmp_path / "start"), data, coef=0.0)[1] / norm - 1) > 1e-3  # the coefficient would show
    assert all(step["router/balance_loss"] < 1.5 for step in steps[10:])
    assert all(0.0 <= step["router/unused_share"] < 0.5 for step in steps)
    reference = AutoModelForCausalLM.from_pretrained(result.model)
    assert type(reference).__name__ == "Qwen3MoeForCausalLM"
    assert reference.config.router_aux_loss_coef == pytest.approx(0.5)
    native = load_policy(str(result.model))
    tokens = torch.arange(20) + 5
    with torch.no_grad():
        hidden = native(tokens, torch.arange(20), torch.tensor([0, 20], dtype=torch.int32))
        theirs = reference.eval()(tokens[None]).logits[0]
    assert float((hidden.detach() @ native.lm_head_weight.detach().T - theirs).abs().max()) < 1e-4
