"""Async functions row by row, and limits: many rows at a time, never more than allowed, one bad row, one bad status."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from rewards.base import ERROR, OK, TIMEOUT, RewardLoadError
from rewards.limits import RowLimit
from rewards.runner import RewardPool

FUNCTIONS = '''
import asyncio, json, os, signal, sys, time
from rewards.base import rowwise

lock = asyncio.Lock()  # belongs to the first event loop that uses it

def write(log, **what):
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, json.dumps(what).encode() + b"\\n")
    os.close(descriptor)

@rowwise
async def watched(completions, *, log, seconds=0.2):
    write(log, event=1, at=time.monotonic())
    await asyncio.sleep(seconds)
    write(log, event=-1, at=time.monotonic())
    return [1.0]

@rowwise
def watched_sync(completions, *, log, seconds=0.2):
    write(log, event=1, at=time.monotonic())
    time.sleep(seconds)
    write(log, event=-1, at=time.monotonic())
    return [1.0]

@rowwise
async def behave(completions, mode, trainer_state, log_extra, log_metric):
    (mode,) = mode
    log_extra("mode", [mode])
    log_metric("step", trainer_state.global_step)
    await asyncio.sleep(0.01)
    if mode == "raise":
        raise KeyError("no such key")
    if mode == "late":
        await deep()
    if mode == "own timeout":
        raise TimeoutError("of its own")
    if mode == "deaf":
        while True:
            try:
                await asyncio.sleep(600)
            except asyncio.CancelledError:
                pass
    if mode == "block":
        time.sleep(600)
    if mode == "stubborn":
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        while True: pass
    if mode == "exit":
        os._exit(3)
    if mode == "sys.exit":
        sys.exit(0)
    if mode == "count":
        return [1.0, 2.0]
    if mode == "none":
        return [None]
    return [1.0]

async def deep():
    await asyncio.sleep(600)

@rowwise
async def locks(completions):
    async with lock:
        await asyncio.sleep(0)
    return [1.0]

@rowwise
async def naps(completions):
    """Blocks the loop for a while, though not for its deadline."""
    if completions[0] == "block":
        time.sleep(0.7)
    await asyncio.sleep(0.4)
    return [1.0]

def batch(completions): return [1.0] * len(completions)
async def async_batch(completions): return [1.0] * len(completions)
'''


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("user") / "async_functions.py"
    path.write_text(FUNCTIONS)
    return path


@pytest.fixture
def pool(functions: Path) -> Iterator[Callable[..., RewardPool]]:
    pools = []

    def make(name: str, *, num_processes: int = 1, timeout_s: float = 5.0, **part: Any) -> RewardPool:
        pools.append(RewardPool({f"{functions}:{name}": part}, num_processes, timeout_s))
        return pools[-1]

    yield make
    for made in pools:
        assert made.num_idle == made.num_processes
        processes = psutil.Process(made.pids()[0]).children(recursive=True)
        assert {p.pid for p in processes} == set(made.pids()[1:])
        made.close()


def events(log: Path) -> list[tuple[float, int]]:
    """(time, +1 at the start of a row, -1 at its end), in order."""
    return sorted((e["at"], e["event"]) for e in map(json.loads, log.read_text().splitlines()))


def most_at_once(log: Path) -> int:
    running = most = 0
    for _, change in events(log):
        running += change
        most = max(most, running)
    return most


def score(pool: RewardPool, modes: list[str]) -> Any:
    rows = ["p"] * len(modes), ["c"] * len(modes), {"mode": modes}
    return pool.score_detailed(*rows, trainer_state={"global_step": 3})


def test_rows_run_side_by_side_and_never_more_than_allowed(pool, tmp_path):
    made = pool("watched", args={"log": str(tmp_path / "log")}, concurrency=4)
    assert [v.score for v in made.score(["p"] * 20, ["c"] * 20)] == [1.0] * 20
    assert 2 <= most_at_once(tmp_path / "log") <= 4


def test_sixteen_at_a_time_where_nothing_is_said(pool, tmp_path):
    made = pool("watched", args={"log": str(tmp_path / "log"), "seconds": 0.5})
    made.score(["p"] * 40, ["c"] * 40)
    assert 4 <= most_at_once(tmp_path / "log") <= 16


@pytest.mark.parametrize("name", ["watched", "watched_sync"])
def test_a_limit_holds_over_threads_and_processes(pool, tmp_path, name):
    """Slow rows of a sync function leave their places to fresh processes; the limit counts them on."""
    made = pool(name, args={"log": str(tmp_path / "log"), "seconds": 0.4}, num_processes=4, concurrency=2)
    threads = [threading.Thread(target=made.score, args=(["p"] * 4, ["c"] * 4)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(events(tmp_path / "log")) == 24
    assert most_at_once(tmp_path / "log") == 2


@pytest.mark.parametrize("name", ["watched", "watched_sync"])
def test_rows_a_second(pool, tmp_path, name):
    """20 a second; a row's clock (0.6 s) does not run while it waits for its turn (up to 1 s)."""
    made = pool(
        name, args={"log": str(tmp_path / "log"), "seconds": 0.0}, num_processes=3, timeout_s=0.6, per_second=20.0
    )
    assert [v.status for v in made.score(["p"] * 20, ["c"] * 20)] == [OK] * 20
    starts = [at for at, event in events(tmp_path / "log") if event == 1]
    for i, first in enumerate(starts):
        # Permits are a twentieth of a second apart; a row may start late, and then the next seems to follow closely.
        assert sum(at - first < 0.5 for at in starts[i:]) <= 12
    assert starts[-1] - starts[0] >= 19 / 20 - 0.15


