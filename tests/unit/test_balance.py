"""The routers' losses: by hand, against transformers, and independent of how a step's tokens are cut."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.balance import RouterLosses, RouterStep, balance_loss, counting_pass, mean_metrics
from model.config import PRESETS, Qwen3Config
from model.moe import RouterRecord
from model.qwen3 import Qwen3

CONFIG = replace(PRESETS["tiny-moe"], hidden_size=32, moe_intermediate_size=16, num_hidden_layers=2)
SHAPE = (CONFIG.num_hidden_layers, CONFIG.num_experts)


# --- the formula ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooled", [False, True])
def test_uniform_use_gives_one_whatever_the_probabilities_and_the_other_way_round(pooled: bool) -> None:
    skewed = torch.tensor([[7.0, 2.0, 1.0, 0.0], [10.0, 0.0, 0.0, 0.0]])  # 10 tokens
    even = torch.full((2, 4), 5)
    assert float(balance_loss(skewed, even, 10, pooled=pooled)) == pytest.approx(1.0)
    assert float(balance_loss(torch.full((2, 4), 2.5), skewed.long(), 10, pooled=pooled)) == pytest.approx(1.0)


def test_by_hand() -> None:
    """4 experts, 2 a token, 4 tokens. f = (4, 2, 2, 0)/8, p = (2, 1, 0.5, 0.5)/4: 4 * (1/4 + 1/16 + 1/32) = 1.375."""
    counts, sums = torch.tensor([[4, 2, 2, 0]]), torch.tensor([[2.0, 1.0, 0.5, 0.5]])
    assert float(balance_loss(sums, counts, 4)) == pytest.approx(1.375)
    # A second layer, balanced: the mean of the two; pooled, f = (6, 4, 4, 2)/16 and p = (3, 2, 1.5, 1.5)/8.
    two_counts, two_sums = torch.tensor([[4, 2, 2, 0], [2, 2, 2, 2]]), torch.cat((sums, torch.ones(1, 4)))
    assert float(balance_loss(two_sums, two_counts, 4)) == pytest.approx((1.375 + 1.0) / 2)
    f, p = torch.tensor([6, 4, 4, 2]) / 16, torch.tensor([3.0, 2.0, 1.5, 1.5]) / 8
    assert float(balance_loss(two_sums, two_counts, 4, pooled=True)) == pytest.approx(4 * float(f @ p))
    # All tokens at k experts, with all the probability: E / k.
    assert float(balance_loss(torch.tensor([[2.0, 2.0, 0, 0]]), torch.tensor([[4, 4, 0, 0]]), 4)) == pytest.approx(2.0)


@settings(deadline=None)
@given(st.integers(2, 8), st.integers(1, 4), st.integers(1, 30), st.integers(0, 10_000))
def test_only_probabilities_get_a_gradient_and_it_is_the_slope(
    num_experts: int, top_k: int, tokens: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, tokens, num_experts, generator=generator, dtype=torch.float64).requires_grad_()
    top_k = min(top_k, num_experts)
    chosen = logits.topk(top_k).indices
    counts = torch.stack([torch.bincount(layer.flatten(), minlength=num_experts) for layer in chosen])

    def value(logits: torch.Tensor) -> torch.Tensor:
        return balance_loss(logits.softmax(-1).sum(1), counts, tokens)

    assert torch.autograd.gradcheck(value, (logits,), eps=1e-6, atol=1e-7)
    assert 0.0 < float(value(logits).detach()) <= num_experts / top_k + 1e-9
    p, f = logits.softmax(-1).mean(1), counts.double() / (tokens * top_k)
    brute = (
        sum(float((f[layer, i] * p[layer, i]).detach()) for layer in range(2) for i in range(num_experts))
        * num_experts
        / 2
    )
    assert float(value(logits).detach()) == pytest.approx(brute, rel=1e-9)


# --- against transformers -------------------------------------------------------------------------------------------


def test_gradients_equal_transformers_on_one_micro_batch_and_the_coefficient_is_converted(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from model.hf import load_policy

    config = replace(CONFIG, balance_coef=0.35 * CONFIG.num_experts_per_tok)
    policy = Qwen3(config).init_weights(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(3.0) if parameter.ndim > 1 else None
    policy.save_pretrained(tmp_path, policy.to_checkpoint((n, p.detach()) for n, p in policy.hf_named_parameters()))
    assert json.loads((tmp_path / "config.json").read_text())["router_aux_loss_coef"] == pytest.approx(0.35)
    policy = load_policy(str(tmp_path))
    assert isinstance(policy.config, Qwen3Config)
    assert policy.config.balance_coef == pytest.approx(0.7)

    reference = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens = torch.randint(512, (1, 60), generator=torch.Generator().manual_seed(0))
    output = reference(tokens, labels=tokens, output_router_logits=True)
    output.loss.backward()
    record = RouterRecord()
    ends = torch.tensor([0, 60], dtype=torch.int32)
    logits = policy(tokens[0], torch.arange(60), ends, router=record) @ policy.lm_head_weight.T
    balance = balance_loss(torch.stack(record.probability_sums), torch.stack(record.counts), 60, pooled=True)
    assert float(balance.detach()) * CONFIG.num_experts_per_tok == pytest.approx(
        float(output.aux_loss.detach()), rel=1e-5
    )
    loss = torch.nn.functional.cross_entropy(logits[:-1], tokens[0, 1:]) + policy.config.balance_coef * balance
    assert float(loss.detach()) == pytest.approx(float(output.loss.detach()), rel=1e-5)
    loss.backward()
    expected = dict(reference.named_parameters())
    for name, parameter in policy.hf_named_parameters():
        wanted = expected[name].grad
        assert float((parameter.grad - wanted).norm() / wanted.norm()) < 1e-4, name


def test_coefficients_survive_load_and_save() -> None:
    values = CONFIG.to_hf() | {"router_aux_loss_coef": 0.001, "num_experts_per_tok": 4}
    config = Qwen3Config.from_hf(values)
    assert config.balance_coef == pytest.approx(0.004)
    assert config.to_hf()["router_aux_loss_coef"] == pytest.approx(0.001)
    silent = {key: value for key, value in values.items() if key != "router_aux_loss_coef"}
    assert Qwen3Config.from_hf(silent).balance_coef == pytest.approx(0.004)  # transformers' default, 0.001
    assert PRESETS["Qwen3-30B-A3B"].to_hf()["router_aux_loss_coef"] == pytest.approx(0.001)


# --- one step, cut in any way ---------------------------------------------------------------------------------------


def together(ranks: list[Callable[[Callable[[torch.Tensor], object]], Any]]) -> list[Any]:
    """Results of ranks played one after another. ``rank(sum_over_ranks)`` is run twice: first, without gradient, it
    only tells what it adds to each sum, then it is handed the sums. What it adds does not depend on what it is handed.
    """
    told: list[list[torch.Tensor]] = []
    for rank in ranks:
        mine: list[torch.Tensor] = []
        with torch.no_grad():
            rank(lambda tensor, mine=mine: mine.append(tensor.clone()))
        told.append(mine)
    results = []
    for rank in ranks:
        sums = iter([torch.stack(values).sum(0) for values in zip(*told, strict=True)])
        results.append(rank(lambda tensor, sums=sums: tensor.copy_(next(sums))))
        assert not list(sums)  # every rank takes part in every sum
    return results


def step_gradients(
    policy: Qwen3, layout: list[list[list[list[int]]]], losses: RouterLosses
) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """Gradients of the routers' losses alone for ``layout[rank][micro-batch] -> rows of token ids``, and metrics."""
    num_tokens = sum(len(row) for rank in layout for part in rank for row in part)

    def rank(parts: list[list[list[int]]], sum_over_ranks: Callable[[torch.Tensor], object]) -> dict[str, float]:
        step = RouterStep(
            losses, num_tokens=num_tokens, num_micro_batches=len(parts), sum_over_ranks=sum_over_ranks, shape=SHAPE
        )
        if step.must_count:
            with counting_pass("cpu"):
                for part in parts:
                    step.count(forward(policy, part) if part else None)
        for part in parts:
            loss = step.loss(forward(policy, part) if part else None)
            if isinstance(loss, torch.Tensor) and loss.requires_grad:
                loss.backward()
        return step.metrics()

    metrics = together([partial(rank, parts) for parts in layout])
    return {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}, metrics


