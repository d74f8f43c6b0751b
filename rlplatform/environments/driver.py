"""Many episodes on one engine, each at its own pace.

    loop:  requests()  ◄── the episodes whose environments have answered since
           engine step ──► give(ticket, sample)
           finished()  ──► results

An episode asks for its next turn the moment its environment has answered; it waits for no other. ``EpisodePool`` is for
an engine that is stepped; ``run_episodes`` for a callable that samples a batch.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from model.messages import RenderError
from rewards.base import ERROR, Verdict
from rlplatform.budget import BudgetTokens
from rlplatform.completion import Sample
from rlplatform.environments.base import Environment
from rlplatform.environments.contract import Row
from rlplatform.environments.episode import ChatTokens, EpisodeLimits, EpisodeTokens, SampleRequest
from rlplatform.environments.stage import Asked, Ended, Stage
from rlplatform.types import FINISH_ABORT, Message, Rollout

LINGER_S = 0.002  # once an episode is ready, wait so long for others to share its batch

# Requests in, one sample each in their order; None: the engine has no usable one (aborted, a token without a logprob).
Generate = Callable[[list[SampleRequest]], Sequence[Sample | None]]


@dataclass(frozen=True)
class Episode:
    """One to be played."""

    episode_id: str
    environment: Environment
    row: Row
    seed: int = 0  # of sampling; each episode its own
    environment_seed: int = 0  # handed to ``reset``; the same for all episodes of a row
    thinking_budget: int | None = None  # tokens a turn


@dataclass(frozen=True)
class EpisodeResult:
    """One that was played. ``verdict`` is the environment's: its status speaks of the environment, never the model."""

    episode_id: str
    prompt_text: str
    prompt_ids: np.ndarray  # int32 [P]
    rollout: Rollout | None  # None: nothing usable was sampled; the verdict's detail says why
    verdict: Verdict
    messages: tuple[Message, ...]
    num_turns: int
    ended_by: str  # the limit that was reached; "" where the environment ended it
    seconds: float
    final_text: str = ""  # of the last assistant turn
    rejected: bool = False  # the engine gave no usable sample: neither the environment's fault nor the model's


@dataclass
class _Open:
    episode: Episode
    tokens: EpisodeTokens
    began: float
    messages: list[Message]


