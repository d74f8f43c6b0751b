"""The sandbox's price: runs a second with every wall and the verdict protocol, over runs a second of bare bubblewrap.

    .venv/bin/python -m benchmarks.sandbox            # throughput
    .venv/bin/python -m benchmarks.sandbox --timeouts # 1,000 programs that end at their deadline leave no process

Bare: ``subprocess.run`` of ``bwrap`` with the same folders, the same interpreter and its flags, on the same program as
``python -c``; no limits, no seccomp filter, no launcher, no protocol. Arms take turns, round by round. Beside the wall
clock the processor time of all processes is compared: on a busy machine a run of several processes waits more often.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import subprocess
import time
from collections.abc import Callable
from statistics import median

import psutil

from benchmarks.common import report
from rewards.child import prctl
from rewards.forkserver import _PR_SET_CHILD_SUBREAPER as PR_SET_CHILD_SUBREAPER
from rewards.sandbox import bwrap
from rewards.sandbox.limits import Job, Limits
from rewards.sandbox.process import Sandbox
from rewards.sandbox.view import view

PROGRAM = "print(sum(map(int, input().split())))"
KEPT: set[int] = set()  # children of this process that stay
FUNCTION = "def add(a, b):\n    return a + b"


def bare_command() -> list[str]:
    """bubblewrap's ordinary use, without the filter."""
    seen = view()
    line = [str(bwrap.find()), "--unshare-all", "--die-with-parent", "--new-session", "--clearenv"]
    for path in (*seen.system, *seen.added):
        line += ["--ro-bind", path, path]
    for target, destination in seen.links:
        line += ["--symlink", target, destination]
    line += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--chdir", "/tmp"]
    return [*line, seen.python, "-s", "-P", "-S", "-B", "-X", "utf8", "-c", PROGRAM]


def throughput(num_rounds: int, num_runs: int) -> None:
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    command = bare_command()

    def bare() -> None:
        done = subprocess.run(command, input=b"2 3\n", capture_output=True, check=True)
        assert done.stdout == b"5\n", done

    def script(box: Sandbox) -> None:
        outcome = box.run(Job("script", PROGRAM, stdin=b"2 3\n"))
        assert outcome.stdout == b"5\n", outcome

    def asserts(box: Sandbox, num_tests: int) -> None:
        outcomes = box.judge(Job("code", FUNCTION), [{"test": "assert add(2, 3) == 5"}] * num_tests)
        assert [outcome.kind for outcome in outcomes] == ["passed"] * num_tests, outcomes

    with Sandbox("bwrap") as with_bwrap, Sandbox("namespaces") as with_namespaces:
        arms: dict[str, Callable[[], None]] = {
            "bare": bare,
            "bwrap_script": lambda: script(with_bwrap),
            "bwrap_code": lambda: asserts(with_bwrap, 1),
            "bwrap_code_3_tests": lambda: asserts(with_bwrap, 3),
            "namespaces_script": lambda: script(with_namespaces),
            "namespaces_code": lambda: asserts(with_namespaces, 1),
        }
        seconds: dict[str, list[float]] = {name: [] for name in arms}
        processor: dict[str, float] = dict.fromkeys(arms, 0.0)
        for arm in arms.values():
            arm()
        KEPT.update({with_bwrap.launcher_pid, with_namespaces.launcher_pid})
        for _ in range(num_rounds):
            for name, arm in arms.items():
                started, used = time.perf_counter(), processor_seconds(with_bwrap, with_namespaces)
                for _ in range(num_runs):
                    arm()
                seconds[name].append((time.perf_counter() - started) / num_runs)
                reap()
                processor[name] += processor_seconds(with_bwrap, with_namespaces) - used
    rates = {f"{name}_runs_per_s": round(1 / median(values), 1) for name, values in seconds.items()}
    ratios = {
        f"{name}_over_bare": round(median(b / s for b, s in zip(seconds["bare"], values, strict=True)), 3)
        for name, values in seconds.items()
        if name != "bare"
    }
    cpu = {f"{n}_over_bare_cpu": round(processor["bare"] / s, 3) for n, s in processor.items() if n != "bare"}
    report("sandbox_throughput", **rates, **ratios, **cpu, rounds=num_rounds, runs=num_runs)


def reap() -> None:
    """What bubblewrap has left behind belongs to the bill as well; it came to this process as the nearest subreaper."""
    with contextlib.suppress(ChildProcessError):
        while True:
            done = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT | os.WNOHANG)
            if done is None:
                if not bare_leftovers():
                    return
                time.sleep(0.001)
            elif done.si_pid in bare_leftovers():
                os.waitpid(done.si_pid, 0)
            else:
                return


def bare_leftovers() -> list[int]:
    return [child.pid for child in psutil.Process().children() if child.pid not in KEPT]


def processor_seconds(*boxes: Sandbox) -> float:
    """Of this process and all that it or the sandboxes' launchers have waited for."""
    own = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    total = sum(usage.ru_utime + usage.ru_stime for usage in own)
    for box in boxes:
        with open(f"/proc/{box.launcher_pid}/stat") as file:
            total += sum(map(int, file.read().rpartition(")")[2].split()[11:15])) / os.sysconf("SC_CLK_TCK")
    return total


def timeouts(num_runs: int) -> None:
    me = psutil.Process()
    before = {child.pid for child in me.children(recursive=True)}
    program = "import os, time\nfor _ in range(3): os.fork()\ntime.sleep(60)"
    for isolation in ("bwrap", "namespaces"):
        started = time.perf_counter()
        with Sandbox(isolation) as box:
            kinds = [box.run(Job("script", program), Limits(wall_s=0.1)).kind for _ in range(num_runs)]
            left_while_open = [child for child in me.children(recursive=True) if child.pid not in before]
        left = [child for child in me.children(recursive=True) if child.pid not in before]
        report(
            "sandbox_timeouts",
            isolation=isolation,
            runs=num_runs,
            timed_out=kinds.count("timeout"),
            processes_beside_the_launcher=len(left_while_open) - 1,
            processes_after_close=len(left),
            seconds=round(time.perf_counter() - started, 1),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timeouts", action="store_true")
    parser.add_argument("--runs", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    if arguments.timeouts:
        timeouts(arguments.runs or 1000)
    else:
        throughput(arguments.rounds, arguments.runs or 20)


if __name__ == "__main__":
    main()
