"""The parent's side of ``rewards/forkserver.py``: the server, its workers, and a pool of workers that never shrinks."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rewards.base import RewardLoadError, sources
from rewards.child import SOFT_SIGNAL
from rewards.wire import receive_message, send_message

# Reward functions get one core each: spinning thread pools of several processes slow each other down many times over.
_THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_BOOTSTRAP = "import sys; sys.path.insert(0, sys.argv[1]); from rewards.forkserver import main; main(int(sys.argv[2]))"
MAX_SPARES = 8  # workers beyond the size of a pool that slow rows may keep
_ANSWER_TIMEOUT_S = 30.0  # the server does nothing slow; the first answer has start_timeout_s


class ForkServerDied(ConnectionError):
    """The fork server is gone, and its workers with it."""


@dataclass(eq=False)
class Worker:
    """One child process, forked; it runs one job at a time."""

    pid: int
    channel: socket.socket
    server: ForkServer
    ready: bool = False  # it has imported its functions
    cpu_s: float = 0.0  # CPU seconds it had used when it last said so
    _buffer: bytearray = field(default_factory=bytearray)

    def send(self, job: Mapping[str, Any]) -> None:
        """Raises OSError when the worker is dead, or does not take the job within the channel's timeout."""
        send_message(self.channel, job)

    def receive(self) -> list[dict[str, Any]] | None:
        """The messages that have arrived; None when the worker is dead. Call when the channel is readable."""
        try:
            data = self.channel.recv(1 << 20)
        except ConnectionError:
            data = b""
        self._buffer += data
        *lines, rest = bytes(self._buffer).split(b"\n")
        self._buffer[:] = rest
        return [json.loads(line) for line in lines] if lines or data else None

    def end(self) -> str:
        """Kill it and everything it started, wait for it, and say how it ended.

        Raises ForkServerDied when its server is gone, which has ended it too.
        """
        self.channel.close()
        code = self.server.ask(("end", self.pid))
        names = {int(one): one.name for one in signal.Signals}  # real-time signals have none
        return f"signal {names.get(-code, -code)}" if code < 0 else f"exit code {code}"

    def soft_stop(self) -> None:
        """Raise ``SoftTimeout`` in the function that it is running. Raises ForkServerDied."""
        self.server.ask(("signal", self.pid, int(SOFT_SIGNAL)))

    def usage(self) -> tuple[bool, float] | None:
        """Is it computing, or waiting for its turn to? And its CPU seconds so far. None where nobody can tell."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return fields[0] == "R", (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def idle_and_dead(self) -> bool:
        """An idle worker is silent, so a readable channel is its end."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.channel, selectors.EVENT_READ)
            return self.ready and bool(selector.select(0))


class ForkServer:
    """Starts on construction; a request after its death raises ForkServerDied. Safe for several threads.

    Args:
        functions: name -> what ``rewards.base.resolve`` takes; every worker loads all of them.
        sources: files of functions, see ``rewards.base.FROZEN``.
        start_timeout_s: for the start, imports of the built-in functions included.
    """

    def __init__(self, functions: Mapping[str, str], sources: Mapping[str, bytes], start_timeout_s: float) -> None:
        self._lock = threading.Lock()
        self._control, theirs = socket.socketpair()
        environment = {name: os.environ.get(name, value) for name, value in _THREADS.items()}
        root = str(Path(__file__).resolve().parents[1])
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOTSTRAP, root, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=os.environ | environment,
                start_new_session=True,  # Ctrl-C reaches the parent, which decides
            )
        setup = {
            "sys_path": [str(Path(p or os.curdir).resolve()) for p in sys.path],
            "functions": dict(functions),
            "sources": dict(sources),
        }
        self._control.settimeout(start_timeout_s)
        self.ask(setup)
        self._control.settimeout(_ANSWER_TIMEOUT_S)

    @property
    def pid(self) -> int:
        return self._process.pid

    def fork(self) -> Worker:
        ours, theirs = socket.socketpair()
        with theirs:
            pid = self.ask(("fork",), theirs)
        ours.settimeout(_ANSWER_TIMEOUT_S)
        return Worker(pid, ours, self)

    def ask(self, message: Any, descriptor: socket.socket | None = None) -> Any:
        """Send a command of ``rewards.forkserver`` and return its answer."""
        with self._lock:
            try:
                send_message(self._control, message)
                if descriptor is not None:
                    socket.send_fds(self._control, [b"!"], [descriptor.fileno()])
                return receive_message(self._control)
            except (OSError, EOFError) as error:
                self._process.kill()  # silent is as good as dead: its workers end with it
                raise ForkServerDied(f"the reward fork server (pid {self.pid}) is gone: {error}") from error

    def close(self) -> None:
        """End the server and all workers; returns when they are gone."""
        with self._lock:
            self._control.close()
        deadline = time.monotonic() + 5.0
        while self._process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        self._process.kill()
        self._process.wait(timeout=5.0)


