"""The `code` reward: which block is the program, how tests are read and compared, verdicts that nobody forges."""

from __future__ import annotations

import contextlib
import json
import re
import time
from fractions import Fraction
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import code_datasets
from rewards.base import ERROR, NOT_APPLICABLE, OK, TIMEOUT, UNPARSEABLE
from rewards.code import Settings, close_sandboxes, code_all_reward, code_reward, grade, last_block
from rewards.runner import RewardPool
from rewards.sandbox import languages
from rewards.sandbox.languages import LANGUAGES, main_class
from rewards.sandbox.limits import IsolationUnavailable
from rewards.sandbox.plain import NotPlain, decode, encode
from rewards.sandbox.process import NONE
from rewards.sandbox.testing import UnreadableTests, read_tests, same_output, same_value

DATA = Path(__file__).parents[2].parent / "shared" / "data"
ROOMY = Settings(timeout_s=10.0, total_s=40.0)


@pytest.fixture(scope="module", autouse=True)
def no_process_left():
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    close_sandboxes()
    assert [child for child in psutil.Process().children(recursive=True) if child.pid not in before] == []


def sections(file: str) -> dict[str, str]:
    """``### name`` and the text below it, of a file beside this one."""
    parts = re.split(r"^### (.+)\n", (Path(__file__).parent / "programs" / file).read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def verdict(program, *tests, language="python", entry_point="", settings=ROOMY):
    return grade(f"Here it is.\n```\n{program}\n```\n", list(tests), language, entry_point, settings)


# --- the program ----------------------------------------------------------------------------------------------------

BLOCKS = [
    ("```\na\n```", "a\n"),
    ("```python\na\n```", "a\n"),
    ("text\n```python\na\n```\nmore", "a\n"),
    ("```\na\n```\n```\nb\n```", "b\n"),
    ("```\na\n```\n```\nb\n", "a\n"),  # the last block is not complete
    ("```\na\n", None),
    ("a", None),
    ("", None),
    ("```\n```", "\n"),
    ("````\na\n```\nb\n````", "a\n```\nb\n"),
    ("```\na\n````", "a\n"),
    ("~~~\na\n~~~", "a\n"),
    ("~~~\na\n```\n~~~", "a\n```\n"),
    ("  ```py\n  a\n  ```", "  a\n"),
    ("```python title=x\na\n```", "a\n"),
    ("``a``", None),
    ("```a``` inline", None),
    ("```\r\na\r\n```\r\n", "a\n"),
    ("```python\nprint('''```''')\n```", "print('''```''')\n"),
    ("```\na\n``` not an end\nb\n```", "a\n``` not an end\nb\n"),
    ("```a\n```b\nc\n```", "```b\nc\n"),
]


@pytest.mark.parametrize(("text", "program"), BLOCKS)
def test_the_last_complete_fenced_block(text, program):
    assert last_block(text) == program


TEST = [{"call": "f()", "expected": 1}]
RIGHT, WRONG = "```\ndef f(): return 1\n```", "```\ndef f(): return 2\n```"


@pytest.mark.parametrize(
    ("completion", "opened", "score"),
    [
        (RIGHT, False, 1.0),
        (f"{WRONG}\n{RIGHT}", False, 1.0),
        (f"{RIGHT}\n{WRONG}", False, 0.0),
        (f"<think>\n{WRONG}\n</think>\n{RIGHT}", False, 1.0),
        (f"<think>\n{RIGHT}\n</think>\n{WRONG}", False, 0.0),
        (f"<think>\n{RIGHT}\n</think>\nno program", False, 0.0),
        (f"<think>\n{RIGHT}", False, 0.0),
        (f"{RIGHT}", True, 0.0),
        (f"thoughts</think>{RIGHT}", True, 1.0),
        (f"thoughts</think>\n{RIGHT}", True, 1.0),
        ("no program", False, 0.0),
        ("```\n\n```", False, 0.0),
        ("```\ndef f(: return 1\n```", False, 0.0),
    ],
)
def test_only_the_program_after_the_thoughts_counts(completion, opened, score):
    found = grade(completion, TEST, "python", "", ROOMY, opened=opened)
    assert (found.score, found.status) == (score, OK), found


# --- reading tests --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ([], "at least one test"),
        (None, "at least one test"),
        ("", "no JSON"),
        ("[]", "at least one test"),
        ({"code": "x"}, "at least one test"),
        (["assert f()"], "expected a mapping"),
        ([{}], "expected the keys"),
        ([{"stdin": "1"}], "expected the keys"),
        ([{"stdin": "1", "stdout": "1", "code": "x"}], "expected the keys"),
        ([{"call": "f()"}], "expected the keys"),
        ([{"code": 1}], "expected text"),
        ([{"stdin": 1, "stdout": "1"}], "expected text"),
        ([{"call": [1], "expected": 1}], "entry_point"),
        ([{"call": 7, "expected": 1}], "arguments"),
        ([{"call": "f()", "expected": object()}], "not plain"),
    ],
)
def test_tests_that_say_nothing_are_unparseable(raw, message):
    with pytest.raises(UnreadableTests, match=message):
        read_tests(raw, "python", "" if message == "entry_point" else "f")
    assert grade(RIGHT, raw, "python", "" if message == "entry_point" else "f", ROOMY).status == UNPARSEABLE


