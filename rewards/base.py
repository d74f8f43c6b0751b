"""The reward contract: text in, verdicts out. No ray, no torch.

A reward function follows TRL's convention, so that its functions run unchanged::

    def fn(prompts, completions, **columns) -> list[float | None | Verdict]

``prompts`` and ``completions`` are lists of one length; a dataset column ``answer`` arrives as the keyword ``answer``,
a list of the same length. Message prompts give message completions (``[{"role": "assistant", "content": ...}]``),
string prompts give strings. A function that names them (or takes ``**kwargs``) is also given ``completion_ids``,
``trainer_state``, ``log_extra(column, values)`` and ``log_metric(name, value)``. It may be ``async``.
``None`` means that the function does not apply to the row.

Functions are named in configs by a key of ``REWARDS``, by an entry point of an installed package (``rewards.plugins``),
by ``package.module:fn`` or by ``path/file.py:fn``; ``resolve`` turns the name into the function and says what is wrong
with it before any process is started.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import math
import numbers
import sys
import zlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from rewards.plugins import installed

OK = "ok"
TIMEOUT = "timeout"
ERROR = "error"
UNPARSEABLE = "unparseable"
NOT_APPLICABLE = "not_applicable"
STATUSES = (OK, TIMEOUT, ERROR, UNPARSEABLE, NOT_APPLICABLE)

RewardFn = Callable[..., Sequence[Any] | Awaitable[Sequence[Any]]]


@dataclass(frozen=True)
class Verdict:
    """What a grader says of one completion.

    ``status`` describes the grader, never the model: a missing answer or an unclosed think block is ``ok`` with score
    0; ``timeout`` is a grader past its deadline, ``error`` its exception, ``unparseable`` a reference or judge reply it
    could not read, ``not_applicable`` a row it has nothing to say about. Only ``ok`` verdicts reach a group's
    statistics or the loss.
    """

    score: float  # finite when ok; 0.0 otherwise, and then not read by anything
    status: str = OK
    parts: Mapping[str, float] = field(default_factory=dict)  # score by reward function, before weights
    detail: str = ""  # the reason, for people: a traceback's last lines, what was extracted
    seconds: float = 0.0  # spent grading this row

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"Verdict.status: expected one of {STATUSES}, got {self.status!r}")
        if not isinstance(self.score, (int, float)) or isinstance(self.score, bool):
            raise ValueError(f"Verdict.score: expected a float, got {self.score!r} ({type(self.score).__name__})")
        if not math.isfinite(self.score):
            raise ValueError(f"Verdict.score: expected a finite number, got {self.score!r}")
        if not isinstance(self.detail, str):
            raise ValueError(f"Verdict.detail: expected a text, got {type(self.detail).__name__}")

    @property
    def ok(self) -> bool:
        return self.status == OK


class RewardLoadError(ValueError):
    """A reward function that cannot be found, imported or called; the message says what to change."""


class RewardContractError(ValueError):
    """A reward function answered with something that is not one score a row."""


# Lazy, so that listing the names imports nothing.
REWARDS: dict[str, str] = {
    "math": "rewards.math:math_reward",
    "format": "rewards.format:format_reward",
    "judge": "rewards.judge:judge_reward",
    "judge_model": "rewards.judge:judge_model_reward",
    "exact": "rewards.text:exact_reward",
    "multiple_choice": "rewards.text:multiple_choice_reward",
    "f1": "rewards.text:f1_reward",
    "rouge_l": "rewards.text:rouge_l_reward",
    "length": "rewards.shape:length_reward",
    "group_length": "rewards.shape:group_length_reward",
    "repetition": "rewards.shape:repetition_reward",
    "grounded_qa": "rewards.grounded:grounded_qa_reward",
    "language": "rewards.language:language_reward",
    "instruction": "rewards.instruction:instruction_reward",
    "json_schema": "rewards.structured:json_schema_reward",
    "tool_calls": "rewards.tool_calls:tool_calls_reward",
    "code": "rewards.code:code_reward",
    "code_all": "rewards.code:code_all_reward",
    "preference": "actors.preference:preference_reward",
    "remote": "rewards.remote:remote_reward",
    "environment": "rewards.environment:environment_reward",
}

CONVENTIONS = ("verl", "openrlhf")  # prefixes of rewards.adapters

# Path of a user's file -> what it held when grading began. Workers that are forked later load this, so that a file that
# is edited meanwhile does not score some rows by another function.
FROZEN: dict[str, bytes] = {}

SUPPLIED = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")

_Fn = TypeVar("_Fn", bound=Callable[..., Any])


def rowwise(fn: _Fn) -> _Fn:
    """Declare that ``fn`` grades each row by itself, so the runner may call it row by row and spread rows at will.

    A function without the mark is called with whole batches, and row by row only after a batch failed.
    """
    fn.rowwise = True  # type: ignore[attr-defined]
    return fn


def groupwise(fn: _Fn) -> _Fn:
    """Declare that ``fn`` compares the completions of one prompt: it is called with whole groups, never with less."""
    fn.groupwise = True  # type: ignore[attr-defined]
    return fn


def served_by(actor: str) -> Callable[[_Fn], _Fn]:
    """Declare that a reward service grades with actors of class ``actor``, ``package.module:Class``, instead of ``fn``.

    For functions around a model: the actor loads it once. ``fn`` itself is what runs without Ray.
    """

    def mark(fn: _Fn) -> _Fn:
        fn.served_by = actor  # type: ignore[attr-defined]
        return fn

    return mark


def comes_with_rollout(fn: _Fn) -> _Fn:
    """Declare that a reward service takes the verdicts from the rollouts themselves: ``Rollout.verdict``."""
    fn.comes_with_rollout = True  # type: ignore[attr-defined]
    return fn


# --- from a name to a function --------------------------------------------------------------------------------------


def resolve(name: str) -> RewardFn:
    """The function behind a built-in name, an entry point, ``package.module:fn`` or ``path/file.py:fn``.

    ``verl:path/file.py:fn`` and ``openrlhf:...`` are functions that follow another trainer's convention, see
    ``rewards.adapters``. Raises RewardLoadError when the file, module or function is absent, is not callable, or cannot
    take completions, and when an installed package gives its reward a name that another one has.
    """
    convention, target = split_convention(name)
    label = f"reward {name!r}"
    if convention:
        from rewards.adapters import adapt

        return adapt(convention, load_function(target, label), name)
    if ":" not in target:
        target, label = _declared(name)
    value = load_function(target, label)
    signature_of(value, name)
    return value


def split_convention(name: str) -> tuple[str, str]:
    """(``verl``, ``path/file.py:fn``) of ``verl:path/file.py:fn``; the first is empty where no adapter is named."""
    prefix, _, rest = name.partition(":")
    return (prefix, rest) if prefix in CONVENTIONS and ":" in rest else ("", name)


def _declared(name: str) -> tuple[str, str]:
    """What a name without a colon stands for, and how errors call it."""
    points = installed(name)
    owners = [f"{point.distribution} ({point.line})" for point in points]
    if name in REWARDS:
        owners.insert(0, f"rlplatform ({name} = {REWARDS[name]})")
    if len(owners) > 1:
        raise RewardLoadError(
            f"reward {name!r} is declared more than once: {'; '.join(owners)}. Use package.module:fn, or remove one"
        )
    if not owners:
        known = sorted({*REWARDS, *(point.name for point in installed())})
        raise RewardLoadError(
            f"reward {name!r}: expected one of {', '.join(known)}, package.module:fn or path/file.py:fn"
            f"{nearest(name, known)}"
        )
    label = f"reward {name!r}"
    if name in REWARDS:
        return REWARDS[name], label
    if ":" not in points[0].target:
        raise RewardLoadError(f"{label}, entry point of {owners[0]}: expected {name} = package.module:fn")
    return points[0].target, f"{label}, entry point of {owners[0]}"


def load_function(target: str, label: str) -> Callable[..., Any]:
    """The function that ``package.module:fn`` or ``path/file.py:fn`` names; ``label`` opens every error message.

    Raises RewardLoadError when the file, module or function is absent or is not callable.
    """
    value = load_object(target, label)
    if not callable(value) or isinstance(value, type):
        kind = "a class; name a function or an instance of it" if isinstance(value, type) else type(value).__name__
        raise RewardLoadError(f"{label}: expected a function, got {kind}")
    return value


def load_object(target: str, label: str) -> Any:
    """As ``load_function``, whatever the name stands for: a class, a function, a value."""
    source, colon, attribute = target.rpartition(":")
    if not colon or not source or not attribute:
        raise RewardLoadError(f"{label}: expected package.module:fn or path/file.py:fn, got {target!r}")
    module = _load_file(label, Path(source)) if source.endswith(".py") else _load_module(label, source)
    value: Any = module
    for part in attribute.split("."):
        if not hasattr(value, part):
            raise RewardLoadError(
                f"{label}: {source} has no function {attribute!r}"
                f"{nearest(part, [n for n in dir(value) if callable(getattr(value, n)) and not n.startswith('_')])}"
            )
        value = getattr(value, part)
    return value


def absolute(name: str) -> str:
    """The same name, with a file's path made absolute: processes with another working directory find it too."""
    convention, target = split_convention(name)
    source, colon, attribute = target.rpartition(":")
    if not source.endswith(".py"):
        return name
    return f"{convention}{':' * bool(convention)}{Path(source).expanduser().resolve()}{colon}{attribute}"


