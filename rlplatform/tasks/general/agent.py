"""Agent ability in one answer: which tool, with which arguments, or none. Calls are compared with the expected ones.

Whole episodes with environments that answer are another matter; here an earlier call and its result stand in the
prompt. There is no ``tools`` column: the tools stand in the system message, so that the rendering of a row does not
depend on who renders it.
"""

from __future__ import annotations

import json
import random

from rlplatform.tasks.general.task import Example, Task, ToolStep, Turn
from rlplatform.tasks.general.tools import TOOLS, block, expected, offer, sample_arguments
from rlplatform.tasks.general.words import CHECKLIST, CITIES, COLOURS, FORMAT, NAMES, THINGS, part

_NONE = "None of the tools fits."
_UNSERVED = (
    "Draw a picture of the {}.",
    "Sing a song about the {}.",
    "Translate the word {}.",
    "Throw away the {}.",
    "Count the letters of the word {}.",
    "Show me a film about the {}.",
    "Read me a book about the {}.",
    "Lend me the {}.",
)
_WEATHER = ("rain", "snow", "sun", "wind", "fog", "hail")


def single_call(rng: random.Random, level: int) -> Example:
    name = rng.choice(list(TOOLS))
    right, wrong = sample_arguments(rng, name), sample_arguments(rng, name)
    while wrong == right:
        wrong = sample_arguments(rng, name)
    return Example(
        user=TOOLS[name].request.format(**right),
        thought=f"The tool is {name}.",
        answer=block(name, right),
        wrong=block(name, wrong),
        columns={"answer": expected((name, right))},
        system=offer(rng, [name], level),
    )


def parallel_calls(rng: random.Random, level: int) -> Example:
    names = rng.sample(list(TOOLS), 2 if level < 3 else 3)
    calls = [(name, sample_arguments(rng, name)) for name in names]
    return Example(
        user=" ".join(
            f"{number}. {TOOLS[name].request.format(**given)}" for number, (name, given) in enumerate(calls, 1)
        ),
        thought=f"The tools are {' and '.join(names)}.",
        answer="\n".join(block(*call) for call in calls),
        wrong=block(*calls[0]),
        columns={"answer": expected(*calls)},
        system=offer(rng, names, level),
    )


def no_tool(rng: random.Random, level: int) -> Example:
    """A request that no tool on offer serves: one of no tool at all, or of a tool that is not there."""
    missing = rng.choice(list(TOOLS))
    system = offer(rng, [], level, without=[missing])
    if rng.random() < 0.5:
        user = rng.choice(_UNSERVED).format(rng.choice(THINGS))
    else:
        user = TOOLS[missing].request.format(**sample_arguments(rng, missing))
    offered = [name for name in TOOLS if name != missing]
    return Example(
        user=user,
        thought="No tool does this.",
        answer=_NONE,
        wrong=block(offered[0], sample_arguments(rng, offered[0])),
        columns={
            "answer": expected(),
            "checklist": [{"says": ["none of the tools", "no tool", "none of my tools", "no suitable tool"]}],
        },
        system=system,
    )


def context_arguments(rng: random.Random, level: int) -> Example:
    """The argument was said earlier in the dialogue."""
    home, other = rng.sample(CITIES, 2)
    thing, name = rng.choice(THINGS), rng.choice(NAMES)
    said = Turn(f"I am {name} and I live in {home}.", f"{name}, {home}.", f"Hello {name}.")
    between = [
        Turn(f"I have a {colour} {rng.choice(THINGS)}.", "A remark.", "I see.")
        for colour in rng.sample(COLOURS, level - 1)
    ]
    choices = {
        "weather": ("What is the weather where I live?", {"city": home}, {"city": other}),
        "time": ("What time is it where I live?", {"city": home}, {"city": other}),
        "flight": (f"Find a flight home from {other}.", {"start": other, "end": home}, {"start": home, "end": other}),
        "message": (f"Send myself the message: {thing}", {"to": name, "text": thing}, {"to": home, "text": thing}),
    }
    tool = rng.choice(list(choices))
    user, right, wrong = choices[tool]
    return Example(
        user=user,
        thought=f"{tool}: {', '.join(right.values())}.",
        answer=block(tool, right),
        wrong=block(tool, wrong),
        columns={"answer": expected((tool, right))},
        system=offer(rng, [tool], level),
        history=(said, *between),
    )


def next_call(rng: random.Random, level: int) -> Example:
    """A result stands there; the next call needs a value from it."""
    item, city = rng.choice(THINGS), rng.choice(CITIES)
    number, count = rng.randint(10, 99), rng.randint(2, 9)
    first = {"item": item}
    if rng.random() < 0.5:
        user = f"What does the {item} cost? Add {count} to the price."
        call = ("add", {"a": number, "b": count})
        step = ToolStep("First the price.", block("price", first), json.dumps({"item": item, "price": number}))
    else:
        hour = rng.randint(1, 11)
        user = f"What time is it in {city}? Wake me one hour later."
        call = ("alarm", {"hour": hour + 1})
        step = ToolStep("First the time.", block("time", {"city": city}), json.dumps({"city": city, "hour": hour}))
    needed = ["price", "add"] if call[0] == "add" else ["time", "alarm"]
    return Example(
        user=user,
        thought=f"Now {call[0]}.",
        answer=block(*call),
        wrong=step.call,
        columns={"answer": expected(call)},
        system=offer(rng, needed, level),
        steps=(step,),
    )


def tool_answer(rng: random.Random, level: int) -> Example:
    """A result stands there that answers the question: no further call."""
    city, sky, degrees = rng.choice(CITIES), rng.choice(_WEATHER), rng.randint(-9, 39)
    item, price = rng.choice(THINGS), rng.randint(2, 99)
    if rng.random() < 0.5:
        call = block("weather", {"city": city})
        result: dict[str, object] = {"city": city, "sky": sky, "degrees": degrees}
        user, says, needed = f"What is the weather in {city}?", [sky, str(degrees).lstrip("-")], "weather"
        answer = f"In {city}: {sky}, {degrees} degrees."
    else:
        call, result = block("price", {"item": item}), {"item": item, "price": price}
        user, says, needed = f"What does the {item} cost?", [item, str(price)], "price"
        answer = f"The {item} costs {price}."
    return Example(
        user=user,
        thought="The result says it.",
        answer=answer,
        wrong=call,
        columns={
            "answer": expected(),
            "checklist": [*({"says": [one]} for one in says), {"avoids": ["{"]}, {"max_words": 20}],
        },
        system=offer(rng, [needed], level),
        steps=(ToolStep(f"The tool is {needed}.", call, json.dumps(result)),),
    )


_CALLS = {**FORMAT, "tool_calls": 0.8}
_WORDS = {
    **FORMAT,
    "no_call": part("tool_calls", 0.2),
    "in_words": part(CHECKLIST, 0.6, args={"scoring": "all"}, needs=["no_call"]),
}

TASKS = (
    Task("single_call", "agent", "with_reference", "one call of the right tool", _CALLS, single_call),
    Task("parallel_calls", "agent", "with_reference", "several calls in one answer", _CALLS, parallel_calls),
    Task("no_tool", "agent", "with_reference", "no tool fits: say so and call none", _WORDS, no_tool),
    Task("context_arguments", "agent", "with_reference", "arguments from earlier turns", _CALLS, context_arguments),
    Task("next_call", "agent", "with_reference", "the next call, with a value from a result", _CALLS, next_call),
    Task("tool_answer", "agent", "with_reference", "an answer out of a tool's result", _WORDS, tool_answer),
)
