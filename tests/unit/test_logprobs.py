"""Chunked logprobs against the plain formula, values and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.logprobs import map_logits, token_logprobs_and_entropy

T, H, V = 37, 16, 101


def plain(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    log_p = torch.log_softmax((hidden @ weight.T).float() / temperature, dim=-1)
    return log_p.gather(1, targets[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


def inputs(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(T, H, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(V, H, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(V, (T,), generator=generator)
    coefficients = torch.randn(2, T, generator=generator)
    return hidden, weight, targets, coefficients


@settings(max_examples=30, deadline=None)
@given(
    chunk_tokens=st.sampled_from([1, 2, 7, 36, 37, 38, 1000]),
    temperature=st.sampled_from([0.6, 1.0, 1.4]),
    with_entropy=st.booleans(),
)
def test_values_and_gradients_equal_the_plain_formula(
    chunk_tokens: int, temperature: float, with_entropy: bool
) -> None:
    hidden, weight, targets, (a, b) = inputs()
    logprobs, entropy = token_logprobs_and_entropy(
        hidden, weight, targets, chunk_tokens=chunk_tokens, temperature=temperature, with_entropy=with_entropy
    )
    expected_logprobs, expected_entropy = plain(hidden, weight, targets, temperature)
    torch.testing.assert_close(logprobs, expected_logprobs, rtol=1e-6, atol=1e-5)
    loss, expected_loss = (a * logprobs).sum(), (a * expected_logprobs).sum()
    if with_entropy:
        assert entropy is not None
        torch.testing.assert_close(entropy, expected_entropy, rtol=1e-5, atol=1e-5)
        loss, expected_loss = loss + (b * entropy).sum(), expected_loss + (b * expected_entropy).sum()
    else:
        assert entropy is None
    got = torch.autograd.grad(loss, (hidden, weight))
    expected = torch.autograd.grad(expected_loss, (hidden, weight))
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_gradients_hold_in_double_precision() -> None:
    # Everything after the product is float32, so the check is of the formula: central differences, loose step.
    hidden, weight, targets, (a, b) = inputs()

    def loss_at(moved: torch.Tensor) -> float:
        log_p = torch.log_softmax(moved.double() @ weight.detach().double().T / 0.7, dim=-1)
        entropy = -(log_p.exp() * log_p).sum(-1)
        return float((a * log_p.gather(1, targets[:, None])[:, 0] + b * entropy).sum())

    logprobs, entropy = token_logprobs_and_entropy(
        hidden, weight, targets, chunk_tokens=5, temperature=0.7, with_entropy=True
    )
    (grad,) = torch.autograd.grad((a * logprobs + b * entropy).sum(), hidden)
    step = 1e-4
    for row, column in ((0, 0), (17, 3), (36, 15)):
        nudge = torch.zeros(T, H, dtype=torch.float64)
        nudge[row, column] = step
        numeric = (loss_at(hidden.detach().double() + nudge) - loss_at(hidden.detach().double() - nudge)) / (2 * step)
        assert float(grad[row, column]) == pytest.approx(numeric, rel=1e-3, abs=1e-3)


def test_only_the_chosen_positions_are_read() -> None:
    hidden, weight, targets, _ = inputs()
    at = torch.tensor([0, 5, 5, 36])
    logprobs, _ = token_logprobs_and_entropy(hidden, weight, targets[at], at=at)
    torch.testing.assert_close(logprobs, plain(hidden, weight, targets, 1.0)[0][at])
    with torch.no_grad():
        hidden[7] = float("nan")  # nobody asked for it
    logprobs, _ = token_logprobs_and_entropy(hidden, weight, targets[at], at=at)
    grad_hidden, grad_weight = torch.autograd.grad(logprobs.sum(), (hidden, weight))
    assert torch.isfinite(grad_weight).all()
    assert torch.equal(grad_hidden[7], torch.zeros(H))


def test_no_positions_give_zero_gradients_not_an_error() -> None:
    hidden, weight, _, _ = inputs()
    nothing = torch.empty(0, dtype=torch.long)
    logprobs, entropy = token_logprobs_and_entropy(hidden, weight, nothing, at=nothing, with_entropy=True)
    assert logprobs.shape == (0,)
    grads = torch.autograd.grad(logprobs.sum() + entropy.sum(), (hidden, weight))  # type: ignore[union-attr]
    assert all(torch.equal(grad, torch.zeros_like(grad)) for grad in grads)


def test_uniform_logits_by_hand() -> None:
    logprobs, entropy = token_logprobs_and_entropy(
        torch.zeros(3, H), torch.ones(8, H), torch.tensor([0, 3, 7]), with_entropy=True
    )
    assert logprobs.tolist() == pytest.approx([-math.log(8)] * 3)
    assert entropy.tolist() == pytest.approx([math.log(8)] * 3)  # type: ignore[union-attr]


def test_bfloat16_keeps_its_weight_gradient_over_many_chunks() -> None:
    hidden, weight, targets, (a, _) = inputs(torch.bfloat16)
    logprobs, _ = token_logprobs_and_entropy(hidden, weight, targets, chunk_tokens=1)
    assert logprobs.dtype == torch.float32
    (got,) = torch.autograd.grad((a * logprobs).sum(), weight)
    wide = [tensor.detach().float().requires_grad_() for tensor in (hidden, weight)]
    (expected,) = torch.autograd.grad((a * plain(*wide, targets, 1.0)[0]).sum(), wide[1])
    assert got.dtype == torch.bfloat16
    assert float((got.float() - expected).norm() / expected.norm()) < 0.02


def test_no_matrix_of_all_tokens_by_vocabulary_exists() -> None:
    """Every float32 tensor that torch allocates is counted: none reaches T x V, forward or backward."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return out

    tokens, vocabulary, chunk = 512, 4096, 32
    hidden, weight = torch.randn(tokens, H, requires_grad=True), torch.randn(vocabulary, H, requires_grad=True)
    with Watch():
        logprobs, entropy = token_logprobs_and_entropy(
            hidden, weight, torch.zeros(tokens, dtype=torch.long), chunk_tokens=chunk, with_entropy=True
        )
        (logprobs.sum() + entropy.sum()).backward()  # type: ignore[union-attr]
    assert largest == chunk * vocabulary


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"chunk_tokens": 0}, "chunk_tokens"),
        ({"at": torch.tensor([0])}, "one target"),
    ],
)
def test_bad_arguments_are_named(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        token_logprobs_and_entropy(torch.zeros(3, H), torch.ones(8, H), torch.tensor([0, 3, 7]), **kwargs)


@pytest.mark.parametrize("chunk_tokens", [1, 5, 12, 100])
def test_a_function_of_whole_distributions_has_the_values_and_gradients_of_the_plain_formula(chunk_tokens: int) -> None:
    hidden, weight, _, _ = inputs()
    other = torch.log_softmax(torch.randn(12, V, generator=torch.Generator().manual_seed(1)), -1)
    at = torch.randperm(T, generator=torch.Generator().manual_seed(2))[:12]

    def divergence(logits: torch.Tensor, positions: slice) -> torch.Tensor:
        log_p = torch.log_softmax(logits, -1)
        return (log_p.exp() * (log_p - other[positions])).sum(-1)

    ours = map_logits(hidden, weight, divergence, at=at, chunk_tokens=chunk_tokens)
    plain_log_p = torch.log_softmax(hidden[at] @ weight.T, -1)
    expected = (plain_log_p.exp() * (plain_log_p - other)).sum(-1)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)
    for mine, theirs in zip(
        torch.autograd.grad(ours.square().sum(), (hidden, weight)),
        torch.autograd.grad(expected.square().sum(), (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        assert map_logits(hidden, weight, divergence, at=at[:0]).shape == (0,)
