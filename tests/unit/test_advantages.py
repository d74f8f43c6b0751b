"""Group advantages against numbers worked out by hand, and the ways in which group statistics go wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlplatform.advantages import ADVANTAGES, group_mean, group_mean_std, is_constant, leave_one_out, overlong_penalty

NAMES = sorted(ADVANTAGES)


def f32(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def ids(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


# Two groups: (1, 0, 0, 1) with mean 0.5 and sample std sqrt(1/3); (3, 0, 0) with mean 1 and sample std sqrt(3).
REWARDS, GROUPS = f32(1, 0, 0, 1, 3, 0, 0), ids(7, 7, 7, 7, 2, 2, 2)


def test_group_mean_by_hand() -> None:
    np.testing.assert_allclose(group_mean(REWARDS, GROUPS), [0.5, -0.5, -0.5, 0.5, 2, -1, -1], rtol=1e-7)


def test_group_mean_std_by_hand_uses_the_sample_deviation() -> None:
    a, b = 0.5 / math.sqrt(1 / 3), 1 / math.sqrt(3)
    np.testing.assert_allclose(group_mean_std(REWARDS, GROUPS), [a, -a, -a, a, 2 * b, -b, -b], rtol=5e-6)
    # The population deviation (ddof=0) of the first group is 0.5: it would give 1, not 0.866.
    assert group_mean_std(REWARDS, GROUPS)[0] == pytest.approx(0.8660, abs=1e-4)


def test_leave_one_out_by_hand() -> None:
    expected = [1 - 1 / 3, 0 - 2 / 3, 0 - 2 / 3, 1 - 1 / 3, 3 - 0, 0 - 1.5, 0 - 1.5]
    np.testing.assert_allclose(leave_one_out(REWARDS, GROUPS), expected, rtol=1e-6)


def test_eps_is_added_to_the_deviation() -> None:
    # Rewards 0 and 2: mean 1, sample std sqrt(2); with eps = 1 the advantage is 1 / (sqrt(2) + 1).
    np.testing.assert_allclose(
        group_mean_std(f32(0, 2), ids(0, 0), eps=1.0), np.array([-1, 1]) / (math.sqrt(2) + 1), rtol=1e-6
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "rewards",
    [
        [0.35]
        * 7,  # seven float32 of 0.35 have a float32 mean one ulp beside 0.35: naive (r - mean) / std is in the 1000s
        [0.4] * 6,
        [0.1] * 10,
        [-1e30] * 3,
        [0.0] * 5,
        [0.3, np.nextafter(np.float32(0.3), np.float32(1)), 0.3],  # one number, rounded two ways
    ],
)
def test_equal_rewards_give_exactly_zero(name: str, rewards: list[float]) -> None:
    assert is_constant(f32(*rewards))
    for dtype in (np.float32, np.float64):
        advantages = ADVANTAGES[name](np.array(rewards, dtype=dtype), np.zeros(len(rewards), dtype=np.int32))
        assert (advantages == 0).all()


def test_the_residue_is_real() -> None:
    """The hazard exists: two-pass float32 statistics of seven times 0.35 do not vanish."""
    rewards = f32(*[0.35] * 7)
    mean = np.float32(0)
    for reward in rewards:
        mean += reward
    mean /= np.float32(7)
    assert rewards[0] != mean


def test_statistics_of_a_large_group_are_not_float32_sums() -> None:
    """A float32 sum of 3,000 rewards drifts by 1e-4 of the mean; here the result is exact to float32."""
    rewards = f32(*[0.1, 0.3, 0.8] * 1000)
    mean = math.fsum(float(r) for r in rewards) / 3000
    expected = (rewards.astype(np.float64) - mean).astype(np.float32)
    np.testing.assert_array_equal(group_mean(rewards, np.zeros(3000, dtype=np.int64)), expected)


def test_close_but_different_rewards_are_not_called_equal() -> None:
    assert not is_constant(f32(0.35, 0.3501))
    np.testing.assert_allclose(
        group_mean_std(f32(0.35, 0.4), ids(0, 0)), [-1 / math.sqrt(2), 1 / math.sqrt(2)], rtol=1e-4
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_group_of_one_gets_zero(name: str) -> None:
    assert ADVANTAGES[name](f32(0.7, 1, 0), ids(5, 3, 3))[0] == 0


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_batch_is_empty(name: str) -> None:
    result = ADVANTAGES[name](f32(), ids())
    assert result.shape == (0,)
    assert result.dtype == np.float32


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_is_refused_by_row(name: str, bad: float) -> None:
    with pytest.raises(ValueError, match=r"row 2 \(group 9\)"):
        ADVANTAGES[name](f32(0, 1, bad, 1), ids(8, 8, 9, 9))


@pytest.mark.parametrize("name", NAMES)
def test_shapes_and_types_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        ADVANTAGES[name](f32(0, 1), ids(0, 0, 0))
    with pytest.raises(ValueError, match="one length"):
        ADVANTAGES[name](np.zeros((2, 2), dtype=np.float32), np.zeros((2, 2), dtype=np.int32))
    with pytest.raises(ValueError, match="integer group_ids"):
        ADVANTAGES[name](f32(0, 1), f32(0, 0))
    with pytest.raises(ValueError, match="float rewards"):
        ADVANTAGES[name](np.array(["0", "1"]), ids(0, 0))


groups_strategy = st.lists(
    st.tuples(st.integers(0, 4), st.one_of(st.floats(-100, 100, width=32), st.sampled_from([0.0, 0.35, 0.4, 1.0]))),
    min_size=1,
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(rows=groups_strategy, seed=st.integers(0, 2**32 - 1), name=st.sampled_from(NAMES))
def test_order_of_rows_changes_nothing_to_the_last_bit(rows: list[tuple[int, float]], seed: int, name: str) -> None:
    group_ids, rewards = ids(*[g for g, _ in rows]), f32(*[r for _, r in rows])
    order = np.random.default_rng(seed).permutation(len(rows))
    straight = ADVANTAGES[name](rewards, group_ids)
    np.testing.assert_array_equal(ADVANTAGES[name](rewards[order], group_ids[order]), straight[order])


@settings(max_examples=150, deadline=None)
@given(rows=groups_strategy)
def test_each_group_alone_agrees_with_a_plain_loop(rows: list[tuple[int, float]]) -> None:
    """Independent reference: one group at a time, in Python's exact-sum arithmetic."""
    group_ids, rewards = ids(*[g for g, _ in rows]), f32(*[r for _, r in rows])
    results = {name: ADVANTAGES[name](rewards, group_ids) for name in NAMES}
    for group in set(group_ids.tolist()):
        members = np.flatnonzero(group_ids == group)
        values = [float(rewards[i]) for i in members]
        n, mean = len(values), math.fsum(values) / len(values)
        std = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1)) if n > 1 else 0.0
        for i, value in zip(members, values, strict=True):
            if is_constant(rewards[members]):
                expected = dict.fromkeys(NAMES, 0.0)
            else:
                others = (math.fsum(values) - value) / (n - 1)
                expected = {
                    "group_mean": value - mean,
                    "group_mean_std": (value - mean) / (std + 1e-6),
                    "leave_one_out": value - others,
                }
            for name in NAMES:
                assert results[name][i] == pytest.approx(expected[name], rel=1e-5, abs=1e-6)
        assert np.abs(results["group_mean_std"][members]).max() <= (n - 1) / math.sqrt(n) + 1e-6
        assert abs(float(results["group_mean_std"][members].astype(np.float64).sum())) < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_a_peer_group_changes_nothing(name: str) -> None:
    alone = ADVANTAGES[name](f32(1, 0, 0.5), ids(0, 0, 0))
    beside = ADVANTAGES[name](f32(1, 1e6, 0, -1e6, 0.5), ids(0, 1, 0, 1, 0))
    np.testing.assert_array_equal(beside[[0, 2, 4]], alone)


def test_overlong_penalty_by_hand() -> None:
    # Limit 100, buffer 20: free up to 80, minus 1/20 of the penalty a token after that, the whole of it at 100.
    lengths = np.array([1, 79, 80, 81, 90, 99, 100, 101])
    expected = np.array([0, 0, 0, -0.05, -0.5, -0.95, -1, -1])
    np.testing.assert_allclose(overlong_penalty(lengths, 100, 20, 1.0), expected, rtol=1e-6)
    np.testing.assert_allclose(overlong_penalty(lengths, 100, 20, 0.4), 0.4 * expected, rtol=1e-6)
    assert (overlong_penalty(lengths, 100, 0, 1.0) == 0).all()


@pytest.mark.parametrize(("buffer", "penalty"), [(-1, 1.0), (100, 1.0), (20, -0.5)])
def test_overlong_penalty_refuses(buffer: int, penalty: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        overlong_penalty(np.array([5]), 100, buffer, penalty)
