"""Format following: think or not as the flags say, boxes, marks and case. How it is said counts, not what."""

from __future__ import annotations

import random

from rlplatform.tasks.general.task import Example, Task, Turn
from rlplatform.tasks.general.words import ADJECTIVES, ANIMALS, COLOURS, FORMAT, FRUITS, THINGS, part, with_article

_MARKS = {
    "square brackets": ("[", "]"),
    "double quotation marks": ('"', '"'),
    "round brackets": ("(", ")"),
    "two stars on each side": ("**", "**"),
    "angle brackets": ("<", ">"),
}
_CASES = {"in capital letters": str.upper, "in small letters": str.lower, "with a capital for each word": str.title}


def _echo(rng: random.Random) -> tuple[str, str, str]:
    """(request, thought, answer): two words to say."""
    said = f"{rng.choice(COLOURS)} {rng.choice(THINGS)}"
    return f"Say: {said}", f"The words are {said}.", said


def _easy(rng: random.Random, level: int) -> tuple[str, str, str]:
    """(request, thought, answer): words to say; at level 3 also what something is."""
    if level < 3 or rng.random() < 0.5:
        return _echo(rng)
    kind, words = rng.choice((("animal", ANIMALS), ("fruit", FRUITS)))
    word = rng.choice(words)
    return f"What is {with_article(word)}? At most 8 words.", f"{word}: {kind}.", f"It is {with_article(kind)}."


def _wrong(rng: random.Random, answer: str) -> str:
    return rng.choice([thing for thing in THINGS if thing not in answer])


def mode_single(rng: random.Random, level: int) -> Example:
    said = " ".join([rng.choice(ADJECTIVES), rng.choice(COLOURS), *rng.sample(THINGS, level)])
    return Example(
        user=f"Repeat: {said}",
        thought=f"The words are {said}.",
        answer=said,
        wrong=_wrong(rng, said),
        columns={"answer": said},
    )


def mode_dialogue(rng: random.Random, level: int) -> Example:
    """Flags at random user turns, none at some; the last one wins. Up to seven turns at level 3."""
    turns = [Turn(*_easy(rng, level)) for _ in range(rng.randint(1, 2 * level))]
    user, thought, answer = _easy(rng, level)
    flags = ("", *(rng.choice(("/think", "/no_think", "")) for _ in range(len(turns) + 1)))
    return Example(
        user=user,
        thought=thought,
        answer=answer,
        wrong=_wrong(rng, answer),
        columns={"answer": answer},
        history=tuple(turns),
        flags=flags,
    )


def mode_system(rng: random.Random, level: int) -> Example:
    """A flag in the system message, and in one of two prompts another at a user turn."""
    turns = [Turn(*_easy(rng, level)) for _ in range(rng.randint(0, 2 * level - 1))]
    user, thought, answer = _easy(rng, level)
    flags = [rng.choice(("/think", "/no_think")), *[""] * (len(turns) + 1)]
    if rng.random() < 0.5:
        flags[rng.randint(1, len(turns) + 1)] = rng.choice(("/think", "/no_think"))
    return Example(
        user=user,
        thought=thought,
        answer=answer,
        wrong=_wrong(rng, answer),
        columns={"answer": answer},
        system=rng.choice(("", "Answer briefly.", "You are a helper.")),
        history=tuple(turns),
        flags=tuple(flags),
    )


def boxed(rng: random.Random, level: int) -> Example:
    a, b = (rng.randrange(1, 10 ** (level + 1)) for _ in range(2))
    return Example(
        user=f"What is {a} + {b}? Put the answer in \\boxed{{}}.",
        thought=f"{a} + {b} = {a + b}",
        answer=f"\\boxed{{{a + b}}}",
        wrong=f"The answer is {a + b}.",
        columns={"answer": str(a + b)},
    )


def letter_case(rng: random.Random, level: int) -> Example:
    how = rng.choice(list(_CASES))
    text = " ".join([rng.choice(COLOURS), *rng.sample(THINGS, level)])
    given = rng.choice((str.upper, str.lower, str.title))(text)
    answer = _CASES[how](text)
    return Example(
        user=f"Write this {how}: {given}",
        thought=f"{how.capitalize()}: {answer}",
        answer=answer,
        wrong=_CASES["in small letters" if how == "in capital letters" else "in capital letters"](text),
        columns={"answer": answer},
    )


def marks(rng: random.Random, level: int) -> Example:
    how = rng.choice(list(_MARKS))
    left, right = _MARKS[how]
    text = " ".join([rng.choice(COLOURS), *rng.sample(THINGS, level)])
    return Example(
        user=f"Put these words between {how}: {text}",
        thought=f"Between {how}.",
        answer=f"{left}{text}{right}",
        wrong=text,
        columns={"answer": f"{left}{text}{right}"},
    )


_MODE = {"mode": part("format", 0.6), "said": part("exact", 0.4, needs=["mode"])}

TASKS = (
    Task("mode_single", "format", "rule", "think or not as the flag says, in one turn", _MODE, mode_single),
    Task("mode_dialogue", "format", "rule", "flags at random turns of a dialogue, the last wins", _MODE, mode_dialogue),
    Task("mode_system", "format", "rule", "a flag in the system message, perhaps overruled", _MODE, mode_system),
    Task("boxed", "format", "with_reference", "a sum, its result in a box", {**FORMAT, "math": 0.8}, boxed),
    Task("letter_case", "format", "rule", "words in the case asked for", {**FORMAT, "exact": 0.8}, letter_case),
    Task("marks", "format", "rule", "words between the marks asked for", {**FORMAT, "exact": 0.8}, marks),
)
