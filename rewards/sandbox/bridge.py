"""Test code and program in two processes: functions are called across, values come back as data.

What the program returns is data (``rewards/sandbox/plain.py``) or stays behind as an object with a stand-in. A
stand-in tells what is asked of the object itself (attributes, items, length, iteration, calls), but it never hands the
test's own values to the program's operators: it equals no data, and adds to, subtracts from and orders against none.
So no ``__eq__``, ``__sub__`` or ``__contains__`` of the program learns what the test expects.
Two objects of the program are compared by the program: what they are is its own say anyway.

Sent into the sandbox as byte code, like ``harness.py``.
"""

from __future__ import annotations

import builtins
import sys

from rewards.sandbox.channel import CannotCross, Channel, ForeignObject, ProgramEnded, raised
from rewards.sandbox.plain import NotPlain, decode, encode

TYPE_CHECKING = False  # typing itself is not imported: it takes longer than all of this module
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MAX_ITEMS = 1 << 20  # of an iterator that a call returned


class Bridge:
    """The judge's end: asks, and answers when the program calls a function that the test has passed to it."""

    def __init__(self, readable: int, writable: int) -> None:
        self._channel = Channel(readable, writable, 1, self._stand_in, _is_function)
        self._stand_ins: dict[int, StandIn] = {}
        self._exceptions: dict[str, type[Exception]] = {}

    def _stand_in(self, number: int) -> StandIn:
        if number not in self._stand_ins:
            self._stand_ins[number] = StandIn(self, number)
        return self._stand_ins[number]

    def loaded(self, test: str, entry_point: str) -> dict[str, Any]:
        """Wait until the program has defined its names; the names, as the test may see them.

        Neither a built-in nor a module of the standard library is taken from the program: those would be its own.
        """
        values, modules, imported, exceptions = self._answer()

        def may_define(name: str) -> bool:
            poses_as_module = name in sys.stdlib_module_names and f"{name}." in test
            return name == entry_point or not (name.startswith("__") or hasattr(builtins, name) or poses_as_module)

        names = {name: value for name, value in values.items() if may_define(name)}
        names |= {name: self.exception(name, base) for name, base in exceptions.items() if may_define(name)}
        for name, (module, attribute) in {**{n: (m, "") for n, m in modules.items()}, **imported}.items():
            known = module.partition(".")[0] in sys.stdlib_module_names
            if known and not name.startswith("__") and not hasattr(builtins, name):
                found = __import__(module, fromlist=("_",))
                names[name] = getattr(found, attribute) if attribute else found
        return names

    def ask(self, *request: Any) -> Any:
        self._channel.send(request)
        return self._answer()

    def call(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value, changed = self.ask("call", function, args, kwargs)
        for key, new in changed:  # what the program did to the lists it was given, done to ours
            old = kwargs[key] if type(key) is str else args[key]
            if type(old) in (list, bytearray) and type(new) is type(old):
                old[:] = new
            elif type(old) in (dict, set) and type(new) is type(old):
                old.clear()
                old.update(new)
        return value

    def _answer(self) -> Any:
        while True:
            kind, *rest = self._channel.receive()
            if kind == "value":
                return rest[0]
            if kind == "raised":
                raise self.exception(rest[0], rest[1])(rest[2])
            if kind != "callback":
                raise ProgramEnded(f"an answer of kind {kind!r}")
            self._call_back(*rest)

    def _call_back(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._channel.has_given(function):
            raise ProgramEnded("it called what the test did not pass to it")
        try:
            answer: tuple[Any, ...] = ("value", function(*args, **kwargs))
        except Exception as error:
            answer = raised(error)
        try:
            self._channel.send(answer)
        except (CannotCross, NotPlain) as error:  # the program may have asked for it: that makes no error of ours
            self._channel.send(("raised", "TypeError", "TypeError", str(error)))

    def exception(self, name: str, base: str) -> type[Exception]:
        """The exception class of that name: a built-in one, or one of the program's, made anew on this side."""
        found = getattr(builtins, name, None)
        if isinstance(found, type) and issubclass(found, Exception):
            return found
        if name not in self._exceptions:
            parent = getattr(builtins, base, Exception)
            parent = parent if isinstance(parent, type) and issubclass(parent, Exception) else Exception
            self._exceptions[name] = type(name, (parent,), {})
        return self._exceptions[name]


class StandIn(ForeignObject):
    """For an object of the program, on the test's side."""

    __slots__ = ("_bridge",)

    def __init__(self, bridge: Bridge, number: int) -> None:
        object.__setattr__(self, "_bridge", bridge)
        object.__setattr__(self, "_number", number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _bridge(self).call(self, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in ("__name__", "__doc__", "__dict__"):
            raise AttributeError(name)
        return _bridge(self).ask("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        _bridge(self).ask("setattr", self, name, value)

    def __eq__(self, other: object) -> bool:
        return self is other or (type(other) is StandIn and bool(_bridge(self).ask("special", self, "__eq__", other)))

    def __hash__(self) -> int:
        return object.__hash__(self)

    def __instancecheck__(self, instance: Any) -> bool:
        return type(instance) is StandIn and bool(_bridge(self).ask("isinstance", instance, self))


def _bridge(stand_in: StandIn) -> Bridge:
    return object.__getattribute__(stand_in, "_bridge")


def _forward(name: str, *, between_objects: bool) -> Callable[..., Any]:
    def method(self: StandIn, *args: Any) -> Any:
        if between_objects and type(args[0]) is not StandIn:
            return NotImplemented
        return _bridge(self).ask("special", self, name, *args)

    return method


_OF_ITSELF = "iter next len bool getitem setitem delitem str repr int float index abs neg enter exit reversed"
_WITH_ANOTHER = "lt le gt ge add sub mul truediv floordiv mod pow matmul and or xor"
for _name in _OF_ITSELF.split():
    setattr(StandIn, f"__{_name}__", _forward(f"__{_name}__", between_objects=False))
for _name in _WITH_ANOTHER.split():
    setattr(StandIn, f"__{_name}__", _forward(f"__{_name}__", between_objects=True))


def judge_test(readable: int, writable: int, mode: str, secret: dict[str, Any]) -> tuple[str, str, bytes]:
    """Run one test in this process: (kind, reason, value as bytes)."""
    bridge = Bridge(readable, writable)
    entry_point = secret["entry_point"]
    try:
        if entry_point.startswith("__"):
            raise CannotCross(f"entry_point: expected a name of the program's own, got {entry_point!r}")
        names = bridge.loaded(secret["test"], entry_point)
        if mode == "code":
            if entry_point:
                names["candidate"] = names[entry_point]
            exec(secret["test"], names | {"__name__": "test"})
            return "passed", "", b""
        if secret["call"]:
            value, _ = bridge.ask("eval", secret["call"])
        else:
            value = bridge.call(names[entry_point], tuple(decode(secret["args"])), decode(secret["kwargs"]))
        if type(value) is StandIn and bridge.ask("is_iterator", value):
            value = [item for _, item in zip(range(MAX_ITEMS), value)]  # noqa: B905
        return "value", "", encode(value)
    except CannotCross as error:
        return "cannot", str(error), b""
    except NotPlain as error:
        return "failed", f"the result cannot be compared: {error}", b""
    except KeyError as error:
        if entry_point and error.args == (entry_point,):
            return "failed", f"the program does not define {entry_point!r}", b""
        return "failed", _told(error), b""
    except BaseException as error:
        return "failed", _told(error), b""


def _told(error: BaseException) -> str:
    line = ""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<string>":
            line = f" (line {trace.tb_lineno} of the test)"
        trace = trace.tb_next
    try:
        return f"{type(error).__name__}: {error}"[:500].rstrip(": ") + line
    except Exception:
        return type(error).__name__ + line


def _is_function(value: Any) -> bool:
    return isinstance(value, (type(_told), type(len)))
