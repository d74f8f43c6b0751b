"""The doctor on this machine, as a user runs it: real imports, real operators, a real Ray."""

from __future__ import annotations

import subprocess
import sys


def test_a_set_up_machine_passes_and_every_component_has_its_line() -> None:
    command = [sys.executable, "-m", "rlplatform", "doctor"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    for name in ("python", "packages", "torch", "vllm", "deepspeed", "ray", "sandbox", "shared memory", "disk"):
        assert any(line.split()[:2] == ["pass", name.split()[0]] for line in lines), name
    assert "checks passed" in lines[-1]
