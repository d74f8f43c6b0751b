"""What a program sees of this machine: system folders and the interpreter, read-only; nothing of anybody's."""

from __future__ import annotations

import glob
import os
import sys
from dataclasses import dataclass, field

PATH = "/usr/local/bin:/usr/bin:/bin"
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
# Of /etc: what the dynamic loader and toolchains need. No passwd, no hosts, no keys.
_ETC = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/java-*", "/etc/localtime", "/etc/mono")

ENVIRONMENT = {
    "PATH": PATH,
    "HOME": "/tmp",
    "TMPDIR": "/tmp",
    "LANG": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",  # the same program prints its sets in the same order, run after run
    "PYTHONIOENCODING": "utf-8",
}


@dataclass(frozen=True)
class View:
    """What is there, under its own path, read-only. The rest is /proc of its own, a small /dev, /dev/shm and /tmp."""

    system: tuple[str, ...]  # files and folders
    added: tuple[str, ...]  # folders that may lie anywhere: below /tmp, or where only this user may enter
    links: tuple[tuple[str, str], ...]  # (target, path there)
    python: str  # the interpreter's path there
    environment: dict[str, str] = field(default_factory=lambda: dict(ENVIRONMENT))


def view(packages: tuple[str, ...] = ()) -> View:
    """The view of this machine. ``packages``: folders of Python packages to show as well, e.g. a site-packages.

    Raises ValueError where one of them is no folder.
    """
    links = [(os.readlink(path).lstrip("/"), path) for path in _SYSTEM if os.path.islink(path)]
    binds = [path for path in _SYSTEM if os.path.isdir(path) and not os.path.islink(path)]
    binds += [path for pattern in _ETC for path in sorted(glob.glob(pattern))]
    added = []
    for folder in (os.path.realpath(sys.base_prefix), *map(os.path.realpath, packages)):
        if not os.path.isdir(folder):
            raise ValueError(f"sandbox packages: expected folders, got {folder}")
        if not folder.startswith("/usr/") and folder != "/usr" and folder not in added:
            added.append(folder)
    python = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    return View(tuple(binds), tuple(added), tuple(links), python)
