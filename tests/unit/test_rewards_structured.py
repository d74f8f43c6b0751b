"""`json_schema`: one JSON value, valid, and equal where an answer is given."""

from __future__ import annotations

import json
import socket
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.base import OK, TIMEOUT, UNPARSEABLE
from rewards.runner import RewardPool
from rewards.structured import BrokenSchema, json_schema_reward, read_json, read_schema, same_json

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
GOOD = '{"name": "Ada", "age": 36}'


def grade(completion, schema=PERSON, prompt="x", **columns):
    settings = {key: columns.pop(key) for key in ("fenced",) if key in columns}
    columns = {key: [value] for key, value in columns.items()}
    [verdict] = json_schema_reward([prompt], [completion], [schema], **columns, **settings)
    return verdict


# (completion, score, parses)
TABLE = [
    (GOOD, 1, 1),
    (f"\n  {GOOD}\n", 1, 1),
    (f"```json\n{GOOD}\n```", 1, 1),
    (f"```JSON\n{GOOD}\n```\n", 1, 1),
    (f"```\n{GOOD}\n```", 1, 1),
    (f"~~~json\n{GOOD}\n~~~", 1, 1),
    (f"````json\n{GOOD}\n````", 1, 1),
    (f"<think>The schema wants two keys: {{}}</think>\n{GOOD}", 1, 1),
    (f"{GOOD}<|im_end|>", 1, 1),
    ('{"age": 36.0, "name": "Ada"}', 1, 1),  # JSON Schema: 36.0 is an integer
    ('{"name": "\\u0041da", "age": 0}', 1, 1),
    # valid JSON that breaks the schema
    ('{"name": "Ada"}', 0, 1),
    ('{"name": "Ada", "age": "36"}', 0, 1),
    ('{"name": "Ada", "age": -1}', 0, 1),
    ('{"name": "Ada", "age": true}', 0, 1),
    ('{"name": "Ada", "age": 36.5}', 0, 1),
    ('{"name": "Ada", "age": 36, "x": 1}', 0, 1),
    (f"[{GOOD}]", 0, 1),
    (json.dumps(GOOD), 0, 1),  # JSON inside a string
    ("null", 0, 1),
    # not one JSON value
    ("", 0, 0),
    ("{}{}", 0, 0),
    (f"{GOOD}\n{GOOD}", 0, 0),
    (f"Here it is: {GOOD}", 0, 0),
    (f"{GOOD}\nHope that helps!", 0, 0),
    (f"Here it is:\n```json\n{GOOD}\n```", 0, 0),
    (f"```json\n{GOOD}\n```\nDone.", 0, 0),
    (f"```json\n{GOOD}\n```\n```json\n{GOOD}\n```", 0, 0),
    (f"```json\n{GOOD}", 0, 0),
    (f"{GOOD}\n```", 0, 0),
    (f"```python\n{GOOD}\n```", 0, 0),
    (f"`{GOOD}`", 0, 0),
    ('{"name": "Ada", "age": 36,}', 0, 0),
    ('{"name": "Ada", "age": 1, "age": 36}', 0, 0),
    ('{"name": "Ada", "age": NaN}', 0, 0),
    ('{"name": "Ada", "age": Infinity}', 0, 0),
    ('{"name": "Ada", "age": 1e999}', 0, 0),
    ("{'name': 'Ada', 'age': 36}", 0, 0),
    ('{name: "Ada", age: 36}', 0, 0),
    ('{"name": "Ada", "age": 36} // her age', 0, 0),
    ('{"name": "Ada", "age": 036}', 0, 0),
    ('{"name": "A\nda", "age": 36}', 0, 0),
    ("\ufeff" + GOOD, 0, 0),
    (f"<think>{GOOD}", 0, 0),
    (f"<think>{GOOD}</think>", 0, 0),
    (f"{GOOD}</think>", 0, 0),
    ("[" * 100_000, 0, 0),
    ("[" * 100_000 + "]" * 100_000, 0, 0),
    ('{"a":' * 50_000 + "1" + "}" * 50_000, 0, 0),
    ("[" + "1," * 500_000 + "1]", 0, 1),
    ('{"name": "Ada", "age": ' + "9" * 5000 + "}", 0, 0),
]


