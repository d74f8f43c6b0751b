"""A second opinion on two expressions: their values at 60 digits, at fixed points where they have variables.

math-verify rounds to six decimals before it compares (so it takes any two tiny numbers for equal), and gives up on
identities that its simplifier does not find. Values decide both: what differs at one point is different, what agrees in
40 digits at every point is equal (for rational functions Schwartz-Zippel makes an accident very unlikely).
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

_DIGITS = 60
_SAME, _DIFFERENT = "1e-40", "1e-35"  # relative
# For the k-th variable by name; negative ones too, so that sqrt(x^2) is not x.
_POINTS = [
    [Fraction(17, 7), Fraction(13, 11), Fraction(23, 9), Fraction(31, 13), Fraction(7, 5), Fraction(19, 8)],
    [Fraction(5, 13), Fraction(29, 12), Fraction(8, 7), Fraction(16, 11), Fraction(41, 17), Fraction(3, 4)],
    [Fraction(-11, 6), Fraction(9, 7), Fraction(-15, 8), Fraction(12, 5), Fraction(-5, 9), Fraction(21, 10)],
    [Fraction(-3, 8), Fraction(-25, 11), Fraction(14, 9), Fraction(-6, 7), Fraction(18, 13), Fraction(-10, 3)],
    [Fraction(37, 10), Fraction(2, 9), Fraction(-20, 7), Fraction(4, 3), Fraction(-22, 15), Fraction(27, 14)],
]


def same_value(gold: Any, pred: Any, *, real_roots: bool = False) -> bool | None:
    """Are two sympy expressions, or two equations, equal? None where values cannot tell.

    The symbol i is the imaginary unit. ``real_roots``: odd roots of negative numbers are the real ones.
    """
    import sympy

    if isinstance(gold, sympy.Equality) and isinstance(pred, sympy.Equality):
        return _same_equation(gold.lhs - gold.rhs, pred.lhs - pred.rhs)
    if not isinstance(gold, sympy.Expr) or not isinstance(pred, sympy.Expr):
        return None
    gold, pred = _prepare(gold, real_roots), _prepare(pred, real_roots)
    names = _names(gold, pred)
    agreed = 0
    for point in _points(names):
        a, b = _value(gold, point), _value(pred, point)
        if a is None and b is None:
            continue
        if a is None or b is None:
            return None
        same = _close(a, b)
        if same is None or (not same and names and not (_is_real(a) and _is_real(b))):
            return None  # complex values of real functions: the branch of a root or a logarithm
        if not same:
            return False
        agreed += 1
    if not names and agreed:
        return _exactly(gold, pred)
    return True if agreed >= min(3, len(_points(names))) else None


def _exactly(gold: Any, pred: Any) -> bool:
    """Of rational numbers that agree in 60 digits: are they equal? Other numbers are by now."""
    a, b = gold.doit(), pred.doit()
    return bool(a == b) if a.is_Rational and b.is_Rational else True


def value_of(expression: Any) -> str | None:
    """The real value of a number to 60 digits, as a decimal; None where it is none."""
    import sympy

    if not isinstance(expression, sympy.Expr):
        return None
    expression = _prepare(expression, False)
    if expression.free_symbols:
        return None
    value = _value(expression, {})
    return str(value) if value is not None and _is_real(value) else None


def _same_equation(gold: Any, pred: Any) -> bool | None:
    """Two sides' differences with a constant ratio have the same solutions; without one nothing is known."""
    gold, pred = _prepare(gold, False), _prepare(pred, False)
    names = _names(gold, pred)
    if not names or _names(gold) != _names(pred):
        return None
    values = [(_value(gold, point), _value(pred, point)) for point in _points(names)]
    if any(a is None or b is None or a == 0 or b == 0 for a, b in values):
        return None
    (a0, b0), *others = values
    return all(_close(a * b0, b * a0) for a, b in others)


def _prepare(expression: Any, real_roots: bool) -> Any:
    import sympy

    expression = expression.replace(sympy.UnevaluatedExpr, lambda inner: inner)
    expression = expression.subs({s: sympy.I for s in expression.free_symbols if s.name == "i"})
    if real_roots:
        expression = expression.replace(
            lambda e: e.is_Pow and e.exp.is_Rational and e.exp.q % 2 == 1 and e.exp.q > 1 and e.base.is_negative,
            lambda e: (-1) ** e.exp.p * (-e.base) ** e.exp,
        )
    return expression


def _names(*expressions: Any) -> list[str]:
    return sorted({symbol.name for expression in expressions for symbol in expression.free_symbols})


def _points(names: list[str]) -> list[dict[str, Fraction]]:
    if not names:
        return [{}]
    return [{name: row[k % len(row)] + k // len(row) for k, name in enumerate(names)} for row in _POINTS]


def _value(expression: Any, point: dict[str, Fraction]) -> Any:
    """A finite number at a point, or None; exactly 0 where sympy knows no digit of it."""
    import sympy

    numbers = {s: sympy.Rational(point[s.name].numerator, point[s.name].denominator) for s in expression.free_symbols}
    try:
        value = sympy.N(expression.subs(numbers), _DIGITS)
    except (TypeError, ValueError, ZeroDivisionError, AttributeError):  # sympy's ways to say that it has no value
        return None
    real, imaginary = value.as_real_imag()
    if not all(part.is_Number and part.is_finite for part in (real, imaginary)):
        return None
    real, imaginary = (sympy.Integer(0) if getattr(part, "_prec", 99) <= 2 else part for part in (real, imaginary))
    return real + imaginary * sympy.I


def _is_real(value: Any) -> bool:
    return bool(value.as_real_imag()[1] == 0)


def _close(a: Any, b: Any) -> bool | None:
    import sympy

    scale = max(sympy.N(abs(a), _DIGITS), sympy.N(abs(b), _DIGITS))
    if scale == 0:
        return True
    gap = sympy.N(abs(a - b), _DIGITS) / scale
    return True if gap < sympy.Float(_SAME, 30) else False if gap > sympy.Float(_DIFFERENT, 30) else None
