"""Losses as pure functions of tensors: per-token values, then one reducer with a global denominator.

Every tensor is packed: ``[T]`` tokens of ``B`` rows laid end to end, row ``i`` at ``cu_seqlens[i]:cu_seqlens[i + 1]``.
``mask [T]`` (bool) is True on the tokens the policy sampled. What stands in a masked slot, NaN included, changes no
value and no gradient: it is replaced (``torch.where``) before anything is computed from it, never multiplied by 0.

A per-token function returns ``[T]`` float32, 0 where the mask is False. ``reduce`` makes the scalar. Its denominator
speaks of the whole optimiser step, all ranks and micro-batches together (``batching.loss_denominator``), so the losses
of micro-batches simply add up, and so do the gradients of ranks: sum them, do not average them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

Aggregation = Literal["token_mean", "sequence_mean", "constant_length"]
Estimator = Literal["k1", "k2", "k3"]
Stats = dict[str, Tensor]  # 0-d tensors that combine by sum, or by max where the name starts with "max_"

MAX_LOG_RATIO = 20.0  # nats; e^20 is far outside every clip range, and exp stays finite: 0 * inf would be NaN


# --- the reducer ----------------------------------------------------------------------------------------------------


def reduce(values: Tensor, mask: Tensor, *, aggregation: Aggregation, cu_seqlens: Tensor, denominator: float) -> Tensor:
    """Reduce per-token values to this micro-batch's share of the optimiser step's loss.

    ``denominator`` counts over the whole optimiser step, after every mask was applied; rows without a token to train
    on are not counted, so that masking a row equals deleting it:

    - ``token_mean``: sum of values / number of loss tokens (DAPO, arXiv 2503.14476, eq. 8). Every token weighs the
      same, so long rows weigh more.
    - ``sequence_mean``: sum over rows of the row's masked mean / number of rows (GRPO, arXiv 2402.03300, eq. 3). Every
      row weighs the same, so each token of a long row weighs less.
    - ``constant_length``: sum of values / (number of rows * a constant length) (Dr.GRPO, arXiv 2503.20783): unbiased
      towards length; the constant is usually ``max_new_tokens``.

    A row must lie whole in one micro-batch: ``sequence_mean`` counts its tokens here.

    Args:
        values: ``[T]``; cast to float32.
        mask: bool ``[T]``.
        cu_seqlens: int ``[B + 1]``, on the device of ``values``.
        denominator: > 0, from ``batching.loss_denominator``.

    Returns:
        A float32 scalar; 0 (with a gradient of 0) when nothing is left after the mask.

    Raises:
        ValueError: an unknown aggregation, or a denominator that is not positive.
    """
    if not denominator > 0:
        raise ValueError(
            f"reduce: expected a denominator > 0 that counts the whole optimiser step, got {denominator}; "
            "a step without a loss token has no loss and must be skipped by the caller"
        )
    kept = torch.where(mask, values.float(), 0.0)
    if aggregation in ("token_mean", "constant_length"):
        return kept.sum() / denominator
    if aggregation == "sequence_mean":
        row_of_token = _row_of_token(cu_seqlens, len(values))
        num_rows = len(cu_seqlens) - 1
        count = torch.zeros(num_rows, dtype=torch.int64, device=values.device).index_add(0, row_of_token, mask.long())
        # As weights on tokens, not as sums of rows: integer counts are exact whatever the order of the additions.
        weight = 1.0 / count.clamp(min=1).float()
        return (kept * weight[row_of_token]).sum() / denominator
    raise ValueError(f"reduce: expected token_mean, sequence_mean or constant_length, got {aggregation!r}")


def _row_of_token(cu_seqlens: Tensor, num_tokens: int) -> Tensor:
    lengths = cu_seqlens.diff().long()
    rows = torch.arange(len(lengths), device=cu_seqlens.device)
    return torch.repeat_interleave(rows, lengths, output_size=num_tokens)


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """The float64 sum of ``values [T]`` where ``mask``; a metric's numerator, detached."""
    return torch.where(mask, values.detach().double(), 0.0).sum()


# --- policy gradient ------------------------------------------------------------------------------------------------


