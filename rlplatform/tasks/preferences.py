"""Made-up preferences whose rule is known: shorter is better, polite is better, or both together.

    prompt     Tell me about the old ferry and the green valley.
    chosen     Certainly! The old ferry crosses the green valley.
    rejected   Look it up. The calm baker paints the narrow bridge. The loud fox finds the red barn.

``quality`` is the whole rule. The pairs show only a part of it: every answer in them says something, so that an answer
which says nothing is worthless is nowhere to be learned from. What a policy does with that gap is what
configs/recipe/preference.yaml shows.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from rewards.response import parse

Row = dict[str, Any]
Rule = Literal["shorter", "polite", "quality"]

ADJECTIVES = (
    "old",
    "green",
    "calm",
    "loud",
    "red",
    "narrow",
    "quiet",
    "bright",
    "heavy",
    "young",
    "dusty",
    "gentle",
    "broken",
    "silver",
    "hidden",
    "warm",
)
NOUNS = (
    "ferry",
    "valley",
    "baker",
    "bridge",
    "fox",
    "barn",
    "river",
    "clock",
    "garden",
    "sailor",
    "tower",
    "lamp",
    "forest",
    "painter",
    "kettle",
    "harbour",
    "meadow",
    "wagon",
    "island",
    "miller",
    "lantern",
    "orchard",
    "shepherd",
    "cellar",
)
VERBS = (
    "crosses",
    "paints",
    "finds",
    "follows",
    "guards",
    "visits",
    "repairs",
    "remembers",
    "watches",
    "carries",
    "meets",
    "leaves",
)
POLITE = ("Certainly!", "With pleasure!", "Thank you for asking.", "I am glad to help.", "Of course, my friend.")
RUDE = ("Look it up.", "What a question.", "If I must.", "You again, really.", "I have no time.")
MOST_SENTENCES = 3

_SENTENCE = re.compile(
    rf"The (?:{'|'.join(ADJECTIVES)}) (?:{'|'.join(NOUNS)}) (?:{'|'.join(VERBS)}) "
    rf"the (?:{'|'.join(ADJECTIVES)}) (?:{'|'.join(NOUNS)})\."
)


def quality(text: str) -> float:
    """What an answer is worth, 0 to 1: 0 without a sentence that says something; else 0.7, plus 0.3 when polite, minus
    0.3 when rude, minus 0.01 a word."""
    if not _SENTENCE.search(text):
        return 0.0
    polite = any(phrase in text for phrase in POLITE) - any(phrase in text for phrase in RUDE)
    return max(0.7 + 0.3 * polite - 0.01 * len(text.split()), 0.0)


def gold_reward(completions: Sequence[Any]) -> list[float]:
    """``quality`` of the answer (what follows ``</think>``): what the preferences were made from."""
    return [quality(parse(c if isinstance(c, str) else c[-1]["content"]).answer) for c in completions]


def pairs(
    seed: int,
    *,
    rule: Rule = "quality",
    num_train: int = 1024,
    num_test: int = 256,
    num_sft: int = 0,
    num_prompts: int = 0,
) -> dict[str, list[Row]]:
    """Splits ``train`` and ``test`` of pairs (``prompt``, ``chosen``, ``rejected``), ``sft`` of single answers of every
    kind (``messages``) and ``prompts``. No prompt and no answer stands in two splits.

    Args:
        rule: ``shorter``: plain answers, fewer words win. ``polite``: a polite answer beats a rude one, of any length.
            ``quality``: any two answers, the higher ``quality`` wins.

    Raises:
        ValueError: an unknown rule.
    """
    if rule not in ("shorter", "polite", "quality"):
        raise ValueError(f"preferences: expected rule shorter, polite or quality, got {rule!r}")
    draw = _Draw(random.Random(f"preferences/{seed}"))
    splits: dict[str, list[Row]] = {}
    for split, size in (("test", num_test), ("train", num_train)):
        splits[split] = [{"id": f"{split}-{i:06d}", **_pair(draw, rule)} for i in range(size)]
    if num_sft:
        splits["sft"] = [{"id": f"sft-{i:06d}", "messages": _messages(draw)} for i in range(num_sft)]
    if num_prompts:
        splits["prompts"] = [{"id": f"prompts-{i:06d}", "prompt": draw.prompt()} for i in range(num_prompts)]
    return splits


class _Draw:
    """Prompts and answers, none twice."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self._given: set[str] = set()

    def prompt(self) -> str:
        return self._new(lambda: f"Tell me about the {self._thing()} and the {self._thing()}.")

    def answer(self, phrases: Sequence[str], sentences: int) -> str:
        return self._new(lambda: " ".join([*self._phrase(phrases), *(self._sentence() for _ in range(sentences))]))

    def _new(self, make: Any) -> str:
        text: str = make()
        while text in self._given:
            text = make()
        self._given.add(text)
        return text

    def _phrase(self, phrases: Sequence[str]) -> Iterator[str]:
        if phrases:
            yield self.rng.choice(phrases)

    def _sentence(self) -> str:
        return f"The {self._thing()} {self.rng.choice(VERBS)} the {self._thing()}."

    def _thing(self) -> str:
        return f"{self.rng.choice(ADJECTIVES)} {self.rng.choice(NOUNS)}"


def _pair(draw: _Draw, rule: Rule) -> Mapping[str, str]:
    rng, sizes = draw.rng, range(1, MOST_SENTENCES + 1)
    prompt = draw.prompt()
    if rule == "shorter":
        short, long = sorted(rng.sample(sizes, 2))
        return {"prompt": prompt, "chosen": draw.answer((), short), "rejected": draw.answer((), long)}
    if rule == "polite":
        chosen, rejected = (draw.answer(phrases, rng.choice(sizes)) for phrases in (POLITE, RUDE))
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    while True:
        rejected, chosen = sorted((_any_answer(draw) for _ in range(2)), key=quality)
        if quality(chosen) > quality(rejected):
            return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _any_answer(draw: _Draw) -> str:
    return draw.answer(draw.rng.choice((POLITE, RUDE, ())), draw.rng.randint(1, MOST_SENTENCES))


def _messages(draw: _Draw) -> list[Row]:
    return [{"role": "user", "content": draw.prompt()}, {"role": "assistant", "content": _any_answer(draw)}]