def test_unknown_languages_and_calls_of_other_languages_are_unparseable():
    assert "expected one of python" in verdict("x", *TEST, language="cobol").detail
    assert verdict("x", *TEST, language="cobol").status == UNPARSEABLE
    assert verdict("x", *TEST, language="cpp").status == UNPARSEABLE


def test_absent_keys_of_a_table_and_json_and_no_expected_value():
    row = {"stdin": None, "stdout": None, "call": "f()", "expected": None, "code": None}
    assert read_tests([row], "python", "")[0].kind == "call"
    assert read_tests(json.dumps([row, {"stdout": "x"}]), "python", "")[1].stdin == ""
    assert verdict("def f(): pass", row).score == 1.0


# --- comparing ------------------------------------------------------------------------------------------------------

SAME = [
    (1, 1),
    (1, 1.0),
    (0.3, 0.1 + 0.2),
    (1e20, 1e20 + 1),
    (float("nan"), float("nan")),
    (float("inf"), float("inf")),
    ("a", "a"),
    ([1, 2], (1, 2)),
    ([1, 2], range(1, 3)),
    ([[1], []], ((1,), ())),
    ({"1": "a"}, {1: "a"}),
    ({"a": [1]}, {"a": (1,)}),
    ({1, 2}, {2, 1}),
    ({1, 2}, frozenset({2, 1})),
    (True, True),
    (None, None),
    (0.5, Fraction(1, 2)),
    (1 + 2j, 1 + 2j),
    ([], []),
]
DIFFERENT = [
    (1, 2),
    (1, True),
    (0, False),
    (0, None),
    (False, None),
    (1, "1"),
    ("1", 1),
    (0.3, 0.3001),
    (float("inf"), 1e308),
    (float("nan"), 0.0),
    ([1, 2], {1, 2}),
    ([1, 2], [2, 1]),
    ([1], [1, 1]),
    (["a", "b"], "ab"),
    ([97], b"a"),
    ([1], {1: 1}),
    ([], None),
    ([], range(10**30)),
    ({}, []),
    ({"1": "a"}, {1: "b"}),
    ({"1": "a"}, {1: "a", "2": "b"}),
    ({1, 2}, [1, 2]),
    ("", []),
    (1.5, 10**400),
]


@pytest.mark.parametrize(("expected", "value"), SAME)
def test_same_values(expected, value):
    assert same_value(expected, decode(encode(value)))


