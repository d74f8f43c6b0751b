"""From scored groups to packed batches. numpy only; ``sharding.py`` cuts a batch for the learner's ranks.

    drop_zero_variance -> make_batch -> (sharding) split_minibatches -> shard_rows -> micro_batches -> equalise

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
from rlplatform.types import FINISH_ABORT, FINISH_LENGTH, Metrics, Rollout, RolloutBatch, ScoredGroup, rows

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