@pytest.mark.parametrize(("completion", "score", "parses"), TABLE)
def test_table(completion, score, parses):
    verdict = grade(completion)
    assert (verdict.status, verdict.score) == (OK, score), verdict.detail
    assert verdict.parts == {"parses": parses, "valid": score}
    assert bool(verdict.detail) != bool(score)


def test_a_block_that_the_prompt_opened():
    assert grade(f"{{}}</think>{GOOD}", prompt="x<think>\n").score == 1
    assert grade(GOOD, prompt="x<think>\n").score == 0
    assert grade(GOOD, prompt="x", prompt_text="<|im_start|>assistant\n<think>\n").score == 0


@pytest.mark.parametrize(("fenced", "bare", "in_fence"), [("allowed", 1, 1), ("required", 0, 1), ("forbidden", 1, 0)])
def test_fences(fenced, bare, in_fence):
    assert grade(GOOD, fenced=fenced).score == bare
    assert grade(f"```json\n{GOOD}\n```", fenced=fenced).score == in_fence


def test_an_unknown_setting():
    with pytest.raises(ValueError, match="fenced: expected one of allowed, required, forbidden, got 'never'"):
        grade(GOOD, fenced="never")


# (answer, completion, score)
ANSWERS = [
    (json.loads(GOOD), GOOD, 1),
    (GOOD, '{"age": 36, "name": "Ada"}', 1),
    (GOOD, '{"age": 36.0, "name": "Ada"}', 1),
    (GOOD, '{"name": "ada", "age": 36}', 0),
    (GOOD, '{"name": "Ada", "age": 37}', 0),
    (None, '{"name": "Ada", "age": 37}', 1),
]


@pytest.mark.parametrize(("answer", "completion", "score"), ANSWERS)
def test_equal_to_the_answer(answer, completion, score):
    verdict = grade(completion, answer=answer)
    assert (verdict.status, verdict.score) == (OK, score)
    assert verdict.parts == {"parses": 1, "valid": 1} | ({} if answer is None else {"equal": score})


def test_a_right_value_that_breaks_the_schema_scores_0():
    verdict = grade("[1]", answer="[1]")
    assert verdict.score == 0
    assert verdict.parts == {"parses": 1, "valid": 0, "equal": 1}


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (1, True, False),
        (0, False, False),
        (1, 1.0, True),
        ("1", 1, False),
        (None, False, False),
        ([1, 2], [2, 1], False),
        ({"a": 1}, {"a": 1, "b": None}, False),
        ({"a": [{}]}, {"a": [{}]}, True),
        ([], {}, False),
        ("", None, False),
    ],
)
def test_equality(a, b, same):
    assert same_json(a, b) == same_json(b, a) == same


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(JSON, JSON)
def test_reading_and_equality_against_pythons(a, b):
    text = json.dumps(a)
    assert same_json(read_json(text), a)
    if json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True):
        assert same_json(a, b)
    elif same_json(a, b):
        assert a == b
    if "think>" not in text:  # the tag is one wherever it stands: what follows it is thought
        assert grade(f"```json\n{text}\n```", {}, answer=text).score == 1.0


@given(st.text(max_size=80), st.sampled_from(["{}", "[", "```json\n", "\n```", '"', "<think>", "1e400", ""]))
def test_any_text_gets_an_ok_verdict(text, piece):
    for completion in (piece + text, text + piece, text):
        assert grade(completion).status == OK


