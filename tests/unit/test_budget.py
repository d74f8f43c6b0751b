"""The thinking budget: hand-made cases, the accounting as properties, and that no budget is plain generation."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model.tokenizer import load_tokenizer, train_bpe
from rlplatform.budget import (
    STOP_TEXT,
    BudgetTokens,
    Call,
    Count,
    budget_tokens,
    count,
    first_call,
    generate_within,
    is_thinking,
    second_call,
)
from rlplatform.completion import Completion, Sample
from rlplatform.types import FINISH_ABORT, FINISH_LENGTH, FINISH_STOP

QWEN3 = Path(__file__).parents[2].parent / "shared" / "data" / "tokenizer_qwen3" / "tokenizer.json.gz"
OPEN, CLOSE, STOP, NEWLINE = 90, 91, 99, 80
TOKENS = BudgetTokens(end_think=(CLOSE,), stop_text=(70, 71, CLOSE, 72), open_think=(OPEN,), open_text=(OPEN, NEWLINE))


def sample(ids: list[int], finish: str, version: int = 0) -> Sample:
    return Sample(
        np.array(ids, dtype=np.int32),
        np.full(len(ids), -0.5, dtype=np.float32),
        np.full(len(ids), version, dtype=np.int32),
        finish,
    )


class Script:
    """A sampler that says what it was told to, whatever stands before: a list of ids a completion, ended by STOP."""

    def __init__(self, texts: list[list[int]]) -> None:
        self._left = [list(text) for text in texts]
        self.calls: list[list[tuple[tuple[int, ...], int]]] = []

    def __call__(self, texts: list[np.ndarray], limits: list[int], order: list[int]) -> list[Sample]:
        self.calls.append([(tuple(int(t) for t in text), limit) for text, limit in zip(texts, limits, strict=True)])
        found = []
        for limit, index in zip(limits, order, strict=True):
            ids, self._left[index] = self._left[index][:limit], self._left[index][limit:]
            found.append(sample(ids, FINISH_STOP if ids and ids[-1] == STOP else FINISH_LENGTH, len(self.calls)))
        return found


def run(text: list[int], budget: int | None, total: int) -> tuple[Completion, str, Script]:
    script = Script([text])
    ((completion, finish),) = generate_within([np.array([1, 2], dtype=np.int32)], [budget], total, TOKENS, script)
    return completion, finish, script


# --- by hand --------------------------------------------------------------------------------------------------------


def test_a_thought_that_reaches_its_budget_is_ended_and_answered() -> None:
    completion, finish, script = run([OPEN, 1, 2, 3, 4, STOP], 3, 20)
    assert completion.token_ids.tolist() == [OPEN, 1, 2, 70, 71, CLOSE, 72, 3, 4, STOP]
    assert completion.loss_mask.tolist() == [True] * 3 + [False] * 4 + [True] * 3
    assert finish == FINISH_STOP
    # the total counts what was inserted: 20 - 3 - 4 = 13
    assert [[limit for _, limit in call] for call in script.calls] == [[3], [13]]
    assert script.calls[1][0][0] == (1, 2, OPEN, 1, 2, 70, 71, CLOSE, 72)
    assert count(completion.token_ids, completion.loss_mask, TOKENS) == Count(thinking=3, inserted=4, answer=3)
    rollout = completion.rollout(finish=finish, text="")
    assert np.isnan(rollout.rollout_logprobs[3:7]).all()
    assert rollout.policy_version.tolist() == [1] * 7 + [2] * 3


def test_a_thought_that_ended_in_time_is_continued_without_a_word() -> None:
    completion, finish, script = run([OPEN, 1, CLOSE, 5, 6, STOP], 4, 20)
    assert completion.token_ids.tolist() == [OPEN, 1, CLOSE, 5, 6, STOP]
    assert completion.loss_mask.all()
    assert [[limit for _, limit in call] for call in script.calls] == [[4], [16]]
    assert count(completion.token_ids, completion.loss_mask, TOKENS) == Count(3, 0, 3)
    assert finish == FINISH_STOP


def test_the_budget_reached_exactly_at_the_end_of_the_thought_inserts_nothing() -> None:
    completion, _, script = run([OPEN, 1, CLOSE, 5, STOP], 3, 20)
    assert completion.token_ids.tolist() == [OPEN, 1, CLOSE, 5, STOP]
    assert len(script.calls) == 2
    assert count(completion.token_ids, completion.loss_mask, TOKENS) == Count(3, 0, 2)


@pytest.mark.parametrize("place", [1, 2, 3])
def test_a_completion_that_ends_inside_its_thought_has_ended(place: int) -> None:
    text = [*[OPEN, 1, 2][: place - 1], STOP]
    completion, finish, script = run(text, 3, 20)
    assert completion.token_ids.tolist() == text
    assert (finish, len(script.calls)) == (FINISH_STOP, 1)


def test_a_budget_of_zero_opens_and_closes_the_block_at_once() -> None:
    completion, _, script = run([5, 6, STOP], 0, 20)
    assert completion.token_ids.tolist() == [OPEN, NEWLINE, 70, 71, CLOSE, 72, 5, 6, STOP]
    assert script.calls == [[((1, 2, OPEN, NEWLINE, 70, 71, CLOSE, 72), 14)]]
    assert count(completion.token_ids, completion.loss_mask, TOKENS) == Count(0, 6, 3)
    assert completion.rollout(finish=FINISH_STOP, text="").policy_version.tolist() == [1] * 9


def test_a_prompt_that_opened_the_block_needs_no_opening() -> None:
    opened = BudgetTokens(end_think=(CLOSE,), stop_text=(70, CLOSE))
    assert first_call(0, 10, opened) == Call((70, CLOSE), 8)
    assert second_call([1, 2], FINISH_LENGTH, 2, 10, opened) == Call((70, CLOSE), 6)


def test_a_completion_that_does_not_think_is_not_interrupted() -> None:
    completion, _, _ = run([5, 6, 7, 8, STOP], 2, 20)
    assert completion.token_ids.tolist() == [5, 6, 7, 8, STOP]
    assert count(completion.token_ids, completion.loss_mask, TOKENS) == Count(0, 0, 5)
    late, _, _ = run([5, 6, OPEN, 7, CLOSE, STOP], 2, 20)  # a thought inside an answer is part of it
    assert late.token_ids.tolist() == [5, 6, OPEN, 7, CLOSE, STOP]


@pytest.mark.parametrize("budget", [6, 7, 10, 11])  # 6 + 4 inserted leave nothing of 10 for an answer
def test_a_budget_without_room_for_an_answer_is_plain_generation(budget: int) -> None:
    completion, finish, script = run([OPEN, *range(1, 20)], budget, 10)
    assert script.calls == [[((1, 2), 10)]]
    assert (len(completion), finish) == (10, FINISH_LENGTH)
    assert run([OPEN, *range(1, 20)], 5, 10)[0].token_ids.tolist() == [OPEN, 1, 2, 3, 4, 70, 71, CLOSE, 72, 5]


def test_an_engine_that_stops_before_the_budget_has_ended_the_completion() -> None:
    assert second_call([OPEN, 1], FINISH_LENGTH, 5, 20, TOKENS) is None  # its own limit of length
    assert second_call([OPEN, 1, 2, 3, 4], FINISH_ABORT, 5, 20, TOKENS) is None


def test_a_closing_tag_of_several_tokens() -> None:
    tokens = BudgetTokens(end_think=(7, 8), stop_text=(6, 7, 8))
    assert is_thinking([1, 7, 7], tokens)
    assert not is_thinking([1, 7, 7, 8], tokens)
    assert count(np.array([1, 7, 8, 2]), np.ones(4, dtype=bool), tokens) == Count(3, 0, 1)


def test_what_cannot_be_planned_is_said() -> None:
    with pytest.raises(ValueError, match="expected a total of at least 1 token, got 0"):
        first_call(None, 0)
    with pytest.raises(ValueError, match="expected a budget >= 0 and the ids of its stop text, got -1"):
        first_call(-1, 5, TOKENS)
    with pytest.raises(ValueError, match="asked for 3 tokens, got 4"):
        second_call([1, 2, 3, 4], FINISH_LENGTH, 3, 20, TOKENS)
    with pytest.raises(ValueError, match="the thought it interrupts stays open"):
        BudgetTokens(end_think=(CLOSE,), stop_text=(70,))
    with pytest.raises(ValueError, match="one budget a prompt, got 0 for 1"):
        generate_within([np.array([1])], [], 5, TOKENS, Script([[1]]))
    with pytest.raises(ValueError, match="no finite logprob"):
        Sample(np.array([1]), np.array([np.nan]), np.array([0]), FINISH_STOP)


# --- properties -----------------------------------------------------------------------------------------------------

texts = st.lists(st.sampled_from([1, 2, 3, OPEN, CLOSE, STOP, NEWLINE]), max_size=14)


def ended(text: list[int]) -> list[int]:
    """A sampler says nothing after its stop id, and this one always ends."""
    return [*(text[: text.index(STOP)] if STOP in text else text), STOP]


@settings(max_examples=300, deadline=None)
@example(text=[1, 1, OPEN, 2, 2, CLOSE], budget=2, total=20)
@given(text=texts, budget=st.none() | st.integers(0, 16), total=st.integers(1, 24))
def test_every_token_is_accounted_for(text: list[int], budget: int | None, total: int) -> None:
    script = ended(text)
    completion, finish, sampler = run(script, budget, total)
    ids, mask = completion.token_ids, completion.loss_mask
    counted = count(ids, mask, TOKENS)
    assert counted.thinking + counted.inserted + counted.answer == len(ids) <= total
    assert counted.inserted in (0, 4, 6)
    assert counted.thinking + counted.answer == completion.num_sampled == int(mask.sum())
    sampled = ids[mask].tolist()
    assert sampled == script[: len(sampled)]  # verbatim, in order
    assert (finish == FINISH_STOP) == (sampled[-1:] == [STOP])
    assert len(sampler.calls) <= 2
    if counted.inserted:
        assert budget is not None
        first = int(np.argmin(mask))
        assert first == budget  # neither early nor late
        assert counted.thinking <= budget
        assert tuple(ids[~mask]) == (TOKENS.open_text if budget == 0 else ()) + TOKENS.stop_text
    if budget is not None and budget + 6 < total and (budget == 0 or OPEN in script[:budget]):
        assert counted.thinking <= budget


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(texts, min_size=1, max_size=4), total=st.integers(1, 20))
def test_without_a_budget_it_is_plain_generation(texts: list[list[int]], total: int) -> None:
    """The same single call, and the same tokens."""
    prompts = [np.array([k], dtype=np.int32) for k in range(len(texts))]
    ours, plain = Script([ended(text) for text in texts]), Script([ended(text) for text in texts])
    found = generate_within(prompts, [None] * len(texts), total, None, ours)
    expected = plain(prompts, [total] * len(texts), list(range(len(texts))))
    assert ours.calls == plain.calls
    for (completion, finish), one in zip(found, expected, strict=True):
        assert completion.token_ids.tolist() == one.token_ids.tolist()
        assert finish == one.finish


@settings(max_examples=100, deadline=None)
@given(
    batch=st.lists(st.tuples(texts, st.none() | st.integers(0, 16)), min_size=1, max_size=5), total=st.integers(1, 24)
)
def test_a_batch_of_different_budgets_is_each_of_them_alone(
    batch: list[tuple[list[int], int | None]], total: int
) -> None:
    scripts = [ended(text) for text, _ in batch]
    prompts = [np.array([1, 2], dtype=np.int32) for _ in batch]
    together = generate_within(prompts, [budget for _, budget in batch], total, TOKENS, Script(scripts))
    for (completion, finish), script, (_, budget) in zip(together, scripts, batch, strict=True):
        alone, alone_finish, _ = run(script, budget, total)
        assert completion.token_ids.tolist() == alone.token_ids.tolist()
        assert completion.loss_mask.tolist() == alone.loss_mask.tolist()
        assert finish == alone_finish


# --- with tokenizers ------------------------------------------------------------------------------------------------


def test_the_official_text_is_24_tokens_of_qwen3(tmp_path: Path) -> None:
    if not QWEN3.exists():
        pytest.skip(f"{QWEN3} is absent: Qwen3's published tokenizer is needed for this comparison")
    with gzip.open(QWEN3) as packed, open(tmp_path / "tokenizer.json", "wb") as file:
        shutil.copyfileobj(packed, file)
    tokens = budget_tokens(load_tokenizer(tmp_path))
    assert len(tokens.stop_text) == 24
    assert (tokens.end_think, tokens.open_think) == ((151668,), (151667,))
    assert tokens.stop_text.count(151668) == 1


def test_a_trained_tokenizer_has_one_id_for_each_tag(tmp_path: Path) -> None:
    tokenizer = train_bpe(["thinking of the answer\n\n"] * 9, 320, tmp_path)
    tokens = budget_tokens(tokenizer)
    assert len(tokens.end_think) == len(tokens.open_think) == 1
    assert tokenizer.decode(tokens.stop_text) == STOP_TEXT
    assert tokenizer.decode(tokens.open_text) == "<think>\n"
    assert budget_tokens(tokenizer, opened=True).open_think == ()
    with pytest.raises(ValueError, match="expected a stop text with </think> in it, got 'enough'"):
        budget_tokens(tokenizer, "enough")
