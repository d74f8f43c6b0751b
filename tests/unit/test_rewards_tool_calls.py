"""`tool_calls`: Hermes blocks against plain calls, BFCL's possible answers and schemas."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from rewards.base import OK, UNPARSEABLE
from rewards.tool_calls import read_calls, read_expected, read_tools, tool_calls_reward

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "bfcl"


def block(name: Any, /, **arguments: Any) -> str:
    return "<tool_call>\n" + json.dumps({"name": name, "arguments": arguments}) + "\n</tool_call>"


AREA = [{"area": {"base": [10], "height": [5], "unit": ["units", ""]}}]
PLAIN = [{"name": "area", "arguments": {"base": 10, "height": 5}}]
TWO = [{"play": {"artist": ["Taylor Swift"], "minutes": [20]}}, {"play": {"artist": ["Maroon 5"], "minutes": [15]}}]
SWIFT, MAROON = block("play", artist="Taylor Swift", minutes=20), block("play", artist="Maroon 5", minutes=15)
RIGHT = block("area", base=10, height=5)

# (expected, completion, score)
TABLE = [
    (AREA, RIGHT, 1),
    (AREA, block("area", base=10, height=5, unit="units"), 1),
    (AREA, block("area", height=5, base=10.0), 1),
    (AREA, block("area", base=10, height=5, unit="Units."), 1),
    (AREA, f"<think>area?</think>\n\n{RIGHT}", 1),
    (AREA, f"I will compute it.\n{RIGHT}", 1),
    (AREA, RIGHT + "<|im_end|>", 1),
    (PLAIN, RIGHT, 1),
    (json.dumps(PLAIN), RIGHT, 1),
    (TWO, SWIFT + MAROON, 1),
    (TWO, MAROON + "\n" + SWIFT, 1),
    ([{"f": {"x": [1, 2]}}, {"f": {"x": [1]}}], block("f", x=1) + block("f", x=2), 1),  # the first call fits both
    ([{"f": {"x": [[1, 2]]}}], block("f", x=[1, 2]), 1),
    ([{"f": {"x": [{"a": [1, 2], "b": ["", 3]}]}}], block("f", x={"a": 2}), 1),
    ([{"f": {"x": [True]}}], block("f", x=True), 1),
    ([{"f": {}}], block("f"), 1),
    ([{"f": {"x": []}}], block("f", x=[]), 1),
    ([], "No tool fits.", 1),
    ([{"f": {"city": ["San Francisco"]}}], block("f", city="san francisco"), 1),
    (AREA, block("area", base=10), 0),
    (AREA, block("area", base=10, height=6), 0),
    (AREA, block("area", base=5, height=10), 0),
    (AREA, block("area", base="10", height=5), 0),
    (AREA, block("area", base=10, height=5, unit="cm"), 0),
    (AREA, block("area", base=10, height=5, colour="red"), 0),
    (AREA, block("Area", base=10, height=5), 0),
    (AREA, block("volume", base=10, height=5), 0),
    (AREA, RIGHT + RIGHT, 0),
    (AREA, RIGHT + block("area", base=1, height=1), 0),
    (AREA, "", 0),
    (AREA, "area(base=10, height=5)", 0),
    (AREA, json.dumps({"name": "area", "arguments": {"base": 10, "height": 5}}), 0),
    (AREA, f"<think>{RIGHT}</think>done", 0),
    (AREA, f"<think>{RIGHT}", 0),
    (AREA, RIGHT.replace("</tool_call>", ""), 0),
    (AREA, RIGHT + "<tool_call>", 0),
    (AREA, RIGHT + "</tool_call>", 0),
    (AREA, f"<tool_call>{RIGHT}</tool_call>", 0),
    (AREA, RIGHT.replace("tool_call", "TOOL_CALL"), 0),
    (AREA, RIGHT.replace('"name"', "'name'"), 0),
    (AREA, RIGHT.replace('"name"', '"function"'), 0),
    (AREA, RIGHT.replace('"name": "area"', '"name": "area", "id": 1'), 0),
    (AREA, RIGHT.replace('"base": 10', '"base": 9, "base": 10'), 0),
    (AREA, RIGHT.replace("10", "NaN"), 0),
    (AREA, '<tool_call>{"name": "area", "arguments": "{\\"base\\": 10, \\"height\\": 5}"}</tool_call>', 0),
    (AREA, f"<tool_call>[{RIGHT[11:-12].strip()}]</tool_call>", 0),
    (AREA, "<tool_call>" + "[" * 100_000 + "</tool_call>", 0),
    (PLAIN, block("area", base=10, height=5, unit="units"), 0),
    (TWO, SWIFT, 0),
    (TWO, SWIFT + SWIFT, 0),
    (TWO, block("play", artist="Taylor Swift", minutes=15) + block("play", artist="Maroon 5", minutes=20), 0),
    ([{"f": {"x": [[1, 2]]}}], block("f", x=[2, 1]), 0),
    ([{"f": {"x": [[1, 2]]}}], block("f", x=[1]), 0),
    ([{"f": {"x": [{"a": [1]}]}}], block("f", x={"a": 1, "b": 2}), 0),
    ([{"f": {"x": [True]}}], block("f", x=1), 0),
    ([{"f": {"x": [1]}}], block("f", x=True), 0),
    ([{"f": {"x": [True]}}], block("f", x="true"), 0),
    ([{"name": "f", "arguments": {"x": {"a": [1, 2]}}}], block("f", x={"a": 1}), 0),
    ([], RIGHT, 0),
    ([], "", 0),
    ([], "<tool_call>", 0),
    ([], "<think>no", 0),
]


@pytest.mark.parametrize(("answer", "completion", "score"), TABLE)
def test_table(answer, completion, score):
    [verdict] = tool_calls_reward(["x"], [completion], [answer])
    assert (verdict.status, verdict.score) == (OK, score), verdict.detail


@pytest.mark.parametrize(
    "answer",
    [
        None,
        "",
        "area",
        7,
        {"area": {}},
        [7],
        ["area"],
        [{}],
        [{"a": {}, "b": {}}],
        [{"area": [1]}],
        [{"area": {"x": 1}}],
    ],
)
def test_expected_calls_that_cannot_be_read(answer):
    for completion in (RIGHT, "", "<tool_call>"):
        [verdict] = tool_calls_reward(["x"], [completion], [answer])
        assert (verdict.status, verdict.score) == (UNPARSEABLE, 0.0)


SCHEMA = {
    "type": "dict",
    "properties": {"base": {"type": "float"}, "unit": {"type": "string", "enum": ["cm", "m"]}, "what": {"type": "any"}},
    "required": ["base"],
}
TOOLS = [{"name": "area", "parameters": SCHEMA}]


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        (block("area", base=10), 1),
        (block("area", base=1.5, unit="cm"), 1),
        (block("area", base=1, what=[1, {"a": None}]), 1),
        (block("area", base=1) + block("area", base=2), 1),
        (block("area", base="10"), 0),
        (block("area", base=True), 0),
        (block("area", unit="cm"), 0),
        (block("area", base=1, unit="km"), 0),
        (block("area", base=1, height=2), 0),
        (block("volume", base=1), 0),
        (block("area", base=1) + block("area"), 0),
        ("It is 10.", 0),
    ],
)
def test_a_schema_alone_decides_where_nothing_certain_is_expected(completion, score):
    for tools in (TOOLS, [{"type": "function", "function": TOOLS[0]}], json.dumps(TOOLS)):
        [verdict] = tool_calls_reward(["x"], [completion], [None], tools=[tools])
        assert (verdict.status, verdict.score) == (OK, score), verdict.detail


@pytest.mark.parametrize(
    "tools", ["area", 7, [7], [{"parameters": {}}], [{"name": "f", "parameters": {"type": "object", "required": [7]}}]]
)
def test_tools_that_cannot_be_read(tools):
    [verdict] = tool_calls_reward(["x"], [RIGHT], [AREA], tools=[tools])
    assert verdict.status == UNPARSEABLE
    assert "column tools" in verdict.detail


def test_parts_and_detail():
    [verdict] = tool_calls_reward(["x"], [block("area", base="10", height=5)], [AREA], tools=[TOOLS])
    assert verdict.parts == {"well_formed": 1.0, "names": 1.0, "schema": 0.0}
    assert "height" in verdict.detail or "10" in verdict.detail


def test_readers():
    assert read_calls("no call") == []
    assert read_calls(SWIFT) == [("play", {"artist": "Taylor Swift", "minutes": 20})]
    assert read_expected("[]") == []
    assert read_tools([]) == {}


def read_jsonl(path: Path) -> list[dict]:
    if not path.is_file():
        pytest.skip(f"{path} is not on this machine")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def chosen(value: Any) -> Any:
    """The first alternative of a possible answer, inside of objects too."""
    if isinstance(value, dict):
        lists = {key: one if isinstance(one, list) else [one] for key, one in value.items()}
        return {key: chosen(next(v for v in one if v != "")) for key, one in lists.items() if any(v != "" for v in one)}
    return [chosen(one) for one in value] if isinstance(value, list) else value


SETS = ["simple_python", "multiple", "parallel", "parallel_multiple", "live_parallel", "live_parallel_multiple"]


@pytest.mark.parametrize("name", SETS)
def test_possible_answers_of_the_leaderboard(name):
    """Calls made from the possible answers are right; the same with a name, a value or a call changed are wrong."""
    rows, questions = read_jsonl(DATA / "possible_answer" / f"{name}.jsonl.gz"), read_jsonl(DATA / f"{name}.jsonl.gz")
    tools = {row["id"]: row["function"] for row in questions}
    for row in rows[::3]:
        calls = [(called, chosen(allowed)) for call in row["ground_truth"] for called, allowed in call.items()]
        right = "\n".join(block(called, **arguments) for called, arguments in calls)
        (first, arguments), *others = calls
        rest = "".join(block(called, **arguments) for called, arguments in others)
        changed = dict.fromkeys(list(arguments)[:1], "something else entirely") or {"unknown": 1}
        wrong = [
            block(first + "_", **arguments) + rest,
            block(first, **(arguments | changed)) + rest,
            right + block(first, **arguments),
            rest,
        ]
        texts = [right, *wrong]
        count = len(texts)
        verdicts = tool_calls_reward(
            ["q"] * count, texts, [row["ground_truth"]] * count, tools=[tools[row["id"]]] * count
        )
        assert [(verdict.status, verdict.score) for verdict in verdicts] == [(OK, 1.0)] + [(OK, 0.0)] * 4, row["id"]


def test_questions_that_no_tool_fits():
    rows = read_jsonl(DATA / "irrelevance.jsonl.gz")[:50]
    tools = [row["function"] for row in rows]
    calls = [block(row["function"][0]["name"]) for row in rows]
    count = len(rows)
    assert {v.score for v in tool_calls_reward(["q"] * count, calls, [[]] * count, tools=tools)} == {0.0}
    assert {v.score for v in tool_calls_reward(["q"] * count, ["I can't."] * count, [[]] * count, tools=tools)} == {1.0}
