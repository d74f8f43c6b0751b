"""From scored groups to packed batches, and from a batch to minibatches, shards and micro-batches. numpy only.

    drop_zero_variance -> make_batch -> split_minibatches -> shard_rows -> micro_batches -> equalise

What a group's statistics and the loss see is decided once, in ``usable``. Rows are atomic: nothing splits, cuts or pads
one. Everything is deterministic; a shuffle takes a seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from rewards.base import OK, Verdict
from rlplatform import advantages
from rlplatform.advantages import ADVANTAGES, is_constant
from rlplatform.types import FINISH_ABORT, FINISH_LENGTH, Metrics, Rollout, RolloutBatch, ScoredGroup, TrainBatch, rows

# --- which rollouts count -------------------------------------------------------------------------------------------


def unusable_reason(rollout: Rollout, verdict: Verdict, *, drop_truncated: bool = False) -> str | None:
    """Why a rollout reaches neither its group's statistics nor the loss; None when it does.

    ``timeout``, ``error``, ``unparseable``, ``not_applicable``: the grader could not tell. ``aborted``: the engine
    gave up, so this is not a sample of the policy. ``empty``: no token was sampled by the policy; a policy that ends at
    once has sampled its stop token, which is one. ``truncated`` (only with ``drop_truncated``): cut by max_new_tokens.
    """
    if verdict.status != OK:
        return verdict.status
    if rollout.finish == FINISH_ABORT:
        return "aborted"
    if not rollout.loss_mask.any():
        return "empty"
    if drop_truncated and rollout.finish == FINISH_LENGTH:
        return "truncated"
    return None


def usable(scored: ScoredGroup, *, drop_truncated: bool = False) -> tuple[tuple[Rollout, ...], tuple[Verdict, ...]]:
    """The rollouts of a group that count, and their verdicts, in order (see ``unusable_reason``).

    The others are absent from the group's mean and deviation too: peers get the advantages they would have had if
    the rollout had never been sampled.
    """
    pairs = [
        (rollout, verdict)
        for rollout, verdict in zip(scored.group.rollouts, scored.verdicts, strict=True)
        if unusable_reason(rollout, verdict, drop_truncated=drop_truncated) is None
    ]
    return tuple(rollout for rollout, _ in pairs), tuple(verdict for _, verdict in pairs)


def shaped_rewards(
    rollouts: Sequence[Rollout],
    verdicts: Sequence[Verdict],
    *,
    max_new_tokens: int = 0,
    overlong_buffer: int = 0,
    overlong_penalty: float = 1.0,
) -> np.ndarray:
    """What is trained on: float32 ``[n]``, score plus DAPO's overlong penalty on the number of sampled tokens."""
    scores = np.array([verdict.score for verdict in verdicts], dtype=np.float64)
    if overlong_buffer:
        lengths = np.array([int(rollout.loss_mask.sum()) for rollout in rollouts])
        scores = scores + advantages.overlong_penalty(lengths, max_new_tokens, overlong_buffer, overlong_penalty)
    return scores.astype(np.float32)


