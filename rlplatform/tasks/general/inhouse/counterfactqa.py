"""CounterFactQA: questions whose premise is false; the model must see it, and invent no answer.

The report describes it in a sentence (arXiv 2505.09388, section 4.7). Ours has four sorts of false premises, and
``control`` questions with a true one: a model that denies everything is wrong there. An answer is right when it denies
the premise (where it is false) or does not (where it is true), by a list of phrases: made for short answers. For long
ones a judge with the row's ``reference`` is the better scorer.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlplatform.tasks.general.rules import checklist_reward
from rlplatform.tasks.general.specialised import FACTS
from rlplatform.tasks.general.task import Example, Row, make_row
from rlplatform.tasks.general.words import CHECKLIST, part, split

FUNCTIONS = {"counterfact": part(CHECKLIST, 1.0, args={"scoring": "all"})}
SORTS = ("property", "anachronism", "place", "invented")
CONTROL = "control"
_PEOPLE = {"Mozart": 1791, "Shakespeare": 1616, "Galileo": 1642, "Newton": 1727, "Vivaldi": 1741, "Rembrandt": 1669}
_INVENTIONS = {
    "telephone": 1876,
    "aeroplane": 1903,
    "television": 1926,
    "computer": 1941,
    "satellite": 1957,
    "motor car": 1885,
}
_CAPITALS = {
    "Paris": "France",
    "Madrid": "Spain",
    "Rome": "Italy",
    "Oslo": "Norway",
    "Lima": "Peru",
    "Cairo": "Egypt",
    "Tokyo": "Japan",
    "Athens": "Greece",
    "Vienna": "Austria",
    "Warsaw": "Poland",
    "Dublin": "Ireland",
    "Quito": "Ecuador",
}
_SYLLABLES = split("zor bal kin tu mel va dri pol ghe nax lim or")
_DENIES = [
    *split("false untrue fictional incorrect imaginary never nobody don't doesn't didn't isn't wasn't aren't couldn't"),
    *(f"{verb} not" for verb in split("do does did is was are were could")),
    *("not true", "not real", "no such", "there is no", "not exist", "made up", "made-up"),
]
_HEDGES = ["probably", "perhaps", "maybe", "my guess", "I guess"]


def questions(seed: int, *, num_test: int = 320, control_share: float = 0.25, flag: str = "") -> dict[str, list[Row]]:
    """Split ``test`` of different questions; a share of them has a true premise.

    Rows are those of ``Task.rows``, with ``checklist``, ``sort`` (one of ``SORTS``, or ``control``) and ``reference``.

    Raises:
        ValueError: a share or flag out of range, or more questions than there are.
    """
    if not 0 <= control_share <= 0.5 or flag not in ("", "/think", "/no_think"):
        raise ValueError(
            f"counterfactqa: expected 0 <= control_share <= 0.5 and a flag, got {control_share} and {flag!r}"
        )
    rng = random.Random(f"general/counterfactqa/{seed}")
    num_control = round(num_test * control_share)
    taken: set[str] = set()
    drawn: list[tuple[str, Example]] = []
    for number in range(num_test):
        sort = CONTROL if number < num_control else SORTS[number % len(SORTS)]
        for _ in range(2000):
            example = _control(rng) if sort == CONTROL else _false(rng, sort)
            if example.key not in taken:
                break
        else:
            raise ValueError(f"counterfactqa: no new question of sort {sort!r} after {len(taken)}; lower num_test")
        taken.add(example.key)
        drawn.append((sort, example))
    rng.shuffle(drawn)
    rows = [
        {**make_row(example, ("", flag), "counterfactqa", "specialised", row_id=f"counterfactqa-{n:05d}"), "sort": sort}
        for n, (sort, example) in enumerate(drawn)
    ]
    return {"test": rows}


def _example(question: str, right: str, wrong: str, checklist: Sequence[Mapping[str, object]]) -> Example:
    return Example(
        user=question,
        thought="Is the premise true?",
        answer=right,
        wrong=wrong,
        columns={"checklist": list(checklist), "reference": right},
    )


def _false(rng: random.Random, sort: str) -> Example:
    question, right, wrong = {
        "property": _property,
        "anachronism": _anachronism,
        "place": _place,
        "invented": _invented,
    }[sort](rng)
    return _example(question, right, wrong, [{"says": _DENIES}, {"avoids": _HEDGES}])


def _property(rng: random.Random) -> tuple[str, str, str]:
    ability = rng.choice(list(FACTS))
    animals = rng.choice(split(FACTS[ability][1]))
    question = rng.choice(("Why do {} {}?", "Explain why {} {}.", "Since when do {} {}?")).format(animals, ability)
    return question, f"{animals.capitalize()} do not {ability}.", f"{animals.capitalize()} {ability} to live longer."


def _anachronism(rng: random.Random) -> tuple[str, str, str]:
    person, thing = rng.choice(list(_PEOPLE)), rng.choice(list(_INVENTIONS))
    form = rng.choice(("What did {} do with his first {}?", "When did {} buy a {}?", "Why did {} sell his {}?"))
    denial = f"{person} died in {_PEOPLE[person]} and did not have a {thing}: there was none."
    return form.format(person, thing), denial, f"{person} bought the {thing} as a young man."


def _place(rng: random.Random) -> tuple[str, str, str]:
    city, country = rng.choice(list(_CAPITALS)), rng.choice(list(_CAPITALS.values()))
    while country == _CAPITALS[city]:
        country = rng.choice(list(_CAPITALS.values()))
    form = rng.choice(
        (
            "Since when is {} the capital of {}?",
            "Why did {} become the capital of {}?",
            "Who made {} the capital of {}?",
        )
    )
    denial = f"{city} is not the capital of {country}, but of {_CAPITALS[city]}."
    return form.format(city, country), denial, f"{city} became the capital of {country} in 1848."


def _invented(rng: random.Random) -> tuple[str, str, str]:
    name = "".join(rng.sample(_SYLLABLES, 3)).capitalize()
    form = rng.choice(
        (
            "Who wrote the famous novel {}?",
            "What is the capital of the country {}?",
            "Which year did the war of {} end?",
        )
    )
    return form.format(name), f"There is no {name} that I know of.", f"It is well known: {name} the Great, 1650."


def _control(rng: random.Random) -> Example:
    """A true premise, of a property or a place."""
    if rng.random() < 0.5:
        ability = rng.choice(list(FACTS))
        animals = rng.choice(split(FACTS[ability][0]))
        form = rng.choice(("Why do {} {}?", "Explain why {} {}.", "Since when do {} {}?"))
        denial = f"{animals.capitalize()} do not {ability}."
        denies = [f"do not {ability}", f"don't {ability}", "not true", "false", "no such"]
        right = f"{animals.capitalize()} {ability} by nature."
        return _example(form.format(animals, ability), right, denial, [{"says": [animals]}, {"avoids": denies}])
    city, country = rng.choice(list(_CAPITALS.items()))
    form = rng.choice(("Since when is {} the capital of {}?", "Why did {} become the capital of {}?"))
    denies = ["is not the capital", "isn't the capital", "never", "did not become", "not true", "false"]
    right = f"{city} is the capital of {country} for reasons of history."
    return _example(
        form.format(city, country),
        right,
        f"{city} is not the capital of {country}.",
        [{"says": [city, country]}, {"avoids": denies}],
    )


@dataclass(frozen=True)
class CounterFactScore:
    """Shares of right answers, from 0 to 1."""

    false_premise: float  # the score: of the questions whose premise is false
    by_sort: dict[str, float]  # `control` among them
    num_questions: int


def right(row: Row, completion: str) -> bool:
    (verdict,) = checklist_reward([row["prompt"]], [completion], [row["checklist"]], scoring="all")
    return verdict.score == 1.0


def score(rows: Sequence[Row], completions: Sequence[str]) -> CounterFactScore:
    """Raises ValueError where there is not one completion a row, or no row with a false premise."""
    if len(rows) != len(completions) or not any(row["sort"] != CONTROL for row in rows):
        raise ValueError(
            f"counterfactqa: expected completions of {len(rows)} rows, some of a false premise, got {len(completions)}"
        )
    said = [(row["sort"], right(row, text)) for row, text in zip(rows, completions, strict=True)]
    by_sort = {sort: [ok for other, ok in said if other == sort] for sort in (*SORTS, CONTROL)}
    false = [ok for sort, ok in said if sort != CONTROL]
    return CounterFactScore(
        false_premise=sum(false) / len(false),
        by_sort={sort: sum(found) / len(found) for sort, found in by_sort.items() if found},
        num_questions=len(said),
    )
