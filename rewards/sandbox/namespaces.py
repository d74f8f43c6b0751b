"""The same walls as bubblewrap's, from unshare, mount and prctl directly, where there is no bubblewrap.

Called in a fresh child of the launcher. Sources: the man pages namespaces(7), user_namespaces(7), pivot_root(2),
mount_setattr(2), seccomp(2); the order of steps is bubblewrap's.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import sys
from typing import NoReturn

from rewards.sandbox.view import View

_NEW = {"user": 0x10000000, "ns": 0x20000, "pid": 0x20000000, "net": 0x40000000, "ipc": 0x08000000}
_NEW |= {"uts": 0x04000000, "cgroup": 0x02000000}
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT = 1, 2, 4, 8, 32
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_MNT_DETACH = 2
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_SYS_MOUNT_SETATTR = 442  # of every architecture
_AT_RECURSIVE = 0x8000
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 24, 22, 38
_SYS_CAPSET = {"x86_64": 126, "aarch64": 91}
_DEVICES = ("null", "zero", "full", "random", "urandom")
_BASE = "/tmp"  # hidden by the new root while that is built, in a mount namespace of our own

libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, *values: int) -> None:
    padded = [ctypes.c_ulong(v) for v in (*values, 0, 0, 0, 0)[:4]]
    _check(libc.prctl(option, *padded), f"prctl({option})")


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    encoded = [None if text is None else text.encode() for text in (source, target, kind)]
    _check(libc.mount(*encoded, ctypes.c_ulong(flags), None if data is None else data.encode()), f"mount {target}")


def open_ways(folders: list[str]) -> None:
    """Make folders reachable for everybody, for this process and its children alone; called as root.

    An interpreter below /root is of no use to a user who may not enter /root. So in a mount namespace of our own an
    empty folder lies over /root, and in it nothing but the ways to the interpreter and to bubblewrap.
    """
    closed = {way for folder in folders if (way := _closed_way(folder))}
    if not closed:
        return
    _check(libc.unshare(_NEW["ns"]), "unshare")
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    opened = [(os.open(folder, os.O_PATH | os.O_DIRECTORY), folder) for folder in folders]
    for way in sorted(closed):
        _mount("tmpfs", way, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,nr_inodes=512,mode=755")
    for descriptor, folder in opened:
        if any(folder.startswith(f"{way}/") for way in closed):
            os.makedirs(folder, exist_ok=True)
            _mount(f"/proc/self/fd/{descriptor}", folder, None, _MS_BIND | _MS_REC)
        os.close(descriptor)


def _closed_way(folder: str) -> str | None:
    """The first folder on the way that others may not enter."""
    parts = folder.split("/")
    ways = ["/".join(parts[:i]) for i in range(2, len(parts) + 1)]
    return next((way for way in ways if not os.stat(way).st_mode & 0o001), None)


def enter(seen: View, seccomp: bytes, tmp_mib: int, command: list[str], keep: int) -> NoReturn:
    """Become the waiting parent of a new pid namespace, and ``command`` its second process; ends with its exit code.

    ``keep``: descriptors below it go to the command.
    """
    uid, gid = os.getuid(), os.getgid()
    _check(libc.unshare(sum(_NEW.values())), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"65534 {uid} 1"), ("gid_map", f"65534 {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    pid = os.fork()
    if pid:
        _wait_as_parent(pid)
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()
    _build_root(seen, tmp_mib)
    libc.sethostname(b"sandbox", 7)
    _drop_capabilities()
    os.closerange(keep, 1024)
    os.umask(0o077)
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _load_filter(seccomp)
    prctl(_PR_SET_DUMPABLE, 0)  # pid 1 is a copy of the launcher
    pid = os.fork()
    if pid:
        _wait_as_parent(pid)
    os.execve(command[0], command, seen.environment)


def _wait_as_parent(pid: int) -> NoReturn:
    """Reap whoever ends, and end like the child ``pid``, as shells put it: 128 + signal."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.closerange(0, 1024)  # pipes end with the program, not with who waits for it
    while True:
        done, status = os.wait()
        if done == pid:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


def _build_root(seen: View, tmp_mib: int) -> None:
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    added = [(os.open(path, os.O_PATH | os.O_DIRECTORY), path) for path in seen.added]  # may lie below _BASE
    _mount("tmpfs", _BASE, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,nr_inodes=512,mode=755")
    for path in seen.system:
        _show(path, path)
    for target, destination in seen.links:
        os.symlink(target, _BASE + destination)
    for name in ("proc", "dev", "tmp"):
        os.makedirs(f"{_BASE}/{name}", exist_ok=True)
    _mount("proc", f"{_BASE}/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    _mount("tmpfs", f"{_BASE}/dev", "tmpfs", _MS_NOSUID, "size=64k,nr_inodes=64,mode=755")
    for name in _DEVICES:
        os.close(os.open(f"{_BASE}/dev/{name}", os.O_CREAT | os.O_WRONLY))
        _mount(f"/dev/{name}", f"{_BASE}/dev/{name}", None, _MS_BIND)
    for name, link in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        os.symlink(f"/proc/self/fd{link}", f"{_BASE}/dev/{name}")
    os.mkdir(f"{_BASE}/dev/shm")
    _mount("none", f"{_BASE}/dev", None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID)
    for path in ("/dev/shm", "/tmp"):
        options = f"size={tmp_mib}m,nr_inodes=4096,mode=1777"
        _mount("tmpfs", _BASE + path, "tmpfs", _MS_NOSUID | _MS_NODEV, options)
    for descriptor, path in added:
        _show(f"/proc/self/fd/{descriptor}", path)
    os.chdir(_BASE)
    _check(libc.syscall(_SYS_PIVOT_ROOT[os.uname().machine], b".", b"."), "pivot_root")
    _check(libc.umount2(b".", _MNT_DETACH), "umount of the old root")
    _mount("none", "/", None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)
    os.chdir("/tmp")


def _show(source: str, destination: str) -> None:
    target = _BASE + destination
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
    _mount(source, target, None, _MS_BIND | _MS_REC)
    _seal(target)


def _seal(path: str) -> None:
    """Read-only, no setuid, no devices: the mount and all below it."""
    attributes = struct.pack("QQQQ", _MS_RDONLY | _MS_NOSUID | _MS_NODEV, 0, 0, 0)  # the same bits as MOUNT_ATTR_*
    call = libc.syscall(
        _SYS_MOUNT_SETATTR, -100, path.encode(), ctypes.c_uint(_AT_RECURSIVE), attributes, ctypes.c_size_t(32)
    )
    _check(call, f"mount_setattr {path}")


def _drop_capabilities() -> None:
    for capability in range(64):
        if libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break
    header, nothing = struct.pack("Ii", 0x20080522, 0), bytes(24)
    _check(libc.syscall(_SYS_CAPSET[os.uname().machine], header, nothing), "capset")


def _load_filter(program: bytes) -> None:
    code = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    _check(libc.prctl(_PR_SET_SECCOMP, 2, head, 0, 0), "seccomp")


def enter_or_say(*args: object) -> NoReturn:
    """``enter``; an error goes to descriptor 2, where the sandbox's owner looks for it."""
    try:
        enter(*args)  # type: ignore[arg-type]
    except BaseException as error:
        os.write(2, f"sandbox: {error}\n".encode())
    sys.stderr.flush()
    os._exit(125)
