"""The built-in environments: experts solve every row, others fail, replays are equal, hostile calls are answered."""

from __future__ import annotations

import json
import random
import threading
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.base import OK
from rlplatform.environments.base import ENVIRONMENTS, load_environment
from rlplatform.environments.business import Business
from rlplatform.environments.calculator import MAX_BITS, calculate, same_answer
from rlplatform.environments.python_sandbox import CellResult, PythonSandbox, run_trusted
from rlplatform.environments.rows import expert, module_of, problems
from rlplatform.environments.search import Document, Index, Search
from rlplatform.environments.text import (
    Transcript,
    converse,
    endless,
    no_tool,
    say,
    script,
    wrong_arguments,
    wrong_tool,
)
from rlplatform.environments.tools import (
    MAX_CALLS,
    MAX_RESULT,
    ToolEnvironment,
    ToolError,
    call_text,
    read_message,
    tool_message,
)
from rlplatform.types import Message

NAMES = tuple(ENVIRONMENTS)
TOOL = {"calculator": "calculate", "python_sandbox": "python", "search": "search", "business": "get_order"}
GOOD_CALL = {
    "calculator": call_text("calculate", {"expression": "1 + 1"}),
    "python_sandbox": call_text("python", {"code": "1 + 1"}),
    "search": call_text("search", {"query": "town"}),
    "business": call_text("get_order", {"order": 1}),
}


@pytest.fixture(scope="module")
def rows() -> dict[str, list[dict[str, Any]]]:
    """40 rows a built-in environment, of all levels."""
    return {
        name: problems(0, environment=name, levels=(1, 2, 3), num_sft=0, num_train=40, num_test=0)["train"]
        for name in NAMES
    }


def play(row: dict[str, Any], policy: Any, **kwargs: Any) -> Transcript:
    """Without walls around code of our own: test_code_runs_behind_walls has them."""
    extra = {"run": run_trusted} if row["environment"] == "python_sandbox" else {}
    return converse(load_environment(row["environment"], **extra), row, policy, **kwargs)


def results(transcript: Transcript) -> list[str]:
    return [str(message["content"]) for message in transcript.messages if message["role"] == "tool"]


# --- rows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_splits_are_disjoint_seeded_and_large_enough(name: str) -> None:
    sizes = {"num_sft": 150, "num_train": 250, "num_test": 200}
    splits = problems(3, environment=name, **sizes)
    assert {split: len(found) for split, found in splits.items()} == {"test": 200, "train": 250, "sft": 150}
    prompts = [json.dumps(row["prompt"]) for found in splits.values() for row in found]
    assert len(set(prompts)) == len(prompts)
    assert splits == problems(3, environment=name, **sizes)
    assert splits["test"] == problems(3, environment=name, num_sft=0, num_train=0, num_test=200)["test"]
    assert problems(4, environment=name, num_sft=0, num_train=0, num_test=5)["test"] != splits["test"][:5]
    for row in (*splits["train"][:3], *splits["sft"][:3]):
        json.dumps(row)
        assert row["environment"] == name
        assert row["messages"][-1]["role"] == "assistant"
        assert row["tools"][0]["function"]["name"]


def test_what_rows_cannot_be_made_is_said() -> None:
    with pytest.raises(ValueError, match=r"environment: expected one of calculator, .*got 'chess'"):
        problems(0, environment="chess")
    with pytest.raises(ValueError, match=r"calculator.levels: expected some of \(1, 2, 3\), got \(9,\)"):
        problems(0, environment="calculator", levels=(9,))
    with pytest.raises(ValueError, match="no new prompt in 200 draws"):
        problems(0, environment="search", num_sft=0, num_train=500, num_test=0, corpus_towns=20)


