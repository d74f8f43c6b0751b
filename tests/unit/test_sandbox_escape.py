"""Hostile programs against both isolations. Nothing here skips: where an isolation does not work, its tests fail."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import psutil
import pytest

from rewards.sandbox.limits import IsolationUnavailable, Job, Limits, SandboxError
from rewards.sandbox.process import NONE, Sandbox, choose

SHORT = Limits(wall_s=3.0, cpu_s=3.0)


@pytest.fixture(scope="module", params=["bwrap", "namespaces"])
def box(request):
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with Sandbox(request.param) as sandbox:
        yield sandbox
    assert [child for child in psutil.Process().children(recursive=True) if child.pid not in before] == []


@pytest.fixture
def run(box):
    """``run(program)``: what the program wrote; it must end by itself with 0. Nothing of it is left at the end."""

    def start(program: str, limits: Limits = SHORT, stdin: bytes = b"") -> str:
        outcome = box.run(Job("script", program, stdin=stdin), limits)
        assert (outcome.kind, outcome.exit_code) == ("exited", 0), outcome
        return outcome.stdout.decode()

    yield start
    assert_nothing_left(box)


def inside(box: Sandbox) -> list[psutil.Process]:
    """Processes under the sandbox's launcher."""
    try:
        return psutil.Process(box.launcher_pid).children(recursive=True)
    except (psutil.NoSuchProcess, AssertionError):
        return []


def assert_nothing_left(box: Sandbox) -> None:
    deadline = time.monotonic() + 2.0  # after an end of its own a run's leftovers die while the answer is under way
    while inside(box) and time.monotonic() < deadline:
        time.sleep(0.005)
    assert inside(box) == []


TRY = """
import os, errno, sys
def tried(action):
    try:
        return "done: " + repr(action())
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
"""


# --- network --------------------------------------------------------------------------------------------------------


def test_no_network(run, tmp_path):
    with socket.socket() as listener, socket.socket(socket.AF_UNIX) as local, socket.socket(socket.AF_UNIX) as abstract:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        local.bind(str(tmp_path / "socket"))
        local.listen()
        abstract.bind(f"\0escape-{os.getpid()}")
        abstract.listen()
        said = run(
            TRY
            + f"""
import socket
print(tried(lambda: socket.create_connection(("127.0.0.1", {listener.getsockname()[1]}), 1)))
print(tried(lambda: socket.create_connection(("192.0.2.1", 80), 1)))
print(tried(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 53))))
print(tried(lambda: socket.socket(socket.AF_UNIX).connect("\\0escape-{os.getpid()}")))
print(tried(lambda: socket.socket(socket.AF_UNIX).connect("{tmp_path}/socket")))
print(tried(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)))
print(tried(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)))
"""
        )
    refused = said.splitlines()
    assert refused[0] in ("ECONNREFUSED", "ENETUNREACH")
    assert refused[1:] == ["ENETUNREACH", "ENETUNREACH", "ECONNREFUSED", "ENOENT", "EPERM", "EPERM"]


# --- what can be read -----------------------------------------------------------------------------------------------


