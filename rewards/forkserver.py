r"""What runs on the far side of a RewardPool: one small fork server, and the workers it forks.

    parent (any thread, any actor)          fork server (clean interpreter,        workers (forks of it; a reward
      RewardPool  --- control socket --->   one thread, no user code)      --->    function runs in the main thread)
          \____________ one socket a worker: job in (pickle), verdicts out (a JSON line each) _____/

The fork server is a fresh interpreter, never a fork of the parent, which may hold Ray, torch or CUDA. It imports the
built-in functions once; a user's module is imported in the worker, so whatever threads or connections it opens are the
worker's own. A fork takes milliseconds: a stuck process is replaced at once, and the pool never shrinks.

Nothing outlives the parent: the server ends at the end of its control socket, workers at the death of the server.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Mapping, Sequence

from rewards.base import FROZEN, REWARDS, resolve
from rewards.child import prctl, run_worker
from rewards.wire import receive_message, send_message

_PR_SET_CHILD_SUBREAPER = 36


def main(descriptor: int) -> None:
    """Entry point of the fork server: serve forks over the control socket ``descriptor`` until its end."""
    control = socket.socket(fileno=descriptor)
    setup = receive_message(control)
    sys.path[:] = setup["sys_path"]
    FROZEN.update(setup["sources"])
    os.dup2(2, 1)  # what a reward function prints is for people; it never mixes with the protocol
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    prctl(_PR_SET_CHILD_SUBREAPER, 1)  # what workers leave behind comes to this process, which ends it
    _import_built_ins(setup["functions"].values())
    gc.collect()
    gc.freeze()  # what is here stays: workers share these pages instead of copying them to count references
    server = _Server(control, setup["functions"])
    try:
        send_message(control, "ready")
        server.serve()
    except (EOFError, ConnectionError):
        pass  # the parent closed the pool or died: the normal end
    finally:
        if os.getpid() == server.pid:
            server.end_all()


def _import_built_ins(targets: Sequence[str]) -> None:
    """Pay for heavy imports once. A failure is left to the worker, which repeats the import and reports it."""
    for target in targets:
        if REWARDS.get(target, target) in REWARDS.values():
            try:
                module = sys.modules[resolve(target).__module__]
                getattr(module, "warm_up", lambda: None)()
            except Exception:
                traceback.print_exc()


class _Server:
    def __init__(self, control: socket.socket, functions: Mapping[str, str]) -> None:
        self.pid = os.getpid()
        self._control = control
        self._functions = functions
        self._workers: set[int] = set()
        self._ended: dict[int, int] = {}  # wait status of workers that ended by themselves

    def serve(self) -> None:
        while True:
            ready, _, _ = select.select([self._control], [], [], 1.0 if self._workers else None)
            for pid in list(self._workers):
                self._reap(pid, os.WNOHANG)
            if ready:
                self._answer(*receive_message(self._control))

    def _answer(self, command: str, *args: int) -> None:
        if command == "fork":
            _, descriptors, _, _ = socket.recv_fds(self._control, 1, 1)
            send_message(self._control, self._fork(descriptors[0]))
        elif command == "end":
            send_message(self._control, self._end(args[0]))
        elif command == "signal":
            if args[0] in self._workers:  # an unreaped child: its pid cannot have passed to another process
                os.kill(args[0], args[1])
            send_message(self._control, None)

    def _fork(self, descriptor: int) -> int:
        pid = os.fork()
        if pid == 0:
            self._control.close()
            run_worker(descriptor, self._functions, parent=self.pid)
        os.close(descriptor)
        with contextlib.suppress(OSError):  # here and in the child: whoever is first, the group exists before its use
            os.setpgid(pid, pid)
        self._workers.add(pid)
        return pid

    def _reap(self, pid: int, options: int) -> None:
        done, status = os.waitpid(pid, options)
        if done:
            self._kill_group(pid)
            self._workers.discard(pid)
            self._ended[pid] = status

    def _end(self, pid: int) -> int:
        """Kill a worker and all it started; its exit code, negative for a signal."""
        if pid in self._workers:
            os.kill(pid, signal.SIGKILL)
            self._kill_group(pid)
            self._reap(pid, 0)
        self._kill_orphans()
        return os.waitstatus_to_exitcode(self._ended.pop(pid, 0))

    def _kill_group(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # nobody of the group is left
            os.killpg(pid, signal.SIGKILL)

    def _kill_orphans(self) -> None:
        """Processes that a dead worker had started came to this process as the nearest subreaper."""
        try:
            with open(f"/proc/self/task/{self.pid}/children") as file:
                children = [int(pid) for pid in file.read().split()]
        except OSError:
            return  # not Linux, or a kernel without this file
        for pid in set(children) - self._workers:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def end_all(self) -> None:
        for pid in list(self._workers):
            self._end(pid)
