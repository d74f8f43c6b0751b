"""Ending the process of an actor. SIGKILL: a stopped process, or one that hangs in a collective, hears nothing else."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.fleet_actor import Incarnation


def is_local(life: Incarnation) -> bool:
    """A process of this node that has started."""
    return bool(life.pid) and life.node_id == ray.get_runtime_context().get_node_id()


def exists(pid: int) -> bool:
    """Of this node: running, or ended and not yet waited for."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def kill_pid(pid: int) -> None:
    """Of this node; one that is gone already is no error."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def kill_actor(handle: Any, life: Incarnation) -> None:
    """End one life of an actor, on whatever node; Ray starts the next one."""
    if is_local(life):
        kill_pid(life.pid)
        return
    ray.kill(handle, no_restart=False)  # asks the process itself, which may be stopped
    strategy = NodeAffinitySchedulingStrategy(life.node_id, soft=False)
    _kill_there.options(scheduling_strategy=strategy).remote(life.pid)


@ray.remote(num_cpus=0, max_retries=0)
def _kill_there(pid: int) -> None:
    kill_pid(pid)