class WorkerPool:
    """``num_processes`` workers, idle or lent; one that ends is replaced at once. Safe for several threads.

    Raises RewardLoadError when a worker cannot load the functions.
    """

    def __init__(self, targets: Mapping[str, str], num_processes: int, start_timeout_s: float) -> None:
        self.num_processes = num_processes
        self.start_timeout_s = start_timeout_s
        self.num_restarts = 0  # workers replaced so far
        self._targets = targets
        self._sources = sources(targets.values())
        self._changed = threading.Condition()
        self._idle: list[Worker] = []
        self._num_spares = 0
        self._num_waiting = 0
        self._closed = False
        self._server = ForkServer(targets, self._sources, start_timeout_s)
        try:
            self._idle = [self._server.fork() for _ in range(num_processes)]  # they import side by side
            deadline = time.monotonic() + start_timeout_s
            for worker in self._idle:
                self._await_ready(worker, deadline)
        except BaseException:
            self.close()
            raise

    def _await_ready(self, worker: Worker, deadline: float) -> None:
        names = ", ".join(self._targets)
        with selectors.DefaultSelector() as selector:
            selector.register(worker.channel, selectors.EVENT_READ)
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise RewardLoadError(f"reward {names}: the import took more than {self.start_timeout_s:g} s")
        messages = worker.receive()
        if not messages:
            raise RewardLoadError(f"reward {names}: the import ended its process ({worker.end()}); its output is above")
        if "failed" in messages[0]:
            raise RewardLoadError(f"{messages[0]['failed']}\n{messages[0]['traceback']}")
        worker.ready, worker.cpu_s = True, messages[0]["cpu_s"]

    def check_out(self, *, wait: bool) -> Worker | None:
        """Borrow an idle worker. Without ``wait``, None where none is idle."""
        with self._changed:
            while not self._idle:
                if self._closed:
                    raise RuntimeError("this RewardPool was closed while rows were waiting")
                if not wait:
                    return None
                self._num_waiting += 1
                self._changed.wait()
                self._num_waiting -= 1
            worker = self._idle.pop()
            if not worker.idle_and_dead:
                return worker
            self._end(worker)
            return self._fork()

    def check_in(self, worker: Worker) -> None:
        """Give a borrowed worker back."""
        with self._changed:
            self._idle.append(worker)
            self._changed.notify()

    def replace(self, worker: Worker) -> None:
        """End a borrowed worker, in whatever state it is; a fresh one is idle in its place."""
        with self._changed:
            self._end(worker)
            if not self._closed:
                self._idle.append(self._fork())
                self._changed.notify()

    @property
    def can_add_spare(self) -> bool:
        return self._num_spares < MAX_SPARES

    @property
    def others_wait(self) -> bool:
        return self._num_waiting > 0

    def add_spare(self) -> None:
        """Put a fresh worker in the place of a borrowed one, which ends with ``end_spare``."""
        with self._changed:
            self._num_spares += 1
            self._idle.append(self._fork())
            self._changed.notify()

    def end_spare(self, worker: Worker) -> None:
        with self._changed:
            self._num_spares -= 1
            self._end(worker)

    def _end(self, worker: Worker) -> None:
        with contextlib.suppress(ForkServerDied):  # its workers died with it
            worker.end()

    def _fork(self) -> Worker:
        """A fresh worker, from a fresh fork server where the old one has died. Hold ``_changed``."""
        self.num_restarts += 1
        try:
            return self._server.fork()
        except ForkServerDied:
            self._server.close()
            self._server = ForkServer(self._targets, self._sources, self.start_timeout_s)
            return self._server.fork()

    def pids(self) -> list[int]:
        """Of the fork server and the idle workers."""
        with self._changed:
            return [self._server.pid, *(worker.pid for worker in self._idle)]

    @property
    def num_idle(self) -> int:
        return len(self._idle)

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """End every process; returns when they are gone."""
        with self._changed:
            self._closed = True
            for worker in self._idle:
                worker.channel.close()
            self._idle.clear()
            self._changed.notify_all()
            self._server.close()
