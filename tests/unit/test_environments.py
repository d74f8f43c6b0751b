"""The contract of environments: by name, as a text environment or an async function; errors, deadlines, isolation."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from rewards.base import ERROR, NOT_APPLICABLE, OK, TIMEOUT, Verdict
from rlplatform.environments.base import ENVIRONMENTS, Environment, load_environment
from rlplatform.environments.contract import (
    ContractError,
    Dialogue,
    EnvironmentLoadError,
    LimitReached,
    Opening,
    Step,
    read_opening,
    read_step,
)
from rlplatform.environments.stage import Asked, Ended, Stage
from rlplatform.environments.text import converse, script
from rlplatform.types import Message

USER = {"role": "user", "content": "count"}


class Counting:
    """Rewards every turn that is the next number, up to the row's."""

    closed: ClassVar[list[int]] = []

    def __init__(self, *, step_by: int = 1) -> None:
        self._step_by = step_by

    def reset(self, *, seed: int, row: Any) -> Opening:
        self._at, self._until = seed, row["until"]
        return Opening([{"role": "user", "content": f"count from {seed}"}])

    def step(self, message: Message) -> Step:
        self._at += self._step_by
        right = message["content"] == str(self._at)
        done = self._at >= self._until
        info = {"parts": {"last": float(right)}, "detail": "counted"}
        return Step([{"role": "user", "content": "next"}], float(right), terminated=done, info=info)

    def close(self) -> None:
        self.closed.append(self._at)


def counts(step_by: int = 1, start: int = 0) -> Any:
    return lambda messages: str(start + step_by * (1 + sum(m["role"] == "assistant" for m in messages)))


def text(make: Any, **settings: Any) -> Environment:
    return Environment("mine", make, is_function=False, settings=settings)


def function(make: Any, **settings: Any) -> Environment:
    return Environment("mine", make, is_function=True, settings=settings)


# --- by name --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_every_built_in_environment_loads(name: str) -> None:
    environment = load_environment(name, show_tools=False)
    assert not environment.is_function
    assert environment.settings == {"show_tools": False}


SOURCE = """
class Env:
    def __init__(self, *, size=3): ...
    def reset(self, *, seed, row): ...
    def step(self, message): ...

class Half:
    def reset(self, *, seed, row): ...

class Callable:
    async def __call__(self, row, chat): return 1.0

async def chatting(row, chat, *, depth=2): return 1.0

def make(size=1): return Env(size=size)
def needs(size): return Env(size=size)

instance = Env()
conversation = Callable()
number = 3
"""


