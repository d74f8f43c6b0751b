"""One short run of the demo, for every test that looks at what a run leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Finished:
    folder: Path  # the run folder
    reads: Path  # where config reads were tracked
    output: str


def rlplatform(
    *arguments: str, env: dict[str, str] | None = None, timeout: float = 500
) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "rlplatform", *arguments],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture(scope="session")
def smoke_demo(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """``rlplatform run configs/recipe/demo.yaml --smoke``, with config reads tracked in every process."""
    base = tmp_path_factory.mktemp("demo")
    reads = base / "reads"
    reads.mkdir()
    done = rlplatform(
        "run", "configs/recipe/demo.yaml", "--smoke", f"run_dir={base}/demo", env={"RLPLATFORM_TRACK_READS": str(reads)}
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return Finished(base / "demo-smoke", reads, done.stdout + done.stderr)
