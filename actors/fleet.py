"""A typed fleet of one kind of actor: placement, asynchronous calls with deadlines, health, restart.

    caller (one thread)                      Fleet                                actors
    call_async(worker, Method, *args) ──► open calls, each with a deadline ──► FleetActor.apply ──► Method
    ready(timeout_s)                  ◄── replies: Ok | Err               ◄── Ok | Err

It stands on Ray RLlib's ``FaultTolerantActorManager`` and closes its gaps: an exception in a method is a value
(``Err``) and leaves the actor in service; every call has a deadline, past which the actor is killed; whatever happens
to an actor, each of its open calls comes back exactly once; a call is sent or raises, it is never dropped. A lost
actor is pinged until it answers with a new incarnation; then ``on_restart(worker)`` brings it up to date before it
takes part again. More than ``max_restarts`` losses of one worker stop the run.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

import ray
from ray.util.placement_group import remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors import logs
from actors.actor_process import exists, is_local, kill_actor, kill_pid
from actors.fleet_actor import NAME_ENV, Err, FleetActor, Incarnation, Ok, RemoteCall
from actors.placement import place
from rlplatform.roles import RunStopped, StallError

__all__ = ["ActorError", "Err", "Fleet", "FleetActor", "Incarnation", "Ok", "Reply", "WorkerState"]

log = logging.getLogger(__name__)

ActorT = TypeVar("ActorT", bound=FleetActor)
P = ParamSpec("P")
R = TypeVar("R")
PING_INTERVAL_S = 0.25
SHUTDOWN_S = 10.0


class ActorError(RuntimeError):
    """A method raised, or an actor could not start; the message names stage and actor and ends with the traceback."""


class WorkerState(Enum):
    LIVE = "live"  # takes part
    LOST = "lost"  # died or was killed; pinged until it is back
    RESTORING = "restoring"  # back, being brought up to date by on_restart


@dataclass(frozen=True)
class Reply:
    """What became of one ``call_async``."""

    call: int
    worker: int
    result: Ok[Any] | Err


@dataclass
class _Worker:
    handle: Any
    incarnation: Incarnation
    state: WorkerState = WorkerState.LIVE
    num_losses: int = 0
    lost_at: float = 0.0
    next_ping_at: float = 0.0
    ping_call: int | None = None
    reason: str = ""


@dataclass
class _OpenCall:
    worker: int
    what: str
    deadline: float
    waited_for: bool = False  # by call/call_each, so `ready` does not hand it out


@dataclass
class Fleet(Generic[ActorT]):
    """``num_workers`` actors of one class, each on its own bundle of a placement group. For one thread of the driver.

    Args:
        actor_class: a plain class on ``FleetActor``.
        stage: what the fleet is called in errors, e.g. ``"rollout"``.
        num_workers: number of actors; worker ``i`` is called ``stage-i``.
        cpus, gpus: of each worker; fractions are fine.
        actor_args: arguments of ``actor_class`` for worker ``i``.
        env: environment of the actor processes, set before they import anything.
        call_timeout_s: deadline of a call, counted from when it is sent.
        start_timeout_s: deadline of a start or restart, model loading included.
        max_restarts: losses of one worker that are borne; the next one stops the run.
        on_restart: called with the index of a restarted worker, before it takes part again.
        change: the config keys that an error about resources names.
    """

    actor_class: type[ActorT]
    stage: str
    num_workers: int
    cpus: float = 1.0
    gpus: float = 0.0
    actor_args: Callable[[int], tuple[Any, ...]] = lambda worker: ()
    env: Mapping[str, str] = field(default_factory=dict)
    call_timeout_s: float = 120.0
    start_timeout_s: float = 300.0
    max_restarts: int = 3
    on_restart: Callable[[int], None] | None = None
    change: str = "the number of workers or their cpus"
    placement_timeout_s: float = 10.0

    def __post_init__(self) -> None:
        bundle = {k: float(v) for k, v in (("CPU", self.cpus), ("GPU", self.gpus)) if v > 0}
        bundle = bundle or {"memory": 1.0}  # an empty bundle is refused; a byte takes nothing from anybody
        self._group = place(
            self.stage, [dict(bundle) for _ in range(self.num_workers)], self.change, self.placement_timeout_s
        )
        self._workers: dict[int, _Worker] = {}
        self._open: dict[int, _OpenCall] = {}
        self._replies: deque[Reply] = deque()
        self._answers: dict[int, Ok[Any] | Err] = {}  # of calls somebody waits for
        self._next_call = 0
        self._closed = False
        try:
            self._start(bundle)
        except BaseException:
            self.close()
            raise

    def _start(self, bundle: Mapping[str, float]) -> None:
        from ray.rllib.utils.actor_manager import FaultTolerantActorManager

        logging.getLogger("ray.rllib.utils.actor_manager").setLevel(logging.CRITICAL)  # losses are reported here
        remote_class: Any = ray.remote(self.actor_class)
        handles = [
            remote_class.options(
                num_cpus=bundle.get("CPU", 0.0),
                num_gpus=bundle.get("GPU", 0.0),
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=worker),
                runtime_env={"env_vars": {**logs.environment(), **self.env, NAME_ENV: f"{self.stage}-{worker}"}},
                max_restarts=-1,  # counted here, so that the last loss says why
                max_task_retries=0,  # the caller decides what is sent again
            ).remote(*self.actor_args(worker))
            for worker in range(self.num_workers)
        ]
        # The manager drops calls above its limit without a word; nothing here relies on that limit.
        self._manager = FaultTolerantActorManager(handles, max_remote_requests_in_flight_per_actor=1 << 20)
        for worker, handle in enumerate(handles):
            self._workers[worker] = _Worker(handle, Incarnation("", 0, "", "not started"))
        deadline = time.monotonic() + self.start_timeout_s
        pings = {worker: self._send(worker, FleetActor.ping, (), {}, self.start_timeout_s) for worker in self._workers}
        for worker, ping in pings.items():
            answer = self._wait(ping, deadline)
            if isinstance(answer, Err):
                raise ActorError(f"{self.name(worker)} could not start: {answer}")
            self._workers[worker].incarnation = answer.value

    # --- calls --------------------------------------------------------------------------------------------------

    def call_async(
        self, worker: int, method: Callable[Concatenate[ActorT, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> int:
        """Send a call and return its number, which its ``Reply`` carries. An ObjectRef argument arrives as its value.

        ``method`` is one of the actor's class, or a function that takes the actor first.

        Raises:
            ActorError: the worker is not in service; send to one of ``live_workers``.
        """
        return self._send(worker, method, args, kwargs, self.call_timeout_s)

    def ready(self, timeout_s: float) -> list[Reply]:
        """The calls that finished, each exactly once. Waits up to ``timeout_s`` for the first one."""
        deadline = time.monotonic() + timeout_s
        self._collect(0.0)
        while not self._replies and (left := deadline - time.monotonic()) > 0:
            self._collect(left)
        replies = list(self._replies)
        self._replies.clear()
        return replies

    def call(self, worker: int, method: Callable[Concatenate[ActorT, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call one worker and wait. Raises ``ActorError`` when the method raised or the worker was lost."""
        result = self.call_each([worker], method, *args, **kwargs)[worker]
        if isinstance(result, Err):
            raise ActorError(f"{self.name(worker)}, {method.__name__}: {result}")
        return result.value

    def call_each(
        self,
        workers: Sequence[int],
        method: Callable[Concatenate[ActorT, P], R],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> dict[int, Ok[R] | Err]:
        """Call several workers at once and wait for all of them; what a lost worker owed is an ``Err``."""
        calls = {worker: self._send(worker, method, args, kwargs, self.call_timeout_s) for worker in workers}
        deadline = time.monotonic() + self.call_timeout_s
        return {worker: self._wait(call, deadline) for worker, call in calls.items()}

    def wait(self, call: int) -> Ok[Any] | Err:
        """Wait for one ``call_async``; ``ready`` then does not return it."""
        return self._wait(call, time.monotonic() + self.call_timeout_s)

    def restart(self, worker: int, reason: str) -> None:
        """End an actor whose state can no longer be trusted; it counts as lost and comes back new."""
        if self._workers[worker].state is not WorkerState.LOST:
            self._kill(worker)
            self._lose(worker, reason)

    def count_anew(self) -> None:
        """Losses so far no longer count against ``max_restarts``."""
        for worker in self._workers.values():
            worker.num_losses = 0

    @property
    def open_refs(self) -> list[Any]:
        """What ``ray.wait`` can wait for, to wait for several fleets at once; ``ready`` then takes the replies."""
        return list(self._manager._in_flight_req_to_actor_id)

    @property
    def live_workers(self) -> list[int]:
        return [worker for worker, w in self._workers.items() if w.state is WorkerState.LIVE]

    @property
    def num_restarts(self) -> int:
        """Losses so far, of all workers."""
        return sum(w.num_losses for w in self._workers.values())

    def incarnation(self, worker: int) -> Incarnation:
        return self._workers[worker].incarnation

    def name(self, worker: int) -> str:
        """For people: stage, actor, process and host."""
        who = self._workers[worker].incarnation
        return f"{self.stage}: {self.actor_class.__name__} {self.stage}-{worker} (pid {who.pid}, host {who.host})"

    def close(self) -> None:
        """Shut the actors down and wait until their processes and their reservation are gone."""
        if self._closed:
            return
        self._closed = True
        asked = [
            worker.handle.apply.remote(RemoteCall("shutdown", 0, SHUTDOWN_S))
            for worker in self._workers.values()
            if worker.state is WorkerState.LIVE and worker.incarnation.id
        ]
        if asked:
            ray.wait(asked, num_returns=len(asked), timeout=SHUTDOWN_S)
        for worker in self._workers.values():
            ray.kill(worker.handle, no_restart=True)
        remove_placement_group(self._group)
        local = [worker.incarnation for worker in self._workers.values() if is_local(worker.incarnation)]
        deadline = time.monotonic() + SHUTDOWN_S
        while any(exists(one.pid) for one in local) and time.monotonic() < deadline:
            time.sleep(0.02)
        for one in local:  # a stopped or hung process does not hear that it should end
            kill_pid(one.pid)

    # --- inside -------------------------------------------------------------------------------------------------

    def _send(
        self,
        worker: int,
        method: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        timeout_s: float,
    ) -> int:
        state, name = self._workers[worker].state, method.__name__
        if state is WorkerState.LOST and method is not FleetActor.ping:
            raise ActorError(f"{self.name(worker)} is not in service: {self._workers[worker].reason}")
        call = self._next_call
        self._next_call += 1
        sent = self._manager.foreach_actor_async(
            RemoteCall(name if hasattr(self.actor_class, name) else method, len(args), 0.9 * timeout_s),
            tag=str(call),
            kwargs={**{f"_{i}": arg for i, arg in enumerate(args)}, **kwargs},
            healthy_only=False,
            remote_actor_ids=[worker],
        )
        if sent != 1:
            raise ActorError(f"{self.name(worker)}: the actor manager sent {sent} calls of {name}, expected 1")
        self._open[call] = _OpenCall(worker, name, time.monotonic() + timeout_s)
        return call

    def _wait(self, call: int, deadline: float) -> Ok[Any] | Err:
        if call in self._open:
            self._open[call].waited_for = True
        else:  # answered while an earlier call of the same batch was waited for
            for reply in self._replies:
                if reply.call == call:
                    self._replies.remove(reply)
                    return reply.result
        while call not in self._answers:
            left = deadline - time.monotonic()
            self._collect(max(left, 0.0))
            if left < -10.0:
                raise StallError(f"{self.stage}: call {call} got no answer 10 s after its deadline")
        return self._answers.pop(call)

    def _finish(self, call: int, result: Ok[Any] | Err) -> None:
        open_call = self._open.pop(call)
        if open_call.waited_for:
            self._answers[call] = result
        else:
            self._replies.append(Reply(call, open_call.worker, result))

    def _collect(self, timeout_s: float) -> None:
        """One round: wait for an event, take what finished, kill what is late, ping what is lost."""
        now = time.monotonic()
        events = [c.deadline for c in self._open.values()]
        events += [
            w.next_ping_at for w in self._workers.values() if w.state is WorkerState.LOST and w.ping_call is None
        ]
        wait_s = max(0.0, min([now + timeout_s, *events]) - now)
        # The manager's own fetch waits for all calls or the timeout; this waits for the first.
        refs = self.open_refs
        if refs and wait_s > 0:
            ray.wait(refs, num_returns=1, timeout=wait_s)
        elif wait_s > 0:
            time.sleep(wait_s)

        pings = {w.ping_call: worker for worker, w in self._workers.items() if w.ping_call is not None}
        results: Any = self._manager.fetch_ready_async_reqs(timeout_seconds=0.0)
        for result in results:
            call = int(result.tag)
            if call not in self._open:
                continue  # its worker was lost in this very round and the call is already answered
            if call in pings:
                del self._open[call]
                self._pinged(pings[call], result.get() if result.ok else None)
            elif result.ok:
                self._finish(call, result.get())
            elif self._workers[result.actor_id].incarnation.id:
                self._lose(result.actor_id, _one_line(result.get()))
            else:  # a first start that failed
                self._finish(call, Err(type(result.get()).__name__, str(result.get()), lost=True))

        now = time.monotonic()
        for call, open_call in list(self._open.items()):
            if call in self._open and now > open_call.deadline:
                self._late(call, open_call)
        for worker, w in self._workers.items():
            if w.state is WorkerState.LOST and w.ping_call is None and now >= w.next_ping_at:
                w.ping_call = self._send(worker, FleetActor.ping, (), {}, self.start_timeout_s - (now - w.lost_at))

    def _late(self, call: int, open_call: _OpenCall) -> None:
        worker = open_call.worker
        w = self._workers[worker]
        if w.ping_call == call:
            raise RunStopped(
                f"{self.name(worker)} did not come back within {self.start_timeout_s:g} s after it was lost: {w.reason}"
            )
        if not w.incarnation.id:
            self._finish(call, Err("Timeout", f"no answer within start_timeout_s={self.start_timeout_s:g}", lost=True))
            return
        self._kill(worker)
        self._lose(worker, f"{open_call.what} passed its deadline of {self.call_timeout_s:g} s; the actor was killed")

    def _lose(self, worker: int, reason: str) -> None:
        """Take a worker out of service and answer everything it owes."""
        w = self._workers[worker]
        w.state, w.reason, w.ping_call = WorkerState.LOST, reason, None
        w.lost_at = time.monotonic()
        w.next_ping_at = w.lost_at + PING_INTERVAL_S
        w.num_losses += 1
        self._manager.set_actor_state(worker, healthy=False)
        for call, open_call in list(self._open.items()):
            if open_call.worker == worker:
                self._finish(call, Err("WorkerLost", f"{self.name(worker)}: {reason}", lost=True))
        if w.num_losses > self.max_restarts:
            raise RunStopped(
                f"{self.name(worker)} was lost {w.num_losses} times, max_restarts={self.max_restarts}; last: {reason}"
            )
        log.warning(
            "%s was lost and restarts (%d of %d): %s", self.name(worker), w.num_losses, self.max_restarts, reason
        )

    def _pinged(self, worker: int, answer: Any) -> None:
        w = self._workers[worker]
        w.ping_call = None
        w.next_ping_at = time.monotonic() + PING_INTERVAL_S
        if not isinstance(answer, Ok):
            if time.monotonic() > w.lost_at + self.start_timeout_s or isinstance(answer, ray.exceptions.ActorDiedError):
                raise RunStopped(f"{self.name(worker)} could not be restarted: {_one_line(answer)}")
            return  # still starting
        if answer.value.id == w.incarnation.id:
            # Only the connection broke. The old process still works on calls that were answered as lost: end it.
            self._kill(worker)
            return
        w.incarnation = answer.value
        w.state = WorkerState.RESTORING
        self._manager.set_actor_state(worker, healthy=True)
        if self.on_restart is not None:
            try:
                self.on_restart(worker)
            except ActorError as error:
                log.warning("%s could not be brought up to date: %s", self.name(worker), error)
                if w.state is WorkerState.RESTORING:  # it lives, but its state is unknown
                    self._kill(worker)
                    self._lose(worker, _one_line(error))
                return
        w.state = WorkerState.LIVE
        log.warning("%s is back in service", self.name(worker))

    def _kill(self, worker: int) -> None:
        """End the process; Ray restarts the actor."""
        kill_actor(self._workers[worker].handle, self._workers[worker].incarnation)


def _one_line(error: Any) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:500]}" if lines else type(error).__name__
