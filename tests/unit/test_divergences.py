"""Distillation divergences against a float64 reference by autograd, finite differences, and the bugs others shipped."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rlplatform.divergences import KINDS, TopK, divergence, rest_of, top_k
from rlplatform.losses import reduce


def naive(student: Tensor, teacher: Tensor, kind: str, beta: float = 0.5, temperature: float = 1.0) -> Tensor:
    """The definitions, term by term, in float64 with autograd; over whatever outcomes the logits stand for."""
    log_q = torch.log_softmax(student.double() / temperature, dim=-1)
    log_p = torch.log_softmax(teacher.double() / temperature, dim=-1)
    p, q = log_p.exp(), log_q.exp()
    if kind == "forward_kl":
        return (p * (log_p - log_q)).sum(-1)
    if kind == "reverse_kl":
        return (q * (log_q - log_p)).sum(-1)
    log_m = (beta * p + (1 - beta) * q).log()
    return beta * (p * (log_p - log_m)).sum(-1) + (1 - beta) * (q * (log_q - log_m)).sum(-1)


def naive_bucketed(student: Tensor, teacher: Tensor, ids: Tensor, kind: str, beta: float, temperature: float) -> Tensor:
    """The same over K + 1 outcomes, built with 1 - sum."""
    parts = []
    for logits in (student, teacher):
        probabilities = torch.softmax(logits.double() / temperature, dim=-1)
        kept = probabilities.gather(1, ids)
        parts.append(torch.cat([kept, 1 - kept.sum(1, keepdim=True)], dim=1).log())
    return naive(parts[0], parts[1], kind, beta)


def logits(num: int, vocab: int, *, seed: int, scale: float = 2.0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(num, vocab, generator=generator, dtype=torch.float64)).to(dtype)


def gradient(fn: Callable[[Tensor], Tensor], at: Tensor, weights: Tensor) -> Tensor:
    leaf = at.clone().requires_grad_()
    (fn(leaf) * weights.to(leaf.device)).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


ALL = torch.ones(5, dtype=torch.bool)
WEIGHTS = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0], dtype=torch.float64)
SETTINGS = [("forward_kl", 0.5), ("reverse_kl", 0.5), ("jsd", 0.5), ("jsd", 0.1), ("jsd", 0.9)]


def test_by_hand() -> None:
    """p = (3/4, 1/4), q = (1/2, 1/2)."""
    teacher, student = torch.tensor([[3.0, 1.0]]).log(), torch.zeros(1, 2)
    one = torch.tensor([True])
    forward = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    reverse = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    m = (0.25 * 0.75 + 0.75 * 0.5, 0.25 * 0.25 + 0.75 * 0.5)  # beta = 1/4: a quarter of the teacher
    jsd = 0.25 * (0.75 * math.log(0.75 / m[0]) + 0.25 * math.log(0.25 / m[1]))
    jsd += 0.75 * (0.5 * math.log(0.5 / m[0]) + 0.5 * math.log(0.5 / m[1]))
    for kind, expected in (("forward_kl", forward), ("reverse_kl", reverse), ("jsd", jsd)):
        assert divergence(student, teacher, one, kind=kind, beta=0.25).item() == pytest.approx(expected, abs=1e-7)
    grad = gradient(lambda z: divergence(z, teacher, one, kind="forward_kl"), student, torch.ones(1))
    assert grad.tolist() == [[pytest.approx(-0.25), pytest.approx(0.25)]]  # q - p


@pytest.mark.parametrize(("kind", "beta"), SETTINGS)
@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_values_and_gradients_over_the_whole_vocabulary(kind: str, beta: float, temperature: float) -> None:
    student, teacher = logits(5, 11, seed=0), logits(5, 11, seed=1)

    def ours(z: Tensor) -> Tensor:
        return divergence(z, teacher, ALL, kind=kind, beta=beta, temperature=temperature, chunk_tokens=2)

    def reference(z: Tensor) -> Tensor:
        return naive(z, teacher, kind, beta, temperature)

    torch.testing.assert_close(ours(student).double(), reference(student), rtol=1e-5, atol=1e-6)
    exact = gradient(reference, student.double(), WEIGHTS)
    torch.testing.assert_close(gradient(ours, student, WEIGHTS).double(), exact, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient(ours, student.double(), WEIGHTS), exact, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("kind", "beta"), SETTINGS)
@pytest.mark.parametrize("k", [1, 3, 10])
def test_values_and_gradients_over_the_top_k_and_the_rest(kind: str, beta: float, k: int) -> None:
    student, teacher = logits(5, 11, seed=2), logits(5, 11, seed=3)
    target = top_k(teacher, k, temperature=1.3)

    def ours(z: Tensor) -> Tensor:
        return divergence(z, target, ALL, kind=kind, beta=beta, temperature=1.3, chunk_tokens=3)

    def reference(z: Tensor) -> Tensor:
        return naive_bucketed(z, teacher, target.ids, kind, beta, 1.3)

    torch.testing.assert_close(ours(student).double(), reference(student), rtol=1e-5, atol=1e-6)
    exact = gradient(reference, student.double(), WEIGHTS)
    torch.testing.assert_close(gradient(ours, student, WEIGHTS).double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kind", "beta"), SETTINGS)
@pytest.mark.parametrize("k", [None, 4])
def test_gradients_by_finite_differences(kind: str, beta: float, k: int | None) -> None:
    student, teacher = logits(2, 7, seed=4, dtype=torch.float64), logits(2, 7, seed=5, dtype=torch.float64)
    target = teacher if k is None else top_k(teacher, k, temperature=1.5)
    mask = torch.tensor([True, True])

    def ours(z: Tensor) -> Tensor:
        return divergence(z, target, mask, kind=kind, beta=beta, temperature=1.5, temperature_squared=True)

    assert torch.autograd.gradcheck(ours, (student.requires_grad_(),), eps=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_top_k_of_the_whole_vocabulary_is_the_exact_divergence(kind: str) -> None:
    student, teacher = logits(5, 9, seed=6), logits(5, 9, seed=7)
    whole, cut = (gradient_and_value(student, target, kind) for target in (teacher, top_k(teacher, 9)))
    torch.testing.assert_close(whole, cut, rtol=1e-6, atol=1e-7)


def gradient_and_value(student: Tensor, target: Tensor | TopK, kind: str) -> tuple[Tensor, Tensor]:
    mask = torch.ones(len(student), dtype=torch.bool)
    grad = gradient(lambda z: divergence(z, target, mask, kind=kind), student, torch.ones(len(student)))
    return divergence(student, target, mask, kind=kind), grad


@pytest.mark.parametrize("kind", KINDS)
def test_no_divergence_and_no_gradient_where_both_agree(kind: str) -> None:
    same = logits(5, 1000, seed=8, scale=4.0)
    shifted = same + torch.arange(5.0)[:, None]  # softmax does not see a constant
    for target in (shifted, top_k(shifted, 20)):
        value, grad = gradient_and_value(same, target, kind)
        assert value.abs().max() < 1e-9
        assert grad.abs().max() < 1e-6


finite = st.floats(-30, 30, width=32)
rows_of_logits = st.integers(2, 8).flatmap(
    lambda n: st.tuples(*[st.lists(finite, min_size=n, max_size=n)] * 2, st.integers(1, n), st.floats(0.01, 0.99))
)


@settings(max_examples=150, deadline=None)
@given(rows_of_logits)
def test_never_negative_and_growing_with_k(drawn: tuple[list[float], list[float], int, float]) -> None:
    student, teacher, k, beta = torch.tensor([drawn[0]]), torch.tensor([drawn[1]]), drawn[2], drawn[3]
    one = torch.tensor([True])
    for kind in KINDS:
        values = [divergence(student, top_k(teacher, n), one, kind=kind, beta=beta).item() for n in range(1, k + 1)]
        values.append(divergence(student, teacher, one, kind=kind, beta=beta).item())
        assert values[0] >= 0
        for smaller, larger in pairwise(values):
            assert smaller <= larger + 1e-5 + 1e-5 * larger


def test_the_ends_of_the_jensen_shannon_divergence() -> None:
    student, teacher = logits(5, 6, seed=9, dtype=torch.float64), logits(5, 6, seed=10, dtype=torch.float64)

    def jsd(beta: float) -> Tensor:
        return divergence(student, teacher, ALL, kind="jsd", beta=beta)

    torch.testing.assert_close(jsd(1e-6) / 1e-6, naive(student, teacher, "forward_kl"), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(jsd(1 - 1e-6) / 1e-6, naive(student, teacher, "reverse_kl"), rtol=1e-3, atol=1e-6)
    swapped = divergence(teacher, student, ALL, kind="jsd", beta=0.7)
    torch.testing.assert_close(swapped, jsd(0.3), rtol=1e-9, atol=1e-12)
    for beta in (0.0, 1.0, -0.1, math.nan):
        with pytest.raises(ValueError, match="use forward_kl"):
            jsd(beta)


def test_temperature_squared_is_a_factor_and_off_by_default() -> None:
    student, teacher = logits(5, 6, seed=11), logits(5, 6, seed=12)
    plain = divergence(student, teacher, ALL, kind="forward_kl", temperature=3.0)
    scaled = divergence(student, teacher, ALL, kind="forward_kl", temperature=3.0, temperature_squared=True)
    torch.testing.assert_close(scaled, 9 * plain)
    torch.testing.assert_close(
        plain.double(), naive(student, teacher, "forward_kl", temperature=3.0), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [None, 3])
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
def test_masked_positions_change_nothing(kind: str, k: int | None, garbage: float) -> None:
    student, teacher = logits(5, 8, seed=13), logits(5, 8, seed=14)
    mask = torch.tensor([True, False, True, False, True])

    def run(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        target = teacher if k is None else TopK(*top_k(teacher.nan_to_num(0, 0, 0), k).__dict__.values())
        if k is not None:
            for part in (target.logprobs, target.rest):
                part[~mask] = garbage
            target.ids[~mask] = 0
        leaf = student.clone().requires_grad_()
        values = divergence(leaf, target, mask, kind=kind, chunk_tokens=2)
        values.sum().backward()
        assert leaf.grad is not None
        return values.detach(), leaf.grad

    clean = run(student, teacher)
    student, teacher = student.clone(), teacher.clone()
    student[~mask], teacher[~mask] = garbage, garbage
    dirty = run(student, teacher)
    assert torch.equal(clean[0], dirty[0])
    assert torch.equal(clean[1], dirty[1])
    assert dirty[0][~mask].tolist() == [0.0, 0.0]
    assert not dirty[1][~mask].any()


def test_a_mask_without_tokens_gives_zero_and_a_gradient() -> None:
    student = logits(5, 8, seed=15).requires_grad_()
    values = divergence(student, logits(5, 8, seed=16), ~ALL, kind="jsd")
    values.sum().backward()
    assert not values.any()
    assert student.grad is not None
    assert not student.grad.any()


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_the_split_into_micro_batches_does_not_matter(aggregation: str, cut: int) -> None:
    """Rows of 1, 4, 2 and 3 tokens; one denominator. A reduction inside (batchmean, a mean over ranks) breaks this."""
    lengths = [1, 4, 2, 3]
    student, teacher = logits(10, 8, seed=17), logits(10, 8, seed=18)
    mask = torch.tensor([1, 0, 1, 1, 1, 1, 0, 1, 1, 1], dtype=torch.bool)
    denominator = 8.0 if aggregation == "token_mean" else 4.0

    def loss(begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Rows begin to end."""
        tokens = slice(sum(lengths[:begin]), sum(lengths[:end]))
        cu_seqlens = torch.tensor([0, *torch.tensor(lengths[begin:end]).cumsum(0).tolist()])
        leaf = student[tokens].clone().requires_grad_()
        values = divergence(leaf, teacher[tokens], mask[tokens], kind="reverse_kl", chunk_tokens=3)
        total = reduce(values, mask[tokens], aggregation=aggregation, cu_seqlens=cu_seqlens, denominator=denominator)
        total.backward()
        assert leaf.grad is not None
        return total.detach(), leaf.grad

    whole, grad = loss(0, 4)
    parts = [loss(0, cut), loss(cut, 4)]
    torch.testing.assert_close(parts[0][0] + parts[1][0], whole)
    torch.testing.assert_close(torch.cat([parts[0][1], parts[1][1]]), grad)


