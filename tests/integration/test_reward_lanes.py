"""Functions with workers of their own: none holds up another, limits hold over all, what is lost is asked again."""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import typer

from actors.reward_service import RewardService
from rewards.base import ERROR, NOT_APPLICABLE, OK, TIMEOUT, RewardLoadError
from rlplatform.cli.base import guarded
from rlplatform.config import RewardConfig
from tests.integration.test_reward_service import drain, group, worker_pids

FUNCTIONS = """
import asyncio, json, os, time
from rewards.base import Verdict, groupwise, rowwise, served_by

def write(log, **what):
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, json.dumps(what).encode() + b"\\n")
    os.close(descriptor)

def quick(completions, **columns):
    return [1.0] * len(completions)

def slow(completions, *, seconds=3.0, **columns):
    time.sleep(seconds)
    return [0.5] * len(completions)

@rowwise
async def judge(completions, mode=None, *, log="", seconds=0.2, **columns):
    if log:
        write(log, event=1, at=time.monotonic(), text=completions[0])
    await asyncio.sleep(600 if mode == ["sleep"] else seconds)
    if log:
        write(log, event=-1, at=time.monotonic(), text=completions[0])
    return [0.25]

@rowwise
def judge_sync(completions, *, log, seconds=0.2, **columns):
    write(log, event=1, at=time.monotonic(), text=completions[0])
    time.sleep(seconds)
    write(log, event=-1, at=time.monotonic(), text=completions[0])
    return [0.25]

@groupwise
def whole(completions, **columns):
    return [Verdict(float(len(completions)), detail=",".join(completions))] * len(completions)

@served_by("my_actors:Served")
def served(completions, *, offset=0.0, answer=None):
    return [float(len(c)) for c in completions]

@served_by("my_actors:Nothing")
def served_by_nothing(completions):
    return [0.0]

def deep(completions, **columns):
    return [first(c) for c in completions]

def first(text):
    return second(text)

def second(text):
    return third(text)

def third(text):
    return {}[text]
"""

ACTORS = """
import os, signal
from actors.fleet_actor import FleetActor
from actors.grading_request import PartScore
from rewards.base import Verdict

class Served(FleetActor):
    def __init__(self, args, timeout_s, sys_path):
        self.args, self.timeout_s = args, timeout_s
        self.calls = 0

    def score(self, request):
        assert request.completion_ids is None and sorted(request.columns) == ["answer"]
        self.calls += 1
        if "boom" in str(request.completions):
            raise RuntimeError("a model that fails")
        if "short" in str(request.completions):
            return PartScore([])
        if "die" in str(request.completions) and not os.path.exists(request.columns["answer"][0]):
            open(request.columns["answer"][0], "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        rows = zip(request.completions, request.groups)
        detail = f"{len(request.group_sizes)} groups"
        verdicts = [Verdict(len(c[0]["content"]) + self.args["offset"], detail=detail) for c, _ in rows]
        return PartScore(verdicts, extras={"call": [self.calls] * len(verdicts)}, metrics={"calls": self.calls})

    def version(self):
        return "model/path weights 7"
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("lanes")
    (folder / "lane_rewards.py").write_text(FUNCTIONS)
    (folder / "my_actors.py").write_text(ACTORS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder / "lane_rewards.py"


@pytest.fixture
def start(cluster: None, functions: Path) -> Iterator[Any]:
    services = []

    def make(parts: dict[str, Any], folder: Path | None = None, **config: Any) -> RewardService:
        named = {
            name: {"function": f"{functions}:{name}", **part} if ":" not in name else part
            for name, part in parts.items()
        }
        services.append(RewardService(RewardConfig(functions=named, **config), folder))
        return services[-1]

    yield make
    for service in services:
        service.close()


def test_a_slow_judge_never_holds_up_the_others(start) -> None:
    service = start({"quick": {}, "judge": {"concurrency": 4, "args": {"seconds": 0.5}}}, timeout_s=30.0)
    names = {lane.functions for lane in service._lanes}
    assert names == {("quick",), ("judge",)}
    service.submit([group(f"p{i}", ["a", "b"]) for i in range(16)], step=0)
    deadline = time.monotonic() + 60
    quick_done: float | None = None
    while service.num_pending and time.monotonic() < deadline:
        service.poll(0.1)
        if quick_done is None and all("quick" in opened.verdicts for opened in service._open.values()):
            quick_done = len(service._open)  # how many groups the judge has not yet seen to
    assert quick_done is not None
    assert quick_done >= 8  # math-like verdicts were all there while the judge was busy
    metrics = service.metrics()
    assert metrics["score/queue_seconds/judge"] > metrics["score/queue_seconds/quick"]
    assert metrics["score/queue_groups/judge"] > 0
    assert metrics["score/seconds_p50/judge"] >= 0.5
    assert metrics["score/seconds_p50/quick"] < 0.5
    assert metrics["score/critical_seconds"] > 0


def test_workers_of_its_own(start) -> None:
    service = start({"quick": {}, "slow": {"workers": 2, "args": {"seconds": 0.1}}}, num_workers=1)
    assert {lane.functions: len(lane.fleet.live_workers) for lane in service._lanes} == {("quick",): 1, ("slow",): 2}
    service.submit([group(f"p{i}", ["a"]) for i in range(6)], step=0)
    scored = drain(service)
    assert {tuple(v.parts.items()) for one in scored.values() for v in one.verdicts} == {
        (("quick", 1.0), ("slow", 0.5))
    }


def most_at_once(log: Path) -> int:
    running = most = 0
    for e in sorted((json.loads(line) for line in log.read_text().splitlines()), key=lambda e: (e["at"], e["event"])):
        running += e["event"]
        most = max(most, running)
    return most


@pytest.mark.parametrize("name", ["judge", "judge_sync"])
def test_a_concurrency_holds_over_all_workers(start, tmp_path, name) -> None:
    log = tmp_path / "log"
    service = start({name: {"workers": 2, "concurrency": 3, "args": {"log": str(log)}}}, processes_per_worker=4)
    service.submit([group(f"p{i}", ["a", "b", "c", "d"]) for i in range(6)], step=0)
    assert len(drain(service)) == 6
    assert len(log.read_text().splitlines()) == 48
    assert 2 <= most_at_once(log) <= 3


def test_a_rate_holds_over_all_workers(start, tmp_path) -> None:
    """Ten a second over two workers; a row's deadline (0.5 s) does not run while it waits for its turn."""
    log = tmp_path / "log"
    part = {"workers": 2, "per_second": 10.0, "args": {"log": str(log), "seconds": 0.0}}
    service = start({"judge_sync": part}, timeout_s=0.5)
    service.submit([group(f"p{i}", ["a", "b", "c", "d"]) for i in range(4)], step=0)
    scored = drain(service)
    assert [v.status for one in scored.values() for v in one.verdicts] == [OK] * 16
    starts = [e["at"] for e in map(json.loads, log.read_text().splitlines()) if e["event"] == 1]
    starts.sort()
    for i, first in enumerate(starts):  # each worker starts one every 0.2 s; two may fall together, and one be late
        assert sum(at - first < 1.0 for at in starts[i:]) <= 12


