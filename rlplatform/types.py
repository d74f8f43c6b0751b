"""Everything that crosses a process: one frozen dataclass a stage, shapes in the field comments.

    Prompt -> Rollout -> RolloutGroup -> ScoredGroup -> RolloutBatch -> TrainBatch

Arrays are numpy, so that Ray moves them without a copy and nothing here imports torch. ``L`` is the number of
tokens of one completion, ``B`` the number of sequences of a batch, ``T`` the number of tokens of a packed batch.
Tokens in, tokens out: ``token_ids`` are the ids the engine sampled; nothing re-tokenises them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from rewards.base import Verdict

Message = Mapping[str, Any]  # {"role": "user", "content": "..."}
Metrics = dict[str, float]

FINISH_STOP = "stop"  # the engine met a stop id
FINISH_LENGTH = "length"  # the engine met max_new_tokens: the completion is truncated
FINISH_ABORT = "abort"  # the engine gave the request up
FINISHES = (FINISH_STOP, FINISH_LENGTH, FINISH_ABORT)


def _check_length(owner: str, **arrays: np.ndarray) -> None:
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{owner}: expected arrays of one length, got {lengths}")


def _check_dtype(owner: str, dtype: type[np.generic], **arrays: np.ndarray) -> None:
    for name, array in arrays.items():
        if array.dtype != dtype:
            raise ValueError(f"{owner}.{name}: expected dtype {np.dtype(dtype)}, got {array.dtype}")


@dataclass(frozen=True)
class Prompt:
    """One question as the model sees it."""

    prompt_id: str  # unique in its dataset; names the row in every record and error
    messages: tuple[Message, ...]  # what the chat template was given
    token_ids: np.ndarray  # int32 [P], the rendered prompt, generation prompt included
    text: str  # the rendered prompt; rewards look here for a think block that it already opened
    columns: Mapping[str, Any] = field(default_factory=dict)  # every other dataset column, for the rewards
    enable_thinking: bool = True  # what the chat template was given; an environment's later turns are prompted alike

    def __post_init__(self) -> None:
        _check_dtype("Prompt", np.int32, token_ids=self.token_ids)
        if len(self.token_ids) == 0:
            raise ValueError(f"prompt {self.prompt_id}: expected at least one token, got none")


@dataclass(frozen=True)
class EpisodeRecord:
    """What is known of a rollout that an environment took part in, beside its tokens."""

    verdict: Verdict  # the environment's own; its status speaks of the environment, never the model
    final_text: str  # the last assistant turn, as ``Rollout.text``; what functions of text grade
    num_turns: int  # the assistant's finished ones
    num_tool_calls: int  # results of tools that the environment gave
    ended_by: str = ""  # the limit that was reached; "" where the environment ended it


@dataclass(frozen=True)
class Rollout:
    """One sampled completion. ``L`` counts what follows the prompt, tool results and inserted text included."""

    token_ids: np.ndarray  # int32 [L]
    loss_mask: np.ndarray  # bool [L], True where the policy sampled the token
    rollout_logprobs: np.ndarray  # float32 [L], the sampler's log-probability; NaN where loss_mask is False
    policy_version: np.ndarray  # int32 [L], the publish that sampled the token
    finish: str  # one of FINISHES, as the engine said
    text: str  # decoded completion, special tokens kept except the stop token
    episode: EpisodeRecord | None = None  # None: one turn, which no environment answered

    def __post_init__(self) -> None:
        _check_length(
            "Rollout",
            token_ids=self.token_ids,
            loss_mask=self.loss_mask,
            rollout_logprobs=self.rollout_logprobs,
            policy_version=self.policy_version,
        )
        _check_dtype("Rollout", np.int32, token_ids=self.token_ids, policy_version=self.policy_version)
        _check_dtype("Rollout", np.float32, rollout_logprobs=self.rollout_logprobs)
        _check_dtype("Rollout", np.bool_, loss_mask=self.loss_mask)
        if self.finish not in FINISHES:
            raise ValueError(f"Rollout.finish: expected one of {FINISHES}, got {self.finish!r}")
        if not np.isfinite(self.rollout_logprobs[self.loss_mask]).all():
            raise ValueError(
                "Rollout: a token with loss_mask 1 has no finite rollout_logprobs; such a rollout is rejected, "
                "never filled (a missing logprob of 0.0 would mean probability 1)"
            )

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def verdict(self) -> Verdict | None:
        """The environment's, where one took part."""
        return self.episode.verdict if self.episode is not None else None

    @property
    def final_text(self) -> str:
        """The last assistant turn's text; of a completion of one turn all of it."""
        return self.text if self.episode is None else self.episode.final_text


