"""Which rollouts count, how they are packed, and that no row, token or label is lost, cut, doubled or moved."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.base import ERROR, NOT_APPLICABLE, TIMEOUT, UNPARSEABLE, Verdict
from rlplatform.batching import drop_zero_variance, loss_denominator, make_batch, shaped_rewards, subtract_kl, usable
from rlplatform.sharding import (
    equalise,
    micro_batches,
    shard_rows,
    split_minibatches,
    take_rows,
    take_train_rows,
    token_index,
)
from rlplatform.types import (
    FINISH_ABORT,
    FINISH_LENGTH,
    FINISH_STOP,
    Prompt,
    Rollout,
    RolloutBatch,
    RolloutGroup,
    ScoredGroup,
    TrainBatch,
    rows,
)


def rollout(
    tokens: Sequence[int], *, mask: Sequence[int] | None = None, finish: str = FINISH_STOP, version: int = 0
) -> Rollout:
    """Token t gets the logprob -t / 10, NaN where the mask is 0."""
    loss_mask = np.array(mask if mask is not None else [1] * len(tokens), dtype=np.bool_)
    logprobs = np.where(loss_mask, -np.array(tokens, dtype=np.float64) / 10, np.nan).astype(np.float32)
    return Rollout(
        token_ids=np.array(tokens, dtype=np.int32),
        loss_mask=loss_mask,
        rollout_logprobs=logprobs,
        policy_version=np.full(len(tokens), version, dtype=np.int32),
        finish=finish,
        text="",
    )


def verdict(score: float | str) -> Verdict:
    return Verdict(score=0.0, status=score) if isinstance(score, str) else Verdict(score=score)


def group(
    rollouts: Sequence[Rollout],
    scores: Sequence[float | str],
    *,
    prompt: Sequence[int] = (90, 91),
    index: int = 0,
    step: int = 0,
    prompt_id: str = "p",
) -> ScoredGroup:
    question = Prompt(prompt_id=prompt_id, messages=(), token_ids=np.array(prompt, dtype=np.int32), text="")
    return ScoredGroup(
        RolloutGroup(prompt=question, rollouts=tuple(rollouts), step=step, index=index),
        tuple(verdict(score) for score in scores),
    )


def simple(scores: Sequence[float | str], *, index: int = 0, length: int = 2) -> ScoredGroup:
    rollouts = [rollout([10 * index + i + 1] * length) for i in range(len(scores))]
    return group(rollouts, scores, index=index, prompt_id=f"p{index}")


# --- which rollouts count -------------------------------------------------------------------------------------------


def test_only_ok_verdicts_of_sampled_completions_count() -> None:
    rollouts = [
        rollout([1]),
        rollout([2]),
        rollout([3]),
        rollout([4]),
        rollout([5]),
        rollout([6, 7], finish=FINISH_LENGTH),
        rollout([8], finish=FINISH_ABORT),
        rollout([]),
        rollout([9, 9], mask=[0, 0]),
        rollout([10]),
    ]
    scored = group(rollouts, [1.0, TIMEOUT, ERROR, UNPARSEABLE, NOT_APPLICABLE, 0.0, 1.0, 1.0, 1.0, 0.5])
    kept, verdicts = usable(scored)
    assert [r.token_ids.tolist() for r in kept] == [[1], [6, 7], [10]]
    assert [v.score for v in verdicts] == [1.0, 0.0, 0.5]
    kept, verdicts = usable(scored, drop_truncated=True)
    assert [r.token_ids.tolist() for r in kept] == [[1], [10]]
    assert [v.score for v in verdicts] == [1.0, 0.5]


@pytest.mark.parametrize(
    ("odd", "score"),
    [
        (rollout([]), 1.0),  # nothing sampled
        (rollout([5, 6], mask=[0, 0]), 1.0),  # nothing of it sampled by the policy
        (rollout([5], finish=FINISH_ABORT), 1.0),
        (rollout([5, 6]), TIMEOUT),
        (rollout([5, 6]), ERROR),
    ],
)
@pytest.mark.parametrize("advantage", ["group_mean", "group_mean_std", "leave_one_out"])
def test_an_unusable_rollout_leaves_its_peers_as_if_never_sampled(
    odd: Rollout, score: float | str, advantage: str
) -> None:
    peers, scores = [rollout([1, 2]), rollout([3]), rollout([4, 4, 4])], [1.0, 0.0, 0.25]
    alone = make_batch([group(peers, scores)], advantage=advantage)
    beside = make_batch([group([peers[0], odd, *peers[1:]], [scores[0], score, *scores[1:]])], advantage=advantage)
    for name in ("token_ids", "cu_seqlens", "loss_mask", "advantages", "rewards", "group_ids"):
        np.testing.assert_array_equal(getattr(beside, name), getattr(alone, name))


def test_a_masked_last_token_keeps_its_row_in_the_statistics() -> None:
    """An appended stop token that the policy did not sample: the reward belongs to the row, not to a position."""
    peers, scores = [rollout([1, 2, 3]), rollout([3])], [1.0, 0.0]
    plain = make_batch([group(peers, scores)], advantage="group_mean")
    forced = make_batch([group([rollout([1, 2, 3], mask=[1, 1, 0]), peers[1]], scores)], advantage="group_mean")
    np.testing.assert_array_equal(plain.advantages, np.float32([0, 0, 0.5, 0.5, 0.5, 0, 0, -0.5]))
    np.testing.assert_array_equal(forced.advantages, np.float32([0, 0, 0.5, 0.5, 0, 0, 0, -0.5]))


def test_zero_variance_counts_by_hand() -> None:
    groups = [
        simple([1.0, 0.0, 0.0], index=0),  # kept
        simple([0.0, 0.0], index=1),  # too hard
        simple([1.0, 1.0, 1.0], index=2),  # too easy
        simple([0.35] * 7, index=3),  # equal, neither
        simple([1.0, TIMEOUT], index=4),  # one usable rollout
        simple([ERROR, NOT_APPLICABLE], index=5),  # none
        simple([0.5, UNPARSEABLE, 0.2], index=6),  # kept
    ]
    kept, counts = drop_zero_variance(groups)
    assert [g.group.index for g in kept] == [0, 6]
    assert counts == {
        "groups/total": 7,
        "groups/kept": 2,
        "groups/acceptance": pytest.approx(2 / 7),
        "groups/too_small": 2,
        "groups/zero_variance": 3,
        "groups/all_min": 1,
        "groups/all_max": 1,
        "rollout/not_ok_dropped": 4,
        "rollout/truncated_dropped": 0,
        "rollout/empty_dropped": 0,
    }
    kept, same = drop_zero_variance(groups, drop=False)
    assert [g.group.index for g in kept] == [0, 1, 2, 3, 4, 6]  # what has no usable rollout can never be trained on
    assert {**same, "groups/kept": 2, "groups/acceptance": counts["groups/acceptance"]} == counts


def test_a_step_of_one_score_names_neither_extreme_unless_told_the_range() -> None:
    groups = [simple([0.0, 0.0], index=0), simple([0.0, 0.0], index=1)]
    _, counts = drop_zero_variance(groups)
    assert (counts["groups/zero_variance"], counts["groups/all_min"], counts["groups/all_max"]) == (2, 0, 0)
    _, counts = drop_zero_variance(groups, score_range=(0.0, 1.0))
    assert (counts["groups/zero_variance"], counts["groups/all_min"], counts["groups/all_max"]) == (2, 2, 0)


def test_no_groups_at_all() -> None:
    kept, counts = drop_zero_variance([])
    assert kept == []
    assert set(counts.values()) == {0.0}


def test_truncated_and_empty_rollouts_are_counted_once() -> None:
    rollouts = [
        rollout([1], finish=FINISH_LENGTH),
        rollout([2], finish=FINISH_LENGTH),
        rollout([]),
        rollout([3], finish=FINISH_ABORT),
        rollout([4]),
        rollout([5]),
    ]
    scored = group(rollouts, [1.0, TIMEOUT, 1.0, 1.0, 1.0, 0.0])
    _, counts = drop_zero_variance([scored], drop_truncated=True)
    assert counts["rollout/truncated_dropped"] == 1  # the other one is not_ok already
    assert counts["rollout/not_ok_dropped"] == 1
    assert counts["rollout/empty_dropped"] == 2
    _, counts = drop_zero_variance([scored])
    assert counts["rollout/truncated_dropped"] == 0


def test_overlong_shaping_makes_a_difference_where_scores_are_equal() -> None:
    """Limit 10, buffer 4: 6 tokens are free, 8 cost half the penalty, 10 all of it."""
    shaping = {"max_new_tokens": 10, "overlong_buffer": 4, "overlong_penalty": 0.6}
    scored = group([rollout([1] * 6), rollout([2] * 8), rollout([3] * 10, finish=FINISH_LENGTH)], [1.0, 1.0, 1.0])
    rewards = shaped_rewards(scored.group.rollouts, scored.verdicts, **shaping)
    np.testing.assert_allclose(rewards, [1.0, 0.7, 0.4], rtol=1e-6)
    assert drop_zero_variance([scored])[0] == []
    kept, counts = drop_zero_variance([scored], **shaping)
    assert kept == [scored]
    assert counts["groups/zero_variance"] == 0
    batch = make_batch([scored], advantage="group_mean", **shaping)
    np.testing.assert_allclose(batch.rewards, [1.0, 0.7, 0.4], rtol=1e-6)
    np.testing.assert_allclose(batch.advantages[batch.loss_mask], [0.3] * 6 + [0] * 8 + [-0.3] * 10, atol=1e-6)


def test_overlong_counts_sampled_tokens_only() -> None:
    tool = rollout([1] * 9, mask=[1, 1, 0, 0, 0, 0, 0, 0, 1])
    rewards = shaped_rewards([tool], [verdict(1.0)], max_new_tokens=10, overlong_buffer=4)
    assert rewards.tolist() == [1.0]


# --- packing --------------------------------------------------------------------------------------------------------


def test_a_batch_by_hand() -> None:
    late = group(
        [rollout([5, 6, 7], mask=[1, 0, 1], version=4), rollout([8], version=3)],
        [1.0, 0.0],
        prompt=[1, 2],
        index=7,
        prompt_id="late",
    )
    early = group([rollout([3, 3], version=4), rollout([4, 4], version=4)], [0.0, 3.0], prompt=[9], index=2)
    batch = make_batch([late, early], advantage="group_mean")
    assert batch.token_ids.tolist() == [9, 3, 3, 9, 4, 4, 1, 2, 5, 6, 7, 1, 2, 8]
    assert batch.cu_seqlens.tolist() == [0, 3, 6, 11, 14]
    assert batch.loss_mask.astype(int).tolist() == [0, 1, 1, 0, 1, 1, 0, 0, 1, 0, 1, 0, 0, 1]
    np.testing.assert_array_equal(
        batch.rollout_logprobs,
        np.float32([0, -0.3, -0.3, 0, -0.4, -0.4, 0, 0, -0.5, 0, -0.7, 0, 0, -0.8]),
    )
    np.testing.assert_array_equal(
        batch.advantages, np.float32([0, -1.5, -1.5, 0, 1.5, 1.5, 0, 0, 0.5, 0, 0.5, 0, 0, -0.5])
    )
    assert batch.rewards.tolist() == [0, 3, 1, 0]
    assert batch.group_ids.tolist() == [0, 0, 1, 1]
    assert (batch.oldest_version, batch.num_rows, batch.num_loss_tokens) == (3, 4, 7)
    dtypes = {name: getattr(batch, name).dtype for name in ("token_ids", "rollout_logprobs", "advantages", "rewards")}
    assert dtypes == {
        "token_ids": np.int32,
        "rollout_logprobs": np.float32,
        "advantages": np.float32,
        "rewards": np.float32,
    }


def test_arrival_order_changes_nothing() -> None:
    groups = [simple([0.0, 1.0, 0.5], index=i, length=i + 1) for i in range(6)]
    first, second = make_batch(groups, advantage="group_mean_std"), make_batch(groups[::-1], advantage="group_mean_std")
    for name in ("token_ids", "cu_seqlens", "advantages", "rewards", "group_ids"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_oldest_version_ignores_tokens_the_policy_did_not_sample() -> None:
    mixed = Rollout(
        token_ids=np.array([1, 2, 3], dtype=np.int32),
        loss_mask=np.array([False, True, True]),
        rollout_logprobs=np.array([np.nan, -1, -1], dtype=np.float32),
        policy_version=np.array([0, 5, 6], dtype=np.int32),
        finish=FINISH_STOP,
        text="",
    )
    assert make_batch([group([mixed, mixed], [0.0, 1.0])], advantage="group_mean").oldest_version == 5


def test_make_batch_refuses() -> None:
    good = simple([0.0, 1.0])
    with pytest.raises(ValueError, match=r"expected one of .*leave_one_out.*got 'gae'"):
        make_batch([good], advantage="gae")
    with pytest.raises(ValueError, match="p0 of step 0, index 0, came twice"):
        make_batch([good, good], advantage="group_mean")
    with pytest.raises(ValueError, match="none of 1 groups has a usable rollout"):
        make_batch([simple([ERROR, TIMEOUT])], advantage="group_mean")
    with pytest.raises(ValueError, match="none of 0 groups"):
        make_batch([], advantage="group_mean")


@st.composite
def scored_groups(draw: st.DrawFn) -> list[ScoredGroup]:
    """Groups whose tokens are all different numbers, so that a moved or doubled token shows."""
    fresh = iter(range(1, 10**6))
    groups = []
    for index in range(draw(st.integers(1, 5))):
        prompt = [next(fresh) for _ in range(draw(st.integers(1, 4)))]
        rollouts, scores = [], []
        for _ in range(draw(st.integers(1, 5))):
            mask = draw(st.lists(st.integers(0, 1), max_size=6))
            tokens = [next(fresh) for _ in mask]
            finish = draw(st.sampled_from([FINISH_STOP, FINISH_STOP, FINISH_LENGTH, FINISH_ABORT]))
            rollouts.append(rollout(tokens, mask=mask, finish=finish, version=draw(st.integers(0, 3))))
            scores.append(draw(st.sampled_from([0.0, 1.0, 0.35, 0.5, TIMEOUT, ERROR])))
        groups.append(group(rollouts, scores, prompt=prompt, index=index, prompt_id=f"p{index}"))
    return groups


def labels(batch: RolloutBatch) -> Counter[tuple]:
    """(row, position, label, logprob, advantage, reward) of every token; a row is named by its tokens."""
    found: Counter[tuple] = Counter()
    for i, span in enumerate(rows(batch.cu_seqlens)):
        name = tuple(batch.token_ids[span].tolist())
        for position in range(span.stop - span.start):
            t = span.start + position
            label = int(batch.token_ids[t]) if batch.loss_mask[t] else -100
            found[
                (
                    name,
                    position,
                    label,
                    float(batch.rollout_logprobs[t]),
                    float(batch.advantages[t]),
                    float(batch.rewards[i]),
                )
            ] += 1
    return found


@settings(max_examples=150, deadline=None)
@given(groups=scored_groups(), drop_truncated=st.booleans(), seed=st.integers(0, 1000))
def test_every_sampled_token_goes_in_and_comes_out_once(
    groups: list[ScoredGroup], drop_truncated: bool, seed: int
) -> None:
    """Multiset of (row, position, label) in == out, through packing, minibatches, shards and micro-batches."""
    expected: Counter[tuple] = Counter()
    for scored in groups:
        for r, v in zip(*usable(scored, drop_truncated=drop_truncated), strict=True):
            name = (*scored.group.prompt.token_ids.tolist(), *r.token_ids.tolist())
            prompt_length = len(scored.group.prompt.token_ids)
            sampled = [False] * prompt_length + r.loss_mask.tolist()
            for position, (token, on) in enumerate(zip(name, sampled, strict=True)):
                logprob = float(np.float32(-token / 10)) if on else 0.0
                expected[(name, position, token if on else -100, logprob, float(np.float32(v.score)))] += 1
    if not expected:
        with pytest.raises(ValueError, match="usable rollout"):
            make_batch(groups, advantage="group_mean", drop_truncated=drop_truncated)
        return
    batch = make_batch(groups, advantage="group_mean", drop_truncated=drop_truncated)
    packed = labels(batch)
    assert Counter((*key[:4], key[5]) for key in packed.elements()) == expected
    for span in rows(batch.cu_seqlens):
        assert not batch.loss_mask[span.start]  # a row's first token has no predecessor to be predicted from
        assert len(set(batch.advantages[span][batch.loss_mask[span]].tolist())) == 1
    assert (batch.advantages[~batch.loss_mask] == 0).all()

    out: Counter[tuple] = Counter()
    for minibatch in split_minibatches(batch, 2, seed=seed):
        part = take_rows(batch, minibatch)
        for shard in shard_rows(np.diff(part.cu_seqlens), 2):
            own = take_rows(part, shard)
            for micro in micro_batches(np.diff(own.cu_seqlens), 7):
                out += labels(take_rows(own, micro))
    assert out == packed


# --- KL in the reward -----------------------------------------------------------------------------------------------


def test_subtract_kl_by_hand() -> None:
    batch = make_batch([group([rollout([1]), rollout([2, 3])], [1.0, 0.0], prompt=[9])], advantage="group_mean")
    old = np.float32([math.nan, -1.0, math.nan, -2.0, -3.0])
    ref = np.float32([0, -1.5, math.inf, -2.0, -1.0])
    result = subtract_kl(batch, old, ref, 0.1)
    # 0.5 - 0.1 * 0.5; -0.5 - 0.1 * 0; -0.5 - 0.1 * -2.
    np.testing.assert_allclose(result.advantages, [0, 0.45, 0, -0.5, -0.3], rtol=1e-6)
    assert result.advantages.dtype == np.float32
    np.testing.assert_array_equal(subtract_kl(batch, old, ref, 0.0).advantages, batch.advantages)
    with pytest.raises(ValueError, match=r"finite ref_logprobs, got nan at loss token 3"):
        subtract_kl(batch, old, np.float32([0, 0, 0, math.nan, 0]), 0.1)
    with pytest.raises(ValueError, match="old_logprobs of shape"):
        subtract_kl(batch, old[:3], ref, 0.1)


# --- selecting rows -------------------------------------------------------------------------------------------------


def test_take_rows_by_hand() -> None:
    batch = make_batch(
        [group([rollout([1]), rollout([2, 3]), rollout([4])], [1.0, 0.0, 0.5], prompt=[9])], advantage="group_mean"
    )
    assert token_index(batch.cu_seqlens, [2, 0]).tolist() == [5, 6, 0, 1]
    part = take_rows(batch, [2, 0])
    assert part.token_ids.tolist() == [9, 4, 9, 1]
    assert part.cu_seqlens.tolist() == [0, 2, 4]
    assert part.rewards.tolist() == [0.5, 1.0]
    assert part.advantages.tolist() == [0, 0, 0, 0.5]
    train = TrainBatch(batch, old_logprobs=np.arange(7, dtype=np.float32), ref_logprobs=None)
    taken = take_train_rows(train, np.array([1]))
    assert taken.old_logprobs is not None
    assert taken.old_logprobs.tolist() == [2, 3, 4]
    assert taken.ref_logprobs is None
    empty = take_rows(batch, [])
    assert (empty.num_rows, len(empty.token_ids), empty.num_loss_tokens) == (0, 0, 0)


def test_denominators_by_hand() -> None:
    """Rows with 2, 1 and 0 loss tokens: what the mask removed is in none of the denominators."""
    batch = make_batch(
        [group([rollout([1, 2]), rollout([3, 4], mask=[1, 0]), rollout([5, 6])], [1.0, 0.0, 0.5])],
        advantage="group_mean",
    )
    mask = batch.loss_mask.copy()
    mask[rows(batch.cu_seqlens)[2]] = False
    batch = replace(batch, loss_mask=mask)
    assert loss_denominator(batch, aggregation="token_mean") == 3
    assert loss_denominator(batch, aggregation="sequence_mean") == 2
    assert loss_denominator(batch, aggregation="constant_length", constant_length=16) == 32
    deleted = take_rows(batch, [0, 1])
    for aggregation in ("token_mean", "sequence_mean", "constant_length"):
        assert loss_denominator(deleted, aggregation=aggregation, constant_length=16) == loss_denominator(
            batch, aggregation=aggregation, constant_length=16
        )
    with pytest.raises(ValueError, match="needs a length > 0"):
        loss_denominator(batch, aggregation="constant_length")
    with pytest.raises(ValueError, match="got 'sum'"):
        loss_denominator(batch, aggregation="sum")


# --- minibatches, shards, micro-batches -----------------------------------------------------------------------------


def test_minibatches_hold_whole_groups_of_equal_size() -> None:
    batch = make_batch([simple([0.0, 1.0, 0.5], index=i) for i in range(4)], advantage="group_mean")
    assert [m.tolist() for m in split_minibatches(batch, 2)] == [[0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11]]
    assert [m.tolist() for m in split_minibatches(batch, 1)] == [list(range(12))]


def test_minibatches_of_ragged_groups_are_as_near_as_whole_groups_allow() -> None:
    sizes = [8, 3, 5, 8, 4, 4]
    batch = make_batch(
        [simple(list(np.linspace(0, 1, n)), index=i) for i, n in enumerate(sizes)], advantage="group_mean"
    )
    parts = split_minibatches(batch, 2)
    assert sorted(len(part) for part in parts) == [16, 16]
    for part in parts:
        for group_id in np.unique(batch.group_ids[part]):
            assert (batch.group_ids[part] == group_id).sum() == sizes[group_id]


def test_fewer_groups_than_updates_are_split_by_rows() -> None:
    batch = make_batch([simple([0.0, 1.0, 0.5, 0.2, 0.1])], advantage="group_mean")
    parts = split_minibatches(batch, 2)
    assert sorted(len(part) for part in parts) == [2, 3]
    assert sorted(np.concatenate(parts).tolist()) == [0, 1, 2, 3, 4]
    assert [len(part) for part in split_minibatches(batch, 9)] == [1] * 5  # no empty optimiser step
    with pytest.raises(ValueError, match="num_updates >= 1"):
        split_minibatches(batch, 0)


def test_minibatch_shuffle_is_seeded() -> None:
    batch = make_batch([simple([0.0, 1.0], index=i) for i in range(16)], advantage="group_mean")

    def split(seed: int | None) -> list[list[int]]:
        return [part.tolist() for part in split_minibatches(batch, 4, seed=seed)]

    assert split(1) == split(1)
    assert split(1) != split(2)
    assert split(None) == split(None)
    for part in split(1):
        assert len(part) == 8
        assert {row ^ 1 for row in part} == set(part)  # rows 2g and 2g + 1 are one group


def test_shards_by_hand() -> None:
    # 9 -> rank 0; 7 -> rank 1; 6 -> rank 1 (7 < 9); 5 -> rank 0; 2 -> rank 1 (13 < 14); 1 -> rank 0.
    assert [s.tolist() for s in shard_rows([5, 9, 1, 7, 6, 2], 2)] == [[0, 1, 2], [3, 4, 5]]
    assert [s.tolist() for s in shard_rows([3], 2)] == [[0], []]
    assert [s.tolist() for s in shard_rows([], 2)] == [[], []]
    with pytest.raises(ValueError, match="num_ranks >= 1"):
        shard_rows([1], 0)


def test_micro_batches_by_hand() -> None:
    # Budget 10: 12 alone (never cut), 7 + 3, 6 + 4, 2.
    assert micro_batches([3, 7, 12, 4, 6, 2], 10) == [[2], [0, 1], [3, 4], [5]]
    assert micro_batches([], 10) == []
    with pytest.raises(ValueError, match="max_tokens >= 1"):
        micro_batches([1], 0)


@settings(max_examples=200, deadline=None)
@given(lengths=st.lists(st.integers(1, 50), max_size=40), num_ranks=st.integers(1, 5), max_tokens=st.integers(1, 120))
def test_splitting_covers_every_row_once_within_budget(lengths: list[int], num_ranks: int, max_tokens: int) -> None:
    shards = shard_rows(lengths, num_ranks)
    assert len(shards) == num_ranks
    assert sorted(int(row) for shard in shards for row in shard) == list(range(len(lengths)))
    counts = [len(shard) for shard in shards]
    assert max(counts) <= math.ceil(len(lengths) / num_ranks)
    tokens = [sum(lengths[row] for row in shard) for shard in shards]
    # A rank with room takes the next row whenever it is behind, so ranks with room differ by one row at most.
    with_room = [t for t, c in zip(tokens, counts, strict=True) if c < math.ceil(len(lengths) / num_ranks)]
    if len(with_room) > 1:
        assert max(with_room) - min(with_room) <= max(lengths, default=0)

    per_rank = [micro_batches([lengths[row] for row in shard], max_tokens) for shard in shards]
    for shard, micro in zip(shards, per_rank, strict=True):
        assert sorted(row for part in micro for row in part) == list(range(len(shard)))
        for part in micro:
            total = sum(lengths[shard[row]] for row in part)
            assert total <= max_tokens or len(part) == 1
    even = equalise(per_rank)
    target = max((len(micro) for micro in per_rank), default=0)
    for micro, before, shard in zip(even, per_rank, shards, strict=True):
        assert len(micro) == target
        assert sorted(row for part in micro for row in part) == sorted(row for part in before for row in part)
        assert (sum(not part for part in micro) > 0) == (len(shard) < target)  # empty only when rows run out
        for part in micro:
            assert not part or any(set(part) <= set(old) for old in before)  # never over budget: only ever split


def test_equalise_by_hand() -> None:
    assert equalise([[[0], [1], [2]], [[0, 1, 2]], [[0, 1]], []]) == [
        [[0], [1], [2]],
        [[0], [1], [2]],
        [[0], [1], []],
        [[], [], []],
    ]
    assert equalise([]) == []
