"""The reward service on real Ray actors: verdicts, lost workers, error rates, and pools inside actors."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray

from actors.reward_service import RewardService
from rewards.base import ERROR, OK, TIMEOUT, RewardLoadError
from rewards.runner import RewardPool
from rlplatform.config import RewardConfig
from rlplatform.roles import RunStopped
from rlplatform.types import Prompt, Rollout, RolloutGroup, ScoredGroup

FUNCTIONS = """
import os, signal, time
import psutil
from my_helper import HALF

def inspect_inputs(prompts, completions, completion_ids, trainer_state, prompt_text, level, log_extra, log_metric):
    log_extra("kind", [type(p).__name__ for p in prompts])
    log_metric("rows", len(completions))
    return [HALF + len(i) + 100 * trainer_state.global_step + 1000 * l + 10000 * len(t)
            for i, l, t in zip(completion_ids, level, prompt_text)]

def behave(completions, mode, **kw):
    for m in mode:
        if m == "raise": raise KeyError("no such key")
        if m == "sleep": time.sleep(600)
        if m == "nap": time.sleep(0.2)
        if m == "kill actor":  # child -> fork server -> actor
            os.kill(psutil.Process(os.getppid()).ppid(), signal.SIGKILL)
            time.sleep(600)
    return [1.0] * len(completions)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("user")
    (folder / "my_helper.py").write_text("HALF = 0.5\n")
    (folder / "my_rewards.py").write_text(FUNCTIONS)
    return folder / "my_rewards.py"


def group(prompt_id: str, texts: list[str], *, chat: bool = True, index: int = 0, **columns: object) -> RolloutGroup:
    messages = ({"role": "user", "content": "3+4?"},) if chat else ()
    prompt = Prompt(prompt_id, messages, np.arange(1, 4, dtype=np.int32), "user: 3+4?\nassistant:", columns)
    rollouts = tuple(
        Rollout(
            token_ids=np.arange(len(text), dtype=np.int32),
            loss_mask=np.ones(len(text), dtype=bool),
            rollout_logprobs=np.zeros(len(text), dtype=np.float32),
            policy_version=np.zeros(len(text), dtype=np.int32),
            finish="stop",
            text=text,
        )
        for text in texts
    )
    return RolloutGroup(prompt, rollouts, step=5, index=index)


def drain(service: RewardService, timeout_s: float = 60.0) -> dict[str, ScoredGroup]:
    """Poll until nothing is pending; every group comes back once."""
    scored: dict[str, ScoredGroup] = {}
    deadline = time.monotonic() + timeout_s
    while service.num_pending and time.monotonic() < deadline:
        for one in service.poll(0.5):
            assert one.group.prompt.prompt_id not in scored
            scored[one.group.prompt.prompt_id] = one
    assert service.num_pending == 0
    return scored


@pytest.fixture(scope="module")
def service(cluster: None, functions: Path) -> Iterator[RewardService]:
    service = RewardService(
        RewardConfig(functions={f"{functions}:behave": 1.0}, num_workers=2, timeout_s=1.0, max_error_rate=0.5)
    )
    yield service
    service.close()


def worker_pids(service: RewardService) -> list[int]:
    fleets = [lane.fleet for lane in service._lanes]
    return [fleet.incarnation(worker).pid for fleet in fleets for worker in fleet.live_workers]


