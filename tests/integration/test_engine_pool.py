"""Engines kept between stages: the same tokens as from fresh ones, verified weights, nothing left of the last stage."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import ray

from actors import engine_pool as pools
from actors.engine_pool import EnginePool, Wanted
from actors.payload import flatten
from actors.rollout_worker import RolloutWorker
from model.folder import WeightFiles
from rlplatform.config import LearnerConfig, ModelConfig, RolloutConfig
from rlplatform.configfile import load_values
from rlplatform.launch import engine_pool, make_room
from rlplatform.roles import RunStopped
from rlplatform.stage_runs import STAGES
from rlplatform.types import RolloutGroup, SamplingParams
from tests.integration import rollout_models as kit

ENGINE = {"cpus_per_worker": 0.5, "kv_cache_gib": 0.1}
ROLLOUT = RolloutConfig(num_workers=2, cpus_per_worker=0.5, kv_cache_gib=0.1)
ROWS = 64  # tokens of a stage's rows


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, cluster: None) -> dict[str, str]:
    """Two models of one shape, one of another, and a dataset."""
    folder = tmp_path_factory.mktemp("models")
    models = {name: kit.save(kit.make_model(seed=seed), folder / name) for name, seed in (("a", 1), ("b", 2))}
    models["untied"] = kit.save(kit.make_model(tied=False), folder / "untied")
    rows = [{"id": f"q{i}", "prompt": f"{i} one two", "answer": str(i)} for i in range(6)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return models | {"data": str(folder / "rows.jsonl")}


def stage(kind: str, model: str, folders: dict[str, str], run_dir: Path) -> Any:
    values: dict[str, Any] = {
        "kind": kind,
        "name": kind,
        "run_dir": str(run_dir),
        "model": {"path": folders[model]},
        "data": {"path": folders["data"], "max_prompt_tokens": 40},
        "sampling": {"max_new_tokens": 24},
        "rollout": ENGINE,
        "reward": {"functions": {"math": 1.0}},
    }
    if kind == "rl":
        values |= {
            "num_steps": 1,
            "prompts_per_step": 4,
            "group_size": 2,
            "max_lag": 1,
            "algorithm": {"drop_zero_variance": False},
            "learner": {"cpus_per_worker": 0.5, "zero_stage": 0},
        }
    else:
        values |= {"num_samples": 2, "metric": "math"}
    return load_values(values)


def left_by(folder: Path) -> dict[str, Any]:
    """What a stage sampled: rows of its files, without seconds."""
    timed = ("metrics.jsonl", "slow_rewards.jsonl")
    found: dict[str, Any] = {path.name: path.read_text() for path in folder.glob("*.jsonl") if path.name not in timed}
    for path in folder.rglob("*.parquet"):
        rows = pq.read_table(path).to_pylist()
        found[str(path.relative_to(folder))] = [
            {key: value for key, value in row.items() if "seconds" not in key} for row in rows
        ]
    return found


def run(
    plan: list[tuple[str, str]], folders: dict[str, str], folder: Path, *, kept: bool
) -> tuple[list[dict[str, Any]], list[Any]]:
    """What each stage left and said. Kept engines have room for rows twice as long as the stages'."""
    lengths = [(ModelConfig(), stage("sample", "a", folders, folder).rollout, 2 * ROWS)]
    outcomes = []
    with engine_pool(lengths) if kept else nullcontext() as pool:
        for number, (kind, model) in enumerate(plan):
            outcomes.append(STAGES[kind](stage(kind, model, folders, folder / str(number))))
            if pool is not None:
                assert (pool.num_starts, pool.num_reuses) == (1, number)
                assert (folder / str(number) / "logs" / "rollout-0.log").exists()
    return [left_by(folder / str(number)) for number in range(len(plan))], outcomes


