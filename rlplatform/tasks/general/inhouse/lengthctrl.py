"""LengthCtrl: short creative writing with a demand on its length.

The report scores the gap between the length demanded and the length produced, and gives no formula (arXiv 2505.09388,
section 4.7). Ours is the `length` reward's: 1 inside the bounds; beyond the nearest bound l, a length x scores
1 - (x/l - 1)/3 when too long and 1 - (l/x - 1)/2 when too short, not below 0 (LongWriter, Bai et al. 2024,
arXiv 2408.07055). Words are counted in the answer alone. Bounds of a demand of n words: ``exactly`` n; ``about`` within
10 % of n; ``between`` as said; ``at least`` n to 2n; ``at most`` n/2 to n, so that saying nothing is worth nothing.
"""

from __future__ import annotations

import math
import random

from rewards.shape import length_reward
from rlplatform.tasks.general.task import Example, Row, make_row
from rlplatform.tasks.general.words import ADJECTIVES, COLOURS, NAMES, THINGS

DEMANDS = ("exactly", "about", "between", "at least", "at most")
SIZES = {"short": (5, 30), "long": (50, 400)}  # words
FUNCTIONS = {"length": 1.0}
_FORMS = ("a story", "a poem", "a letter", "a diary entry", "a fairy tale", "a speech")


def prompts(seed: int, *, num_test: int = 320, size: str = "short", flag: str = "") -> dict[str, list[Row]]:
    """Split ``test`` of different prompts; ``size`` is a key of ``SIZES``, ``flag`` is "", /think or /no_think.

    Rows are those of ``Task.rows``, with ``length_target`` ([low, high] in words) and ``demand``.

    Raises:
        ValueError: an unknown size or flag.
    """
    if size not in SIZES or flag not in ("", "/think", "/no_think"):
        raise ValueError(f"lengthctrl: expected a size of {', '.join(SIZES)} and a flag, got {size!r} and {flag!r}")
    rng = random.Random(f"general/lengthctrl/{seed}")
    taken: set[str] = set()
    rows: list[Row] = []
    while len(rows) < num_test:
        example = _draw(rng, size)
        if example.key not in taken:
            taken.add(example.key)
            row = make_row(example, ("", flag), "lengthctrl", "instruction", row_id=f"lengthctrl-{len(rows):05d}")
            rows.append(row)
    return {"test": rows}


def _draw(rng: random.Random, size: str) -> Example:
    demand, number = rng.choice(DEMANDS), rng.randint(*SIZES[size])
    name, thing = rng.choice(NAMES), f"{rng.choice(ADJECTIVES)} {rng.choice(COLOURS)} {rng.choice(THINGS)}"
    asked = f"between {number} and {number + number // 2}" if demand == "between" else f"{demand} {number}"
    low, high = bounds(demand, number)
    length = (low + high) // 2
    return Example(
        user=f"Write {rng.choice(_FORMS)} about {name} and the {thing}, of {asked} words.",
        thought=f"{length} words.",
        answer=_text(name, thing, length),
        wrong=name,
        columns={"length_target": [low, high], "demand": demand},
    )


def bounds(demand: str, number: int) -> tuple[int, int]:
    """Lowest and highest number of words that a demand allows."""
    return {
        "exactly": (number, number),
        "about": (math.ceil(0.9 * number), math.floor(1.1 * number)),
        "between": (number, number + number // 2),
        "at least": (number, 2 * number),
        "at most": (math.ceil(number / 2), number),
    }[demand]


def _text(name: str, thing: str, length: int) -> str:
    """So many words, of a story that goes on as long as it has to."""
    told = [name, "found", "the", *thing.split(), "and", "was", "glad"]
    more = ["then", "the", "wind", "came", "and", "the", "day", "went", "on"]
    while len(told) < length:
        told += more
    return " ".join(told[:length]) + "."


def score(row: Row, completion: str) -> float:
    """0 to 1 for one completion, see above."""
    (verdict,) = length_reward([row["prompt"]], [completion], [row["length_target"]])
    return verdict.score
