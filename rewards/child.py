"""A worker: a forked process that loads the reward functions and runs one job at a time, in its main thread.

A job comes in as a pickle and its verdicts go out as JSON, a line a message, on a socket of the worker's own.
"""

from __future__ import annotations

import asyncio
import ctypes
import inspect
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType, SimpleNamespace
from typing import Any, NoReturn

from rewards.base import (
    ERROR,
    TIMEOUT,
    RewardContractError,
    RewardFn,
    RewardLoadError,
    Signature,
    Verdict,
    resolve,
    signature_of,
    to_verdicts,
)
from rewards.wire import receive_message

SOFT_SIGNAL = signal.SIGUSR1  # the parent's timer; SIGALRM and its timers are left to the reward functions
_PR_SET_PDEATHSIG = 1
_MAX_DETAIL = 4000  # characters


def prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def run_worker(descriptor: int, functions: Mapping[str, str], parent: int) -> NoReturn:
    """The whole life of a forked worker; never returns into the fork server's frames."""
    code = 1
    try:
        os.setpgid(0, 0)
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:  # else the server died before the line above
            _Worker(socket.socket(fileno=descriptor), functions).serve()
            code = 0
    except (EOFError, ConnectionError):
        code = 0  # the pool was closed
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


class SoftTimeout(BaseException):
    """Raised inside a reward function at its deadline; no ``except Exception`` on the way stops it."""