def test_a_demonstration_can_be_short_and_without_thoughts() -> None:
    (row,) = problems(
        0, environment="calculator", num_sft=1, num_train=0, num_test=0, thinking=False, show_tools=False
    )["sft"]
    assert row["tools"] == []
    assert [message["role"] for message in row["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert not any("<think>" in message["content"] for message in row["messages"])
    assert row["messages"][-1]["content"] == row["answer"]


# --- policies -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_the_expert_solves_every_row(rows: Any, name: str, thinking: bool) -> None:
    assert {row["level"] for row in rows[name]} == {1, 2, 3}
    for row in rows[name]:
        found = play(row, expert(row, thinking=thinking))
        assert (found.verdict.status, found.verdict.score) == (OK, 1.0), (row, found)
        assert found.verdict.parts["tool_errors"] == 0.0
        if thinking:
            assert list(found.messages[: len(row["messages"])]) == row["messages"]


@pytest.mark.parametrize("name", NAMES)
def test_policies_that_must_fail_do(rows: Any, name: str) -> None:
    """Even though they give the right answer: it was not come by through a tool."""
    for row in rows[name][:6]:
        for policy, said in [
            (wrong_tool(row), "error: no tool is called 'no_such_tool'"),
            (wrong_arguments(row, TOOL[name]), f"error: {TOOL[name]}: no argument 'unknown'"),
            (no_tool(row), None),
        ]:
            found = play(row, policy)
            assert (found.verdict.status, found.verdict.score) == (OK, 0.0)
            assert found.verdict.detail == "answered without a tool"
            assert results(found) == ([said] if said else [])
        found = play(row, endless(GOOD_CALL[name]), max_turns=4)
        assert (found.verdict.score, found.verdict.detail, found.num_turns) == (0.0, "the limit of 4 turns", 4)
        found = play(row, script(GOOD_CALL[name], "something else"))
        assert (found.verdict.status, found.verdict.score) == (OK, 0.0)


@pytest.mark.parametrize("name", NAMES)
def test_a_replay_is_the_same_and_episodes_do_not_touch_each_other(rows: Any, name: str) -> None:
    first, second = rows[name][:2]
    alone = [play(row, expert(row)) for row in (first, second)]
    together: dict[int, Transcript] = {}

    def run(key: int, row: Any) -> None:
        together[key] = play(row, expert(row))

    if name == "python_sandbox":  # the trusted runner captures this process's stdout
        for key, row in enumerate((first, second)):
            run(key, row)
    else:
        threads = [threading.Thread(target=run, args=pair) for pair in enumerate((first, second))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert [together[key] for key in (0, 1)] == alone


def test_rows_are_not_changed_by_playing_them(rows: Any) -> None:
    for name in NAMES:
        before = json.dumps(rows[name][0])
        play(rows[name][0], expert(rows[name][0]))
        assert json.dumps(rows[name][0]) == before


# --- calls ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<tool_call>{}</tool_call>", "error: expected <tool_call>"),
        ('<tool_call>{"name": "calculate", "arguments": {"expression": "1"}}', "error: expected <tool_call>"),
        ("<tool_call>calculate(1)</tool_call>", "error: expected <tool_call>"),
        (call_text("calculate", {}), "error: calculate: $: 'expression' is a required property"),
        (call_text("calculate", {"expression": 1}), "error: calculate: $.expression: 1 is not of type 'string'"),
        (call_text("calculate", {"expression": "1", "x": 2}), "error: calculate: no argument 'x'"),
        (call_text("eval", {"expression": "1"}), "error: no tool is called 'eval'"),
        (
            '<tool_call>{"name": "calculate", "arguments": {"expression": ' + "[" * 10**5 + "}}</tool_call>",
            "error: expected",
        ),
        (
            '<tool_call>{"name": "calculate", "arguments": {"expression": ' + "9" * 10**5 + "}}</tool_call>",
            "error: expected",
        ),
        (call_text("calculate", {"expression": "9" * 10**6}), "error: an expression of at most 200 characters"),
    ],
)
def test_a_wrong_call_is_answered(rows: Any, text: str, expected: str) -> None:
    found = play(rows["calculator"][0], script(say(text, "hm"), "never mind"))
    assert results(found)[0].startswith(expected)
    assert (found.verdict.status, found.verdict.score) == (OK, 0.0)
    assert found.verdict.parts["tool_errors"] == 1.0


def test_several_calls_of_a_turn_are_answered_one_by_one(rows: Any) -> None:
    row = rows["calculator"][0]
    calls = [call_text("calculate", {"expression": f"{n} + 1"}) for n in range(MAX_CALLS + 2)]
    found = play(row, script("first these\n" + "\n".join(calls), str(row["answer"])))
    assert results(found) == [str(n + 1) for n in range(MAX_CALLS)] + [f"error: at most {MAX_CALLS} calls a turn"] * 2
    assert found.verdict.score == 1.0  # the answer is right and tools were used


def test_what_a_message_says() -> None:
    def read(content: str) -> Any:
        return read_message({"role": "assistant", "content": content})

    call = call_text("f", {"x": "a\nb"})
    assert read(say(call, "t")).calls == (("f", {"x": "a\nb"}),)
    assert read(say(" 42 ", call)).calls == ()  # thoughts call nothing
    assert read(say(" 42 ", call)).answer == "42"
    assert read("<think>\n42").answer == ""
    assert not read(say("<tool_call>", "t")).readable


def test_an_unclosed_thought_is_no_answer(rows: Any) -> None:
    row = rows["calculator"][0]
    found = play(row, script(GOOD_CALL["calculator"], f"<think>\n{row['answer']}"))
    assert (found.verdict.status, found.verdict.score) == (OK, 0.0)


def test_a_long_result_is_cut_visibly() -> None:
    assert tool_message("a" * MAX_RESULT)["content"] == "a" * MAX_RESULT
    assert tool_message("a" * (MAX_RESULT + 5))["content"] == "a" * MAX_RESULT + "\n... (5 more characters)"


def test_an_exception_of_a_tool_is_the_environments_error(rows: Any) -> None:
    class Broken(ToolEnvironment):
        def tools(self) -> Any:
            from rlplatform.environments.tools import Tool

            return [Tool("f", "", {}, lambda: str(1 / 0))]

    from rlplatform.environments.base import Environment

    verdict = converse(Environment("b", Broken, False), {"prompt": "p"}, script(call_text("f", {}))).verdict
    assert verdict.status == "error"
    assert "ZeroDivisionError" in verdict.detail


# --- the calculator -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("4817 * 392", "1888264"),
        ("-2**2", "-4"),
        ("2**-1", "0.5"),
        ("2**3**2", "512"),
        ("7 // -2", "-4"),
        ("-7 % 3", "2"),
        ("1/3", "~0.3333333333"),
        ("-1/3", "~-0.3333333333"),
        ("-1/8", "-0.125"),
        ("1/3 + 2/3", "1"),
        ("0.1 + 0.2", "0.3"),
        ("(2 + 3) * (4 - 1)", "15"),
        ("--5", "5"),
        (".5 * 4", "2"),
        ("(-1)**999999999999", "-1"),
        ("0**0", "1"),
        ("0 ** 5", "0"),
        ("1/100000000000", "~0"),
    ],
)
def test_values(expression: str, value: str) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("9**9**9**9", "the number is too large"),
        ("(10**600)**2", "the number is too large"),
        ("2**2048", "the number is too large"),
        ("10**400 * 10**400", "the number is too large"),
        ("2**0.5", "an exponent must be a whole number"),
        ("1/0", "division by zero"),
        ("0**-1", "division by zero"),
        ("5 % 0", "division by zero"),
        ("__import__('os').system('id')", "expected numbers"),
        ("open('/etc/passwd')", "expected numbers"),
        ("(lambda: 1)()", "expected numbers"),
        ("9 ^ 2", "expected numbers"),
        ("1e9", "expected numbers"),
        ("٣ + 1", "expected numbers"),
        ("(" * 199, "nested more than 20 deep"),
        ("-" * 199 + "1", "nested more than 20 deep"),
        ("1 2", "expected an operator or the end, got '2'"),
        ("(1", "a parenthesis is not closed"),
        ("1 +", "expected a number, got the end"),
        ("", "expected a number, got the end"),
        ("1)", "expected an operator or the end"),
        ("*1", "expected a number, got '\\*'"),
    ],
)
def test_what_the_calculator_refuses(expression: str, reason: str) -> None:
    with pytest.raises(ToolError, match=reason):
        calculate(expression)


