"""A Python interpreter behind walls: the model writes cells, as in a notebook, and reads what they print.

    prompt   What does this print? print(sum(range(7, 93, 4)))
    call     python {"code": "print(sum(range(7, 93, 4)))"}
    result   1078
    answer   1078

State lives on by replay: a call runs all earlier cells of the episode anew, silently, and then its own. So no process
of a model's waits between two turns, nothing outlives an episode, and a replay of the episode is the same (strings
hash alike, and ``random`` begins with one seed). The price is time: n cells cost n(n + 1) / 2. A cell that ends the
interpreter, or is ended by a limit, leaves nothing behind: later cells run as if it had not been.
"""

from __future__ import annotations

import contextlib
import functools
import io
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import CodeType
from typing import Any

from rewards.sandbox.limits import Job, Limits
from rewards.sandbox.process import Sandbox
from rlplatform.environments.calculator import same_answer
from rlplatform.environments.text import Policy, say, script
from rlplatform.environments.tools import Tool, ToolEnvironment, ToolError, call_text

LEVELS = (1, 2, 3)
MAX_CODE = 4000  # characters of a cell
NUM_SANDBOXES = 2  # of a process; calls beyond that wait
_DONE = "\x04done\n"  # the last line of a run that came to its end

# Runs the cells in one namespace; those before the last print nowhere and may fail. The last one's value is shown.
_NOTEBOOK = """
import ast, contextlib, io, random, sys, traceback
def run(cells):
    space = {"__name__": "__main__"}
    random.seed(0)
    for number, cell in enumerate(cells):
        shown = contextlib.nullcontext() if number == len(cells) - 1 else contextlib.redirect_stdout(io.StringIO())
        with shown:
            try:
                tree = ast.parse(cell, "<cell>")
                last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
                exec(compile(tree, "<cell>", "exec"), space)
                if last is not None:
                    value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), space)
                    if value is not None:
                        print(repr(value))
            except Exception as error:
                where = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == "<cell>"]
                line = f" (line {where[-1]})" if where else ""
                print(f"{type(error).__name__}: {error}{line}")
"""


@dataclass(frozen=True)
class CellResult:
    text: str  # what it printed, its last expression's value, or its exception
    finished: bool  # False: it left nothing behind


Runner = Callable[[Sequence[str]], CellResult]  # all cells of an episode, the new one last


class PythonSandbox(ToolEnvironment):
    """Success: the final answer is the row's ``answer``, and a cell was run.

    ``isolation`` as in ``rewards.sandbox.process``; ``timeout_s`` and ``memory_mib`` are of one call, replay included.
    ``run`` replaces the sandbox.
    """

    def __init__(
        self,
        *,
        timeout_s: float = 4.0,
        memory_mib: int = 256,
        isolation: str = "auto",
        needs_tool: bool = True,
        show_tools: bool = True,
        run: Runner | None = None,
    ) -> None:
        super().__init__(needs_tool=needs_tool, show_tools=show_tools)
        limits = Limits(wall_s=timeout_s, cpu_s=timeout_s, memory_mib=memory_mib, output_kib=64, num_processes=16)
        self._run: Runner = run or functools.partial(run_cells, limits=limits, isolation=isolation)
        self._cells: list[str] = []

    def tools(self) -> Sequence[Tool]:
        self._cells = []
        described = "Run Python code. Variables live on. Returns what it prints."
        return [Tool("python", described, {"code": {"type": "string"}}, self._python)]

    def _python(self, code: str) -> str:
        if len(code) > MAX_CODE:
            raise ToolError(f"code of at most {MAX_CODE} characters, got {len(code)}")
        result = self._run([*self._cells, code])
        if result.finished:
            self._cells.append(code)
        return result.text

    def grade(self, answer: str) -> tuple[bool, Mapping[str, float], str]:
        right = same_answer(answer, str(self.row["answer"]))
        return right, {"answer": float(right)}, "" if right else f"answered {answer[:60]!r}"


# --- running --------------------------------------------------------------------------------------------------------


def run_cells(cells: Sequence[str], *, limits: Limits, isolation: str = "auto") -> CellResult:
    """Run cells in a sandbox, a fresh one each time.

    Raises:
        SandboxError: the sandbox itself does not work.
    """
    return _executor().submit(_run_cells, list(cells), limits, isolation).result()


@functools.cache
def _executor() -> ThreadPoolExecutor:
    """A sandbox's launcher ends with the thread that started it, so these threads stay."""
    return ThreadPoolExecutor(NUM_SANDBOXES, thread_name_prefix="python_sandbox")


_OWN = threading.local()


def _run_cells(cells: list[str], limits: Limits, isolation: str) -> CellResult:
    sandboxes: dict[str, Sandbox] = _OWN.__dict__.setdefault("sandboxes", {})
    if isolation not in sandboxes:
        sandboxes[isolation] = Sandbox(isolation)
    source = f"{_NOTEBOOK}\nrun({cells!r})\nsys.stdout.write({_DONE!r})\n"
    outcome = sandboxes[isolation].run(Job("script", source, environment={"PYTHONHASHSEED": "0"}), limits)
    text = outcome.stdout.decode("utf-8", "replace")
    if outcome.kind == "exited" and text.endswith(_DONE):
        return CellResult(text.removesuffix(_DONE).rstrip("\n") or "(no output)", finished=True)
    said = outcome.text or f"the interpreter ended with {outcome.exit_code}"
    stderr = outcome.stderr.decode("utf-8", "replace").strip().splitlines()
    return CellResult("\n".join(part for part in (text.rstrip("\n"), *stderr[-1:], f"error: {said}") if part), False)


def run_trusted(cells: Sequence[str]) -> CellResult:
    """The same in this process, for code of our own: the experts' thousands of cells need no walls."""
    space: dict[str, Any] = {}
    exec(_compiled(), space)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        state = random.getstate()
        try:
            space["run"](list(cells))
        finally:
            random.setstate(state)
    return CellResult(printed.getvalue().rstrip("\n") or "(no output)", finished=True)


@functools.cache
def _compiled() -> CodeType:
    return compile(_NOTEBOOK, "<notebook>", "exec")


# --- rows -----------------------------------------------------------------------------------------------------------


def make_row(rng: random.Random, level: int) -> dict[str, Any]:
    """One question; ``cells`` are what the expert runs. Level 1 is one line, level 2 a variable that lives on over two
    cells, level 3 a loop."""
    a, b, c = rng.randrange(100, 1000), rng.randrange(100, 1000), rng.randrange(2, 50)
    if level == 1:
        code = rng.choice([f"print({a} * {b} % {c})", f"print({a} * {b} + {c})", f"print(sum(range({c}, {a})))"])
        cells, prompt = [code], f"What does this print? {code}"
    elif level == 2:
        cells = [f"x = {a} * {b}", f"print(x // {c})"]
        prompt = f"Set {cells[0]}. What does {cells[1]} print?"
    else:
        loop = f"x = {a}\nfor n in range({c}):\n    x = (x * {b} + n) % 9973\nprint(x)"
        cells, prompt = [loop], f"What does this print?\n{loop}"
    return {"prompt": prompt, "answer": run_trusted(cells).text, "cells": cells}


def expert(row: Mapping[str, Any], *, thinking: bool = True) -> Policy:
    """Runs the cells, then says what the last one printed."""
    calls = [
        say(call_text("python", {"code": cell}), f"run {number}" if thinking else None)
        for number, cell in enumerate(row["cells"], 1)
    ]
    return script(*calls, lambda results: say(results[-1], results[-1] if thinking else None))