def clipped_policy_gradient(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float = 0.0,
    importance_weights: Tensor | None = None,
) -> tuple[Tensor, Stats]:
    """PPO's clipped surrogate on each token (arXiv 1707.06347, eq. 7), with DAPO's two clips (arXiv 2503.14476).

    With ``ratio = exp(logprobs - old_logprobs)``::

        loss = -min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A)
        loss = min(loss, dual_clip * |A|)  where A < 0            (dual clip, arXiv 1912.09729, eq. 5)
        loss = loss * importance_weight                           (truncated importance sampling)

    GRPO is ``clip_low == clip_high``; DAPO's clip-higher raises the upper one. On strictly on-policy data with one
    optimiser step the ratio is 1 and this is REINFORCE with the given advantages.

    Args:
        logprobs: ``[T]``, current policy, with gradient.
        old_logprobs: ``[T]``, learner before the update, no gradient.
        advantages: ``[T]``.
        mask: bool ``[T]``.
        dual_clip: > 1, or 0 for off.
        importance_weights: ``[T]`` from ``truncated_importance_weights``, or None.

    Returns:
        The loss ``[T]`` and sums over masked tokens, to be divided by the number of loss tokens of the whole step:
        ``ratio``; ``clip_low``, ``clip_high``, ``dual_clip``: tokens whose gradient that clip set to zero;
        ``old_kl``: k3 of KL(old || current); ``importance_weight``; ``advantage``.

    Raises:
        ValueError: ``dual_clip`` in (0, 1].
    """
    if dual_clip != 0 and not dual_clip > 1:
        raise ValueError(f"clipped_policy_gradient: expected dual_clip 0 (off) or > 1, got {dual_clip}")
    log_ratio = _log_ratio(logprobs, old_logprobs.detach(), mask)
    advantages = torch.where(mask, advantages.detach().float(), 0.0)  # and with it the loss of masked slots
    ratio = torch.exp(log_ratio)
    surrogate = ratio * advantages
    clipped = torch.clamp(ratio, 1.0 - clip_low, 1.0 + clip_high) * advantages
    loss = -torch.minimum(surrogate, clipped)
    dual = torch.zeros_like(mask)
    if dual_clip:
        dual = mask & (advantages < 0) & (ratio.detach() > dual_clip)
        loss = torch.where(dual, -dual_clip * advantages, loss)
    weights = torch.ones_like(loss)
    if importance_weights is not None:
        weights = torch.where(mask, importance_weights.detach().float(), 1.0)
        loss = loss * weights

    fixed = ratio.detach()
    stats = {
        "ratio": masked_sum(fixed, mask),
        "clip_low": masked_sum(((advantages < 0) & (fixed < 1.0 - clip_low)).float(), mask),
        "clip_high": masked_sum(((advantages > 0) & (fixed > 1.0 + clip_high)).float(), mask),
        "dual_clip": masked_sum(dual.float(), mask),
        "old_kl": masked_sum(torch.expm1(log_ratio) - log_ratio, mask),
        "importance_weight": masked_sum(weights, mask),
        "advantage": masked_sum(advantages, mask),
    }
    return loss, stats


def truncated_importance_weights(old_logprobs: Tensor, rollout_logprobs: Tensor, mask: Tensor, cap: float) -> Tensor:
    """Weights ``min(pi_old / pi_rollout, cap)`` that correct for a sampler which differs from the learner.

    Truncated importance sampling (Ionides 2008, doi 10.1198/106186008X320456): the engine and the learner compute the
    same policy in different arithmetic, so samples are slightly off-policy. The cap bounds the variance; the bias it
    brings is counted (``truncated`` in ``mismatch_stats``).

    Args:
        old_logprobs, rollout_logprobs: ``[T]``.
        mask: bool ``[T]``.
        cap: > 0.

    Returns:
        float32 ``[T]``, detached, 1 where the mask is False.

    Raises:
        ValueError: ``cap`` not positive.
    """
    if not cap > 0:
        raise ValueError(
            f"truncated_importance_weights: expected a cap > 0, got {cap}; leave the call out to turn it off"
        )
    weights = torch.exp(_log_ratio(old_logprobs.detach(), rollout_logprobs.detach(), mask))
    return weights.clamp(max=cap)


def _log_ratio(numerator: Tensor, denominator: Tensor, mask: Tensor) -> Tensor:
    """``numerator - denominator`` in float32, 0 where masked, bounded so that its exponential is finite."""
    difference = torch.where(mask, numerator.float() - denominator.float(), 0.0)
    return difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


# --- KL to a reference ----------------------------------------------------------------------------------------------