@dataclass(frozen=True)
class RolloutGroup:
    """The ``group_size`` rollouts of one prompt. A rejected rollout is left out and counted."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]
    step: int  # the learner version the prompt was drawn for; with the prompt it names the group
    index: int = 0  # place among the prompts of that step: batches are built in this order, whoever finished first
    num_rejected: int = 0  # rollouts dropped for a missing logprob or an aborted request
    seconds: float = 0.0  # from submission to the last token


@dataclass(frozen=True)
class ScoredGroup:
    """A group and one verdict a rollout, in order."""

    group: RolloutGroup
    verdicts: tuple[Verdict, ...]

    def __post_init__(self) -> None:
        if len(self.verdicts) != len(self.group.rollouts):
            raise ValueError(
                f"ScoredGroup {self.group.prompt.prompt_id}: expected {len(self.group.rollouts)} verdicts, "
                f"one a rollout, got {len(self.verdicts)}"
            )


@dataclass(frozen=True)
class RolloutBatch:
    """The rows of one update, packed end to end without padding.

    Row ``i`` is ``slice(cu_seqlens[i], cu_seqlens[i + 1])``: its prompt, then its completion. Entry ``t`` of a token
    array speaks of ``token_ids[t]`` itself: ``rollout_logprobs[t] = log p(token_ids[t] | earlier tokens of the row)``.
    """

    token_ids: np.ndarray  # int32 [T]
    cu_seqlens: np.ndarray  # int32 [B + 1], row boundaries; cu_seqlens[0] == 0, cu_seqlens[-1] == T
    loss_mask: np.ndarray  # bool [T], never True on a row's first token
    rollout_logprobs: np.ndarray  # float32 [T], 0 where loss_mask is False (nothing reads it there)
    advantages: np.ndarray  # float32 [T], 0 where loss_mask is False
    rewards: np.ndarray  # float32 [B]
    group_ids: np.ndarray  # int32 [B], rows of one prompt share it; rows of a group are contiguous
    oldest_version: int  # the smallest policy_version of a token with loss_mask 1

    def __post_init__(self) -> None:
        _check_length(
            "RolloutBatch",
            token_ids=self.token_ids,
            loss_mask=self.loss_mask,
            rollout_logprobs=self.rollout_logprobs,
            advantages=self.advantages,
        )
        _check_length("RolloutBatch", rewards=self.rewards, group_ids=self.group_ids, rows=self.cu_seqlens[1:])
        _check_dtype("RolloutBatch", np.int32, token_ids=self.token_ids, cu_seqlens=self.cu_seqlens)
        _check_dtype("RolloutBatch", np.float32, advantages=self.advantages, rewards=self.rewards)
        if self.cu_seqlens[0] != 0 or self.cu_seqlens[-1] != len(self.token_ids):
            raise ValueError(
                f"RolloutBatch.cu_seqlens: expected to run from 0 to T={len(self.token_ids)}, "
                f"got {self.cu_seqlens[0]} to {self.cu_seqlens[-1]}"
            )

    @property
    def num_rows(self) -> int:
        return len(self.cu_seqlens) - 1

    @property
    def num_loss_tokens(self) -> int:
        """The token-mean denominator: tokens of the final mask, after every mask was applied."""
        return int(self.loss_mask.sum())


@dataclass(frozen=True)
class TeacherTargets:
    """A teacher's next-token distribution at N positions.

    Without ``ids`` it is whole: K = num_ids, in order, at temperature 1. With them, K likely tokens and the mass of all
    others, at the temperature of the divergence.
    """

    logprobs: np.ndarray  # float32 [N, K]
    ids: np.ndarray | None  # int32 [N, K]
    rest: np.ndarray | None  # float32 [N], log of the mass of the tokens not in ids
    num_ids: int  # of the vocabulary that teacher and student share; logits beyond it are left out on both sides

    def __post_init__(self) -> None:
        _check_dtype("TeacherTargets", np.float32, logprobs=self.logprobs)
        if (self.ids is None) != (self.rest is None):
            raise ValueError("TeacherTargets: expected ids and rest, or neither")
        if self.ids is not None and self.rest is not None:
            _check_dtype("TeacherTargets", np.int32, ids=self.ids)
            _check_dtype("TeacherTargets", np.float32, rest=self.rest)
            if self.ids.shape != self.logprobs.shape or len(self.rest) != len(self.ids):
                raise ValueError(
                    f"TeacherTargets: expected ids of shape {self.logprobs.shape} and {len(self.logprobs)} rests, "
                    f"got {self.ids.shape} and {len(self.rest)}"
                )

    def take(self, where: np.ndarray) -> TeacherTargets:
        """Those of some positions, int64 [n]."""
        ids, rest = (None if array is None else array[where] for array in (self.ids, self.rest))
        return TeacherTargets(self.logprobs[where], ids, rest, self.num_ids)


@dataclass(frozen=True)
class TrainBatch:
    """A batch with the learner's own logprobs: what ``Learner.update`` takes.

    ``old_logprobs is None`` says that the update is one optimiser step from the very weights that would compute them,
    so they are the first forward's ``logprobs``, detached, and no extra forward pass is spent.
    ``ref_logprobs is None`` says that no reference model takes part (KL coefficient 0).
    """

    batch: RolloutBatch
    old_logprobs: np.ndarray | None  # float32 [T], before the update; 0 where loss_mask is False
    ref_logprobs: np.ndarray | None  # float32 [T], the frozen reference; 0 where loss_mask is False
    teacher: TeacherTargets | None = None  # of the N loss tokens, in order; distillation only

    def __post_init__(self) -> None:
        for name in ("old_logprobs", "ref_logprobs"):
            array = getattr(self, name)
            if array is not None:
                _check_length("TrainBatch", token_ids=self.batch.token_ids, **{name: array})
                _check_dtype("TrainBatch", np.float32, **{name: array})
        if self.teacher is not None and len(self.teacher.logprobs) != self.batch.num_loss_tokens:
            raise ValueError(
                f"TrainBatch: expected the teacher's distribution at {self.batch.num_loss_tokens} loss tokens, "
                f"got {len(self.teacher.logprobs)}"
            )


@dataclass(frozen=True)
class SamplingParams:
    """How rollouts are sampled. Neutral by default, whatever the model's generation_config says."""

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1  # -1: off
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop_token_ids: tuple[int, ...] = ()  # added to config, generation_config, tokenizer and template ones
    thinking_budget: int | None = None  # tokens of thought after which thinking_stop_text ends it; None: no budget
    thinking_stop_text: str = ""

    @property
    def neutral(self) -> bool:
        """True when the engine's logprobs are those of the policy itself at temperature 1."""
        return (
            self.temperature == 1.0
            and self.top_p == 1.0
            and self.top_k in (-1, 0)
            and self.min_p == 0.0
            and self.repetition_penalty == 1.0
            and self.presence_penalty == 0.0
            and self.frequency_penalty == 0.0
        )


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt to sample ``num_samples`` completions for."""

    prompt: Prompt
    num_samples: int
    step: int
    index: int
    seed: int  # child k samples with seed + k; seeds of two requests are at least num_samples apart


def rows(cu_seqlens: np.ndarray) -> Sequence[slice]:
    """The slice of each row of a packed batch."""
    return [slice(int(a), int(b)) for a, b in pairwise(cu_seqlens)]
