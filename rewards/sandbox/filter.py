"""The seccomp filter: system calls that namespaces leave open and no graded program needs."""

from __future__ import annotations

import contextlib
import errno
import functools
import tempfile

# Keys of the kernel are shared with every other process of the user; the rest is attack surface, other processes'
# memory, or memory that no limit counts.
_REFUSED = """
add_key keyctl request_key
ptrace process_vm_readv process_vm_writev process_madvise pidfd_getfd pidfd_open pidfd_send_signal kcmp
bpf perf_event_open userfaultfd
io_uring_setup io_uring_enter io_uring_register
unshare setns mount umount2 pivot_root chroot fsopen fsmount fsconfig fspick move_mount open_tree mount_setattr
swapon swapoff reboot kexec_load kexec_file_load init_module finit_module delete_module
open_by_handle_at name_to_handle_at quotactl acct syslog iopl ioperm lookup_dcookie vhangup
fanotify_init fanotify_mark inotify_init inotify_init1 inotify_add_watch
shmget shmat shmctl semget semop semctl semtimedop msgget msgsnd msgrcv msgctl mq_open mq_unlink
memfd_create memfd_secret remap_file_pages
personality modify_ldt vm86 vm86old uselib ustat sysfs nfsservctl
settimeofday clock_settime clock_adjtime adjtimex sethostname setdomainname
mbind set_mempolicy migrate_pages move_pages get_mempolicy
landlock_create_ruleset process_mrelease quotactl_fd seccomp
"""
_NAMESPACES = 0x7E020080  # CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET,TIME}
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C


class FilterUnavailable(RuntimeError):
    """libseccomp or its Python binding is missing."""


@functools.cache
def program() -> bytes:
    """The filter as the kernel's BPF, for this machine's architecture; calls of other architectures end the process.

    Raises FilterUnavailable.
    """
    try:
        import pyseccomp
    except (ImportError, RuntimeError, OSError) as error:
        raise FilterUnavailable(f"the seccomp filter needs pyseccomp and libseccomp.so.2: {error}") from error
    rules = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    refuse, absent = pyseccomp.ERRNO(errno.EPERM), pyseccomp.ERRNO(errno.ENOSYS)
    for name in _REFUSED.split():
        with contextlib.suppress(ValueError, OSError, RuntimeError):  # not a call of this architecture
            rules.add_rule(absent if name in ("memfd_create", "landlock_create_ruleset") else refuse, name)
    # clone3 hides its flags behind a pointer; without it the C library uses clone.
    with contextlib.suppress(ValueError, OSError, RuntimeError):
        rules.add_rule(absent, "clone3")
    for bit in range(32):
        if _NAMESPACES >> bit & 1:
            rules.add_rule(refuse, "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, 1 << bit, 1 << bit))
    for request in (_TIOCSTI, _TIOCLINUX):  # typing into a terminal of someone else
        rules.add_rule(refuse, "ioctl", pyseccomp.Arg(1, pyseccomp.MASKED_EQ, 0xFFFFFFFF, request))
    rules.add_rule(refuse, "prlimit64", pyseccomp.Arg(0, pyseccomp.NE, 0))  # limits of other processes
    for family in (16, 17, 38, 40, 41, 44):  # netlink, packet, crypto, vsock, kcm, xdp
        rules.add_rule(refuse, "socket", pyseccomp.Arg(0, pyseccomp.EQ, family))
    with tempfile.TemporaryFile() as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()
