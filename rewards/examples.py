r"""What every built-in reward function says of a few rows: shown by ``rlplatform reward show``, and tested.

A score is compared within 1e-4. Rows of a group-level function are one group, in order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rewards.base import NOT_APPLICABLE, OK, UNPARSEABLE

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Example:
    """One row and its verdict."""

    completion: str
    score: float | None  # None: there is none, see status
    columns: Mapping[str, Any] = field(default_factory=dict)
    status: str = OK
    prompt: str = ""


_TESTS = [{"call": "double(2)", "expected": 4}, {"call": "double(-1)", "expected": -2}]
_WEATHER = {"name": "weather", "arguments": {"city": "Paris"}}
_SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
_CONTEXT = "The bridge was opened in 1932. It is 503 metres long."


def _call(value: Any) -> str:
    return f"<tool_call>\n{json.dumps(value)}\n</tool_call>"


EXAMPLES: dict[str, tuple[Example, ...]] = {
    "math": (
        Example("<think>3 + 4</think>The sum is \\boxed{7}.", 1.0, {"answer": "7"}),
        Example("\\boxed{\\frac{1}{2}}", 1.0, {"answer": "0.5"}),
        Example("The sum is 7.", 0.0, {"answer": "7"}),
        Example("<think>It is \\boxed{7}", 0.0, {"answer": "7"}),
        Example("\\boxed{7}", None, {"answer": ""}, UNPARSEABLE),
    ),
    "format": (
        Example("<think>3 + 4</think>7", 1.0),
        Example("7", 0.0),
        Example("7", 1.0, {"thinking": False}),
        Example("<think>3 + 4</think>", 0.0),
    ),
    "exact": (
        Example("<think>of France</think>Paris", 1.0, {"answer": "Paris"}),
        Example("It is Paris", 0.0, {"answer": "Paris"}),
        Example("NYC", 1.0, {"answer": ["New York", "NYC"]}),
        Example("Paris", None, {"answer": []}, UNPARSEABLE),
    ),
    "multiple_choice": (
        Example("The answer is B.", 1.0, {"answer": "B", "choices": ["six", "seven"]}),
        Example("\\boxed{A}", 0.0, {"answer": "B"}),
        Example("A or B", 0.0, {"answer": "B"}),
        Example("B", None, {"answer": "C", "choices": ["six", "seven"]}, UNPARSEABLE),
    ),
    "f1": (
        Example("the red house", 0.8, {"answer": "A big red house"}),
        Example("blue", 0.0, {"answer": ["red", "green"]}),
    ),
    "rouge_l": (
        Example("the cat sat", 6 / 7, {"answer": "the cat sat down"}),
        Example("sat cat the", 2 / 7, {"answer": "the cat sat down"}),
    ),
    "length": (
        Example("one two three four", 1.0, {"length_target": [3, 5]}),
        Example("one two three four five six", 1 - 1 / 3, {"length_target": 3}),
        Example("one two", 0.75, {"length_target": 3}),
        Example("one", None, {"length_target": "short"}, UNPARSEABLE),
    ),
    "group_length": (
        Example("seven", 0.5, {"completion_ids": [1, 2]}),
        Example("it is seven", 0.0, {"completion_ids": [1, 2, 3, 4]}),
        Example("it is seven, I am sure", -0.5, {"completion_ids": [1, 2, 3, 4, 5, 6]}),
    ),
    "repetition": (
        Example("Every word of this sentence is new.", 1.0),
        Example("no no no no no no no no", 0.2),
    ),
    "grounded_qa": (
        Example("in 1932", 1.0, {"context": _CONTEXT, "answer": "in 1932"}),
        Example("1850", 0.0, {"context": _CONTEXT, "answer": "in 1932"}),
        Example("The text does not say.", 1.0, {"context": _CONTEXT, "answer": []}),
        Example("1932", None, {"context": _CONTEXT, "answer": "1999"}, UNPARSEABLE),
    ),
    "language": (
        Example("<think>Das ist eine lange Strecke.</think>Die Antwort ist sieben.", 1.0, {"language": "de"}),
        Example("答案是七。", 0.0, {"language": "de"}),
        Example("Sieben.", None, {"language": "xx"}, UNPARSEABLE),
    ),
    "instruction": (
        Example("Sure, here it is.", 0.0, {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}),
        Example(
            "no capital letters here, only a comma",
            0.5,
            {"instruction_id_list": ["change_case:english_lowercase", "punctuation:no_comma"], "kwargs": [{}, {}]},
        ),
        Example("Yes", None, {"instruction_id_list": ["punctuation:no_coma"], "kwargs": [{}]}, UNPARSEABLE),
        Example("Yes", None, {"instruction_id_list": []}, NOT_APPLICABLE),
    ),
    "json_schema": (
        Example('<think>an age</think>{"age": 7}', 1.0, {"schema": _SCHEMA}),
        Example('{"age": "7"}', 0.0, {"schema": _SCHEMA}),
        Example('Here it is: {"age": 7}', 0.0, {"schema": _SCHEMA}),
        Example('{"age": 8}', 0.0, {"schema": _SCHEMA, "answer": '{"age": 7}'}),
        Example('{"age": 7}', None, {"schema": "{"}, UNPARSEABLE),
    ),
    "tool_calls": (
        Example(_call(_WEATHER), 1.0, {"answer": [_WEATHER]}),
        Example(_call(_WEATHER | {"arguments": {"city": "Rome"}}), 0.0, {"answer": [_WEATHER]}),
        Example("I have no tool for that.", 1.0, {"answer": []}),
        Example(_call(_WEATHER) + _call(_WEATHER), 0.0, {"answer": [_WEATHER]}),
    ),
    "code": (
        Example("```python\ndef double(x):\n    return 2 * x\n```", 1.0, {"tests": _TESTS}),
        Example("```python\ndef double(x):\n    return x * x\n```", 0.5, {"tests": _TESTS}),
        Example("def double(x): return 2 * x", 0.0, {"tests": _TESTS}),
        Example("```python\nprint(5)\n```", None, {"tests": []}, UNPARSEABLE),
    ),
    "code_all": (
        Example("```python\ndef double(x):\n    return 2 * x\n```", 1.0, {"tests": _TESTS}),
        Example("```python\ndef double(x):\n    return x * x\n```", 0.0, {"tests": _TESTS}),
    ),
}

# Built-in functions whose verdicts need something that a machine alone does not have.
WITHOUT: dict[str, str] = {
    "judge": "it asks a model behind an endpoint",
    "judge_model": "it asks a model that a run loads",
    "preference": "it needs a trained preference model",
    "remote": "it asks a served reward",
    "environment": "it hands on the verdict of an episode that a run played",
}