def drop_zero_variance(
    groups: Sequence[ScoredGroup],
    *,
    drop: bool = True,
    drop_truncated: bool = False,
    max_new_tokens: int = 0,
    overlong_buffer: int = 0,
    overlong_penalty: float = 1.0,
    score_range: tuple[float, float] | None = None,
) -> tuple[list[ScoredGroup], Metrics]:
    """Keep the groups whose shaped rewards differ (DAPO's dynamic sampling, arXiv 2503.14476, section 3.2).

    Equal rewards give advantages of exactly 0: such a group spends compute, and dilutes the token mean, for nothing.
    With ``drop=False`` only groups without any usable rollout go (a KL term can use the others); the counts stay.

    Args:
        score_range: the scores of "all wrong" and "all right", before shaping; None: lowest and highest of these
            groups, and then a step whose scores are all equal counts neither ``all_min`` nor ``all_max``.

    Returns:
        The kept groups, in order, and counts. ``groups/``: ``total``, ``kept``, ``acceptance`` (kept / total),
        ``too_small`` (fewer than 2 usable rollouts), ``zero_variance``, and of those ``all_min`` and ``all_max``.
        ``rollout/``: ``not_ok_dropped``, ``truncated_dropped``, ``empty_dropped`` (no sampled token, or aborted).
    """
    names = ("total", "kept", "acceptance", "too_small", "zero_variance", "all_min", "all_max")
    counts: Metrics = dict.fromkeys((f"groups/{name}" for name in names), 0.0)
    counts |= {f"rollout/{name}_dropped": 0.0 for name in ("not_ok", "truncated", "empty")}
    lowest, highest = score_range or _observed_range(groups, drop_truncated=drop_truncated)
    kept: list[ScoredGroup] = []
    for scored in groups:
        rollouts, verdicts = usable(scored, drop_truncated=drop_truncated)
        rewards = shaped_rewards(
            rollouts,
            verdicts,
            max_new_tokens=max_new_tokens,
            overlong_buffer=overlong_buffer,
            overlong_penalty=overlong_penalty,
        )
        for rollout, verdict in zip(scored.group.rollouts, scored.verdicts, strict=True):
            reason = unusable_reason(rollout, verdict, drop_truncated=drop_truncated)
            if reason is not None:
                counts[f"rollout/{_COUNTED_AS.get(reason, 'not_ok')}_dropped"] += 1
        if len(rollouts) < 2:
            counts["groups/too_small"] += 1
        elif is_constant(rewards):
            counts["groups/zero_variance"] += 1
            if lowest < highest:
                scores = [verdict.score for verdict in verdicts]
                counts["groups/all_min"] += max(scores) <= lowest
                counts["groups/all_max"] += min(scores) >= highest
        if not is_constant(rewards) or (not drop and len(rollouts) > 0):
            kept.append(scored)
    counts["groups/total"], counts["groups/kept"] = float(len(groups)), float(len(kept))
    counts["groups/acceptance"] = len(kept) / len(groups) if groups else 0.0
    return kept, counts


_COUNTED_AS = {"truncated": "truncated", "empty": "empty", "aborted": "empty"}  # any other reason is a status: not_ok


def _observed_range(groups: Sequence[ScoredGroup], *, drop_truncated: bool) -> tuple[float, float]:
    scores = [v.score for scored in groups for v in usable(scored, drop_truncated=drop_truncated)[1]]
    return (min(scores), max(scores)) if scores else (0.0, 0.0)


# --- packing --------------------------------------------------------------------------------------------------------


def make_batch(
    groups: Sequence[ScoredGroup],
    *,
    advantage: str,
    drop_truncated: bool = False,
    max_new_tokens: int = 0,
    overlong_buffer: int = 0,
    overlong_penalty: float = 1.0,
) -> RolloutBatch:
    """Pack the usable rollouts of the groups: prompt and completion of each row end to end, without padding.

    Groups are ordered by (step, index), whoever finished first; rollouts keep their order. Each sampled token carries
    its row's advantage; prompt tokens and tokens the policy did not sample have loss_mask False, advantage 0 and
    rollout_logprob 0.

    Args:
        advantage: a name of ``advantages.ADVANTAGES``.

    Raises:
        ValueError: an unknown advantage, the same group twice, no usable rollout at all, or more tokens than an int32
            can count.
    """
    if advantage not in ADVANTAGES:
        raise ValueError(f"advantage: expected one of {sorted(ADVANTAGES)}, got {advantage!r}")
    ordered = sorted(groups, key=_group_key)
    for first, second in pairwise(ordered):
        if _group_key(first) == _group_key(second):
            raise ValueError(
                f"make_batch: prompt {first.group.prompt.prompt_id} of step {first.group.step}, index "
                f"{first.group.index}, came twice; each group is trained on once"
            )
    token_ids, mask, logprobs, versions, lengths, rewards, group_ids = [], [], [], [], [], [], []
    for group_id, scored in enumerate(ordered):
        rollouts, verdicts = usable(scored, drop_truncated=drop_truncated)
        rewards.append(
            shaped_rewards(
                rollouts,
                verdicts,
                max_new_tokens=max_new_tokens,
                overlong_buffer=overlong_buffer,
                overlong_penalty=overlong_penalty,
            )
        )
        group_ids += [group_id] * len(rollouts)
        prompt = scored.group.prompt.token_ids
        for rollout in rollouts:
            token_ids += [prompt, rollout.token_ids]
            mask += [np.zeros(len(prompt), dtype=np.bool_), rollout.loss_mask]
            logprobs += [np.zeros(len(prompt), dtype=np.float32), rollout.rollout_logprobs]
            versions.append(rollout.policy_version[rollout.loss_mask].min())
            lengths.append(len(prompt) + len(rollout))
    if not lengths:
        raise ValueError(
            f"make_batch: none of {len(groups)} groups has a usable rollout; leave empty batches out before this "
            "(drop_zero_variance counts the reasons)"
        )
    if sum(lengths) > np.iinfo(np.int32).max:
        raise ValueError(f"make_batch: {sum(lengths)} tokens are more than an int32 counts; use fewer prompts_per_step")
    loss_mask = np.concatenate(mask)
    row_rewards = np.concatenate(rewards)
    row_groups = np.array(group_ids, dtype=np.int32)
    row_advantages = ADVANTAGES[advantage](row_rewards, row_groups)
    return RolloutBatch(
        token_ids=np.concatenate(token_ids),
        cu_seqlens=np.concatenate(([0], np.cumsum(lengths))).astype(np.int32),
        loss_mask=loss_mask,
        rollout_logprobs=np.where(loss_mask, np.concatenate(logprobs), np.float32(0.0)),
        advantages=np.where(loss_mask, np.repeat(row_advantages, lengths), np.float32(0.0)),
        rewards=row_rewards,
        group_ids=row_groups,
        oldest_version=int(min(versions)),
    )


