"""Rollouts of several turns: the policy's tokens are islands between tool results, all of one trajectory.

SkyRL placed a trajectory's advantage at another turn's positions, so that most sampled tokens got 0: here every token
with loss_mask 1 carries its own trajectory's advantage, wherever its turn stands.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.base import Verdict
from rlplatform.advantages import ADVANTAGES
from rlplatform.batching import loss_denominator, make_batch
from rlplatform.sharding import shard_rows, split_minibatches, take_rows
from rlplatform.types import FINISH_STOP, Prompt, Rollout, RolloutBatch, RolloutGroup, ScoredGroup, rows


def multi_turn(turns: list[tuple[int, int]], first: int) -> Rollout:
    """``turns``: (sampled tokens, tool tokens after them). Ids count up from ``first``, so that each can be found."""
    mask = np.concatenate([np.repeat([True, False], [sampled, tool]) for sampled, tool in turns])
    logprobs = np.where(mask, -0.5, np.nan).astype(np.float32)
    return Rollout(
        token_ids=np.arange(first, first + len(mask), dtype=np.int32),
        loss_mask=mask,
        rollout_logprobs=logprobs,
        policy_version=np.zeros(len(mask), dtype=np.int32),
        finish=FINISH_STOP,
        text="",
    )


def scored(index: int, conversations: list[list[tuple[int, int]]], scores: list[float]) -> ScoredGroup:
    prompt = Prompt(f"p{index}", (), np.array([1, 2, 3], dtype=np.int32), "q")
    rollouts = tuple(multi_turn(turns, 1000 * (10 * index + k + 1)) for k, turns in enumerate(conversations))
    return ScoredGroup(RolloutGroup(prompt, rollouts, 0, index), tuple(Verdict(score) for score in scores))


def check(batch: RolloutBatch, groups: list[ScoredGroup], advantage: str) -> None:
    """Each row of the batch against the rollout that its ids name; the advantages computed here once more."""
    scores = np.array([v.score for group in groups for v in group.verdicts], dtype=np.float32)
    owners = np.concatenate([[place] * len(group.verdicts) for place, group in enumerate(groups)]).astype(np.int32)
    expected = ADVANTAGES[advantage](scores, owners)
    rollouts = [rollout for group in groups for rollout in group.group.rollouts]
    by_first = {int(rollout.token_ids[0]): place for place, rollout in enumerate(rollouts)}
    for span in rows(batch.cu_seqlens):
        place = by_first[int(batch.token_ids[span][3])]
        mask = rollouts[place].loss_mask
        found = batch.advantages[span][3:]
        assert np.array_equal(batch.loss_mask[span][3:], mask)
        assert np.array_equal(found[mask], np.full(mask.sum(), expected[place], dtype=np.float32))
        assert not found[~mask].any()
        assert not batch.advantages[span][:3].any()


def test_islands_by_hand() -> None:
    """Three turns with tool results between them: (2 sampled, 3 tool), (1, 2), (2, 0); and a single turn."""
    groups = [scored(0, [[(2, 3), (1, 2), (2, 0)], [(3, 0)]], [1.0, 0.0])]
    batch = make_batch(groups, advantage="group_mean")
    half = [0.5] * 2 + [0] * 3 + [0.5] + [0] * 2 + [0.5] * 2
    assert batch.advantages.tolist() == [0, 0, 0, *half, 0, 0, 0, -0.5, -0.5, -0.5]
    assert batch.num_loss_tokens == 8
    assert loss_denominator(batch, aggregation="token_mean") == 8.0


turn = st.tuples(st.integers(1, 4), st.integers(0, 5))
conversation = st.lists(turn, min_size=1, max_size=4)
group_of = st.lists(st.tuples(conversation, st.sampled_from([0.0, 0.5, 1.0])), min_size=2, max_size=4)


@settings(max_examples=60, deadline=None)
@given(st.lists(group_of, min_size=1, max_size=3), st.sampled_from(sorted(ADVANTAGES)), st.integers(0, 3))
def test_every_sampled_token_has_its_trajectorys_advantage(
    drawn: list[list[tuple[list[tuple[int, int]], float]]], advantage: str, seed: int
) -> None:
    groups = [
        scored(index, [turns for turns, _ in group], [score for _, score in group]) for index, group in enumerate(drawn)
    ]
    batch = make_batch(groups[::-1], advantage=advantage)  # whoever finished first
    check(batch, groups, advantage)


def test_the_bug_is_seen() -> None:
    """The shipped placement, each trajectory's advantage at its last turn alone, does not pass the check."""
    groups = [scored(0, [[(2, 3), (1, 2), (2, 0)], [(3, 0)]], [1.0, 0.0])]
    batch = make_batch(groups, advantage="group_mean")
    check(batch, groups, "group_mean")
    shifted = batch.advantages.copy()
    shifted[3:5], shifted[8] = 0, 0
    with pytest.raises(AssertionError):
        check(RolloutBatch(**{**batch.__dict__, "advantages": shifted}), groups, "group_mean")


def test_islands_survive_minibatches_and_ranks() -> None:
    groups = [
        scored(0, [[(2, 3), (1, 0)], [(3, 1), (1, 1)]], [1.0, 0.0]),
        scored(1, [[(1, 6), (4, 0)], [(2, 2), (2, 2), (1, 0)]], [0.0, 1.0]),
    ]
    batch = make_batch(groups, advantage="group_mean_std")
    check(batch, groups, "group_mean_std")
    seen = 0
    for minibatch in split_minibatches(batch, 2, seed=0):
        part = take_rows(batch, minibatch)
        for shard in shard_rows(np.diff(part.cu_seqlens), 2):
            check(take_rows(part, shard), groups, "group_mean_std")
            seen += len(shard)
    assert seen == 4