def test_groups_travel_whole_and_rows_are_routed(start) -> None:
    service = start({"whole": {"when": {"task": "a"}}, "quick": {"weight": 0.5, "when": {"task": ["a", "b"]}}})
    tasks = {"p0": "a", "p1": "b", "p2": "c", "p3": "a"}
    service.submit([group(name, ["x", "yy", "z"], chat=False, task=task) for name, task in tasks.items()], step=0)
    scored = drain(service)
    found = {name: [(v.score, v.status, sorted(v.parts)) for v in one.verdicts] for name, one in scored.items()}
    assert found["p0"] == found["p3"] == [(3.5, OK, ["quick", "whole"])] * 3
    assert found["p1"] == [(0.5, OK, ["quick"])] * 3
    assert found["p2"] == [(0.0, NOT_APPLICABLE, [])] * 3
    assert scored["p0"].verdicts[0].detail == "whole: x,yy,z"
    assert set(scored) == set(tasks)


def test_a_served_function(start, tmp_path) -> None:
    service = start({"served": {"args": {"offset": 10.0}}, "quick": {"weight": 0.0}})
    service.submit([group(f"p{i}", ["a", "bb"], answer="x", other=1) for i in range(12)], step=0)
    scored = drain(service)
    assert {tuple(v.parts["served"] for v in one.verdicts) for one in scored.values()} == {(11.0, 12.0)}
    # Groups of one function travel together where there is a queue.
    assert any("12 groups" in v.detail for one in scored.values() for v in one.verdicts)
    assert "score/custom/calls" in service.metrics()
    graders = service.versions()["functions"]
    assert graders["served"]["served"] == "model/path weights 7"
    assert len(graders["served"]["settings"]) == 12
    assert "served" not in graders["quick"]
    assert "settings" not in graders["quick"]
    service.submit(
        [group("boom", ["boom"], answer="x"), group("short", ["short"], answer="x"), group("fine", ["a"], answer="x")],
        step=1,
    )
    scored = drain(service)
    assert {name: one.verdicts[0].status for name, one in scored.items()}["fine"] in (OK, ERROR)  # travels with others
    assert scored["boom"].verdicts[0].status == ERROR
    service.submit([group("short", ["short"], answer="x")], step=2)
    assert "0 verdicts for 1 rows" in drain(service)["short"].verdicts[0].detail


