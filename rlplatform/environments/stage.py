"""Environments at work in the background, while somebody else samples.

    caller (engine loop)                         event loop (thread)                 text environments
      start(key, environment, row, seed) ──►       environment.play(row, chat)  ──►    a thread each: reset, step
      poll() ◄── Asked(key, new messages) ──       await chat(messages)
      answer(key, message)               ──►       ... goes on
      poll() ◄── Ended(key, verdict)     ──        returned, or raised

The caller never blocks on an environment, and no environment waits for another. An environment that is past its
deadline is given up: its task is cancelled, and a call that does not return keeps its thread to itself.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rewards.base import ERROR, TIMEOUT, Verdict
from rlplatform.environments.base import Environment
from rlplatform.environments.contract import ContractError, Dialogue, LimitReached, Row
from rlplatform.types import Message

_BEAT_S = 0.2  # an event loop that is alive says so this often
_MAX_DETAIL = 2000  # characters


@dataclass(frozen=True)
class Asked:
    """An environment wants the next assistant turn."""

    key: int
    messages: tuple[Message, ...]  # new since its last turn
    tools: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Ended:
    """An episode is over. The verdict's status speaks of the environment: ``error`` and ``timeout`` are its own."""

    key: int
    verdict: Verdict


@dataclass
class _Seat:
    key: int
    environment: Environment
    loop: _Loop
    dialogue: Dialogue = field(default_factory=Dialogue)
    since: float | None = None  # the environment has had the word since; None: the model has it
    reply: asyncio.Future[Message] | None = None
    task: Any = None


