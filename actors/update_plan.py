"""Which rank computes which rows of an update, in which micro-batches, and what the losses divide by. Numbers only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from rlplatform import batching, sharding
from rlplatform.config import LearnerConfig, RLConfig
from rlplatform.types import RolloutBatch

Split: TypeAlias = Sequence[Sequence[Sequence[int]]]  # [rank][micro-batch] -> rows; [] is a pass without loss


@dataclass(frozen=True)
class StepPlan:
    """One optimiser step: which rows each rank computes, in which micro-batches, and what the losses divide by."""

    micro_batches: Split
    denominator: float  # of losses.reduce, over all ranks
    num_tokens: int  # of all rows, prompts included: what the routers' losses divide by
    entropy_coef: float = 0.0  # of the entropy bonus in this step


def split_rows(batch: RolloutBatch, row_ids: np.ndarray, learner: LearnerConfig) -> Split:
    """Ranks balanced by tokens, micro-batches by ``max_tokens_per_micro_batch``, equally many on each rank."""
    lengths = np.diff(batch.cu_seqlens)[row_ids]
    per_rank = []
    for shard in sharding.shard_rows(lengths, learner.num_workers):
        parts = sharding.micro_batches(lengths[shard], learner.max_tokens_per_micro_batch)
        per_rank.append([row_ids[shard[part]].tolist() for part in parts])
    return sharding.equalise(per_rank)


def plan_update(batch: RolloutBatch, config: RLConfig, *, version: int, entropy_coef: float) -> list[StepPlan]:
    """The optimiser steps of one update: ``updates_per_step``, less those without a token to train on.

    Rows are drawn by ``config.seed`` and ``version``, the number of updates before this one.

    Raises:
        ValueError: no row has a token to train on.
    """
    plans = []
    for row_ids in sharding.split_minibatches(batch, config.updates_per_step, seed=config.seed * 1_000_003 + version):
        denominator = batching.loss_denominator(
            sharding.take_rows(batch, row_ids),
            aggregation=config.algorithm.aggregation,
            constant_length=config.sampling.max_new_tokens,
        )
        if denominator > 0:
            num_tokens = int(np.diff(batch.cu_seqlens)[row_ids].sum())
            plans.append(StepPlan(split_rows(batch, row_ids, config.learner), denominator, num_tokens, entropy_coef))
    if not plans:
        raise ValueError(f"update: none of {batch.num_rows} rows has a token with loss_mask True; drop such batches")
    return plans
