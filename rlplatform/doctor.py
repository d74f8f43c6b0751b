"""Is this machine ready? One line a component: passed or not, what was found, and what to do about it.

Components that can take a process down with them (a torch with the wrong CUDA, a vLLM of another ABI, a Ray that never
answers) are tried in child processes with a deadline, so that a broken installation is a failed line and not a crash.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from rlplatform.paths import stale_build_locks, torch_extensions_dir

GIB = 1024**3
MIN_SHARED_MEMORY_GIB = 0.5  # Ray's object store and the weights in flight
MIN_DISK_GIB = 5.0
MIN_MEMORY_GIB = 4.0  # two engines, a learner and Ray with the smallest models
MAX_DISK_USED = 0.95  # Ray refuses to spill objects beyond
OPERATORS = ("deepspeed_shm_comm", "cpu_adam")  # what scripts/build_ops.py compiles
REINSTALL = "make setup (in a checkout), or reinstall rlplatform with its extra `cpu` or `gpu`"


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    ok: bool
    detail: str  # what was found
    remedy: str = ""  # what to do; empty when ok


def run_checks(*, timeout_s: float = 120.0) -> list[Check]:
    """Every check, in the order of the report; each child process gets ``timeout_s``. Raises nothing."""
    quick: list[Callable[[], Check]] = [
        check_python,
        check_packages,
        check_sandbox,
        check_shared_memory,
        check_memory,
        check_disk,
    ]
    slow: list[Callable[[float], Check]] = [check_torch, check_vllm, check_deepspeed, check_ray]
    with ThreadPoolExecutor(max_workers=2) as pool:  # children import for seconds each; two at a time
        futures = [pool.submit(_survive, check, timeout_s) for check in slow]
        local = [_survive(check) for check in quick]
        return [*local[:2], *(future.result() for future in futures), *local[2:]]


def render(checks: Sequence[Check], console: Any = None) -> None:
    """Print the checks as a table, then what to do for each that failed."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = console or Console()
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    table.add_column("component", style="bold", no_wrap=True)
    table.add_column("found")
    for check in checks:
        mark = "[green]pass[/green]" if check.ok else "[red]FAIL[/red]"
        table.add_row(mark, escape(check.name), escape(check.detail))
    console.print(table)
    failed = [check for check in checks if not check.ok]
    for check in failed:
        console.print(f"\n[bold]{escape(check.name)}[/bold]: {escape(check.remedy)}", soft_wrap=True)
    if failed:
        console.print(f"\n{len(failed)} of {len(checks)} checks failed")
    else:
        console.print(f"\nall {len(checks)} checks passed")


# --- in this process --------------------------------------------------------------------------------------------------


def check_python() -> Check:
    where = "in an environment of its own" if sys.prefix != sys.base_prefix else "the system's"
    return Check("python", True, f"{platform.python_version()}, {where}: {sys.executable}")


def check_packages() -> Check:
    """Installed versions against the ranges that rlplatform's own metadata states."""
    from packaging.requirements import Requirement

    try:
        stated = [Requirement(text) for text in metadata.requires("rlplatform") or ()]
    except metadata.PackageNotFoundError:
        return Check("packages", True, "rlplatform is not installed here (shipped as source); versions not compared")
    needed = [r for r in stated if r.marker is None or r.marker.evaluate({"extra": ""})]
    wrong, shown = [], []
    for requirement in needed:
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing (expected {requirement.specifier})")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} is outside {requirement.specifier}")
        if requirement.name in ("ray", "deepspeed", "transformers"):
            shown.append(f"{requirement.name} {version}")
    if wrong:
        return Check("packages", False, "; ".join(wrong), REINSTALL)
    return Check("packages", True, f"{len(needed)} within their ranges: {', '.join(sorted(shown))}")


