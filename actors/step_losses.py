"""A micro-batch's share of an optimiser step's loss: policy gradient, or divergence from a teacher. Tensors only.

Denominators are given: they count the whole optimiser step, whatever rank or micro-batch the rows went to.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from actors.micro_batch import MicroBatch
from rlplatform import losses
from rlplatform.config import AlgorithmConfig, RLConfig
from rlplatform.divergences import TopK, divergence


def policy_loss(
    logprobs: torch.Tensor,
    entropy: torch.Tensor,
    micro_batch: MicroBatch,
    config: AlgorithmConfig,
    denominator: float,
    *,
    entropy_coef: float | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """This micro-batch's share of the optimiser step's loss, and sums for the metrics.

    loss = policy gradient + kl_coef * KL (``kl_in=loss``) - entropy_coef * entropy, all reduced alike.

    Args:
        logprobs: float32 [N] of the loss tokens, with gradient.
        entropy: float32 [N].
        denominator: of the whole optimiser step.
        entropy_coef: of the bonus; None: ``config.entropy_coef``.
    """
    mask = torch.ones_like(logprobs, dtype=torch.bool)
    old = logprobs.detach() if micro_batch.old_logprobs is None else micro_batch.old_logprobs
    rollout = micro_batch.rollout_logprobs
    weights = None
    if config.importance_cap:
        weights = losses.truncated_importance_weights(old, rollout, mask, config.importance_cap)
    per_token, stats = losses.LOSSES[config.loss](
        logprobs,
        old,
        micro_batch.advantages,
        mask,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        dual_clip=config.dual_clip,
        importance_weights=weights,
    )

    def reduce(values: torch.Tensor) -> torch.Tensor:
        return losses.reduce(
            values,
            mask,
            aggregation=config.aggregation,
            cu_seqlens=micro_batch.loss_cu_seqlens,
            denominator=denominator,
        )

    loss = policy = reduce(per_token)
    sums = {**stats, **losses.mismatch_stats(old, rollout, mask, cap=config.importance_cap)}
    sums |= {"policy_loss": policy.detach(), "entropy": losses.masked_sum(entropy, mask)}
    if micro_batch.ref_logprobs is not None:
        k3 = losses.kl_estimate(logprobs.detach(), micro_batch.ref_logprobs, mask, "k3")
        sums["ref_k3"] = losses.masked_sum(k3, mask)
        if config.kl_in == "loss":
            kl = reduce(losses.kl_estimate(logprobs, micro_batch.ref_logprobs, mask, config.kl_estimator))
            loss = loss + config.kl_coef * kl
            sums["kl_loss"] = kl.detach()
    coef = config.entropy_coef if entropy_coef is None else entropy_coef
    if coef:
        loss = loss - coef * reduce(entropy)
    sums["loss"] = loss.detach()
    return loss, sums


def distillation_loss(
    values: torch.Tensor, micro_batch: MicroBatch, config: AlgorithmConfig, denominator: float
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """This micro-batch's share of the optimiser step's mean divergence, and sums for the metrics.

    ``values`` float32 [N, 3]: of ``distillation_values``.
    """
    divergences, logprobs, entropy = values.unbind(dim=1)
    mask = torch.ones_like(divergences, dtype=torch.bool)
    loss = losses.reduce(
        divergences,
        mask,
        aggregation=config.aggregation,
        cu_seqlens=micro_batch.loss_cu_seqlens,
        denominator=denominator,
    )
    sums = losses.mismatch_stats(logprobs, micro_batch.rollout_logprobs, mask, cap=config.importance_cap)
    sums |= {
        "divergence": losses.masked_sum(divergences, mask),
        "entropy": losses.masked_sum(entropy, mask),
        "loss": loss.detach(),
    }
    return loss, sums


def distillation_values(micro_batch: MicroBatch, config: RLConfig) -> Callable[[torch.Tensor, slice], torch.Tensor]:
    """What ``TokenScorer(of_logits=...)`` computes for distillation: of each loss token the divergence from the teacher
    and, without gradient, the log-probability of the token and the entropy at the sampling temperature: [n, 3]."""
    algorithm, teacher = config.algorithm, micro_batch.teacher
    targets = micro_batch.token_ids[micro_batch.scored]

    def of_logits(logits: torch.Tensor, positions: slice) -> torch.Tensor:
        with torch.no_grad():
            log_p = torch.log_softmax(logits / config.sampling.temperature, dim=-1)
            logprobs = log_p.gather(1, targets[positions, None])[:, 0]
            entropy = -(log_p.exp() * log_p).sum(dim=-1)
        if teacher is None:  # a pass without rows
            values = logits.sum(dim=-1) * 0.0
        else:
            values = divergence(
                logits[:, : micro_batch.num_ids],
                _at(teacher, positions),
                torch.ones(len(logits), dtype=torch.bool, device=logits.device),
                kind=algorithm.divergence,
                beta=algorithm.divergence_beta,
                temperature=config.teacher.temperature,
                chunk_tokens=config.learner.logprob_chunk_tokens,
            )
        return torch.stack((values, logprobs, entropy), dim=1)

    return of_logits


def _at(teacher: torch.Tensor | TopK, positions: slice) -> torch.Tensor | TopK:
    if isinstance(teacher, torch.Tensor):
        return teacher[positions]
    return TopK(teacher.ids[positions], teacher.logprobs[positions], teacher.rest[positions])
