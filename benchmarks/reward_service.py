"""What the reward service costs: latency it adds, throughput on all cores, and what a hostile batch does to both.

    python -m benchmarks.reward_service                      the three figures
    python -m benchmarks.reward_service --run runs/demo/rl   the share of a run's steps spent waiting for verdicts only

The rows are the pairs of tests/data/math_pairs.jsonl, eight answers to a group, graded by `math`:

- *latency*: ``service.score`` of one group of one row, over ``math_reward`` called in this process on the same row;
- *throughput*: all groups at once through one service worker a core, over one process that calls ``math_reward`` row by
  row. By the wall clock, and by the CPU seconds of all processes, which other work on the machine disturbs less;
- *hostile*: 512 rows, four of which no computer algebra system ends, in a pool: seconds beyond the deadline.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.common import report
from benchmarks.math_verdicts import load
from rewards.base import OK, TIMEOUT
from rewards.math import math_reward
from rewards.runner import RewardPool
from rlplatform.config import RewardConfig
from rlplatform.runs import RunFolder
from rlplatform.types import Prompt, Rollout, RolloutGroup

GROUP = 8
HOSTILE = [r"9^{9^{9^{9}}}", r"(10^{9})!", r"7^{10^{9}}", r"\frac{" * 40 + "1" + "}{2}" * 40]


def rows(num_groups: int) -> list[tuple[str, str]]:
    """(completion, reference), eight to a reference: the pairs of that reference, over and over."""
    answers: dict[str, list[str]] = {}
    for row in load():
        answers.setdefault(row["gold"], []).append(rf"<think>a</think>\boxed{{{row['answer']}}}")
    golds = [list(answers)[i] for i in np.random.default_rng(0).permutation(len(answers))]
    return [(answers[gold][i % len(answers[gold])], gold) for gold in golds[:num_groups] for i in range(GROUP)]


def group(number: int, completions: list[str], answer: str) -> RolloutGroup:
    prompt = Prompt(f"p{number}", (), np.array([1], dtype=np.int32), "q", {"answer": answer})
    rollouts = tuple(
        Rollout(
            token_ids=np.zeros(4, dtype=np.int32),
            loss_mask=np.ones(4, dtype=bool),
            rollout_logprobs=np.zeros(4, dtype=np.float32),
            policy_version=np.zeros(4, dtype=np.int32),
            finish="stop",
            text=text,
        )
        for text in completions
    )
    return RolloutGroup(prompt, rollouts, step=0, index=number)


def grade_directly(pairs: list[tuple[str, str]]) -> list[float]:
    """Seconds of each row, in this process."""
    seconds = []
    for completion, answer in pairs:
        began = time.perf_counter()
        math_reward(["q"], [completion], answer=[answer])
        seconds.append(time.perf_counter() - began)
    return seconds


def bare(num_groups: int) -> tuple[float, float]:
    """(wall, CPU) seconds of one fresh process that grades every row."""
    code = (
        "import time; from benchmarks.reward_service import grade_directly, rows\n"
        f"pairs = rows({num_groups}); grade_directly(pairs[:50])\n"
        "wall, cpu = time.perf_counter(), time.process_time(); grade_directly(pairs)\n"
        "print(time.perf_counter() - wall, time.process_time() - cpu)"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    wall, cpu = map(float, done.stdout.split()[-2:])
    return wall, cpu


def cpu_of(pids: list[int]) -> float:
    """CPU seconds so far of processes and all that they started, ended ones too where their parents waited for them."""
    total = 0.0
    for pid in pids:
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def throughput(service: Any, pairs: list[tuple[str, str]], pids: list[int]) -> dict[str, float]:
    groups = [
        group(number, [completion for completion, _ in pairs[start : start + GROUP]], pairs[start][1])
        for number, start in enumerate(range(0, len(pairs), GROUP))
    ]
    before, own, wall = cpu_of(pids), time.process_time(), time.perf_counter()
    service.score(groups, step=0)
    return {
        "wall": time.perf_counter() - wall,
        "workers_cpu": cpu_of(pids) - before,
        "driver_cpu": time.process_time() - own,
    }


def latency(service: Any, pairs: list[tuple[str, str]]) -> dict[str, float]:
    grade_directly(pairs)  # both sides warm
    direct, served = [], []
    for number, (completion, answer) in enumerate(pairs):
        direct += grade_directly([(completion, answer)])
        one = group(number, [completion], answer)
        began = time.perf_counter()
        service.score([one], step=0)
        served.append(time.perf_counter() - began)
    return {"direct_ms": 1e3 * statistics.median(direct), "service_ms": 1e3 * statistics.median(served)}


def hostile(num_processes: int, limit_s: float = 3.0) -> dict[str, Any]:
    answers = ["7", "8", r"\frac{14}{2}", "7.0"] * 128
    places = {50 + 100 * number: answer for number, answer in enumerate(HOSTILE)}
    for place, answer in places.items():
        answers[place] = answer
    answers[500] = "7" * 20_000
    with RewardPool({"math": 1.0}, num_processes, limit_s) as pool:
        began = time.perf_counter()
        verdicts = pool.score(["q"] * 512, [rf"\boxed{{{answer}}}" for answer in answers], {"answer": ["7"] * 512})
        seconds = time.perf_counter() - began
    late = {row for row, verdict in enumerate(verdicts) if verdict.status == TIMEOUT}
    if late != set(places) or any(v.status != OK for row, v in enumerate(verdicts) if row not in places):
        raise SystemExit(f"expected timeouts at {sorted(places)} alone, got {sorted(late)}")
    return {"limit_s": limit_s, "beyond_limit_s": round(seconds - limit_s, 2)}


def critical_share(run: Path) -> None:
    """Of each step but the first: seconds in which the loop only waited for verdicts, over the step's."""
    steps = [row for row in RunFolder(run).read_metrics() if "score/critical_seconds" in row][1:]
    if not steps:
        raise SystemExit(f"{run}: no steps with score/critical_seconds in metrics.jsonl")
    phases = ("generate", "train", "publish")
    shares = [row["score/critical_seconds"] / sum(row[f"time/{phase}"] for phase in phases) for row in steps]
    report(
        "reward seconds on the critical path of a step",
        run=run.name,
        steps=len(steps),
        mean_share=round(float(np.mean(shares)), 4),
        median_share=round(statistics.median(shares), 4),
        max_share=round(max(shares), 4),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a run folder with metrics.jsonl")
    parser.add_argument("--groups", type=int, default=300, help="how many references, with eight answers each")
    arguments = parser.parse_args()
    if arguments.run:
        critical_share(arguments.run)
        return
    import ray

    from actors.reward_service import RewardService

    cores, load_before = os.cpu_count() or 1, os.getloadavg()[0]
    bare_wall, bare_cpu = bare(arguments.groups)
    pairs = rows(arguments.groups)
    ray.init(address="local", num_cpus=cores, include_dashboard=False, log_to_driver=False)
    service = RewardService(RewardConfig(functions={"math": 1.0}, num_workers=cores, timeout_s=20.0))
    try:
        pids = [f.incarnation(w).pid for f in (lane.fleet for lane in service._lanes) for w in f.live_workers]
        throughput(service, pairs[: 50 * GROUP], pids)
        all_rows = throughput(service, pairs, pids)
        delay = latency(service, pairs[::GROUP])
    finally:
        service.close()
        ray.shutdown()
    spent = all_rows["workers_cpu"] + all_rows["driver_cpu"]
    report(
        "reward service",
        rows=len(pairs),
        load_before=round(load_before, 1),
        bare_rows_per_s=round(len(pairs) / bare_wall),
        service_rows_per_s=round(len(pairs) / all_rows["wall"]),
        of_cores_by_wall=round(bare_wall / (cores * all_rows["wall"]), 3),
        of_cores_by_cpu=round(bare_cpu / spent, 3),
        driver_cpu_share=round(all_rows["driver_cpu"] / spent, 3),
        latency={name: round(value, 2) for name, value in delay.items()},
        added_ms=round(delay["service_ms"] - delay["direct_ms"], 2),
        hostile=hostile(cores),
    )


if __name__ == "__main__":
    main()