@pytest.mark.parametrize(("expected", "value"), DIFFERENT)
def test_different_values(expected, value):
    assert not same_value(expected, decode(encode(value)))


@pytest.mark.parametrize(
    ("expected", "written", "same"),
    [
        ("5", "5\n", True),
        ("5\n", "5", True),
        ("a\nb\n", "a  \nb\n\n\n", True),
        ("a\r\nb", "a\nb", True),
        ("5", "6", False),
        ("a\nb", "a b", False),
        ("a\nb", "a\n\nb", False),
        (" a", "a", False),
        ("", "", True),
        ("", "0", False),
        ("5", "", False),
        ("1.0", "1", False),
        ("5", "5 5", False),
    ],
)
def test_outputs(expected, written, same):
    assert same_output(expected, written) is same


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=20,
)


@given(PLAIN)
@settings(deadline=None, max_examples=60)
def test_plain_data_crosses_unchanged(value):
    back = decode(encode(value))
    assert back == value
    assert type(back) is type(value)


@given(st.binary(max_size=60))
@settings(deadline=None, max_examples=150)
def test_bytes_of_strangers_are_plain_data_or_a_value_error(data):
    with contextlib.suppress(ValueError):
        decode(data)


def test_a_subclass_crosses_as_what_it_is_derived_from():
    class Evil(list):
        def __eq__(self, other):
            return True

        __hash__ = None  # type: ignore[assignment]

        def __iter__(self):
            return iter([5])

    class Number(int):
        def __eq__(self, other):
            return True

        __hash__ = int.__hash__

    assert type(decode(encode(Evil([1])))) is list
    assert decode(encode(Evil([1]))) == [1]
    assert decode(encode(Number(3))) == 3
    assert decode(encode(Number(3))) != 4
    with pytest.raises(NotPlain):
        encode(object())
    deep: list = []
    for _ in range(1000):
        deep = [deep]
    with pytest.raises(NotPlain):
        encode(deep)


# --- verdicts that cannot be forged ---------------------------------------------------------------------------------

WRONG_F = "def f(x): return 0"
CALL = {"call": "f(20)", "expected": 41}
ASSERT = {"code": "assert f(20) == 41\nassert [f(1)] == [3]\nassert f(0) == 1, 'zero'"}
NAMED = {
    "code": "def check(candidate):\n    assert candidate(20) == 41\n    assert 41 in [candidate(20)]\ncheck(candidate)"
}
CLOSE = {"code": "import math\nassert abs(f(20) - 41) < 1e-6\nassert math.isclose(f(20), 41)"}
RAISES = {
    "code": "try:\n    f(-1)\n    assert False, 'nothing raised'\nexcept ValueError:\n    pass\nassert f(20) == 41"
}
ALL = {"code": "assert all(f(x) == 2 * x + 1 for x in range(5))\nassert isinstance(f(20), int) and f(20) == 41"}
INSIDE = {"code": "assert 41 in f(20) if isinstance(f(20), list) else f(20) == 41"}
EVERY = [CALL, ASSERT, NAMED, CLOSE, RAISES, ALL, INSIDE]

FORGERIES = sections("forgeries.txt")


@pytest.mark.parametrize("name", FORGERIES)
def test_forgeries(name):
    """Against every kind of test; each on its own, so that one that fails does not speak for the others."""
    slow = name in ("sleeps", "spins", "stops its judge", "a message without end")
    chosen = [CALL, NAMED] if slow else EVERY
    found = verdict(FORGERIES[name], *chosen, entry_point="f", settings=Settings(timeout_s=0.4, total_s=30.0))
    assert (found.score, found.status) == (0.0, OK), found


def test_the_right_program_passes_every_one_of_them():
    program = "def f(x):\n    if x < 0: raise ValueError('negative')\n    return 2 * x + 1"
    found = verdict(program, *EVERY, entry_point="f")
    assert (found.score, found.status) == (1.0, OK), found


STDOUT = {"stdin": "20", "stdout": "41"}


