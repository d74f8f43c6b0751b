"""Tokens per second through the rollout fleet over bare vLLM on the same requests and the same number of engines.

    .venv/bin/python -m benchmarks.rollout_throughput [MODEL_FOLDER] [--workers 2]

Both sides run in the same actors, in turns: ``RolloutFleet.generate`` from the driver, and a loop of ``add_request``
and ``step`` that keeps nothing but token counts, each engine with its share of the requests. The best round of each
side counts, because whatever else runs on the machine only ever slows a round down; the medians stand beside it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks import common
from rlplatform.config import ModelConfig, RolloutConfig
from rlplatform.seeds import request_seed
from rlplatform.types import GenerationRequest, Prompt, SamplingParams


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="a Hugging Face folder; the tiny model when left out")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=48)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--smoke", action="store_true", help="one round of four prompts")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.prompts, arguments.rounds = 4, 1
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or str(common.tiny_model(Path(folder)))
        common.report("rollout_throughput", model=arguments.model or "tiny", **measure(model, arguments))


def measure(model: str, arguments: argparse.Namespace) -> dict[str, Any]:
    import ray

    from actors.rollout_fleet import RolloutFleet

    sampling = SamplingParams(max_new_tokens=arguments.new_tokens)
    rng = np.random.default_rng(0)
    ids = [rng.integers(10, 500, arguments.prompt_tokens).astype(np.int32) for _ in range(arguments.prompts)]
    requests = [
        GenerationRequest(
            Prompt(f"p{i}", (), ids[i], ""), arguments.samples, 0, i, request_seed(0, 0, i, arguments.samples)
        )
        for i in range(arguments.prompts)
    ]
    ray.init(address="local", num_cpus=arguments.workers, include_dashboard=False, log_to_driver=False)
    worker_class = _worker()
    fleet = RolloutFleet(
        model,
        ModelConfig(path=model),
        RolloutConfig(num_workers=arguments.workers),
        sampling,
        arguments.prompt_tokens + arguments.new_tokens,
        seed=0,
        worker_class=worker_class,
    )
    try:
        fleet_rates, bare_rates = [], []
        for round_ in range(arguments.rounds + 1):
            began = time.perf_counter()
            groups = fleet.generate(requests)
            fleet_s = time.perf_counter() - began
            num_tokens = sum(len(rollout) for group in groups for rollout in group.rollouts)

            shares = [requests[i :: arguments.workers] for i in range(arguments.workers)]
            calls = [fleet.workers.call_async(i, worker_class.bare, share, sampling) for i, share in enumerate(shares)]
            answers: list[Any] = [fleet.workers.wait(call) for call in calls]
            bare_s = max(answer.value[0] for answer in answers)
            bare_tokens = sum(answer.value[1] for answer in answers)
            if bare_tokens != num_tokens:
                raise RuntimeError(f"the two sides sampled {num_tokens} and {bare_tokens} tokens from the same seeds")
            if round_:  # the first round warms up
                fleet_rates.append(num_tokens / fleet_s)
                bare_rates.append(num_tokens / bare_s)
        return {
            "workers": arguments.workers,
            "prompts_x_samples": f"{arguments.prompts} x {arguments.samples}",
            "prompt_and_new_tokens": f"{arguments.prompt_tokens} + {arguments.new_tokens}",
            "tokens": num_tokens,
            "fleet_tokens_per_s": round(max(fleet_rates)),
            "bare_vllm_tokens_per_s": round(max(bare_rates)),
            "ratio": round(max(fleet_rates) / max(bare_rates), 2),
            "median_fleet_tokens_per_s": round(median(fleet_rates)),
            "median_bare_vllm_tokens_per_s": round(median(bare_rates)),
        }
    finally:
        fleet.close()
        ray.shutdown()


def _worker() -> Any:
    from actors.rollout_worker import RolloutWorker

    class Worker(RolloutWorker):
        def bare(self, requests: Sequence[GenerationRequest], sampling: SamplingParams) -> tuple[float, int]:
            """Seconds and tokens of plain vLLM on these requests."""
            from vllm.inputs import tokens_input

            from actors.vllm_arguments import engine_sampling

            began = time.perf_counter()
            for i, request in enumerate(requests):
                prompt = tokens_input(request.prompt.token_ids.tolist())
                params = engine_sampling(sampling, request.num_samples, request.seed, self._stop_ids)
                self._engine.add_request(str(i), prompt, params)
            num_tokens = 0
            while self._engine.has_unfinished_requests():
                for output in self._engine.step():
                    num_tokens += sum(len(completion.token_ids) for completion in output.outputs)
            return time.perf_counter() - began, num_tokens

    return Worker


if __name__ == "__main__":
    main()