expressions = st.recursive(
    st.integers(0, 50).map(str),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "//", "%"]), inner).map(
            lambda t: f"({t[0]} {t[1]} {t[2]})"
        ),
        inner.map(lambda one: f"-{one}"),
        st.tuples(inner, st.integers(0, 3)).map(lambda t: f"({t[0]}) ** {t[1]}"),
    ),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(expressions)
def test_the_calculator_agrees_with_python(expression: str) -> None:
    """Python's own evaluation of exact fractions is the reference."""
    import re

    try:
        exact = eval(re.sub(r"(?<!\*\* )\b(\d+)\b", r"Fraction(\1)", expression), {"Fraction": Fraction})
    except ZeroDivisionError:
        with pytest.raises(ToolError, match="division by zero"):
            calculate(expression)
        return
    shown = calculate(expression) if len(expression) <= 200 else None
    if shown is None:
        return
    value = Fraction(shown.removeprefix("~"))
    assert value == exact if not shown.startswith("~") else abs(value - exact) <= Fraction(1, 2 * 10**10)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="0123456789.+-*/%() ", max_size=60))
def test_any_text_is_answered_in_bounds(expression: str) -> None:
    try:
        shown = calculate(expression)
    except ToolError:
        return
    assert len(shown) <= MAX_BITS // 3 + 20