def forward(policy: Qwen3, rows: list[list[int]]) -> RouterRecord:
    record = RouterRecord()
    positions = torch.cat([torch.arange(len(row)) for row in rows])
    ends = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0).to(torch.int32)
    policy(torch.tensor([token for row in rows for token in row]), positions, ends, router=record)
    return record


def wide_policy(seed: int = 0) -> Qwen3:
    policy = Qwen3(CONFIG).init_weights(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(3.0) if parameter.ndim > 1 else None
    return policy


ROWS = [torch.randint(512, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (5, 9, 3, 14, 8, 2, 11)]
LAYOUTS = {
    "one micro-batch": [[ROWS]],
    "two micro-batches": [[ROWS[:3], ROWS[3:]]],
    "four micro-batches": [[ROWS[:1], ROWS[1:3], ROWS[3:4], ROWS[4:]]],
    "two ranks": [[ROWS[:4]], [ROWS[4:]]],
    "two ranks, two micro-batches": [[ROWS[:1], ROWS[1:4]], [ROWS[4:6], ROWS[6:]]],
    "two ranks, one without rows": [[ROWS], [[]]],
    "two ranks, a micro-batch without rows": [[ROWS[:2], ROWS[2:]], [[], []]],
}


@pytest.mark.parametrize("layout", list(LAYOUTS)[1:])
def test_global_batch_gradient_does_not_depend_on_micro_batches_or_ranks(layout: str) -> None:
    losses = RouterLosses(balance_coef=0.5, z_coef=0.1)
    whole, (expected,) = step_gradients(wide_policy(), LAYOUTS["one micro-batch"], losses)
    cut, metrics = step_gradients(wide_policy(), LAYOUTS[layout], losses)
    assert whole.keys() == cut.keys()
    for name, grad in whole.items():
        assert float((cut[name] - grad).norm()) <= 1e-5 * float(grad.norm()), name
    for of_rank in metrics:
        assert of_rank == pytest.approx(metrics[0])
        for name in expected.keys() - {"router/balance_loss_micro"}:
            assert of_rank[name] == pytest.approx(expected[name], rel=1e-5), name


def test_micro_batch_gradient_does() -> None:
    losses = RouterLosses(balance="micro_batch", balance_coef=0.5)
    whole, (one,) = step_gradients(wide_policy(), LAYOUTS["one micro-batch"], losses)
    cut, (four,) = step_gradients(wide_policy(), LAYOUTS["four micro-batches"], losses)
    name = "model.layers.0.mlp.gate.weight"
    assert float((cut[name] - whole[name]).norm()) > 0.05 * float(whole[name].norm())
    assert four["router/balance_loss_micro"] > one["router/balance_loss_micro"]
    assert one["router/balance_loss_micro"] == pytest.approx(one["router/balance_loss"], rel=1e-5)
    same, _ = step_gradients(wide_policy(), LAYOUTS["one micro-batch"], RouterLosses(balance_coef=0.5))
    assert all(torch.equal(same[name], whole[name]) for name in whole)  # one micro-batch is the global batch


def specialised(chosen: list[int], num_tokens: int) -> RouterRecord:
    """A micro-batch of a domain all of whose tokens go to ``chosen`` experts, with all the probability."""
    counts, sums = torch.zeros(8, dtype=torch.int64), torch.zeros(8)
    counts[chosen], sums[chosen] = num_tokens, num_tokens / len(chosen)
    record = RouterRecord(num_tokens=num_tokens)
    for _ in range(2):
        record.append(sums, counts, torch.tensor(float(num_tokens)), torch.tensor(0.0))
    return record


@pytest.mark.parametrize(("balance", "expected"), [("global_batch", 1.0), ("micro_batch", 2.0)])
def test_specialised_ranks_are_balanced_together_and_not_alone(balance: Any, expected: float) -> None:
    """Rank 0's domain uses experts 0-3 alone, rank 1's 4-7: even together, and E / 4 = 2 each for itself."""

    def rank(chosen: list[int], sum_over_ranks: Callable[[torch.Tensor], object]) -> tuple[float, dict[str, float]]:
        losses = RouterLosses(balance=balance, balance_coef=1.0)
        step = RouterStep(losses, num_tokens=60, num_micro_batches=1, sum_over_ranks=sum_over_ranks, shape=SHAPE)
        return float(step.loss(specialised(chosen, 30))), step.metrics()

    results = together([partial(rank, [0, 1, 2, 3]), partial(rank, [4, 5, 6, 7])])
    assert sum(loss for loss, _ in results) == pytest.approx(expected)
    for _, metrics in results:
        assert metrics["router/balance_loss"] == pytest.approx(1.0)
        assert metrics["router/balance_loss_micro"] == pytest.approx(2.0)
        assert metrics["router/load_max"] == metrics["router/load_min"] == pytest.approx(1.0)
        assert metrics["router/unused_share"] == 0.0


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_any_cut_of_any_rows_gives_the_gradient_of_the_whole(data: st.DataObject) -> None:
    """Hypothesis over rows, micro-batches and ranks; probabilities are free tensors here, so no model is needed."""
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10_000)))
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=8))
    ranks, parts = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    place = [(data.draw(st.integers(0, ranks - 1)), data.draw(st.integers(0, parts - 1))) for _ in lengths]
    logits = [torch.randn(2, n, 8, generator=generator, dtype=torch.float64).requires_grad_() for n in lengths]

    def record(rows: list[torch.Tensor]) -> RouterRecord | None:
        if not rows:
            return None
        both = torch.cat(rows, dim=1)
        result = RouterRecord(num_tokens=both.shape[1])
        for layer in both:
            counts = torch.bincount(layer.topk(2).indices.flatten(), minlength=8)
            z = layer.logsumexp(-1).square().sum()
            result.append(layer.softmax(-1).sum(0), counts, z, torch.zeros((), dtype=torch.float64))
        return result

    def gradient(layout: list[list[list[torch.Tensor]]]) -> list[torch.Tensor]:
        counts = torch.zeros(SHAPE, dtype=torch.int64)
        for rank in layout:
            for part in rank:
                counts += torch.stack(found.counts) if (found := record(part)) else 0
        total = torch.zeros((), dtype=torch.float64)
        for rank in layout:
            step = RouterStep(
                RouterLosses(balance_coef=1.0, z_coef=0.01),
                num_tokens=sum(lengths),
                num_micro_batches=len(rank),
                sum_over_ranks=lambda tensor: tensor.copy_(counts),
                shape=SHAPE,
            )
            if step.must_count:
                for part in rank:
                    step.count(record(part))
            for part in rank:
                total = total + step.loss(record(part))
        return list(torch.autograd.grad(total, logits))

    layout = [
        [[row for row, at in zip(logits, place, strict=True) if at == (rank, part)] for part in range(parts)]
        for rank in range(ranks)
    ]
    for got, wanted in zip(gradient(layout), gradient([[logits]]), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)


