"""The closed vocabularies of the general tasks, and the parts of rewards that many of them share."""

from __future__ import annotations

from typing import Any


def with_article(word: str) -> str:
    """``an owl``, ``a cat``."""
    return f"{'an' if word[0] in 'aeo' else 'a'} {word}"


def split(text: str) -> list[str]:
    return text.split()


NAMES = split("Anna Paul Maria Peter Laura Max Clara Ben Nina Tom Lena Oscar Eva Hugo Ida Jonas Mia Felix Rosa Leo")
CITIES = split(
    "Rome Paris Oslo Berlin Madrid Vienna Lima Cairo Delhi Tokyo Athens Dublin Prague Lisbon Warsaw Sofia Riga Bern "
    "Kyiv Quito"
)
ANIMALS = split("cat dog cow hen duck horse sheep goat frog owl bee ant fox wolf bear mouse")
FRUITS = split("apple pear plum cherry lemon orange banana grape melon peach mango fig")
COLOURS = split("red blue green yellow white black brown grey pink purple")
THINGS = split(
    "lamp book chair table cup box hat key bell boat clock coat door drum flag glove knife map pen plate ring rope "
    "shoe spoon stone tent wheel window basket bottle brush candle ladder mirror pillow ribbon bucket kettle letter "
    "hammer"
)
ADJECTIVES = split("old new big small soft heavy light round clean dry warm cold")
TOPICS = {"animals": ANIMALS, "fruits": FRUITS, "colours": COLOURS, "cities": CITIES}

RULES = "rlplatform.tasks.general.rules"
FORMAT = {"format": 0.2}  # every task but those of the mode: the think block that its flags ask for
CHECKLIST = f"{RULES}:checklist_reward"
ITEMS = f"{RULES}:items_reward"


def part(function: str, weight: float, **settings: Any) -> dict[str, Any]:
    """One entry of ``reward.functions``."""
    return {"function": function, "weight": weight, **settings}