@pytest.mark.parametrize(
    "program",
    [
        "print(0)",
        "import os; os._exit(0)",
        "print(41); print(0)",
        "print(41); exit(1)",
        "print(41); 1/0",
        "print(41); import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import sys; sys.stderr.write('41')",
        "import os; [os.write(n, b'41\\n') for n in range(2, 9) if n != 1]",
        "print(41, flush=True)\nwhile True: pass",
        "while True: print(41)",
        "import sys; sys.stdout = None; print(41)",
        "print(input())",
        "",
    ],
)
def test_forged_outputs(program):
    found = verdict(f"# program\n{program}", STDOUT, settings=Settings(timeout_s=0.5, total_s=10.0))
    assert (found.score, found.status) == (0.0, OK), found


def test_what_a_script_may_rely_on():
    program = """
from __future__ import annotations
import atexit, sys, threading, dataclasses
@dataclasses.dataclass
class Point:
    x: int
atexit.register(print, "last")
if __name__ == "__main__":
    threading.Thread(target=lambda: print(Point(int(input())).x, flush=True)).start()
    sys.exit()
"""
    assert verdict(program, {"stdin": "5\n", "stdout": "5\nlast"}).score == 1.0


# --- what honest tests may rely on ------------------------------------------------------------------------------------

HONEST = sections("honest.txt")


@pytest.mark.parametrize("name", HONEST)
def test_honest_programs_pass_honest_tests(name):
    program, test = HONEST[name].split("--- test\n")
    found = verdict(program, {"code": test})
    assert (found.score, found.status) == (1.0, OK), found


def test_a_program_named_like_a_built_in_function_is_tested_where_the_row_says_so():
    program, test = "def sum(a, b): return a - b", {"code": "assert sum(5, 3) == 2"}
    assert verdict(program, test, entry_point="sum").score == 1.0
    assert verdict(program, test).score == 0.0  # the test's `sum` is Python's
    assert verdict(program, test, entry_point="__builtins__").status == ERROR


def test_a_test_that_hands_over_what_cannot_cross_is_an_error_not_a_failure():
    found = verdict("def f(x): return 1", {"code": "class Node: pass\nassert f(Node()) == 1"})
    assert found.status == ERROR
    assert "Node" in found.detail


def test_reasons_for_people():
    assert "line 2 of the test" in verdict(WRONG_F, {"code": "\nassert f(1) == 1"}).detail
    assert "got 0, expected 41" in verdict(WRONG_F, CALL).detail
    assert "does not define 'g'" in verdict(WRONG_F, {"call": [1], "expected": 1}, entry_point="g").detail
    assert "ZeroDivisionError" in verdict("def f(x): return 1/0", CALL).detail
    assert (
        "ran longer than 0.5 s"
        in verdict("def f(x):\n    while 1: pass", CALL, settings=Settings(timeout_s=0.5)).detail
    )


# --- scores ---------------------------------------------------------------------------------------------------------


def test_share_all_and_parts():
    completion = ["```\ndef f(x): return x\n```"]
    tests = [[{"call": [1], "expected": 1}, {"call": {"x": 2}, "expected": 2}, {"call": "f(3)", "expected": 4}]]
    (share,) = code_reward([""], completion, tests, entry_point=["f"])
    assert (share.score, dict(share.parts)) == (2 / 3, {"passed": 2 / 3})
    assert "2 of 3 tests passed; test 2: got 3, expected 4" in share.detail
    for (found,) in (
        code_all_reward([""], completion, tests, entry_point=["f"]),
        code_reward([""], completion, tests, entry_point=["f"], scoring="all"),
    ):
        assert (found.score, dict(found.parts)) == (0.0, {"passed": 2 / 3})
    with pytest.raises(ValueError, match="scoring"):
        code_reward([""], completion, tests, scoring="most")


