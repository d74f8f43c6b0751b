"""A small process that starts sandboxes, one at a time, for its parent: unprivileged, and alone in its cgroup.

A root parent gives its rights up here, before any program is near, and not once a run: RLIMIT_NPROC binds nobody who is
root outside, and a fork of this process costs a tenth of a fork of one with a computer algebra system in it.

    parent                                launcher                           bwrap, or namespaces.py
      run, descriptors  -- socket -->       fork, exec                 -->      program (rewards/sandbox/harness.py)
      kill              -- socket -->       SIGKILL
                        <-- status --       waits until no child is left
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import signal
import socket
import struct
import tempfile
from typing import Any, NoReturn

from rewards.sandbox import bwrap, cgroup, namespaces
from rewards.sandbox.view import View
from rewards.wire import receive_message, send_message

NOBODY = 65534
NUM_DESCRIPTORS = 5  # stdin, stdout, stderr, job, result
STATUS = struct.Struct("i")
_MAX_DESCRIPTORS = 1024
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38


def main(descriptor: int, parent: int) -> None:
    """Serve runs over the socket ``descriptor`` until its end."""
    control = socket.socket(fileno=fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, NUM_DESCRIPTORS + 1))
    os.close(descriptor)
    while (reserved := os.open("/dev/null", os.O_RDWR)) <= NUM_DESCRIPTORS:
        pass  # the numbers that runs get are taken here, so that moving descriptors overwrites none that is needed
    os.close(reserved)
    setup = receive_message(control)
    try:
        launcher = _Launcher(control, setup)
        launcher.drop_rights(parent)
    except OSError as error:
        control.sendall(f"{error}\n".encode())
        return
    try:
        control.sendall(b"ready\n")
        launcher.serve()
    except (EOFError, ConnectionError):
        pass  # the parent has closed the sandbox or died: the normal end


class _Launcher:
    def __init__(self, control: socket.socket, setup: dict[str, Any]) -> None:
        self._control = control
        self._setup = setup
        self._view: View = setup["view"]
        self._total_mib = setup["total_mib"]
        # Opened while still root: the way there may lead through a folder that others may not enter.
        self._bwrap = os.open(setup["bwrap"], os.O_PATH) if setup["bwrap"] else -1
        self._folder = ""  # without walls a program has a folder instead of a file system
        self._seccomp = os.memfd_create("seccomp")
        os.write(self._seccomp, setup["seccomp"])

    def drop_rights(self, parent: int) -> None:
        cgroup.enter(self._total_mib, self._setup["max_processes"])
        if os.geteuid() == 0:
            needed = bwrap.folders(self._setup["bwrap"]) if self._setup["bwrap"] else []
            namespaces.open_ways([*self._view.added, *needed])
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        namespaces.prctl(_PR_SET_DUMPABLE, 1)  # else /proc/self/uid_map would belong to root
        namespaces.prctl(_PR_SET_CHILD_SUBREAPER, 1)
        namespaces.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # after the change of user, which clears it
        namespaces.prctl(_PR_SET_NO_NEW_PRIVS, 1)
        if os.getppid() != parent:
            raise EOFError("the parent died meanwhile")

    def serve(self) -> None:
        while True:
            message = receive_message(self._control)
            if message[0] == "run":
                _, descriptors, _, _ = socket.recv_fds(self._control, 1, NUM_DESCRIPTORS)
                self._run(descriptors, **message[1])
            # else "kill" for a run that has just ended

    def _run(self, descriptors: list[int], command: list[str], tmp_mib: int) -> None:
        if not self._setup["walls"]:
            self._folder = tempfile.mkdtemp(prefix="rlplatform-program-")
        pid = self._spawn_bwrap(descriptors, command, tmp_mib) if self._bwrap >= 0 else os.fork()
        if pid == 0:
            self._become_sandbox(descriptors, command, tmp_mib)
        for number in descriptors:
            os.close(number)
        ended = os.pidfd_open(pid)
        try:
            ready, _, _ = select.select([ended, self._control.fileno()], [], [])
            killed = ended not in ready
            if killed:
                os.kill(pid, signal.SIGKILL)
                receive_message(self._control)  # "kill"; at the end of the socket EOFError ends this process
            _, status = os.waitpid(pid, 0)
            code = os.waitstatus_to_exitcode(status)
            answer = STATUS.pack(code if code >= 0 else 128 - code)
            if not killed:
                self._control.sendall(answer)  # what is left is dying already, and gone before the next run
        finally:
            os.close(ended)
            self._end_children()
            if self._folder:
                shutil.rmtree(self._folder, ignore_errors=True)
        if killed:
            self._control.sendall(answer)

    def _end_children(self) -> None:
        """Whoever a killed sandbox left behind is a child of this process now; return when none is left."""
        while True:
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            with open(f"/proc/self/task/{os.getpid()}/children") as file:
                children = [int(pid) for pid in file.read().split()]
            if not children:
                return
            for pid in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            os.waitpid(children[0], 0)

    def _spawn_bwrap(self, descriptors: list[int], command: list[str], tmp_mib: int) -> int:
        """Without copying this process; bubblewrap sees itself to it that it dies with its parent."""
        os.lseek(self._seccomp, 0, os.SEEK_SET)
        given = [*descriptors, self._seccomp]
        actions: list[tuple[int, ...]] = [(os.POSIX_SPAWN_DUP2, source, number) for number, source in enumerate(given)]
        actions += [(os.POSIX_SPAWN_CLOSE, number) for number in descriptors]
        line = bwrap.arguments(self._view, NUM_DESCRIPTORS, tmp_mib, command)
        path = f"/proc/self/fd/{self._bwrap}"
        return os.posix_spawn(
            path, line, self._view.environment, file_actions=actions, setsigmask=[], setsigdef=[signal.SIGPIPE]
        )

    def _become_sandbox(self, descriptors: list[int], command: list[str], tmp_mib: int) -> NoReturn:
        try:
            namespaces.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            for number, source in enumerate(descriptors):
                os.dup2(source, number)
            if self._folder:
                os.chdir(self._folder)
                os.closerange(NUM_DESCRIPTORS, _MAX_DESCRIPTORS)
                os.execve(command[0], command, self._view.environment)
            namespaces.enter_or_say(self._view, self._setup["seccomp"], tmp_mib, command, NUM_DESCRIPTORS)
        except BaseException as error:
            os.write(2, f"sandbox: {error}\n".encode())
        os._exit(125)


def run_message(control: socket.socket, descriptors: list[int], command: list[str], tmp_mib: int) -> None:
    """The parent's side: ask for a run."""
    send_message(control, ("run", {"command": command, "tmp_mib": tmp_mib}))
    socket.send_fds(control, [b"!"], descriptors)
