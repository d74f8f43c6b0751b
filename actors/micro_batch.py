"""Rows of a batch as one packed micro-batch of tensors, on the device of a rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from rlplatform.divergences import TopK
from rlplatform.sharding import take_train_rows
from rlplatform.types import TeacherTargets, TrainBatch


@dataclass(frozen=True)
class MicroBatch:
    """Packed rows as tensors. ``N`` loss tokens; ``loss_cu_seqlens`` are the rows' boundaries among them."""

    token_ids: torch.Tensor  # int64 [T]
    positions: torch.Tensor  # int64 [T]
    cu_seqlens: torch.Tensor  # int32 [B + 1]
    scored: torch.Tensor  # int64 [N], where the loss tokens are
    loss_cu_seqlens: torch.Tensor  # int64 [B + 1], of the loss tokens alone
    rollout_logprobs: torch.Tensor  # float32 [N]
    advantages: torch.Tensor  # float32 [N]
    old_logprobs: torch.Tensor | None  # float32 [N]
    ref_logprobs: torch.Tensor | None  # float32 [N]
    teacher: torch.Tensor | TopK | None = None  # [N, V], or the K likeliest tokens of each of the N positions
    num_ids: int = 0  # of the vocabulary shared with the teacher

    @classmethod
    def of(cls, batch: TrainBatch, row_ids: Sequence[int], device: torch.device) -> MicroBatch:
        """The given rows; none at all give two tokens without a loss token: a pass that keeps the ranks in step."""
        if not row_ids:
            tokens = torch.tensor([0, 0], device=device)
            nothing = torch.empty(0, device=device)
            none = torch.empty(0, dtype=torch.int64, device=device)
            boundaries = torch.tensor([0, 2], dtype=torch.int32, device=device)
            return cls(
                tokens,
                torch.arange(2, device=device),
                boundaries,
                none,
                none.new_zeros(2),
                nothing,
                nothing,
                None,
                None,
            )
        part = take_train_rows(batch, row_ids)
        rows, mask = part.batch, part.batch.loss_mask
        counts = np.concatenate(([0], np.cumsum(mask)))[rows.cu_seqlens]
        lengths = np.diff(rows.cu_seqlens)
        positions = np.arange(len(rows.token_ids)) - np.repeat(rows.cu_seqlens[:-1], lengths)

        def tensor(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
            return torch.tensor(array, dtype=dtype, device=device)

        def loss_tokens(array: np.ndarray | None) -> Any:
            return None if array is None else tensor(array[mask], torch.float32)

        return cls(
            token_ids=tensor(rows.token_ids, torch.int64),
            positions=tensor(positions, torch.int64),
            cu_seqlens=tensor(rows.cu_seqlens, torch.int32),
            scored=tensor(np.flatnonzero(mask), torch.int64),
            loss_cu_seqlens=tensor(counts, torch.int64),
            rollout_logprobs=loss_tokens(rows.rollout_logprobs),
            advantages=loss_tokens(rows.advantages),
            old_logprobs=loss_tokens(part.old_logprobs),
            ref_logprobs=loss_tokens(part.ref_logprobs),
            teacher=None if part.teacher is None else teacher_tensors(part.teacher, device),
            num_ids=0 if part.teacher is None else part.teacher.num_ids,
        )

    def without_loss(self) -> MicroBatch:
        """The same tokens, none of them scored."""
        return replace(self, scored=self.scored[:0])

    @property
    def forward_arguments(self) -> tuple[torch.Tensor, ...]:
        return self.token_ids, self.positions, self.cu_seqlens, self.scored


def teacher_tensors(targets: TeacherTargets, device: torch.device) -> torch.Tensor | TopK:
    """The teacher's distributions as ``divergences`` takes them."""
    logprobs = torch.tensor(targets.logprobs, device=device)
    if targets.ids is None or targets.rest is None:
        return logprobs
    ids = torch.tensor(targets.ids, dtype=torch.int64, device=device)
    return TopK(ids, logprobs, torch.tensor(targets.rest, device=device))
