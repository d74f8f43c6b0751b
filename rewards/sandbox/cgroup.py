"""A cgroup for all that one launcher starts, where this process may make one: memory and number of processes."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_PREFIX = "rlplatform-sandbox-"


def enter(memory_mib: int, max_processes: int) -> list[str]:
    """Put this process into a cgroup of its own; the names of the limits that hold now, [] where none can be set.

    The kernel's version 1 ("memory", "pids") and 2; a folder that is not writable is the usual case for users.
    """
    limits = {
        "memory": {
            "memory.limit_in_bytes": memory_mib << 20,
            "memory.memsw.limit_in_bytes": memory_mib << 20,
            "memory.max": memory_mib << 20,
            "memory.swap.max": 0,
        },
        "pids": {"pids.max": max_processes},
    }
    entered = []
    for names, parent in _own_groups():
        _sweep(parent)
        group = parent / f"{_PREFIX}{os.getpid()}"
        with contextlib.suppress(OSError):
            group.mkdir()
            held = []
            for name in names & set(limits):
                for file, value in limits[name].items():
                    if (group / file).exists():
                        (group / file).write_text(str(value))
                        held.append(name)
            if held:
                (group / "cgroup.procs").write_text(str(os.getpid()))
                entered += sorted(set(held))
            else:
                group.rmdir()
    return entered


def leave(pid: int) -> None:
    """Remove the cgroups of a launcher that is gone."""
    for _, parent in _own_groups():
        with contextlib.suppress(OSError):
            (parent / f"{_PREFIX}{pid}").rmdir()


def _sweep(parent: Path) -> None:
    """Groups of launchers that were killed together with their parents; one that is in use cannot be removed."""
    with contextlib.suppress(OSError):
        for group in parent.glob(f"{_PREFIX}*"):
            if not Path(f"/proc/{group.name.removeprefix(_PREFIX)}").exists():
                with contextlib.suppress(OSError):
                    group.rmdir()


def _own_groups() -> list[tuple[set[str], Path]]:
    """(controllers, folder) of the groups that this process is in."""
    mounts: list[tuple[set[str], Path]] = []
    try:
        with open("/proc/self/mountinfo") as file:
            for line in file:
                before, _, after = line.partition(" - ")
                kind, _, options = after.split()[:3]
                if kind in ("cgroup", "cgroup2"):
                    names = {"memory", "pids"} if kind == "cgroup2" else set(options.split(","))
                    mounts.append((names, Path(before.split()[4])))
        paths = {}
        with open("/proc/self/cgroup") as file:
            for line in file:
                _, controllers, path = line.rstrip("\n").split(":", 2)
                for name in controllers.split(","):
                    paths[name] = path
    except OSError:
        return []
    found = []
    for names, root in mounts:
        held = names & {"memory", "pids"}
        path = next((paths[name] for name in held if name in paths), paths.get("", "/"))
        folder = root / path.lstrip("/")
        if held:
            found.append((held, folder if folder.is_dir() else root))
    return found
