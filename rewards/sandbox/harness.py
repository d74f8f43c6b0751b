"""The first process of ours inside the sandbox: it starts the program, or becomes it.

A program that is judged by its output or by its own process's last line needs nobody beside it: this process takes the
limits, closes what is not the program's, and becomes it. Its exit status is reported from outside. Where a test calls
functions of a program, or files of a build are wanted, this process stays and judges:

    this process: reads the program's frame; for each test it forks

      judge                                                  program (hostile)
        reads its test and nonce                               has the program in memory and nothing else
        test code runs here             -- calls, data -->     closes the job's descriptors, takes its limits, runs
        writes the verdict to RESULT    <-- values, data --    functions run there

and ends whatever the program left before the next. The program shares no memory with a judge, and comes from a process
that has read no test.
The judge is not dumpable, so its ``/proc`` entries are closed to the program; killing it ends the run, unjudged.
Whatever the program does to its own interpreter stays in its own process.

Sent into the sandbox as byte code. Modules cost milliseconds here: only those that a mode needs are imported.
"""

from __future__ import annotations

import sys

from rewards.sandbox.plain import encode

TYPE_CHECKING = False  # typing itself is not imported: it takes longer than all of this module
if TYPE_CHECKING:
    from typing import Any

JOB, RESULT = 3, 4
MAX_MESSAGE = 16 << 20  # bytes of one value
_SIGKILL, _SECOND = 9, 2  # _SECOND: this process's pid; the first is the reaper
_PR_SET_DUMPABLE = 4


def main() -> str:
    """Run the job on descriptor JOB. Returns only in the program's process of a script: its source."""
    import marshal
    import posix

    job = marshal.loads(_frame(JOB))
    _set_limits(job["limits"], ("nofile", "fsize", "core", "nproc"))
    for path, data in job["files"].items():
        _write_file(posix, path, data)
    sys.path += job["packages"]
    posix.write(RESULT, b"ready\n")
    if not job["judged"]:
        posix.close(JOB)
        _become_program(posix, job, -1, RESULT)
        return str(job["source"])
    _judge(marshal, posix, job)
    return ""


def _judge(marshal: Any, posix: Any, job: dict[str, Any]) -> None:
    import _signal

    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # no KeyboardInterrupt from the program
    _prctl(_PR_SET_DUMPABLE, 0)
    if job["mode"] == "exec":
        pid = posix.fork()
        if pid == 0:
            posix.close(JOB)
            _become_program(posix, job, -1, RESULT)
        _report(posix, marshal.loads(posix.pread(JOB, *job["secrets"][0])), *_outputs(posix, job, pid))
    for place in job["secrets"] if job["mode"] != "exec" else ():
        _judge_one(marshal, posix, job, place)
    posix._exit(0)


def _judge_one(marshal: Any, posix: Any, job: dict[str, Any], place: tuple[int, int]) -> None:
    """A fresh program and a fresh judge: both know nothing of the other tests, and this process nothing of any."""
    to_program, from_program = posix.pipe(), posix.pipe()
    program = posix.fork()
    if program == 0:
        for number in (to_program[1], from_program[0], JOB, RESULT):
            posix.close(number)
        _become_program(posix, job, to_program[0], from_program[1])
    several = len(job["secrets"]) > 1
    judge = posix.fork() if several else 0
    if judge == 0:  # of a single test this process, which has nothing to forget before the next
        posix.close(to_program[0])
        posix.close(from_program[1])
        secret = marshal.loads(posix.pread(JOB, *place))
        posix.close(JOB)
        from rewards.sandbox.bridge import judge_test  # loaded beside this module, byte code too

        _set_limits(job["limits"], ("cpu", "as", "data"))
        verdict = judge_test(from_program[0], to_program[1], job["mode"], secret)
        posix.kill(program, _SIGKILL)
        _report(posix, secret, *verdict)
        posix._exit(0)
    for number in (*to_program, *from_program):
        posix.close(number)
    _, status = posix.waitpid(judge, 0)
    if status != 0:  # it was killed: by the program, or by a limit
        _write_all(posix, RESULT, b"- gone 0 0\n")
    _end_others(posix)


def _report(posix: Any, secret: dict[str, Any], kind: str, text: str, payload: bytes) -> None:
    words = text.encode("utf-8", "replace")
    head = f"{secret['nonce']} {kind} {len(words)} {len(payload)}\n".encode()
    _write_all(posix, RESULT, head + words + payload)


def _end_others(posix: Any) -> None:
    """End all processes of this pid namespace but its first and this one, and wait for those that are ours."""
    if posix.getpid() != _SECOND:  # not in a pid namespace of our own: all others are everybody's
        raise RuntimeError("several tests in a run need a pid namespace")
    try:
        while True:
            posix.kill(-1, _SIGKILL)
            try:
                posix.waitpid(-1, posix.WNOHANG)
            except ChildProcessError:
                posix.sched_yield()
    except ProcessLookupError:
        pass