def test_permits_are_never_closer_than_allowed():
    limit, times = RowLimit(per_second=200.0), [time.monotonic()]
    while len(times) < 30:
        if limit.take():
            times.append(time.monotonic())
            limit.give_back()
        time.sleep(min(limit.delay_s(), 0.001))
    assert times[-1] - times[0] >= 29 / 200  # the first one waits as well
    assert RowLimit(concurrency=1).delay_s() == 0.0


def test_places_come_back():
    limit = RowLimit(concurrency=2)
    assert [limit.take(), limit.take(), limit.take()] == [True, True, False]
    assert limit.delay_s() == float("inf")
    limit.give_back()
    assert limit.take()


MODES = ["ok", "raise", "late", "own timeout", "sys.exit", "count", "none", "ok"]
STATUSES = ["ok", "error", "timeout", "error", "error", "error", "not_applicable", "ok"]


def test_one_bad_row_has_one_bad_status(pool, functions):
    made = pool("behave", timeout_s=1.5)
    scored = score(made, MODES)
    assert [v.status for v in scored.verdicts] == STATUSES
    details = [v.detail for v in scored.verdicts]
    lines = [FUNCTIONS[: FUNCTIONS.index(code)].count("\n") + 1 for code in ('raise KeyError("no', "await deep()")]
    assert f'File "{functions}", line {lines[0]}, in behave' in details[1]
    assert details[1].endswith("KeyError: 'no such key'")
    assert f"past its deadline, in {functions}:{lines[1]} (behave), at {functions}:" in details[2]
    assert "TimeoutError: of its own" in details[3]
    assert "expected 1 scores, one a row, got 2" in details[5]
    assert scored.extras["mode"][-1] == "ok"
    assert scored.metrics == {"step": 3.0}
    assert "Traceback" in scored.tracebacks["behave"]
    assert str(functions) in scored.tracebacks["behave"]
    assert made.num_restarts == 0  # all of this happened in one process


@pytest.mark.parametrize(
    ("mode", "status"), [("block", TIMEOUT), ("stubborn", TIMEOUT), ("exit", ERROR), ("deaf", TIMEOUT)]
)
def test_a_row_that_takes_its_worker_with_it(pool, functions, mode, status):
    """A blocked loop, one that takes no signal, a process that ends, a coroutine that ignores its cancellation."""
    made = pool("behave", timeout_s=1.0)
    modes = ["ok"] * 6 + [mode] + ["ok"] * 6 + [mode] * (mode == "exit") + ["ok"] * 6
    verdicts = score(made, modes).verdicts
    assert [v.status for v in verdicts] == [status if m == mode else OK for m in modes]
    assert made.num_restarts > 0
    if mode == "block":
        assert f"{functions}:" in verdicts[6].detail
        assert "(behave)" in verdicts[6].detail


def test_a_row_that_blocks_for_a_while_costs_the_others_nothing(pool):
    made = pool("naps", timeout_s=0.9)
    assert [v.status for v in made.score(["p"] * 6, ["x", "x", "x", "block", "x", "x"])] == [OK] * 6


def test_one_event_loop_for_the_life_of_a_worker(pool):
    made = pool("locks")
    for _ in range(2):
        assert [v.status for v in made.score(["p"] * 3, ["c"] * 3)] == [OK] * 3


@pytest.mark.parametrize("name", ["batch", "async_batch"])
@pytest.mark.parametrize("limit", ["concurrency", "per_second"])
def test_limits_need_rows(functions, name, limit):
    with pytest.raises(RewardLoadError, match=rf"{name}\.{limit}: a limit counts rows.*mark it @rowwise"):
        RewardPool({f"{functions}:{name}": {limit: 2}})
