"""The reward of a ``sample`` stage that makes synthetic data: has a response its form, and does its program run?

``reward: {functions: {"pretrain.data.synthetic_reward:form": 1.0}}``. Score 1 for a response of its form (column
``form``), else 0. A program must also pass its own tests in the sandbox of the `code` reward, and those tests must fail
without it: ``assert True`` tests nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pretrain.data.synthetic_forms import take_apart
from rewards.base import UNPARSEABLE, Verdict, rowwise
from rewards.code import Settings, grade
from rewards.format import prompt_opens_block, text_of

TIMEOUT_S = 4.0  # two runs within the 10 s that a row has by default
_FENCE = "`" * 24


@rowwise
def form(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    form: Sequence[str],
    prompt_text: Sequence[str] | None = None,
    *,
    timeout_s: float = TIMEOUT_S,
    **columns: Any,
) -> list[Verdict]:
    """1.0 for a response of its form whose program, where it has one, passes its own tests; else 0.0, with why.

    ``timeout_s``: of each of a program's two runs; both must fit into ``reward.timeout_s``.
    """
    verdicts = []
    for row, completion in enumerate(completions):
        opened = prompt_opens_block(prompts[row], prompt_text[row] if prompt_text else None)
        verdicts.append(judge(text_of(completion), form[row], opened, timeout_s))
    return verdicts


def judge(text: str, form: str, opened: bool, timeout_s: float = TIMEOUT_S) -> Verdict:
    """The verdict on one response."""
    try:
        parsed = take_apart(form, text, opened=opened)
    except ValueError as error:
        return Verdict(0.0, UNPARSEABLE, detail=str(error))
    if parsed.reason:
        return Verdict(0.0, detail=f"{parsed.reason}: {parsed.detail}")
    if form != "code":
        return Verdict(1.0, detail="has its form; what it says is not checked")
    return check_program(parsed.sections["program"], parsed.sections["tests"], timeout_s)


def check_program(program: str, tests: str, timeout_s: float = TIMEOUT_S) -> Verdict:
    """1.0 where the tests pass with the program and fail without it."""
    settings = Settings(scoring="all", total_s=timeout_s, timeout_s=timeout_s)
    with_it = _run(program, tests, settings)
    if not with_it.ok or with_it.score < 1.0:
        return with_it
    without = _run("pass\n", tests, settings)
    if without.ok and without.score == 1.0:
        return Verdict(0.0, detail="its tests pass without the program")
    return with_it if without.ok else without


def _run(program: str, tests: str, settings: Settings) -> Verdict:
    return grade(f"{_FENCE}python\n{program}\n{_FENCE}", [{"code": tests}], "python", "", settings)