def test_sample_and_eval_stages_get_from_kept_engines_what_they_get_from_fresh_ones(
    folders: dict[str, str], tmp_path: Path
) -> None:
    kept, kept_outcomes = run([("sample", "a"), ("sample", "b"), ("eval", "b")], folders, tmp_path / "kept", kept=True)
    fresh, fresh_outcomes = run([("sample", "b"), ("eval", "b")], folders, tmp_path / "fresh", kept=False)
    assert kept[0]["responses.jsonl"] != kept[1]["responses.jsonl"]
    assert {"responses.jsonl", "queries.jsonl"} <= kept[1].keys()
    assert kept[2].keys() == {"eval/step-000000.parquet"}
    assert kept[1:] == fresh
    assert [outcome.summary for outcome in kept_outcomes[1:]] == [outcome.summary for outcome in fresh_outcomes]


def test_a_reinforcement_stage_begins_on_kept_engines_as_on_fresh_ones(folders: dict[str, str], tmp_path: Path) -> None:
    kept, _ = run([("sample", "b"), ("rl", "a")], folders, tmp_path / "kept", kept=True)
    fresh, _ = run([("rl", "a")], folders, tmp_path / "fresh", kept=False)
    assert kept[1].keys() == {"rollouts/step-000000.parquet"}
    assert kept[1] == fresh[0]
    rl = [
        json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
        for folder in (tmp_path / "kept" / "1", tmp_path / "fresh" / "0")
    ]
    for name in ("generate/tokens", "generate/restarts", "generate/requeued", "policy/entropy", "loss/total"):
        assert rl[0][name] == rl[1][name], name


# --- the pool itself ------------------------------------------------------------------------------------------------


def wanted(folders: dict[str, str], name: str, **changes: Any) -> Wanted:
    path = folders[name]
    base = Wanted(path, ModelConfig(path=path), ROLLOUT, SamplingParams(max_new_tokens=24), ROWS, 0)
    return replace(base, **changes)


def tokens(groups: list[RolloutGroup]) -> list[list[int]]:
    return [rollout.token_ids.tolist() for group in groups for rollout in group.rollouts]


@pytest.fixture(scope="module")
def expected(folders: dict[str, str]) -> dict[str, list[list[int]]]:
    """Tokens of fresh engines."""
    found = {}
    for name in ("a", "b"):
        fleet = wanted(folders, name, rollout=replace(ROLLOUT, num_workers=1)).start()
        found[name] = tokens(fleet.generate(kit.requests(4, 4)))
        fleet.close()
    return found


@pytest.fixture(scope="module")
def shared(folders: dict[str, str]) -> Iterator[EnginePool]:
    pool = EnginePool()
    yield pool
    pool.close()


def test_requests_that_nobody_waited_for_do_not_reach_the_next_stage(
    shared: EnginePool, folders: dict[str, str], expected: dict[str, Any]
) -> None:
    fleet = shared.take(wanted(folders, "a"))
    fleet.submit(kit.requests(40, 8, run_seed=3))
    fleet.poll(5.0)
    assert fleet.num_pending > 0
    shared.give_back(fleet, failed=False)
    again = shared.take(wanted(folders, "b"))
    assert again is fleet
    assert again.num_pending == 0
    assert tokens(again.generate(kit.requests(4, 4))) == expected["b"]
    metrics = again.metrics()
    assert metrics["generate/tokens"] == sum(len(row) for row in expected["b"])
    assert again.poll(0.5) == []
    assert {again.workers.call(w, RolloutWorker.version) for w in (0, 1)} == {0}
    assert again.effective_sampling()["model"] == folders["b"]
    shared.give_back(again, failed=False)


def test_a_dead_worker_comes_back_with_the_weights_of_the_stage_at_hand(
    shared: EnginePool, folders: dict[str, str], expected: dict[str, Any]
) -> None:
    fleet = shared.take(wanted(folders, "a"))
    shared.give_back(fleet, failed=False)
    os.kill(fleet.workers.incarnation(1).pid, signal.SIGKILL)
    again = shared.take(wanted(folders, "b"))
    assert again.workers.live_workers == [0, 1]
    assert again.workers.num_restarts == 1
    assert tokens(again.generate(kit.requests(4, 4))) == expected["b"]
    # and one that dies while the stage runs, before anybody published; what the other finishes meanwhile is not lost
    os.kill(again.workers.incarnation(0).pid, signal.SIGKILL)
    again.submit(kit.requests(4, 4))
    groups = []
    deadline = time.monotonic() + 120
    while len(again.workers.live_workers) == 2 and time.monotonic() < deadline:
        groups += again.poll(0.1)
    again.wait_for_all()
    while again.num_pending and time.monotonic() < deadline:
        groups += again.poll(1.0)
    assert tokens(sorted(groups, key=lambda group: group.index)) == expected["b"]
    rows = [kit.prompt(i, 50).token_ids for i in range(2)]
    one, other = (again.workers.call(worker, RolloutWorker.logprobs, rows) for worker in (0, 1))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)
    shared.give_back(again, failed=False)
    assert shared.take(wanted(folders, "a")).workers.num_restarts == 0
    shared.give_back(again, failed=False)


