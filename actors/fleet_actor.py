"""What runs in every actor of a fleet: calls whose outcome is a value, and a ping that tells its lives apart."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray

from actors import logs

R = TypeVar("R")
NAME_ENV = "RLPLATFORM_ACTOR_NAME"  # in the environment of an actor; also names its log file


@dataclass(frozen=True)
class Ok(Generic[R]):
    """The return value of a call."""

    value: R


@dataclass(frozen=True)
class Err:
    """A call that gave no value. ``lost``: the actor died or passed its deadline, so the work may be sent again."""

    error_type: str
    message: str
    traceback: str = ""
    lost: bool = False

    def __str__(self) -> str:
        text = f"{self.error_type}: {self.message}"
        return f"{text}\n{self.traceback.rstrip()}" if self.traceback else text


@dataclass(frozen=True)
class Incarnation:
    """One life of an actor: a restarted actor answers ``ping`` with another ``id``."""

    id: str
    pid: int
    node_id: str
    host: str


@dataclass(frozen=True)
class RemoteCall:
    """What ``apply`` runs: a method by name, or a function of the actor that travels with the call."""

    method: str | Callable[..., Any]
    num_args: int
    stacks_after_s: float

    def __call__(self, actor: FleetActor, **kwargs: Any) -> Any:
        args = [kwargs.pop(f"_{i}") for i in range(self.num_args)]
        if callable(self.method):
            return self.method(actor, *args, **kwargs)
        return getattr(actor, self.method)(*args, **kwargs)


def _method_traceback(error: Exception) -> str:
    """The traceback without the frames of this file and of Ray's tracing, so that the user's line comes first."""
    told = traceback.TracebackException.from_exception(error)
    frames = [
        f
        for f in told.stack
        if f.filename != __file__ and not f.filename.endswith("ray/util/tracing/tracing_helper.py")
    ]
    told.stack = traceback.StackSummary.from_list(frames)
    return "".join(told.format())


class FleetActor:
    """Base of every actor in a fleet. Its output goes to the run's log file of its name."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        if name := os.environ.get(NAME_ENV):
            logs.redirect_output(name)
        return super().__new__(cls)

    def ping(self) -> Incarnation:
        context = ray.get_runtime_context()
        return Incarnation(context.get_worker_id(), os.getpid(), context.get_node_id(), socket.gethostname())

    def apply(self, func: RemoteCall, **kwargs: Any) -> Ok[Any] | Err:
        """Run ``func`` on this actor; an exception is returned, with the stack of the line that raised it.

        Shortly before the call's deadline the stacks of all threads are written to this actor's log, so that a stall
        leaves a trace before the fleet kills the process.
        """
        import faulthandler

        faulthandler.dump_traceback_later(func.stacks_after_s, file=2)
        try:
            return Ok(func(self, **kwargs))
        except Exception as error:
            return Err(type(error).__name__, str(error), _method_traceback(error))
        finally:
            faulthandler.cancel_dump_traceback_later()

    def shutdown(self) -> None:
        """Release what killing the process would leave behind."""
