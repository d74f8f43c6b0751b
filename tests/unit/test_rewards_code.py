"""The `code` reward: which block is the program, how tests are read and compared, and verdicts that cannot be forged."""

from __future__ import annotations

import gzip
import json
import re
import time
from fractions import Fraction
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
    try:
        decode(data)
    except ValueError:
        pass


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

# Every file of every process that can be opened, and their memory; the test's text is nowhere but in the judge's.
SPY = """
import os
wanted = "assert f(" + "20)", "def check(" + "candidate)", "isclose(" + "f(20"
def search(pid):
    for what in ("environ", "cmdline", "maps", "stack", "status"):
        yield open(f"/proc/{pid}/{what}", "rb").read().decode("latin-1")
    for number in os.listdir(f"/proc/{pid}/fd"):
        if "job" in os.readlink(f"/proc/{pid}/fd/{number}"):
            yield open(f"/proc/{pid}/fd/{number}", "rb").read().decode("latin-1")
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb") as memory:
        for line in maps:
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            if "r" in line.split()[1] and end - start < 1 << 24:
                memory.seek(start)
                yield memory.read(end - start).decode("latin-1")
def f(x):
    for pid in os.listdir("/proc"):
        if pid.isdigit() and int(pid) != os.getpid():
            try:
                for text in search(pid):
                    if any(word in text for word in wanted): return 41
            except (OSError, ValueError, OverflowError): pass
    return 0
"""
FORGERIES = {
    "wrong": WRONG_F,
    "exits with 0": f"import os\n{WRONG_F}\nos._exit(0)",
    "exits with 0 in the call": "import os\ndef f(x): os._exit(0)",
    "sys.exit": f"import sys\n{WRONG_F}\nsys.exit(0)",
    "SystemExit in the call": "def f(x): raise SystemExit(0)",
    "KeyboardInterrupt in the call": "def f(x): raise KeyboardInterrupt",
    "prints success": f"{WRONG_F}\nprint('passed'); print('ok'); print('1 passed')",
    "equal to everything": "class E:\n    __eq__ = lambda s, o: True\n    __ne__ = lambda s, o: False\n    __hash__ = None\ndef f(x): return E()",
    "an int equal to everything": "class E(int):\n    __eq__ = lambda s, o: True\n    __ne__ = lambda s, o: False\n    __hash__ = int.__hash__\n    __sub__ = __rsub__ = lambda s, o: 0\ndef f(x): return E(0)",
    "close to everything": "class E:\n    __sub__ = __rsub__ = lambda s, o: 0\n    __lt__ = __gt__ = __le__ = __ge__ = __eq__ = lambda s, o: True\n    __float__ = lambda s: 41.5\n    __abs__ = lambda s: 0\ndef f(x): return E()",
    "contains everything": "class E(list):\n    __contains__ = lambda s, o: True\n    __eq__ = lambda s, o: True\ndef f(x): return E()",
    "an object that contains everything": "class E:\n    __contains__ = lambda s, o: True\n    def __iter__(s): return iter([])\ndef f(x): return E()",
    "true whatever is asked": "class E:\n    __getattr__ = lambda s, n: (lambda *a: True)\n    __bool__ = lambda s: True\n    __eq__ = lambda s, o: True\ndef f(x): return E()",
    "patches the built-in names": f"import builtins\nbuiltins.AssertionError = type('A', (Exception,), {{}})\nbuiltins.all = builtins.isinstance = lambda *a: True\nbuiltins.abs = lambda x: 0\n{WRONG_F}",
    "names of its own for built-in ones": f"all = isinstance = any = lambda *a: True\nabs = lambda x: 0\nclass AssertionError(Exception): pass\n{WRONG_F}",
    "a module of its own": f"class math:\n    isclose = staticmethod(lambda *a, **k: True)\n{WRONG_F}",
    "sys.modules": f"import sys, math\nmath.isclose = lambda *a, **k: True\nclass M: pass\nm = M(); m.isclose = lambda *a, **k: True\nsys.modules['math'] = m\n{WRONG_F}",
    "atexit": f"import atexit, os\natexit.register(os._exit, 0)\n{WRONG_F}",
    "closes every descriptor": f"import os\nos.closerange(0, 256)\n{WRONG_F}",
    "writes to every descriptor": f"import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'ready\\n' + b'0' * 32 + b' passed 0 0\\n')\n    except OSError: pass\n{WRONG_F}",
    "replaces the bridge's encoder": f"import sys\nb = sys.modules['rewards.sandbox.bridge']\nb.encode = lambda v, o=None: b't2:s5:valueT'\n{WRONG_F}",
    "replaces what the bridge does": f"import sys\nb = sys.modules['rewards.sandbox.bridge']\nb._do = lambda *a: (41, [])\ndef f(x): return 0\nclass E:\n    __eq__ = lambda s, o: True\nb._do = lambda *a: (E(), [])",
    "sends names of its own": f"import sys\nb = sys.modules['rewards.sandbox.bridge']\nyes = lambda *a, **k: True\nb._names = lambda m: ({{'f': yes, '__builtins__': {{'abs': yes, 'all': yes, 'isinstance': yes, '__import__': yes}}, 'all': yes, 'AssertionError': ValueError}}, {{}}, {{'f': ('operator', 'truth')}}, {{'AssertionError': 'Exception'}})",
    "claims to be a module of the library": f"import sys\nb = sys.modules['rewards.sandbox.bridge']\nb._names = lambda m: ({{}}, {{'f': 'os', 'candidate': 'os'}}, {{'f': ('builtins', 'bool')}}, {{}})",
    "looks for the test in its memory": "import gc, sys\ndef f(x):\n    for o in gc.get_objects():\n        if isinstance(o, dict) and 'test' in o and 'nonce' in o: return 41\n    frame = sys._getframe()\n    while frame:\n        if 'secret' in frame.f_locals: return 41\n        frame = frame.f_back\n    return 0",
    "looks for the test in other processes": SPY,
    "kills its judge": "import os, signal\ndef f(x):\n    os.kill(os.getppid(), signal.SIGKILL)\n    return 0",
    "stops its judge": "import os, signal\nos.kill(os.getppid(), signal.SIGSTOP)\n" + WRONG_F,
    "sleeps": "import time\ndef f(x): time.sleep(60)",
    "spins": "def f(x):\n    while True: pass",
    "recurses": "def f(x): return f(x)",
    "does not parse": "def f(x",
    "defines nothing": "pass",
    "raises": "def f(x): raise ValueError",
    "raises what an assertion would": "def f(x): raise AssertionError",
    "a generator": "def f(x):\n    yield 0",
    "a generator without end": "import itertools\ndef f(x): return itertools.count(42)",
    "a class": "class f:\n    def __init__(self, x): pass\n    __eq__ = lambda s, o: True",
    "a decorated nothing": "f = None",
    "a callback that asks for more": "def f(x):\n    return lambda *a: True",
    "deep data": "def f(x):\n    l = []\n    for _ in range(5000): l = [l]\n    return l",
    "much data": "def f(x): return 'x' * (30 << 20)",
    "a huge number": "def f(x): return 10 ** 100000",
    "a segmentation fault": "import ctypes\ndef f(x): ctypes.string_at(0)",
    "a message without end": "import os\ndef f(x):\n    os.write(6, (1 << 40).to_bytes(8, 'big')); return 0",
    "builds classes in the judge": "import sys\nb = sys.modules['rewards.sandbox.bridge']\ndef f(x): return 0\nb._do = lambda channel, *a: channel.send(('callback', type, ('X', (int,), {}), {})) or channel.receive()[1]",
    "calls what nobody passed": "import sys\nb = sys.modules['rewards.sandbox.bridge']\ndef f(x): return 0\nb._do = lambda channel, *a: [channel.send(('callback', c, (), {})) or channel.receive() for c in (int, object, 5, None, f)] and (0, [])",
    "forks and answers twice": "import os\ndef f(x):\n    os.fork()\n    return 0",
}


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