def test_names_of_files_and_modules(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    assert not load_environment(f"{path}:Env", size=4).is_function
    assert not load_environment(f"{path}:make", size=4).is_function
    assert load_environment(f"{path}:chatting", depth=1).is_function
    assert load_environment(f"{path}:conversation").is_function
    assert load_environment("rlplatform.environments.calculator:Calculator").name.endswith(":Calculator")
    for name, settings, expected in [
        ("instance", {}, "got one instance, which all episodes would share"),
        ("number", {}, "got int"),
        ("Half", {}, "a class with reset and step, it has no step"),
        ("needs", {}, "cannot be called as NAME.*missing a required argument: 'size'"),
        ("Env", {"depth": 1}, "unexpected keyword argument 'depth'"),
        ("chatting", {"size": 1}, "cannot be called as async def env.*unexpected keyword argument 'size'"),
        ("Absent", {}, "has no function 'Absent'"),
    ]:
        with pytest.raises(EnvironmentLoadError, match=expected):
            load_environment(f"{path}:{name}", **settings)
    with pytest.raises(EnvironmentLoadError, match=r"expected one of calculator, .*; did you mean 'calculator'\?"):
        load_environment("calculater")
    with pytest.raises(EnvironmentLoadError, match="no file"):
        load_environment(f"{tmp_path}/absent.py:Env")


# --- both forms -----------------------------------------------------------------------------------------------------


def test_a_text_environment_sums_its_rewards_and_is_closed() -> None:
    Counting.closed.clear()
    found = converse(text(Counting), {"until": 3}, counts())
    assert found.verdict == Verdict(3.0, parts={"last": 1.0}, detail="counted")
    assert [message["role"] for message in found.messages] == ["user", "assistant"] + ["user", "assistant"] * 2
    assert converse(text(Counting, step_by=2), {"until": 4}, counts(2)).verdict.score == 2.0
    for _ in range(100):
        if Counting.closed == [3, 4]:
            break
        time.sleep(0.01)
    assert Counting.closed == [3, 4]


def test_a_limit_of_turns_keeps_what_was_rewarded_so_far() -> None:
    found = converse(text(Counting), {"until": 10}, counts(), max_turns=4)
    assert (found.verdict.status, found.verdict.score, found.num_turns) == (OK, 4.0, 4)
    assert found.verdict.detail == "the limit of 4 turns"


def test_an_async_function_chats() -> None:
    async def env(row: Any, chat: Any, *, bonus: float = 0.0) -> float:
        messages = [USER]
        reply = await chat(messages, [{"type": "function"}])
        assert reply["role"] == "assistant"
        await asyncio.sleep(0.001)
        reply = await chat([*messages, reply, {"role": "tool", "content": "more"}])
        return float(reply["content"]) + bonus

    found = converse(function(env, bonus=0.5), {}, script("first", "2"))
    assert found.verdict.score == 2.5
    assert [message["content"] for message in found.messages] == ["count", "first", "more", "2"]
    assert found.tools == ({"type": "function"},)


@pytest.mark.parametrize(
    ("value", "status"),
    [(1, OK), (Verdict(0.25), OK), (None, NOT_APPLICABLE), (float("nan"), ERROR), (True, ERROR), ("1", ERROR)],
)
def test_what_an_async_function_returns(value: Any, status: str) -> None:
    async def env(row: Any, chat: Any) -> Any:
        return value

    assert converse(function(env), {}, script("")).verdict.status == status


def test_an_async_function_may_grade_what_there_is_at_the_limit() -> None:
    async def catches(row: Any, chat: Any) -> float:
        messages = [USER]
        try:
            while True:
                messages += [await chat(messages), USER]
        except LimitReached:
            return 0.5

    async def lets_it_pass(row: Any, chat: Any) -> float:
        messages = [USER]
        while True:
            messages += [await chat(messages), USER]

    assert converse(function(catches), {}, script("x"), max_turns=2).verdict.score == 0.5
    verdict = converse(function(lets_it_pass), {}, script("x"), max_turns=2).verdict
    assert verdict == Verdict(0.0, detail="the limit of 2 turns")


def test_gymnasium_environments_play() -> None:
    gymnasium = pytest.importorskip("gymnasium", reason="gymnasium comes with ray[rllib]")

    class Guess(gymnasium.Env):  # type: ignore[misc,name-defined]
        action_space = gymnasium.spaces.Text(10)
        observation_space = gymnasium.spaces.Text(10)

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
            super().reset(seed=seed)
            self._number = options["row"]["number"]
            return "guess", {}

        def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
            assert isinstance(action, str)
            guess = int(action)
            return (
                ("higher" if guess < self._number else "lower"),
                float(guess == self._number),
                guess == self._number,
                False,
                {},
            )

    def policy(messages: Sequence[Message]) -> str:
        low = [int(m["content"].split("\n")[-1]) for m in messages if m["role"] == "assistant"]
        return f"<think>\nhm\n</think>\n\n{1 + (low[-1] if low else 4)}"

    found = converse(text(Guess), {"number": 7}, policy)
    assert (found.verdict.score, found.num_turns) == (1.0, 3)
    assert [m["content"] for m in found.messages if m["role"] == "user"] == ["guess", "higher", "higher"]


# --- what an environment gets wrong ---------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError("of mine"), SystemExit(3), StopIteration(), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["init", "reset", "step", "async"])
def test_its_exception_is_an_error_and_no_score(error: BaseException, where: str) -> None:
    class Broken(Counting):
        def __init__(self) -> None:
            if where == "init":
                raise error
            super().__init__()

        def reset(self, **kwargs: Any) -> Opening:
            if where == "reset":
                raise error
            return super().reset(**kwargs)

        def step(self, message: Message) -> Step:
            raise error

    async def env(row: Any, chat: Any) -> float:
        await chat([USER])
        raise error

    environment = function(env) if where == "async" else text(Broken)
    verdict = converse(environment, {"until": 3}, counts()).verdict
    assert (verdict.status, verdict.score) == (ERROR, 0.0)
    assert "environment 'mine' raised" in verdict.detail
    if isinstance(error, ValueError):
        assert "test_environments.py" in verdict.detail  # a traceback into the user's own file
        assert "of mine" in verdict.detail


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (([], 0.0, False, False, {}), "expected messages or text, got"),
        (("x", float("nan"), False, False, {}), "expected a finite reward, got nan"),
        (("x", True, False, False, {}), "expected a finite reward, got True"),
        (("x", 0.0, "no", False, {}), "terminated: expected true or false, got 'no'"),
        (("x", 0.0), "expected .messages, reward, terminated, truncated, info., got"),
        ((3, 0.0, False, False, {}), "expected messages or text, got '3'"),
        (([{"role": "assistant", "content": "I"}], 0.0, False, False, {}), "the assistant's are the model's"),
        (([{"role": "tool", "content": ["part"]}], 0.0, False, False, {}), "expected content to be a string"),
    ],
)
def test_a_step_against_the_contract_is_an_error(step: Any, expected: str) -> None:
    class Broken(Counting):
        def step(self, message: Message) -> Any:
            return step

    verdict = converse(text(Broken), {"until": 3}, counts()).verdict
    assert verdict.status == ERROR
    with pytest.raises(ContractError, match=expected):
        raise ContractError(verdict.detail)