class EpisodePool:
    """Not for several threads.

    Args:
        stop_ids: at which the engine stops; the token that ends a turn is among them.
        step_timeout_s: of an environment, between two of its turns.
        budget_tokens: needed where an episode has a thinking budget.
    """

    def __init__(
        self,
        chat: ChatTokens,
        limits: EpisodeLimits,
        *,
        stop_ids: Sequence[int] = (),
        step_timeout_s: float = 10.0,
        budget_tokens: BudgetTokens | None = None,
    ) -> None:
        self._chat, self._limits, self._budget_tokens = chat, limits, budget_tokens
        self._stop_ids = (*stop_ids, chat.turn_end)
        self._stage = Stage(step_timeout_s)
        self._open: dict[int, _Open] = {}
        self._again: list[int] = []  # tickets that go on without their environment
        self._finished: list[EpisodeResult] = []
        self._num_started = 0

    def __enter__(self) -> EpisodePool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give up whatever still plays."""
        self._stage.close()

    @property
    def num_open(self) -> int:
        return len(self._open)

    def start(self, episode: Episode) -> int:
        """Begin an episode; returns the ticket of its requests."""
        ticket = self._num_started
        self._num_started += 1
        tokens = EpisodeTokens(
            self._chat,
            self._limits,
            stop_ids=self._stop_ids,
            seed=episode.seed,
            budget=episode.thinking_budget,
            budget_tokens=self._budget_tokens,
        )
        self._stage.start(ticket, episode.environment, episode.row, episode.environment_seed)
        dialogue = self._stage.dialogue(ticket)
        self._open[ticket] = _Open(episode, tokens, time.monotonic(), dialogue.messages)
        return ticket

    def requests(self, timeout_s: float = 0.0) -> list[SampleRequest]:
        """What to sample now. Waits up to ``timeout_s`` where nothing is ready."""
        found = [self._open[ticket].tokens.request(ticket) for ticket in self._again]
        self._again = []
        for event in self._stage.poll(0.0 if found else timeout_s):
            if isinstance(event, Ended):
                self._end(event.key, event.verdict)
            elif self._observe(event):
                found.append(self._open[event.key].tokens.request(event.key))
        return found

    def give(self, ticket: int, sample: Sample | None) -> None:
        """The answer to a request; ignored where its episode has ended meanwhile."""
        if ticket not in self._open:
            return
        tokens = self._open[ticket].tokens
        if sample is None or sample.finish == FINISH_ABORT:
            self._fail(ticket, "the engine gave no usable sample", usable=False)
            return
        text = tokens.take(sample)
        if text is not None:
            self._stage.answer(ticket, {"role": "assistant", "content": text})
        elif tokens.ended_by:
            self._stage.refuse(ticket, tokens.ended_by)
        else:
            self._again.append(ticket)

    def finished(self) -> list[EpisodeResult]:
        """Those that ended since the last call."""
        found, self._finished = self._finished, []
        return found

    # --- inside -------------------------------------------------------------------------------------------------

    def _observe(self, event: Asked) -> bool:
        tokens = self._open[event.key].tokens
        first = not len(tokens.prompt_ids)
        try:
            ready = tokens.begin(event.messages, event.tools) if first else tokens.observe(event.messages)
        except RenderError as error:
            self._fail(event.key, f"its messages cannot be rendered: {error}")
            return False
        if not ready and first:
            self._fail(event.key, f"a prompt of {len(tokens.prompt_ids)} tokens leaves no room: {tokens.ended_by}")
        elif not ready:
            self._stage.refuse(event.key, tokens.ended_by)
        return ready

    def _fail(self, ticket: int, detail: str, *, usable: bool = True) -> None:
        self._stage.cancel(ticket)
        name = self._open[ticket].episode.environment.name
        self._end(ticket, Verdict(0.0, ERROR, detail=f"environment {name!r}: {detail}"), usable=usable)

    def _end(self, ticket: int, verdict: Verdict, *, usable: bool = True) -> None:
        played = self._open.pop(ticket)
        tokens = played.tokens
        self._finished.append(
            EpisodeResult(
                episode_id=played.episode.episode_id,
                prompt_text=tokens.prompt_text,
                prompt_ids=tokens.prompt_ids,
                rollout=tokens.rollout() if usable and tokens.completion.num_sampled else None,
                verdict=verdict,
                messages=tuple(played.messages),
                num_turns=tokens.num_turns,
                ended_by=tokens.ended_by,
                seconds=time.monotonic() - played.began,
                final_text=tokens.final_text,
                rejected=not usable,
            )
        )


def run_episodes(
    episodes: Sequence[Episode],
    generate: Generate,
    chat: ChatTokens,
    limits: EpisodeLimits,
    *,
    stop_ids: Sequence[int] = (),
    step_timeout_s: float = 10.0,
    budget_tokens: BudgetTokens | None = None,
    max_open: int = 256,
) -> list[EpisodeResult]:
    """Play all episodes, at most ``max_open`` at once; results in their order.

    ``generate`` is called with whatever is ready, so an episode with a slow environment holds nobody up. Tokens depend
    on an episode's own seed and row, not on which others share a batch, as far as the sampler keeps to that.

    Raises:
        ValueError: two episodes of one id, or not one sample a request.
    """
    ids = [episode.episode_id for episode in episodes]
    if len(set(ids)) < len(ids):
        raise ValueError(f"run_episodes: expected distinct episode ids, got {len(set(ids))} of {len(ids)}")
    waiting, results = deque(episodes), {}
    with EpisodePool(
        chat, limits, stop_ids=stop_ids, step_timeout_s=step_timeout_s, budget_tokens=budget_tokens
    ) as pool:
        while waiting or pool.num_open:
            while waiting and pool.num_open < max_open:
                pool.start(waiting.popleft())
            requests = pool.requests(timeout_s=0.5)
            if requests:
                requests += pool.requests(timeout_s=LINGER_S)
                samples = generate(requests)
                if len(samples) != len(requests):
                    raise ValueError(f"run_episodes: asked for {len(requests)} samples, got {len(samples)}")
                for request, sample in zip(requests, samples, strict=True):
                    pool.give(request.ticket, sample)
            results.update({result.episode_id: result for result in pool.finished()})
    return [results[name] for name in ids]
