"""Group-relative advantages as pure functions of arrays: rewards ``[B]`` and group ids ``[B]`` in, advantages out.

Rows of a group need not be contiguous and their order changes nothing, to the last bit: each group is summed in sorted
order. Arithmetic is float64 and two-pass; the result is float32. A group whose rewards are equal, or that has one row
only, gets exactly 0: it says nothing about which completion was better.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

ROUND_OFF = 4 * float(np.finfo(np.float32).eps)  # relative; rewards closer than this are one reward, rounded twice


def is_constant(rewards: np.ndarray) -> bool:
    """True when the rewards ``[n]`` of one group are equal up to float32 round-off (also for n < 2)."""
    rewards = np.asarray(rewards, dtype=np.float64)
    if len(rewards) < 2:
        return True
    return bool(rewards.max() - rewards.min() <= ROUND_OFF * np.abs(rewards).max())


def group_mean(rewards: np.ndarray, group_ids: np.ndarray) -> np.ndarray:
    """``A_i = r_i - mean(r of the group)``: Dr.GRPO (arXiv 2503.20783).

    Without the division by the standard deviation, easy and hard questions keep their natural weight. The baseline
    contains the row itself, which shrinks the expected gradient by (n - 1) / n; ``leave_one_out`` does not.

    Args:
        rewards: float ``[B]``, finite.
        group_ids: int ``[B]``.

    Returns:
        float32 ``[B]``.

    Raises:
        ValueError: lengths or types do not fit, or a reward is not finite (the message names the row).
    """
    centred, _, _ = _centre(rewards, group_ids)
    return centred.astype(np.float32)


def group_mean_std(rewards: np.ndarray, group_ids: np.ndarray, *, eps: float = 1e-6) -> np.ndarray:
    """``A_i = (r_i - mean) / (std + eps)``: GRPO (arXiv 2402.03300, section 4.1.2).

    ``std`` is the sample standard deviation (ddof = 1), so |A| <= (n - 1) / sqrt(n). Groups whose rewards hardly vary
    are scaled up: where that is not wanted use ``group_mean``. Arguments, result and errors as there.
    """
    centred, inverse, size = _centre(rewards, group_ids)
    squares = np.zeros(len(size))
    order = np.lexsort((np.abs(centred), inverse))
    if len(order):
        squares = np.add.reduceat(np.square(centred[order]), _starts(size))
    std = np.sqrt(squares / np.maximum(size - 1, 1))
    return (centred / (std[inverse] + eps)).astype(np.float32)


def leave_one_out(rewards: np.ndarray, group_ids: np.ndarray) -> np.ndarray:
    """``A_i = r_i - mean(r of the other rows of the group)``: RLOO (arXiv 2402.14740, eq. 9).

    The baseline does not depend on the row itself, so the gradient is unbiased. Equal to ``n / (n - 1)`` times
    ``group_mean``; a group of one has no other row and gets 0. Arguments, result and errors as for ``group_mean``.
    """
    centred, inverse, size = _centre(rewards, group_ids)
    return (centred * (size / np.maximum(size - 1, 1))[inverse]).astype(np.float32)


def overlong_penalty(lengths: np.ndarray, max_new_tokens: int, buffer: int, penalty: float) -> np.ndarray:
    """DAPO's soft overlong punishment (arXiv 2503.14476, eq. 13), to be added to the reward.

    0 up to ``max_new_tokens - buffer`` tokens, then linear down to ``-penalty`` at ``max_new_tokens``.

    Args:
        lengths: int ``[B]``, sampled tokens of each completion.
        buffer: tokens; 0 = no penalty.
        penalty: >= 0, reward units.

    Returns:
        float32 ``[B]``, in [-penalty, 0].

    Raises:
        ValueError: ``buffer`` not in [0, max_new_tokens), or a negative ``penalty``.
    """
    if not 0 <= buffer < max(max_new_tokens, 1):
        raise ValueError(f"overlong_penalty: expected 0 <= buffer < max_new_tokens={max_new_tokens}, got {buffer}")
    if penalty < 0:
        raise ValueError(f"overlong_penalty: expected a penalty >= 0 (it is subtracted), got {penalty}")
    lengths = np.asarray(lengths, dtype=np.float64)
    if buffer == 0:
        return np.zeros(len(lengths), dtype=np.float32)
    excess = np.clip((lengths - (max_new_tokens - buffer)) / buffer, 0.0, 1.0)
    return (0.0 - penalty * excess).astype(np.float32)


def _centre(rewards: np.ndarray, group_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rewards minus their group's mean (float64 [B]), the group of each row [B], the size of each group [G]."""
    rewards, group_ids = np.asarray(rewards), np.asarray(group_ids)
    if rewards.ndim != 1 or rewards.shape != group_ids.shape:
        raise ValueError(
            f"advantages: expected rewards and group_ids of one length [B], got {rewards.shape} and {group_ids.shape}"
        )
    if rewards.dtype.kind not in "fiu" or (group_ids.dtype.kind not in "iu" and len(group_ids)):
        raise ValueError(
            f"advantages: expected float rewards and integer group_ids, got {rewards.dtype} and {group_ids.dtype}"
        )
    bad = np.flatnonzero(~np.isfinite(rewards))
    if len(bad):
        row = int(bad[0])
        raise ValueError(
            f"advantages: expected finite rewards, got {rewards[row]} in row {row} (group {group_ids[row]}); "
            "a verdict that is not ok must be left out before, never passed on as a number"
        )
    rewards = rewards.astype(np.float64)
    _, inverse, size = np.unique(group_ids, return_inverse=True, return_counts=True)
    order = np.lexsort((rewards, inverse))
    if len(order) == 0:
        return rewards, inverse, size
    starts = _starts(size)
    ordered = rewards[order]
    mean = np.add.reduceat(ordered, starts) / size
    lowest, highest = ordered[starts], ordered[starts + size - 1]
    constant = highest - lowest <= ROUND_OFF * np.maximum(np.abs(lowest), np.abs(highest))
    centred = np.where(constant[inverse], 0.0, rewards - mean[inverse])
    return centred, inverse, size


def _starts(size: np.ndarray) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(size)[:-1]))


ADVANTAGES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "group_mean_std": group_mean_std,
    "group_mean": group_mean,
    "leave_one_out": leave_one_out,
}