@pytest.mark.parametrize("chunk_tokens", [1, 2, 5, 100])
def test_chunks_do_not_matter(chunk_tokens: int) -> None:
    student, teacher = logits(5, 8, seed=19), logits(5, 8, seed=20)
    torch.testing.assert_close(
        divergence(student, teacher, ALL, kind="jsd", chunk_tokens=chunk_tokens),
        divergence(student, teacher, ALL, kind="jsd"),
    )


def test_bfloat16_logits_give_float32_values_and_bfloat16_gradients() -> None:
    student, teacher = logits(5, 50, seed=21, dtype=torch.bfloat16), logits(5, 50, seed=22, dtype=torch.bfloat16)
    leaf = student.clone().requires_grad_()
    values = divergence(leaf, teacher, ALL, kind="forward_kl")
    values.sum().backward()
    assert values.dtype == torch.float32
    assert leaf.grad is not None
    assert leaf.grad.dtype == torch.bfloat16
    torch.testing.assert_close(values.double(), naive(student, teacher, "forward_kl"), rtol=1e-5, atol=1e-6)


def test_small_differences_are_not_rounded_away() -> None:
    """Nearly equal distributions over many tokens: the plain float32 sum loses the value, its sign too."""
    teacher = logits(5, 20_000, seed=23)
    student = teacher + 1e-4 * logits(5, 20_000, seed=24, scale=1.0)
    exact = naive(student, teacher, "forward_kl")
    torch.testing.assert_close(divergence(student, teacher, ALL, kind="forward_kl").double(), exact, rtol=0.02, atol=0)
    log_p, log_q = (torch.log_softmax(z, dim=1) for z in (teacher, student))
    plain = (log_p.exp() * (log_p - log_q)).sum(1).double()
    assert ((plain - exact).abs() > 0.1 * exact).any()


