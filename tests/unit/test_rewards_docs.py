"""docs/rewards.md: its files exist as written, its commands run."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w+)(?: file=(\S+)| (run))\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_files_and_commands_of_the_page(tmp_path):
    blocks = BLOCK.findall((ROOT / "docs" / "rewards.md").read_text())
    assert [(name, run) for _, name, run, _ in blocks] == [("my_rewards.py", ""), ("rows.jsonl", ""), ("", "run")]
    for _, name, run, body in blocks:
        if name:
            (tmp_path / name).write_text(body)
        for line in body.splitlines() if run else ():
            program, *arguments = shlex.split(line)
            assert program == "rlplatform"
            result = subprocess.run(
                [sys.executable, "-m", "rlplatform", *arguments],
                cwd=tmp_path,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert result.returncode == 0, result.stderr
    verdicts = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    assert [(v["score"], v["status"]) for v in verdicts] == [(1.0, "ok"), (1 / 7, "ok"), (0.0, "ok")]
