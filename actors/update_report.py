"""What a rank reports of an update, and what all of them together say: the learner's metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlplatform import losses
from rlplatform.types import Metrics, RolloutBatch


@dataclass(frozen=True)
class UpdateReport:
    """What one rank did: sums over its own loss tokens, and the engine's account, which is the same on all ranks."""

    sums: dict[str, float]  # of policy_loss, combined by losses.combine_stats
    lr: float
    grad_norm: float
    num_steps: int  # optimiser steps taken since the start
    num_skipped: int  # skipped since the start
    skipped_now: int  # skipped in this update
    rss_gib: float
    router: dict[str, float]  # of model.balance, mean over optimiser steps, equal on all ranks; empty without experts
    stopped: str = ""  # why the run must end: too many skipped steps in a row


def update_metrics(batch: RolloutBatch, reports: Sequence[UpdateReport], *, num_steps: int, seconds: float) -> Metrics:
    """What all ranks together say of one update of ``num_steps`` optimiser steps that took ``seconds``."""
    sums = losses.combine_stats([report.sums for report in reports])
    tokens = sums["num_tokens"]
    mismatch = losses.mismatch_metrics(sums)
    metrics: Metrics = {"loss/total": sums["loss"] / num_steps}
    if "divergence" in sums:
        metrics["distill/divergence"] = sums["divergence"] / tokens
    else:
        metrics |= {
            "loss/policy": sums["policy_loss"] / num_steps,
            "policy/ratio_mean": sums["ratio"] / tokens,
            "policy/clip_low_share": sums["clip_low"] / tokens,
            "policy/clip_high_share": sums["clip_high"] / tokens,
        }
    if "kl_loss" in sums:
        metrics["loss/kl"] = sums["kl_loss"] / num_steps
    if "ref_k3" in sums:
        metrics["policy/kl_ref"] = sums["ref_k3"] / tokens
    metrics |= {
        "policy/entropy": sums["entropy"] / tokens,
        "mismatch/abs_logprob_diff_mean": mismatch["mean_abs_diff"],
        "mismatch/abs_logprob_diff_max": mismatch["max_abs_diff"],
        "mismatch/kl_k3": mismatch["k3"],
        "mismatch/importance_ratio_mean": mismatch["importance_ratio"],
        "mismatch/effective_sample_size": mismatch["effective_sample_size"],
        "mismatch/truncated_share": mismatch["truncated_share"],
        "optimizer/lr": reports[0].lr,
        "optimizer/grad_norm": reports[0].grad_norm,
        "optimizer/skipped_steps": float(reports[0].num_skipped),
        "optimizer/steps": float(reports[0].num_steps),
        "learner/tokens": float(len(batch.token_ids)),
        "learner/loss_tokens": tokens,
        "learner/rows": float(batch.num_rows),
        "learner/seconds": seconds,
        "learner/tokens_per_s": len(batch.token_ids) / seconds,
        "memory/learner_rss_gib": max(report.rss_gib for report in reports),
        **reports[0].router,
    }
    return metrics