def test_no_home_and_nothing_of_anybody(run, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("this is a secret")
    marks = [Path.home(), Path.cwd(), Path(__file__), secret, "/etc/passwd", "/etc/shadow", "/var", "/sys", "/home"]
    said = run(
        f"""
import os, sys
print(sorted(os.listdir("/")))
for path in {[str(m) for m in marks]!r}:
    try:
        found = os.listdir(path) if os.path.isdir(path) else open(path).read()[:20]
    except OSError as error:
        found = type(error).__name__
    print(path, found)
"""
    )
    root, *lines = said.splitlines()
    allowed = {"bin", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "sbin", "tmp", "usr"}
    interpreter = Path(os.path.realpath(os.sys.base_prefix)).parts  # type: ignore[attr-defined]
    assert set(eval(root)) <= allowed | {interpreter[1]}
    for mark, line in zip(marks, lines, strict=True):
        found = line.removeprefix(f"{mark} ")
        on_the_way = [part for part in (Path(*interpreter), *Path(*interpreter).parents) if part.parent == Path(mark)]
        # Of a home that the interpreter lies in there is the way to the interpreter.
        assert found in ("FileNotFoundError", "NotADirectoryError") or found == repr([p.name for p in on_the_way]), line


def test_no_environment(run, monkeypatch):
    monkeypatch.setenv("ESCAPE_SECRET", "this is a secret")
    said = run(
        """
import os
print(sorted(os.environ))
for pid in os.listdir("/proc"):
    if pid.isdigit():
        try:
            print(pid, open(f"/proc/{pid}/environ").read())
        except OSError as error:
            print(pid, type(error).__name__)
"""
    )
    assert "ESCAPE" not in said
    assert "secret" not in said
    assert "LC_CTYPE" in said or "HOME" in said


def test_no_processes_of_others(run):
    ours = {os.getpid(), os.getppid()} - {1}  # inside, 1 is another one; outside it may be the parent of a daemon
    said = run(
        TRY
        + f"""
print([int(pid) for pid in os.listdir("/proc") if pid.isdigit()])
for pid in {ours}:
    print(tried(lambda: os.kill(pid, 0)), os.path.exists(f"/proc/{{pid}}"))
for pid in os.listdir("/proc"):
    if pid.isdigit():
        folder = f"/proc/{{pid}}/fd"
        print(tried(lambda: [os.readlink(f"{{folder}}/{{number}}") for number in os.listdir(folder)]))
"""
    )
    pids, *others = said.splitlines()
    assert max(eval(pids)) < 10
    assert others[: len(ours)] == ["ESRCH False"] * len(ours)
    # bubblewrap's reaper has the program's own three, and what it reports the end on, which cannot be opened again.
    assert "memfd:job" not in said


# --- what can be written --------------------------------------------------------------------------------------------


def test_writes_stay_inside(run):
    name = f"escape-{os.getpid()}"
    interpreter = os.path.realpath(os.sys.base_prefix)  # type: ignore[attr-defined]
    folders = [
        "/",
        "/usr",
        "/usr/lib",
        "/etc",
        "/bin",
        "/dev",
        "/proc",
        "/proc/sys/kernel",
        interpreter,
        "/root",
        "/var",
    ]
    said = run(
        TRY
        + f"""
for folder in {folders!r}:
    print(folder, tried(lambda: open(f"{{folder}}/{name}", "w")))
print(tried(lambda: os.chmod("/usr", 0o777)))
print(tried(lambda: os.remove("/usr/bin/env")))
print(tried(lambda: open("/proc/sys/kernel/hostname", "w").write("x")))
print(tried(lambda: open("/proc/sysrq-trigger", "w").write("b")))
print(tried(lambda: os.mknod("/tmp/disk", 0o60600, os.makedev(254, 0))))
open("/tmp/{name}", "w").write("mine")
print(open("/tmp/{name}").read())
"""
    )
    lines = said.splitlines()
    refused = {"EROFS", "EACCES", "EPERM", "ENOENT"}
    assert {line.split()[-1] for line in lines[:-1]} <= refused, said
    assert lines[-1] == "mine"
    assert not Path(f"/tmp/{name}").exists()


def test_nothing_survives_into_the_next_run(run):
    run("open('/tmp/left', 'w').write('x'); open('/dev/shm/left', 'w').write('x')")
    assert run("import os; print(os.listdir('/tmp'), os.listdir('/dev/shm'))") == "[] []\n"


def test_its_input_cannot_be_changed(run):
    said = run(
        TRY
        + """
print(tried(lambda: os.write(0, b"x")), tried(lambda: os.ftruncate(0, 100)))
print(tried(lambda: os.write(os.open("/dev/stdin", os.O_RDWR), b"x")))
print(input())
""",
        stdin=b"as given\n",
    )
    assert said.splitlines()[0] == "EPERM EPERM"
    assert said.splitlines()[1] in ("EPERM", "EACCES")
    assert said.splitlines()[2] == "as given"


def test_symlinks_lead_nowhere(box, run, tmp_path):
    (tmp_path / "secret").write_text("this is a secret")
    said = run(f"import os; os.symlink('{tmp_path}/secret', '/tmp/link'); print(os.path.exists('/tmp/link'))")
    assert said == "False\n"
    for target in ("/etc/ld.so.cache", "/proc/1/environ", "/proc/self/mem"):
        shell = f"ln -s {target} program"
        outcome = box.run(Job("exec", argv=("/bin/sh", "-c", shell), outputs=("program",)), SHORT)
        assert outcome.kind == "no_output", outcome
    outcome = box.run(Job("exec", argv=("/bin/sh", "-c", "mkfifo program"), outputs=("program",)), SHORT)
    assert outcome.kind in ("no_output", "exited")
    assert b"secret" not in outcome.payload


# --- rights ---------------------------------------------------------------------------------------------------------


def test_no_rights_and_the_filter_is_on(run):
    said = run(
        """
wanted = "CapEff", "CapPrm", "CapBnd", "NoNewPrivs", "Seccomp"
print([line for line in open("/proc/self/status") if line.split(":")[0] in wanted])
"""
    )
    status = {line.split(":")[0]: line.split(":")[1].strip() for line in eval(said)}
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == int(status["CapBnd"], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


def test_system_calls_that_namespaces_leave_open(run):
    said = run(
        """
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
def call(name, number, *args):
    libc.syscall.restype = ctypes.c_long
    result = libc.syscall(number, *[ctypes.c_void_p(a) if a is not None else None for a in args])
    print(name, "done" if result >= 0 else errno.errorcode[ctypes.get_errno()])
for number, flags in enumerate((0x10000000, 0x20000, 0x40000000, 0x20000000)):
    call(f"unshare-{flags:x}", 272, flags)
    call(f"clone-{flags:x}", 56, flags | 17, 0, 0, 0, 0)
call("clone3", 435, 0, 88)
call("setns", 308, 0, 0)
call("ptrace", 101, 0, 0, 0, 0)
call("process_vm_readv", 310, 1, 0, 0, 0, 0, 0)
call("pidfd_open", 434, 1, 0)
call("pidfd_getfd", 438, 3, 0, 0)
call("add_key", 248, 0, 0, 0, 0, 0)
call("keyctl", 250, 0, -3, 1)
call("request_key", 249, 0, 0, 0, 0)
call("bpf", 321, 0, 0, 0)
call("io_uring_setup", 425, 1, 0)
call("perf_event_open", 298, 0, 0, -1, -1, 0)
call("userfaultfd", 323, 0)
call("mount", 165, 0, 0, 0, 0, 0)
call("umount2", 166, 0, 2)
call("pivot_root", 155, 0, 0)
call("open_by_handle_at", 304, 0, 0, 0)
call("shmget", 29, 0, 1 << 30, 0o1600)
call("memfd_create", 319, 0, 0)
call("prlimit64", 302, 1, 6, 0, 0)
call("tiocsti", 16, 0, 0x5412, 0)
"""
    )
    results = dict(line.split() for line in said.splitlines())
    assert len(results) == 29
    assert {name: result for name, result in results.items() if result not in ("EPERM", "ENOSYS")} == {}


def test_seen_from_outside_it_is_nobody(box):
    """As root each run drops to an unprivileged user; otherwise it is this user, in a user namespace."""
    import threading

    seen = []

    def look():
        deadline = time.monotonic() + 3
        while not seen and time.monotonic() < deadline:
            seen.extend(p.uids().real for p in inside(box) if "program" in " ".join(p.cmdline()))
            time.sleep(0.02)

    watcher = threading.Thread(target=look)
    watcher.start()
    box.run(Job("script", "import time; time.sleep(0.5)"), SHORT)
    watcher.join()
    assert seen
    assert 0 not in seen
    assert_nothing_left(box)


# --- consumption ----------------------------------------------------------------------------------------------------


def test_fork_bomb(box):
    program = (
        "import os, time\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        time.sleep(0.01)\n"
    )
    counted = run_and_count(box, program, Limits(wall_s=1.0, num_processes=30))
    assert 10 < counted <= 33  # the launcher's own part of the tree included
    assert box.run(Job("script", "print('still here')"), SHORT).stdout == b"still here\n"


def run_and_count(box: Sandbox, program: str, limits: Limits) -> int:
    """The most processes that were seen at once during a run that ends at its deadline."""
    import threading

    most, done = 0, False

    def look():
        nonlocal most
        while not done:
            most = max(most, len(inside(box)))
            time.sleep(0.02)

    watcher = threading.Thread(target=look)
    watcher.start()
    outcome = box.run(Job("script", program), limits)
    done = True
    watcher.join()
    assert outcome.kind == "timeout", outcome
    assert inside(box) == []
    return most


def test_two_runs_do_not_share_their_process_limit(box):
    program = """
import os, time
pids = []
try:
    for _ in range(20):
        pid = os.fork()
        if pid == 0:
            time.sleep(0.3); os._exit(0)
        pids.append(pid)
except OSError:
    pass
print(len(pids))
"""
    import threading

    counts = []

    def go():
        with Sandbox(box.isolation) as own:
            counts.append(own.run(Job("script", program), Limits(num_processes=30)).stdout)

    threads = [threading.Thread(target=go) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [b"20\n"] * 3


def test_threads(run):
    said = run(
        """
import threading, time
started = 0
stop = threading.Event()
try:
    while started < 1000:
        threading.Thread(target=stop.wait, daemon=True).start()
        started += 1
except RuntimeError:
    pass
stop.set()
print(started)
""",
        Limits(num_processes=40, memory_mib=2048),
    )
    assert 5 < int(said) < 40


def test_memory_of_one_process(run):
    said = run(
        """
held = []
try:
    while True:
        held.append(bytearray(16 << 20))
except MemoryError:
    print(len(held) * 16)
""",
        Limits(memory_mib=256),
    )
    assert 100 < int(said) <= 256


@pytest.mark.parametrize("how", ["private", "shared"])
def test_memory_of_many_processes(box, how):
    allocate = "bytearray(150 << 20)" if how == "private" else "mmap.mmap(-1, 150 << 20)"
    program = f"""
import os, mmap, time
for _ in range(10):
    if os.fork() == 0:
        held = {allocate}
        for at in range(0, len(held), 4096): held[at] = 1
        break
time.sleep(20)
"""
    outcome = box.run(Job("script", program), Limits(wall_s=8.0, cpu_s=8.0, memory_mib=256, total_mib=400))
    assert outcome.kind == "memory", outcome
    assert inside(box) == []


def test_disk(run):
    said = run(
        TRY
        + """
def fill(folder):
    total = 0
    try:
        for number in range(100):
            with open(f"{folder}/{number}", "wb") as file:
                for _ in range(8):
                    total += file.write(bytes(1 << 20))
    except OSError as error:
        return total >> 20, errno.errorcode[error.errno]
print(fill("/tmp"), fill("/dev/shm"))
""",
        Limits(tmp_mib=16),
    )
    for filled, why in eval(said.replace(") (", "), (")):
        assert filled <= 16
        assert why == "ENOSPC"


def test_one_file(box):
    program = "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nopen('/tmp/x', 'wb').write(bytes(8 << 20))"
    outcome = box.run(Job("script", program), Limits(file_mib=4))
    assert outcome.exit_code == 1
    assert b"File too large" in outcome.stderr


def test_processor_time(box):
    outcome = box.run(Job("script", "while True: pass"), Limits(wall_s=10.0, cpu_s=1.0))
    assert (outcome.kind, outcome.exit_code) in (("exited", -9), ("exited", -24))
    assert outcome.seconds < 8


@pytest.mark.parametrize("descriptor", [1, 2])
def test_flood(box, descriptor):
    program = f"import os\nwhile True: os.write({descriptor}, b'x' * 65536)"
    outcome = box.run(Job("script", program), Limits(output_kib=256))
    assert outcome.kind == "output", outcome
    assert outcome.seconds < 3
    assert inside(box) == []


# --- ends -----------------------------------------------------------------------------------------------------------


def test_a_daemon_that_holds_the_pipe(box):
    program = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(60)
    os._exit(0)
print("done")
"""
    outcome = box.run(Job("script", program), SHORT)
    assert (outcome.kind, outcome.stdout) == ("exited", b"done\n")
    assert outcome.seconds < 2
    assert_nothing_left(box)


def test_ignored_signals(box):
    program = """
import signal
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
while True: pass
"""
    outcome = box.run(Job("script", program), Limits(wall_s=0.5))
    assert outcome.kind == "timeout"
    assert inside(box) == []


@pytest.mark.parametrize("target", ["os.getppid()", "1", "-1", "0"])
@pytest.mark.parametrize("mode", ["script", "code"])
def test_killing_the_parent(box, target, mode):
    program = f"""
import os, signal
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGSTOP, signal.SIGKILL):
    try: os.kill({target}, number)
    except OSError: pass
def f(): return 1
"""
    if mode == "script":
        box.run(Job("script", program), Limits(wall_s=1.0))
    else:
        outcomes = box.judge(Job("code", program), [{"test": "assert f() == 2"}] * 2, Limits(wall_s=0.5))
        assert [outcome.kind for outcome in outcomes if outcome.kind == "passed"] == []
        assert len(outcomes) == 2
    assert_nothing_left(box)
    assert box.run(Job("script", "print('still here')"), SHORT).stdout == b"still here\n"


def test_50_short_timeouts_leave_no_process(box):
    program = "import os, time\nfor _ in range(2): os.fork()\ntime.sleep(60)"
    for _ in range(50):
        assert box.run(Job("script", program), Limits(wall_s=0.03)).kind == "timeout"
    assert inside(box) == []


# --- which isolation ------------------------------------------------------------------------------------------------


def test_the_best_isolation_is_chosen_and_none_never_is(monkeypatch):
    from rewards.sandbox import process

    assert choose("auto") == "bwrap"
    reasons = {"bwrap": "no bwrap", "namespaces": ""}
    monkeypatch.setattr(process, "_reason_against", reasons.__getitem__)
    assert choose("auto") == "namespaces"
    reasons["namespaces"] = "unshare: Operation not permitted"
    for asked in ("auto", "bwrap", "namespaces"):
        with pytest.raises(IsolationUnavailable, match=NONE) as caught:
            choose(asked)
        assert reasons["bwrap" if asked == "auto" else asked] in str(caught.value)
    assert choose(NONE) == NONE
    with pytest.raises(IsolationUnavailable, match="expected one of"):
        choose("none")


def test_without_walls_only_where_it_is_asked_for_in_words():
    with Sandbox(NONE) as box:
        assert box.run(Job("script", "print(6 * 7)"), SHORT).stdout == b"42\n"
        assert box.run(Job("script", "import time; time.sleep(60)"), Limits(wall_s=0.5)).kind == "timeout"
        assert inside(box) == []


def test_a_broken_sandbox_is_not_a_failed_program(box):
    """A launcher that dies, and an interpreter that does not start, are errors, and the next run starts anew."""
    import threading

    box.run(Job("script", ""), SHORT)
    killer = threading.Timer(0.5, psutil.Process(box.launcher_pid).kill)
    killer.start()
    with pytest.raises(SandboxError, match="launcher died"):
        box.run(Job("script", "import time; time.sleep(60)"), SHORT)
    assert box.run(Job("script", "print('again')"), SHORT).stdout == b"again\n"
    with Sandbox(box.isolation) as other:
        object.__setattr__(other._view, "python", "/usr/bin/false")
        with pytest.raises(SandboxError, match="did not start"):
            other.run(Job("script", ""), SHORT)


def test_wrong_limits_are_refused():
    with pytest.raises(ValueError, match="memory_mib"):
        Limits(memory_mib=0)


def test_packages_are_shown_where_asked(box, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "given.py").write_text("answer = 42")
    (tmp_path / "site").chmod(0o755)
    tmp_path.chmod(0o700)
    with Sandbox(box.isolation, packages=(str(tmp_path / "site"),)) as own:
        assert own.run(Job("script", "import given; print(given.answer)"), SHORT).stdout == b"42\n"
        job = Job("code", "import given\ndef f(): return given.answer")
        (outcome,) = own.judge(job, [{"test": "import given\nassert f() == given.answer"}])
        assert outcome.kind == "passed", outcome
    with pytest.raises(ValueError, match="expected folders"):
        Sandbox(box.isolation, packages=(str(tmp_path / "absent"),))
