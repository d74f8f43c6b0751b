"""From one call of a reward function to the message about its rows: what it is given, what it said, what went wrong."""

from __future__ import annotations

import asyncio
import copy
import time
import traceback
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from rewards.base import ERROR, TIMEOUT, RewardContractError, Signature, Verdict, to_verdicts

_MAX_DETAIL = 4000  # characters
# Whose frames are left out of tracebacks: the user's line comes first.
_OURS = {asyncio.runners.__file__, asyncio.base_events.__file__, asyncio.tasks.__file__}
_OURS |= {__file__.replace("outcome.py", name) for name in ("outcome.py", "child.py", "async_rows.py")}


class SoftTimeout(BaseException):
    """Raised inside a reward function at its deadline; no ``except Exception`` on the way stops it.

    ``task`` is the asyncio task that it was raised in, if any.
    """

    def __init__(self, message: str, task: asyncio.Task[Any] | None = None) -> None:
        super().__init__(message)
        self.task = task


def running_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop runs
        return None


def outcome(
    job: Mapping[str, Any],
    rows: slice,
    logs: Logs,
    seconds: float,
    result: Any,
    failure: BaseException | None,
    stack: Sequence[traceback.FrameSummary] = (),
) -> dict[str, Any]:
    """The message about ``rows`` that the function answered with ``result``, or did not answer.

    ``stack``: where a row was that is past its deadline, for a ``failure`` that was not raised there.
    """
    verdicts: list[Verdict] = []
    if failure is None:
        try:
            verdicts = to_verdicts(logs.name, result, logs.num_rows, first_row=job["rows"][rows.start or 0])
            for verdict in verdicts:
                _pack(verdict, seconds)
        except RewardContractError as error:
            failure = error
        except Exception as error:  # 10**400, a part that is no number, a __repr__ that raises: one row's own fault
            failure = ValueError(f"reward {logs.name!r}: no score can be read: {type(error).__name__}: {error}")
    if isinstance(failure, RewardContractError):  # no single row's fault; called with one row, it might even pass
        verdicts = [Verdict(0.0, ERROR, detail=f"{failure} (row {row})") for row in job["rows"][rows]]
        logs.traceback = str(failure)
    elif failure is not None:
        status = TIMEOUT if isinstance(failure, SoftTimeout) else ERROR
        detail, text = _describe(failure, stack), _format(failure, stack)
        if logs.num_rows > 1 and not job["whole"]:
            return {"split": status, "detail": detail, "traceback": _whole(text), "seconds": seconds}
        verdicts, logs.traceback = [Verdict(0.0, status, detail=detail)] * logs.num_rows, text
    logs.traceback = logs.traceback or next((v.detail for v in verdicts if v.status == ERROR), "")
    return {
        "verdicts": [_pack(verdict, seconds / logs.num_rows) for verdict in verdicts],
        "extras": logs.extras,
        "metrics": logs.metrics,
        "traceback": _whole(logs.traceback),
        "cpu_s": time.process_time(),
    }


class Logs:
    """What a function reports beside its scores."""

    def __init__(self, name: str, num_rows: int) -> None:
        self.name, self.num_rows = name, num_rows
        self.extras: dict[str, list[Any]] = {}
        self.metrics: dict[str, float] = {}
        self.traceback = ""

    def log_extra(self, column: str, values: Sequence[Any]) -> None:
        if isinstance(values, (str, bytes)) or len(values) != self.num_rows:
            raise RewardContractError(
                f"reward {self.name!r}: log_extra({column!r}, ...) expected {self.num_rows} values, one a row"
            )
        self.extras[_whole(str(column))] = [_plain(value) for value in values]

    def log_metric(self, name: str, value: float) -> None:
        self.metrics[name] = float(value)


