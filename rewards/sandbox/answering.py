"""The program's side of ``bridge.py``: it defines its names, and does what it is asked.

Everything here is in the hands of the program, which may replace it; nothing rests on it. Sent into the sandbox as byte
code, like ``harness.py``.
"""

from __future__ import annotations

import _operator
import builtins
import sys

from rewards.sandbox.channel import Channel, ForeignObject, ProgramEnded, raised
from rewards.sandbox.plain import NotPlain, encode

TYPE_CHECKING = False  # typing itself is not imported: it takes longer than all of this module
if TYPE_CHECKING:
    from typing import Any


def serve(readable: int, writable: int, module: Any, source: str) -> None:
    """Define the program's names, then do what the judge asks, until it ends."""
    channel = Channel(readable, writable, 0, lambda number: _Callback(channel, number), lambda value: True)
    try:
        exec(source, module.__dict__)
        answer: tuple[Any, ...] = ("value", _names(module))
    except BaseException as error:
        answer = raised(error)
    while True:
        try:
            channel.send(answer)
        except NotPlain as error:
            channel.send(raised(error))
        answer = _serve_one(channel, module, channel.receive())


def _serve_one(channel: Channel, module: Any, request: Any) -> tuple[Any, ...]:
    try:
        return ("value", _do(channel, module, *request))
    except ProgramEnded:
        raise
    except BaseException as error:
        return raised(error)


def _do(channel: Channel, module: Any, kind: str, *args: Any) -> Any:
    if kind == "call":
        function, arguments, keywords = args
        given = {**dict(enumerate(arguments)), **keywords}
        before = {k: encode(v, channel.number_of) for k, v in given.items() if type(v) in (list, dict, set, bytearray)}
        value = function(*arguments, **keywords)
        return value, [(k, given[k]) for k, data in before.items() if encode(given[k], channel.number_of) != data]
    if kind == "eval":
        return eval(args[0], module.__dict__), ()
    if kind == "special":
        target, name, *rest = args
        bare = name.strip("_")
        known: Any = getattr(builtins, bare, None) or getattr(_operator, bare, None)
        known = known or getattr(_operator, f"{bare}_", None)
        return known(target, *rest) if known else getattr(type(target), name)(target, *rest)
    if kind == "is_iterator":
        return hasattr(type(args[0]), "__next__")
    functions: Any = {"getattr": getattr, "setattr": setattr, "isinstance": isinstance}
    return functions[kind](*args)


class _Callback(ForeignObject):
    """A function of the test, on the program's side."""

    __slots__ = ("_channel",)

    def __init__(self, channel: Channel, number: int) -> None:
        self._channel, self._number = channel, number

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """While it runs, the test may call the program again."""
        self._channel.send(("callback", self, args, kwargs))
        while True:
            kind, *rest = request = self._channel.receive()
            if kind == "value":
                return rest[0]
            if kind == "raised":
                found = getattr(builtins, rest[0], None)
                raise (found if isinstance(found, type) and issubclass(found, Exception) else Exception)(rest[2])
            self._channel.send(_serve_one(self._channel, sys.modules["program"], request))


def _names(module: Any) -> tuple[Any, ...]:
    """What the program has defined: values and objects; modules; what it took from modules; its exceptions."""
    values, modules, imported, exceptions = {}, {}, {}, {}
    for name, value in list(module.__dict__.items()):
        if name.startswith("__"):
            continue
        home = getattr(value, "__module__", None)
        if type(value) is type(sys):
            modules[name] = value.__name__
        elif isinstance(value, type) and issubclass(value, Exception) and home == module.__name__:
            exceptions[name] = next(kind.__name__ for kind in value.__mro__ if kind.__module__ == "builtins")
        elif type(home) is str and home in sys.modules and home != module.__name__ and callable(value):
            own = getattr(value, "__name__", None)
            if type(own) is str and getattr(sys.modules[home], own, None) is value:
                imported[name] = (home, own)
        else:
            values[name] = value
    return values, modules, imported, exceptions
