"""How a batch is cut: minibatches for optimiser steps, shards for ranks, micro-batches for memory. numpy only.

Rows are atomic: nothing splits, cuts or pads one. Everything is deterministic; a shuffle takes a seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rlplatform.types import RolloutBatch, TrainBatch, rows

# --- selecting rows -------------------------------------------------------------------------------------------------


def token_index(cu_seqlens: np.ndarray, row_ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """int64 ``[t]``: where the tokens of the given rows lie in the packed arrays, row after row."""
    spans = rows(cu_seqlens)
    parts = [np.arange(spans[row].start, spans[row].stop) for row in row_ids]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def take_rows(batch: RolloutBatch, row_ids: Sequence[int] | np.ndarray) -> RolloutBatch:
    """The given rows, in the given order, packed again. ``oldest_version`` stays that of the whole batch."""
    row_ids = np.asarray(row_ids, dtype=np.int64)
    tokens = token_index(batch.cu_seqlens, row_ids)
    lengths = np.diff(batch.cu_seqlens)[row_ids]
    return replace(
        batch,
        token_ids=batch.token_ids[tokens],
        cu_seqlens=np.concatenate(([0], np.cumsum(lengths))).astype(np.int32),
        loss_mask=batch.loss_mask[tokens],
        rollout_logprobs=batch.rollout_logprobs[tokens],
        advantages=batch.advantages[tokens],
        rewards=batch.rewards[row_ids],
        group_ids=batch.group_ids[row_ids],
    )


def take_train_rows(batch: TrainBatch, row_ids: Sequence[int] | np.ndarray) -> TrainBatch:
    """``take_rows`` of a train batch, its logprobs and the teacher's included."""
    tokens = token_index(batch.batch.cu_seqlens, row_ids)
    mask = batch.batch.loss_mask
    loss_tokens = (np.cumsum(mask) - 1)[tokens[mask[tokens]]]
    return TrainBatch(
        batch=take_rows(batch.batch, row_ids),
        old_logprobs=None if batch.old_logprobs is None else batch.old_logprobs[tokens],
        ref_logprobs=None if batch.ref_logprobs is None else batch.ref_logprobs[tokens],
        teacher=None if batch.teacher is None else batch.teacher.take(loss_tokens),
    )


# --- minibatches, shards, micro-batches -----------------------------------------------------------------------------


def split_minibatches(batch: RolloutBatch, num_updates: int, *, seed: int | None = None) -> list[np.ndarray]:
    """Row indices (int64, ascending) of each optimiser step of one update; every row is in exactly one.

    Whole groups as long as there are at least ``num_updates`` of them, spread so that the number of rows is as near to
    equal as whole groups allow (largest group first, to the minibatch with the fewest rows); with fewer groups, rows
    are spread evenly. Fewer rows than ``num_updates`` give that many minibatches of one row: the caller reads the
    number of optimiser steps from the length of the list.

    Args:
        seed: shuffles the groups (rows, when there are too few groups) first; None keeps batch order.

    Raises:
        ValueError: ``num_updates`` < 1.
    """
    if num_updates < 1:
        raise ValueError(f"split_minibatches: expected num_updates >= 1, got {num_updates}")
    num_rows = batch.num_rows
    groups = [np.flatnonzero(batch.group_ids == group_id) for group_id in np.unique(batch.group_ids)]
    units = groups if len(groups) >= num_updates else [np.array([row]) for row in range(num_rows)]
    if seed is not None:
        units = [units[i] for i in np.random.default_rng(seed).permutation(len(units))]
    bins: list[list[np.ndarray]] = [[] for _ in range(min(num_updates, num_rows))]
    sizes = np.zeros(len(bins), dtype=np.int64)
    for unit in sorted(units, key=len, reverse=True):  # stable: equal sizes keep their (shuffled) order
        target = int(sizes.argmin())
        bins[target].append(unit)
        sizes[target] += len(unit)
    return [np.sort(np.concatenate(parts)) for parts in bins]


def shard_rows(lengths: Sequence[int] | np.ndarray, num_ranks: int) -> list[np.ndarray]:
    """Row indices (int64, ascending) of each data-parallel rank, balanced by tokens.

    Longest row first, to the rank with the fewest tokens among those that hold fewer than ``ceil(rows / num_ranks)``
    rows. A rank gets no row when there are fewer rows than ranks.

    Args:
        lengths: ``[B]``, tokens.

    Raises:
        ValueError: ``num_ranks`` < 1.
    """
    if num_ranks < 1:
        raise ValueError(f"shard_rows: expected num_ranks >= 1, got {num_ranks}")
    lengths = np.asarray(lengths, dtype=np.int64)
    most_rows = -(-len(lengths) // num_ranks)
    shards: list[list[int]] = [[] for _ in range(num_ranks)]
    tokens = [0] * num_ranks
    for row in np.argsort(-lengths, kind="stable"):
        rank = min((r for r in range(num_ranks) if len(shards[r]) < most_rows), key=lambda r: tokens[r])
        shards[rank].append(int(row))
        tokens[rank] += int(lengths[row])
    return [np.array(sorted(shard), dtype=np.int64) for shard in shards]


def micro_batches(lengths: Sequence[int] | np.ndarray, max_tokens: int) -> list[list[int]]:
    """Row indices of each micro-batch: at most ``max_tokens`` tokens, first-fit decreasing, no padding.

    A row longer than ``max_tokens`` gets a micro-batch of its own: it is never cut or dropped.

    Args:
        lengths: ``[B]``, tokens.

    Raises:
        ValueError: ``max_tokens`` < 1.
    """
    if max_tokens < 1:
        raise ValueError(f"micro_batches: expected max_tokens >= 1, got {max_tokens}")
    lengths = np.asarray(lengths, dtype=np.int64)
    bins: list[list[int]] = []
    free: list[int] = []
    for row in np.argsort(-lengths, kind="stable"):
        length = int(lengths[row])
        target = next((i for i, space in enumerate(free) if length <= space), None)
        if target is None:
            bins.append([])
            free.append(max_tokens)
            target = len(bins) - 1
        bins[target].append(int(row))
        free[target] -= length
    return [sorted(micro_batch) for micro_batch in bins]


def equalise(per_rank: Sequence[Sequence[Sequence[int]]]) -> list[list[list[int]]]:
    """Give every rank the same number of micro-batches, because collectives run once a micro-batch on all ranks.

    A rank with fewer splits its micro-batch of the most rows in two, which adds no work; only a rank with fewer rows
    than micro-batches gets empty ones (``[]``), for which the learner runs a pass without a loss.
    """
    target = max((len(micro) for micro in per_rank), default=0)
    result = []
    for micro in per_rank:
        parts = [list(part) for part in micro]
        while len(parts) < target:
            largest = max(range(len(parts)), key=lambda i: len(parts[i]), default=-1)
            if largest < 0 or len(parts[largest]) < 2:
                parts.append([])
                continue
            rows_of = parts[largest]
            parts[largest : largest + 1] = [rows_of[: len(rows_of) // 2], rows_of[len(rows_of) // 2 :]]
        result.append(parts)
    return result
