"""Completions that take several engine requests: episodes of environments, and turns with a thinking budget.

    begin ──► pool of a kind ══calls══► engine ══samples══► pool ... ──► ``take_finished``: whole groups

Each request goes on from all tokens so far, whose keys and values the engine still has in its prefix cache. What stands
between two is given, not sampled: ``loss_mask`` 0. Environments run in threads of their own while the engine is
stepped; it waits for them only where it has nothing else to do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from rewards.base import ERROR, Verdict, absolute
from rewards.format import prompt_opens_block
from rlplatform.budget import BudgetTokens, budget_tokens
from rlplatform.completion import Completion, Sample
from rlplatform.config import EnvironmentConfig
from rlplatform.environments.base import Environment, load_environment
from rlplatform.environments.driver import Episode, EpisodePool, EpisodeResult
from rlplatform.environments.episode import ChatTokens, EpisodeLimits, EpisodeTokens, SampleRequest
from rlplatform.environments.groups import opening
from rlplatform.types import FINISH_ABORT, EpisodeRecord, GenerationRequest, Prompt, Rollout, SamplingParams


@dataclass(frozen=True)
class Play:
    """What a job's completions are episodes of."""

    name: str  # what ``load_environment`` takes; a file by its absolute path
    args: Mapping[str, Any]
    max_turns: int
    max_turn_tokens: int  # 0: as many as the completion may have
    step_timeout_s: float
    close_cut_turns: bool


def play_of(prompt: Prompt, config: EnvironmentConfig) -> Play | None:
    """The environment of a prompt; None: its completion is one turn.

    Raises:
        ValueError: the prompt has no messages, or names its environment by something else than text.
    """
    name = prompt.columns.get(config.column) if config.column else config.name
    if name is None or name == "":
        return None
    if not isinstance(name, str):
        raise ValueError(
            f"prompt {prompt.prompt_id}: column {config.column}: expected an environment's name or null, got {name!r}"
        )
    if not prompt.messages:
        raise ValueError(f"prompt {prompt.prompt_id}: expected messages for environment {name!r}, got a bare string")
    return Play(
        absolute(name),
        dict(config.args),
        config.max_turns,
        config.max_turn_tokens,
        config.step_timeout_s,
        config.close_cut_turns,
    )


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


@dataclass(frozen=True)
class EpisodeCall:
    """An engine request of one turn, or of a part of one."""

    pool: str  # which asked
    request: SampleRequest
    sampling: SamplingParams  # max_new_tokens is the request's


@dataclass(frozen=True)
class FinishedGroup:
    ticket: int
    rollouts: tuple[Rollout, ...]
    num_rejected: int
    prompt: Prompt | None = None  # as the environment opened it; None: as asked


class _Turns:
    """Completions of one turn, with ``EpisodePool``'s calls: nobody answers them, their prompt is given."""

    def __init__(
        self, chat: ChatTokens, total: int, *, stop_ids: Sequence[int], budget_tokens: BudgetTokens | None
    ) -> None:
        self._chat, self._stop_ids, self._budget_tokens = chat, stop_ids, budget_tokens
        self._limits = EpisodeLimits(max_turns=1, max_tokens=total, max_turn_tokens=total)
        self._open: dict[int, tuple[str, EpisodeTokens]] = {}
        self._ready: list[int] = []
        self._finished: list[tuple[str, Rollout | None]] = []
        self._num_started = 0

    def start(self, name: str, prompt: Prompt, seed: int, budget: int | None) -> None:
        tokens = EpisodeTokens(
            self._chat,
            self._limits,
            stop_ids=self._stop_ids,
            seed=seed,
            budget=budget,
            budget_tokens=self._budget_tokens,
        )
        tokens.begin_at(prompt.text, prompt.token_ids)
        self._open[self._num_started] = name, tokens
        self._ready.append(self._num_started)
        self._num_started += 1

    @property
    def num_open(self) -> int:
        return len(self._open)

    def requests(self, timeout_s: float = 0.0) -> list[SampleRequest]:
        ready, self._ready = self._ready, []
        return [self._open[ticket][1].request(ticket) for ticket in ready]

    def give(self, ticket: int, sample: Sample | None) -> None:
        name, tokens = self._open[ticket]
        if sample is not None and tokens.take(sample) is None and not tokens.ended_by:
            self._ready.append(ticket)
            return
        del self._open[ticket]
        self._finished.append((name, None if sample is None else tokens.rollout()))

    def finished(self) -> list[tuple[str, Rollout | None]]:
        found, self._finished = self._finished, []
        return found

    def close(self) -> None:
        """Nothing to end."""