def test_what_the_counting_pass_draws_is_drawn_again() -> None:
    torch.manual_seed(3)
    with counting_pass("cpu"):
        counted = torch.nn.functional.dropout(torch.ones(50))
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.nn.functional.dropout(torch.ones(50)), counted)


# --- metrics and settings -------------------------------------------------------------------------------------------


def test_metrics_by_hand() -> None:
    """Counts (6, 2, 0, 0) and (2, 2, 2, 2) of 4 experts, 4 tokens: loads (3, 1, 0, 0) and 1; a quarter unused."""
    record = RouterRecord(num_tokens=4)
    record.append(torch.tensor([2.0, 1.0, 0.5, 0.5]), torch.tensor([6, 2, 0, 0]), torch.tensor(8.0), torch.tensor(4.0))
    record.append(torch.ones(4), torch.tensor([2, 2, 2, 2]), torch.tensor(0.0), torch.tensor(4 * math.log(4)))
    step = RouterStep(
        RouterLosses(), num_tokens=4, num_micro_batches=1, sum_over_ranks=lambda tensor: None, shape=(2, 4)
    )
    assert not step.must_count
    assert step.loss(record) == 0.0  # no coefficient, nothing added
    metrics = step.metrics()
    assert metrics == pytest.approx(
        {
            "router/balance_loss": (4 * (0.75 * 0.5 + 0.25 * 0.25) + 1.0) / 2,
            "router/balance_loss_micro": (4 * (0.75 * 0.5 + 0.25 * 0.25) + 1.0) / 2,
            "router/z_loss": 1.0,
            "router/entropy": (1.0 + math.log(4)) / 2,
            "router/load_max": 2.0,
            "router/load_min": 0.5,
            "router/unused_share": 0.25,
        }
    )
    assert mean_metrics([metrics, dict.fromkeys(metrics, 0.0)])["router/load_max"] == 1.0
    assert mean_metrics([]) == {}


