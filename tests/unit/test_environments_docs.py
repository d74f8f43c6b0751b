"""docs/environments.md: its file exists as written, its code runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from rlplatform.environments.base import ENVIRONMENTS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "environments.md").read_text()
BLOCK = re.compile(r"^```python(?: file=(\S+)| (run))\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_files_and_code_of_the_page(tmp_path: Path) -> None:
    blocks = BLOCK.findall(PAGE)
    assert [(name, run) for name, run, _ in blocks] == [("my_environments.py", ""), ("", "run"), ("", "run")]
    for name, run, body in blocks:
        if name:
            (tmp_path / name).write_text(body)
        else:
            assert run
            result = subprocess.run(
                [sys.executable, "-c", body],
                cwd=tmp_path,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert result.returncode == 0, result.stderr


def test_every_built_in_environment_stands_on_the_page() -> None:
    for name in ENVIRONMENTS:
        assert f"| `{name}` |" in PAGE
