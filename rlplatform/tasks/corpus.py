"""A generated corpus for pretraining in miniature: no licence, no download, its domains known by construction.

sums      rows of additions and subtractions of small numbers
stories   who did what where, in a closed vocabulary
facts     who keeps what; some of it asked for again at the end: what was planted must be found in the context
long      the same with more facts between, for the long-context stage
heldout_sums, heldout_stories, heldout_facts      the same, never trained on
"""

from __future__ import annotations

import random
from typing import Any

from rlplatform.tasks.general.words import ADJECTIVES, ANIMALS, CITIES, COLOURS, FRUITS, NAMES, THINGS, with_article

Row = dict[str, Any]


def documents(
    seed: int,
    *,
    num_sums: int = 3000,
    num_stories: int = 3000,
    num_facts: int = 6000,
    num_long: int = 3000,
    num_heldout: int = 200,
    long_facts: tuple[int, int] = (24, 60),
) -> dict[str, list[Row]]:
    """Rows with ``text`` and ``id`` of every split; equal arguments give equal rows, and no text stands in two splits.

    Raises:
        ValueError: a size below 1.
    """
    sizes = {"sums": num_sums, "stories": num_stories, "facts": num_facts, "long": num_long}
    if min(*sizes.values(), num_heldout) < 1:
        raise ValueError(f"corpus: expected sizes >= 1, got {sizes} and num_heldout={num_heldout}")
    few, many = (2, 12), tuple(long_facts)
    makers = {
        "sums": _sums,
        "stories": _story,
        "facts": lambda rng: _facts(rng, rng.randint(*few)),
        "long": lambda rng: _facts(rng, rng.randint(*many)),
    }
    found: dict[str, list[Row]] = {}
    for name, size in sizes.items():
        rng = random.Random(f"corpus/{seed}/{name}")
        texts: dict[str, None] = {}
        while len(texts) < size + (0 if name == "long" else num_heldout):
            texts.setdefault(makers[name](rng))
        rows = [{"id": f"{name}-{k:05d}", "text": text} for k, text in enumerate(texts)]
        found[name] = rows[:size]
        if name != "long":
            found[f"heldout_{name}"] = rows[size:]
    return found


def _sums(rng: random.Random) -> str:
    lines = []
    for _ in range(rng.randint(3, 8)):
        a, b = rng.randint(1, 60), rng.randint(1, 39)
        lines.append(f"{a} + {b} = {a + b}" if rng.random() < 0.5 else f"{a + b} - {a} = {b}")
    return "\n".join(lines)


def _story(rng: random.Random) -> str:
    name, place = rng.choice(NAMES), rng.choice(CITIES)
    sentences = [f"{name} lives in {place}."]
    for _ in range(rng.randint(2, 6)):
        animal, thing, colour = rng.choice(ANIMALS), rng.choice(THINGS), rng.choice(COLOURS)
        sentences.append(
            rng.choice(
                (
                    f"{name} sees {with_article(animal)} in {rng.choice(CITIES)}.",
                    f"The {animal} has a {colour} {thing}.",
                    f"{name} eats {with_article(rng.choice(FRUITS))} and looks for the {thing}.",
                    f"The {thing} is {rng.choice(ADJECTIVES)} and {colour}.",
                )
            )
        )
    return " ".join(sentences)


def _facts(rng: random.Random, num: int) -> str:
    """``num`` facts of different keys, then some of them again."""
    keys = rng.sample([f"{colour} {animal}" for colour in COLOURS for animal in ANIMALS], num)
    values = {key: rng.choice(THINGS) for key in keys}
    asked = rng.sample(keys, min(num, 2 + num // 4))
    return " ".join([*(fact(key, values[key]) for key in keys), *(fact(key, values[key]) for key in asked)])


def fact(key: str, value: str) -> str:
    """One planted fact; asked for by its text up to the value."""
    return f"The {key} keeps the {value}."
