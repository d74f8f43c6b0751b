"""How long a publish takes, verification on, over the least it can: one bare reload plus one copy of the bytes.

    .venv/bin/python -m benchmarks.publish_time [MODEL_FOLDER] [--workers 1]

Everything is timed in one run and on one engine's actor: a publish from gathering in the learner's process to the
return of ``WeightSync.publish``; and ``reload_weights`` of the same tensors with the cures that make it right on CPU.
The best of each counts, because whatever else runs on the machine only ever slows it down; medians stand beside it.
Without a folder: the 1.05M-parameter tiny model.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks import common
from rlplatform.config import ModelConfig, PublishConfig, RolloutConfig
from rlplatform.types import SamplingParams


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="a Hugging Face folder; the tiny model when left out")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--publishes", type=int, default=10)
    parser.add_argument("--smoke", action="store_true", help="two publishes")
    arguments = parser.parse_args()
    num_publishes = 2 if arguments.smoke else arguments.publishes
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or str(common.tiny_model(Path(folder)))
        common.report(
            "publish_time", model=arguments.model or "tiny", **measure(model, arguments.workers, num_publishes)
        )


def measure(model: str, num_workers: int, num_publishes: int) -> dict[str, Any]:
    import ray

    from actors.fleet import Fleet
    from actors.rollout_fleet import RolloutFleet
    from actors.weight_sync import WeightSync

    ray.init(address="local", num_cpus=num_workers + 1, include_dashboard=False, log_to_driver=False)
    source_class, worker_class = _actors()
    config = RolloutConfig(num_workers=num_workers, kv_cache_gib=0.25)
    fleet = RolloutFleet(
        model, ModelConfig(path=model), config, SamplingParams(max_new_tokens=8), 64, seed=0, worker_class=worker_class
    )
    sources: Any = Fleet(source_class, "learner", 1, actor_args=lambda _: (model,), env={"OMP_NUM_THREADS": "1"})

    class Learner:
        def gather_weights(self) -> Any:
            return sources.call(0, source_class.gather)[0]

    try:
        learner = Learner()
        workers = fleet.workers.live_workers
        probes = WeightSync(fleet, PublishConfig(full_verify_max_mib=0, full_verify_every=0))
        exact = WeightSync(fleet, PublishConfig(full_verify_max_mib=1 << 20))
        publish_s: list[float] = []
        exact_s: list[float] = []
        bare_s: list[float] = []
        copy_s: list[float] = []
        is_small = False
        for number in range(num_publishes + 2):
            metrics = exact.publish(learner, number)
            is_small = metrics["publish/bytes"] <= PublishConfig().full_verify_max_mib * 2**20
            exact_s.append(metrics["publish/seconds"])
            publish_s.append(probes.publish(learner, number)["publish/seconds"])
            bare, copy = zip(
                *(
                    result.value
                    for result in fleet.workers.call_each(workers, worker_class.bare, learner.gather_weights()).values()
                ),
                strict=True,
            )
            bare_s.append(max(bare))
            copy_s.append(max(copy))
        publish_s, exact_s, bare_s, copy_s = (times[2:] for times in (publish_s, exact_s, bare_s, copy_s))
        usual = exact_s if is_small else publish_s  # what PublishConfig's defaults do nine times of ten
        floor = min(bare_s) + min(copy_s)
        return {
            "mib": round(metrics["publish/bytes"] / 2**20, 1),
            "workers": num_workers,
            "publish_ms": round(1e3 * min(usual), 1),
            "verification": "exact" if is_small else "probes",
            "exact_publish_ms": round(1e3 * min(exact_s), 1),
            "bare_reload_ms": round(1e3 * min(bare_s), 1),
            "copy_ms": round(1e3 * min(copy_s), 1),
            "ratio": round(min(usual) / floor, 2),
            "median_publish_ms": round(1e3 * median(usual), 1),
            "median_bare_reload_ms": round(1e3 * median(bare_s), 1),
        }
    finally:
        sources.close()
        fleet.close()
        ray.shutdown()


def _actors() -> tuple[Any, Any]:
    """The two actor classes, made here so that importing this file starts nothing."""
    from actors.fleet import FleetActor
    from actors.rollout_worker import RolloutWorker

    class Source(FleetActor):
        """Holds a checkpoint's tensors and hands out the payload, as the learner's rank 0 does."""

        def __init__(self, model: str) -> None:
            from safetensors.torch import load_file

            self._state = load_file(str(Path(model) / "model.safetensors"))
            self._buffer: Any = None

        def gather(self) -> list[Any]:
            import ray

            from actors.payload import flatten

            manifest, self._buffer = flatten(self._state, self._buffer)
            return [ray.put((manifest, self._buffer))]

    class Worker(RolloutWorker):
        def bare(self, payload: Any) -> tuple[float, float]:
            """Seconds of one reload with the cures of vLLM's own packing, and of one copy of the payload."""
            from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

            from actors.payload import unflatten
            from actors.vllm_extension import forget_packed_experts

            runner = self._engine.model_executor.driver_worker.worker.model_runner
            weights = dict(unflatten(*payload))
            self._target = getattr(self, "_target", None)
            if self._target is None:
                self._target = payload[1].copy()  # pages faulted in, so that the copy below is only a copy
            began = time.perf_counter()
            model = runner.get_model()
            forget_packed_experts(model)
            runner.reload_weights(weights_iterator=iter(weights.items()), is_checkpoint_format=True)
            for module in model.modules():
                method = getattr(module, "quant_method", None)
                if isinstance(method, UnquantizedEmbeddingMethod):
                    method.process_weights_after_loading(module)
            reloaded = time.perf_counter()
            np.copyto(self._target, payload[1])
            return reloaded - began, time.perf_counter() - reloaded

    return Source, Worker


if __name__ == "__main__":
    main()