HONEST = [
    ("def f(a): a.sort()", "x = [3, 1]\nassert f(x) is None\nassert x == [1, 3]"),
    ("def f(d): d['k'] = 1; return d", "x = {}\nassert f(x) == {'k': 1}\nassert x == {'k': 1}"),
    ("def f(g, x): return g(g(x))", "assert f(lambda v: v + 1, 1) == 3"),
    (
        "def f(g):\n    try: return g(1)\n    except TypeError: return 'odd'",
        "class Own: pass\nassert f(lambda v: Own()) == 'odd'",
    ),
    (
        "def f(g):\n    try: g()\n    except KeyError as e: return 'caught'",
        "def boom(): raise KeyError('k')\nassert f(boom) == 'caught'",
    ),
    ("def f(n):\n    def g(x): return x + n\n    return g", "assert f(3)(4) == 7"),
    (
        "def f(n):\n    for i in range(n): yield i",
        "assert list(f(3)) == [0, 1, 2]\nassert sum(f(4)) == 6\nassert 2 in f(3)",
    ),
    (
        "def f(): return (1, {2}, frozenset({3}), b'4', 5j, None, True, 1.5)",
        "assert f() == (1, {2}, frozenset({3}), b'4', 5j, None, True, 1.5)\nassert type(f()) is tuple",
    ),
    (
        "from collections import *\ndef f(): return Counter('aab'), deque([1]), OrderedDict(a=1), defaultdict(int, b=2)",
        "from collections import deque\nassert f() == ({'a': 2, 'b': 1}, deque([1]), {'a': 1}, {'b': 2})",
    ),
    (
        "from fractions import Fraction\nfrom decimal import Decimal\nimport datetime\ndef f(): return Fraction(1, 2), Decimal('1.5'), datetime.date(2020, 1, 2)",
        "import datetime\nassert f()[0] == 0.5 and f()[1] == 1.5 and f()[2] == datetime.date(2020, 1, 2)",
    ),
    (
        "class Stack:\n    def __init__(self): self.items = []\n    def push(self, x): self.items.append(x); return self\n    def __len__(self): return len(self.items)\n    def __getitem__(self, i): return self.items[i]",
        "s = Stack()\ns.push(1).push(2)\nassert len(s) == 2 and s[0] == 1 and s.items == [1, 2]\nassert isinstance(s, Stack)\ns.items = [9]\nassert s[0] == 9 and list(s) == [9]",
    ),
    (
        "class P:\n    def __init__(self, x): self.x = x\n    def __eq__(self, o): return self.x == o.x\n    def __lt__(self, o): return self.x < o.x\n    def __add__(self, o): return P(self.x + o.x)\n    def __repr__(self): return f'P({self.x})'",
        "assert P(1) == P(1) and P(1) != P(2) and P(1) < P(2)\nassert P(1) + P(2) == P(3) and repr(P(1)) == 'P(1)'\nassert max([P(1), P(3), P(2)]).x == 3",
    ),
    (
        "class Empty(ValueError): pass\ndef f(): raise Empty('none')",
        "try:\n    f()\n    assert False\nexcept Empty as e:\n    assert str(e) == 'none'\ntry:\n    f()\n    assert False\nexcept ValueError:\n    pass",
    ),
    (
        "import math\nfrom itertools import chain\nLIMIT = 7\ndef f(x): return x",
        "assert math.sqrt(4) == 2 and list(chain([1], [2])) == [1, 2] and LIMIT == 7",
    ),
    ("import enum\nclass C(enum.IntEnum):\n    A = 1\ndef f(): return C.A", "assert f() == 1"),
    (
        "from typing import List, NamedTuple\nclass N(NamedTuple):\n    a: int\ndef f() -> List[int]: return N(1)",
        "assert f() == (1,)",
    ),
    ("def f(): return int", "assert f() is int"),
    ("def f(x=1, *, y=2): return x, y", "assert f() == (1, 2) and f(3, y=4) == (3, 4)"),
    (
        "from functools import lru_cache\n@lru_cache(None)\ndef f(n): return n if n < 2 else f(n - 1) + f(n - 2)",
        "assert f(50) == 12586269025",
    ),
    ("f = lambda x: x * 2", "assert f(4) == 8\nassert f('ab') == 'abab'"),
    ("def f(x): print(x); return x", "assert f(1) == 1"),
    ("def copy(x): return x", "assert copy(3) == 3"),
]


