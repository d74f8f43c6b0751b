"""Resolves pyproject.toml into the exact pins of requirements/{cpu,gpu}.txt. Usage: compile_requirements.py [--upgrade]

torch, vLLM, Ray, DeepSpeed and transformers stay where requirements/constraints.txt puts them; every other pin is kept
unless ``--upgrade`` is given. The result names versions only, no index addresses, so that it works behind any mirror.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from set_up import ROOT, index_options, pip_settings

HEADER = "# Written by `make requirements`; change pyproject.toml or constraints.txt, not this file.\n"


def compile_for(extra: str, uv: Path, python: Path, arguments: list[str]) -> int:
    output = ROOT / "requirements" / f"{extra}.txt"
    options = ["--python-version", "3.11", "--no-header", "--no-emit-index-url", "--no-emit-find-links", "--quiet"]
    options += ["--constraint", "requirements/constraints.txt"]
    for name in (extra, "dev", "gguf"):
        options += ["--extra", name]
    settings = pip_settings(python)
    if extra == "cpu":
        options += ["--override", "requirements/overrides.txt"]
    else:
        settings.pop("find-links", None)  # a folder of CPU wheels would put `+cpu` into the pins
    options += index_options(settings, extra)
    command = [str(uv), "pip", "compile", "pyproject.toml", *options, *arguments, "--output-file", str(output)]
    code = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL).returncode
    if code == 0:
        output.write_text(HEADER + output.read_text().removeprefix(HEADER))
    return code


def main() -> int:
    python = Path(sys.executable)
    uv = Path(shutil.which("uv") or python.with_name("uv"))
    return max(compile_for(extra, uv, python, sys.argv[1:]) for extra in ("cpu", "gpu"))


if __name__ == "__main__":
    sys.exit(main())
