"""Environments by name: a text environment or an async function, behind one call.

    text environment   reset(seed, row) -> messages, tools     gymnasium's reset and step, in messages
                       step(message) -> messages, reward, terminated, truncated, info
    async function     async def env(row, chat) -> score       `await chat(messages)` is the next assistant turn

``Environment.play`` is the async function; a text environment is played by a loop of seven lines around it. Gymnasium's
own text environments (``action_space``, ``reset(seed, options)``, text in and out) play too.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rewards.answer import after_thoughts
from rewards.base import RewardLoadError, Verdict, load_object, nearest, to_verdicts
from rlplatform.environments.contract import (
    Chat,
    ContractError,
    EnvironmentLoadError,
    LimitReached,
    Row,
    read_opening,
    read_step,
)

ENVIRONMENTS = {
    "calculator": "rlplatform.environments.calculator:Calculator",
    "python_sandbox": "rlplatform.environments.python_sandbox:PythonSandbox",
    "search": "rlplatform.environments.search:Search",
    "business": "rlplatform.environments.business:Business",
}


@dataclass(frozen=True)
class Environment:
    """What a name stands for; ``play`` runs one episode of it."""

    name: str
    make: Callable[..., Any]  # of a text environment: makes one; else the async function itself
    is_function: bool
    settings: Mapping[str, Any] = field(default_factory=dict)

    async def play(self, row: Row, seed: int, chat: Chat) -> Verdict:
        """One episode.

        Raises:
            LimitReached: ``chat`` had no further turn to give, and an async function did not catch that.
            ContractError: the environment said something that the contract does not allow.
            Exception: the environment's own.
        """
        if self.is_function:
            value = await self.make(row, chat, **self.settings)
            return to_verdicts(self.name, [value], 1)[0]
        calls = _Thread(f"environment {self.name}")
        environment: Any = None
        try:
            environment = await calls(self.make, **self.settings)
            return await self._play_text(environment, row, seed, chat, calls)
        finally:
            calls.end(getattr(environment, "close", None))

    async def _play_text(self, environment: Any, row: Row, seed: int, chat: Chat, calls: _Thread) -> Verdict:
        takes_text = hasattr(environment, "action_space")  # gymnasium's
        named = {"row": row} if _accepts(environment.reset, "row") else {"options": {"row": row}}
        opening = read_opening(await calls(environment.reset, seed=seed, **named), self.name)
        messages, score = list(opening.messages), 0.0
        try:
            while True:
                message = await chat(messages, opening.tools)
                said = after_thoughts(message["content"]) or "" if takes_text else message
                step = read_step(await calls(environment.step, said), self.name)
                score += step.reward
                if step.terminated or step.truncated:
                    return Verdict(score, parts=step.info.get("parts", {}), detail=str(step.info.get("detail", "")))
                messages += [message, *step.messages]
        except LimitReached as reason:
            return Verdict(score, detail=str(reason))


def load_environment(name: str, **settings: Any) -> Environment:
    """The environment behind a key of ``ENVIRONMENTS``, ``package.module:NAME`` or ``path/file.py:NAME``.

    NAME is a class of text environments, a function that makes one, or an async function. ``settings`` are its keyword
    arguments, the same for all episodes.

    Raises:
        EnvironmentLoadError: it is absent, is none of these, or does not take the settings.
    """
    label = f"environment {name!r}"
    if ":" not in name and name not in ENVIRONMENTS:
        raise EnvironmentLoadError(
            f"{label}: expected one of {', '.join(ENVIRONMENTS)}, package.module:NAME or path/file.py:NAME"
            f"{nearest(name, ENVIRONMENTS)}"
        )
    try:
        value = load_object(ENVIRONMENTS.get(name, name), label)
    except RewardLoadError as error:
        raise EnvironmentLoadError(str(error).replace("package.module:fn", "package.module:NAME")) from error
    if not callable(value):
        what = "one instance, which all episodes would share" if hasattr(value, "step") else type(value).__name__
        raise EnvironmentLoadError(f"{label}: expected a class, a function that makes one, or an async one; got {what}")
    is_function = inspect.iscoroutinefunction(value) or inspect.iscoroutinefunction(type(value).__call__)
    if isinstance(value, type):
        missing = [method for method in ("reset", "step") if not callable(getattr(value, method, None))]
        if missing:
            raise EnvironmentLoadError(f"{label}: expected a class with reset and step, it has no {missing[0]}")
    try:
        inspect.signature(value).bind(*((None, None) if is_function else ()), **settings)
    except TypeError as error:
        form = "async def env(row, chat, **settings)" if is_function else "NAME(**settings)"
        raise EnvironmentLoadError(f"{label}: it cannot be called as {form}: {error}") from error
    return Environment(name, value, is_function, dict(settings))


def _accepts(function: Callable[..., Any], keyword: str) -> bool:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return True
    return keyword in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


class _Thread:
    """Calls into one text environment, one after the other, in a thread of its own: it may block, or never return."""

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    async def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self._calls.put((future, function, args, kwargs))
        return await asyncio.wrap_future(future)

    def end(self, close: Callable[[], Any] | None) -> None:
        """Let the thread end when its last call has returned, after ``close``."""
        self._calls.put((None, close or (lambda: None), (), {}))

    def _run(self) -> None:
        while True:
            future, function, args, kwargs = self._calls.get()
            if future is not None and not future.set_running_or_notify_cancel():
                continue
            try:
                value = function(*args, **kwargs)
            except BaseException as error:
                if future is None:
                    return
                plain = isinstance(error, Exception) and not isinstance(error, StopIteration)
                future.set_exception(error if plain else RuntimeError(f"{type(error).__name__}: {error}"))
            else:
                if future is None:
                    return
                future.set_result(value)


__all__ = ["ENVIRONMENTS", "ContractError", "Environment", "EnvironmentLoadError", "LimitReached", "load_environment"]
