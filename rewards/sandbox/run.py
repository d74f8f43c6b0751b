"""One run, as its owner sees it: what goes in, what comes out, and the limits that are kept from outside."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import select
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rewards.sandbox import launcher
from rewards.sandbox.bytecode import BOOT, frames, is_judged
from rewards.sandbox.limits import Job, Limits, Outcome, SandboxError
from rewards.sandbox.view import View
from rewards.wire import send_message

END_S = 5.0  # for the kernel to end a killed run
_MAX_RESULT = 20 << 20  # bytes; the harness sends less
_KEPT_STDERR = 4096  # bytes
_READY = b"ready\n"  # what the harness writes first
_START_S = 20.0  # for the sandbox to stand
_WATCH_S = 0.05  # between two looks at the memory of a run


class Run:
    """Started on construction; ``finish`` waits for it."""

    def __init__(
        self,
        job: Job,
        tests: Sequence[Mapping[str, Any]],
        limits: Limits,
        until: float,
        packages: tuple[str, ...],
        seen: View,
        control: socket.socket,
        launcher_pid: int,
    ) -> None:
        self._limits, self._until, self._control, self._launcher_pid = limits, until, control, launcher_pid
        environment = seen.environment | dict(job.environment)
        data, self._nonces = frames(replace(job, environment=environment), limits, packages, tests)
        self._outcomes: list[Outcome] = []  # of judged tests, as they come
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

    def finish(self) -> list[Outcome]:
        """One outcome a test, in order; fewer where one of them ended the run. Exactly one where nothing is judged."""
        try:
            self._collect()
        finally:
            for number in self._read:
                os.close(number)
        return self._finished()

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
                    raise SandboxError(f"a killed run did not end within {END_S:g} s")
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
        self._deadline = self._look_at = time.monotonic() + END_S

    def _take(self, number: int) -> bool:
        data = os.read(number, 1 << 16)
        kept = self._read[number]
        kept += data
        if number == self._result:
            if data and not self._ended_by and self._take_verdicts():
                self._begun = time.monotonic()  # of the program, then of each test after the first
                self._deadline = min(self._begun + self._limits.wall_s, self._until)
            limit, what = _MAX_RESULT, "sent a result of"
        else:
            limit, what = self._limits.output_kib << 10, "wrote"
        if len(kept) > limit:
            del kept[limit:]
            self._kill("output", f"{what} more than {limit >> 10} KiB")
        return bool(data)

    def _watch_memory(self, now: float) -> None:
        self._look_at = now + _WATCH_S
        used_mib = _resident_mib(descendants(self._launcher_pid))
        if used_mib > self._limits.total_mib:
            self._kill("memory", f"used more than {self._limits.total_mib} MiB")

    def _kill(self, kind: str, text: str) -> None:
        if self._ended_by is None:
            self._ended_by = (kind, text)
            self._deadline = time.monotonic() + END_S
            if self._running:
                send_message(self._control, ("kill",))

    def _take_verdicts(self) -> bool:
        """Move complete verdicts out of what the harness wrote; has the program, or the next test, begun?"""
        kept = self._read[self._result]
        if self._begun is None:
            if not kept.startswith(_READY):
                return False
            del kept[: len(_READY)]
        elif not self._judged:
            return False
        num_before, begun = len(self._outcomes), self._begun is None
        while self._judged and len(self._outcomes) < len(self._nonces):
            end = kept.find(b"\n")
            words = kept[: max(0, end)].decode("ascii", "replace").split(" ")
            genuine = len(words) == 4 and secrets.compare_digest(words[0], self._nonces[len(self._outcomes)])
            if not genuine and words != ["-", "gone", "0", "0"]:
                break
            size, length = int(words[2]), int(words[3])
            if len(kept) < end + 1 + size + length:
                break
            body = bytes(kept[end + 1 : end + 1 + size + length])
            text = body[:size].decode("utf-8", "replace") if words[0] != "-" else "the judge was killed"
            self._outcomes.append(self._outcome(words[1], text, body[size:]))
            for number in (self._stdout, self._stderr):  # the limit of output is one test's
                self._read[number].clear()
            del kept[: end + 1 + size + length]
        return begun or len(self._outcomes) > num_before

    def _outcome(self, kind: str, text: str = "", payload: bytes = b"", exit_code: int = 0) -> Outcome:
        if kind == "exited" and text:
            exit_code, text = int(text), ""
        stdout, stderr = bytes(self._read[self._stdout]), bytes(self._read[self._stderr])[-_KEPT_STDERR:]
        seconds = time.monotonic() - (self._begun or self._started)
        return Outcome(kind, text, exit_code, payload, stdout, stderr, seconds)

    def _finished(self) -> list[Outcome]:
        if self._begun is None:
            stderr = self._read[self._stderr].decode(errors="replace").strip()[-500:]
            raise SandboxError(f"the sandbox did not start: {self._ended_by[1] if self._ended_by else stderr}")
        if self._judged and len(self._outcomes) == len(self._nonces):
            return self._outcomes
        if self._ended_by is not None:
            return [*self._outcomes, self._outcome(*self._ended_by)]
        if self._judged:
            return [*self._outcomes, self._outcome("gone", "the run ended without a verdict")]
        code = self._status if self._status <= 128 else 128 - self._status  # as shells have it: 128 + signal
        return [self._outcome("exited", payload=bytes(self._read[self._result]), exit_code=code)]


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


# --- processes ------------------------------------------------------------------------------------------------------


def descendants(pid: int) -> list[int]:
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


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _resident_mib(pids: list[int]) -> float:
    """All but pages of files; pages that two processes share count twice."""
    kib = 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError), open(f"/proc/{pid}/status") as file:
            kib += sum(int(line.split()[1]) for line in file if line.startswith(("RssAnon:", "RssShmem:")))
    return kib / 1024
