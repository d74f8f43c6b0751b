"""A search over a local corpus of documents, for questions whose answers stand nowhere else.

    prompt   Who is the mayor of Tolmar?
    call     search {"query": "mayor Tolmar"}
    result   [t17] Tolmar: Tolmar is a town in Vesk. ...
    answer   Bado Kelin

The corpus is made up: towns in lands, with founders, mayors and goods. Nobody can know them, so a right answer was
looked up. Level 1 asks for a fact of a town, level 2 for a fact of the land that a town is in (two searches), level 3
has to open a document: what it asks for is not in the results' first lines.
"""

from __future__ import annotations

import functools
import math
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlplatform.environments.calculator import same_answer
from rlplatform.environments.text import Policy, say, script
from rlplatform.environments.tools import Tool, ToolEnvironment, ToolError, call_text

LEVELS = (1, 2, 3)
NUM_RESULTS = 3
MAX_QUERY = 200  # characters
K1, B = 1.2, 0.75  # Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond"
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Document:
    id: str
    title: str
    text: str  # its first sentence is the snippet


class Index:
    """BM25 over documents; equal scores go by id, so that results are the same everywhere."""

    def __init__(self, documents: Sequence[Document]) -> None:
        self.documents = {document.id: document for document in documents}
        self._counts = {d.id: Counter(words(f"{d.title} {d.text}")) for d in documents}
        self._lengths = {key: counts.total() for key, counts in self._counts.items()}
        self._mean = sum(self._lengths.values()) / max(1, len(documents))
        self._holders: dict[str, list[str]] = {}
        for key, counts in self._counts.items():
            for word in counts:
                self._holders.setdefault(word, []).append(key)

    def search(self, query: str, num_results: int) -> list[Document]:
        """The best documents that hold a word of the query, best first."""
        scores: dict[str, float] = {}
        for word in dict.fromkeys(words(query)):
            holders = self._holders.get(word, [])
            rarity = math.log(1 + (len(self.documents) - len(holders) + 0.5) / (len(holders) + 0.5))
            for key in holders:
                often = self._counts[key][word]
                damped = often + K1 * (1 - B + B * self._lengths[key] / self._mean)
                scores[key] = scores.get(key, 0.0) + rarity * often * (K1 + 1) / damped
        best = sorted(scores, key=lambda key: (-scores[key], key))[:num_results]
        return [self.documents[key] for key in best]


def words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


class Search(ToolEnvironment):
    """Success: the final answer is the row's ``answer``. ``corpus`` of the row, JSON of a seed and a number of towns,
    says which corpus is searched."""

    def tools(self) -> Sequence[Tool]:
        self._index = index_of(int(self.row["corpus_seed"]), int(self.row["corpus_towns"]))
        return [
            Tool("search", "Search the documents.", {"query": {"type": "string"}}, self._search),
            Tool("open", "Show one document by its id.", {"id": {"type": "string"}}, self._open),
        ]

    def _search(self, query: str) -> str:
        if len(query) > MAX_QUERY:
            raise ToolError(f"a query of at most {MAX_QUERY} characters, got {len(query)}")
        found = self._index.search(query, NUM_RESULTS)
        return "\n".join(f"[{d.id}] {d.text.partition('. ')[0]}." for d in found) or "nothing found"

    def _open(self, id: str) -> str:
        document = self._index.documents.get(id)
        if document is None:
            raise ToolError(f"no document {id[:40]!r}; ids stand in brackets before the results of a search")
        return document.text

    def grade(self, answer: str) -> tuple[bool, Mapping[str, float], str]:
        right = same_answer(answer, str(self.row["answer"]))
        return right, {"answer": float(right)}, "" if right else f"answered {answer[:60]!r}"


# --- the corpus -----------------------------------------------------------------------------------------------------

_START = [
    "Tol",
    "Bra",
    "Ves",
    "Kel",
    "Mir",
    "Dor",
    "Fen",
    "Gal",
    "Hul",
    "Jas",
    "Lun",
    "Nor",
    "Pel",
    "Rad",
    "Sul",
    "Zan",
]
_MIDDLE = ["ma", "re", "vi", "lo", "du", "ka", "ni", "se"]
_TOWN_END = ["r", "th", "nd", "l", "rk", "s"]
_LAND_END = ["ia", "or", "em", "ut"]
_PERSON_END = ["do", "na", "li", "ro"]
GOODS = ["salt", "wool", "glass", "tin", "honey", "paper", "amber", "rope", "cheese", "silver"]
TOWNS_OF_A_LAND = 5


@dataclass(frozen=True)
class Town:
    name: str
    land: str
    mayor: str
    year: str
    river: str