def test_a_served_actor_that_dies_costs_nothing(start, tmp_path) -> None:
    service = start({"served": {"args": {"offset": 0.0}}})
    marker = str(tmp_path / "died")
    service.submit([group(f"p{i}", ["die" if i == 2 else "a"], answer=marker) for i in range(5)], step=0)
    scored = drain(service)  # asserts that each comes once
    assert [v.status for one in scored.values() for v in one.verdicts] == [OK] * 5
    assert service.metrics()["score/restarts"] == 1.0


def test_an_own_worker_killed_while_grading_costs_nothing(start) -> None:
    service = start({"quick": {}, "judge": {"workers": 1, "args": {"seconds": 0.3}}})
    (judge,) = [lane.fleet for lane in service._lanes if lane.functions == ("judge",)]
    service.submit([group(f"p{i}", ["a", "b"]) for i in range(8)], step=0)
    service.poll(0.2)
    os.kill(judge.incarnation(0).pid, signal.SIGKILL)
    scored = drain(service)
    assert len(scored) == 8
    assert all(v.parts == {"quick": 1.0, "judge": 0.25} for one in scored.values() for v in one.verdicts)
    pids = [p.pid for pid in worker_pids(service) for p in psutil.Process(pid).children(recursive=True)]
    service.close()
    assert [pid for pid in pids if psutil.pid_exists(pid)] == []


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"judge": {"workers": 3, "concurrency": 2}}, ["judge.concurrency", "divided over workers=3", "to 2 or less"]),
        ({"served": {"per_second": 2}}, ["served.per_second", "rowwise"]),
        ({"served_by_nothing": {}}, ["my_actors:Nothing", "expected package.module:Class"]),
        ({"quick": {"args": {"x": 1}}}, ["has the settings (none)"]),
    ],
)
def test_what_cannot_be_served_starts_no_actor(start, part, words) -> None:
    before = ray.available_resources()
    with pytest.raises(RewardLoadError) as caught:
        start(part)
    for word in words:
        assert word in str(caught.value)
    assert ray.available_resources() == before


def test_slow_rows_and_first_failures_are_kept_and_shown(start, functions, tmp_path, caplog) -> None:
    parts = {"judge": {"args": {"seconds": 0.05}}, "deep": {}}
    service = start(parts, tmp_path, timeout_s=1.0, max_error_rate=1.0)
    with caplog.at_level(logging.WARNING):
        service.submit(
            [group(f"p{i}", ["a", "b"], chat=False, mode="sleep" if i == 3 else "ok") for i in range(8)], step=4
        )
        drain(service)
    service.metrics()
    slow = [json.loads(line) for line in (tmp_path / "slow_rewards.jsonl").read_text().splitlines()]
    assert len(slow) == 10
    assert [row["seconds"] for row in slow] == sorted((row["seconds"] for row in slow), reverse=True)
    assert {(row["prompt_id"], row["function"], row["status"], row["step"]) for row in slow[:2]} == {
        ("p3", "judge", TIMEOUT, 4)
    }
    told = (tmp_path / "reward_failures.txt").read_text()
    assert told.count("reward deep failed for the first time") == 1
    assert told.count("reward judge failed for the first time, on prompt p3") == 1
    line = 1 + FUNCTIONS[: FUNCTIONS.index("return {}[text]")].count("\n")
    assert f"KeyError: 'a', at {functions}:{line} in third" in told
    assert "Traceback" in told
    assert sum("reward deep failed for the first time" in record.getMessage() for record in caplog.records) == 1


def test_three_calls_deep_the_users_line_comes_first(start, functions, capsys) -> None:
    """Through the command line's own way of ending: the first ten lines hold the user's file and line."""
    service = start({"deep": {}})
    service.submit([group(f"p{i}", ["a"], chat=False) for i in range(4)], step=0)
    drain(service)
    with pytest.raises(typer.Exit) as stopped:
        guarded(service.metrics)
    assert stopped.value.exit_code == 1
    told = capsys.readouterr().err.split("\n")
    line = 1 + FUNCTIONS[: FUNCTIONS.index("return {}[text]")].count("\n")
    assert told[0].startswith("stopped: reward: 100% of 4 verdicts are errors or timeouts")
    assert told[1] == f"first failure of deep: KeyError: 'a', at {functions}:{line} in third"
    assert f'  File "{functions}", line {line}, in third' in told
    assert len(told) < 40
