"""Tests of a program: reading them from a dataset, running them, comparing outside what came back."""

from __future__ import annotations

import json
import math
import numbers
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rewards.sandbox.languages import Language, main_class
from rewards.sandbox.limits import Job, Limits, Outcome, SandboxError
from rewards.sandbox.plain import NotPlain, decode, encode
from rewards.sandbox.process import Sandbox

_RELATIVE, _ABSOLUTE = 1e-9, 1e-12  # floats are as equal as two orders of summation make them
_MAX_BUILT = 1 << 27
_SHOWN = 200  # characters of a program's own words in a reason
_FORMS = ({"stdin", "stdout"}, {"call", "expected"}, {"code"})


class UnreadableTests(ValueError):
    """Tests that say nothing about a program; the message says which, and what was expected."""


@dataclass(frozen=True)
class Test:
    """One of the three forms; ``kind`` says which."""

    __test__ = False  # for pytest, which collects names like this one

    kind: str  # stdin, call, code
    stdin: str = ""
    stdout: str = ""
    call: str = ""  # an expression
    arguments: Sequence[Any] = ()  # of entry_point, where there is no expression
    keywords: Mapping[str, Any] = field(default_factory=dict)
    expected: Any = None
    code: str = ""


def read_tests(raw: Any, language: str, entry_point: str) -> list[Test]:
    """Column ``tests`` of one row: a list of mappings, or the same as JSON. Keys without a value are ignored.

    Raises UnreadableTests.
    """
    if isinstance(raw, str):
        try:
            raw = json.loads(raw)
        except ValueError as error:
            raise UnreadableTests(f"expected a list or its JSON, got text that is no JSON ({error})") from error
    if hasattr(raw, "tolist"):
        raw = raw.tolist()
    if not isinstance(raw, Sequence) or isinstance(raw, (str, bytes)) or not raw:
        raise UnreadableTests(f"expected a list of at least one test, got {_short(raw)}")
    return [_read_test(i, test, language, entry_point) for i, test in enumerate(raw)]


def _read_test(number: int, raw: Any, language: str, entry_point: str) -> Test:
    if not isinstance(raw, Mapping):
        raise UnreadableTests(f"test {number}: expected a mapping, got {_short(raw)}")
    # A table of rows with different keys fills the absent ones with None; `expected` may be None in earnest.
    test = {key: value for key, value in raw.items() if value is not None}
    if "call" in test and "expected" in raw:
        test["expected"] = raw["expected"]
    if "stdout" in test:
        test.setdefault("stdin", "")
    if set(test) not in _FORMS:
        got = ", ".join(map(str, test)) or "none"
        raise UnreadableTests(
            f"test {number}: expected the keys stdin and stdout, call and expected, or code, got {got}"
        )
    for key in ("stdin", "stdout", "code"):
        if not isinstance(test.get(key, ""), str):
            raise UnreadableTests(f"test {number}: {key}: expected text, got {_short(test[key])}")
    if "code" in test:
        return Test("code", code=test["code"])
    if "stdout" in test:
        return Test("stdin", stdin=test["stdin"], stdout=test["stdout"])
    return _read_call(number, test["call"], test["expected"], language, entry_point)


def _read_call(number: int, call: Any, expected: Any, language: str, entry_point: str) -> Test:
    if language != "python":
        raise UnreadableTests(f"test {number}: call and expected are for Python; for {language} write stdin and stdout")
    try:
        encode(expected)
        encode(call)
    except NotPlain as error:
        raise UnreadableTests(f"test {number}: {error}") from error
    if isinstance(call, str):
        return Test("call", call=call, expected=expected)
    if not entry_point:
        raise UnreadableTests(f"test {number}: a call that is a list of arguments needs the column entry_point")
    if isinstance(call, Mapping):
        return Test("call", keywords=dict(call), expected=expected)
    if hasattr(call, "tolist"):
        call = call.tolist()
    if not isinstance(call, Sequence):
        raise UnreadableTests(f"test {number}: call: expected an expression or arguments, got {_short(call)}")
    return Test("call", arguments=list(call), expected=expected)


