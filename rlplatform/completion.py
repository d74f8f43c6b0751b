"""A completion as it grows: stretches that the policy sampled, and stretches that it was given.

Tool results and a thinking budget's stop text are given: they carry loss_mask 0 and no log-probability. What was
sampled is kept as it came, whatever a tokenizer would make of its text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlplatform.types import FINISHES, Rollout


@dataclass(frozen=True)
class Sample:
    """What an engine answers to one request. ``n`` tokens, the stop token included."""

    token_ids: np.ndarray  # int32 [n]
    logprobs: np.ndarray  # float32 [n], log p(token_ids[t] | everything before it); finite
    policy_version: np.ndarray  # int32 [n], the publish that sampled the token
    finish: str  # one of types.FINISHES

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in ("token_ids", "logprobs", "policy_version")}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"Sample: expected arrays of one length, got {lengths}")
        if self.finish not in FINISHES:
            raise ValueError(f"Sample.finish: expected one of {FINISHES}, got {self.finish!r}")
        if not np.isfinite(self.logprobs).all():
            raise ValueError("Sample: a token has no finite logprob; such a sample is rejected, never filled")

    def __len__(self) -> int:
        return len(self.token_ids)


class Completion:
    """Everything after a prompt. Tokens are only ever appended, so what stood there stays a prefix."""

    def __init__(self) -> None:
        self._token_ids: list[np.ndarray] = []
        self._logprobs: list[np.ndarray] = []
        self._versions: list[np.ndarray] = []
        self._sampled: list[bool] = []

    def add_sample(self, sample: Sample) -> None:
        """Append sampled tokens, verbatim."""
        self._append(sample.token_ids, sample.logprobs, sample.policy_version, sampled=True)

    def add_given(self, token_ids: Sequence[int] | np.ndarray) -> None:
        """Append tokens that the policy did not sample."""
        n = len(token_ids)
        self._append(token_ids, np.full(n, np.nan), np.full(n, -1), sampled=False)

    def _append(
        self, token_ids: Sequence[int] | np.ndarray, logprobs: np.ndarray, versions: np.ndarray, *, sampled: bool
    ) -> None:
        self._token_ids.append(np.asarray(token_ids, dtype=np.int32))
        self._logprobs.append(np.asarray(logprobs, dtype=np.float32))
        self._versions.append(np.asarray(versions, dtype=np.int32))
        self._sampled.append(sampled)

    def __len__(self) -> int:
        return sum(map(len, self._token_ids))

    @property
    def num_sampled(self) -> int:
        return sum(len(ids) for ids, sampled in zip(self._token_ids, self._sampled, strict=True) if sampled)

    @property
    def token_ids(self) -> np.ndarray:
        """int32 [L]."""
        return np.concatenate([np.empty(0, dtype=np.int32), *self._token_ids])

    @property
    def loss_mask(self) -> np.ndarray:
        """bool [L], True on sampled tokens."""
        lengths = np.array([len(ids) for ids in self._token_ids], dtype=np.int64)
        return np.repeat(np.array(self._sampled, dtype=np.bool_), lengths)

    def rollout(self, *, finish: str, text: str) -> Rollout:
        """As the rest of the platform takes it. A given token bears the version of the sampled one before it, those at
        the very start that of the first sampled one."""
        versions = np.concatenate([np.empty(0, dtype=np.int32), *self._versions])
        mask = self.loss_mask
        if mask.any():
            last = np.maximum.accumulate(np.where(mask, np.arange(len(mask)), -1))
            versions = versions[np.where(last < 0, int(np.argmax(mask)), last)]
        else:
            versions = np.zeros_like(versions)
        return Rollout(
            token_ids=self.token_ids,
            loss_mask=mask,
            rollout_logprobs=np.concatenate([np.empty(0, dtype=np.float32), *self._logprobs]),
            policy_version=versions,
            finish=finish,
            text=text,
        )