def check_kl_placement(estimator: str, kl_in: str) -> None:
    """Refuse the pairs of estimator and placement whose gradient is not that of a KL divergence.

    In the **loss** the estimator itself is differentiated. ``k1 = logprobs - ref_logprobs`` has the gradient
    ``grad logprobs``: it ignores the reference, and its expectation under the policy is zero. So ``k2`` or ``k3``.
    In the **reward** the estimator is a constant beside ``grad logprobs``. Of the three only ``k1`` then has the
    expected gradient of KL(policy || reference): for ``k2`` and ``k3`` the dropped derivative is not zero.

    Raises:
        ValueError: unknown names, ``k1`` in the loss, ``k2`` or ``k3`` in the reward.
    """
    if estimator not in ("k1", "k2", "k3"):
        raise ValueError(f"kl_estimator: expected k1, k2 or k3, got {estimator!r}")
    if kl_in not in ("loss", "reward"):
        raise ValueError(f"kl_in: expected loss or reward, got {kl_in!r}")
    if kl_in == "loss" and estimator == "k1":
        raise ValueError(
            "kl_estimator=k1 with kl_in=loss: its gradient ignores the reference and is zero in expectation; "
            "use k2 or k3 in the loss, or kl_in=reward"
        )
    if kl_in == "reward" and estimator != "k1":
        raise ValueError(
            f"kl_estimator={estimator} with kl_in=reward: as a reward only k1 has the expected gradient of "
            "KL(policy || reference); use k1, or kl_in=loss"
        )


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, estimator: Estimator) -> Tensor:
    """Per-token estimate of KL(policy || reference) from the sampled token (Schulman, "Approximating KL divergence").

    With ``d = logprobs - ref_logprobs`` and tokens sampled from the policy::

        k1 = d                     value unbiased, high variance; zero expected gradient (never in the loss)
        k2 = d^2 / 2               value biased; its expected gradient is exactly that of KL(policy || reference)
        k3 = exp(-d) - 1 + d       value unbiased, >= 0; its expected gradient is that of KL(reference || policy)

    Both gradients vanish where policy and reference agree, and point back towards the reference elsewhere.

    Args:
        logprobs: ``[T]``, with gradient.
        ref_logprobs: ``[T]``, no gradient.
        mask: bool ``[T]``.

    Returns:
        float32 ``[T]``, 0 where the mask is False.

    Raises:
        ValueError: an unknown estimator.
    """
    d = _log_ratio(logprobs, ref_logprobs.detach(), mask)
    if estimator == "k1":
        return d
    if estimator == "k2":
        return 0.5 * d.square()
    if estimator == "k3":
        return torch.expm1(-d) + d  # expm1: near d = 0 the value is d^2 / 2, which exp(-d) - 1 would round away
    raise ValueError(f"kl_estimate: expected k1, k2 or k3, got {estimator!r}")


# --- sampler / learner mismatch -------------------------------------------------------------------------------------


def mismatch_stats(logprobs: Tensor, rollout_logprobs: Tensor, mask: Tensor, *, cap: float = 0.0) -> Stats:
    """How far the learner's logprobs of the sampled tokens are from the sampler's.

    With ``d = logprobs - rollout_logprobs`` and ``w = exp(d)``, sums in float64 over masked tokens: ``num_tokens``,
    ``abs_diff`` = |d| (nats), ``prob_diff`` = |p_learner - p_sampler|, ``k3`` = w - 1 - d (an estimate of
    KL(sampler || learner)), ``weight`` = w, ``weight_squared`` = w^2, ``truncated``: tokens with w > cap (0 when cap
    is 0); and ``max_abs_diff``, which combines by max. ``combine_stats`` then ``mismatch_metrics`` make figures.

    Args:
        logprobs: ``[T]``, the learner's, at the weights that sampled.
        rollout_logprobs: ``[T]``.
        mask: bool ``[T]``.
        cap: of the truncated importance weights; 0 when they are off.
    """
    learner, sampler = logprobs.detach().double(), rollout_logprobs.detach().double()
    d = torch.where(mask, learner - sampler, 0.0)
    bounded = d.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    weight = torch.exp(bounded)
    return {
        "num_tokens": mask.double().sum(),
        "abs_diff": d.abs().sum(),
        "max_abs_diff": d.abs().amax() if len(d) else d.sum(),
        "prob_diff": masked_sum((learner.exp() - sampler.exp()).abs(), mask),
        "k3": masked_sum(torch.expm1(bounded) - bounded, mask),
        "weight": masked_sum(weight, mask),
        "weight_squared": masked_sum(weight.square(), mask),
        "truncated": masked_sum((weight > cap).float(), mask) if cap > 0 else torch.zeros_like(d.sum()),
    }


def combine_stats(parts: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Add up the stats of micro-batches or ranks; a name that starts with ``max_`` takes the largest."""
    if not parts:
        return {}
    return {name: (max if name.startswith("max_") else sum)([float(part[name]) for part in parts]) for name in parts[0]}


def mismatch_metrics(totals: Mapping[str, Any]) -> dict[str, float]:
    """Figures from combined ``mismatch_stats``; empty when there was no token.

    ``mean_abs_diff``, ``max_abs_diff`` (nats), ``mean_prob_diff``, ``k3`` (nats a token), ``importance_ratio`` (mean),
    ``effective_sample_size`` = (sum w)^2 / sum w^2 / num_tokens in (0, 1], ``truncated_share``.
    """
    num_tokens = float(totals["num_tokens"])
    if num_tokens == 0:
        return {}
    return {
        "mean_abs_diff": float(totals["abs_diff"]) / num_tokens,
        "max_abs_diff": float(totals["max_abs_diff"]),
        "mean_prob_diff": float(totals["prob_diff"]) / num_tokens,
        "k3": float(totals["k3"]) / num_tokens,
        "importance_ratio": float(totals["weight"]) / num_tokens,
        "effective_sample_size": float(totals["weight"]) ** 2 / float(totals["weight_squared"]) / num_tokens,
        "truncated_share": float(totals["truncated"]) / num_tokens,
    }


LOSSES: dict[str, Callable[..., tuple[Tensor, Stats]]] = {"clipped_policy_gradient": clipped_policy_gradient}
