"""Rows of an async reward function side by side, in the main thread of a worker."""

from __future__ import annotations

import asyncio
import inspect
import os
import socket
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rewards.base import RewardFn, Signature
from rewards.outcome import Logs, SoftTimeout, keywords, outcome, stack_of
from rewards.wire import receive_message

HEARTBEAT_S = 0.5
CANCEL_GRACE_S = 0.1  # for a cancelled row to end before it is left behind


class ConcurrentRows:
    """Rows of an async function side by side in one event loop, in a worker's main thread.

    The parent sends a row when it may start and ``{"end": True}`` after the last verdict; it keeps the limits. A row
    past its deadline is cancelled and a ``timeout``; the others go on. One that blocks the loop stops their clocks too
    (for at most another deadline) and the heartbeat: then the parent's timer ends it.
    """

    def __init__(
        self,
        channel: socket.socket,
        fn: RewardFn,
        signature: Signature,
        job: Mapping[str, Any],
        send: Callable[[Mapping[str, Any]], None],
        interruption: Callable[[], SoftTimeout | None],
    ) -> None:
        self._channel, self._fn, self._signature, self._send = channel, fn, signature, send
        self._interruption = interruption  # the soft signal that has arrived, if any
        self._timeout_s = float(job["timeout_s"])
        self._tasks: set[asyncio.Task[None]] = set()
        self._stalled_s = 0.0  # time in which the loop was blocked
        self._left_behind = False  # a row took its cancellation for nothing and still runs

    async def serve(self) -> dict[str, Any]:
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def read() -> None:
            try:
                message = receive_message(self._channel)
            except (EOFError, OSError):
                os._exit(0)  # the pool was closed
            if "end" in message:
                ended.set()
            else:
                task = asyncio.create_task(self._row(message))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

        loop.add_reader(self._channel.fileno(), read)
        heart = asyncio.create_task(self._beat())
        try:
            await ended.wait()
        finally:
            loop.remove_reader(self._channel.fileno())
            heart.cancel()
        return {"ended": True, "left_behind": self._left_behind}

    async def _beat(self) -> None:
        interval_s = min(HEARTBEAT_S, self._timeout_s / 4)
        while True:
            due = time.monotonic() + interval_s
            await asyncio.sleep(interval_s)
            late_s = time.monotonic() - due
            if late_s > interval_s:
                self._stalled_s += late_s
            self._send({"alive": True})

    async def _row(self, job: Mapping[str, Any]) -> None:
        started, stalled_before = time.monotonic(), self._stalled_s
        logs = Logs(job["function"], 1)
        task = asyncio.create_task(self._call(job, logs))
        while not task.done():
            extra_s = min(self._stalled_s - stalled_before, self._timeout_s)
            left_s = started + self._timeout_s + extra_s - time.monotonic()
            if left_s <= 0:
                break
            await asyncio.wait({task}, timeout=left_s)
        result: Any = None
        failure: BaseException | None = None
        stack: Sequence[traceback.FrameSummary] = ()
        if task.cancelled():  # before it had begun
            failure = asyncio.CancelledError("the row's task was cancelled by the function's module")
        elif task.done():
            result, failure = task.result()
        else:
            failure, stack = SoftTimeout("past its deadline"), stack_of(task.get_coro())
            task.cancel()
            await asyncio.wait({task}, timeout=CANCEL_GRACE_S)
            self._left_behind = self._left_behind or not task.done()
        message = outcome(job, slice(0, 1), logs, time.monotonic() - started, result, failure, stack)
        self._send(message | {"row": job["rows"][0], "left_behind": self._left_behind})

    async def _call(self, job: Mapping[str, Any], logs: Logs) -> tuple[Any, BaseException | None]:
        """(result, None) or (None, what was raised).

        The loop must not see SystemExit, which would end it; a CancelledError need not be ours: libraries raise it too.
        """
        result: Any = None
        failure: BaseException | None = None
        try:
            result = self._fn(**keywords(job, slice(0, 1), self._signature, logs))
            result = await result if inspect.isawaitable(result) else result
        except BaseException as error:
            failure = error
        signal = self._interruption()
        if signal is not None and signal.task is asyncio.current_task():  # whatever the function made of it
            failure = signal
        return result, failure