def keywords(job: Mapping[str, Any], rows: slice, signature: Signature, logs: Logs) -> dict[str, Any]:
    """What the function is called with. Raises RewardContractError when it needs a column that the rows do not have."""
    columns = {key: _own(values[rows]) for key, values in job["columns"].items()}
    missing = signature.missing([*columns, *job["args"]])
    if missing:
        raise RewardContractError(
            f"reward {logs.name!r} needs the column{'s' * (len(missing) > 1)} {', '.join(missing)}; "
            f"the rows have {', '.join(sorted(columns)) or 'no columns'}"
        )
    state = job["trainer_state"]
    supplied: dict[str, Any] = {
        "prompts": _own(job["prompts"][rows]),
        "completions": job["completions"][rows],
        "completion_ids": job["completion_ids"][rows] if job["completion_ids"] is not None else None,
        "trainer_state": SimpleNamespace(**state) if isinstance(state, Mapping) else state,
        "log_extra": logs.log_extra,
        "log_metric": logs.log_metric,
    }
    given = {key: value for key, value in (columns | supplied).items() if signature.accepts(key)}
    return given | dict(job["args"])


def _own(values: Sequence[Any]) -> list[Any]:
    """Rows of one prompt come with one object: what a function changes in one of them must not show in the next."""
    return [copy.deepcopy(value) if isinstance(value, (list, dict)) else value for value in values]


def _plain(value: Any) -> Any:
    """As JSON has it: arrays and numbers of numpy are lists and numbers, what JSON does not know is its repr."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {_whole(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (int, float)):
        return value
    return _whole(value if isinstance(value, str) else repr(value))


def _whole(text: str) -> str:
    """As files and terminals take it: half of a surrogate pair, e.g. of a file name, is told as its number."""
    return text.encode("utf-8", "backslashreplace").decode()


def _pack(verdict: Verdict, seconds: float) -> list[Any]:
    parts = {_whole(str(name)): float(value) for name, value in verdict.parts.items()}
    detail = _whole(verdict.detail[-_MAX_DETAIL:])
    return [float(verdict.score), verdict.status, parts, detail, verdict.seconds or seconds]


def _told(error: BaseException, stack: Sequence[traceback.FrameSummary]) -> traceback.TracebackException:
    """The exception with the frames of the function alone, without those that called or stopped it."""
    told = traceback.TracebackException.from_exception(error)
    told.stack = traceback.StackSummary.from_list([f for f in stack or told.stack if f.filename not in _OURS])
    return told


def _format(error: BaseException, stack: Sequence[traceback.FrameSummary]) -> str:
    """The traceback, from a deep stack only both ends: the user's function, and where it was."""
    told = _told(error, stack)
    lines = list(told.format())
    num_frames = len(told.stack)
    if num_frames > 10 and told.__cause__ is None and told.__context__ is None:
        first = next(i for i, line in enumerate(lines) if line.startswith("  File"))
        last = first + len(told.stack.format())
        lines[first + 3 : last - 3] = [f"  ... {num_frames - 6} frames ...\n"]
    return "".join(lines)


def _describe(error: BaseException, stack: Sequence[traceback.FrameSummary], num_lines: int = 6) -> str:
    """What fits in a table: where in the user's function, and the last lines of the traceback."""
    told = _told(error, stack)
    if isinstance(error, SoftTimeout):
        ends = [*told.stack[:1], *told.stack[1:][-1:]]
        return "past its deadline, in " + ", at ".join(f"{f.filename}:{f.lineno} ({f.name})" for f in ends)
    lines = "".join(told.format()).rstrip().split("\n")
    frame = told.stack[0] if told.stack else None
    first = f'  File "{frame.filename}", line {frame.lineno}, in {frame.name}' if frame else ""
    tail = lines[-num_lines:]
    return "\n".join(tail if not first or any(first in line for line in tail) else [first, "    ...", *tail])


def stack_of(coroutine: Any) -> list[traceback.FrameSummary]:
    """Where a suspended coroutine waits: the lines of all that await each other, outermost first."""
    frames = []
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
        if frame is None:
            break
        frames.append(traceback.FrameSummary(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)
    return [frame for frame in frames if frame.filename not in _OURS]