@dataclass(frozen=True)
class _Pool:
    """Completions that share limits and sampling."""

    completions: EpisodePool | _Turns
    sampling: SamplingParams


@dataclass
class _Group:
    """The completions of one job."""

    request: GenerationRequest
    results: dict[int, Any] = field(default_factory=dict)  # sample -> how it ended


class Episodes:
    """For one thread, the engine's.

    Args:
        stop_ids: at which the engine stops, whatever a job's sampling adds.
        max_model_len: tokens of prompt and completion that the engine has room for.
    """

    def __init__(self, tokenizer: Any, stop_ids: Sequence[int], max_model_len: int) -> None:
        self._tokenizer, self._stop_ids, self._max_model_len = tokenizer, tuple(stop_ids), max_model_len
        self._pools: dict[str, _Pool] = {}
        self._environments: dict[str, Environment] = {}
        self._groups: dict[int, _Group] = {}  # by the job's ticket

    @property
    def num_open(self) -> int:
        """Completions that have not ended."""
        return sum(pool.completions.num_open for pool in self._pools.values())

    def begin(
        self, ticket: int, request: GenerationRequest, sampling: SamplingParams, play: Play | None, budget: int | None
    ) -> None:
        """Start ``request.num_samples`` completions; sample k has the seed ``request.seed + k``.

        Raises:
            EnvironmentLoadError: there is no such environment here.
            ValueError: a budget whose stop text does not end a thought.
        """
        key = (play, sampling, request.prompt.enable_thinking, prompt_opens_block("", request.prompt.text))
        name = repr(key)  # settings of an environment need not be hashable
        if name not in self._pools:
            self._pools[name] = _Pool(self._pool(*key), sampling)
        pool = self._pools[name].completions
        self._groups[ticket] = _Group(request)
        for sample in range(request.num_samples):
            label, seed = f"{ticket}/{sample}", request.seed + sample
            if isinstance(pool, _Turns):
                pool.start(label, request.prompt, seed, budget)
            else:
                environment, row = self._environments[name], row_of(request.prompt)
                pool.start(
                    Episode(label, environment, row, seed, environment_seed=request.seed, thinking_budget=budget)
                )

    def calls(self, timeout_s: float = 0.0) -> list[EpisodeCall]:
        """What to sample now; waits up to ``timeout_s`` for the first where nothing is ready."""
        found: list[EpisodeCall] = []
        busy = {name: pool for name, pool in self._pools.items() if pool.completions.num_open}
        for name, pool in busy.items():
            for request in pool.completions.requests(0.0 if found else timeout_s / len(busy)):
                sampling = replace(pool.sampling, max_new_tokens=request.max_new_tokens)
                found.append(EpisodeCall(name, request, sampling))
        return found

    def give(self, call: EpisodeCall, sample: Sample | None) -> None:
        """The answer to a call; None where the engine has no usable one."""
        self._pools[call.pool].completions.give(call.request.ticket, sample)

    def take_finished(self) -> list[FinishedGroup]:
        """The groups whose last completion has ended since the last call."""
        return [group for pool in self._pools.values() for group in self._taken(pool.completions)]

    def close(self) -> None:
        for pool in self._pools.values():
            pool.completions.close()

    # --- inside -------------------------------------------------------------------------------------------------

    def _taken(self, pool: EpisodePool | _Turns) -> Iterator[FinishedGroup]:
        for result in pool.finished():
            name, ended = (result.episode_id, result) if isinstance(result, EpisodeResult) else result
            ticket, sample = map(int, name.split("/"))
            group = self._groups[ticket]
            group.results[sample] = ended
            if len(group.results) < group.request.num_samples:
                continue
            del self._groups[ticket]
            ordered = [group.results[sample] for sample in sorted(group.results)]
            if isinstance(pool, _Turns):
                kept = tuple(rollout for rollout in ordered if rollout is not None)
                yield FinishedGroup(ticket, kept, len(ordered) - len(kept))
            else:
                yield finished_episodes(ticket, group.request.prompt, ordered)

    def _pool(
        self, play: Play | None, sampling: SamplingParams, enable_thinking: bool, opened: bool
    ) -> EpisodePool | _Turns:
        chat = ChatTokens(self._tokenizer, enable_thinking=enable_thinking)
        stop_ids = (*self._stop_ids, *sampling.stop_token_ids)
        text, total = sampling.thinking_stop_text, sampling.max_new_tokens
        tokens = budget_tokens(self._tokenizer, text, opened=opened) if text else None
        if play is None:
            return _Turns(chat, total, stop_ids=stop_ids, budget_tokens=tokens)
        limits = EpisodeLimits(
            max_turns=play.max_turns,
            max_tokens=total,
            max_turn_tokens=play.max_turn_tokens or total,
            max_model_len=self._max_model_len,
            close_cut_turns=play.close_cut_turns,
        )
        self._environments[repr((play, sampling, enable_thinking, opened))] = load_environment(play.name, **play.args)
        return EpisodePool(chat, limits, stop_ids=stop_ids, step_timeout_s=play.step_timeout_s, budget_tokens=tokens)


