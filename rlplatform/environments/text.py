"""Episodes without tokens: a policy is a function from messages to text.

For trying an environment out, for the experts whose episodes warm a model up, and for the policies that must fail.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewards.base import Verdict
from rlplatform.environments.base import Environment
from rlplatform.environments.contract import Row
from rlplatform.environments.stage import Ended, Stage
from rlplatform.environments.tools import call_text
from rlplatform.types import Message

Policy = Callable[[Sequence[Message]], str]  # messages so far -> what the assistant says


@dataclass(frozen=True)
class Transcript:
    """One episode in text."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...]
    verdict: Verdict
    num_turns: int


def converse(
    environment: Environment,
    row: Row,
    policy: Policy,
    *,
    max_turns: int = 8,
    seed: int = 0,
    step_timeout_s: float = 10.0,
) -> Transcript:
    """Play one episode; after ``max_turns`` assistant turns it is over."""
    with Stage(step_timeout_s) as stage:
        stage.start(0, environment, row, seed)
        dialogue = stage.dialogue(0)
        while True:
            for event in stage.poll(1.0):
                if isinstance(event, Ended):
                    return Transcript(tuple(dialogue.messages), dialogue.tools, event.verdict, dialogue.num_turns)
                if dialogue.num_turns >= max_turns:
                    stage.refuse(0, f"the limit of {max_turns} turns")
                else:
                    stage.answer(0, {"role": "assistant", "content": policy(list(dialogue.messages))})


def say(content: str, thought: str | None = None) -> str:
    """An assistant's text, with its thought in a block before it; an empty thought is an empty block."""
    return content if thought is None else f"<think>\n{thought}\n</think>\n\n{content}"


def num_results(messages: Sequence[Message]) -> int:
    """Tool messages so far: where a scripted policy is in its script."""
    return sum(message["role"] == "tool" for message in messages)


def script(*steps: str | Callable[[list[str]], str]) -> Policy:
    """A policy that says its steps in turn; a function is given the results of the tools so far. The last repeats."""

    def policy(messages: Sequence[Message]) -> str:
        turn = sum(message["role"] == "assistant" for message in messages)
        step = steps[min(turn, len(steps) - 1)]
        results = [str(message["content"]) for message in messages if message["role"] == "tool"]
        return step if isinstance(step, str) else step(results)

    return policy


# --- policies that must fail ----------------------------------------------------------------------------------------


def wrong_tool(row: Row) -> Policy:
    """Calls a tool that is not there, then gives the row's answer as if it had been told."""
    return script(call_text("no_such_tool", {}), str(row["answer"]))


def wrong_arguments(row: Row, name: str) -> Policy:
    """Calls a tool without what it needs, then gives the row's answer."""
    return script(call_text(name, {"unknown": 1}), str(row["answer"]))


def no_tool(row: Row) -> Policy:
    """Gives the row's answer at once."""
    return script(str(row["answer"]))


def endless(call: str) -> Policy:
    """The same call for ever."""
    return script(call)
