from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlplatform import checkpoint
from rlplatform.checkpoint import CheckpointError


def save(root: Path, step: int, *, score: float | None = None, keep_last: int = 2, keep_best: int = 1) -> None:
    checkpoint.save(
        root,
        step,
        lambda folder: (folder / "weights.bin").write_bytes(b"w" * (10 + step)) and None,
        state={"prompts": {"drawn": step}},
        score=score,
        keep_last=keep_last,
        keep_best=keep_best,
    )


def steps(root: Path) -> list[int]:
    return [found.step for found in checkpoint.complete(root)]


def test_round_trip_and_retention_of_last_and_best(tmp_path: Path) -> None:
    for step, score in [(1, 0.2), (2, 0.9), (3, None), (4, 0.3), (5, 0.4)]:
        save(tmp_path, step, score=score)
    assert steps(tmp_path) == [2, 4, 5]
    newest, best = checkpoint.latest(tmp_path), checkpoint.best(tmp_path)
    assert newest is not None
    assert best is not None
    assert (newest.step, newest.state["prompts"], best.step) == (5, {"drawn": 5}, 2)
    assert (newest.learner / "weights.bin").read_bytes() == b"w" * 15


def test_the_millionth_step_is_the_newest(tmp_path: Path) -> None:
    for step in (999_998, 999_999, 1_000_000):
        save(tmp_path, step)
    newest = checkpoint.latest(tmp_path)
    assert newest is not None
    assert newest.step == 1_000_000
    assert steps(tmp_path) == [999_999, 1_000_000]


def test_a_crash_while_writing_leaves_the_older_one(tmp_path: Path) -> None:
    save(tmp_path, 1)

    def crash(folder: Path) -> None:
        (folder / "half").write_bytes(b"x")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(tmp_path, 2, crash, state={}, score=None, keep_last=2, keep_best=1)
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found.step == 1
    save(tmp_path, 3)
    assert not list(tmp_path.glob(".writing-*"))


@pytest.mark.parametrize("damage", ["manifest", "missing", "shorter", "changed"])
def test_what_the_manifest_does_not_vouch_for_is_passed_over(tmp_path: Path, damage: str) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    folder = tmp_path / "step-000002"
    weights = folder / "learner" / "weights.bin"
    if damage == "manifest":
        (folder / checkpoint.MANIFEST).unlink()
    elif damage == "missing":
        weights.unlink()
    elif damage == "shorter":
        weights.write_bytes(b"w")
    else:
        weights.write_bytes(b"v" * 12)
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found.step == 1
    with pytest.raises(CheckpointError, match="step-000002"):
        checkpoint.read(folder, verify=True)


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 1, score=0.1)
    save(tmp_path, 1, score=0.2)
    assert steps(tmp_path) == [1]
    assert json.loads((tmp_path / "step-000001" / "state.json").read_text())["score"] == 0.2


def test_nothing_there_is_none(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) is None
    assert checkpoint.best(tmp_path) is None