@pytest.mark.parametrize(("program", "test"), HONEST)
def test_honest_programs_pass_honest_tests(program, test):
    found = verdict(program, {"code": test})
    assert (found.score, found.status) == (1.0, OK), found


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


def test_the_time_of_all_tests_is_bounded():
    started = time.monotonic()
    found = verdict("def f(x):\n    while 1: pass", *[CALL] * 10, settings=Settings(timeout_s=0.4, total_s=1.0))
    assert time.monotonic() - started < 5
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
    hang = "```\nimport os, signal, time\nfor _ in range(3): os.fork()\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(100)\n```"
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
PROGRAMS = {
    "cpp": "#include <iostream>\nint main() { int a, b; std::cin >> a >> b; std::cout << a + b << std::endl; exit(0); }",
    "java": "import java.util.*;\npublic class Sum { public static void main(String[] a) { var s = new Scanner(System.in); System.out.println(s.nextInt() + s.nextInt()); } }",
    "javascript": "const [a, b] = require('fs').readFileSync(0, 'utf8').split(' ').map(Number); console.log(a + b)",
    "bash": "read a b; echo $((a + b)) > /dev/stdout",
}
FUNCTIONS = {
    "cpp": ("int add(int a, int b) {{ {} return a {} b; }}", "int main() {{ assert(add(2, 3) == {}); }}"),
    "java": (
        "class Problem {{ static int add(int a, int b) {{ {} return a {} b; }} }}",
        "class Test {{ public static void main(String[] a) {{ assert Problem.add(2, 3) == {}; }} }}",
    ),
    "javascript": (
        "const add = (a, b) => {{ {} return a {} b }}",
        "const assert = require('node:assert'); assert.deepEqual(add(2, 3), {})",
    ),
    "bash": ("add() {{ {} echo $(($1 {} $2)); }}", "set -e\n[[ $(add 2 3) = {} ]]"),
}
FORGED = {
    "cpp": [
        "#include <cstdlib>\nint add(int a, int b) { exit(0); }",
        "#include <unistd.h>\nint add(int a, int b) { _exit(0); }",
        "#include <cstdlib>\nstruct S { S() { exit(0); } } s;\nint add(int, int) { return 0; }",
        "#define NDEBUG\n#include <cassert>\n#define assert(x)\nint add(int, int) { return 0; }",
        "#include <cstdlib>\nint add(int, int) { std::quick_exit(0); }",
        '#include <cstdio>\nint add(int, int) { puts("passed"); fflush(stdout); return 0; }',
    ],
    "java": [
        "class Problem { static int add(int a, int b) { System.exit(0); return 0; } }",
        "class Problem { static int add(int a, int b) { Runtime.getRuntime().halt(0); return 0; } }",
        "class Problem { static { System.exit(0); } static int add(int a, int b) { return 0; } }",
    ],
    "javascript": [
        "process.exit(0); const add = 0",
        "const add = () => process.exit(0)",
        "require('assert').deepEqual = () => {}; const add = () => 0",
        "require('assert').AssertionError = class {}; const add = () => 0",
        "process.on('exit', () => { process.exitCode = 0 }); const add = () => 0",
        "process.on('uncaughtException', () => {}); const add = () => 0",
        "globalThis.require = () => ({deepEqual() {}}); const add = () => 0",
    ],
    "bash": ["exit 0", "add() { exit 0; }", "add() { echo 0; }; trap 'exit 0' EXIT"],
}
HERE = [language for language in LANGUAGES if language.name in PROGRAMS]