def row_of(prompt: Prompt) -> dict[str, Any]:
    """A dataset row as environments see it: its columns, and ``prompt``: text where the prompt is a single message of
    the user's, else its messages."""
    messages = [dict(message) for message in prompt.messages]
    alone = len(messages) == 1 and messages[0]["role"] == "user"
    return {**prompt.columns, "prompt": messages[0]["content"] if alone else messages}


def finished_episodes(ticket: int, asked: Prompt, results: Sequence[EpisodeResult]) -> FinishedGroup:
    """The episodes of one job, in order of their samples.

    One that failed before anything was sampled is an empty rollout, so that its verdict is counted. One that began with
    another prompt than the first has the verdict ``error``: they are no samples of one prompt.
    """
    kept = [result for result in results if not result.rejected]
    first = next((result for result in kept if len(result.prompt_ids)), None)
    prompt = asked
    if first is not None and not np.array_equal(first.prompt_ids, asked.token_ids):
        prompt = replace(asked, messages=opening(first), token_ids=first.prompt_ids, text=first.prompt_text)
    rollouts = []
    for result in kept:
        verdict = result.verdict
        if first is not None and len(result.prompt_ids) and not np.array_equal(result.prompt_ids, first.prompt_ids):
            detail = f"prompt {asked.prompt_id}: two episodes of one row began with different prompts; an opening must "
            verdict = Verdict(0.0, ERROR, detail=f"{detail}depend on the row alone")
        rollout = result.rollout or Completion().rollout(finish=FINISH_ABORT, text="")
        rollouts.append(replace(rollout, episode=_record(result, verdict)))
    return FinishedGroup(ticket, tuple(rollouts), len(results) - len(kept), prompt)


def _record(result: EpisodeResult, verdict: Verdict) -> EpisodeRecord:
    return EpisodeRecord(
        verdict=verdict,
        final_text=result.final_text,
        num_turns=result.num_turns,
        num_tool_calls=sum(message["role"] == "tool" for message in result.messages),
        ended_by=result.ended_by,
    )