# --- running --------------------------------------------------------------------------------------------------------


class TestRun:
    """One program against its tests; a program that needs it is built once for all of them."""

    __test__ = False

    def __init__(self, sandbox: Sandbox, language: Language, program: str, entry_point: str, limits: Limits) -> None:
        self._sandbox, self._language, self._program = sandbox, language, program
        self._entry_point = entry_point
        self._limits = replace(limits, memory_mib=max(limits.memory_mib, language.min_memory_mib))
        self._limits = replace(self._limits, total_mib=max(limits.total_mib, self._limits.memory_mib))
        self._built: dict[str, bytes] | str | None = None  # files, or why there are none

    def failures(self, tests: Sequence[Test], deadline: float) -> list[str]:
        """Why the program fails each test; "" where it passes. ``deadline``: of time.monotonic(), for all tests.

        Raises SandboxError.
        """
        reasons: dict[int, str] = {}
        for mode in ("call", "code") if self._language.name == "python" else ():
            chosen = [i for i, test in enumerate(tests) if test.kind == mode]
            secrets_of = [self._secret(tests[i]) for i in chosen]
            outcomes = self._sandbox.judge(Job(mode, self._program), secrets_of, self._limits, deadline)
            reasons |= {i: _of_judgement(tests[i], outcome) for i, outcome in zip(chosen, outcomes, strict=True)}
        for i, test in enumerate(tests):
            if i not in reasons:
                reasons[i] = self._failure_of_run(test, deadline)
        return [reasons[i] for i in range(len(tests))]

    def _secret(self, test: Test) -> dict[str, Any]:
        """What the judge is told. The names that a call needs are no secret; the expected value is: it stays here."""
        arguments = {"args": encode(list(test.arguments)), "kwargs": encode(dict(test.keywords))}
        return {"entry_point": self._entry_point, "test": test.code, "call": test.call, **arguments}

    def _failure_of_run(self, test: Test, deadline: float) -> str:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            return "not run: the tests before it used up the time"
        if self._language.name == "python":
            return _of_output(self._run(Job("script", self._program, stdin=test.stdin.encode()), left_s), test.stdout)
        return self._failure_elsewhere(test, deadline)

    def _run(self, job: Job, left_s: float, limits: Limits | None = None) -> Outcome:
        limits = limits or self._limits
        return self._sandbox.run(job, replace(limits, wall_s=min(limits.wall_s, left_s)))

    def _failure_elsewhere(self, test: Test, deadline: float) -> str:
        language, token = self._language, ""
        if test.kind == "code":
            token = secrets.token_hex(16)
            files = language.joined(self._program, test.code, token)
            build = language.build_joined or language.build
            built = self._build(build, files, deadline) if build else _as_bytes(files)
            main = "TestsEnd"
        else:
            files = language.source(self._program)
            if self._built is None:
                self._built = self._build(language.build, files, deadline) if language.build else _as_bytes(files)
            built, main = self._built, main_class(self._program)
        if isinstance(built, str):
            return built
        template = language.run_joined if test.kind == "code" and language.run_joined else language.run
        job = self._job(template, built, main, token)
        outcome = self._run(replace(job, stdin=test.stdin.encode()), max(0.01, deadline - time.monotonic()))
        if test.kind == "stdin":
            return _of_output(outcome, test.stdout)
        if outcome.kind != "exited" or outcome.exit_code != 0:
            return _told(outcome)
        return "" if token.encode() in outcome.payload else "ended before its tests did"

    def _job(self, argv: tuple[str, ...], files: Mapping[str, bytes], main: str, token: str = "") -> Job:
        return Job(
            "exec",
            argv=self._language.argv(argv, main),
            files=files,
            wants_token=bool(token),
            address_space=self._language.address_space,
        )

    def _build(self, argv: tuple[str, ...], files: Mapping[str, str], deadline: float) -> dict[str, bytes] | str:
        limits = replace(self._limits, wall_s=60.0, cpu_s=60.0, memory_mib=1024, total_mib=1536, num_files=1024)
        job = replace(self._job(argv, _as_bytes(files), ""), outputs=self._language.built)
        outcome = self._run(job, max(0.01, deadline - time.monotonic()), limits)
        if outcome.kind == "exited" and outcome.exit_code == 0:
            return dict(decode(outcome.payload))
        return f"does not build: {_told(outcome)}"


