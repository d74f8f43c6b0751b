"""Plain data as bytes: what may cross between a program and whoever judges it.

Not pickle: nothing that is read here runs code of the other side. Numbers, strings, bytes, None, lists, tuples, sets,
dictionaries and a few value types of the standard library, nested at most ``MAX_DEPTH`` deep. A subclass of a built-in
type (``defaultdict``, ``IntEnum``, a named tuple) crosses as that type, so its own ``__eq__`` stays behind.

Imports next to nothing, since it is also loaded inside the sandbox, where milliseconds count.
"""

from __future__ import annotations

import builtins

TYPE_CHECKING = False  # typing itself is not imported: it takes longer than all of this module
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MAX_DEPTH = 150

# Type -> its constructor arguments; rebuilt by calling it.
_VALUES = {
    ("fractions", "Fraction"): lambda x: (x.numerator, x.denominator),
    ("decimal", "Decimal"): lambda x: (str(x),),
    ("collections", "deque"): lambda x: (list(x), x.maxlen),
    ("datetime", "date"): lambda x: (x.year, x.month, x.day),
    ("datetime", "timedelta"): lambda x: (x.days, x.seconds, x.microseconds),
    ("datetime", "time"): lambda x: (x.hour, x.minute, x.second, x.microsecond),
    ("datetime", "datetime"): lambda x: (x.year, x.month, x.day, x.hour, x.minute, x.second, x.microsecond),
}
_SEQUENCES: Any = ((list, b"l"), (tuple, b"t"), (set, b"S"), (frozenset, b"Z"))


_SCALARS: Any = (int, float, str, bytes, bytearray, complex)


class NotPlain(TypeError):
    """A value that cannot cross as data."""


def encode(value: Any, opaque: Callable[[Any], int] | None = None) -> bytes:
    """``opaque`` gives a number to a value that is not plain; without it such a value raises NotPlain."""
    out: list[bytes] = []
    _encode(value, out.append, opaque, 0)
    return b"".join(out)


def _encode(value: Any, put: Callable[[bytes], None], opaque: Callable[[Any], int] | None, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise NotPlain(f"nested deeper than {MAX_DEPTH}")
    kind = type(value)
    if value is None or kind is bool:
        put(b"N" if value is None else b"T" if value else b"F")
    elif kind is int:
        put(b"i%x;" % value)
    elif kind is float:
        put(b"f" + value.hex().encode() + b";")
    elif kind is str:
        data = value.encode("utf-8", "surrogatepass")
        put(b"s%d:" % len(data) + data)
    elif kind is bytes or kind is bytearray:
        put((b"b%d:" if kind is bytes else b"y%d:") % len(value) + bytes(value))
    elif kind is complex:
        put(b"c")
        _encode(value.real, put, opaque, depth + 1)
        _encode(value.imag, put, opaque, depth + 1)
    elif kind is range:
        put(b"r")
        for number in (value.start, value.stop, value.step):
            _encode(number, put, opaque, depth + 1)
    elif kind is dict:
        put(b"d%d:" % len(value))
        for key, item in dict.items(value):
            _encode(key, put, opaque, depth + 1)
            _encode(item, put, opaque, depth + 1)
    else:
        _encode_other(value, put, opaque, depth)


def _encode_other(value: Any, put: Callable[[bytes], None], opaque: Callable[[Any], int] | None, depth: int) -> None:
    kind = type(value)
    for base, tag in _SEQUENCES:
        if isinstance(value, base):
            put(tag + b"%d:" % base.__len__(value))
            for item in base.__iter__(value):
                _encode(item, put, opaque, depth + 1)
            return
    if isinstance(value, type) and value.__module__ == "builtins" and hasattr(builtins, value.__name__):
        put(b"x")
        _encode(["builtins", value.__name__], put, opaque, depth + 1)
        return
    name = (kind.__module__, kind.__qualname__)
    if name in _VALUES and getattr(value, "tzinfo", None) is None:
        put(b"x")
        _encode([*name, *_VALUES[name](value)], put, opaque, depth + 1)
        return
    for scalar in _SCALARS:
        if isinstance(value, scalar):
            own = getattr(scalar, "__int__" if scalar is int else "__float__" if scalar is float else "", None)
            plain = own(value) if own else scalar.__str__(value) if scalar is str else scalar(value)
            _encode(plain, put, opaque, depth + 1)
            return
    if isinstance(value, dict):
        _encode(dict(dict.items(value)), put, opaque, depth)
    elif opaque is None:
        raise NotPlain(f"a value of type {kind.__qualname__} is not plain data")
    else:
        put(b"o%x;" % opaque(value))


def decode(data: bytes, opaque: Callable[[int], Any] | None = None) -> Any:
    """The value; ``opaque`` turns the number of a value that stayed behind into its stand-in.

    Raises ValueError for bytes that ``encode`` does not write.
    """
    try:
        value, end = _decode(data, 0, opaque, 0)
    except (IndexError, OverflowError, TypeError, RecursionError, ArithmeticError) as error:
        raise ValueError(f"not plain data: {error}") from error
    if end != len(data):
        raise ValueError(f"not plain data: {len(data) - end} bytes too many")
    return value


def _decode(data: bytes, at: int, opaque: Callable[[int], Any] | None, depth: int) -> tuple[Any, int]:
    if depth > 2 * MAX_DEPTH:
        raise ValueError("not plain data: nested too deeply")
    tag = data[at : at + 1]
    at += 1
    if tag in (b"N", b"T", b"F"):
        return {b"N": None, b"T": True, b"F": False}[tag], at
    if tag in (b"i", b"f", b"o"):
        end = data.index(b";", at)
        text = data[at:end].decode("ascii")
        if tag == b"o" and opaque is None:
            raise ValueError("not plain data: a value that stayed behind")
        if tag == b"f":
            return float.fromhex(text), end + 1
        number = int(text, 16)
        return (opaque(number) if tag == b"o" and opaque else number), end + 1
    if tag in (b"c", b"r", b"x"):
        if tag == b"x":
            parts, at = _decode(data, at, opaque, depth + 1)
            return _rebuild(parts), at
        parts = []
        for _ in range(2 if tag == b"c" else 3):
            part, at = _decode(data, at, opaque, depth + 1)
            parts.append(part)
        return (complex(*parts) if tag == b"c" else range(*parts)), at
    if tag not in (b"s", b"b", b"y", b"l", b"t", b"S", b"Z", b"d"):
        raise ValueError(f"not plain data: unknown tag {tag!r}")
    end = data.index(b":", at)
    count, at = int(data[at:end]), end + 1
    if count < 0 or count > len(data) - at:
        raise ValueError("not plain data: cut short")
    if tag in (b"s", b"b", b"y"):
        raw = data[at : at + count]
        text_or_bytes: Any = raw.decode("utf-8", "surrogatepass") if tag == b"s" else raw
        return (bytearray(raw) if tag == b"y" else text_or_bytes), at + count
    items = []
    for _ in range(2 * count if tag == b"d" else count):
        item, at = _decode(data, at, opaque, depth + 1)
        items.append(item)
    if tag == b"d":
        return dict(zip(items[::2], items[1::2])), at  # noqa: B905 - of one length by construction
    return {b"l": list, b"t": tuple, b"S": set, b"Z": frozenset}[tag](items), at


def _rebuild(parts: Any) -> Any:
    module, name, *arguments = parts
    if module == "builtins" and isinstance(getattr(builtins, name, None), type):
        return getattr(builtins, name)
    if (module, name) not in _VALUES:
        raise ValueError(f"not plain data: unknown type {module}.{name}")
    return getattr(__import__(module), name)(*arguments)