class Stage:
    """Not for several threads: one caller starts, polls and answers.

    ``step_timeout_s``: how long an environment may take between two of its turns, the reset and the grading included.
    """

    def __init__(self, step_timeout_s: float = 10.0) -> None:
        if not step_timeout_s > 0:
            raise ValueError(f"environments: expected step_timeout_s > 0, got {step_timeout_s}")
        self._step_timeout_s = step_timeout_s
        self._events: queue.SimpleQueue[tuple[_Seat, Asked | Ended]] = queue.SimpleQueue()
        self._seats: dict[int, _Seat] = {}
        self._loop = _Loop()

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give up whatever still plays."""
        for key in list(self._seats):
            self.cancel(key)
        self._loop.stop()

    @property
    def num_busy(self) -> int:
        """Environments that have the word."""
        return sum(seat.since is not None for seat in self._seats.values())

    def dialogue(self, key: int) -> Dialogue:
        return self._seats[key].dialogue

    def start(self, key: int, environment: Environment, row: Row, seed: int) -> None:
        """Begin an episode; ``key`` names it from now on."""
        if key in self._seats:
            raise ValueError(f"environments: episode {key} plays already")
        seat = self._seats[key] = _Seat(key, environment, self._loop, since=time.monotonic())
        seat.task = asyncio.run_coroutine_threadsafe(self._play(seat, row, seed), seat.loop.loop)

    def answer(self, key: int, message: Message) -> None:
        """The assistant's turn that was asked for."""
        seat = self._asking(key)
        seat.dialogue.reply(message)  # before the environment can go on
        self._give_word(seat, dict(message))

    def refuse(self, key: int, reason: str) -> None:
        """There is no further turn: ``chat`` raises LimitReached, and the environment may grade what there is."""
        self._give_word(self._asking(key), LimitReached(reason))

    def cancel(self, key: int) -> None:
        """Give an episode up; nothing more comes of it."""
        seat = self._seats.pop(key, None)
        if seat is not None and seat.task is not None:
            seat.task.cancel()

    def poll(self, timeout_s: float = 0.0) -> list[Asked | Ended]:
        """What has happened since the last call; waits up to ``timeout_s`` for the first event."""
        found: list[Asked | Ended] = []
        until = time.monotonic() + timeout_s
        while True:
            wait_s = 0.0 if found else max(0.0, min(until, self._next_deadline()) - time.monotonic())
            try:
                seat, event = self._events.get(timeout=wait_s) if wait_s else self._events.get_nowait()
            except queue.Empty:
                found += self._overdue()
                if found or time.monotonic() >= until:
                    return found
                continue
            if self._seats.get(event.key) is seat:  # else it was given up meanwhile
                seat.since = None
                if isinstance(event, Ended):
                    del self._seats[event.key]
                    found = [one for one in found if one.key != event.key]  # it no longer wants the turn
                found.append(event)

    # --- inside -------------------------------------------------------------------------------------------------

    def _asking(self, key: int) -> _Seat:
        seat = self._seats.get(key)
        if seat is None or seat.since is not None:
            raise ValueError(f"environments: episode {key} has not asked for a turn")
        return seat

    def _give_word(self, seat: _Seat, answer: Message | LimitReached) -> None:
        assert seat.reply is not None  # it has asked
        seat.since = time.monotonic()
        seat.loop.loop.call_soon_threadsafe(_resolve, seat.reply, answer)

    def _next_deadline(self) -> float:
        times = [seat.since for seat in self._seats.values() if seat.since is not None]
        return min(times) + self._step_timeout_s if times else float("inf")

    def _overdue(self) -> list[Ended]:
        now = time.monotonic()
        late = [s for s in self._seats.values() if s.since is not None and now - s.since >= self._step_timeout_s]
        found = []
        for seat in late:
            detail = (
                f"environment {seat.environment.name!r}: no answer within {self._step_timeout_s:g} s "
                f"after turn {seat.dialogue.num_turns}"
            )
            if seat.loop.is_blocked():
                detail += "; async environments share an event loop, and one of them blocks it instead of awaiting"
                if seat.loop is self._loop:
                    self._loop = _Loop()  # later episodes are spared
            self.cancel(seat.key)
            found.append(Ended(seat.key, Verdict(0.0, TIMEOUT, detail=detail)))
        return found

    async def _play(self, seat: _Seat, row: Row, seed: int) -> None:
        async def chat(messages: Sequence[Message], tools: Any = None) -> Message:
            if seat.reply is not None and (not seat.reply.done() or seat.reply.cancelled()):
                raise ContractError("chat was called again before it answered; an episode is one line of turns")
            new = seat.dialogue.extend(messages, tools)
            seat.reply = asyncio.get_running_loop().create_future()
            self._events.put((seat, Asked(seat.key, tuple(new), seat.dialogue.tools)))
            return await seat.reply

        try:
            verdict = await seat.environment.play(row, seed, chat)
        except LimitReached as reason:
            verdict = Verdict(0.0, detail=str(reason))
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # SystemExit too: in a task it would end the event loop
            verdict = Verdict(0.0, ERROR, detail=_told(seat.environment.name, error))
        self._events.put((seat, Ended(seat.key, verdict)))


def _resolve(future: asyncio.Future[Message], answer: Message | LimitReached) -> None:
    if future.done():  # the environment no longer waits for it
        return
    if isinstance(answer, LimitReached):
        future.set_exception(answer)
    else:
        future.set_result(answer)


def _told(name: str, error: BaseException) -> str:
    if isinstance(error, ContractError):
        return f"environment {name!r}: {error}"
    text = "".join(traceback.format_exception(error))
    return f"environment {name!r} raised {type(error).__name__}: {error}\n{text[-_MAX_DETAIL:]}"


class _Loop:
    """An event loop in a thread, and whether it still turns."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._beaten = time.monotonic()
        threading.Thread(target=self._run, name="environments", daemon=True).start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self._beat()
        self.loop.run_forever()
        self.loop.close()

    def _beat(self) -> None:
        self._beaten = time.monotonic()
        self.loop.call_later(_BEAT_S, self._beat)

    def is_blocked(self) -> bool:
        return time.monotonic() - self._beaten > 5 * _BEAT_S

    def stop(self) -> None:
        """After the cancelled tasks have had their say."""
        self.loop.call_soon_threadsafe(self.loop.call_later, 0.05, self.loop.stop)