def test_answers_compare_as_written() -> None:
    assert same_answer(" 42. ", "42")
    assert same_answer("\\boxed{42}", "42")
    assert not same_answer("042", "42")
    assert not same_answer("It is 42", "42")
    assert not same_answer("", "42")


# --- the search -----------------------------------------------------------------------------------------------------


def test_bm25_by_hand() -> None:
    """Three documents of 3, 3 and 6 words; the mean is 4. ln(1 + 2.5/1.5) is the rarity of a word that one holds."""
    import math

    index = Index([Document("a", "", "red fox runs"), Document("b", "", "red hen eats"), Document("c", "", "fox " * 6)])
    assert [d.id for d in index.search("hen", 3)] == ["b"]
    rarity = math.log(1 + 1.5 / 2.5)
    short, long = 2.2 / (1 + 1.2 * (0.25 + 0.75 * 0.75)), 6 * 2.2 / (6 + 1.2 * (0.25 + 0.75 * 1.5))
    assert short * rarity < long * rarity
    assert [d.id for d in index.search("FOX!", 3)] == ["c", "a"]
    assert [d.id for d in index.search("red", 1)] == ["a"]  # a draw: by id
    assert index.search("absent", 3) == []


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("open", {"id": "../../../etc/passwd"}, "error: no document '../../../etc/passwd'"),
        ("open", {"id": "/proc/self/environ"}, "error: no document"),
        ("open", {"id": "t1\x00"}, "error: no document"),
        ("open", {"id": "t" * 10**5}, "error: no document"),
        ("search", {"query": "x" * 10**5}, "error: a query of at most 200 characters, got 100000"),
        ("search", {"query": ""}, "nothing found"),
        ("search", {"query": ".* OR 1=1 --"}, "nothing found"),
    ],
)
def test_hostile_searches_are_answered(rows: Any, name: str, arguments: Any, expected: str) -> None:
    found = play(rows["search"][0], script(call_text(name, arguments), ""))
    assert results(found)[0].startswith(expected)


def test_every_search_for_a_name_finds_its_document_first() -> None:
    towns, lands = module_of("search").world(0, 2000)
    index = module_of("search").index_of(0, 2000)
    rng = random.Random(0)
    for one in (*rng.sample(towns, 100), *lands):
        assert index.search(one.name, 1)[0].title == one.name
    assert len({town.name for town in towns}) == 2000
    with pytest.raises(ValueError, match="search: expected at most"):
        module_of("search").world(0, 10**6)
    assert isinstance(Search(), ToolEnvironment)


