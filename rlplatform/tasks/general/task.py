"""What a task of general RL is: a generator of rows, and its reward as data.

A task draws an ``Example``: a question, a worked answer and one that fails, and the columns its rewards read. From that
a row is made in a mode: ``/think``, ``/no_think`` or no flag is sampled for every prompt, and stands at the end of the
last user message or in the system message. The last flag wins and no flag means thinking, as in Qwen3
(arXiv 2505.09388, section 4.3). The report neither lists its tasks nor says how often a flag stands where: all of it
here is this project's own choice.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]
Message = dict[str, str]

ABILITIES = ("instruction", "format", "preference", "agent", "specialised")
KINDS = ("rule", "with_reference", "without_reference")
SPLITS = ("test", "train", "sft")  # drawn in this order: held-out prompts do not depend on the other sizes
LEVELS = (1, 2, 3)
FLAGS = {"think": "/think", "no_think": "/no_think", "none": ""}
FLAG_SHARES: Mapping[str, float] = {"think": 0.25, "no_think": 0.4, "none": 0.35}
SYSTEM_SHARE = 0.2  # of the flags that stand in the system message
MAX_TRIES = 2000  # draws without a new prompt before a task counts as exhausted


@dataclass(frozen=True)
class Turn:
    """An earlier exchange of a dialogue."""

    user: str
    thought: str
    answer: str


@dataclass(frozen=True)
class ToolStep:
    """A call that was made for the last question, and what the tool returned."""

    thought: str
    call: str
    result: str


@dataclass(frozen=True)
class Example:
    """What a task draws, without flags."""

    user: str  # the last question
    thought: str  # a worked thought
    answer: str  # a worked answer: it scores 1
    wrong: str  # an answer that scores less, in the right form
    columns: Mapping[str, Any] = field(default_factory=dict)  # what the rewards read
    wrong_thought: str | None = None  # before ``wrong``; None: the worked one
    system: str = ""
    history: tuple[Turn, ...] = ()
    steps: tuple[ToolStep, ...] = ()
    flags: tuple[str, ...] | None = None  # of the system and of every user message; None: one is sampled

    @property
    def key(self) -> str:
        """Prompts with the same key are the same prompt, whatever their flags."""
        results = (step.result for step in self.steps)
        return "\n\n".join([self.system, *(turn.user for turn in self.history), self.user, *results])


@dataclass(frozen=True, eq=False)
class Task:
    """One task of general RL.

    ``functions`` are entries of a config's ``reward.functions``, without the ``when`` that routes rows to them; their
    weights sum to 1. ``draw(rng, level)`` gives an Example.
    """

    name: str
    ability: str  # one of ABILITIES
    kind: str  # one of KINDS: how the reward judges
    about: str  # one line
    functions: Mapping[str, Any]
    draw: Callable[[random.Random, int], Example]
    languages: tuple[str, ...] = ("en",)

    def __post_init__(self) -> None:
        if self.ability not in ABILITIES or self.kind not in KINDS:
            raise ValueError(
                f"task {self.name}: expected an ability of {ABILITIES} and a kind of {KINDS}, got {self.ability!r} "
                f"and {self.kind!r}"
            )

    def rows(
        self,
        seed: int,
        *,
        num_sft: int = 0,
        num_train: int = 0,
        num_test: int = 0,
        difficulty: int = 1,
        flag_shares: Mapping[str, float] = FLAG_SHARES,
        system_share: float = SYSTEM_SHARE,
    ) -> dict[str, list[Row]]:
        """Splits ``test``, ``train`` and ``sft`` that share no prompt, whatever its flag; equal arguments, equal rows.

        A row has ``id``, ``prompt`` (messages), ``task``, ``ability``, ``difficulty``, ``thinking`` (the mode that its
        flags ask for), ``messages`` (the prompt and a worked answer in that mode, earlier turns too), ``rejected`` (an
        answer in the same mode that scores less) and the columns of its rewards.

        Raises:
            ValueError: a difficulty, share or size out of range, or fewer different prompts than asked for.
        """
        check_modes(flag_shares, system_share)
        sizes = {"test": num_test, "train": num_train, "sft": num_sft}
        if difficulty not in LEVELS or min(sizes.values()) < 0:
            raise ValueError(
                f"task {self.name}: expected a difficulty of {LEVELS} and sizes >= 0, got {difficulty} and {sizes}"
            )
        taken: set[str] = set()
        splits: dict[str, list[Row]] = {}
        for split in SPLITS:
            rng = random.Random(f"general/{self.name}/{seed}/{split}")
            splits[split] = []
            for index in range(sizes[split]):
                example = self._new(rng, difficulty, taken, sizes)
                flags = example.flags or sample_flags(rng, len(example.history) + 1, flag_shares, system_share)
                row = make_row(example, flags, self.name, self.ability, row_id=f"{self.name}-{split}-{index:05d}")
                splits[split].append({**row, "difficulty": difficulty})
        return splits

    def _new(self, rng: random.Random, level: int, taken: set[str], sizes: Mapping[str, int]) -> Example:
        for _ in range(MAX_TRIES):
            example = self.draw(rng, level)
            if example.key not in taken:
                taken.add(example.key)
                return example
        raise ValueError(
            f"task {self.name}: no new prompt after {len(taken)} at difficulty {level}, and the splits {sizes} need "
            f"{sum(sizes.values())}; lower the sizes or the task's weight, or raise the difficulty"
        )


def check_modes(flag_shares: Mapping[str, float], system_share: float) -> None:
    """Raises ValueError for shares of unknown flags, negative ones, or a sum of zero."""
    if not set(flag_shares) <= set(FLAGS) or min(flag_shares.values(), default=-1) < 0 or not sum(flag_shares.values()):
        raise ValueError(f"flag_shares: expected shares >= 0 of {', '.join(FLAGS)}, got {dict(flag_shares)}")
    if not 0 <= system_share <= 1:
        raise ValueError(f"system_share: expected a share from 0 to 1, got {system_share}")


def sample_flags(
    rng: random.Random, num_users: int, flag_shares: Mapping[str, float], system_share: float
) -> tuple[str, ...]:
    """At most one flag: of the system message (the first place) or of the last of ``num_users`` user messages."""
    flag = FLAGS[rng.choices(list(flag_shares), weights=list(flag_shares.values()))[0]]
    in_system = rng.random() < system_share
    return (flag if in_system else "", *[""] * (num_users - 1), "" if in_system else flag)


def modes(flags: Sequence[str]) -> tuple[bool, ...]:
    """Whether each user message is to be answered with a thought; ``flags``: of the system and every user message."""
    thinking, found = flags[0] != "/no_think", []
    for flag in flags[1:]:
        thinking = flag != "/no_think" if flag else thinking
        found.append(thinking)
    return tuple(found)


def in_mode(thought: str, answer: str, *, thinking: bool) -> str:
    """An assistant message: the thought in its block, or the empty block."""
    return f"<think>\n{thought if thinking else ''}\n</think>\n\n{answer}"


def flagged(text: str, flag: str) -> str:
    return f"{text} {flag}".strip()


def make_row(example: Example, flags: tuple[str, ...], task: str, ability: str, *, row_id: str) -> Row:
    """One dataset row. Earlier answers stand in ``prompt`` as a template shows them, without their thoughts, and in
    ``messages`` with them."""
    thinking = modes(flags)
    prompt: list[Message] = []
    if head := flagged(example.system, flags[0]):
        prompt.append({"role": "system", "content": head})
    worked = list(prompt)
    for turn, flag, thinks in zip(example.history, flags[1:], thinking, strict=False):
        user = {"role": "user", "content": flagged(turn.user, flag)}
        prompt += [user, {"role": "assistant", "content": turn.answer}]
        worked += [user, {"role": "assistant", "content": in_mode(turn.thought, turn.answer, thinking=thinks)}]
    last = {"role": "user", "content": flagged(example.user, flags[-1])}
    prompt.append(last)
    worked.append(last)
    for step in example.steps:
        content = in_mode(step.thought, step.call, thinking=thinking[-1])
        result = {"role": "tool", "content": step.result}
        prompt += [{"role": "assistant", "content": content if thinking[-1] else step.call}, result]
        worked += [{"role": "assistant", "content": content}, result]
    wrong_thought = example.thought if example.wrong_thought is None else example.wrong_thought
    answer = in_mode(example.thought, example.answer, thinking=thinking[-1])
    return {
        "id": row_id,
        "prompt": prompt,
        "task": task,
        "ability": ability,
        "thinking": thinking[-1],
        **example.columns,
        "messages": [*worked, {"role": "assistant", "content": answer}],
        "rejected": in_mode(wrong_thought, example.wrong, thinking=thinking[-1]),
    }


def golden(row: Row) -> tuple[str, str]:
    """A completion that gets the full score, and one in the same mode that gets less."""
    return row["messages"][-1]["content"], row["rejected"]
