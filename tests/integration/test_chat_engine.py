"""A conversation's engine: text as it is sampled, the budget's text among it, the same again with the same seed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest

from actors.chat_engine import ChatEngine
from rlplatform.completion import Sample
from rlplatform.config import ModelConfig, RolloutConfig
from rlplatform.types import SamplingParams
from tests.integration import rollout_models as kit

SAMPLING = SamplingParams(max_new_tokens=40, thinking_stop_text="\n</think>\n")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatEngine]:
    path = kit.save(kit.make_model(), tmp_path_factory.mktemp("tiny"))
    with mock.patch.dict(os.environ):
        started = ChatEngine(ModelConfig(path=path), RolloutConfig(kv_cache_gib=0.25), max_model_len=96)
        yield started
        started.close()


def said(engine: ChatEngine, prompt: np.ndarray, sampling: SamplingParams, seed: int = 3) -> list[tuple[str, bool]]:
    """Neighbouring pieces of a kind together."""
    found: list[tuple[str, bool]] = []
    for text, sampled in engine.stream(prompt, sampling, seed):
        if found and found[-1][1] == sampled:
            found[-1] = (found[-1][0] + text, sampled)
        else:
            found.append((text, sampled))
    return found


def test_a_budget_of_nothing_opens_and_ends_the_thought_itself(engine: ChatEngine) -> None:
    prompt = kit.prompt(0, 30).token_ids
    first, *answer = said(engine, prompt, replace(SAMPLING, thinking_budget=0))
    assert first == ("<think>\n\n</think>\n", False)
    assert [sampled for _, sampled in answer] in ([True], [])


def test_calls_are_those_of_the_budget_and_go_on_from_all_tokens(engine: ChatEngine) -> None:
    """An answer without a thought, which is all that random weights give: two calls, nothing inserted between them."""
    prompt, inner = kit.prompt(1, 30).token_ids, engine._call
    calls: list[tuple[list[int], int, int, list[int]]] = []

    def watched(ids: list[int], sampling: SamplingParams, seed: int, found: list[Sample]) -> Iterator[str]:
        yield from inner(ids, sampling, seed, found)
        calls.append((ids, sampling.max_new_tokens, seed, found[0].token_ids.tolist()))

    with mock.patch.object(engine, "_call", watched):
        plain = said(engine, prompt, SAMPLING)
        for _ in range(2):
            said(engine, prompt, replace(SAMPLING, thinking_budget=6))
    (_, _, _, free), first, second, *again = calls
    assert first == (prompt.tolist(), 6, 3, free[:6])
    assert second[:2] == ([*prompt.tolist(), *free[:6]], 34)
    assert second[2] != 3
    assert again == [first, second]
    assert said(engine, prompt, SAMPLING) == plain


def test_a_conversation_without_room_is_an_error(engine: ChatEngine) -> None:
    with pytest.raises(ValueError, match="the conversation has 96 tokens, the model takes 96"):
        next(engine.stream(kit.prompt(2, 96).token_ids, SAMPLING, 0))
    assert len(said(engine, kit.prompt(2, 95).token_ids, SAMPLING)) <= 1  # room for one token, which may have no text
