"""The conversation behind `rlplatform chat`, with an engine that repeats what it is told."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rlplatform.chat import NOT_THINKING, THINKING, Conversation, styled
from rlplatform.types import SamplingParams


class Parrot:
    def __init__(self, pieces: list[tuple[str, bool]]) -> None:
        self.pieces = pieces
        self.asked: list[tuple[str, SamplingParams, int]] = []
        self.tokenizer: Any = SimpleNamespace(apply_chat_template=self._render)
        self.tokenizer = _Tokenizer()

    def _render(self, messages: Any, **_: Any) -> str:
        return repr(messages)

    def stream(self, prompt: np.ndarray, sampling: SamplingParams, seed: int) -> Iterator[tuple[str, bool]]:
        self.asked.append((bytes(prompt.astype(np.uint8)).decode(), sampling, seed))
        yield from self.pieces


class _Tokenizer:
    def apply_chat_template(self, messages: Any, **_: Any) -> str:
        return "|".join(f"{m['role']}:{m['content']}" for m in messages)

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}


def conversation(*pieces: tuple[str, bool]) -> tuple[Conversation, Parrot]:
    engine = Parrot(list(pieces) or [("hi", True)])
    return Conversation(engine, max_new_tokens=32, stop_text="</think>"), engine


def test_the_model_sees_everything_said_and_each_answer_has_its_own_seed() -> None:
    talk, engine = conversation(("<think>\n\n</think>\n\nyes", True))
    assert "".join(text for text, _ in talk.answer("one /no_think")) == "<think>\n\n</think>\n\nyes"
    list(talk.answer("two"))
    assert engine.asked[1][0] == "user:one /no_think|assistant:<think>\n\n</think>\n\nyes|user:two"
    assert engine.asked[0][2] != engine.asked[1][2]


def test_sampling_follows_the_last_flag() -> None:
    talk, engine = conversation()
    for text in ("a", "b /no_think", "c", "d /think", "not a flag: x/no_think"):
        list(talk.answer(text))
    temperatures = [sampling.temperature for _, sampling, _ in engine.asked]
    assert temperatures == [THINKING.temperature, *[NOT_THINKING.temperature] * 2, *[THINKING.temperature] * 2]


def test_commands() -> None:
    talk, engine = conversation()
    assert talk.command(":budget 7") == "thinking budget: 7 tokens"
    list(talk.answer("x"))
    assert engine.asked[0][1].thinking_budget == 7
    assert talk.command(":budget off") == "no thinking budget"
    assert talk.budget is None
    assert "expected a number" in str(talk.command(":budget many"))
    talk.command(":system be brief")
    assert talk.messages == [{"role": "system", "content": "be brief"}]
    list(talk.answer("y"))
    talk.command(":clear")
    assert talk.messages == [{"role": "system", "content": "be brief"}]
    assert "no command :x" in str(talk.command(":x"))
    assert talk.command(":quit") is None


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([("<thi", True), ("nk>a</think>b", True)], [("<thi", "dim"), ("nk>a</think>", "dim"), ("b", "")]),
        ([("plain", True), (" text", True)], [("plain", ""), (" text", "")]),
        (
            [("<think>a", True), ("STOP</think>", False), ("b", True)],
            [("<think>a", "dim"), ("STOP</think>", "yellow"), ("b", "")],
        ),
    ],
)
def test_thoughts_are_dim_and_what_was_inserted_is_marked(
    pieces: list[tuple[str, bool]], expected: list[tuple[str, str]]
) -> None:
    assert list(styled(iter(pieces))) == expected


def test_an_answer_that_is_stopped_is_remembered_as_far_as_it_came() -> None:
    talk, _ = conversation(("a", True), ("b", True))
    stream = talk.answer("x")
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert talk.messages[-1] == {"role": "assistant", "content": "a"}
