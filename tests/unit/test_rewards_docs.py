"""docs/rewards.md: its files exist as written, its commands run."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from rewards.base import resolve
from rlplatform.reward_server import RewardServer

from .test_reward_server import TOKEN, Http, served, through

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w+)(?: file=(\S+)| (run))\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_files_and_commands_of_the_page(tmp_path):
    blocks = BLOCK.findall((ROOT / "docs" / "rewards.md").read_text())
    assert [(name, run) for _, name, run, _ in blocks] == [
        ("my_rewards.py", ""),
        ("rows.jsonl", ""),
        ("", "run"),
        ("served_reward.py", ""),
    ]
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


def test_the_snippet_for_other_trainers_speaks_to_a_server(tmp_path, monkeypatch):
    """Called as TRL calls it, over HTTP: a score, None where there is none."""
    blocks = {name: body for _, name, _, body in BLOCK.findall((ROOT / "docs" / "rewards.md").read_text()) if name}
    (tmp_path / "served_reward.py").write_text(blocks["served_reward.py"])
    fn = resolve(f"{tmp_path}/served_reward.py:served_reward")
    server = RewardServer(served({"math": 1.0}, timeout_s=20.0))
    try:
        with Http(through(server)) as web:
            monkeypatch.setenv("REWARD_URL", web.url)
            monkeypatch.setenv("RLPLATFORM_REWARD_TOKEN", TOKEN)
            message = [{"role": "user", "content": "3 + 4?"}]
            completions = [[{"role": "assistant", "content": text}] for text in (r"\boxed{7}", r"\boxed{8}", "")]
            given = {"completion_ids": [[1]] * 3, "trainer_state": None, "log_extra": print, "log_metric": print}
            scores = fn(prompts=[message] * 3, completions=completions, answer=["7", "7", ""], **given)
    finally:
        server.close()
    assert scores == [1.0, 0.0, None]