def test_each_test_has_a_fresh_program_and_limits_of_its_own():
    program = """
import os, time
calls = []
def f(x):
    calls.append(x)
    print("y" * 400_000)
    if x == 2: os._exit(0)
    if x == 3: time.sleep(60)
    if x == 4 and os.fork() == 0: time.sleep(60)
    return calls
"""
    tests = [{"call": [x], "expected": [x]} for x in (0, 1, 2, 3, 4, 5)]
    tests += [{"code": f"assert f({x}) == [{x}]"} for x in (0, 1, 2, 3, 4, 5)]
    found = verdict(program, *tests, entry_point="f", settings=Settings(timeout_s=1.0, total_s=30.0))
    assert (found.score, found.status) == (8 / 12, OK), found
    assert "test 2: ProgramEnded" in found.detail


def test_the_time_of_all_tests_is_bounded():
    started = time.monotonic()
    found = verdict("def f(x):\n    while 1: pass", *[CALL] * 40, settings=Settings(timeout_s=0.4, total_s=1.0))
    assert time.monotonic() - started < 12  # one after another they would take 16 s
    assert (found.score, found.status) == (0.0, OK)


def test_without_isolation_the_row_is_an_error_and_says_what_to_do(monkeypatch):
    from rewards.sandbox import process

    monkeypatch.setattr(process, "_reason_against", lambda name: "not here")
    found = verdict(WRONG_F, CALL, settings=Settings(isolation="namespaces", packages=("/usr/share",)))
    assert found.status == ERROR
    assert NONE in found.detail
    with pytest.raises(IsolationUnavailable):
        process.choose("auto")


# --- in the pool ----------------------------------------------------------------------------------------------------

PATIENT = """
from rewards.base import rowwise
from rewards.code import code_reward

@rowwise
def code(**columns):
    return code_reward(**columns, timeout_s=60.0, total_s=60.0)
"""


def test_deadlines_nest_and_leave_nothing(tmp_path):
    """The row's own time ends first: the soft timer interrupts it inside the sandbox, and nothing of that is left."""
    (tmp_path / "patient.py").write_text(PATIENT)
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    hang = "```\nimport os, signal, time\nfor _ in range(3): os.fork()\n"
    hang += "signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(100)\n```"
    tests = [[{"stdin": "", "stdout": "1"}]] * 4
    with RewardPool({f"{tmp_path}/patient.py:code": 1.0}, 2, timeout_s=3.0) as pool:
        right = "```\nprint(1)\n```"
        found = pool.score(["p"] * 4, [right, hang, right, hang], {"tests": tests})
        assert [v.status for v in found] == [OK, TIMEOUT, OK, TIMEOUT]
        assert [v.score for v in found] == [1.0, 0.0, 1.0, 0.0]
        assert programs_of(pool) == []
        assert [v.score for v in pool.score(["p"] * 2, [right] * 2, {"tests": tests[:2]})] == [1.0, 1.0]
    assert [child for child in psutil.Process().children(recursive=True) if child.pid not in before] == []


def programs_of(pool: RewardPool) -> list[str]:
    """Command lines of sandboxed processes under a pool, once those of the last row had a moment to end."""
    deadline = time.monotonic() + 2.0
    while True:
        found = []
        for process in psutil.Process(pool.pids()[0]).children(recursive=True):
            try:
                line = " ".join(process.cmdline())
            except psutil.NoSuchProcess:
                continue
            if "bwrap" in line or "rewards.sandbox.harness" in line:
                found.append(line)
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.02)


def test_the_built_in_name_works_in_a_pool_and_hanging_programs_are_not_timeouts():
    tests = [[{"stdin": "20", "stdout": "41"}, {"stdin": "1", "stdout": "3"}]] * 3
    programs = ["print(2 * int(input()) + 1)", "print(41)", "while True: pass"]
    with RewardPool({"code": 1.0}, 2, timeout_s=20.0) as pool:
        found = pool.score(["p"] * 3, [f"```\n{p}\n```" for p in programs], {"tests": tests})
    assert [(v.score, v.status) for v in found] == [(1.0, OK), (0.5, OK), (0.0, OK)]
    assert found[0].parts["code/passed"] == 1.0


