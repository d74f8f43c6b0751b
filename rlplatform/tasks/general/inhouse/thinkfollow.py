"""ThinkFollow: dialogues whose user turns ask for thinking, for none, or say nothing; does every answer obey?

The report has it as multi-turn dialogues with ``/think`` and ``/no_think`` at random, and says neither how many turns
there are nor how they count (arXiv 2505.09388, section 4.7). Ours: at least four user turns; the last flag wins, a flag
of the system message holds until a user turn has one, and no flag at all means thinking. A turn is followed where its
answer is well-formed in the mode asked for: one closed, non-empty think block and an answer, or an answer alone (an
empty block allowed). A dialogue is followed where all its turns are.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rewards.format import is_well_formed
from rewards.response import parse
from rlplatform.tasks.general.task import Message, Row, flagged, in_mode, modes
from rlplatform.tasks.general.words import ADJECTIVES, ANIMALS, CITIES, COLOURS, FRUITS, THINGS, with_article

_MIN_TURNS = 4
# How a turn came by its mode.
FLAGGED, AFTER_FLAG, AFTER_SYSTEM, NO_FLAG = "flagged", "after_flag", "after_system_flag", "no_flag"
SORTS = (FLAGGED, AFTER_FLAG, AFTER_SYSTEM, NO_FLAG)


def dialogues(
    seed: int,
    *,
    num_test: int = 320,
    num_turns: Sequence[int] = (4, 5, 6),
    flag_share: float = 0.5,
    system_share: float = 0.4,
) -> dict[str, list[Row]]:
    """Split ``test`` of ``num_test`` different dialogues; equal arguments give equal rows.

    A user turn has a flag with probability ``flag_share``, the system message with ``system_share``. In every dialogue
    some turn has a flag and a later one has none. A row has ``id``, ``system`` ("" for none), ``users`` (texts with
    their flags), ``thinking`` (the mode asked for, a turn), ``sorts`` (one of ``SORTS`` a turn) and ``answers`` (what a
    good answer says).

    Raises:
        ValueError: fewer than four turns, or shares out of range.
    """
    if not num_turns or min(num_turns) < _MIN_TURNS:
        raise ValueError(f"thinkfollow: expected numbers of turns >= {_MIN_TURNS}, got {list(num_turns)}")
    if not 0 < flag_share < 1 or not 0 <= system_share <= 1 or num_test < 0:
        raise ValueError(
            "thinkfollow: expected 0 < flag_share < 1, 0 <= system_share <= 1 and num_test >= 0, got "
            f"{flag_share}, {system_share} and {num_test}"
        )
    rng = random.Random(f"general/thinkfollow/{seed}")
    taken: set[tuple[str, ...]] = set()
    rows: list[Row] = []
    while len(rows) < num_test:
        row = _dialogue(rng, rng.choice(list(num_turns)), flag_share, system_share)
        if tuple(row["users"]) not in taken:
            taken.add(tuple(row["users"]))
            rows.append({"id": f"thinkfollow-{len(rows):05d}", **row})
    return {"test": rows}


def _dialogue(rng: random.Random, num_turns: int, flag_share: float, system_share: float) -> Row:
    asked = [_question(rng) for _ in range(num_turns)]
    system_flag = rng.choice(("/think", "/no_think")) if rng.random() < system_share else ""
    while True:
        flags = [rng.choice(("/think", "/no_think")) if rng.random() < flag_share else "" for _ in asked]
        first = next((turn for turn, flag in enumerate(flags) if flag), num_turns)
        if not all(flags[first:]):
            break
    return {
        "system": flagged(rng.choice(("", "Answer briefly.", "You are a helper.")), system_flag),
        "users": [flagged(question, flag) for (question, _), flag in zip(asked, flags, strict=True)],
        "thinking": list(modes([system_flag, *flags])),
        "sorts": [_sort(system_flag, flags[: turn + 1]) for turn in range(num_turns)],
        "answers": [answer for _, answer in asked],
    }


def _sort(system_flag: str, flags: Sequence[str]) -> str:
    if flags[-1]:
        return FLAGGED
    if any(flags):
        return AFTER_FLAG
    return AFTER_SYSTEM if system_flag else NO_FLAG


def _question(rng: random.Random) -> tuple[str, str]:
    """Something easy, and its answer."""
    said = f"{rng.choice(COLOURS)} {rng.choice(THINGS)}"
    a, b = rng.randint(1, 99), rng.randint(1, 99)
    kind, words = rng.choice([("an animal", ANIMALS), ("a fruit", FRUITS), ("a city", CITIES)])
    word = rng.choice(words)
    named = word if kind == "a city" else with_article(word)
    adjective = rng.choice(ADJECTIVES)
    return rng.choice(
        [
            (f"Say: {said}", said),
            (f"Repeat: {adjective} {said}", f"{adjective} {said}"),
            (f"What is {a} + {b}? Put the answer in \\boxed{{}}.", f"\\boxed{{{a + b}}}"),
            (f"What is {named}? At most 8 words.", f"It is {kind}."),
        ]
    )


# --- asking and scoring ---------------------------------------------------------------------------------------------


def prompt_of(row: Row, replies: Sequence[str]) -> list[Message]:
    """The messages that ask for the next answer, after these replies; earlier thoughts are left out, as Qwen3's chat
    template leaves them out."""
    messages: list[Message] = [{"role": "system", "content": row["system"]}] if row["system"] else []
    for user, reply in zip(row["users"], replies, strict=False):
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": parse(reply).answer}]
    return [*messages, {"role": "user", "content": row["users"][len(replies)]}]


def followed(row: Row, replies: Sequence[str]) -> list[bool]:
    """Whether each reply, as sampled, is in the mode asked for. Raises ValueError where there is not one a turn."""
    if len(replies) != len(row["users"]):
        raise ValueError(f"thinkfollow: {row['id']}: expected {len(row['users'])} replies, got {len(replies)}")
    return [
        is_well_formed(reply, thinking=thinking, opened=False)
        for reply, thinking in zip(replies, row["thinking"], strict=True)
    ]


@dataclass(frozen=True)
class ThinkFollowScore:
    """Shares from 0 to 1."""

    per_turn: float
    per_dialogue: float
    by_sort: dict[str, float]  # per turn, of the sorts of turns that there are
    num_turns: int
    num_dialogues: int


def score(rows: Sequence[Row], replies: Sequence[Sequence[str]]) -> ThinkFollowScore:
    """Raises ValueError for no dialogue at all, or replies that do not fit the rows."""
    if not rows or len(rows) != len(replies):
        raise ValueError(f"thinkfollow: expected replies for {len(rows)} dialogues (at least 1), got {len(replies)}")
    good = [followed(row, said) for row, said in zip(rows, replies, strict=True)]
    flat = [
        (sort, ok) for row, turns in zip(rows, good, strict=True) for sort, ok in zip(row["sorts"], turns, strict=True)
    ]
    by_sort = {sort: [ok for other, ok in flat if other == sort] for sort in SORTS}
    return ThinkFollowScore(
        per_turn=sum(ok for _, ok in flat) / len(flat),
        per_dialogue=sum(map(all, good)) / len(good),
        by_sort={sort: sum(found) / len(found) for sort, found in by_sort.items() if found},
        num_turns=len(flat),
        num_dialogues=len(good),
    )


def golden(row: Row) -> tuple[list[str], list[str]]:
    """Replies that follow every turn, and the same with the last one in the other mode."""
    said = list(zip(row["thinking"], row["answers"], strict=True))
    right = [in_mode("This is easy.", answer, thinking=thinking) for thinking, answer in said]
    thinking, answer = said[-1]
    return right, [*right[:-1], in_mode("This is easy.", answer, thinking=not thinking)]


def worked(row: Row) -> list[dict[str, Any]]:
    """The whole dialogue with answers in their modes, as supervised training takes it."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": row["system"]}] if row["system"] else []
    for user, reply in zip(row["users"], golden(row)[0], strict=True):
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": reply}]
    return messages
