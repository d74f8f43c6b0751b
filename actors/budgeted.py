"""Completions that take several engine calls: those with a thinking budget. Their state between the calls.

The calls of one completion are requests of their own. Each goes on from all tokens so far, whose keys and values the
engine still has in its prefix cache. What is inserted between two calls is given, not sampled: ``loss_mask`` 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rewards.format import prompt_opens_block
from rlplatform.budget import BudgetTokens, Call, budget_tokens, first_call, second_call
from rlplatform.completion import Completion, Sample
from rlplatform.types import GenerationRequest, Rollout, SamplingParams


@dataclass
class Budgeted:
    """One completion under way."""

    prompt: np.ndarray  # int32 [P]
    budget: int
    total: int
    tokens: BudgetTokens
    seed: int
    completion: Completion = field(default_factory=Completion)
    finish: str = ""  # of the last call, once there is no other
    num_calls: int = 0
    rejected: bool = False

    def first(self) -> Call:
        """Insert what comes first; returns the engine's first call."""
        return self._begin(first_call(self.budget, self.total, self.tokens))

    def next(self, sample: Sample) -> Call | None:
        """Take what a call sampled; returns the next call, or None when the completion is finished."""
        self.completion.add_sample(sample)
        call = None
        if self.num_calls == 1:
            call = second_call(sample.token_ids, sample.finish, self.budget, self.total, self.tokens)
        if call is None:
            self.finish = sample.finish
            return None
        return self._begin(call)

    def _begin(self, call: Call) -> Call:
        self.completion.add_given(call.insert)
        self.num_calls += 1
        return call

    @property
    def context(self) -> list[int]:
        """Token ids that the next call goes on from."""
        return [*self.prompt.tolist(), *self.completion.token_ids.tolist()]

    @property
    def call_seed(self) -> int:
        """Of the call under way: the first one's is the sample's own, a later one does not repeat its draws."""
        if self.num_calls <= 1:
            return self.seed
        digest = hashlib.blake2b(f"{self.seed}/call-{self.num_calls}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 2

    def rollout(self, text: Callable[[np.ndarray, str], str]) -> Rollout | None:
        """The finished completion, decoded by ``text(token_ids, finish)``; None where one of its calls was rejected."""
        if self.rejected:
            return None
        return self.completion.rollout(finish=self.finish, text=text(self.completion.token_ids, self.finish))


def budget_of(request: GenerationRequest, sampling: SamplingParams) -> int | None:
    """The thinking budget of a request: the prompt's column ``thinking_budget``, else the run's; None: no budget.

    Raises:
        ValueError: a column that is no number of tokens.
    """
    value = request.prompt.columns.get("thinking_budget")
    if value is None:
        return sampling.thinking_budget
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(
            f"prompt {request.prompt.prompt_id}: column thinking_budget: expected a number of tokens >= 0 or null, "
            f"got {value!r}"
        )
    return value


def begin(request: GenerationRequest, sampling: SamplingParams, budget: int, tokenizer: Any) -> list[Budgeted]:
    """The completions of a request, none begun."""
    opened = prompt_opens_block("", request.prompt.text)
    tokens = budget_tokens(tokenizer, sampling.thinking_stop_text, opened=opened)
    return [
        Budgeted(request.prompt.token_ids, budget, sampling.max_new_tokens, tokens, request.seed + k)
        for k in range(request.num_samples)
    ]
