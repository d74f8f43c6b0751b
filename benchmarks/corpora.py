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


def half_spoilt(seed: int, *, num: int = 2400, num_heldout: int = 200) -> dict[str, list[Row]]:
    """The three domains; in half of the documents of each the words are in disorder. Held out: none is.

    A column ``order`` says it, which no stage takes as a label: labellers have to find out.
    """
    sizes = {f"num_{name}": num // len(DOMAINS) for name in DOMAINS}
    found = corpus.documents(seed, num_long=1, num_heldout=num_heldout, **sizes)
    found.pop("long")
    rng = random.Random(f"half_spoilt/{seed}")
    for name in DOMAINS:
        for row in found[name][::2]:
            words = row["text"].split()
            rng.shuffle(words)
            row["text"] = " ".join(words)
        rng.shuffle(found[name])
    return found