# --- the shop -------------------------------------------------------------------------------------------------------


def shop(level: int, status: str = "delivered", days: int = 5) -> dict[str, Any]:
    state = {
        "orders": {"7": {"item": "lamp", "price": 30, "status": status, "days": days}},
        "stock": {"lamp": 2, "radio": 0, "chair": 1},
        "prices": {"lamp": 30, "radio": 9, "chair": 12},
        "refunds": {},
    }
    return {"prompt": "p", "level": level, "answer": "done", "state": json.dumps(state), "expected": json.dumps(state)}


def answers(row: dict[str, Any], *calls: tuple[str, dict[str, Any]]) -> list[str]:
    environment = Business()
    environment.reset(seed=0, row=row)
    message: Message = {"role": "assistant", "content": "\n".join(call_text(*call) for call in calls)}
    return [str(one["content"]) for one in environment.step(message).messages]


def test_the_shop_by_hand() -> None:
    order = {"order": 7}
    assert answers(shop(3), ("get_order", order), ("get_stock", {"item": "chair"})) == [
        "lamp, price 30, delivered, 5 days",
        "1",
    ]
    refund = ("refund", {**order, "amount": 30})
    assert answers(shop(2), refund, refund) == ["refunded 30", "error: order 7 is refunded already"]
    place = ("place_order", {"item": "chair"})
    assert answers(shop(3), place, place, ("get_order", {"order": 8})) == [
        "order 8",
        "error: not in stock",
        "chair, price 12, placed, 0 days",
    ]
    cancel = ("cancel_order", order)
    assert answers(shop(1, "placed"), cancel, cancel) == ["cancelled", "error: order 7 is cancelled"]
    assert answers(shop(1), cancel) == ["error: order 7 is delivered"]


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("get_order", {"order": 10**4000}, "error: no such order"),
        ("get_order", {"order": -7}, "error: no such order"),
        ("get_order", {"order": "7"}, "error: get_order: $.order: '7' is not of type 'integer'"),
        ("get_order", {"order": True}, "error: get_order: $.order: True is not of type 'integer'"),
        ("get_order", {"order": 7.5}, "error: get_order: $.order: 7.5 is not of type 'integer'"),
        ("get_order", {"order": 7.0}, "lamp, price 30, delivered, 5 days"),
        ("refund", {"order": 7, "amount": -30}, "error: the amount must be positive"),
        ("refund", {"order": 7, "amount": 10**4000}, "error: the amount must be positive"),
        ("place_order", {"item": "__class__"}, "error: not in stock"),
        ("get_stock", {"item": "x" * 10**5}, "error: no such item"),
        ("cancel_order", {"order": 7}, "error: no tool is called 'cancel_order'"),  # not of this level
    ],
)
def test_hostile_calls_of_the_shop_are_answered(name: str, arguments: Any, expected: str) -> None:
    (found,) = answers(shop(3), (name, arguments))
    assert found.startswith(expected)


def test_the_shop_checks_the_state_and_the_answer(rows: Any) -> None:
    """The right answer with the wrong state, and the reverse, are wrong; so is breaking a rule that the API allows."""
    allowed = next(row for row in rows["business"] if row["level"] == 2 and row["answer"] == "done")
    refused = next(row for row in rows["business"] if row["level"] == 2 and row["answer"] == "refused")
    look = call_text("get_order", {"order": allowed["order"]})
    found = play(allowed, script(look, "done"))
    assert (found.verdict.score, found.verdict.parts["state"], found.verdict.parts["answer"]) == (0.0, 0.0, 1.0)
    steps = [m["content"] for m in allowed["messages"] if m["role"] == "assistant"]
    found = play(allowed, script(*steps[:-1], "refused"))
    assert (found.verdict.score, found.verdict.parts["state"], found.verdict.parts["answer"]) == (0.0, 1.0, 0.0)
    refund = call_text("refund", {"order": refused["order"], "amount": 1})
    found = play(refused, script(refund, "refused"))
    assert (found.verdict.score, found.verdict.parts["state"]) == (0.0, 0.0)


