"""The `code` reward: does the program do what its tests ask? Programs run in ``rewards/sandbox``, never here.

The program is the last complete fenced block after ``</think>``. Column ``tests`` is a list; a test is one of

    {"stdin": "2 3", "stdout": "5"}        the whole program, compared by its output
    {"call": "add(2, 3)", "expected": 5}   an expression; or {"call": [2, 3], "expected": 5}: arguments of entry_point
    {"code": "assert add(2, 3) == 5"}      test code; the name ``candidate`` is the entry_point's

What a right verdict rests on: the expected output of the first two never enters the sandbox. Python test code runs in
a process of its own and sees data (``rewards/sandbox/bridge.py``). In other languages test code shares the program's
process (``rewards/sandbox/languages.py`` says what that is worth).

A program that crashes, hangs or takes too much has failed its test: status ok. Only a broken sandbox is an ``error``;
tests that cannot be read are ``unparseable``; a language without its tools here is ``not_applicable``.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rewards.answer import after_thoughts
from rewards.base import ERROR, NOT_APPLICABLE, UNPARSEABLE, Verdict, rowwise
from rewards.format import prompt_opens_block, text_of
from rewards.sandbox.filter import FilterUnavailable
from rewards.sandbox.languages import BY_NAME, LANGUAGES, Language
from rewards.sandbox.limits import Limits, SandboxError
from rewards.sandbox.process import Sandbox, choose
from rewards.sandbox.testing import Test, TestRun, UnreadableTests, read_tests

SCORINGS = ("share", "all")
_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[ \t]*([^\n`]*)$")
_MAX_PROGRAM = 1 << 20  # characters


@dataclass(frozen=True)
class Settings:
    """How programs are run and scored. The whole of a row must fit into ``reward.timeout_s``."""

    scoring: str = "share"  # of tests passed; "all": 1 or 0
    isolation: str = "auto"  # of rewards.sandbox.process.ISOLATIONS
    packages: tuple[str, ...] = ()  # folders of Python packages that programs may import
    timeout_s: float = 4.0  # one test
    total_s: float = 8.0  # all tests of a row, the build included; tests that are left then have failed
    memory_mib: int = 512  # a process

    def __post_init__(self) -> None:
        if self.scoring not in SCORINGS:
            raise ValueError(f"code reward: scoring: expected one of {SCORINGS}, got {self.scoring!r}")

    def limits(self) -> Limits:
        return Limits(self.timeout_s, self.timeout_s, self.memory_mib, total_mib=2 * self.memory_mib)


@rowwise
def code_reward(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    tests: Sequence[Any],
    language: Sequence[str | None] | None = None,
    entry_point: Sequence[str | None] | None = None,
    prompt_text: Sequence[str] | None = None,
    *,
    scoring: str = Settings.scoring,
    isolation: str = Settings.isolation,
    packages: Sequence[str] = Settings.packages,
    timeout_s: float = Settings.timeout_s,
    total_s: float = Settings.total_s,
    memory_mib: int = Settings.memory_mib,
    **columns: Any,
) -> list[Verdict]:
    """The share of column ``tests`` that the program passes; with ``scoring="all"`` 1.0 for all of them, else 0.0.

    ``language`` (default python) and ``entry_point`` are columns; the keywords after them are settings, see Settings.
    """
    settings = Settings(scoring, isolation, tuple(packages), timeout_s, total_s, memory_mib)
    verdicts = []
    for row, completion in enumerate(completions):
        opened = prompt_opens_block(prompts[row], prompt_text[row] if prompt_text else None)
        name = (language[row] if language else None) or "python"
        entry = (entry_point[row] if entry_point else None) or ""
        verdicts.append(grade(text_of(completion), tests[row], name, entry, settings, opened=opened))
    return verdicts


@rowwise
def code_all_reward(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    tests: Sequence[Any],
    language: Sequence[str | None] | None = None,
    entry_point: Sequence[str | None] | None = None,
    prompt_text: Sequence[str] | None = None,
    **columns: Any,
) -> list[Verdict]:
    """``code_reward`` with ``scoring="all"``: 1.0 for a program that passes every test, else 0.0."""
    return code_reward(prompts, completions, tests, language, entry_point, prompt_text, scoring="all")


def grade(
    completion: str, tests: Any, language: str, entry_point: str, settings: Settings, *, opened: bool = False
) -> Verdict:
    """The verdict on one completion; ``opened``: the prompt ends inside a think block."""
    found = BY_NAME.get(str(language).lower())
    if found is None:
        names = ", ".join(known.name for known in LANGUAGES)
        return Verdict(0.0, UNPARSEABLE, detail=f"column language: expected one of {names}, got {language!r}")
    try:
        cases = read_tests(tests, found.name, entry_point)
    except UnreadableTests as error:
        return Verdict(0.0, UNPARSEABLE, detail=f"column tests: {error}")
    missing = found.missing()
    if missing:
        return Verdict(0.0, NOT_APPLICABLE, detail=f"{found.name}: no {', '.join(missing)} on this machine")
    text = after_thoughts(completion, opened=opened)
    if text is None:
        return Verdict(0.0, detail="the think block is not closed")
    program = last_block(text)
    if program is None or not program.strip():
        return Verdict(0.0, detail="no complete fenced block after the thoughts")
    if len(program) > _MAX_PROGRAM:
        return Verdict(0.0, detail=f"a program of {len(program)} characters")
    return _run(program, cases, found, entry_point, settings)


def _run(program: str, cases: list[Test], language: Language, entry_point: str, settings: Settings) -> Verdict:
    started = time.monotonic()
    try:
        run = TestRun(sandbox(settings.isolation, settings.packages), language, program, entry_point, settings.limits())
        reasons = run.failures(cases, started + settings.total_s)
    except (SandboxError, FilterUnavailable) as error:
        return Verdict(0.0, ERROR, detail=str(error), seconds=time.monotonic() - started)
    num_passed = reasons.count("")
    share = num_passed / len(cases)
    first = next((f"; test {i}: {reason}" for i, reason in enumerate(reasons) if reason), "")
    return Verdict(
        share if settings.scoring == "share" else float(num_passed == len(cases)),
        parts={"passed": share},
        detail=f"{num_passed} of {len(cases)} tests passed{first}",
        seconds=time.monotonic() - started,
    )


def last_block(text: str) -> str | None:
    """What the last complete fenced block holds; a fence ends with one of its own kind that is at least as long."""
    fence, last = "", None
    body: list[str] = []
    for line in text.split("\n"):
        line = line.rstrip("\r")
        found = _FENCE.match(line)
        if fence:
            if found and found[1].startswith(fence) and not found[2].strip():
                last, fence = "\n".join(body) + "\n", ""
            else:
                body.append(line)
        elif found:
            fence, body = found[1], []
    return last


_sandboxes: dict[tuple[str, tuple[str, ...]], Sandbox] = {}


def sandbox(isolation: str, packages: tuple[str, ...]) -> Sandbox:
    """This process's sandbox of that kind, started on first use.

    Raises IsolationUnavailable.
    """
    if (isolation, packages) not in _sandboxes:
        _sandboxes[isolation, packages] = Sandbox(isolation, packages)
    return _sandboxes[isolation, packages]


def close_sandboxes() -> None:
    """End this process's sandboxes; they end by themselves when it does."""
    while _sandboxes:
        _sandboxes.popitem()[1].close()


def warm_up() -> None:
    """Try the isolation once for all workers, and say at the start what is missing."""
    try:
        choose("auto")
    except (SandboxError, FilterUnavailable) as error:
        print(f"code reward: {error}", file=sys.stderr)
    absent = [f"{language.name} (no {', '.join(language.missing())})" for language in LANGUAGES if language.missing()]
    if absent:
        print(f"code reward: not applicable on this machine: {'; '.join(absent)}", file=sys.stderr)
