"""Instruction following: content, length, lists, order, structured output. Graded by rules, but for the JSON object."""

from __future__ import annotations

import json
import random

from rlplatform.tasks.general.task import Example, Task
from rlplatform.tasks.general.words import (
    ADJECTIVES,
    CHECKLIST,
    CITIES,
    COLOURS,
    FORMAT,
    FRUITS,
    ITEMS,
    NAMES,
    THINGS,
    TOPICS,
    part,
    split,
)

_FILLER = split("is here and it looks very nice to me and to you")
_STARTS = ("Dear", "Hello", "Welcome", "Listen")
_ENDS = ("See you soon.", "That is all.", "Good night.", "Thank you.", "Take care.")


def listed(words: list[str]) -> str:
    """``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def word_count(rng: random.Random, level: int) -> Example:
    number = rng.randint(3, 4 + 3 * level)
    adjective, thing = rng.choice(ADJECTIVES + COLOURS), rng.choice(THINGS)
    words = ["The", adjective, thing, *_FILLER][:number]
    return Example(
        user=f"Write exactly {number} words about the {adjective} {thing}.",
        thought=" ".join(f"{place} {word}" for place, word in enumerate(words, 1)),
        answer=" ".join(words) + ".",
        wrong=f"{thing.capitalize()}.",
        columns={"length_target": number, "checklist": [{"says": [thing]}, {"avoids": ["write exactly"]}]},
    )


def keywords(rng: random.Random, level: int) -> Example:
    chosen = rng.sample(THINGS, level + 1)
    return Example(
        user=f"Write one sentence of fewer than 20 words. Use the words {listed(chosen)}.",
        thought=f"I need {listed(chosen)}.",
        answer=f"I see {listed([f'the {word}' for word in chosen])}.",
        wrong=f"I see {listed([f'the {word}' for word in chosen[:-1]])}.",
        columns={
            "instruction_id_list": [
                *["keywords:existence"] * len(chosen),
                "length_constraints:number_words",
                "length_constraints:number_sentences",
            ],
            "kwargs": [
                *({"keywords": [word]} for word in chosen),
                {"num_words": 20, "relation": "less than"},
                {"num_sentences": 2, "relation": "less than"},
            ],
        },
    )


def forbidden(rng: random.Random, level: int) -> Example:
    thing = rng.choice(THINGS)
    *out, used = rng.sample(COLOURS + ADJECTIVES, level + 2)
    return Example(
        user=f"Describe the {thing} in one sentence. Do not use the words {listed(out)}.",
        thought=f"Not {listed(out)}, so {used}.",
        answer=f"The {thing} is {used}.",
        wrong=f"The {thing} is {out[0]}.",
        columns={
            "instruction_id_list": [
                "keywords:existence",
                "keywords:forbidden_words",
                "length_constraints:number_words",
            ],
            "kwargs": [{"keywords": [thing]}, {"forbidden_words": out}, {"num_words": 4, "relation": "at least"}],
        },
    )


def bullets(rng: random.Random, level: int) -> Example:
    topic = rng.choice(list(TOPICS))
    number = rng.randint(2, 3 + level)
    out, other, *rest = rng.sample(TOPICS[topic], len(TOPICS[topic]))
    chosen = sorted(rest[:number])
    return Example(
        user=f"List {number} {topic} as bullet points, but not {out} and not {other}.",
        thought=f"{number} {topic}: {', '.join(chosen)}.",
        answer="\n".join(f"- {item}" for item in chosen),
        wrong="\n".join(f"- {item}" for item in [*chosen[:-2], out]),
        columns={
            "instruction_id_list": ["detectable_format:number_bullet_lists"],
            "kwargs": [{"num_bullets": number}],
            "item_options": sorted(rest),
            "num_items": number,
        },
    )


def start_end(rng: random.Random, level: int) -> Example:
    name, start, end = rng.choice(NAMES), rng.choice(_STARTS), rng.choice(_ENDS)
    about = rng.sample(THINGS, level)
    body = listed([f"the {thing}" for thing in about])
    return Example(
        user=f'Write to {name} about {body}. Begin with the word "{start}" and end with "{end}"',
        thought=f"{start} first, {body}, then {end}",
        answer=f"{start} {name}, here is {body}. {end}",
        wrong=f"{name}, here is {body}.",
        columns={
            "instruction_id_list": [
                "length_constraints:nth_paragraph_first_word",
                "startend:end_checker",
                "keywords:existence",
            ],
            "kwargs": [
                {"num_paragraphs": 1, "nth_paragraph": 1, "first_word": start},
                {"end_phrase": end},
                {"keywords": [name, *about]},
            ],
        },
    )


def json_keys(rng: random.Random, level: int) -> Example:
    name, age, city, fruit = rng.choice(NAMES), rng.randint(5, 90), rng.choice(CITIES), rng.choice(FRUITS)
    facts = {"name": name, "age": age, "city": city, "fruit": fruit}
    keys = rng.sample(list(facts), min(level + 1, 4))
    value = {key: facts[key] for key in keys}
    types = {key: {"type": "integer" if key == "age" else "string"} for key in keys}
    schema = {"type": "object", "properties": types, "required": keys, "additionalProperties": False}
    return Example(
        user=f"{name} is {age} years old, lives in {city} and likes one fruit: {fruit}. "
        f"Write a JSON object with the keys {listed(keys)}, and nothing else.",
        thought=", ".join(f"{key} is {facts[key]}" for key in keys) + ".",
        answer=json.dumps(value),
        wrong=json.dumps({key: facts[key] for key in keys[1:]}),
        columns={"schema": json.dumps(schema), "answer": json.dumps(value)},
    )


def sections(rng: random.Random, level: int) -> Example:
    about = rng.sample(THINGS, level + 1)
    texts = [f"SECTION {number}\nThe {thing} is {rng.choice(COLOURS)}." for number, thing in enumerate(about, 1)]
    plan = listed([f"the {thing}" for thing in about])
    marks = [f"SECTION {number}" for number in range(1, len(about) + 1)]
    inside = [piece for pair in zip(marks, about, strict=True) for piece in pair]
    return Example(
        user=f"Write {len(about)} sections in this order, about {plan}. Begin each with a line SECTION and its number.",
        thought=", ".join(f"{number} {thing}" for number, thing in enumerate(about, 1)) + ".",
        answer="\n".join(texts),
        wrong="\n".join(reversed(texts[:-1])) or texts[0],
        columns={
            "instruction_id_list": ["detectable_format:multiple_sections"],
            "kwargs": [{"section_spliter": "SECTION", "num_sections": len(about)}],
            "checklist": [{"order": about}, {"order": inside}],
        },
    )


_INSTRUCTION = {**FORMAT, "instruction": 0.8}

TASKS = (
    Task(
        "word_count",
        "instruction",
        "rule",
        "an answer of exactly so many words about a thing",
        {**FORMAT, "length": part("length", 0.6, needs=["on_topic"]), "on_topic": part(CHECKLIST, 0.2)},
        word_count,
    ),
    Task("keywords", "instruction", "rule", "one short sentence with given words", _INSTRUCTION, keywords),
    Task("forbidden_words", "instruction", "rule", "a description without given words", _INSTRUCTION, forbidden),
    Task(
        "bullets",
        "instruction",
        "rule",
        "so many bullet points of a kind, without two of them",
        {**FORMAT, "bullet_points": part("instruction", 0.3), "items": part(ITEMS, 0.5)},
        bullets,
    ),
    Task("start_end", "instruction", "rule", "a note with a given first word and last phrase", _INSTRUCTION, start_end),
    Task(
        "json_keys",
        "instruction",
        "with_reference",
        "facts as a JSON object with given keys",
        {**FORMAT, "json_schema": 0.8},
        json_keys,
    ),
    Task(
        "sections",
        "instruction",
        "rule",
        "numbered sections in a given order",
        {**FORMAT, "numbered": part("instruction", 0.4), "in_order": part(CHECKLIST, 0.4)},
        sections,
    ),
)