# --- the interpreter ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def boxed() -> Any:
    """Cells of one episode, run behind walls."""
    environment = PythonSandbox(timeout_s=10.0)

    def run(*cells: str) -> list[str]:
        environment.reset(seed=0, row={"prompt": "p", "answer": "1"})
        found = []
        for cell in cells:
            step = environment.step({"role": "assistant", "content": call_text("python", {"code": cell})})
            found.append(str(step.messages[0]["content"]))
        return found

    return run


def test_variables_live_on_and_values_are_shown(boxed: Any) -> None:
    assert boxed("x = 3", "x += 1\nprint('hi')\nx * 2", "x") == ["(no output)", "hi\n8", "4"]
    assert boxed("x") == ["NameError: name 'x' is not defined (line 1)"]  # another episode


def test_a_cell_that_fails_keeps_what_it_did_before(boxed: Any) -> None:
    assert boxed("x = 1\n1 / 0", "x", "def f(:")[:2] == ["ZeroDivisionError: division by zero (line 2)", "1"]
    assert boxed("def f(:")[0].startswith("SyntaxError: ")


def test_a_cell_that_ends_the_interpreter_leaves_nothing_behind(boxed: Any) -> None:
    found = boxed("x = 1", "x = 2\nimport os\nos._exit(0)", "x", "raise SystemExit(3)", "x")
    assert found == [
        "(no output)",
        "error: the interpreter ended with 0",
        "1",
        "error: the interpreter ended with 3",
        "1",
    ]


def test_an_endless_cell_ends(boxed: Any) -> None:
    environment = PythonSandbox(timeout_s=0.5)
    environment.reset(seed=0, row={"prompt": "p", "answer": "1"})
    message = {"role": "assistant", "content": call_text("python", {"code": "while True: pass"})}
    assert "error: ran longer than 0.5 s" in environment.step(message).messages[0]["content"]


@pytest.mark.parametrize(
    ("code", "forbidden"),
    [
        ("print(open('/etc/shadow').read())", "root:"),
        ("import os; print(os.environ)", "PYTEST_CURRENT_TEST"),
        ("import socket; print(socket.create_connection(('1.1.1.1', 80), 1))", "<socket"),
        ("print('x' * 10**7)", "x" * 3000),
        ("print(open('/proc/1/environ').read())", "PYTEST_CURRENT_TEST"),
    ],
)
def test_hostile_code_is_answered(boxed: Any, code: str, forbidden: str) -> None:
    (found,) = boxed(code)
    assert forbidden not in found
    assert len(found) < MAX_RESULT + 100


def test_code_runs_behind_walls_as_it_does_here(boxed: Any, rows: Any) -> None:
    """The demonstrations were made without a sandbox: with it they are the same. Replays are, too."""
    cells = ["import random; x = random.random(); {'b', 'a', 'c'}", "x", "hash('a')", "print(1); 2"]
    assert boxed(*cells) == boxed(*cells)
    for row in rows["python_sandbox"][:6]:
        assert boxed(*row["cells"]) == [run_trusted(row["cells"][: n + 1]).text for n in range(len(row["cells"]))]
    row = next(row for row in rows["python_sandbox"] if row["level"] == 2)
    found = converse(load_environment("python_sandbox", timeout_s=10.0), row, expert(row), step_timeout_s=60.0)
    assert found.verdict.score == 1.0
    assert list(found.messages) == row["messages"]


def test_code_is_limited_in_length(boxed: Any) -> None:
    assert boxed("x" * 5000) == ["error: code of at most 4000 characters, got 5000"]


def test_a_runner_of_ones_own() -> None:
    environment = PythonSandbox(run=lambda cells: CellResult(str(len(cells)), finished=cells[-1] != "lost"))
    environment.reset(seed=0, row={"prompt": "p", "answer": "1"})
    said = "\n".join(call_text("python", {"code": code}) for code in ("a", "lost", "b"))
    messages = environment.step({"role": "assistant", "content": said}).messages
    assert [message["content"] for message in messages] == ["1", "2", "2"]