def test_extreme_logits_stay_finite() -> None:
    """All mass on one token each, and not the same one."""
    student, teacher = torch.full((1, 4), -40.0), torch.full((1, 4), -40.0)
    student[0, 0], teacher[0, 1] = 40.0, 40.0
    one = torch.tensor([True])
    for kind in KINDS:
        for target in (teacher, top_k(teacher, 1), top_k(teacher, 3)):
            value, grad = gradient_and_value(student, target, kind)
            assert torch.isfinite(value).all()
            assert torch.isfinite(grad).all()
            assert value.item() == pytest.approx(
                {"forward_kl": 80.0, "reverse_kl": 80.0, "jsd": math.log(2)}[kind], rel=0.02
            )
    assert divergence(student, teacher, one, kind="jsd").item() <= math.log(2) + 1e-6


def test_a_teacher_that_excludes_tokens() -> None:
    """-inf in the teacher's logits: 0 log 0 = 0 forward; reverse is infinite where the student gives it mass."""
    teacher = torch.tensor([[0.0, 0.0, -math.inf]])
    one = torch.tensor([True])
    student = torch.zeros(1, 3)
    assert divergence(student, teacher, one, kind="forward_kl").item() == pytest.approx(math.log(1.5))
    assert divergence(student, teacher, one, kind="reverse_kl").item() == math.inf
    value, grad = gradient_and_value(student, teacher, "forward_kl")
    assert torch.isfinite(value).all()
    torch.testing.assert_close(grad, torch.tensor([[-1 / 6, -1 / 6, 1 / 3]]))