def _as_bytes(files: Mapping[str, str]) -> dict[str, bytes]:
    return {name: text.encode("utf-8", "surrogatepass") for name, text in files.items()}


def _told(outcome: Outcome) -> str:
    if outcome.kind == "cannot":
        raise SandboxError(f"the test cannot be run across processes: {outcome.text}")
    if outcome.kind != "exited":
        return outcome.text
    how = f"ended with signal {-outcome.exit_code}" if outcome.exit_code < 0 else f"ended with {outcome.exit_code}"
    words = (outcome.stderr or outcome.stdout).decode("utf-8", "replace").strip()
    return f"{how}: {words[-_SHOWN:]}" if words else how


def _of_judgement(test: Test, outcome: Outcome) -> str:
    if test.kind == "code":
        return "" if outcome.kind == "passed" else _told(outcome)
    if outcome.kind != "value":
        return _told(outcome)
    # Larger than this it is something else anyway, and reading it would cost this process, not the program.
    if len(outcome.payload) > (1 << 16) + 8 * len(encode(test.expected)):
        return "a result much larger than the expected one"
    value = decode(outcome.payload)
    return "" if same_value(test.expected, value) else f"got {_short(value)}, expected {_short(test.expected)}"


def _of_output(outcome: Outcome, expected: str) -> str:
    if outcome.kind != "exited" or outcome.exit_code != 0:
        return _told(outcome)
    written = outcome.stdout.decode("utf-8", "replace")
    return "" if same_output(expected, written) else f"wrote {_short(written)}, expected {_short(expected)}"


# --- comparing ------------------------------------------------------------------------------------------------------


def same_output(expected: str, written: str) -> bool:
    """Equal but for white space at the ends of lines and empty lines at the end."""
    return _lines(expected) == _lines(written)


def _lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def same_value(expected: Any, value: Any) -> bool:
    """Equal as Python has it, but for what datasets cannot say: a tuple, a range or a deque equals the list of its
    items, keys of a mapping may be written as text, and floats are equal within 1e-9 of each other.
    """
    if isinstance(expected, bool) or isinstance(value, bool) or expected is None or value is None:
        return type(expected) is type(value) and expected == value
    if isinstance(expected, (float, complex)) or isinstance(value, (float, complex)):
        return _close(expected, value)
    if isinstance(expected, Mapping):
        return isinstance(value, dict) and _same_mapping(expected, value)
    if isinstance(expected, (list, tuple)):
        if isinstance(value, (str, bytes, bytearray, dict, set, frozenset)) or not hasattr(value, "__len__"):
            return False
        try:
            if len(value) != len(expected):
                return False
        except OverflowError:  # a range with more items than any list
            return False
        return all(same_value(e, v) for e, v in zip(expected, value, strict=True))
    return bool(expected == value)


def _same_mapping(expected: Mapping[Any, Any], value: dict[Any, Any]) -> bool:
    if len(expected) != len(value):
        return False
    for key, item in expected.items():
        if key not in value:
            # JSON has only text for keys.
            other = [k for k in value if isinstance(key, str) and not isinstance(k, str) and str(k) == key]
            if len(other) != 1:
                return False
            key = other[0]
        if not same_value(item, value[key]):
            return False
    return True


def _close(expected: Any, value: Any) -> bool:
    if not all(isinstance(number, numbers.Number) for number in (expected, value)):
        return False
    if isinstance(expected, complex) or isinstance(value, complex):
        return abs(expected - value) <= max(_ABSOLUTE, _RELATIVE * abs(expected))
    try:
        a, b = float(expected), float(value)
    except OverflowError:
        return False
    return (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE)


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except Exception as error:  # e.g. an integer with more digits than Python writes
        text = f"a {type(value).__name__} ({error})"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
