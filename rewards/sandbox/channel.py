"""Messages between the judge and the program, and the objects that stay on one side of it.

Sent into the sandbox as byte code, like ``harness.py``.
"""

from __future__ import annotations

import posix

from rewards.sandbox.plain import decode, encode

TYPE_CHECKING = False  # typing itself is not imported: it takes longer than all of this module
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MAX_MESSAGE = 16 << 20  # bytes


class ProgramEnded(BaseException):
    """The other process is gone or speaks nonsense; no ``except Exception`` of a test hides it."""


class CannotCross(BaseException):
    """The test needs what the bridge does not do: nobody's fault but the grader's."""


class Channel:
    """Messages with a length in front, and the objects that stay on this side of it."""

    def __init__(
        self, readable: int, writable: int, side: int, stand_in: Callable[[int], Any], may_cross: Callable[[Any], bool]
    ) -> None:
        """``side``: 0 or 1, the other one there. ``may_cross``: may this value, which is no data, stay here?"""
        self._readable, self._writable, self._side = readable, writable, side
        self._stand_in, self._may_cross = stand_in, may_cross
        self._kept: list[Any] = []
        self._numbers: dict[int, int] = {}

    def send(self, message: Any) -> None:
        data = encode(message, self.number_of)
        data = len(data).to_bytes(8, "big") + data
        try:
            while data:
                data = data[posix.write(self._writable, data) :]
        except OSError as error:
            raise ProgramEnded(f"the other process is gone: {error}") from None

    def receive(self) -> Any:
        size = int.from_bytes(self._read(8), "big")
        if size > MAX_MESSAGE:
            raise ProgramEnded(f"a message of {size} bytes")
        try:
            return decode(self._read(size), self._object_of)
        except ValueError as error:
            raise ProgramEnded(str(error)) from None

    def _read(self, size: int) -> bytes:
        pieces, missing = [], size
        while missing:
            piece = posix.read(self._readable, missing)
            if not piece:
                raise ProgramEnded("the program ended")
            pieces.append(piece)
            missing -= len(piece)
        return b"".join(pieces)

    def number_of(self, value: Any) -> int:
        if isinstance(value, ForeignObject):
            return object.__getattribute__(value, "_number")
        number = self._numbers.get(id(value))
        if number is None:
            if not self._may_cross(value):
                kind = type(value).__name__
                raise CannotCross(f"the test hands a {kind} to the program; only data and functions go")
            number = self._numbers[id(value)] = 2 * len(self._kept) + self._side
            self._kept.append(value)
        return number

    def has_given(self, value: Any) -> bool:
        return any(value is kept for kept in self._kept)

    def _object_of(self, number: int) -> Any:
        if number % 2 == self._side:
            return self._kept[number // 2]
        return self._stand_in(number)


class ForeignObject:
    """Stands for an object of the other side, by its number there."""

    __slots__ = ("_number",)


def raised(error: BaseException) -> tuple[Any, ...]:
    """An exception as a message: its name, the built-in class it is derived from, its text."""
    if not isinstance(error, Exception):  # SystemExit and its like end no test
        return ("raised", f"Program{type(error).__name__}", "Exception", str(error)[:1000])
    kinds = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"]
    try:
        text = str(error)[:1000]
    except Exception:
        text = ""
    return ("raised", type(error).__name__, kinds[0], text)
