"""Resolves pyproject.toml into the exact pins of requirements/cpu.txt. Usage: compile_requirements.py [--upgrade]

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


def main() -> int:
    python = Path(sys.executable)
    uv = shutil.which("uv") or python.with_name("uv")
    output = ROOT / "requirements" / "cpu.txt"
    options = ["--python-version", "3.11", "--no-header", "--no-emit-index-url", "--no-emit-find-links", "--quiet"]
    options += ["--override", "requirements/overrides.txt", "--constraint", "requirements/constraints.txt"]
    for extra in ("cpu", "dev", "gguf"):
        options += ["--extra", extra]
    options += index_options(pip_settings(python), "cpu")
    command = [str(uv), "pip", "compile", "pyproject.toml", *options, *sys.argv[1:], "--output-file", str(output)]
    code = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL).returncode
    if code:
        return code
    output.write_text(HEADER + output.read_text().removeprefix(HEADER))
    return 0


if __name__ == "__main__":
    sys.exit(main())