@dataclass(frozen=True)
class Land:
    name: str
    ruler: str
    good: str


@functools.lru_cache(maxsize=8)
def world(seed: int, num_towns: int) -> tuple[tuple[Town, ...], tuple[Land, ...]]:
    """The made-up facts; names are distinct.

    Raises:
        ValueError: more towns than names.
    """
    rng = random.Random(f"search/world/{seed}")
    names = [a + b + c + d for a in _START for b in _MIDDLE for c in ["", *_MIDDLE] for d in _TOWN_END]
    lands_of = [a + b + d for a in _START for b in _MIDDLE for d in _LAND_END]
    num_lands = max(1, num_towns // TOWNS_OF_A_LAND)
    if num_towns > len(names) or num_lands > len(lands_of):
        raise ValueError(
            f"search: expected at most {min(len(names), len(lands_of) * TOWNS_OF_A_LAND)} towns, got {num_towns}"
        )

    def person() -> str:
        parts = [rng.choice(_START) + rng.choice(_MIDDLE) + rng.choice(_PERSON_END) for _ in range(2)]
        return " ".join(parts)

    lands = tuple(Land(name, person(), rng.choice(GOODS)) for name in rng.sample(lands_of, num_lands))
    towns = tuple(
        Town(name, rng.choice(lands).name, person(), str(rng.randrange(900, 1900)), rng.choice(_START) + "wasser")
        for name in rng.sample(names, num_towns)
    )
    return towns, lands


@functools.lru_cache(maxsize=8)
def index_of(seed: int, num_towns: int) -> Index:
    towns, lands = world(seed, num_towns)
    documents = [
        Document(
            f"t{number}",
            town.name,
            f"{town.name} is a town in {town.land}, its mayor is {town.mayor}. "
            f"It was founded in {town.year} and lies on the {town.river}.",
        )
        for number, town in enumerate(towns)
    ]
    documents += [
        Document(f"l{number}", land.name, f"{land.name} is a land ruled by {land.ruler}. It sells {land.good}.")
        for number, land in enumerate(lands)
    ]
    return Index(documents)


# --- rows -----------------------------------------------------------------------------------------------------------


def make_row(rng: random.Random, level: int, *, corpus_seed: int = 0, corpus_towns: int = 2000) -> dict[str, Any]:
    """One question about a town of the corpus; ``town`` is for the expert."""
    towns, lands = world(corpus_seed, corpus_towns)
    town = rng.choice(towns)
    land = next(land for land in lands if land.name == town.land)
    if level == 1:
        prompt, answer = rng.choice(
            [(f"Who is the mayor of {town.name}?", town.mayor), (f"Which land is {town.name} in?", town.land)]
        )
    elif level == 2:
        prompt, answer = f"Who rules the land that {town.name} is in?", land.ruler
    else:
        prompt, answer = rng.choice(
            [
                (f"When was {town.name} founded?", town.year),
                (f"On which river lies {town.name}?", town.river),
            ]
        )
    corpus = {"corpus_seed": corpus_seed, "corpus_towns": corpus_towns}
    return {"prompt": prompt, "answer": answer, "town": town.name, "land": town.land, **corpus}


def expert(row: Mapping[str, Any], *, thinking: bool = True) -> Policy:
    """Searches for the town, then for its land or opens the document, and reads the answer off what it was shown."""
    town, prompt = row["town"], row["prompt"]

    def called(name: str, **arguments: str) -> str:
        return say(call_text(name, arguments), f"{name} {next(iter(arguments.values()))}" if thinking else None)

    def land(results: list[str]) -> str:
        return _read(r"is a town in (\w+),", results[-1])

    def answer(results: list[str]) -> str:
        text = results[-1]
        if "mayor" in prompt:
            found = _read(r"its mayor is ([\w ]+)\.", text)
        elif "Which land" in prompt:
            found = land(results)
        elif "rules" in prompt:
            found = _read(rf"\] {re.escape(land(results[:1]))} is a land ruled by ([\w ]+)\.", text)
        else:
            found = _read(r"founded in (\d+)" if "founded" in prompt else r"lies on the (\w+)\.", text)
        return say(found, found if thinking else None)

    steps: list[Any] = [called("search", query=town)]
    if "rules" in prompt:
        steps.append(lambda results: called("search", query=land(results)))
    elif "founded" in prompt or "river" in prompt:
        steps.append(lambda results: called("open", id=_read(r"\[(t\d+)\]", results[-1])))
    return script(*steps, answer)


def _read(pattern: str, text: str) -> str:
    """What an expert looks for; raises ValueError where a result does not hold it."""
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"search expert: expected {pattern!r} in {text[:200]!r}")
    return match[1]