def test_openings_and_steps_in_every_notation() -> None:
    assert read_opening("hi", "e") == Opening([{"role": "user", "content": "hi"}])
    assert read_opening(("hi", {"tools": [{}]}), "e").tools == ({},)
    assert read_opening({"messages": [USER], "tools": [{}]}, "e") == Opening([USER], ({},))
    assert read_opening([USER], "e") == Opening([USER])
    with pytest.raises(ContractError, match="reset: expected messages or text"):
        read_opening(3, "e")
    assert read_step(("", 1, True, False, None), "e").reward == 1.0


def test_a_history_is_only_continued() -> None:
    dialogue = Dialogue()
    with pytest.raises(ContractError, match="expected a list of messages, got str"):
        dialogue.extend("hello")
    assert dialogue.extend([USER], [{"name": "f"}]) == [USER]
    dialogue.reply({"role": "assistant", "content": "a"})
    with pytest.raises(ContractError, match="message 0: the history was rewritten"):
        dialogue.extend([{"role": "user", "content": "other"}, dialogue.messages[1], USER])
    with pytest.raises(ContractError, match="expected new messages after the 2 so far"):
        dialogue.extend(dialogue.messages)
    with pytest.raises(ContractError, match="the tools are part of the first prompt"):
        dialogue.extend([*dialogue.messages, USER], [{"name": "g"}])
    with pytest.raises(ContractError, match="roles tool, user or system"):
        dialogue.extend([*dialogue.messages, {"role": "assistant", "content": "b"}, USER])
    annotated = [dialogue.messages[0], {**dialogue.messages[1], "tool_calls": []}, USER]
    assert dialogue.extend(annotated, [{"name": "f"}]) == [USER]
    with pytest.raises(ContractError, match="whose turn it is"):
        Dialogue().extend([USER, {"role": "assistant", "content": "a"}])


def test_an_episode_is_one_line_of_turns() -> None:
    async def env(row: Any, chat: Any) -> float:
        await asyncio.gather(chat([USER]), chat([USER]))
        return 1.0

    verdict = converse(function(env), {}, script("a")).verdict
    assert verdict.status == ERROR
    assert "chat was called again before it answered" in verdict.detail


# --- deadlines ------------------------------------------------------------------------------------------------------