def _frame(descriptor: int) -> bytes:
    """A length of 8 bytes, then that many: never more, so that a fork here knows nothing of the next frame."""
    import posix

    size, data = int.from_bytes(posix.read(descriptor, 8), "big"), b""
    while len(data) < size:
        piece = posix.read(descriptor, size - len(data))
        if not piece:
            raise EOFError("the job ends early")
        data += piece
    return data


def _write_all(posix: Any, descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[posix.write(descriptor, view) :]


def _write_file(posix: Any, path: str, data: bytes) -> None:
    descriptor = posix.open(path, posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_NOFOLLOW, 0o755)
    _write_all(posix, descriptor, data)
    posix.close(descriptor)


_LIMITS = {"cpu": 0, "fsize": 1, "data": 2, "core": 4, "nproc": 6, "nofile": 7, "as": 9}  # RLIMIT_*, of Linux


def _libc(name: str, *arguments: Any) -> None:
    """Through ``_ctypes`` alone: ctypes itself takes longer to import than Python to start, `resource` a little."""
    import _ctypes

    this_process: Any = None
    if _ctypes.call_function(_ctypes.dlsym(_ctypes.dlopen(this_process, 0), name), arguments) != 0:
        raise OSError(f"{name}{arguments} failed")


def _prctl(option: int, value: int) -> None:
    _libc("prctl", option, value, 0, 0, 0)


def _set_limits(limits: dict[str, int], names: tuple[str, ...]) -> None:
    for name in names:
        if name in limits:
            _libc("setrlimit", _LIMITS[name], limits[name].to_bytes(8, sys.byteorder) * 2)


def _outputs(posix: Any, job: dict[str, Any], pid: int) -> tuple[str, str, bytes]:
    """Wait for a build, and take the files that it was asked for."""
    while True:
        done, status = posix.wait()
        if done == pid:
            break
    code = posix.waitstatus_to_exitcode(status)
    outputs = {}
    for path in job["outputs"] if code == 0 else ():
        try:
            descriptor = posix.open(path, posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_NONBLOCK)
            outputs[path] = _read_up_to(posix, descriptor, MAX_MESSAGE)
            posix.close(descriptor)
        except OSError:
            return "no_output", f"no file {path}", b""
    return "exited", str(code), encode(outputs)


def _read_up_to(posix: Any, descriptor: int, size: int) -> bytes:
    data = b""
    while len(data) < size and (piece := posix.read(descriptor, size - len(data))):
        data += piece
    return data


# --- the program's process ------------------------------------------------------------------------------------------


def _become_program(posix: Any, job: dict[str, Any], requests: int, answers: int) -> None:
    """``answers``: to the judge; without one, RESULT. Returns for a script, which the caller runs."""
    _set_limits(job["limits"], ("cpu", "as", "data"))
    try:
        adjust = posix.open("/proc/self/oom_score_adj", posix.O_WRONLY)
        posix.write(adjust, b"1000")  # where memory ends, this process goes first
        posix.close(adjust)
    except OSError:
        pass
    if job["mode"] == "exec":
        _exec(posix, job, answers)
    import builtins

    sys.argv[:] = ["program.py"]
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]  # `site` would define them; it is not loaded
    if job["mode"] == "script":
        posix.close(answers)
        return
    _prctl(_PR_SET_DUMPABLE, 1)
    module = type(sys)("program")
    sys.modules["program"] = sys.modules["__main__"] = module
    from rewards.sandbox.answering import serve

    try:
        serve(requests, answers, module, job["source"])
    finally:
        sys.stdout.flush()
        posix._exit(0)


def end(error: BaseException | None) -> None:
    """End the program's process as Python would, without taking the interpreter apart, which costs a millisecond."""
    import posix

    code = 0
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        if code == 1 and not isinstance(error.code, int):
            print(error.code, file=sys.stderr)
    elif error is not None:
        trace = error.__traceback__
        sys.excepthook(type(error), error, trace.tb_next if trace else None)  # without the frame of this project
        code = 1
    try:
        if "threading" in sys.modules:
            sys.modules["threading"]._shutdown()
        if "atexit" in sys.modules:
            sys.modules["atexit"]._run_exitfuncs()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:
                code = 120
        posix._exit(code & 0xFF)


def _exec(posix: Any, job: dict[str, Any], answers: int) -> None:
    try:
        if job["token"]:
            posix.dup2(answers, JOB)  # descriptor 3, for the last line of a test
        posix.close(answers)
        posix.execve(job["argv"][0], job["argv"], job["env"])
    except OSError as error:
        posix.write(2, f"{job['argv'][0]}: {error}\n".encode())
    posix._exit(127)