def _group_key(scored: ScoredGroup) -> tuple[int, int, str]:
    return scored.group.step, scored.group.index, scored.group.prompt.prompt_id


def subtract_kl(batch: RolloutBatch, old_logprobs: np.ndarray, ref_logprobs: np.ndarray, coef: float) -> RolloutBatch:
    """KL in the reward: ``advantages[t] -= coef * (old_logprobs[t] - ref_logprobs[t])`` on loss tokens (k1).

    Each token pays for its own divergence, after the group's normalisation: so the weight of the KL term is ``coef``
    whichever advantage is used, and in expectation the gradient is that of ``coef * KL(policy || reference)`` at every
    visited position, as with ``coef * k2`` in the loss. Use one of the two, never both.

    Args:
        old_logprobs, ref_logprobs: float ``[T]``.

    Raises:
        ValueError: lengths differ, or a loss token's logprob is not finite.
    """
    for name, array in (("old_logprobs", old_logprobs), ("ref_logprobs", ref_logprobs)):
        if array.shape != batch.token_ids.shape:
            raise ValueError(f"subtract_kl: expected {name} of shape {batch.token_ids.shape}, got {array.shape}")
        bad = np.flatnonzero(batch.loss_mask & ~np.isfinite(array))
        if len(bad):
            raise ValueError(f"subtract_kl: expected finite {name}, got {array[bad[0]]} at loss token {bad[0]}")
    mask = batch.loss_mask
    k1 = np.where(mask, old_logprobs, 0.0).astype(np.float64) - np.where(mask, ref_logprobs, 0.0)
    return replace(batch, advantages=(batch.advantages - coef * k1).astype(np.float32))


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
    """``take_rows`` of a train batch, its logprobs included."""
    tokens = token_index(batch.batch.cu_seqlens, row_ids)
    return TrainBatch(
        batch=take_rows(batch.batch, row_ids),
        old_logprobs=None if batch.old_logprobs is None else batch.old_logprobs[tokens],
        ref_logprobs=None if batch.ref_logprobs is None else batch.ref_logprobs[tokens],
    )


def loss_denominator(batch: RolloutBatch, *, aggregation: str, constant_length: int = 0) -> float:
    """The denominator of ``losses.reduce`` for one optimiser step: pass the whole minibatch, all ranks' rows.

    ``token_mean``: loss tokens. ``sequence_mean``: rows that have one. ``constant_length``: those rows times
    ``constant_length``. 0 when no row has a loss token: such a step has no loss.

    Raises:
        ValueError: an unknown aggregation, or no ``constant_length`` where one is needed.
    """
    if aggregation == "token_mean":
        return float(batch.num_loss_tokens)
    num_rows = sum(bool(batch.loss_mask[span].any()) for span in rows(batch.cu_seqlens))
    if aggregation == "sequence_mean":
        return float(num_rows)
    if aggregation == "constant_length":
        if constant_length <= 0:
            raise ValueError(
                f"loss_denominator: aggregation=constant_length needs a length > 0 (usually max_new_tokens), "
                f"got {constant_length}"
            )
        return float(num_rows * constant_length)
    raise ValueError(f"aggregation: expected token_mean, sequence_mean or constant_length, got {aggregation!r}")


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
