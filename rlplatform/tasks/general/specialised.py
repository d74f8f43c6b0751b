"""Specialised scenarios: answers grounded in a given text, false premises, tables, glossaries, sums and units."""

from __future__ import annotations

import random

from rlplatform.tasks.general.task import Example, Task
from rlplatform.tasks.general.words import (
    CHECKLIST,
    CITIES,
    COLOURS,
    FORMAT,
    FRUITS,
    NAMES,
    THINGS,
    part,
)

NOT_SAID = "The text does not say."
# What animals do: (those that do, those that do not). Plain cases only.
FACTS = {
    "lay eggs": ("hens ducks owls frogs bees ants geese swans", "cats dogs cows horses sheep goats wolves bears"),
    "give milk": ("cows goats sheep", "hens owls frogs bees ants sharks geese snakes"),
    "have feathers": ("hens ducks owls geese swans", "cats dogs cows frogs bees sharks snakes wolves"),
    "have six legs": ("bees ants wasps beetles", "cats dogs cows hens frogs snakes sharks owls"),
    "bark": ("dogs", "cats cows hens frogs bees horses sheep snakes"),
    "eat grass": ("cows horses sheep goats", "wolves owls frogs sharks snakes"),
    "have wings": ("hens ducks owls bees geese swans", "cats dogs cows frogs sharks snakes horses sheep"),
    "live in the sea": ("sharks whales crabs", "cats cows hens owls bees horses goats wolves"),
}
DENIALS = ["do not", "don't", "does not", "not true", "false", "never"]
UNITS = {
    ("km", "m"): 1000,
    ("kg", "g"): 1000,
    ("m", "cm"): 100,
    ("cm", "mm"): 10,
    ("hours", "minutes"): 60,
    ("minutes", "seconds"): 60,
    ("days", "hours"): 24,
    ("weeks", "days"): 7,
    ("years", "months"): 12,
    ("litres", "millilitres"): 1000,
}
_SYLLABLES = ("ta", "ri", "mo", "ku", "sel", "pan", "dor", "vi", "lu", "ne", "gap", "shi")


def facts(rng: random.Random, level: int) -> tuple[list[str], list[tuple[str, str, str, str]]]:
    """(names, sentences with what can be asked of them): (sentence, question, answer, another answer)."""
    names = rng.sample(NAMES, level + 3)
    cities, fruits = rng.sample(CITIES, level + 3), rng.sample(FRUITS, level + 3)
    things = [f"{rng.choice(COLOURS)} {thing}" for thing in rng.sample(THINGS, level + 3)]
    found = []
    for place, name in enumerate(names[: level + 1]):
        kind = rng.randrange(3)
        found.append(
            [
                (f"{name} lives in {cities[place]}.", f"Where does {name} live?", cities[place], cities[-1]),
                (f"{name} has a {things[place]}.", f"What does {name} have?", things[place], things[-1]),
                (
                    f"{name} likes one fruit: {fruits[place]}.",
                    f"Which fruit does {name} like?",
                    fruits[place],
                    fruits[-1],
                ),
            ][kind]
        )
    return names, found


def reading(rng: random.Random, level: int) -> Example:
    _, found = facts(rng, level)
    sentence, question, answer, wrong = rng.choice(found)
    context = " ".join(one[0] for one in found)
    return Example(
        user=f"Text: {context}\nQuestion: {question} Answer with words of the text.",
        thought=sentence,
        answer=answer,
        wrong=wrong,
        columns={"context": context, "answer": [answer]},
    )


def abstain(rng: random.Random, level: int) -> Example:
    """Every other question has no answer in the text."""
    names, found = facts(rng, level)
    context = " ".join(one[0] for one in found)
    sentence, question, answer, wrong = rng.choice(found)
    known = rng.random() < 0.5
    if not known:
        asked = next(name for name in names if name in question)
        question = question.replace(asked, names[-1])
    return Example(
        user=f"Text: {context}\nQuestion: {question} Say so if the answer is missing.",
        thought=sentence if known else f"Nothing about {names[-1]}.",
        answer=answer if known else NOT_SAID,
        wrong=NOT_SAID if known else wrong,
        columns={"context": context, "answer": [answer] if known else []},
    )


def counterfactual(rng: random.Random, level: int) -> Example:
    """Every other question has a false premise: the answer must deny it, and must not deny a true one."""
    ability = rng.choice(list(FACTS))
    true = rng.random() < 0.5
    animals = rng.choice(FACTS[ability][0 if true else 1].split())
    name, city = rng.choice(NAMES), rng.choice(CITIES)
    asks = f"{name} asks" if level == 1 else f"{name} from {city} asks"
    denial, claim = f"{animals.capitalize()} do not {ability}.", f"{animals.capitalize()} {ability} by nature."
    checklist = [{"says": [animals]}, {"max_words": 25}, {"avoids": [*DENIALS, "why"]} if true else {"says": DENIALS}]
    return Example(
        user=f"{asks}: why do {animals} {ability}?",
        thought=f"{animals} {ability}: {'true' if true else 'false'}.",
        answer=claim if true else denial,
        wrong=denial if true else claim,
        columns={"checklist": checklist},
    )