# --- other languages ------------------------------------------------------------------------------------------------

SUM = {"stdin": "2 3", "stdout": "5"}
PROGRAMS = sections("languages.txt")
RUN_HERE = ("cpp", "java", "javascript", "bash")  # the others are contract-tested below
HERE = [language for language in LANGUAGES if language.name in RUN_HERE]


@pytest.mark.parametrize("language", HERE, ids=lambda language: language.name)
def test_other_languages(language):
    """Run where the toolchain is; elsewhere not applicable, whatever the program."""
    name = language.name
    good, bad = (PROGRAMS[f"{name}: function"].replace("SIGN", sign) for sign in "+-")
    test = {"code": PROGRAMS[f"{name}: test"].replace("ANSWER", "5")}
    if language.missing():
        assert verdict(good, test, language=name).status == NOT_APPLICABLE
        return
    called = (*language.aliases, name)[0]
    found = verdict(PROGRAMS[f"{name}: sum of two numbers"], SUM, {"stdin": "2 3", "stdout": "6"}, language=called)
    assert found.score == 0.5, found
    assert verdict(good, test, language=name).score == 1.0, verdict(good, test, language=name)
    assert verdict(bad, test, language=name).score == 0.0
    assert verdict("}{ (", test, SUM, language=name).score == 0.0
    for forged in [text for title, text in PROGRAMS.items() if title.startswith(f"{name}: forgery")]:
        found = verdict(forged, test, language=name)
        assert (found.score, found.status) == (0.0, OK), (forged, found)


@pytest.mark.parametrize(
    "language", [la for la in LANGUAGES if la.name not in (*RUN_HERE, "python")], ids=lambda la: la.name
)
def test_the_contract_of_languages_that_are_not_at_hand(language, monkeypatch):
    """What would be built and run, for languages whose toolchain this project's machines lack."""
    files = language.joined("program text", "test text", "the-token")
    joined = "\n".join(files.values())
    assert joined.index("program text") < joined.index("test text") < joined.index("the-token")
    monkeypatch.setattr(languages, "tool_path", lambda tool: None)
    assert language.missing() == list(language.tools)
    assert verdict("x", {"code": "x"}, language=language.name).status == NOT_APPLICABLE
    monkeypatch.setattr(languages, "tool_path", lambda tool: f"/usr/bin/{tool}")
    for template in (language.run, language.build, language.build_joined):
        argv = language.argv(template)
        assert all(not part.startswith("@") for part in argv)
        assert not argv or argv[0].startswith(("/usr/bin/", "/bin/sh"))


def test_the_main_class():
    assert (
        main_class("class A { static class B {} }\nclass C { public static void main(String[] a) {} }\nclass D {}")
        == "C"
    )
    assert main_class("public final class Solution {\n  public static final void main(String... a) {}\n}") == "Solution"
    assert main_class("int x;") == "Main"


# --- HumanEval and MBPP ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "step"), [("humaneval", 6), ("mbpp", 40)])
def test_the_datasets_own_solutions_pass_and_mutated_ones_fail(name, step):
    """A sample; all of them: ``python -m benchmarks.code_datasets``."""
    if not (DATA / name).exists():
        pytest.skip(f"../shared/data/{name} is absent")
    for task in code_datasets.READERS[name](DATA)[::step]:
        found = verdict(task.program, {"code": task.test}, entry_point=task.entry_point)
        assert (found.score, found.status) == (1.0, OK), (task.name, found)
        for mutant in code_datasets.mutants(task):
            found = verdict(mutant, {"code": task.test}, entry_point=task.entry_point)
            assert (found.score, found.status) == (0.0, OK), (task.name, found)
