"""A calculator: arithmetic that is too large to do in one's head.

    prompt   What is 4817 * 392?
    call     calculate {"expression": "4817 * 392"}
    result   1888264
    answer   1888264

Level 1 is one operation, level 2 two operations with parentheses, level 3 two questions whose results are compared.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from rlplatform.environments.text import Policy, say, script
from rlplatform.environments.tools import Tool, ToolEnvironment, ToolError, call_text

MAX_LENGTH = 200  # characters of an expression
MAX_DEPTH = 20  # parentheses, signs and powers inside each other
MAX_BITS = 2048  # of a numerator or denominator
LEVELS = (1, 2, 3)

_TOKEN = re.compile(r"\s*(?:(?P<number>[0-9]+(?:\.[0-9]+)?|\.[0-9]+)|(?P<sign>\*\*|//|[-+*/%()]))")


class Calculator(ToolEnvironment):
    """Success: the final answer is the row's ``answer``."""

    def tools(self) -> Sequence[Tool]:
        described = "Evaluate + - * / // % ** and parentheses."
        return [
            Tool("calculate", described, {"expression": {"type": "string"}}, lambda expression: calculate(expression))
        ]

    def grade(self, answer: str) -> tuple[bool, Mapping[str, float], str]:
        right = same_answer(answer, str(self.row["answer"]))
        return right, {"answer": float(right)}, "" if right else f"answered {answer[:60]!r}"


def same_answer(answer: str, expected: str) -> bool:
    r"""Equal but for white space, a final full stop, and a ``\boxed{}`` around it."""
    answer = answer.strip().removesuffix(".").strip()
    if answer.startswith("\\boxed{") and answer.endswith("}"):
        answer = answer[len("\\boxed{") : -1].strip()
    return answer == expected.strip()


# --- the tool -------------------------------------------------------------------------------------------------------


def calculate(expression: str) -> str:
    """The value of an arithmetic expression, exactly: an integer, a decimal, or a decimal rounded to ten places with
    ``~`` before it. Python's precedence. Nothing is evaluated but this grammar, in numbers of at most MAX_BITS bits.

    Raises:
        ToolError: another text, a division by zero, or a number too large.
    """
    if len(expression) > MAX_LENGTH:
        raise ToolError(f"an expression of at most {MAX_LENGTH} characters, got {len(expression)}")
    return _shown(_Parser(expression).value())


def _shown(value: Fraction) -> str:
    if value.denominator == 1:
        return str(value.numerator)
    scaled = value * 10**10
    text = f"{abs(round(scaled)):011d}"
    decimal = f"{'-' if value < 0 else ''}{text[:-10]}.{text[-10:]}".rstrip("0").removesuffix(".")
    return decimal if scaled.denominator == 1 else f"~{decimal}"


class _Parser:
    """Recursive descent: sum -> product -> signed -> power -> number or parentheses."""

    def __init__(self, text: str) -> None:
        self._tokens: list[str] = []
        place = 0
        text = text.rstrip()
        while place < len(text):
            match = _TOKEN.match(text, place)
            if match is None:
                raise ToolError(
                    f"expected numbers, + - * / // % ** and parentheses, got {text[place:].lstrip()[:20]!r}"
                )
            self._tokens.append(match[match.lastgroup or 0])
            place = match.end()
        self._place = self._depth = 0

    def value(self) -> Fraction:
        found = self._sum()
        if self._peek():
            raise ToolError(f"expected an operator or the end, got {self._peek()!r}")
        return found

    def _peek(self) -> str:
        return self._tokens[self._place] if self._place < len(self._tokens) else ""

    def _next(self) -> str:
        token = self._peek()
        self._place += 1
        return token

    def _sum(self) -> Fraction:
        left = self._product()
        while self._peek() in ("+", "-"):
            left = _apply(self._next(), left, self._product())
        return left

    def _product(self) -> Fraction:
        left = self._signed()
        while self._peek() in ("*", "/", "//", "%"):
            left = _apply(self._next(), left, self._signed())
        return left

    def _signed(self) -> Fraction:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ToolError(f"nested more than {MAX_DEPTH} deep")
        try:
            if self._peek() in ("+", "-"):
                return self._signed() if self._next() == "+" else -self._signed()
            base = self._atom()
            if self._peek() != "**":
                return base
            self._next()
            return _apply("**", base, self._signed())
        finally:
            self._depth -= 1

    def _atom(self) -> Fraction:
        token = self._next()
        if token == "(":
            found = self._sum()
            if self._next() != ")":
                raise ToolError("a parenthesis is not closed")
            return found
        if not token or not (token[0].isdigit() or token[0] == "."):
            raise ToolError(f"expected a number, got {token!r}" if token else "expected a number, got the end")
        return _checked(Fraction(token))


def _apply(operator: str, left: Fraction, right: Fraction) -> Fraction:
    if operator == "**":
        return _power(left, right)
    if operator in ("/", "//", "%") and right == 0:
        raise ToolError("division by zero")
    if operator == "+":
        return _checked(left + right)
    if operator == "-":
        return _checked(left - right)
    if operator == "*":
        return _checked(left * right)
    if operator == "/":
        return _checked(left / right)
    return _checked(Fraction(left // right) if operator == "//" else left % right)


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise ToolError("an exponent must be a whole number")
    if base == 0 and exponent < 0:
        raise ToolError("division by zero")
    if abs(base) != 1 and base != 0 and abs(exponent) * _bits(base) > 2 * MAX_BITS:
        raise ToolError("the number is too large")
    n = exponent.numerator if abs(base) != 1 and base != 0 else int(exponent % 2) + 2 * (exponent != 0)
    return _checked(base**n)


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _checked(value: Fraction) -> Fraction:
    if _bits(value) > MAX_BITS:
        raise ToolError("the number is too large")
    return value


# --- rows -----------------------------------------------------------------------------------------------------------


def make_row(rng: random.Random, level: int) -> dict[str, Any]:
    """One question; ``expressions`` are what the expert evaluates."""
    a, b, c, d = (rng.randrange(100, 10_000) for _ in range(4))
    first, second = rng.choice("+-*"), rng.choice("+-*")
    if level == 1:
        expressions = [f"{a} {first} {b}"]
    elif level == 2:
        expressions = [f"({a} {first} {b}) {second} {c}"]
    else:
        expressions = [f"{a} * {b}", f"{c} * {d}"]
    values = [calculate(expression) for expression in expressions]
    if level < 3:
        return {"prompt": f"What is {expressions[0]}?", "answer": values[0], "expressions": expressions}
    prompt = f"Which is larger, {expressions[0]} or {expressions[1]}? Answer with its value."
    return {"prompt": prompt, "answer": max(values, key=int), "expressions": expressions}


def expert(row: Mapping[str, Any], *, thinking: bool = True) -> Policy:
    """Evaluates what is asked, then says the result, or the largest."""
    calls = [
        say(call_text("calculate", {"expression": expression}), expression if thinking else None)
        for expression in row["expressions"]
    ]

    def answer(results: list[str]) -> str:
        best = max(results, key=int)
        return say(best, best if thinking else None)

    return script(*calls, answer)
