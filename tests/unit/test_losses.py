"""Losses against numbers worked out by hand, a five-token toy with an exact gradient, and NaN in every masked slot."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rlplatform.losses import (
    LOSSES,
    check_kl_placement,
    clipped_policy_gradient,
    combine_stats,
    kl_estimate,
    masked_sum,
    mismatch_metrics,
    mismatch_stats,
    reduce,
    truncated_importance_weights,
)

AGGREGATIONS = ("token_mean", "sequence_mean", "constant_length")


def cu(*lengths: int) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


def ones(n: int) -> Tensor:
    return torch.ones(n, dtype=torch.bool)


# --- the reducer ----------------------------------------------------------------------------------------------------


def test_token_mean_of_a_short_and_a_long_row_is_global() -> None:
    """Ten tokens of +1 and a thousand of -1: (10 - 1000) / 1010. A mean per micro-batch would give 0."""
    long = torch.cat([torch.full((10,), 1.0), torch.full((1000,), -1.0)])
    whole = reduce(long, ones(1010), aggregation="token_mean", cu_seqlens=cu(10, 1000), denominator=1010)
    assert whole.item() == pytest.approx(-0.980198, abs=1e-6)
    parts = [
        reduce(part, ones(len(part)), aggregation="token_mean", cu_seqlens=cu(len(part)), denominator=1010)
        for part in (long[:10], long[10:])
    ]
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-6)


def test_each_aggregation_by_hand() -> None:
    """Rows (1, 2, 3) with the first masked, and (10, 20): 4 loss tokens, 2 rows."""
    values = torch.tensor([1.0, 2.0, 3.0, 10.0, 20.0])
    mask = torch.tensor([False, True, True, True, True])
    rows = cu(3, 2)
    assert reduce(values, mask, aggregation="token_mean", cu_seqlens=rows, denominator=4).item() == 35 / 4
    # Row means 2.5 and 15.
    assert reduce(values, mask, aggregation="sequence_mean", cu_seqlens=rows, denominator=2).item() == 17.5 / 2
    # Two rows of a constant length of 10.
    assert reduce(values, mask, aggregation="constant_length", cu_seqlens=rows, denominator=20).item() == 35 / 20


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_masking_a_row_equals_deleting_it(aggregation: str) -> None:
    values = torch.tensor([1.0, 2.0, 100.0, 200.0, 3.0])
    mask = torch.tensor([True, True, False, False, True])
    denominator = {"token_mean": 3, "sequence_mean": 2, "constant_length": 2 * 7}[aggregation]  # of the final mask
    masked = reduce(values, mask, aggregation=aggregation, cu_seqlens=cu(2, 2, 1), denominator=denominator)
    deleted = reduce(values[mask], ones(3), aggregation=aggregation, cu_seqlens=cu(2, 1), denominator=denominator)
    assert masked.item() == deleted.item()


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_padded_rows_reduce_like_packed_rows(aggregation: str) -> None:
    """[2, 4] with pads is the packed layout with masked slots: row boundaries every 4."""
    packed = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    padded = torch.tensor([[1.0, 2.0, 9.9, 9.9], [3.0, 4.0, 5.0, 9.9]])
    pad_mask = padded != 9.9
    a = reduce(packed, ones(5), aggregation=aggregation, cu_seqlens=cu(2, 3), denominator=3.0)
    b = reduce(padded.flatten(), pad_mask.flatten(), aggregation=aggregation, cu_seqlens=cu(4, 4), denominator=3.0)
    assert a.item() == pytest.approx(b.item(), rel=1e-7)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_an_empty_micro_batch_is_zero_and_differentiable(aggregation: str) -> None:
    for values, mask, rows in (
        (torch.zeros(0, requires_grad=True), torch.zeros(0, dtype=torch.bool), cu()),
        (torch.full((3,), math.nan, requires_grad=True), torch.zeros(3, dtype=torch.bool), cu(3)),
    ):
        loss = reduce(values, mask, aggregation=aggregation, cu_seqlens=rows, denominator=5.0)
        assert loss.item() == 0
        (gradient,) = torch.autograd.grad(loss, values)
        assert (gradient == 0).all()


def test_reduce_computes_in_float32() -> None:
    # 4096 ones and a bfloat16 accumulator would stop at 256.
    values = torch.ones(4096, dtype=torch.bfloat16)
    loss = reduce(values, ones(4096), aggregation="token_mean", cu_seqlens=cu(4096), denominator=4096)
    assert loss.dtype == torch.float32
    assert loss.item() == 1.0


@pytest.mark.parametrize("denominator", [0.0, -1.0, math.nan])
def test_reduce_refuses_a_denominator(denominator: float) -> None:
    with pytest.raises(ValueError, match="denominator > 0"):
        reduce(torch.ones(1), ones(1), aggregation="token_mean", cu_seqlens=cu(1), denominator=denominator)


def test_reduce_refuses_an_unknown_aggregation() -> None:
    with pytest.raises(ValueError, match="got 'mean'"):
        reduce(torch.ones(1), ones(1), aggregation="mean", cu_seqlens=cu(1), denominator=1.0)  # type: ignore[arg-type]


# --- clipped policy gradient ----------------------------------------------------------------------------------------


def policy_gradient(ratios: list[float], advantages: list[float], **kwargs: float) -> tuple[Tensor, Tensor, dict]:
    """(loss, d loss / d logprobs, stats) at the given ratios."""
    old = torch.full((len(ratios),), -1.0)
    logprobs = (old + torch.tensor(ratios).log()).requires_grad_()
    options = {"clip_low": 0.2, "clip_high": 0.2, **kwargs}
    loss, stats = clipped_policy_gradient(logprobs, old, torch.tensor(advantages), ones(len(ratios)), **options)
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    return loss.detach(), gradient, {name: value.item() for name, value in stats.items()}


def test_clipping_by_hand() -> None:
    ratios, advantages = [1.0, 1.1, 1.5, 0.5, 0.5, 1.5, 0.9], [2.0, 1.0, 1.0, 1.0, -1.0, -1.0, -2.0]
    loss, gradient, stats = policy_gradient(ratios, advantages)
    #  A > 0: clipped only above 1.2; A < 0: clipped only below 0.8.
    torch.testing.assert_close(loss, torch.tensor([-2.0, -1.1, -1.2, -0.5, 0.8, 1.5, 1.8]))
    # d(-ratio A)/d logprob = -ratio A, and 0 where the clip is active.
    torch.testing.assert_close(gradient, torch.tensor([-2.0, -1.1, 0.0, -0.5, 0.0, 1.5, 1.8]))
    assert stats["clip_high"] == 1
    assert stats["clip_low"] == 1
    assert stats["dual_clip"] == 0
    assert stats["ratio"] == pytest.approx(sum(ratios))
    assert stats["advantage"] == pytest.approx(sum(advantages))
    assert stats["importance_weight"] == 7
    assert stats["old_kl"] == pytest.approx(sum(r - 1 - math.log(r) for r in ratios), rel=1e-5)


def test_clip_higher_is_not_symmetric() -> None:
    loss, _, stats = policy_gradient([1.25, 1.25, 0.75], [1.0, 1.0, -1.0], clip_low=0.2, clip_high=0.28)
    torch.testing.assert_close(loss, torch.tensor([-1.25, -1.25, 0.8]))
    assert (stats["clip_low"], stats["clip_high"]) == (1, 0)


def test_dual_clip_bounds_negative_advantages_only() -> None:
    loss, gradient, stats = policy_gradient([5.0, 2.0, 5.0, 0.5], [-1.0, -1.0, 1.0, -1.0], dual_clip=3.0)
    torch.testing.assert_close(loss, torch.tensor([3.0, 2.0, -1.2, 0.8]))
    torch.testing.assert_close(gradient, torch.tensor([0.0, 2.0, 0.0, 0.0]))
    assert stats["dual_clip"] == 1
    loss, _, _ = policy_gradient([5.0], [-1.0], dual_clip=0.0)
    assert loss.item() == pytest.approx(5.0)


@pytest.mark.parametrize("dual_clip", [1.0, 0.5, -2.0])
def test_dual_clip_is_refused_where_it_would_cut_the_plain_ratio(dual_clip: float) -> None:
    with pytest.raises(ValueError, match="dual_clip"):
        policy_gradient([1.0], [1.0], dual_clip=dual_clip)


def test_on_policy_it_is_reinforce() -> None:
    """First step: ratio 1, nothing clipped, gradient -A on every token."""
    advantages = [0.3, -0.7, 2.0]
    _, gradient, stats = policy_gradient([1.0, 1.0, 1.0], advantages)
    torch.testing.assert_close(gradient, -torch.tensor(advantages))
    assert (stats["ratio"], stats["clip_low"], stats["clip_high"], stats["old_kl"]) == (3, 0, 0, 0)


def test_importance_weights_scale_loss_and_gradient() -> None:
    weights = torch.tensor([0.5, 2.0])
    loss, gradient, stats = policy_gradient([1.0, 1.1], [1.0, 1.0], importance_weights=weights)  # type: ignore[arg-type]
    torch.testing.assert_close(loss, torch.tensor([-0.5, -2.2]))
    torch.testing.assert_close(gradient, torch.tensor([-0.5, -2.2]))
    assert stats["importance_weight"] == 2.5


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("log_ratio", [200.0, -200.0])
def test_an_extreme_ratio_stays_finite(log_ratio: float, advantage: float) -> None:
    """exp(200) is infinite in float32; 0 * inf in the backward pass of min would be NaN."""
    logprobs = torch.tensor([log_ratio - 1.0], requires_grad=True)
    loss, stats = clipped_policy_gradient(
        logprobs, torch.tensor([-1.0]), torch.tensor([advantage]), ones(1), clip_low=0.2, clip_high=0.2
    )
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    assert torch.isfinite(loss).all()
    assert torch.isfinite(gradient).all()
    assert all(torch.isfinite(value) for value in stats.values())


def test_nothing_flows_into_old_logprobs_advantages_or_weights() -> None:
    inputs = [torch.tensor([-1.0], requires_grad=True) for _ in range(4)]
    loss, _ = clipped_policy_gradient(
        inputs[0], inputs[1], inputs[2], ones(1), clip_low=0.2, clip_high=0.2, importance_weights=inputs[3]
    )
    loss.sum().backward()
    assert inputs[0].grad is not None
    assert [tensor.grad for tensor in inputs[1:]] == [None, None, None]


def test_truncated_importance_weights_by_hand() -> None:
    old, rollout = torch.tensor([-1.0, -1.0, -2.0, -1.0]), torch.tensor([-1.0, -3.0, -1.0, math.nan])
    mask = torch.tensor([True, True, True, False])
    weights = truncated_importance_weights(old.requires_grad_(), rollout, mask, 2.0)
    torch.testing.assert_close(weights, torch.tensor([1.0, 2.0, math.exp(-1), 1.0]))  # exp(2) = 7.4 is cut at 2
    assert not weights.requires_grad
    assert truncated_importance_weights(old.bfloat16(), old.bfloat16(), mask, 2.0).dtype == torch.float32
    with pytest.raises(ValueError, match="cap > 0"):
        truncated_importance_weights(old, rollout, mask, 0.0)


# --- masked slots ---------------------------------------------------------------------------------------------------

MASK = torch.tensor([False, True, True, False, False, True])
FILLS = [math.nan, math.inf, -math.inf, 1e30]


def every_loss(logprobs: Tensor, old: Tensor, ref: Tensor, rollout: Tensor, advantages: Tensor) -> dict[str, Tensor]:
    """Every per-token loss of the module, by name."""
    weights = truncated_importance_weights(old, rollout, MASK, 2.0)
    losses = {}
    for name, loss in LOSSES.items():
        losses[name] = loss(
            logprobs, old, advantages, MASK, clip_low=0.2, clip_high=0.2, dual_clip=3.0, importance_weights=weights
        )[0]
    for estimator in ("k1", "k2", "k3"):
        losses[estimator] = kl_estimate(logprobs, ref, MASK, estimator)  # type: ignore[arg-type]
    return losses


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_whatever_stands_in_a_masked_slot_changes_nothing(aggregation: str, fill: float) -> None:
    torch.manual_seed(0)
    clean = [-torch.rand(6) for _ in range(4)] + [torch.randn(6)]
    dirty = [torch.where(MASK, tensor, fill) for tensor in clean]

    def run(inputs: list[Tensor]) -> tuple[dict[str, float], dict[str, Tensor]]:
        values, gradients = {}, {}
        logprobs = inputs[0].clone().requires_grad_()
        for name, loss in every_loss(logprobs, *inputs[1:]).items():
            assert (loss[~MASK] == 0).all()
            scalar = reduce(loss, MASK, aggregation=aggregation, cu_seqlens=cu(3, 3), denominator=3.0)
            (gradients[name],) = torch.autograd.grad(scalar, logprobs)
            values[name] = scalar.item()
        return values, gradients

    values, gradients = run(clean)
    dirty_values, dirty_gradients = run(dirty)
    assert dirty_values == values
    for name, gradient in gradients.items():
        assert gradient[MASK].abs().sum() > 0
        torch.testing.assert_close(dirty_gradients[name], gradient, rtol=0, atol=0)
        assert (gradient[~MASK] == 0).all()


@pytest.mark.parametrize("fill", FILLS)
def test_masked_slots_stay_out_of_the_stats(fill: float) -> None:
    a, b, advantages = -torch.rand(6), -torch.rand(6), torch.randn(6)
    c, d, dirty = (torch.where(MASK, tensor, fill) for tensor in (a, b, advantages))
    options = {"clip_low": 0.2, "clip_high": 0.2}
    clean_stats = clipped_policy_gradient(a, b, advantages, MASK, **options)[1]
    assert clipped_policy_gradient(c, d, dirty, MASK, **options)[1] == clean_stats
    assert mismatch_stats(c, d, MASK, cap=2.0) == mismatch_stats(a, b, MASK, cap=2.0)
    assert masked_sum(dirty, MASK) == masked_sum(advantages, MASK)


# --- KL on a toy of five tokens -------------------------------------------------------------------------------------

LOGITS = torch.tensor([0.3, -1.2, 0.9, 0.0, -0.4], dtype=torch.float64)
REF_LOGITS = torch.tensor([-0.5, 0.4, 0.1, 1.0, -2.0], dtype=torch.float64)


def expected_gradient(per_token: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """E over tokens sampled from the policy of d per_token / d logits, summed over all five tokens: exact."""
    logits = LOGITS.clone().requires_grad_()
    probabilities = LOGITS.softmax(0)
    loss = (probabilities * per_token(logits.log_softmax(0), REF_LOGITS.log_softmax(0)).double()).sum()
    return torch.autograd.grad(loss, logits)[0]


def kl_gradient(reverse: bool) -> Tensor:
    """The analytic gradient in the logits: KL(p || q): p (log p/q - KL); KL(q || p): p - q."""
    p, q = LOGITS.softmax(0), REF_LOGITS.softmax(0)
    if not reverse:
        return p - q
    log_ratio = (p / q).log()
    return p * (log_ratio - (p * log_ratio).sum())


def test_k1_in_the_loss_has_no_gradient_and_is_refused() -> None:
    gradient = expected_gradient(lambda lp, ref: kl_estimate(lp, ref, ones(5), "k1"))
    torch.testing.assert_close(gradient, torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-7)
    assert kl_gradient(reverse=True).norm() > 0.1
    with pytest.raises(ValueError, match="ignores the reference"):
        check_kl_placement("k1", "loss")


def test_k2_has_the_gradient_of_reverse_kl() -> None:
    gradient = expected_gradient(lambda lp, ref: kl_estimate(lp, ref, ones(5), "k2"))
    torch.testing.assert_close(gradient, kl_gradient(reverse=True), rtol=1e-5, atol=1e-6)


def test_k3_has_the_gradient_of_forward_kl() -> None:
    gradient = expected_gradient(lambda lp, ref: kl_estimate(lp, ref, ones(5), "k3"))
    torch.testing.assert_close(gradient, kl_gradient(reverse=False), rtol=1e-5, atol=1e-6)


def test_k1_in_the_reward_has_the_gradient_of_reverse_kl() -> None:
    """The advantage of each token is -k1; the policy gradient then descends KL(policy || reference)."""

    def loss(logprobs: Tensor, ref: Tensor) -> Tensor:
        old = logprobs.detach()
        return clipped_policy_gradient(logprobs, old, -(old - ref), ones(5), clip_low=0.2, clip_high=0.2)[0]

    torch.testing.assert_close(expected_gradient(loss), kl_gradient(reverse=True), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_k2_and_k3_in_the_reward_are_refused_for_another_gradient(estimator: str) -> None:
    def loss(logprobs: Tensor, ref: Tensor) -> Tensor:
        old = logprobs.detach()
        reward = -kl_estimate(old, ref, ones(5), estimator)  # type: ignore[arg-type]
        return clipped_policy_gradient(logprobs, old, reward, ones(5), clip_low=0.2, clip_high=0.2)[0]

    assert (expected_gradient(loss) - kl_gradient(reverse=True)).norm() > 0.05
    with pytest.raises(ValueError, match="only k1"):
        check_kl_placement(estimator, "reward")


def test_values_of_k1_and_k3_are_unbiased() -> None:
    p, q = LOGITS.softmax(0), REF_LOGITS.softmax(0)
    exact = (p * (p / q).log()).sum().item()
    mean = {
        name: (p * kl_estimate(p.log(), q.log(), ones(5), name).double()).sum().item()  # type: ignore[arg-type]
        for name in ("k1", "k2", "k3")
    }
    assert mean["k1"] == pytest.approx(exact, rel=1e-5)
    assert mean["k3"] == pytest.approx(exact, rel=1e-5)
    assert mean["k2"] != pytest.approx(exact, rel=1e-2)


def test_estimators_by_hand() -> None:
    logprobs, ref = torch.tensor([-1.0, -2.0]), torch.tensor([-2.0, -1.0])
    expected = {"k1": [1.0, -1.0], "k2": [0.5, 0.5], "k3": [math.exp(-1), math.e - 2]}
    for name, values in expected.items():
        torch.testing.assert_close(
            kl_estimate(logprobs, ref, ones(2), name),  # type: ignore[arg-type]
            torch.tensor(values),
        )
    # Near agreement k3 is d^2 / 2; exp(-d) - 1 + d in float32 would return round-off of 1e-8 or a negative number.
    near = kl_estimate(torch.tensor([1e-4]), torch.tensor([0.0]), ones(1), "k3")
    assert near.item() == pytest.approx(5e-9, rel=5e-2)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_kl_trained_alone_falls_to_zero(estimator: str) -> None:
    """Advantages 0, coefficient > 0, samples from the policy: a wrong sign or a detached term would not fall."""
    torch.manual_seed(0)
    logits = LOGITS.clone().float().requires_grad_()
    ref = REF_LOGITS.float().log_softmax(0)

    def kl() -> float:
        lp = logits.detach().log_softmax(0)
        return (lp.exp() * (lp - ref)).sum().item()

    first = kl()
    optimizer = torch.optim.SGD([logits], lr=0.5)
    for _ in range(150):
        tokens = torch.multinomial(logits.detach().softmax(0), 256, replacement=True)
        logprobs = logits.log_softmax(0)[tokens]
        surrogate, _ = clipped_policy_gradient(
            logprobs, logprobs.detach(), torch.zeros(256), ones(256), clip_low=0.2, clip_high=0.2
        )
        per_token = surrogate + 1.0 * kl_estimate(logprobs, ref[tokens], ones(256), estimator)  # type: ignore[arg-type]
        loss = reduce(per_token, ones(256), aggregation="token_mean", cu_seqlens=cu(256), denominator=256)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert first > 0.5
    assert kl() < 0.01


@pytest.mark.parametrize(("estimator", "kl_in"), [("k2", "loss"), ("k3", "loss"), ("k1", "reward")])
def test_sound_placements_pass(estimator: str, kl_in: str) -> None:
    check_kl_placement(estimator, kl_in)


@pytest.mark.parametrize(("estimator", "kl_in"), [("k4", "loss"), ("k2", "both")])
def test_unknown_placements_are_refused(estimator: str, kl_in: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        check_kl_placement(estimator, kl_in)


def test_an_unknown_estimator_is_refused() -> None:
    with pytest.raises(ValueError, match="k4"):
        kl_estimate(torch.zeros(1), torch.zeros(1), ones(1), "k4")  # type: ignore[arg-type]


def test_the_learning_signal_of_the_reference_is_detached() -> None:
    ref = torch.tensor([-1.0], requires_grad=True)
    logprobs = torch.tensor([-2.0], requires_grad=True)
    for estimator in ("k2", "k3"):
        kl_estimate(logprobs, ref, ones(1), estimator).sum().backward()  # type: ignore[arg-type]
    assert ref.grad is None


# --- mismatch -------------------------------------------------------------------------------------------------------


def test_mismatch_by_hand_and_over_ranks() -> None:
    """Ratios 1, 2 and 0.5, and one masked token; cut into two ranks the figures stay."""
    rollout = torch.tensor([-1.0, -2.0, -1.0, math.nan])
    learner = rollout + torch.tensor([1.0, 2.0, 0.5, 1.0]).log()
    mask = torch.tensor([True, True, True, False])
    whole = combine_stats([mismatch_stats(learner, rollout, mask, cap=1.5)])
    parts = combine_stats(
        [mismatch_stats(learner[s], rollout[s], mask[s], cap=1.5) for s in (slice(0, 2), slice(2, 4))]
    )
    assert parts == pytest.approx(whole, rel=1e-12)
    metrics = mismatch_metrics(whole)
    assert metrics["mean_abs_diff"] == pytest.approx(2 * math.log(2) / 3, rel=1e-6)
    assert metrics["max_abs_diff"] == pytest.approx(math.log(2), rel=1e-6)
    assert metrics["importance_ratio"] == pytest.approx(3.5 / 3, rel=1e-6)
    assert metrics["effective_sample_size"] == pytest.approx(3.5**2 / 5.25 / 3, rel=1e-6)
    assert metrics["k3"] == pytest.approx((0 + 1 - math.log(2) - 0.5 + math.log(2)) / 3, rel=1e-6)
    assert metrics["mean_prob_diff"] == pytest.approx((0 + math.exp(-2) + 0.5 * math.exp(-1)) / 3, rel=1e-6)
    assert metrics["truncated_share"] == pytest.approx(1 / 3)


def test_agreement_is_exact() -> None:
    logprobs = -torch.rand(50)
    metrics = mismatch_metrics(combine_stats([mismatch_stats(logprobs, logprobs.clone(), ones(50))]))
    assert metrics == {
        "mean_abs_diff": 0.0,
        "max_abs_diff": 0.0,
        "mean_prob_diff": 0.0,
        "k3": 0.0,
        "importance_ratio": 1.0,
        "effective_sample_size": 1.0,
        "truncated_share": 0.0,
    }


def test_a_rank_without_tokens_combines() -> None:
    nothing = mismatch_stats(torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.bool))
    something = mismatch_stats(torch.tensor([-1.0]), torch.tensor([-1.5]), ones(1))
    assert combine_stats([nothing, something]) == combine_stats([something])
    assert mismatch_metrics(combine_stats([nothing])) == {}
    assert combine_stats([]) == {}