def test_every_metric_is_registered_with_its_meaning() -> None:
    from rlplatform.metrics import REGISTRY

    step = RouterStep(
        RouterLosses(), num_tokens=1, num_micro_batches=1, sum_over_ranks=lambda tensor: None, shape=(1, 2)
    )
    assert set(step.metrics()) == {metric.name for metric in REGISTRY if metric.name.startswith("router/")}


def test_negative_coefficients_are_refused() -> None:
    from rlplatform.config import ConfigError, LearnerConfig

    with pytest.raises(ConfigError, match=r"learner\.router_balance_coef: expected >= 0"):
        LearnerConfig(router_balance_coef=-0.1)
    with pytest.raises(ConfigError, match=r"learner\.router_z_coef: expected >= 0"):
        LearnerConfig(router_z_coef=-0.1)


def test_which_coefficient_counts() -> None:
    def of(config: object, coef: float | None, default: float | None, z: float = 0.0) -> RouterLosses | None:
        return RouterLosses.of(config, balance="global_batch", balance_coef=coef, z_coef=z, default_coef=default)

    assert of(CONFIG, None, None) == RouterLosses(balance_coef=CONFIG.balance_coef)
    assert of(CONFIG, None, 0.0) == RouterLosses(balance_coef=0.0)
    assert of(CONFIG, 0.3, 0.0) == RouterLosses(balance_coef=0.3)
    assert of(CONFIG, 0.0, None, z=1e-3) == RouterLosses(balance_coef=0.0, z_coef=1e-3)
    assert of(PRESETS["tiny"], None, None) is None
    assert of(PRESETS["tiny"], 0.0, None) is None
    for coef, z in ((0.01, 0.0), (None, 0.01)):
        with pytest.raises(ValueError, match=r"expected a mixture of experts of model_type qwen3_moe, got qwen3;"):
            of(PRESETS["tiny"], coef, None, z)