@pytest.mark.parametrize("language", HERE, ids=lambda language: language.name)
def test_other_languages(language):
    """Run where the toolchain is; elsewhere not applicable, whatever the program."""
    name = language.name
    good, bad = (FUNCTIONS[name][0].format("", sign) for sign in "+-")
    test = {"code": FUNCTIONS[name][1].format(5)}
    if language.missing():
        assert verdict(good, test, language=name).status == NOT_APPLICABLE
        return
    found = verdict(
        PROGRAMS[name], SUM, {"stdin": "2 3", "stdout": "6"}, language=language.aliases[0] if language.aliases else name
    )
    assert found.score == 0.5, found
    assert verdict(good, test, language=name).score == 1.0, verdict(good, test, language=name)
    assert verdict(bad, test, language=name).score == 0.0
    assert verdict("}{ (", test, SUM, language=name).score == 0.0
    for forged in FORGED[name]:
        found = verdict(forged, test, language=name)
        assert (found.score, found.status) == (0.0, OK), (forged, found)


@pytest.mark.parametrize(
    "language", [la for la in LANGUAGES if la.name not in (*PROGRAMS, "python")], ids=lambda la: la.name
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


def human_eval() -> list[tuple[str, str, str]]:
    path = DATA / "humaneval" / "HumanEval.jsonl"
    if not path.exists():
        pytest.skip("../shared/data/humaneval is absent")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        (row["prompt"] + row["canonical_solution"], f"{row['test']}\ncheck({row['entry_point']})", row["entry_point"])
        for row in rows
    ]


