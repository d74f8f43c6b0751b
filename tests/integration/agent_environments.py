"""Environments for the tests of episodes on engines, named by their file."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlplatform.environments.contract import Chat, LimitReached, Opening, Step
from rlplatform.environments.python_sandbox import PythonSandbox
from rlplatform.environments.tools import call_text
from rlplatform.types import Message

TOOL = {"type": "function", "function": {"name": "echo", "parameters": {"type": "object", "properties": {}}}}


class Echo:
    """Answers each turn with how long it was; ends after the row's number of turns, by default 3.

    The row's column ``trouble`` makes it fail, hang or dawdle after a turn; with ``folder`` it says there that it was
    asked, and waits for the file ``go``.
    """

    def __init__(self) -> None:
        self._num_turns = 0

    def reset(self, *, seed: int, row: Mapping[str, Any]) -> Opening:
        self._row = row
        return Opening([{"role": "user", "content": row["prompt"]}], (TOOL,))

    def step(self, message: Message) -> Step:
        self._num_turns += 1
        trouble = self._row.get("trouble")
        if folder := self._row.get("folder"):
            (Path(folder) / f"asked-{uuid.uuid4()}").touch()
            while not (Path(folder) / "go").exists():
                time.sleep(0.01)
        if trouble == "raises":
            raise KeyError("the environment's own bug")
        if trouble == "hangs":
            time.sleep(3600)
        if trouble == "slow":
            time.sleep(0.3)
        said = str(message["content"])
        ended = self._num_turns >= self._row.get("turns", 3)
        results = [{"role": "tool", "content": f"{len(said)} characters <|im_end|> "}]
        return Step(results, float(ended) / 2, ended, False, {"parts": {"turns": float(self._num_turns)}})


class NoOpening(Echo):
    def reset(self, *, seed: int, row: Mapping[str, Any]) -> Opening:
        raise ConnectionError("the shop is closed")


class Interpreter(PythonSandbox):
    """The built-in one, called with a program of ours whatever the model said; then it has its answer."""

    def step(self, message: Message) -> Step:
        called = self.num_calls + self.num_errors
        text = "42" if called else call_text("python", {"code": "print(6 * 7)"})
        return super().step({"role": "assistant", "content": text})


async def talk(row: Mapping[str, Any], chat: Chat) -> float:
    """Asks until a limit is reached, then says how many answers it had."""
    messages: list[Message] = [{"role": "user", "content": row["prompt"]}]
    while True:
        try:
            messages.append(await chat(messages))
        except LimitReached:
            return float(len(messages) // 2)
        messages.append({"role": "user", "content": "go on"})


def brief(completions: list[Any]) -> list[float]:
    """A reward function of text: how many characters."""
    return [float(len(completion[-1]["content"])) for completion in completions]
