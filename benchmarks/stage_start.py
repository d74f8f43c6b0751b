"""Seconds of a sample stage with fresh and with kept engines, and where a stage's seconds go.

    .venv/bin/python -m benchmarks.stage_start [--repeats 3] [--workers 2] [--queries 32]

One Ray session, two random models of one shape (1.05M parameters, float32), asked in turns. ``fresh`` starts its
engines and ends them, ``kept`` takes those of the stage before and gets the other model's weights, verified. Both
answer the same queries with the same tokens, which is checked.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common import report, tiny_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--queries", type=int, default=32)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report("stage_start", **measure(Path(folder), arguments.repeats, arguments.workers, arguments.queries))


def measure(folder: Path, repeats: int, num_workers: int, num_queries: int) -> dict[str, Any]:
    """Median seconds of both arms, and of the parts of each."""
    from model.init import init_model
    from rlplatform.launch import engine_pool, ray_session
    from rlplatform.sample_stage import RESPONSES, sample

    models = [tiny_model(folder), folder / "other"]
    init_model(models[1], folder / "tokenizer", {"tie_word_embeddings": True}, 2048, 1)
    rows = [{"id": str(i), "prompt": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(num_queries)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    seconds: dict[str, list[float]] = {"fresh": [], "kept": []}
    parts: dict[str, dict[str, list[float]]] = {"fresh": {}, "kept": {}}
    answers: dict[int, str] = {}

    def run(arm: str, model: int, *, counts: bool) -> None:
        run_dir = folder / "run"
        shutil.rmtree(run_dir, ignore_errors=True)
        config = _config(str(models[model]), str(folder / "rows.jsonl"), str(run_dir), num_workers)
        with _clock() as spent:
            began = time.perf_counter()
            sample(config)
            whole = time.perf_counter() - began
        text = (run_dir / RESPONSES).read_text()
        if answers.setdefault(model, text) != text:
            raise SystemExit(f"{arm}: expected the answers of the first time, got others")
        if counts:
            seconds[arm].append(whole)
            for name, value in spent.items():
                parts[arm].setdefault(name, []).append(value)

    with ray_session():
        run("fresh", 0, counts=False)  # imports and caches
        for repeat in range(repeats):
            run("fresh", repeat % 2, counts=True)
        with engine_pool():
            run("kept", 0, counts=False)  # starts the engines
            for repeat in range(repeats):
                run("kept", (repeat + 1) % 2, counts=True)
    medians = {arm: median(values) for arm, values in seconds.items()}
    return {
        "fresh_s": round(medians["fresh"], 2),
        "kept_s": round(medians["kept"], 2),
        "ratio": round(medians["fresh"] / medians["kept"], 1),
        "parts_s": {arm: {n: round(median(v), 2) for n, v in spent.items()} for arm, spent in parts.items()},
        "repeats": repeats,
        "workers": num_workers,
        "queries": num_queries,
    }


def _config(model: str, data: str, run_dir: str, num_workers: int) -> Any:
    from rlplatform.configfile import load_values

    return load_values(
        {
            "kind": "sample",
            "name": "sample",
            "run_dir": run_dir,
            "num_samples": 4,
            "metric": "math",
            "model": {"path": model},
            "data": {"path": data, "shuffle": False, "max_prompt_tokens": 64},
            "sampling": {"max_new_tokens": 96},
            "rollout": {"num_workers": num_workers, "cpus_per_worker": 0.5, "kv_cache_gib": 0.5},
            "reward": {"functions": {"math": 0.9, "format": 0.1}},
        }
    )


@contextmanager
def _clock() -> Iterator[dict[str, float]]:
    """Seconds inside the parts of a stage. Reward workers start beside the engines, so parts may add up to more."""
    from unittest.mock import patch

    from actors.fleet import Fleet
    from actors.rollout_fleet import RolloutFleet
    from rlplatform import launch, sample_stage

    spent: dict[str, float] = {}

    def timed(name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                label = f"{name} {args[0].stage}" if isinstance(args[0], Fleet) else name
                spent[label] = spent.get(label, 0.0) + time.perf_counter() - began

        return call

    with (
        patch.object(sample_stage, "graded_prompts", timed("read and probe", sample_stage.graded_prompts)),
        patch.object(launch, "take_fleet", timed("take the engines", launch.take_fleet)),
        patch.object(Fleet, "__post_init__", timed("start", Fleet.__post_init__)),
        patch.object(Fleet, "close", timed("end", Fleet.close)),
        patch.object(RolloutFleet, "generate", timed("generate", RolloutFleet.generate)),
    ):
        yield spent


if __name__ == "__main__":
    main()
