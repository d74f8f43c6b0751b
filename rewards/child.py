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
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any, NoReturn

from rewards.async_rows import ConcurrentRows
from rewards.base import (
    RewardFn,
    RewardLoadError,
    Signature,
    resolve,
    signature_of,
)
from rewards.outcome import Logs, SoftTimeout, keywords, outcome, running_task
from rewards.wire import receive_message

SOFT_SIGNAL = signal.SIGUSR1  # the parent's timer; SIGALRM and its timers are left to the reward functions
_PR_SET_PDEATHSIG = 1


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


class _Worker:
    def __init__(self, channel: socket.socket, functions: Mapping[str, str]) -> None:
        self._channel = channel
        self._functions = functions
        self._loaded: dict[str, tuple[RewardFn, Signature]] = {}
        self._armed = False
        self._interruption: SoftTimeout | None = None  # of the call at hand; its function may have swallowed it
        self._pid = os.getpid()
        self._runner = asyncio.Runner()  # one event loop for life, so that a function may keep its connections
        signal.signal(SOFT_SIGNAL, self._on_soft_signal)

    def _on_soft_signal(self, signum: int, frame: FrameType | None) -> None:
        if self._armed:
            self._armed = False
            self._interruption = SoftTimeout("past its deadline", running_task())
            raise self._interruption

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
            if "stream" in job:
                self._send(self._stream(job))
                continue
            for message in self._by_row(job) if job["by_row"] else [self._call(job, slice(None))]:
                self._send(message)

    def _send(self, message: Mapping[str, Any]) -> None:
        if os.getpid() != self._pid:  # a fork that came back from the function: not one word, or it answers for us
            os._exit(1)
        self._channel.sendall(json.dumps(message, default=repr).encode() + b"\n")

    def _by_row(self, job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        for row in range(len(job["completions"])):
            yield self._call(job, slice(row, row + 1))

    def _stream(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Rows of an async function, side by side, as the parent sends them; returns how it ended."""
        self._interruption = None
        rows = ConcurrentRows(
            self._channel, *self._loaded[job["function"]], job, self._send, lambda: self._interruption
        )
        self._armed = True
        try:
            return self._runner.run(rows.serve())
        except SoftTimeout:  # hit the event loop itself, so no row is to blame
            return {"interrupted": True}
        finally:
            self._armed = False

    def _call(self, job: Mapping[str, Any], rows: slice) -> dict[str, Any]:
        """Grade ``rows`` of a job in one call. A batch that fails asks the parent to split it; a group fails as one."""
        fn, signature = self._loaded[job["function"]]
        logs = Logs(job["function"], len(job["completions"][rows]))
        started = time.perf_counter()
        result: Any = None
        failure: BaseException | None = None
        self._interruption = None
        try:
            kwargs = keywords(job, rows, signature, logs)
            self._armed = True
            result = fn(**kwargs)
            if inspect.isawaitable(result):
                result = self._runner.run(_await(result))
            self._armed = False
        except BaseException as error:  # SoftTimeout, SystemExit, CancelledError, ...: whatever it is, the row's
            failure = error
        finally:
            self._armed = False
        # A bare `except` makes an answer, or another exception, of the deadline.
        return outcome(job, rows, logs, time.perf_counter() - started, result, self._interruption or failure)


async def _await(result: Any) -> Any:
    return await result