def sources(names: Iterable[str]) -> dict[str, bytes]:
    """The files that these names load functions from, as they are now or were frozen: absolute path -> content."""
    targets = [absolute(name) for name in names]
    paths = {split_convention(name)[1].rpartition(":")[0] for name in targets}
    return {path: FROZEN.get(path) or Path(path).read_bytes() for path in paths if path.endswith(".py")}


def nearest(word: str, names: Iterable[str]) -> str:
    """The end of an error message about an unknown name: ``; did you mean 'math'?``, or nothing."""
    close = difflib.get_close_matches(word, list(names), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _load_module(label: str, source: str) -> ModuleType:
    try:
        return importlib.import_module(source)
    except ModuleNotFoundError as error:
        if error.name and (source == error.name or source.startswith(error.name + ".")):
            raise RewardLoadError(
                f"{label}: no module named {error.name!r} on the Python path; install it, run from the folder "
                "that holds it, or write path/file.py:fn"
            ) from error
        raise RewardLoadError(f"{label}: importing {source} failed{_last_line(error)}: {error}") from error
    except Exception as error:
        raise RewardLoadError(
            f"{label}: importing {source} failed{_last_line(error)}: {type(error).__name__}: {error}"
        ) from error


def _load_file(label: str, path: Path) -> ModuleType:
    """Import a file under a name of its own, so that a user's ``math.py`` shadows nothing."""
    path = path.expanduser().resolve()
    frozen = FROZEN.get(str(path))
    if frozen is None and not path.is_file():
        beside = sorted(other.name for other in path.parent.glob("*.py")) if path.parent.is_dir() else []
        where = f"; {path.parent} holds {', '.join(beside)}" if beside else ""
        raise RewardLoadError(f"{label}: no file {path}{where}")
    module_name = f"_reward_file_{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise RewardLoadError(f"{label}: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    folder = str(path.parent)
    sys.path.insert(0, folder)  # modules beside the file win while it is imported ...
    sys.modules[module_name] = module
    try:
        if frozen is None:
            spec.loader.exec_module(module)
        else:
            exec(compile(frozen, str(path), "exec", dont_inherit=True), module.__dict__)
    except BaseException as error:
        del sys.modules[module_name]
        if not isinstance(error, Exception):
            raise
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else _line_in(error, path)
        raise RewardLoadError(f"{label}: {path}{line}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(folder)
        if folder not in sys.path:
            sys.path.append(folder)  # ... and later ones lose, so that they shadow no installed package
    return module


def _line_in(error: BaseException, path: Path) -> str:
    lines = [tb.tb_lineno for tb in _tracebacks(error) if tb.tb_frame.f_code.co_filename == str(path)]
    return f", line {lines[-1]}" if lines else ""


def _last_line(error: BaseException) -> str:
    """Where an import failed: the innermost line that is not the import system's own."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" at {error.filename}:{error.lineno}"
    frames = [(tb.tb_frame.f_code.co_filename, tb.tb_lineno) for tb in _tracebacks(error)]
    own = (importlib.__file__, __file__)
    lines = [f" at {file}:{line}" for file, line in frames if not file.startswith("<frozen") and file not in own]
    return lines[-1] if lines else ""


def _tracebacks(error: BaseException) -> Iterable[Any]:
    tb = error.__traceback__
    while tb is not None:
        yield tb
        tb = tb.tb_next


def is_async(fn: RewardFn) -> bool:
    """Is it an ``async def``, or an object whose call is one?"""
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004


@dataclass(frozen=True)
class Signature:
    """Which keywords a reward function takes."""

    names: frozenset[str]  # parameters it names
    required: frozenset[str]  # those without a default
    takes_all: bool  # it has **kwargs
    settings: frozenset[str] = frozenset()  # what a config's args may give: keyword-only ones, else those with defaults
    reserved: frozenset[str] = frozenset()  # settings that no column may be: keyword-only ones with defaults

    def accepts(self, name: str) -> bool:
        return self.takes_all or name in self.names

    def missing(self, columns: Iterable[str]) -> list[str]:
        """Required parameters that neither the platform nor these columns supply."""
        return sorted(self.required - set(SUPPLIED) - set(columns))


def signature_of(fn: RewardFn, name: str = "") -> Signature:
    """Raises RewardLoadError when ``fn`` cannot be called as ``fn(completions=..., ...)``."""
    name = name or getattr(fn, "__name__", repr(fn))
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):  # a callable written in C tells nothing: hand it everything
        return Signature(frozenset(), frozenset(), takes_all=True)
    for parameter in parameters:
        if parameter.kind is parameter.POSITIONAL_ONLY and parameter.default is parameter.empty:
            raise RewardLoadError(
                f"reward {name!r}: parameter {parameter.name!r} is positional-only; arguments are passed by keyword"
            )
    keywords = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    own = [p for p in keywords if p.name not in SUPPLIED]
    keyword_only = [p.name for p in own if p.kind is p.KEYWORD_ONLY]
    signature = Signature(
        names=frozenset(p.name for p in keywords),
        required=frozenset(p.name for p in keywords if p.default is p.empty),
        takes_all=any(p.kind is p.VAR_KEYWORD for p in parameters),
        settings=frozenset(keyword_only or [p.name for p in own if p.default is not p.empty]),
        reserved=frozenset(p.name for p in own if p.kind is p.KEYWORD_ONLY and p.default is not p.empty),
    )
    if not signature.accepts("completions"):
        raise RewardLoadError(
            f"reward {name!r}: expected def fn(prompts, completions, **columns), "
            f"got a signature without `completions`: {name}{inspect.signature(fn)}"
        )
    return signature


# --- from what a function returned to verdicts ----------------------------------------------------------------------


def to_verdicts(name: str, result: Any, num_rows: int, *, first_row: int = 0) -> list[Verdict]:
    """One Verdict a row from what function ``name`` returned; messages count rows from ``first_row``.

    A value that is no score (NaN, a bool, a string) makes its own row an ``error``. Raises RewardContractError when
    the result is not a list of ``num_rows`` values: nobody can tell which row such values belong to.
    """
    if hasattr(result, "tolist"):  # numpy arrays and tensors
        result = result.tolist()
    if isinstance(result, (str, bytes, Mapping)) or not isinstance(result, Sequence):
        raise RewardContractError(
            f"reward {name!r}: expected a list of {num_rows} scores, one a row, got {type(result).__name__} "
            f"{_short(result)}; a single value is not spread over the rows"
        )
    if len(result) != num_rows:
        raise RewardContractError(f"reward {name!r}: expected {num_rows} scores, one a row, got {len(result)}")
    return [_to_verdict(name, row, value) for row, value in enumerate(result, first_row)]


def _to_verdict(name: str, row: int, value: Any) -> Verdict:
    if isinstance(value, Verdict):
        return value
    if value is None:
        return Verdict(0.0, NOT_APPLICABLE)
    if isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value):
        return Verdict(float(value))
    hint = "; write float(...)" if isinstance(value, bool) or type(value).__name__ in ("bool_", "bool") else ""
    detail = f"reward {name!r}, row {row}: expected a finite float, None or a Verdict, got {_short(value)} "
    return Verdict(0.0, ERROR, detail=f"{detail}({type(value).__name__}){hint}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
