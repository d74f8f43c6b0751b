"""The fleet with toy actors: every call is answered once, whatever happens to the actor."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import numpy as np
import pytest
import ray

from actors.fleet import ActorError, Err, Fleet, FleetActor, Ok, WorkerState
from rlplatform.roles import RunStopped


class Counter(FleetActor):
    def __init__(self, start: int) -> None:
        self.value = start
        if start < 0:
            raise ValueError(f"start must be >= 0, got {start}")

    def add(self, amount: int) -> int:
        self.value += amount
        return self.value

    def total(self, array: np.ndarray) -> float:
        return float(array.sum())

    def env(self, name: str) -> str:
        return os.environ.get(name, "")

    def sleep(self, seconds: float) -> str:
        time.sleep(seconds)
        return "slept"

    def fail(self) -> None:
        raise KeyError("no such row")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def make(start: int = 0, **options) -> Fleet[Counter]:
    options = {"num_workers": 2, "cpus": 0.5, "call_timeout_s": 30.0, "start_timeout_s": 60.0} | options
    return Fleet(Counter, "counting", actor_args=lambda worker: (start + worker,), **options)


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet[Counter]]:
    fleet = make(env={"COUNTER_COLOUR": "blue"}, max_restarts=5)
    yield fleet
    fleet.close()


def drain(fleet: Fleet[Counter], calls: set[int], timeout_s: float) -> dict[int, Ok | Err]:
    """Replies of exactly ``calls``; each is there once."""
    results: dict[int, Ok | Err] = {}
    deadline = time.monotonic() + timeout_s
    while calls - results.keys():
        assert time.monotonic() < deadline, f"no answer to {calls - results.keys()}"
        for reply in fleet.ready(1.0):
            assert reply.call not in results
            results[reply.call] = reply.result
    assert results.keys() == calls
    return results


def wait_until_live(fleet: Fleet[Counter], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while len(fleet.live_workers) < fleet.num_workers:
        assert time.monotonic() < deadline
        assert fleet.ready(0.5) == []


def test_calls_are_typed_and_answered_by_the_worker_they_were_sent_to(fleet: Fleet[Counter]) -> None:
    first = [fleet.call(worker, Counter.add, 0) for worker in fleet.live_workers]
    assert first == [0, 1]
    calls = {fleet.call_async(worker, Counter.add, 10): worker for worker in (0, 1, 1)}
    results = drain(fleet, set(calls), 20.0)
    by_worker = sorted((calls[call], result.value) for call, result in results.items())
    assert by_worker == [(0, 10), (1, 11), (1, 21)]
    assert fleet.call(1, Counter.env, "COUNTER_COLOUR") == "blue"


def test_an_object_reference_arrives_as_its_value(fleet: Fleet[Counter]) -> None:
    assert fleet.call(0, Counter.total, ray.put(np.arange(5.0))) == 10.0


def test_an_exception_is_a_value_with_its_line_and_the_actor_stays(fleet: Fleet[Counter]) -> None:
    before = fleet.incarnation(0)
    call = fleet.call_async(0, Counter.fail)
    result = drain(fleet, {call}, 20.0)[call]
    assert isinstance(result, Err)
    assert not result.lost
    assert result.error_type == "KeyError"
    assert "test_fleet.py" in result.traceback
    with pytest.raises(ActorError, match=r"counting: Counter counting-0 .*fail: KeyError") as error:
        fleet.call(0, Counter.fail)
    assert "test_fleet.py" in "\n".join(str(error.value).splitlines()[:10])
    assert fleet.incarnation(0) == before
    assert fleet.live_workers == [0, 1]


def test_waiting_for_one_call_loses_no_reply_of_another(fleet: Fleet[Counter]) -> None:
    quick = fleet.call_async(0, Counter.add, 0)
    slow = fleet.call_async(1, Counter.sleep, 0.3)
    assert fleet.call_each([0, 1], Counter.sleep, 0.1) == {0: Ok("slept"), 1: Ok("slept")}
    assert set(drain(fleet, {quick, slow}, 20.0)) == {quick, slow}


def test_a_killed_actor_answers_every_call_once_and_comes_back_new(fleet: Fleet[Counter]) -> None:
    restarted: list[int] = []

    def on_restart(worker: int) -> None:
        assert fleet._workers[worker].state is WorkerState.RESTORING
        assert fleet.call(worker, Counter.add, 100) == 100 + worker  # a fresh state, and it answers already
        restarted.append(worker)

    fleet.on_restart = on_restart
    old = fleet.incarnation(1)
    calls = {fleet.call_async(1, Counter.sleep, 5.0) for _ in range(3)} | {fleet.call_async(0, Counter.sleep, 0.1)}
    time.sleep(0.5)
    os.kill(old.pid, signal.SIGKILL)
    results = drain(fleet, calls, 20.0)
    lost = [r for r in results.values() if isinstance(r, Err)]
    assert len(lost) == 3
    assert all(r.lost and "counting-1" in r.message for r in lost)
    with pytest.raises(ActorError, match="not in service"):
        fleet.call_async(1, Counter.add, 1)
    wait_until_live(fleet)
    assert restarted == [1]
    assert fleet.incarnation(1).id != old.id
    assert fleet.num_restarts == 1
    fleet.on_restart = None


def test_a_stopped_process_is_killed_at_the_deadline_and_restarted(fleet: Fleet[Counter]) -> None:
    old = fleet.incarnation(0)
    fleet.call_timeout_s = 3.0
    try:
        os.kill(old.pid, signal.SIGSTOP)
        call = fleet.call_async(0, Counter.add, 1)
        result = drain(fleet, {call}, 15.0)[call]
        assert isinstance(result, Err)
        assert result.lost
        assert "add passed its deadline of 3 s" in result.message
        wait_until_live(fleet)
        assert fleet.incarnation(0).pid != old.pid
        assert fleet.call(0, Counter.add, 1) == 1
    finally:
        fleet.call_timeout_s = 30.0


def test_a_call_that_hangs_leaves_its_stack_in_the_actors_log(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RLPLATFORM_LOG_DIR", str(tmp_path))
    fleet = make(num_workers=1, call_timeout_s=2.0)
    call = fleet.call_async(0, Counter.sleep, 60.0)
    result = drain(fleet, {call}, 20.0)[call]
    assert isinstance(result, Err)
    assert "deadline of 2 s" in result.message
    fleet.close()
    log = (tmp_path / "counting-0.log").read_text()
    assert "Timeout (0:00:01.8" in log
    assert "test_fleet.py" in log
    assert "in sleep" in log


def test_closing_ends_a_stopped_process_too() -> None:
    fleet = make(num_workers=1)
    pid = fleet.incarnation(0).pid
    os.kill(pid, signal.SIGSTOP)
    fleet.close()
    time.sleep(0.2)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_one_loss_too_many_stops_the_run_and_close_leaves_no_process() -> None:
    fleet = make(num_workers=1, max_restarts=0)
    pid = fleet.incarnation(0).pid
    fleet.call_async(0, Counter.sleep, 5.0)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(RunStopped, match=r"counting-0 .* was lost 1 times, max_restarts=0"):
        wait_until_live(fleet, 20.0) or fleet.ready(20.0)
    fleet.close()
    other = make()
    pids = [other.incarnation(worker).pid for worker in (0, 1)]
    other.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_constructor_that_raises_is_an_error_naming_the_actor() -> None:
    with pytest.raises(ActorError, match=r"(?s)counting-0 .*could not start.*start must be >= 0, got -5"):
        make(start=-5)


def test_demand_above_supply_is_an_error_within_ten_seconds() -> None:
    started = time.monotonic()
    with pytest.raises(RunStopped) as error:
        make(num_workers=3, cpus=1.0, change="rollout.num_workers or rollout.cpus_per_worker")
    assert time.monotonic() - started < 10.0
    text = str(error.value)
    assert "demand  counting: 3 x (CPU 1)" in text
    assert "supply" in text
    assert "CPU 2" in text
    assert "rollout.num_workers or rollout.cpus_per_worker" in text
    with pytest.raises(RunStopped, match="GPU 1"):
        make(num_workers=1, gpus=1.0)


def test_a_full_cluster_is_an_error_that_says_what_is_free(fleet: Fleet[Counter]) -> None:
    deadline = time.monotonic() + 20.0
    while ray.available_resources().get("CPU") != 1.0:  # what the fleets closed above held is free again
        assert time.monotonic() < deadline, ray.available_resources()
        time.sleep(0.1)
    with pytest.raises(RunStopped, match=r"no place for 2 x .* only CPU 1,"):
        make(num_workers=2, cpus=1.0, placement_timeout_s=0.5)
