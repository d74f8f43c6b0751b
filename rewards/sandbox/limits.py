"""What a run may use, what it is, and how it ended."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


class SandboxError(RuntimeError):
    """The sandbox itself does not work; says nothing about a program."""


class IsolationUnavailable(SandboxError):
    """This machine offers no isolation; the message says what was tried and what to do."""


@dataclass(frozen=True)
class Limits:
    """Of one run. Those with * hold for each process of it, the others for all together."""

    wall_s: float = 4.0
    cpu_s: float = 4.0  # *, rounded up to whole seconds
    memory_mib: int = 512  # * data segment and, for what does not reserve address space in advance, address space
    total_mib: int = 1024  # resident memory
    tmp_mib: int = 64  # /tmp and /dev/shm, each
    file_mib: int = 64  # * one file
    num_files: int = 256  # * open
    num_processes: int = 64  # and threads
    output_kib: int = 1024  # stdout, and stderr

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"Limits.{name}: expected > 0, got {value!r}")

    def as_resource(self, *, address_space: bool) -> dict[str, int]:
        """Name of an RLIMIT -> value."""
        found = {
            "cpu": math.ceil(self.cpu_s),
            "data": self.memory_mib << 20,
            "fsize": self.file_mib << 20,
            "nofile": self.num_files,
            "nproc": self.num_processes,
            "core": 0,
        }
        return found | ({"as": self.memory_mib << 20} if address_space else {})


@dataclass(frozen=True)
class Job:
    """One run of one program.

    ``mode``: script (Python source, as ``python program.py``), call or code (Python source whose names a test uses),
    exec (``argv``, anything). Tests are given beside it: only their judges read them.
    """

    mode: str
    source: str = ""
    argv: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)  # in its folder; written before it starts
    outputs: tuple[str, ...] = ()  # exec: files wanted back where it ends with 0
    address_space: bool = True  # limit the address space too; runtimes that reserve gigabytes need False
    stdin: bytes = b""
    wants_token: bool = False  # exec: give it descriptor 3; what it writes there is the payload


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    ``kind``: exited (script and exec: ``exit_code``; negative for a signal); value (call: ``payload``, for
    ``plain.decode``), passed, failed (call, code: ``text`` says why), cannot (the test asks for what the bridge does
    not do); no_output (exec); timeout, output, memory (a limit that ended it; ``text`` says which), gone (the judge
    was lost with the program).
    """

    kind: str
    text: str = ""
    exit_code: int = 0
    payload: bytes = b""
    stdout: bytes = b""
    stderr: bytes = b""
    seconds: float = 0.0
