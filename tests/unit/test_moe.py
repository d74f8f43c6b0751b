"""Mixture of experts: grouped against the plain loop and against transformers, values, gradients, edge cases."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import PRESETS, Qwen3Config
from model.hf import load_policy
from model.moe import Dispatch, Experts, MoE, RouterRecord
from model.qwen3 import Qwen3

TOKENS = torch.randint(0, 512, (97,), generator=torch.Generator().manual_seed(1))
LENGTHS = [40, 1, 56]


def tiny(**changes: Any) -> Qwen3Config:
    return replace(PRESETS["tiny-moe"], hidden_size=32, moe_intermediate_size=16, num_hidden_layers=2, **changes)


def arguments(lengths: list[int] = LENGTHS) -> tuple[torch.Tensor, ...]:
    positions = torch.cat([torch.arange(n) for n in lengths])
    ends = torch.tensor([0, *lengths]).cumsum(0)
    return TOKENS[: sum(lengths)], positions, ends.to(torch.int32)


def experts_of(num_experts: int, hidden: int = 16, inner: int = 8) -> Experts:
    config = tiny(num_experts=num_experts, num_experts_per_tok=1)
    experts = Experts(replace(config, hidden_size=hidden, moe_intermediate_size=inner))
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return experts


def gradients(out: torch.Tensor, inputs: list[torch.Tensor], grad: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(out, inputs, grad))


# --- the products ---------------------------------------------------------------------------------------------------


def test_two_tokens_by_hand() -> None:
    """Expert e multiplies by silu(1) * (e + 1): gate weights 1 on the first input, up rows e + 1, down the identity."""
    experts = experts_of(2, hidden=8, inner=8)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.zero_()
        for expert in range(2):
            experts.gate_up_proj[expert, :8, 0] = 1.0
            experts.gate_up_proj[expert, 8:] = (expert + 1.0) * torch.eye(8)
            experts.down_proj[expert] = torch.eye(8)
    x = torch.ones(2, 8)
    x[1, 1:] = 3.0
    chosen, weights = torch.tensor([[0, 1], [1, 0]]), torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    out = experts(x, weights, Dispatch.of(chosen, 2))
    silu = 1 / (1 + 2.718281828459045**-1)
    torch.testing.assert_close(out[0], torch.full((8,), silu * (0.25 * 1 + 0.75 * 2)))
    torch.testing.assert_close(out[1, 1:], torch.full((7,), silu * 3 * (0.5 * 2 + 0.5 * 1)))


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_grouped_equals_the_loop_whatever_is_chosen(data: st.DataObject) -> None:
    """Any number of tokens, k = 1 to E, experts without a token, all tokens at one expert."""
    num_experts = data.draw(st.integers(1, 6))
    top_k = data.draw(st.integers(1, num_experts))
    num_tokens = data.draw(st.integers(1, 12))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    usable = data.draw(st.integers(top_k, num_experts))  # experts beyond these get nothing
    chosen = torch.rand(num_tokens, usable, generator=generator).topk(top_k).indices
    weights = torch.rand(num_tokens, top_k, generator=generator).requires_grad_()
    x = torch.randn(num_tokens, 16, generator=generator).requires_grad_()
    experts = experts_of(num_experts)
    dispatch = Dispatch.of(chosen, num_experts)
    assert dispatch.counts.tolist() == [int((chosen == expert).sum()) for expert in range(num_experts)]
    out, wanted = experts(x, weights, dispatch), experts.loop(x, weights, chosen)
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-6)
    inputs = [x, weights, experts.gate_up_proj, experts.down_proj]
    grad = torch.randn(out.shape, generator=generator)
    for got, expected in zip(gradients(out, inputs, grad), gradients(wanted, inputs, grad), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_gradients_are_finite_differences() -> None:
    torch.manual_seed(0)
    experts = experts_of(3)
    x, weights = torch.randn(5, 16, requires_grad=True), torch.rand(5, 2, requires_grad=True)
    dispatch = Dispatch.of(torch.tensor([[0, 1], [1, 0], [0, 1], [1, 0], [0, 1]]), 3)
    direction = torch.randn(5, 16)
    inputs = [x, weights, experts.gate_up_proj, experts.down_proj]
    for tensor, gradient in zip(inputs, gradients(experts(x, weights, dispatch), inputs, direction), strict=True):
        step = torch.randn_like(tensor)
        with torch.no_grad():
            tensor += 1e-3 * step
            above = (experts(x, weights, dispatch) * direction).double().sum()
            tensor -= 2e-3 * step
            below = (experts(x, weights, dispatch) * direction).double().sum()
            tensor += 1e-3 * step
        slope = float(above - below) / 2e-3
        assert slope == pytest.approx(float((gradient.double() * step.double()).sum()), rel=5e-3, abs=1e-2)


def test_expanded_and_strided_gradients_are_taken() -> None:
    """``sum()`` hands back one number expanded, ``.T`` a strided gradient."""
    torch.manual_seed(0)
    experts, x, weights = experts_of(4), torch.randn(6, 16, requires_grad=True), torch.rand(6, 2)
    dispatch = Dispatch.of(torch.rand(6, 4).topk(2).indices, 4)
    for read, grad in ((torch.sum, torch.ones(6, 16)), (lambda y: (y.T * torch.arange(6.0)).sum(), None)):
        expected = torch.arange(6.0)[:, None].expand(6, 16).contiguous() if grad is None else grad
        got = torch.autograd.grad(read(experts(x, weights, dispatch)), x)[0]
        torch.testing.assert_close(got, gradients(experts(x, weights, dispatch), [x], expected)[0])


def test_frozen_experts_get_no_gradient_and_pass_one_on() -> None:
    experts = experts_of(4).requires_grad_(False)
    x = torch.randn(6, 16, requires_grad=True)
    experts(x, torch.rand(6, 2), Dispatch.of(torch.rand(6, 4).topk(2).indices, 4)).sum().backward()
    assert x.grad is not None
    assert experts.gate_up_proj.grad is None


@pytest.mark.parametrize("top_k", [1, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_of_one_token_and_the_extremes_of_k(top_k: int, dtype: torch.dtype) -> None:
    policy = Qwen3(tiny(num_experts_per_tok=top_k)).init_weights(0).to(dtype)
    record = RouterRecord()
    hidden = policy(*arguments([1]), router=record)
    assert [int(counts.sum()) for counts in record.counts] == [top_k, top_k]
    hidden.sum().backward()
    assert all(torch.isfinite(p.grad).all() for n, p in policy.named_parameters() if "lm_head" not in n)


def test_widths_that_no_grouped_product_takes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"multiples of 8.*got 32 and 12"):
        MoE(replace(tiny(), moe_intermediate_size=12))


# --- the router -----------------------------------------------------------------------------------------------------


def test_router_by_hand() -> None:
    config = tiny(num_experts=4, num_experts_per_tok=2)
    moe = MoE(replace(config, hidden_size=8))
    logits = torch.tensor([[1.0, 3.0, 2.0, 0.0], [0.0, 0.0, 0.0, 5.0]])
    with torch.no_grad():
        moe.gate.weight.zero_()
        moe.gate.weight[:, :2] = logits.T
    x = torch.zeros(2, 8)
    x[0, 0] = x[1, 1] = 1.0
    weights, experts, got, probabilities = moe.gate(x)
    torch.testing.assert_close(got, logits)
    assert experts[0].tolist() == [1, 2]
    e = 2.718281828459045
    torch.testing.assert_close(weights[0], torch.tensor([e / (e + 1), 1 / (e + 1)]))  # softmax over the chosen
    total = 1 + e + e**2 + e**3
    torch.testing.assert_close(probabilities[0], torch.tensor([e, e**3, e**2, 1]) / total)
    for parameter in moe.experts.parameters():
        torch.nn.init.zeros_(parameter)
    _, sums, counts, z, entropy = moe(x)
    torch.testing.assert_close(sums, probabilities.sum(0))
    assert counts.sum() == 4
    assert counts[1] == 1
    torch.testing.assert_close(z, logits.double().logsumexp(-1).square().sum().float())
    torch.testing.assert_close(entropy, torch.distributions.Categorical(logits=logits).entropy().sum())


def test_without_renormalising_the_weights_are_the_probabilities() -> None:
    moe = MoE(tiny(norm_topk_prob=False))
    torch.nn.init.normal_(moe.gate.weight)
    weights, experts, _, probabilities = moe.gate(torch.randn(5, 32))
    torch.testing.assert_close(weights, probabilities.gather(1, experts))


# --- against transformers -------------------------------------------------------------------------------------------


def saved(config: Qwen3Config, folder: Path, seed: int = 0) -> str:
    policy = Qwen3(config).init_weights(seed)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():  # wide enough that experts matter and routing is decided
            parameter.mul_(1.0 if "norm" in name else 3.0)
    policy.save_pretrained(folder, policy.to_checkpoint((n, p.detach()) for n, p in policy.hf_named_parameters()))
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tiny(num_experts=16, num_experts_per_tok=4), tmp_path_factory.mktemp("moe"))


def transformers_model(folder: str, **changes: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, **changes)


@pytest.mark.parametrize("implementation", ["grouped_mm", "eager"])
def test_logits_and_gradients_equal_transformers_in_float32(folder: str, implementation: str) -> None:
    reference = transformers_model(folder, experts_implementation=implementation)
    policy = load_policy(folder)
    coefficients = torch.randn(97, 512, generator=torch.Generator().manual_seed(2))
    logits = policy(*arguments([97])) @ policy.lm_head_weight.T
    wanted = reference(TOKENS[None]).logits[0]
    assert float((logits - wanted).detach().abs().max()) <= 1e-5
    (logits * coefficients).sum().backward()
    (wanted * coefficients).sum().backward()
    expected = dict(reference.named_parameters())
    for name, parameter in policy.hf_named_parameters():
        grad = expected[name].grad
        assert float((parameter.grad - grad).norm() / grad.norm()) < 1e-5, name


def test_bfloat16_differs_no_more_than_twice_what_transformers_own_paths_differ(tmp_path: Path) -> None:
    folder = saved(tiny(num_experts=64, num_experts_per_tok=8), tmp_path)
    paths = {}
    for attention in ("eager", "sdpa"):
        reference = transformers_model(folder, dtype=torch.bfloat16, attn_implementation=attention).eval()
        with torch.no_grad():
            paths[attention] = reference(TOKENS[None]).logits[0].float()
    policy = load_policy(folder, dtype="bfloat16")
    with torch.no_grad():
        ours = (policy(*arguments([97])) @ policy.lm_head_weight.T).float()
    between = paths["eager"] - paths["sdpa"]
    assert float(between.abs().max()) > 1e-3
    for other in paths.values():
        assert float((ours - other).abs().max()) <= 2 * float(between.abs().max())
        assert float((ours - other).abs().mean()) <= 2 * float(between.abs().mean())


# --- under checkpointing, compilation, packing ------------------------------------------------------------------------


def run(policy: Qwen3, lengths: list[int] = LENGTHS) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    policy.zero_grad()
    record = RouterRecord()
    hidden = policy(*arguments(lengths), router=record)
    loss = (hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum()
    (loss + torch.stack(record.probability_sums).square().sum() + torch.stack(record.z_sums).sum()).backward()
    return hidden.detach(), {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("mode", ["selective", "full"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_activation_checkpointing_is_bit_equal(folder: str, mode: Any, dtype: str) -> None:
    plain, grads = run(load_policy(folder, dtype=dtype))
    hidden, others = run(load_policy(folder, dtype=dtype, activation_checkpointing=mode))
    assert torch.equal(plain, hidden)
    assert grads.keys() == others.keys()
    assert all(torch.equal(grads[name], others[name]) for name in grads)


@pytest.mark.parametrize(("mode", "again"), [("none", 0), ("selective", 0), ("full", 2)])
def test_products_that_are_run_again(folder: str, monkeypatch: pytest.MonkeyPatch, mode: Any, again: int) -> None:
    """Two forward and four backward in each of two layers; selective checkpointing repeats none of them."""
    calls = []

    def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(1)
        return grouped_mm(*args, **kwargs)

    grouped_mm = torch.nn.functional.grouped_mm
    policy = load_policy(folder, activation_checkpointing=mode)
    monkeypatch.setattr(torch.nn.functional, "grouped_mm", counted)
    run(policy)
    assert len(calls) == 2 * (6 + again)


def test_twice_is_bit_equal(folder: str) -> None:
    policy = load_policy(folder)
    first, grads = run(policy)
    second, others = run(policy)
    assert torch.equal(first, second)
    assert all(torch.equal(grads[name], others[name]) for name in grads)


def test_each_row_is_as_if_alone(folder: str) -> None:
    policy = load_policy(folder)
    packed, _ = run(policy)
    begin = 0
    for length in LENGTHS:
        with torch.no_grad():
            ends = torch.tensor([0, length], dtype=torch.int32)
            alone = policy(TOKENS[begin : begin + length], torch.arange(length), ends)
        torch.testing.assert_close(packed[begin : begin + length], alone, rtol=1e-4, atol=1e-5)
        begin += length


def test_torch_compile_gives_the_same(folder: str) -> None:
    plain, grads = run(load_policy(folder))
    policy = load_policy(folder)
    policy.model.compile(backend="inductor")
    compiled, others = run(policy)
    torch.testing.assert_close(compiled, plain, rtol=1e-5, atol=1e-5)
    for name, grad in grads.items():
        assert float((others[name] - grad).norm() / grad.norm()) < 1e-5, name


def test_the_layer_keeps_less_than_autograd_would(folder: str) -> None:
    """Bytes saved for the backward pass: the layer's products and its input, not every step between."""
    config = tiny(num_experts=16, num_experts_per_tok=4)
    experts = experts_of(16, hidden=32, inner=16)
    x, weights = torch.randn(200, 32, requires_grad=True), torch.rand(200, 4, requires_grad=True)
    chosen = torch.rand(200, 16).topk(4).indices
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_floating_point():
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        experts(x, weights, Dispatch.of(chosen, config.num_experts))
    parameters = sum(p.untyped_storage().nbytes() for p in experts.parameters())
    products = 200 * 4 * 2 * 16 * 4
    assert sum(kept.values()) == parameters + products + x.nbytes + weights.nbytes