def spoil_norm(worker: RolloutWorker) -> None:
    """In the engine's process: after each reload one value is not what was sent."""
    from actors import vllm_extension

    original = vllm_extension.repack_tied_head
    vllm_extension.repack_tied_head = lambda m: (original(m), m.model.norm.weight.data[3].mul_(1.5))


@pytest.mark.parametrize("damage", ["on the way", "in the engine"])
def test_a_wrong_tensor_stops_the_stage_and_is_named(
    shared: EnginePool, folders: dict[str, str], monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    fleet = shared.take(wanted(folders, "a"))
    shared.give_back(fleet, failed=False)
    pids = [fleet.workers.incarnation(worker).pid for worker in (0, 1)]

    def damaged(self: Any) -> Any:
        manifest, flat = flatten(dict(WeightFiles(folders["b"])))
        entry = next(entry for entry in manifest.entries if entry.name == "model.norm.weight")
        flat[entry.offset] ^= 1
        return ray.put((manifest, flat))

    if damage == "on the way":
        monkeypatch.setattr(pools.FolderWeights, "gather_weights", damaged)
    else:
        fleet.workers.call(1, spoil_norm)
    with pytest.raises(RunStopped, match=rf"weights of {folders['b']}.*model\.norm\.weight"):
        shared.take(wanted(folders, "b"))
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_what_does_not_fit_is_closed_before_another_fleet_starts(
    shared: EnginePool, folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = shared.take(wanted(folders, "a"))
    shared.give_back(fleet, failed=False)
    pids = [fleet.workers.incarnation(worker).pid for worker in (0, 1)]
    misfits = [
        wanted(folders, "untied"),
        wanted(folders, "b", max_model_len=ROWS + 1),
        wanted(folders, "b", rollout=replace(ROLLOUT, max_num_seqs=8)),
        wanted(folders, "b", model=ModelConfig(path=folders["b"], dtype="bfloat16")),
        wanted(folders, "b", model=ModelConfig(path=folders["b"], rope_theta=5000.0)),
        wanted(folders, "b", seed=1),
    ]
    assert not any(shared._fits(misfit, pools._Engines.of(misfit)) for misfit in misfits)
    other = wanted(folders, "b", sampling=SamplingParams(max_new_tokens=3, temperature=0.5), max_model_len=ROWS - 9)
    assert shared._fits(other, pools._Engines.of(other))

    def start(self: Wanted, engine_len: int = 0) -> Any:
        assert not any(psutil.pid_exists(pid) for pid in pids)
        raise RunStopped("started")

    monkeypatch.setattr(Wanted, "start", start)
    with pytest.raises(RunStopped, match="started"):
        shared.take(misfits[0])


def test_a_failed_stage_leaves_no_engines_and_training_gets_its_room(folders: dict[str, str], tmp_path: Path) -> None:
    config = stage("sample", "a", folders, tmp_path / "fails")
    with engine_pool() as pool:
        with pytest.raises(ValueError, match="greedy"):
            STAGES["sample"](replace(config, sampling=replace(config.sampling, temperature=0.0)))
        assert pool._idle is None
        STAGES["sample"](replace(config, run_dir=str(tmp_path / "works")))
        assert pool._idle is not None
        make_room(LearnerConfig(num_workers=2, cpus_per_worker=3.75))  # 7.5 of 8, and the engine takes 0.5
        assert pool._idle is not None
        make_room(LearnerConfig(num_workers=2, cpus_per_worker=4.0))
        assert pool._idle is None