class _Worker:
    def __init__(self, channel: socket.socket, functions: Mapping[str, str]) -> None:
        self._channel = channel
        self._functions = functions
        self._loaded: dict[str, tuple[RewardFn, Signature]] = {}
        self._armed = False
        signal.signal(SOFT_SIGNAL, self._on_soft_signal)

    def _on_soft_signal(self, signum: int, frame: FrameType | None) -> None:
        if self._armed:
            self._armed = False
            raise SoftTimeout("past its deadline")

    def serve(self) -> None:
        try:
            for name, target in self._functions.items():
                fn = resolve(target)
                self._loaded[name] = (fn, signature_of(fn, name))
        except RewardLoadError as error:
            self._send({"failed": str(error), "traceback": traceback.format_exc()})
            return
        self._send({"ready": True, "cpu_s": time.process_time()})
        while True:
            job = receive_message(self._channel)
            for message in self._by_row(job) if job["by_row"] else [self._call(job, slice(None))]:
                self._send(message)

    def _send(self, message: Mapping[str, Any]) -> None:
        self._channel.sendall(json.dumps(message, default=repr).encode() + b"\n")

    def _by_row(self, job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        for row in range(len(job["completions"])):
            yield self._call(job, slice(row, row + 1))

    def _call(self, job: Mapping[str, Any], rows: slice) -> dict[str, Any]:
        """Grade ``rows`` of a job in one call. A batch that fails asks the parent to split it; a group fails as one."""
        name = job["function"]
        fn, signature = self._loaded[name]
        logs = _Logs(name, len(job["completions"][rows]))
        started = time.perf_counter()
        failure: tuple[str, str, str] | None = None  # status, detail, traceback
        verdicts: list[Verdict] = []
        try:
            kwargs = _keywords(name, job, rows, signature, logs)
            self._armed = True
            result = fn(**kwargs)
            if inspect.isawaitable(result):
                result = asyncio.run(_await(result))
            self._armed = False
            verdicts = to_verdicts(name, result, logs.num_rows, first_row=job["rows"][rows.start or 0])
        except SoftTimeout as error:
            failure = (TIMEOUT, _describe(error), _format(error))
        except RewardContractError as error:  # no single row's fault; called with one row, it might even pass
            verdicts = [Verdict(0.0, ERROR, detail=f"{error} (row {row})") for row in job["rows"][rows]]
            logs.traceback = str(error)
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            failure = (ERROR, _describe(error), _format(error))
        finally:
            self._armed = False
        seconds = time.perf_counter() - started
        if failure is not None:
            status, detail, text = failure
            if logs.num_rows > 1 and not job["whole"]:
                return {"split": status, "detail": detail, "traceback": text, "seconds": seconds}
            verdicts, logs.traceback = [Verdict(0.0, status, detail=detail)] * logs.num_rows, text
        logs.traceback = logs.traceback or next((v.detail for v in verdicts if v.status == ERROR), "")
        return {
            "verdicts": [_pack(verdict, seconds / logs.num_rows) for verdict in verdicts],
            "extras": logs.extras,
            "metrics": logs.metrics,
            "traceback": logs.traceback,
            "cpu_s": time.process_time(),
        }


async def _await(result: Any) -> Any:
    return await result


class _Logs:
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
        self.extras[column] = list(values)

    def log_metric(self, name: str, value: float) -> None:
        self.metrics[name] = float(value)


def _keywords(name: str, job: Mapping[str, Any], rows: slice, signature: Signature, logs: _Logs) -> dict[str, Any]:
    columns = {key: values[rows] for key, values in job["columns"].items()}
    missing = signature.missing([*columns, *job["args"]])
    if missing:
        raise RewardContractError(
            f"reward {name!r} needs the column{'s' * (len(missing) > 1)} {', '.join(missing)}; "
            f"the rows have {', '.join(sorted(columns)) or 'no columns'}"
        )
    state = job["trainer_state"]
    supplied: dict[str, Any] = {
        "prompts": job["prompts"][rows],
        "completions": job["completions"][rows],
        "completion_ids": job["completion_ids"][rows] if job["completion_ids"] is not None else None,
        "trainer_state": SimpleNamespace(**state) if isinstance(state, Mapping) else state,
        "log_extra": logs.log_extra,
        "log_metric": logs.log_metric,
    }
    given = {key: value for key, value in (columns | supplied).items() if signature.accepts(key)}
    return given | dict(job["args"])


def _pack(verdict: Verdict, seconds: float) -> list[Any]:
    parts = {str(name): float(value) for name, value in verdict.parts.items()}
    return [float(verdict.score), verdict.status, parts, verdict.detail[-_MAX_DETAIL:], verdict.seconds or seconds]


def _told(error: BaseException) -> traceback.TracebackException:
    """The exception with the frames of the function alone, without those that called or stopped it."""
    told = traceback.TracebackException.from_exception(error)
    ours = (__file__, asyncio.runners.__file__, asyncio.base_events.__file__)
    told.stack = traceback.StackSummary.from_list([frame for frame in told.stack if frame.filename not in ours])
    return told


def _format(error: BaseException) -> str:
    """The traceback, from a deep stack only both ends: the user's function, and where it was."""
    told = _told(error)
    lines = list(told.format())
    num_frames = len(told.stack)
    if num_frames > 10 and told.__cause__ is None and told.__context__ is None:
        first = next(i for i, line in enumerate(lines) if line.startswith("  File"))
        last = first + len(told.stack.format())
        lines[first + 3 : last - 3] = [f"  ... {num_frames - 6} frames ...\n"]
    return "".join(lines)


def _describe(error: BaseException, num_lines: int = 6) -> str:
    """What fits in a table: where in the user's function, and the last lines of the traceback."""
    told = _told(error)
    if isinstance(error, SoftTimeout):
        ends = [*told.stack[:1], *told.stack[1:][-1:]]
        return "past its deadline, in " + ", at ".join(f"{f.filename}:{f.lineno} ({f.name})" for f in ends)
    lines = "".join(told.format()).rstrip().split("\n")
    frame = told.stack[0] if told.stack else None
    first = f'  File "{frame.filename}", line {frame.lineno}, in {frame.name}' if frame else ""
    tail = lines[-num_lines:]
    return "\n".join(tail if not first or any(first in line for line in tail) else [first, "    ...", *tail])