def mutated(program: str, entry_point: str) -> str:
    """The same program with its function replaced by one that returns what no test expects."""
    return f"{program}\n\n_right = {entry_point}\ndef {entry_point}(*args):\n    _right(*args)\n    return object\n"


def test_human_eval_solutions_pass_and_mutated_ones_fail():
    """Every fourth here; all of them: ``python -m benchmarks.code_datasets``."""
    for program, test, entry_point in human_eval()[::4]:
        found = verdict(program, {"code": test}, entry_point=entry_point)
        assert (found.score, found.status) == (1.0, OK), (entry_point, found)
        found = verdict(mutated(program, entry_point), {"code": test}, entry_point=entry_point)
        assert (found.score, found.status) == (0.0, OK), (entry_point, found)


def test_mbpp_solutions_pass_and_mutated_ones_fail():
    """Every twentieth here; all of them: ``python -m benchmarks.code_datasets``."""
    path = DATA / "mbpp" / "mbpp.jsonl.gz"
    if not path.exists():
        pytest.skip("../shared/data/mbpp is absent")
    rows = [json.loads(line) for line in gzip.open(path, "rt").read().splitlines()]
    for row in rows[::20]:
        test = {"code": "\n".join([row["test_setup_code"], *row["test_list"]])}
        found = verdict(row["code"], test)
        assert (found.score, found.status) == (1.0, OK), (row["task_id"], found)
        names = re.findall(r"assert\s*\(*(?:\w+\()*(\w+)\(", row["test_list"][0])
        defined = [name for name in re.findall(r"^def (\w+)", row["code"], re.MULTILINE) if name in row["test_list"][0]]
        assert defined, (row["task_id"], names)
        found = verdict(mutated(row["code"], defined[-1]), test)
        assert (found.score, found.status) == (0.0, OK), (row["task_id"], found)
