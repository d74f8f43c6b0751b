"""Corpora of the pretraining benchmarks, for ``dataset`` stages: generated, their domains known by construction."""

from __future__ import annotations

import random
from typing import Any

from rlplatform.tasks import corpus

Row = dict[str, Any]
DOMAINS = ("sums", "stories", "facts")


def long_domains(seed: int, *, num: int = 300, num_heldout: int = 30, characters: int = 1200) -> dict[str, list[Row]]:
    """Texts of one domain joined to at least ``characters``, so that a row of tokens is of one domain.

    Splits are the domains and ``heldout_DOMAIN``; no part of a text stands in two.

    Raises:
        ValueError: a size below 1.
    """
    found: dict[str, list[Row]] = {}
    wanted = num + num_heldout
    for name in DOMAINS:
        shortest = {"sums": 30, "stories": 60, "facts": 120}[name]
        many = wanted * (characters // shortest + 1)
        sizes = {f"num_{other}": many if other == name else 1 for other in (*DOMAINS, "long")}
        texts = [row["text"] for row in corpus.documents(seed, num_heldout=1, **sizes)[name]]
        joined: list[str] = []
        while len(joined) < wanted:
            part: list[str] = []
            while sum(map(len, part)) < characters:
                part.append(texts.pop())
            joined.append("\n".join(part))
        rows = [{"id": f"{name}-{k:05d}", "text": text} for k, text in enumerate(joined)]
        found[name], found[f"heldout_{name}"] = rows[:num], rows[num:]
    return found


def half_spoilt(
    seed: int, *, num: int = 6000, num_curated: int = 100, num_heldout: int = 100, num_test: int = 100
) -> dict[str, list[Row]]:
    """Splits are the domains, in half of whose documents the words are in disorder; ``curated``, ``heldout_DOMAIN`` and
    ``test_DOMAIN`` have none of those. No text stands in two splits.

    No column says which are spoilt: labellers have to find out.
    """
    sizes = {f"num_{name}": num // len(DOMAINS) for name in DOMAINS}
    made = corpus.documents(seed, num_long=1, num_heldout=num_curated + num_heldout + num_test, **sizes)
    rng = random.Random(f"half_spoilt/{seed}")
    found: dict[str, list[Row]] = {"curated": []}
    for name in DOMAINS:
        rows = made[name]
        for row in rows[::2]:
            words = row["text"].split()
            rng.shuffle(words)
            row["text"] = " ".join(words)
        rng.shuffle(rows)
        found[name] = rows
        found["curated"] += made[f"heldout_{name}"][:num_curated]
        found[f"heldout_{name}"] = made[f"heldout_{name}"][num_curated : num_curated + num_heldout]
        found[f"test_{name}"] = made[f"heldout_{name}"][num_curated + num_heldout :]
    return found
