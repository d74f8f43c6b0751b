"""Test code and program in two processes: functions are called across, values come back as data.

What the program returns is data (``rewards/sandbox/plain.py``) or stays behind as an object with a stand-in. A
stand-in tells what is asked of the object itself (attributes, items, length, iteration, calls), but it never hands the
test's own values to the program's operators: it equals no data, and adds to, subtracts from and orders against none.
So no ``__eq__``, ``__sub__`` or ``__contains__`` of the program learns what the test expects.
Two objects of the program are compared by the program: what they are is its own say anyway.

Sent into the sandbox as byte code, like ``harness.py``.
"""

from __future__ import annotations

import _operator
import builtins
import posix
import sys

from rewards.sandbox.plain import NotPlain, decode, encode

TYPE_CHECKING = False  # typing itself is not imported: it takes longer than all of this module
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MAX_MESSAGE = 16 << 20
MAX_ITEMS = 1 << 20  # of an iterator that a call returned


class ProgramEnded(BaseException):
    """The program's process is gone or speaks nonsense; no ``except Exception`` of a test hides it."""


class CannotCross(BaseException):
    """The test needs what the bridge does not do: nobody's fault but the grader's."""


class _Channel:
    """Messages with a length in front, and the objects that stay on this side of it."""

    def __init__(self, readable: int, writable: int, side: int, stand_in: Callable[[int], Any]) -> None:
        self._readable, self._writable, self._side = readable, writable, side
        self._stand_in = stand_in
        self._kept: list[Any] = []
        self._numbers: dict[int, int] = {}

    def send(self, message: Any) -> None:
        data = encode(message, self._number_of)
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

    def _number_of(self, value: Any) -> int:
        if type(value) in (StandIn, _Callback):
            return object.__getattribute__(value, "_number")
        number = self._numbers.get(id(value))
        if number is None:
            if self._side and not isinstance(value, (type(_told), type(len))):
                raise CannotCross(f"the test hands a {type(value).__name__} to the program; only data and functions go")
            number = self._numbers[id(value)] = 2 * len(self._kept) + self._side
            self._kept.append(value)
        return number

    def has_given(self, value: Any) -> bool:
        return any(value is kept for kept in self._kept)

    def _object_of(self, number: int) -> Any:
        if number % 2 == self._side:
            return self._kept[number // 2]
        return self._stand_in(number)


# --- the test's side ------------------------------------------------------------------------------------------------


class Bridge:
    """The judge's end: asks, and answers when the program calls a function that the test has passed to it."""

    def __init__(self, readable: int, writable: int) -> None:
        self._channel = _Channel(readable, writable, 1, self._stand_in)
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
            answer = _raised(error)
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


class StandIn:
    """For an object of the program, on the test's side."""

    __slots__ = ("_bridge", "_number")

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


def judge(bridge: Bridge, mode: str, secret: dict[str, Any]) -> tuple[str, str, bytes]:
    """Run one test in this process: (kind, reason, value as bytes)."""
    entry_point = secret["entry_point"]
    built_in = entry_point.startswith("__") or hasattr(builtins, entry_point)
    try:
        if built_in:
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
            value = bridge.call(names[entry_point], tuple(secret["args"]), secret["kwargs"])
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


# --- the program's side ---------------------------------------------------------------------------------------------


def serve(readable: int, writable: int, module: Any, source: str) -> None:
    """Define the program's names, then do what the judge asks, until it ends."""
    channel = _Channel(readable, writable, 0, lambda number: _Callback(channel, number))
    try:
        exec(source, module.__dict__)
        answer: tuple[Any, ...] = ("value", _names(module))
    except BaseException as error:
        answer = _raised(error)
    while True:
        try:
            channel.send(answer)
        except NotPlain as error:
            channel.send(_raised(error))
        answer = _serve_one(channel, module, channel.receive())


def _serve_one(channel: _Channel, module: Any, request: Any) -> tuple[Any, ...]:
    try:
        return ("value", _do(channel, module, *request))
    except ProgramEnded:
        raise
    except BaseException as error:
        return _raised(error)


def _do(channel: _Channel, module: Any, kind: str, *args: Any) -> Any:
    if kind == "call":
        function, arguments, keywords = args
        given = {**dict(enumerate(arguments)), **keywords}
        before = {k: encode(v, channel._number_of) for k, v in given.items() if type(v) in (list, dict, set, bytearray)}
        value = function(*arguments, **keywords)
        return value, [(k, given[k]) for k, data in before.items() if encode(given[k], channel._number_of) != data]
    if kind == "eval":
        return eval(args[0], module.__dict__), ()
    if kind == "special":
        target, name, *rest = args
        bare = name.strip("_")
        found = getattr(builtins, bare, None) or getattr(_operator, bare, None) or getattr(_operator, f"{bare}_", None)
        return found(target, *rest) if found else getattr(type(target), name)(target, *rest)
    if kind == "is_iterator":
        return hasattr(type(args[0]), "__next__")
    return {"getattr": getattr, "setattr": setattr, "isinstance": isinstance}[kind](*args)


class _Callback:
    """A function of the test, on the program's side."""

    __slots__ = ("_channel", "_number")

    def __init__(self, channel: _Channel, number: int) -> None:
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


def _raised(error: BaseException) -> tuple[Any, ...]:
    if not isinstance(error, Exception):  # SystemExit and its like end no test
        return ("raised", f"Program{type(error).__name__}", "Exception", str(error)[:1000])
    kinds = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"]
    try:
        text = str(error)[:1000]
    except Exception:
        text = ""
    return ("raised", type(error).__name__, kinds[0], text)


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