# (schema, what the detail says)
BROKEN = [
    (None, "expected a JSON Schema"),
    (True, "expected a JSON Schema"),
    ([], "expected a JSON Schema"),
    (float("nan"), "expected a JSON Schema"),
    ("", "not JSON"),
    ("person", "not JSON"),
    ("[]", "expected an object"),
    ('{"type": "object", "type": "array"}', "a key stands twice"),
    ({"type": "dict"}, "$.type"),
    ({"type": None}, "$.type"),
    ({"required": "name"}, "$.required"),
    ({"minimum": "3"}, "$.minimum"),
    ({"pattern": "("}, "$.pattern"),
    ({"properties": {"a": None}}, "$.properties.a"),
    ({"$ref": "#/$defs/nothing"}, "PointerToNowhere"),
    ({"properties": {"a": {"$ref": "#/$defs/nothing"}}}, "PointerToNowhere"),
    ({"items": {"$ref": "https://example.com/schema.json"}}, "Unresolvable"),
    ({"$ref": "#"}, "without end"),
    ({"$schema": "https://example.com/my-draft"}, "unknown $schema"),
    ({"const": float("inf")}, "no JSON"),
    ({"const": {1, 2}}, "no JSON"),
    ("[" * 100_000, "nested too deeply"),
]


@pytest.mark.parametrize(("schema", "reason"), BROKEN)
def test_broken_schemas_whatever_is_answered(schema, reason):
    for completion in (GOOD, "no JSON", "<think>"):
        verdict = grade(completion, schema)
        assert verdict.status == UNPARSEABLE
        assert "column schema" in verdict.detail
        assert reason in verdict.detail


@pytest.mark.parametrize("answer", ["Ada", "{", "", "[" * 100_000])
def test_an_answer_that_is_no_json(answer):
    assert grade(GOOD, answer=answer).status == UNPARSEABLE


def test_schemas_as_text_by_draft_and_with_references():
    assert grade(GOOD, json.dumps(PERSON)).score == 1
    tree = {"type": "object", "properties": {"child": {"$ref": "#"}}, "additionalProperties": False}
    assert grade('{"child": {"child": {}}}', tree).score == 1
    assert grade('{"child": {"child": {"x": 1}}}', tree).score == 0
    # "items" with a list is draft-07's way; 2020-12 calls it prefixItems
    pair = {"items": [{"type": "integer"}, {"type": "string"}]}
    assert grade('["a", 1]', pair | {"$schema": "http://json-schema.org/draft-07/schema#"}).score == 0
    assert grade('["a", 1]', pair).status == UNPARSEABLE
    meta = {"$ref": "https://json-schema.org/draft/2020-12/schema"}  # comes with the package
    assert grade('{"type": "object"}', meta).score == 1
    assert grade('{"type": "dict"}', meta).score == 0
    inner = {"$defs": {"a": {"$id": "https://example.com/a", "$ref": "b"}}, "properties": {"x": {"$ref": "#/$defs/a"}}}
    assert grade('{"x": 1}', inner).status == UNPARSEABLE  # seen when it is used


def test_deep_and_odd_values_are_answers_not_errors():
    tree = {"properties": {"child": {"$ref": "#"}}, "type": "object"}
    assert grade('{"child":' * 400 + "{}" + "}" * 400, tree).status == OK
    assert grade("9" * 400, {"multipleOf": 0.1}).status == OK
    assert grade("[" * 400 + "]" * 400, {}, answer="[" * 400 + "]" * 400).status == OK
    assert grade('"\\ud800"', {"type": "string", "pattern": "^a$"}).score == 0


def test_nothing_is_fetched(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # jsonschema warns where it fetches
        assert grade(GOOD, {"$ref": "http://127.0.0.1:1/schema"}).status == UNPARSEABLE
        with pytest.raises(BrokenSchema):
            read_schema({"$dynamicRef": "http://127.0.0.1:1/schema"})


def test_the_deadline_ends_a_pattern_that_takes_for_ever():
    schema = {"type": "string", "pattern": "^(a+)+$"}
    with RewardPool({"json_schema": 1.0}, timeout_s=0.5) as pool:
        slow, fast = pool.score(["q"] * 2, [f'"{"a" * 60}!"', '"aaa"'], {"schema": [json.dumps(schema)] * 2})
    assert slow.status == TIMEOUT
    assert (fast.status, fast.score) == (OK, 1.0)