def test_the_rest_from_reported_logprobs() -> None:
    teacher = logits(5, 30, seed=25)
    target = top_k(teacher, 6)
    torch.testing.assert_close(rest_of(target.logprobs), target.rest, rtol=1e-4, atol=1e-5)
    whole = torch.log_softmax(teacher, dim=1)
    assert (rest_of(whole).exp() <= 1e-6).all()  # nothing left but rounding, and never log of a negative
    assert torch.isfinite(rest_of(whole)).all()


# --- the bugs listed by others: each fails on the shipped version and holds here --------------------------------------


def test_truncated_top_k_is_negative_and_ours_is_not() -> None:
    """The sum over the kept tokens alone, without the rest: negative, so it was clamped in most steps."""
    teacher = torch.tensor([[0.3, 0.3, 0.4]]).log()
    student = torch.tensor([[0.45, 0.45, 0.1]]).log()
    target = top_k(teacher[:, :], 1)
    one = torch.tensor([True])
    kept = torch.tensor([[0, 1]])
    cut = TopK(kept, teacher[:, :2], teacher[:, 2])
    p, q = teacher[0, :2].exp(), student[0, :2].exp()
    assert (p * (p / q).log()).sum() < -0.2
    expected = 0.6 * math.log(0.3 / 0.45) + 0.4 * math.log(0.4 / 0.1)  # one bucket is one token here: exact
    assert divergence(student, cut, one, kind="forward_kl").item() == pytest.approx(expected, abs=1e-6)
    assert divergence(student, target, one, kind="forward_kl").item() >= 0


def test_reverse_top_k_sees_what_the_student_does_outside() -> None:
    """Truncated reverse KL falls as the student moves its mass out of the top k, and trains it there."""
    teacher = torch.tensor([[0.6, 0.3, 0.05, 0.05]]).log()
    outside = torch.tensor([[-6.0, -6.0, 3.0, 3.0]])
    target = top_k(teacher, 2)
    one = torch.tensor([True])

    def truncated(z: Tensor) -> Tensor:
        log_q = torch.log_softmax(z, 1).gather(1, target.ids)
        return (log_q.exp() * (log_q - target.logprobs)).sum(1)

    good = teacher.clone()
    assert truncated(outside) < 1e-3  # "nearly perfect"
    start = torch.tensor([[0.5, 0.3, 0.1, 0.1]]).log()
    grad = gradient(truncated, start, torch.ones(1))
    assert (grad[0, :2] > 0).all()  # descent takes mass away from the teacher's best tokens
    assert divergence(outside, target, one, kind="reverse_kl").item() > 2.0
    assert divergence(good, target, one, kind="reverse_kl").item() < 1e-6
    ours = gradient(lambda z: divergence(z, target, one, kind="reverse_kl"), start, torch.ones(1))
    assert (ours[0, :2] < 0).all()
    assert (ours[0, 2:] > 0).all()


