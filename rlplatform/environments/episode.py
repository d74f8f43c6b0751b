"""The tokens of one episode: sampled ids verbatim, environment text between them, nothing ever written twice.

    prompt │ sampled turn <|im_end|> │ \\n<|im_start|>user\\n<tool_response>… <|im_start|>assistant\\n │ sampled turn …
           │ mask 1, logprobs        │ mask 0, no logprobs                                         │ mask 1

Each stretch is encoded on its own and appended, so the tokens of a moment are a prefix of those of every later one,
whichever way the sampler spelled its text. The text between two turns is what the tokenizer's own chat template writes
there (``model.turns``); no other template is known here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from model.messages import RenderError, render_chat
from model.turns import Conversation
from rewards.format import prompt_opens_block
from rlplatform.budget import BudgetTokens, first_call, second_call
from rlplatform.completion import Completion, Sample
from rlplatform.types import FINISH_LENGTH, FINISH_STOP, Message, Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_USER = {"role": "user", "content": "x"}
_SPOKEN = {"role": "assistant", "content": "x"}
_OPEN, _CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class EpisodeLimits:
    """Of one episode. A limit that is reached ends it: a truncated rollout, which the environment may still grade."""

    max_turns: int = 8  # of the assistant
    max_tokens: int = 2048  # of all turns, results and inserted text: what follows the prompt
    max_turn_tokens: int = 512  # of one turn, inserted text included
    max_model_len: int = 0  # prompt and completion together; 0: the caller's engine has room
    close_cut_turns: bool = False  # a turn cut at max_turn_tokens is ended by us and answered; else it ends the episode

    def __post_init__(self) -> None:
        for name in ("max_turns", "max_tokens", "max_turn_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"EpisodeLimits.{name}: expected at least 1, got {getattr(self, name)}")


class ChatTokens:
    """A tokenizer's chat template as stretches of tokens.

    Args:
        enable_thinking: handed to the template; False puts its empty think block before each turn, as given tokens.
        template_kwargs: further variables of the template.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        enable_thinking: bool = True,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self._enable_thinking, self._variables = enable_thinking, dict(template_kwargs or {})
        self._added = sorted((str(token) for token in tokenizer.get_added_vocab()), key=len, reverse=True)

    @cached_property
    def _end(self) -> str:
        return Conversation(self.tokenizer, [_USER, _SPOKEN], template_kwargs=self._variables).end

    @cached_property
    def turn_end(self) -> int:
        """The id that ends an assistant turn, ``<|im_end|>``."""
        return int(self.tokenizer.convert_tokens_to_ids(self._end))

    def opening(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> tuple[str, np.ndarray]:
        """(text, int32 [P]) of a first prompt, generation prompt included, encoded in one go as engines do."""
        text = self._render(messages, tools)
        return text, np.asarray(self._encode(text), dtype=np.int32)

    def between(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[int]:
        """What stands between the token that ends a turn and the next turn, with these messages in it.

        What the messages hold stays text: an ``<|im_end|>`` or ``</tool_response>`` in a tool's result is spelled out,
        never its control token, so that no result ends a turn or speaks as somebody else.
        """
        cut, word = "\u2402", "\u2403"  # that stand nowhere else: where to cut, and the assistant's last words
        everything = json.dumps([[dict(message) for message in messages], list(tools)], ensure_ascii=False, default=str)
        while cut in everything or word in everything:
            cut, word = cut + "\u2402", word + "\u2403"
        spelled = [{**message, "content": self._spelled(str(message["content"]), cut)} for message in messages]
        shown = self._render([_USER, {"role": "assistant", "content": word}, *spelled], tools)
        _, found, tail = shown.partition(word + self._end)
        if not found:
            raise RenderError(f"the template does not write {self._end!r} after an assistant turn; got {shown[:200]!r}")
        return [token for piece in tail.split(cut) for token in self._encode(piece)]

    def _render(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> str:
        return render_chat(
            self.tokenizer,
            messages,
            tools=list(tools) or None,
            add_generation_prompt=True,
            template_kwargs={**self._variables, "enable_thinking": self._enable_thinking},
        )

    def _spelled(self, text: str, cut: str) -> str:
        for token in self._added:
            if token in text:
                text = text.replace(token, f"{token[0]}{cut}{token[1:]}")
        return text

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def decode(self, token_ids: Sequence[int] | np.ndarray) -> str:
        return str(
            self.tokenizer.decode(
                [int(token) for token in token_ids], skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )


@dataclass(frozen=True)
class SampleRequest:
    """Go on from these tokens."""

    ticket: int
    token_ids: np.ndarray  # int32, prompt and everything since
    max_new_tokens: int
    seed: int  # of this call alone; no two calls of an episode share one


class EpisodeTokens:
    """State: the tokens so far, and what may be sampled next.

        begin ──► request ──► take ──► text of a finished turn ──► observe ──► request ...
                     ▲          └─ None: the thinking budget was reached, ask again
                     └──────────┘

    Args:
        stop_ids: ids at which the engine stops (``Sample.finish`` "stop"), among them the one that ends a turn.
        budget: thinking tokens of a turn; None: as many as it likes.
        budget_tokens: needed with a budget.
    """

    def __init__(
        self,
        chat: ChatTokens,
        limits: EpisodeLimits,
        *,
        stop_ids: Sequence[int],
        seed: int = 0,
        budget: int | None = None,
        budget_tokens: BudgetTokens | None = None,
    ) -> None:
        self._chat, self._limits, self._stop_ids, self._seed = chat, limits, frozenset(stop_ids), seed
        self._budget, self._budget_tokens = budget, budget_tokens
        self._tools: Sequence[Mapping[str, Any]] = ()
        self.prompt_text, self.prompt_ids = "", np.empty(0, dtype=np.int32)
        self.completion = Completion()
        self.num_turns = 0
        self.ended_by = ""  # the limit that was reached
        self.final_text = ""  # of the last turn that was sampled, without the token that ended it
        self._finish = FINISH_STOP
        self._turn_start = 0  # place in the completion
        self._allowance = 0  # tokens of this turn
        self._first: Sample | None = None  # of a turn that has a budget
        self._num_calls = 0
        self._asked = 0

    def begin(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> bool:
        """Take the opening; False where it leaves no room for a single token."""
        self._tools = tools
        return self.begin_at(*self._chat.opening(messages, tools))

    def begin_at(self, prompt_text: str, prompt_ids: np.ndarray) -> bool:
        """As ``begin``, from a prompt that is rendered and encoded already (int32 [P])."""
        self.prompt_text, self.prompt_ids = prompt_text, prompt_ids
        return self._open_turn()

    def observe(self, messages: Sequence[Message]) -> bool:
        """Append what the environment said; False, with nothing appended, where a limit is reached first."""
        if self.num_turns >= self._limits.max_turns:
            return self._end(f"the limit of {self._limits.max_turns} turns")
        last = int(self.completion.token_ids[-1])
        closing = [] if last == self._chat.turn_end else [self._chat.turn_end]
        ids = [*closing, *self._chat.between(messages, self._tools)]
        if self._room() <= len(ids):
            return self._end(f"the limit of {self._limit()} tokens")
        self.completion.add_given(ids)
        return self._open_turn()

    def request(self, ticket: int) -> SampleRequest:
        """What to sample now."""
        token_ids = np.concatenate([self.prompt_ids, self.completion.token_ids]).astype(np.int32)
        seed = call_seed(self._seed, self._num_calls)
        self._num_calls += 1
        return SampleRequest(ticket, token_ids, self._asked, seed)

    def take(self, sample: Sample) -> str | None:
        """Append what was sampled; the turn's text once it is finished, else None: ask again, or see ``ended_by``.

        Raises:
            ValueError: a sample of no tokens, or of more than were asked for.
        """
        if not 1 <= len(sample) <= self._asked:
            raise ValueError(f"episode: asked for 1 to {self._asked} tokens, got {len(sample)}")
        self.completion.add_sample(sample)
        self._finish = sample.finish
        self.final_text = self._turn_text()
        if self._first is None and self._budget is not None:
            self._first = sample
            call = second_call(sample.token_ids, sample.finish, self._budget, self._allowance, self._budget_tokens)
            if call is not None:
                self.completion.add_given(call.insert)
                self._asked = call.max_new_tokens
                return None
        if sample.finish == FINISH_LENGTH:
            out_of_room = self._room() < 1
            if out_of_room or not self._limits.close_cut_turns:
                what = f"{self._limit()} tokens" if out_of_room else f"{self._limits.max_turn_tokens} tokens a turn"
                self._end(f"the limit of {what}")
                return None
        self.num_turns += 1
        return self._said()

    def rollout(self) -> Rollout:
        """As the rest of the platform takes it; ``finish`` is "length" where a limit ended the episode."""
        ids = self.completion.token_ids
        stopped = len(ids) > 0 and int(ids[-1]) in self._stop_ids and self._finish == FINISH_STOP
        text = self._chat.decode(ids[:-1] if stopped else ids)
        return self.completion.rollout(finish=FINISH_LENGTH if self.ended_by else self._finish, text=text)

    # --- inside -------------------------------------------------------------------------------------------------

    def _limit(self) -> int:
        """Of the completion."""
        model = self._limits.max_model_len
        return min(self._limits.max_tokens, model - len(self.prompt_ids)) if model else self._limits.max_tokens

    def _room(self) -> int:
        return self._limit() - len(self.completion)

    def _end(self, reason: str) -> bool:
        self.ended_by = reason
        return False

    def _open_turn(self) -> bool:
        self._turn_start, self._first = len(self.completion), None
        self._allowance = min(self._limits.max_turn_tokens, self._room())
        if self._allowance < 1:
            return self._end(f"the limit of {self._limit()} tokens")
        if self._budget == 0 and self.prompt_text.rstrip().endswith(_CLOSE):
            self._budget = None  # the non-thinking mode: the prompt closed the block, and no second one is opened
        call = first_call(self._budget, self._allowance, self._budget_tokens)
        self.completion.add_given(call.insert)
        self._asked = call.max_new_tokens
        return True

    def _said(self) -> str:
        """The turn as a message's content: without the token that ended it, with a block that the prompt opened."""
        return self._opening_of_block + self.final_text

    def _turn_text(self) -> str:
        ids = self.completion.token_ids[self._turn_start :]
        if len(ids) and self._finish == FINISH_STOP and int(ids[-1]) in self._stop_ids:
            ids = ids[:-1]
        return self._chat.decode(ids)

    @cached_property
    def _opening_of_block(self) -> str:
        """What the generation prompt already wrote of a think block; "" in most templates."""
        if not prompt_opens_block(None, self.prompt_text):
            return ""
        return _OPEN + self.prompt_text.rpartition(_OPEN)[2]


def call_seed(seed: int, call: int) -> int:
    """The seed of an episode's n-th call: its own for the first, as in plain generation, then derived ones."""
    if call == 0:
        return seed
    digest = hashlib.blake2b(f"{seed}/call-{call + 1}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2