def test_built_in_rewards_over_many_groups(cluster: None) -> None:
    config = RewardConfig(functions={"math": 1.0, "format": 0.25}, num_workers=1, processes_per_worker=2)
    service = RewardService(config)
    try:
        texts = [r"<think>a</think>\boxed{7}", r"\boxed{7}", r"<think>a</think>\boxed{8}", "7"]
        groups = [group(f"p{i}", texts, index=i, answer="7") for i in range(12)]
        service.submit(groups[:5], step=5)
        service.submit([*groups[5:], group("empty", [])], step=5)
        assert service.num_pending == 13
        scored = drain(service)
        assert len(scored) == 13
        assert scored["empty"].verdicts == ()
        for i in range(12):
            verdicts = scored[f"p{i}"].verdicts
            assert [v.score for v in verdicts] == [1.25, 1.0, 0.25, 0.0]
            assert [dict(v.parts) for v in verdicts[:2]] == [{"math": 1.0, "format": 1.0}, {"math": 1.0, "format": 0.0}]
            assert scored[f"p{i}"].group.index == i
        metrics = service.metrics()
        assert metrics["score/error_rate"] == 0.0
        assert 0 < metrics["score/seconds_p50"] <= metrics["score/seconds_p99"]
        assert metrics["score/restarts"] == 0.0
        assert service.metrics()["score/seconds_p99"] == 0.0  # a window of its own
        assert service.poll(0.0) == []
        versions = service.versions()
        assert versions["packages"]["math-verify"]
        assert versions["functions"]["math"]["function"] == "math"
        assert len(versions["functions"]["math"]["source"]) == 12
        assert versions["functions"]["math"]["package"].startswith("rlplatform ")
        pids = [p.pid for pid in worker_pids(service) for p in psutil.Process(pid).children(recursive=True)]
        assert len(pids) == 3  # a fork server and two workers
    finally:
        service.close()
    assert [pid for pid in pids if psutil.pid_exists(pid)] == []


def test_what_functions_are_given(cluster: None, functions: Path) -> None:
    service = RewardService(RewardConfig(functions={f"{functions}:inspect_inputs": 1.0}))
    try:
        service.submit(
            [group("chat", ["ab", "abcd"], level=1), group("raw", ["a"], chat=False, level=2)],
            step=3,
        )
        scored = drain(service)
        length = len("user: 3+4?\nassistant:")
        expected = [0.5 + n + 300 + 1000 + 10000 * length for n in (2, 4)]
        assert [v.parts["inspect_inputs"] for v in scored["chat"].verdicts] == expected
        assert [v.detail for v in scored["chat"].verdicts] == ["kind: list"] * 2
        assert scored["raw"].verdicts[0].detail == "kind: str"
        assert service.metrics()["score/custom/rows"] == pytest.approx(1.5)
    finally:
        service.close()


def test_a_name_that_does_not_resolve_starts_no_actor(cluster: None, functions: Path) -> None:
    before = ray.available_resources()
    with pytest.raises(RewardLoadError, match="did you mean 'behave'"):
        RewardService(RewardConfig(functions={f"{functions}:behav": 1.0}))
    assert ray.available_resources() == before


def test_one_bad_row_among_groups(service: RewardService) -> None:
    service.submit([group(f"p{i}", ["x"] * 3, mode="ok") for i in range(8)], step=0)
    service.submit([group("slow", ["x"], mode="sleep"), group("bad", ["x"], mode="raise")], step=0)
    scored = drain(service)
    statuses = {name: [v.status for v in one.verdicts] for name, one in scored.items()}
    assert statuses == {**{f"p{i}": [OK] * 3 for i in range(8)}, "slow": [TIMEOUT], "bad": [ERROR]}
    assert "KeyError" in scored["bad"].verdicts[0].detail
    metrics = service.metrics()
    assert metrics["score/error_rate"] == pytest.approx(2 / 26)
    assert metrics["score/restarts"] >= 1