def citation(rng: random.Random, level: int) -> Example:
    _, found = facts(rng, level)
    place = rng.randrange(len(found))
    _, question, answer, _ = found[place]
    passages = "\n".join(f"[{number}] {one[0]}" for number, one in enumerate(found, 1))
    return Example(
        user=f"{passages}\n{question} Answer with words of the text, then the number of the passage in brackets.",
        thought=f"Passage {place + 1}.",
        answer=f"{answer} [{place + 1}]",
        wrong=f"{answer} [{(place + 1) % len(found) + 1}]",
        columns={"answer": f"{answer} [{place + 1}]"},
    )


def table(rng: random.Random, level: int) -> Example:
    number = level + 2
    columns = {
        "age": [str(age) for age in rng.sample(range(5, 95), number)],
        "city": rng.sample(CITIES, number),
        "fruit": rng.sample(FRUITS, number),
    }
    shown = rng.sample(list(columns), 2 if level < 3 else 3)
    names = rng.sample(NAMES, number)
    lines = [f"| {' | '.join(['name', *shown])} |", f"|{'---|' * (len(shown) + 1)}"]
    lines += [f"| {' | '.join([name, *(columns[c][row] for c in shown)])} |" for row, name in enumerate(names)]
    row, other = rng.sample(range(number), 2)
    column = rng.choice(shown)
    return Example(
        user="\n".join(lines) + f"\nWhat is the {column} of {names[row]}?",
        thought=lines[row + 2],
        answer=columns[column][row],
        wrong=columns[column][other],
        columns={"answer": columns[column][row]},
    )


def glossary(rng: random.Random, level: int) -> Example:
    """A language that nobody has seen: its words stand in the prompt."""
    english = rng.sample(COLOURS, 2) + rng.sample(THINGS, level + 1)
    foreign: list[str] = []
    while len(foreign) < len(english):
        word = "".join(rng.sample(_SYLLABLES, 2))
        foreign += [word] if word not in foreign else []
    meaning = dict(zip(english, foreign, strict=True))
    phrase = [english[rng.randrange(2)], *rng.sample(english[2:], level)]
    shown = rng.sample(english, len(english))
    pairs = ", ".join(f"{word} = {meaning[word]}" for word in shown)
    answer = [meaning[word] for word in phrase]
    other = next(word for word in foreign if word not in answer)
    return Example(
        user=f"Words: {pairs}. Translate word by word: {' '.join(phrase)}",
        thought=", ".join(f"{word} = {meaning[word]}" for word in phrase),
        answer=" ".join(answer),
        wrong=" ".join([*answer[:-1], other]),
        columns={"answer": " ".join(answer)},
    )


def word_problem(rng: random.Random, level: int) -> Example:
    name, colour = rng.choice(NAMES), rng.choice(COLOURS)
    total = rng.randint(3, 9 * level)
    text, steps = f"{name} has {total} {colour} stones.", []
    for _ in range(level + 1):
        take = total > 2 and rng.random() < 0.5
        number = rng.randint(1, total - 1) if take else rng.randint(2, 9 * level)
        after = total - number if take else total + number
        text += f" {name} gives away {number}." if take else f" {name} gets {number} more."
        steps.append(f"{total}{'-' if take else '+'}{number}={after}")
        total = after
    return Example(
        user=f"{text} How many stones are there? Put the answer in \\boxed{{}}.",
        thought=", ".join(steps),
        answer=f"\\boxed{{{total}}}",
        wrong=f"\\boxed{{{total + 1}}}",
        columns={"answer": str(total)},
    )


def unit_conversion(rng: random.Random, level: int) -> Example:
    (large, small), factor = rng.choice(list(UNITS.items()))
    number = rng.randint(2, 200 * level)
    return Example(
        user=f"How many {small} are {number} {large}? Put the number in \\boxed{{}}.",
        thought=f"{number} x {factor} = {number * factor}",
        answer=f"\\boxed{{{number * factor}}}",
        wrong=f"\\boxed{{{number}}}",
        columns={"answer": str(number * factor)},
    )


_GROUNDED = {**FORMAT, "grounded_qa": 0.8}
_EXACT = {**FORMAT, "exact": 0.8}
_MATH = {**FORMAT, "math": 0.8}

TASKS = (
    Task("reading", "specialised", "with_reference", "an answer in the words of a text", _GROUNDED, reading),
    Task("abstain", "specialised", "with_reference", "an answer, or none where the text has none", _GROUNDED, abstain),
    Task(
        "counterfactual",
        "specialised",
        "rule",
        "deny false premises, and no true ones",
        {**FORMAT, "all_points": part(CHECKLIST, 0.8, args={"scoring": "all"})},
        counterfactual,
    ),
    Task("citation", "specialised", "with_reference", "an answer with the number of its passage", _EXACT, citation),
    Task("table", "specialised", "with_reference", "a cell of a table", _EXACT, table),
    Task("glossary", "specialised", "with_reference", "a made-up language, its glossary given", _EXACT, glossary),
    Task("word_problem", "specialised", "with_reference", "a sum told as a story", _MATH, word_problem),
    Task("unit_conversion", "specialised", "with_reference", "one unit in another", _MATH, unit_conversion),
)