def test_a_step_past_its_deadline_is_a_timeout_and_holds_nobody_up() -> None:
    release = threading.Event()

    class Hangs(Counting):
        def step(self, message: Message) -> Step:
            release.wait(20)
            return super().step(message)

    ended: dict[int, Verdict] = {}
    try:
        with Stage(step_timeout_s=2.0) as stage:
            for key, make in enumerate((Hangs, Counting, Hangs, Counting)):
                stage.start(key, text(make), {"until": 3}, seed=0)
            order = []
            while len(ended) < 4:
                for event in stage.poll(5.0):
                    if isinstance(event, Ended):
                        ended[event.key] = event.verdict
                        order.append(event.key)
                    else:
                        stage.answer(
                            event.key, {"role": "assistant", "content": counts()(stage.dialogue(event.key).messages)}
                        )
    finally:
        release.set()
    assert sorted(order[:2]) == [1, 3]
    assert ended[1].score == ended[3].score == 3.0
    for key in (0, 2):
        assert ended[key].status == TIMEOUT
        assert ended[key].detail == "environment 'mine': no answer within 2 s after turn 1"


def test_the_models_own_time_is_not_the_environments() -> None:
    with Stage(step_timeout_s=1.0) as stage:
        stage.start(0, text(Counting), {"until": 1}, seed=0)
        (asked,) = stage.poll(5.0)
        assert isinstance(asked, Asked)
        time.sleep(1.3)
        assert stage.poll(0.0) == []
        stage.answer(0, {"role": "assistant", "content": "1"})
        (ended,) = stage.poll(5.0)
        assert isinstance(ended, Ended)
        assert ended.verdict.score == 1.0


def test_an_async_environment_that_blocks_is_named_and_later_ones_are_spared() -> None:
    release = threading.Event()

    async def blocks(row: Any, chat: Any) -> float:
        release.wait(20)
        return 1.0

    async def fine(row: Any, chat: Any) -> float:
        return 1.0

    try:
        with Stage(step_timeout_s=2.0) as stage:
            stage.start(0, function(blocks), {}, 0)
            (ended,) = stage.poll(10.0)
            assert isinstance(ended, Ended)
            assert ended.verdict.status == TIMEOUT
            assert "blocks it instead of awaiting" in ended.verdict.detail
            stage.start(1, function(fine), {}, 0)
            (ended,) = stage.poll(10.0)
            assert isinstance(ended, Ended)
            assert ended.verdict.score == 1.0
    finally:
        release.set()


def test_a_stage_is_used_as_it_says() -> None:
    with Stage() as stage:
        stage.start(0, text(Counting), {"until": 1}, seed=0)
        with pytest.raises(ValueError, match="episode 0 plays already"):
            stage.start(0, text(Counting), {"until": 1}, seed=0)
        stage.poll(5.0)
        stage.answer(0, {"role": "assistant", "content": "1"})
        with pytest.raises(ValueError, match="episode 0 has not asked for a turn"):
            stage.answer(0, {"role": "assistant", "content": "1"})
        stage.cancel(0)
        assert stage.poll(0.05) == []
    with pytest.raises(ValueError, match="step_timeout_s > 0, got 0"):
        Stage(0)


def test_state_does_not_leak_between_interleaved_episodes() -> None:
    """All interleavings of two episodes of three turns."""
    for order in sorted(set(itertools.permutations([0] * 3 + [1] * 3))):
        environment, scores, said = text(Counting), {}, [0, 0]
        with Stage() as stage:
            for key in (0, 1):
                stage.start(key, environment, {"until": 10 * key + 3}, seed=10 * key)
            asked: set[int] = set()
            for key in (*order, 0, 1):
                while key not in asked and key not in scores:
                    for event in stage.poll(5.0):
                        if isinstance(event, Ended):
                            scores[event.key] = event.verdict.score
                        else:
                            asked.add(event.key)
                if key not in scores:
                    asked.discard(key)
                    said[key] += 1
                    stage.answer(key, {"role": "assistant", "content": str(10 * key + said[key])})
        assert scores == {0: 3.0, 1: 3.0}
