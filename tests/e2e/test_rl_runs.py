"""Whole RL runs on the tiny model: it learns, it resumes after kill -9, and bad input stops early."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from rlplatform.runs import RunFolder

from .conftest import ROOT, Finished, rlplatform

pytestmark = pytest.mark.slow

REWARD = '''
def letters(completions, **_):
    """Share of the text that is small letters: anything can learn this."""
    texts = [c[0]["content"] for c in completions]
    return [sum("a" <= char <= "z" for char in text) / max(len(text), 1) for text in texts]
'''


# Where the number of engines is not the matter: each takes ten seconds to start. The demo and the killed run have two.
ONE_ENGINE = {"num_workers": 1, "cpus_per_worker": 0.5, "kv_cache_gib": 0.25}


def write_config(folder: Path, model: Path, data: Path, **changes: Any) -> Path:
    (folder / "letters.py").write_text(REWARD)
    config: dict[str, Any] = {
        "kind": "rl",
        "name": "run",
        "run_dir": str(folder / "run"),
        "num_steps": 4,
        "prompts_per_step": 4,
        "group_size": 8,
        "model": {"path": str(model)},
        "data": {"path": str(data / "train.jsonl"), "max_prompt_tokens": 48},
        "sampling": {"max_new_tokens": 24},
        "rollout": {"num_workers": 2, "cpus_per_worker": 0.5, "kv_cache_gib": 0.25},
        "learner": {"num_workers": 1, "cpus_per_worker": 0.5, "zero_stage": 0},
        "reward": {"functions": {f"{folder / 'letters.py'}:letters": 1.0}},
        "optimizer": {"lr": 1e-3},
        "checkpoint": {"every": 1, "keep_last": 9},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config | changes))
    return path


def rewards(folder: Path) -> list[float]:
    return [row["reward/mean"] for row in RunFolder(folder).read_metrics() if "reward/mean" in row]


def test_the_reward_rises_and_the_shuffled_control_does_not(smoke_demo: Finished, tmp_path: Path) -> None:
    curves = {}
    for name, shuffle, transport in (("real", "false", "object_store"), ("control", "true", "collective")):
        folder = tmp_path / name
        folder.mkdir()
        config = write_config(
            folder,
            smoke_demo.folder / "sft" / "model",
            smoke_demo.folder / "data",
            num_steps=12,
            optimizer={"lr": 3e-3},
            checkpoint={"every": 0},
            rollout=ONE_ENGINE,
        )
        done = rlplatform("run", str(config), f"reward.shuffle_control={shuffle}", f"publish.transport={transport}")
        assert done.returncode == 0, done.stderr[-3000:]
        curves[name] = rewards(folder / "run")
    gain = {name: np.mean(curve[-3:]) - np.mean(curve[:3]) for name, curve in curves.items()}
    assert gain["real"] > 0.1, curves
    assert gain["control"] < gain["real"] / 4, curves


def test_a_killed_run_continues_as_the_uninterrupted_one(smoke_demo: Finished, tmp_path: Path) -> None:
    model, data = smoke_demo.folder / "sft" / "model", smoke_demo.folder / "data"
    folders = {}
    for name in ("whole", "killed"):
        folders[name] = tmp_path / name
        folders[name].mkdir()
        write_config(folders[name], model, data, optimizer={"lr": 1e-3, "decay": "linear", "warmup_steps": 2})
    assert rlplatform("run", str(folders["whole"] / "run.yaml")).returncode == 0

    command = [sys.executable, "-m", "rlplatform", "run", str(folders["killed"] / "run.yaml")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    run = RunFolder(folders["killed"] / "run")
    deadline = time.monotonic() + 200
    while not any(row["step"] >= 2 for row in run.read_metrics()):
        assert time.monotonic() < deadline, "the run never reached step 2"
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=30)
    assert json.loads((ROOT / folders["killed"] / "run" / "started.json").read_text())
    done = rlplatform("run", str(folders["killed"] / "run.yaml"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "continues at step" in done.stderr

    frames = {name: RunFolder(folder / "run").read_rollouts() for name, folder in folders.items()}
    key = ["step", "index", "sample"]
    whole, killed = (frames[name].sort_values(key).reset_index(drop=True) for name in ("whole", "killed"))
    assert list(whole["prompt_id"]) == list(killed["prompt_id"])
    assert [list(ids) for ids in whole["token_ids"]] == [list(ids) for ids in killed["token_ids"]]
    for name in ("optimizer/lr", "optimizer/steps"):
        values = [[row[name] for row in RunFolder(f / "run").read_metrics() if name in row] for f in folders.values()]
        assert values[0] == values[1]


def test_bad_input_stops_before_any_worker_starts(smoke_demo: Finished, tmp_path: Path) -> None:
    config = write_config(tmp_path, smoke_demo.folder / "sft" / "model", smoke_demo.folder / "data")
    for override, said in (
        ("data.answer=gold", "column 'gold' is missing"),
        ("data.path=nowhere.jsonl", "no such file"),
        ("model.path=nowhere/at/all", "no such folder"),
        ("reward.functions.maht=1.0", "did you mean 'math'"),
        ("data.columns.extra=missing", "column 'missing' is missing"),
    ):
        began = time.monotonic()
        done = rlplatform("run", str(config), override, f"run_dir={tmp_path / 'never'}")
        assert done.returncode == 2, done.stderr
        assert said in done.stderr
        assert "Traceback" not in done.stderr
        assert not list((tmp_path / "never").glob("logs/*.log")), f"a worker started ({time.monotonic() - began:.0f} s)"


RAISES = """def letters(completions, **_):
    texts = [c[0]["content"] for c in completions]
    return [check(text) for text in texts]

def check(text):
    if {condition}:
        return 1.0
    raise KeyError('the column I forgot')
"""


def test_a_reward_that_raises_at_once_starts_nothing(smoke_demo: Finished, tmp_path: Path) -> None:
    config = write_config(tmp_path, smoke_demo.folder / "sft" / "model", smoke_demo.folder / "data")
    (tmp_path / "letters.py").write_text(RAISES.format(condition="False"))
    done = rlplatform("run", str(config))
    assert done.returncode == 2, done.stderr
    said = done.stderr.splitlines()
    place = next(number for number, line in enumerate(said) if line.startswith("error:"))
    assert f"KeyError: 'the column I forgot', at {tmp_path / 'letters.py'}:8 in check" in said[place]
    assert not list((tmp_path / "run").glob("logs/*.log"))


def test_a_reward_that_raises_stops_the_run_with_its_own_line(smoke_demo: Finished, tmp_path: Path) -> None:
    config = write_config(tmp_path, smoke_demo.folder / "sft" / "model", smoke_demo.folder / "data", rollout=ONE_ENGINE)
    (tmp_path / "letters.py").write_text(RAISES.format(condition="'made up' in text"))
    done = rlplatform("run", str(config))
    assert done.returncode == 1, done.stderr
    said = done.stderr.splitlines()
    place = next(number for number, line in enumerate(said) if "stopped:" in line)
    head = "\n".join(said[place : place + 10])
    assert f"KeyError: 'the column I forgot', at {tmp_path / 'letters.py'}:8 in check" in head
    assert "line 8" in "\n".join(said)
    assert "the column I forgot" in (tmp_path / "run" / "reward_failures.txt").read_text()
