"""A budget of thinking tokens: stop at it, insert a text that ends the thought, and go on within the total.

    call 1: at most `budget` tokens ──► ended (stop id)?            ──► done
                                   ──► </think> among them?         ──► call 2: the rest of `total`, nothing inserted
                                   ──► still thinking               ──► insert the stop text (given, not sampled)
                                                                        call 2: the rest of `total`

The two calls are those of Qwen3's quickstart (section "Thinking Budget"); the report (arXiv 2505.09388, section 4.3)
inserts a text likewise. Pure: token ids in, a plan out; an engine, a fake or an episode carries it out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rlplatform.completion import Completion, Sample
from rlplatform.types import FINISH_LENGTH

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Of Qwen3's documentation: 24 tokens of its tokenizer. The report prints another spelling, "</think>.\n\n".
STOP_TEXT = (
    "\n\nConsidering the limited time by the user, I have to give the solution based on the thinking directly now."
    "\n</think>\n\n"
)


@dataclass(frozen=True)
class BudgetTokens:
    """The ids that a plan is made with."""

    end_think: tuple[int, ...]  # </think>: one id in Qwen3, several in a vocabulary without it
    stop_text: tuple[int, ...]  # inserted where the budget ends a thought
    open_think: tuple[int, ...] = ()  # <think>; (): every completion is taken to think from its first token on
    open_text: tuple[int, ...] = ()  # inserted before the stop text where nothing was sampled yet (budget 0)

    def __post_init__(self) -> None:
        if not self.end_think:
            raise ValueError("BudgetTokens.end_think: expected the ids of </think>, got none")
        if not self.stop_text:
            raise ValueError("BudgetTokens.stop_text: expected at least one token that ends a thought, got none")
        if _find(self.stop_text, self.end_think) < 0:
            raise ValueError(
                "BudgetTokens.stop_text: expected the ids of </think> in it, else the thought it interrupts stays open"
            )


def budget_tokens(
    tokenizer: PreTrainedTokenizerBase, text: str = STOP_TEXT, *, opened: bool = False, newline: str = "\n"
) -> BudgetTokens:
    """The ids of ``text`` and of the think tags.

    ``opened``: the prompt ends inside a think block. Otherwise the model writes ``<think>`` itself, a completion that
    begins without it is not thinking, and a budget of 0 inserts ``<think>`` and ``newline`` before the text.

    Raises:
        ValueError: the text does not end the thought.
    """

    def ids(piece: str) -> tuple[int, ...]:
        return tuple(tokenizer(piece, add_special_tokens=False)["input_ids"])

    if "</think>" not in text:
        raise ValueError(f"thinking budget: expected a stop text with </think> in it, got {text!r}")
    if opened:
        return BudgetTokens(ids("</think>"), ids(text))
    return BudgetTokens(ids("</think>"), ids(text), ids("<think>"), ids(f"<think>{newline}"))


# --- one completion -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """What to do next: insert these tokens, then sample at most so many."""

    insert: tuple[int, ...]  # given, loss_mask 0
    max_new_tokens: int  # >= 1


def first_call(budget: int | None, total: int, tokens: BudgetTokens | None = None) -> Call:
    """The first call of a completion of at most ``total`` tokens, inserted ones included.

    Without a budget, and with one that leaves no room for the stop text and one token of an answer, it is plain
    generation: one call for ``total`` tokens.

    Raises:
        ValueError: ``total`` below 1, a negative budget, or a budget without ``tokens``.
    """
    if total < 1:
        raise ValueError(f"thinking budget: expected a total of at least 1 token, got {total}")
    if budget is None:
        return Call((), total)
    if budget < 0 or tokens is None:
        raise ValueError(
            f"thinking budget: expected a budget >= 0 and the ids of its stop text, got {budget}, {tokens}"
        )
    if not _binds(budget, total, tokens):
        return Call((), total)
    if budget == 0:
        insert = tokens.open_text + tokens.stop_text
        return Call(insert, total - len(insert))
    return Call((), budget)


def second_call(
    sampled: Sequence[int] | np.ndarray, finish: str, budget: int | None, total: int, tokens: BudgetTokens | None = None
) -> Call | None:
    """What follows the first call, which sampled these tokens and ended so; None: the completion is finished.

    Raises:
        ValueError: more tokens than the first call asked for.
    """
    first = first_call(budget, total, tokens)
    if len(sampled) > first.max_new_tokens:
        raise ValueError(f"thinking budget: asked for {first.max_new_tokens} tokens, got {len(sampled)}")
    cut = finish == FINISH_LENGTH and len(sampled) == first.max_new_tokens
    if budget is None or tokens is None or not cut or budget == 0 or not _binds(budget, total, tokens):
        return None
    insert = tokens.stop_text if is_thinking(sampled, tokens) else ()
    return Call(insert, total - len(sampled) - len(insert))


def _binds(budget: int, total: int, tokens: BudgetTokens) -> bool:
    inserted = len(tokens.stop_text) + (len(tokens.open_text) if budget == 0 else 0)
    return budget + inserted < total


def is_thinking(sampled: Sequence[int] | np.ndarray, tokens: BudgetTokens) -> bool:
    """Is the thought open after these tokens? One that was never opened is not: an answer without a thought goes on
    as it began, and a ``<think>`` that comes later in it is not interrupted."""
    ids = tuple(int(token) for token in sampled)
    opened = not tokens.open_think or _find(ids, tokens.open_think) >= 0
    return opened and _find(ids, tokens.end_think) < 0


@dataclass(frozen=True)
class Count:
    """Tokens of one completion: their sum is its length."""

    thinking: int  # sampled, think tags included
    inserted: int
    answer: int  # sampled after the thought, the stop token included


def count(token_ids: np.ndarray, loss_mask: np.ndarray, tokens: BudgetTokens) -> Count:
    """Take a finished completion apart; ``token_ids`` int [L], ``loss_mask`` bool [L], False on inserted tokens.

    The thought ends with its first ``</think>``, sampled or inserted, or with the completion. A completion that never
    opened one is all answer.
    """
    ids = tuple(int(token) for token in token_ids)
    inserted = int((~np.asarray(loss_mask, dtype=np.bool_)).sum())
    place = _find(ids, tokens.end_think)
    closed, opened = place >= 0, is_thinking(ids, tokens)
    end = place + len(tokens.end_think) if closed else len(ids) * opened
    thinking = int(np.asarray(loss_mask, dtype=np.bool_)[:end].sum())
    return Count(thinking, inserted, len(ids) - inserted - thinking)


def _find(ids: tuple[int, ...], part: tuple[int, ...]) -> int:
    """Where ``part`` first stands in ``ids``; -1 where it does not."""
    return next((k for k in range(len(ids) - len(part) + 1) if ids[k : k + len(part)] == part), -1)


# --- a batch --------------------------------------------------------------------------------------------------------

# (prompts with what follows them so far, tokens asked for, which completion of the batch each is) -> samples in order
Generate = Callable[[list[np.ndarray], list[int], list[int]], Sequence[Sample]]


def generate_within(
    prompts: Sequence[np.ndarray],
    budgets: Sequence[int | None],
    total: int,
    tokens: BudgetTokens | None,
    generate: Generate,
) -> list[tuple[Completion, str]]:
    """(completion, finish) of each prompt (int32 [P]), whose budgets may differ, in at most two calls of ``generate``.

    Without a budget in the batch it is one call, that of plain generation; with budgets, unbudgeted neighbours are
    finished in the first. A seeded sampler should seed the second call otherwise than the first.

    Raises:
        ValueError: lists of different lengths, or as ``first_call`` and ``second_call``.
    """
    if len(budgets) != len(prompts):
        raise ValueError(f"generate_within: expected one budget a prompt, got {len(budgets)} for {len(prompts)}")
    completions = [Completion() for _ in prompts]
    finishes = [""] * len(prompts)
    calls = {index: first_call(budget, total, tokens) for index, budget in enumerate(budgets)}
    for later in (False, True):
        if not calls:
            break
        order = sorted(calls)
        for index in order:
            completions[index].add_given(calls[index].insert)
        texts = [np.concatenate([prompts[index], completions[index].token_ids]).astype(np.int32) for index in order]
        samples = generate(texts, [calls[index].max_new_tokens for index in order], order)
        if len(samples) != len(order):
            raise ValueError(f"generate_within: asked for {len(order)} samples, got {len(samples)}")
        follow = {}
        for index, sample in zip(order, samples, strict=True):
            completions[index].add_sample(sample)
            finishes[index] = sample.finish
            after = None if later else second_call(sample.token_ids, sample.finish, budgets[index], total, tokens)
            if after is not None:
                follow[index] = after
        calls = follow
    return list(zip(completions, finishes, strict=True))
