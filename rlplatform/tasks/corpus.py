"""A generated corpus for pretraining in miniature: no licence, no download, its domains known by construction.

sums      rows of additions and subtractions of small numbers
stories   who did what where, in a closed vocabulary
facts     who keeps what, several of them, some said again at the end
recalls   a password of six words, said three times, with a story between
long      a story of many sentences with a password planted anywhere in it and said again at the end
heldout_sums, heldout_stories, heldout_facts, heldout_recalls      the same, never trained on
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from rlplatform.tasks.general.words import ADJECTIVES, ANIMALS, CITIES, COLOURS, FRUITS, NAMES, THINGS, with_article

Row = dict[str, Any]
QUESTION = "The password is"
WORDS = [*THINGS, *NAMES, *CITIES, *ANIMALS, *COLOURS, *ADJECTIVES, *FRUITS]


def documents(
    seed: int,
    *,
    num_sums: int = 3000,
    num_stories: int = 3000,
    num_facts: int = 6000,
    num_recalls: int = 3000,
    num_long: int = 3000,
    num_heldout: int = 200,
    long_sentences: tuple[int, int] = (36, 58),
) -> dict[str, list[Row]]:
    """Rows with ``text`` and ``id`` of every split; equal arguments give equal rows, and no text stands in two splits.

    Raises:
        ValueError: a size below 1.
    """
    sizes = {"sums": num_sums, "stories": num_stories, "facts": num_facts, "recalls": num_recalls, "long": num_long}
    if min(*sizes.values(), num_heldout) < 1:
        raise ValueError(f"corpus: expected sizes >= 1, got {sizes} and num_heldout={num_heldout}")
    makers = {
        "sums": _sums,
        "stories": _story,
        "facts": lambda rng: " ".join(_facts(rng, rng.randint(2, 12))),
        "recalls": _recall,
        "long": lambda rng: _long(rng, rng.randint(*long_sentences)),
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
    return " ".join(_sentences(rng, rng.randint(2, 6)))


def _sentences(rng: random.Random, num: int) -> list[str]:
    """Somebody, and ``num`` sentences of what happens."""
    name, place = rng.choice(NAMES), rng.choice(CITIES)
    sentences = [f"{name} lives in {place}."]
    for _ in range(num):
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
    return sentences


def _facts(rng: random.Random, num: int) -> list[str]:
    """``num`` facts of different keys, then some of them again."""
    keys = rng.sample([f"{colour} {animal}" for colour in COLOURS for animal in ANIMALS], num)
    values = {key: rng.choice(THINGS) for key in keys}
    asked = rng.sample(keys, min(num, 2 + num // 4))
    return [f"The {key} keeps the {values[key]}." for key in (*keys, *asked)]


def _recall(rng: random.Random) -> str:
    """A password, said three times; a few sentences of a story between, or none."""
    planted = password(rng)
    between = [_sentences(rng, rng.randint(1, 3)) if rng.random() < 0.6 else [] for _ in range(2)]
    return " ".join([planted, *between[0], planted, *between[1], planted])


def _long(rng: random.Random, num_sentences: int) -> str:
    """A password anywhere in a story, and again at its end."""
    sentences, planted = _sentences(rng, num_sentences), password(rng)
    place = rng.randint(0, len(sentences))
    return " ".join([*sentences[:place], planted, *sentences[place:], planted])


def password(rng: random.Random) -> str:
    """One planted fact; asked for by ``QUESTION``."""
    return f"{QUESTION} {' '.join(rng.choice(WORDS) for _ in range(6))}."


# --- looking for it in a long text ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Needle:
    """A text that ends where the planted password is to come."""

    text: str
    answer: str
    depth: float  # where the password stands: 0 at the beginning, 1 at the end


def needles(seed: int, num: int, max_tokens: int, count_tokens: Callable[[str], int]) -> Iterator[Needle]:
    """``num`` texts of at most ``max_tokens`` and nearly as many: stories as ``long`` has them, and one password.

    It stands at depths spread evenly over the texts. Equal arguments give equal texts.

    Raises:
        ValueError: ``max_tokens`` is too small for password and question.
    """
    rng = random.Random(f"needles/{seed}")
    for k in range(num):
        depth = (k + rng.random()) / num
        planted = password(rng)
        left = max_tokens - count_tokens(f"{planted} {QUESTION}")
        if left < 0:
            raise ValueError(f"needles: expected max_tokens >= {max_tokens - left}, got {max_tokens}")
        sentences: list[str] = []
        while True:
            story = _sentences(rng, rng.randint(8, 40))
            sizes = [count_tokens(" " + sentence) for sentence in story]
            taken = 0
            while taken < len(story) and sizes[taken] <= left:
                left -= sizes[taken]
                taken += 1
            sentences += story[:taken]
            if taken < len(story):
                break
        sentences.insert(round(depth * len(sentences)), planted)
        yield Needle(" ".join([*sentences, QUESTION]), planted.removeprefix(QUESTION).strip(" ."), depth)