def test_no_cross_entropy_is_mixed_in() -> None:
    """A fused kernel that was 0.5 CE + 0.5 JSD: at p = q it is not 0, and its gradient pulls to a label."""
    same = logits(5, 6, seed=26)
    labels = torch.arange(5)
    fused = 0.5 * torch.nn.functional.cross_entropy(same, labels, reduction="none") + 0.5 * naive(same, same, "jsd")
    assert (fused > 0.01).all()
    value, grad = gradient_and_value(same, same.clone(), "jsd")
    assert value.abs().max() < 1e-7
    assert grad.abs().max() < 1e-7


def test_twice_the_tokens_is_the_same_mean() -> None:
    """``batchmean`` divided by the rows of the batch, and a factor of the ranks came on top: neither is in here."""
    student, teacher = logits(5, 6, seed=27), logits(5, 6, seed=28)

    def token_mean(copies: int) -> float:
        mask = torch.ones(5 * copies, dtype=torch.bool)
        values = divergence(student.repeat(copies, 1), teacher.repeat(copies, 1), mask, kind="forward_kl")
        cu_seqlens = torch.tensor([0, 5 * copies])  # one row: batchmean would grow with it
        return reduce(values, mask, aggregation="token_mean", cu_seqlens=cu_seqlens, denominator=5.0 * copies).item()

    expected = naive(student, teacher, "forward_kl").mean().item()
    for copies in (1, 2, 8):
        assert token_mean(copies) == pytest.approx(expected, rel=1e-5)


def test_padded_embeddings_of_two_sizes_are_refused() -> None:
    """151,936 and 152,064 columns for the same ids."""
    with pytest.raises(ValueError, match=r"cut both to the tokenizer's ids"):
        divergence(torch.zeros(5, 16), torch.zeros(5, 24), ALL, kind="forward_kl")
    student, teacher = logits(5, 16, seed=29), logits(5, 24, seed=30)
    cut = divergence(student[:, :12], teacher[:, :12], ALL, kind="forward_kl")
    torch.testing.assert_close(
        cut.double(), naive(student[:, :12], teacher[:, :12], "forward_kl"), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "kl"}, "expected one of forward_kl"),
        ({"temperature": 0.0}, "expected > 0"),
        ({"temperature": math.nan}, "expected > 0"),
        ({"chunk_tokens": 0}, "chunk_tokens"),
        ({"mask": torch.ones(5)}, "bool mask"),
        ({"mask": torch.ones(4, dtype=torch.bool)}, "bool mask"),
        ({"teacher": TopK(torch.zeros(5, 2).long(), torch.zeros(5, 3), torch.zeros(5))}, r"\[T, K\]"),
        ({"teacher": TopK(torch.zeros(5, 9).long(), torch.zeros(5, 9), torch.zeros(5))}, "K from 1 to V = 8"),
    ],
)
def test_wrong_arguments(change: dict, message: str) -> None:
    arguments = {"teacher": torch.zeros(5, 8), "mask": ALL, "kind": "forward_kl"} | change
    with pytest.raises(ValueError, match=message):
        divergence(torch.zeros(5, 8), arguments.pop("teacher"), arguments.pop("mask"), **arguments)
    with pytest.raises(ValueError, match="expected k from 1"):
        top_k(torch.zeros(5, 8), 9)


class _LargestFloat32(TorchDispatchMode):
    """The number of elements of the largest float32 tensor that any operation returns."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(one, Tensor) and one.dtype == torch.float32:
                self.largest = max(self.largest, one.numel())
        return result


@pytest.mark.parametrize("k", [None, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_no_float32_matrix_larger_than_a_chunk(kind: str, k: int | None) -> None:
    student = logits(64, 100, seed=31, dtype=torch.bfloat16).requires_grad_()
    teacher = logits(64, 100, seed=32, dtype=torch.bfloat16)
    target = teacher if k is None else top_k(teacher, k)
    mask = torch.ones(64, dtype=torch.bool)
    with _LargestFloat32() as seen:
        divergence(student, target, mask, kind=kind, chunk_tokens=8).sum().backward()
    assert 0 < seen.largest <= max(8 * 101, 64 * 5)
