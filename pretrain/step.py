"""What one optimiser step of next-token training sees, and its loss. No Ray, no DeepSpeed.

    plan_steps -> rank_micro_batches -> micro_batch_loss

Everything is a function of (lengths, seed, position), the same on every rank: so the ranks agree without talking, and
a resumed run sees the rows the uninterrupted one would have seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch

from model.moe import RouterRecord
from pretrain.examples import Examples
from rlplatform.sharding import equalise, micro_batches, shard_rows


def plan_steps(
    lengths: np.ndarray, *, seed: int, tokens_per_step: int, shuffle: bool = True, start: int = 0
) -> Iterator[np.ndarray]:
    """Row indices (int64) of every optimiser step from ``start`` on, without end.

    Epoch ``e`` is a permutation seeded by (seed, e); epochs follow each other without a break, so each row is seen
    equally often. A step takes the next rows as long as they fit into ``tokens_per_step``. Rows are atomic.

    Args:
        lengths: ``[B]``, tokens; none longer than ``tokens_per_step``.

    Raises:
        ValueError: no rows, or one that does not fit into a step.
    """
    if len(lengths) == 0 or lengths.max() > tokens_per_step:
        raise ValueError(
            f"plan_steps: expected at least one row and none longer than tokens_per_step={tokens_per_step}, got "
            f"{len(lengths)} rows, the longest with {max(lengths, default=0)} tokens"
        )
    return islice(_steps(lengths, seed, tokens_per_step, shuffle), start, None)


def _steps(lengths: np.ndarray, seed: int, tokens_per_step: int, shuffle: bool) -> Iterator[np.ndarray]:
    rows: list[int] = []
    tokens = 0
    epoch = 0
    while True:
        order = np.random.default_rng([seed, epoch]).permutation(len(lengths)) if shuffle else np.arange(len(lengths))
        for row in order.tolist():
            if tokens + lengths[row] > tokens_per_step:
                yield np.array(rows, dtype=np.int64)
                rows, tokens = [], 0
            rows.append(row)
            tokens += int(lengths[row])
        epoch += 1


def rank_micro_batches(
    rows: np.ndarray, lengths: np.ndarray, *, rank: int, world_size: int, max_tokens: int
) -> list[np.ndarray]:
    """Row indices of each micro-batch of one rank: balanced by tokens over ranks, equally many on every rank.

    A rank with fewer rows than micro-batches gets empty ones.
    """
    shards = [rows[shard] for shard in shard_rows(lengths[rows], world_size)]
    per_rank = equalise([micro_batches(lengths[shard], max_tokens) for shard in shards])
    return [shards[rank][np.array(micro, dtype=np.int64)] for micro in per_rank[rank]]


def micro_batch_loss(
    score: Callable[..., tuple[torch.Tensor, torch.Tensor | None]],
    examples: Examples,
    rows: np.ndarray,
    *,
    denominator: int,
    device: torch.device | str = "cpu",
    chunk_tokens: int = 1024,
    router: RouterRecord | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy summed over the rows' targets, divided by ``denominator``: the whole step's number of targets.

    So the losses of all micro-batches and ranks add up to the token mean, however the rows were cut. ``score`` is a
    ``model.logprobs.TokenScorer``. Without rows it is a pass over one row with no target: the same collectives, a loss
    of 0. ``router`` is filled by the policy's forward.

    Returns:
        The loss, and float32 [rows]: the probability of each row's whole target given its prompt, without gradient.
    """
    arguments = packed(examples, rows, device)
    logprobs, _ = score(*arguments, chunk_tokens=chunk_tokens, router=router)
    row_of_target = torch.as_tensor(np.repeat(np.arange(len(rows)), examples.loss_tokens[rows]), device=device)
    row_logprobs = torch.zeros(len(rows), device=device).index_add(0, row_of_target, logprobs.detach())
    return -logprobs.sum() / denominator, row_logprobs.exp()


def count_experts(
    score: Callable[..., Any],
    token_ids: torch.Tensor,
    positions: torch.Tensor,
    cu_seqlens: torch.Tensor,
    targets: torch.Tensor,
) -> RouterRecord:
    """What the routers do with one micro-batch: its forward pass, no token scored."""
    router = RouterRecord()
    score(token_ids, positions, cu_seqlens, targets[:0], router=router)
    return router


def packed(examples: Examples, rows: np.ndarray, device: torch.device | str) -> tuple[torch.Tensor, ...]:
    """Token ids, positions, row boundaries and targets; of row 0 without targets where there are no rows."""
    chosen = rows if len(rows) else np.array([0])
    spans = [slice(examples.cu_seqlens[row], examples.cu_seqlens[row + 1]) for row in chosen]
    token_ids = np.concatenate([examples.token_ids[span] for span in spans])
    targets = np.flatnonzero(np.concatenate([examples.loss_mask[span] for span in spans]))[: None if len(rows) else 0]
    bounds = np.concatenate(([0], np.cumsum(examples.lengths[chosen])))
    return model_inputs(token_ids, bounds, device, targets=targets)


def model_inputs(
    token_ids: np.ndarray, bounds: np.ndarray, device: torch.device | str, *, targets: np.ndarray | None = None
) -> tuple[torch.Tensor, ...]:
    """Token ids, positions, boundaries and targets of texts end to end.

    Args:
        token_ids: int32 ``[T]``.
        bounds: int64 ``[B + 1]``, where each text begins; what lies before it is not seen.
        targets: int64, which tokens; None: every token but the first of each text.
    """
    positions = np.arange(bounds[-1]) - np.repeat(bounds[:-1], np.diff(bounds))
    return (
        torch.as_tensor(token_ids, dtype=torch.int64, device=device),
        torch.as_tensor(positions, dtype=torch.int64, device=device),
        torch.as_tensor(bounds, dtype=torch.int32, device=device),
        torch.as_tensor(np.flatnonzero(positions) if targets is None else targets, dtype=torch.int64, device=device),
    )