def check_sandbox() -> Check:
    """Informational: only rewards that execute model-written programs need isolation."""
    bwrap = shutil.which("bwrap") or shutil.which("bwrap", path=str(Path(sys.executable).parent))
    if bwrap is None:
        return Check("sandbox", True, "bubblewrap not found; only rewards that run generated programs need it")
    command = [bwrap, "--ro-bind", "/", "/", "--unshare-net", "true"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except subprocess.TimeoutExpired:
        return Check("sandbox", False, f"{bwrap} did not return within 20 s", "check that user namespaces are allowed")
    if result.returncode:
        reason = _last_line(result.stderr)
        return Check(
            "sandbox", False, f"{bwrap} cannot isolate: {reason}", "allow user namespaces, or remove bubblewrap"
        )
    return Check("sandbox", True, f"bubblewrap works ({bwrap})")


def check_shared_memory() -> Check:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return Check("shared memory", False, "/dev/shm does not exist", "mount a tmpfs at /dev/shm")
    usage = shutil.disk_usage(folder)
    detail = f"{usage.free / GIB:.1f} GiB free of {usage.total / GIB:.1f} at {folder}"
    if usage.free < MIN_SHARED_MEMORY_GIB * GIB:
        remedy = f"expected at least {MIN_SHARED_MEMORY_GIB} GiB free; in Docker: docker run --shm-size=8g"
        return Check("shared memory", False, detail, remedy)
    return Check("shared memory", True, detail)


def check_memory() -> Check:
    import psutil

    memory = psutil.virtual_memory()
    detail = f"{memory.available / GIB:.1f} GiB available of {memory.total / GIB:.1f}, {os.cpu_count()} cores"
    if memory.available < MIN_MEMORY_GIB * GIB:
        return Check("memory", False, detail, f"expected at least {MIN_MEMORY_GIB:.0f} GiB available: close programs")
    return Check("memory", True, detail)


def check_disk() -> Check:
    """The working folder (runs/) and Ray's temporary folder (logs, spilled objects)."""
    details, remedies = [], []
    temporary = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    for what, folder in (("runs", Path.cwd()), ("Ray's temporary files", Path(temporary))):
        usage = shutil.disk_usage(folder)
        details.append(f"{usage.free / GIB:.0f} GiB free at {folder} ({what})")
        if usage.free < MIN_DISK_GIB * GIB:
            remedies.append(f"expected at least {MIN_DISK_GIB:.0f} GiB free at {folder}")
        if 1 - usage.free / usage.total > MAX_DISK_USED and what != "runs":
            remedies.append(f"{folder} is more than 95 % full, where Ray refuses to spill; set RAY_TMPDIR elsewhere")
    return Check("disk", not remedies, "; ".join(details), "; ".join(remedies))


# --- in child processes -----------------------------------------------------------------------------------------------

TORCH = """
import torch
product = torch.randn(64, 64) @ torch.randn(64, 64)
cuda = torch.cuda.is_available()
device = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())) if cuda else "cpu"
report(
    version=torch.__version__,
    device=device,
    computes=bool(torch.isfinite(product).all()),
    distributed=torch.distributed.is_available(),
)
"""
VLLM = """
import vllm
from vllm.platforms import current_platform
import torch
report(version=vllm.__version__, backend=current_platform.device_type, cuda=torch.cuda.is_available())
"""
DEEPSPEED = """
import importlib.util, pathlib, sys
import torch, deepspeed
loaded = []
for name in sys.argv[1:]:
    path = pathlib.Path(name)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    loaded.append(path.stem)
report(version=deepspeed.__version__, loaded=loaded, cuda=torch.cuda.is_available())
"""
RAY = """
import logging, ray
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
try:
    task = ray.remote(lambda: sum(range(10)))
    answer = ray.get(task.remote(), timeout=60)
    nodes = ray.nodes()
    report(version=ray.__version__, answer=answer, store_gib=nodes[0]["Resources"]["object_store_memory"] / 2**30)
finally:
    ray.shutdown()
"""


def check_torch(timeout_s: float) -> Check:
    found = _try("torch", TORCH, timeout_s)
    if isinstance(found, Check):
        return found
    detail = f"{found['version']} on {found['device']}"
    if not found["computes"]:
        return Check("torch", False, f"{detail}: a matrix product is not finite", REINSTALL)
    if not found["distributed"]:
        return Check("torch", False, f"{detail}, without torch.distributed", REINSTALL)
    return Check("torch", True, detail)


def check_vllm(timeout_s: float) -> Check:
    found = _try("vllm", VLLM, timeout_s, env={"VLLM_LOGGING_LEVEL": "ERROR"})
    if isinstance(found, Check):
        return found
    detail = f"{found['version']}, backend {found['backend'] or 'none'}"
    expected = "cuda" if found["cuda"] else "cpu"
    if found["backend"] != expected:
        remedy = f"torch sees {expected}, so vLLM's backend should be {expected}: install the extra "
        return Check("vllm", False, detail, remedy + ("`gpu` (make setup EXTRA=gpu)" if found["cuda"] else "`cpu`"))
    return Check("vllm", True, detail)


def check_deepspeed(timeout_s: float) -> Check:
    """Stale locks first: with one, the next learner would wait for ever without a word."""
    folder = torch_extensions_dir()
    locks = stale_build_locks(folder)
    if locks:
        listed = ", ".join(str(lock) for lock in locks)
        return Check(
            "deepspeed", False, f"a build was killed and left its lock: {listed}", f"rm {' '.join(map(str, locks))}"
        )
    built = [folder / name / f"{name}.so" for name in OPERATORS]
    present = [path for path in built if path.is_file()]
    found = _try("deepspeed", DEEPSPEED, timeout_s, arguments=[str(path) for path in present])
    if isinstance(found, Check):
        return found
    missing = [path.stem for path in built if path not in present]
    if missing and not found["cuda"]:
        remedy = (
            "make setup builds them (needs c++ and ninja); or let the first learner do so, which takes a minute or two"
        )
        return Check("deepspeed", False, f"{found['version']}; not built in {folder}: {', '.join(missing)}", remedy)
    return Check(
        "deepspeed", True, f"{found['version']}, operators {', '.join(found['loaded']) or 'built on first use'}"
    )


def check_ray(timeout_s: float) -> Check:
    found = _try("ray", RAY, timeout_s, env={"RAY_USAGE_STATS_ENABLED": "0"})
    if isinstance(found, Check):
        return found
    if found["answer"] != 45:
        return Check("ray", False, f"{found['version']}: a task returned {found['answer']} instead of 45", REINSTALL)
    return Check("ray", True, f"{found['version']} started, ran a task; object store {found['store_gib']:.1f} GiB")


REMEDIES = {
    "ray": "see /tmp/ray/session_latest/logs; common: a full disk, a proxy for 127.0.0.1, another Ray's processes",
}


def _try(
    name: str, code: str, timeout_s: float, *, arguments: Sequence[str] = (), env: dict[str, str] | None = None
) -> dict[str, Any] | Check:
    """Run ``code`` in a child of its own; what it reports, or the failed check with its last words."""
    remedy = REMEDIES.get(name, REINSTALL)
    prelude = "import json\ndef report(**found): print('\\nREPORT ' + json.dumps(found), flush=True)\n"
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONWARNINGS="ignore", **(env or {}))
    if name == "deepspeed" and not Path("/dev/nvidia0").exists():
        environment["DS_ACCELERATOR"] = "cpu"
    child = subprocess.Popen(
        [sys.executable, "-c", prelude + code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,  # a group of its own, so that what it started ends with it
    )
    try:
        stdout, stderr = child.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        return Check(name, False, f"no answer within {timeout_s:g} s", remedy)
    for line in stdout.splitlines():
        if line.startswith("REPORT "):
            return dict(json.loads(line.removeprefix("REPORT ")))
    if child.returncode < 0:
        return Check(name, False, f"killed by signal {-child.returncode}: {_last_line(stderr)}", remedy)
    return Check(name, False, _last_line(stderr) or f"exit code {child.returncode}", remedy)


def _survive(check: Callable[..., Check], *arguments: Any) -> Check:
    """A check that itself fails is a failed line, and the others are still shown."""
    try:
        return check(*arguments)
    except Exception as error:
        name = check.__name__.removeprefix("check_").replace("_", " ")
        return Check(name, False, f"the check raised {type(error).__name__}: {error}", "please report this")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