@pytest.mark.parametrize("name", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_worker_costs_no_group(cluster: None, functions: Path, name: signal.Signals) -> None:
    config = RewardConfig(functions={f"{functions}:behave": 1.0}, num_workers=2, timeout_s=2.0, call_timeout_s=6.0)
    service = RewardService(config)
    try:
        service.submit([group(f"p{i}", ["x"] * 2, mode="nap") for i in range(8)], step=0)
        victim = worker_pids(service)[0]
        os.kill(victim, name)
        scored = drain(service)
        assert len(scored) == 8
        assert all(v.status == OK for one in scored.values() for v in one.verdicts)
        assert service.metrics()["score/restarts"] >= 1
        service.submit([group(f"q{i}", ["x"], mode="ok") for i in range(4)], step=1)
        assert len(drain(service)) == 4
    finally:
        service.close()


def test_a_group_that_kills_its_worker_twice_is_an_error(service: RewardService) -> None:
    service.metrics()
    service.submit([group("poison", ["x"] * 2, mode="kill actor"), group("fine", ["x"] * 2, mode="ok")], step=0)
    scored = drain(service)
    assert [v.status for v in scored["fine"].verdicts] == [OK, OK]
    assert [v.status for v in scored["poison"].verdicts] == [ERROR, ERROR]
    assert "prompt poison" in scored["poison"].verdicts[0].detail
    service.metrics()


def test_the_error_rate_stops_the_run_with_the_first_traceback(service: RewardService, functions: Path) -> None:
    service.metrics()
    service.submit([group(f"p{i}", ["x"] * 2, mode="raise" if i < 3 else "ok") for i in range(5)], step=0)
    drain(service)
    with pytest.raises(RunStopped) as caught:
        service.metrics()
    message = str(caught.value)
    assert "60% of 10 verdicts are errors or timeouts" in message
    assert "reward.max_error_rate=0.5" in message
    assert any(f'File "{functions}", line' in line for line in message.split("\n")[:10])
    assert "KeyError: 'no such key'" in message


def test_a_hopeless_error_rate_stops_the_run_at_once(cluster: None, functions: Path) -> None:
    service = RewardService(RewardConfig(functions={f"{functions}:behave": 1.0}, max_error_rate=0.2))
    try:
        service.submit([group(f"p{i}", ["x"] * 4, mode="raise") for i in range(10)], step=0)
        with pytest.raises(RunStopped, match="verdicts are errors or timeouts"):
            drain(service)
    finally:
        service.close()


# --- a pool inside an actor -----------------------------------------------------------------------------------------


HOSTILE = [r"9^{9^{9^{9}}}", r"(10^{9})!", r"7^{10^{9}}", r"\frac{" * 40 + "1" + "}{2}" * 40]


def batch() -> tuple[list[str], list[str]]:
    """512 answers and what becomes of each: hostile ones, 20,000 digits, and rows that math-verify alone would answer
    differently in a thread."""
    answers = ["7", "8", r"\frac{14}{2}", "7.0"] * 128
    statuses = [OK] * 512
    for number, answer in enumerate(HOSTILE):
        answers[50 + 100 * number], statuses[50 + 100 * number] = answer, TIMEOUT
    answers[500] = "7" * 20_000
    return answers, statuses


def outcomes(pool: RewardPool) -> list[tuple[float, str]]:
    answers, _ = batch()
    verdicts = pool.score(["q"] * 512, [rf"\boxed{{{a}}}" for a in answers], {"answer": ["7"] * 512})
    assert pool.num_idle == pool.num_processes == 2
    processes = psutil.Process(pool.pids()[0]).children(recursive=True)
    assert {process.pid for process in processes} == set(pool.pids()[1:])  # no zombie, nothing left behind
    return [(v.score, v.status) for v in verdicts]


def test_same_scores_from_main_thread_thread_and_async_actor(cluster: None) -> None:
    @ray.remote(num_cpus=0)
    class AsyncActor:
        async def score(self) -> tuple[list[tuple[float, str]], list[tuple[float, str]]]:
            with RewardPool({"math": 1.0}, 2, timeout_s=3.0) as pool:
                return outcomes(pool), await asyncio.to_thread(outcomes, pool)

    answers, statuses = batch()
    right = ("7", r"\frac{14}{2}", "7.0")
    expected = [(float(answer in right), status) for answer, status in zip(answers, statuses, strict=True)]
    in_thread: list[list[tuple[float, str]]] = []
    with RewardPool({"math": 1.0}, 2, timeout_s=3.0) as pool:
        assert outcomes(pool) == expected
        thread = threading.Thread(target=lambda: in_thread.append(outcomes(pool)))
        thread.start()
        thread.join(timeout=120)
    assert in_thread == [expected]
    actor = AsyncActor.remote()
    assert ray.get(actor.score.remote(), timeout=240) == (expected, expected)
    ray.kill(actor)
