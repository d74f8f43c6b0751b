"""Publishing weights: one operation that no caller can half-do.

    learner rank 0        driver                      every rollout worker, between two engine steps
    flatten ──► object ──► WeightSync.publish ──►     1 receive, compare checksums with the manifest
                                                      2 reload into the engine, with the cures its packing needs
                                                      3 compare the weights the engine computes with
                                                      4 preempt running requests, reset the prefix cache
                                                      5 serve the new version

A worker that fails anywhere between 1 and 5 samples nothing until a later publish has gone through.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import ray

from actors.fleet import ActorError, Err, Ok
from actors.payload import Payload, PublishReport, WeightManifest, flatten
from actors.transports import CollectiveTransport, ObjectStoreTransport, Transport
from rlplatform.config import PublishConfig
from rlplatform.roles import RunStopped
from rlplatform.types import Metrics

if TYPE_CHECKING:
    from actors.rollout_fleet import RolloutFleet

__all__ = ["Payload", "WeightManifest", "WeightSource", "WeightSync", "flatten"]


class WeightSource(Protocol):
    """The learner, as far as publishing needs it."""

    def gather_weights(self) -> Any: ...  # ray.ObjectRef of a Payload, whole tensors under checkpoint names


class WeightSync:
    """Publishes a learner's weights to every rollout worker, and again to a worker that was restarted.

    Every comparison is exact on the first publish, on each ``full_verify_every``-th, and always for models of at most
    ``full_verify_max_mib``; between those, columns in turn and a random direction of every matrix are compared.

    Args:
        whose: weights these are, for errors.
    """

    def __init__(self, fleet: RolloutFleet, config: PublishConfig, whose: str = "the learner's weights") -> None:
        self._fleet, self._config, self._whose = fleet, config, whose
        self._store = ObjectStoreTransport(fleet.workers)
        self._transport: Transport = self._store
        if config.transport == "collective":
            backend = "nccl" if fleet.workers.gpus > 0 else "gloo"
            self._transport = CollectiveTransport(fleet.workers, fleet.ranks_per_worker, backend)
        self._num_publishes = 0
        # Payload, manifest and version that a restarted worker is given.
        self._current: tuple[Any, WeightManifest, int] | None = None
        self._before = fleet.republish  # of whoever published before; holds until the first publish here
        fleet.republish = self._republish

    def publish(self, learner: WeightSource, version: int) -> Metrics:
        """Make every live worker serve ``version``; returns when all of them compute with the learner's weights.

        Sequences in flight go on under the new weights. A worker that is lost meanwhile gets them when it is back.

        Raises:
            RunStopped: a tensor arrived damaged, or an engine computes with something else; names both.
        """
        began = time.perf_counter()
        ref = learner.gather_weights()
        manifest = self._manifest(ref)
        self._current, self._before = (ref, manifest, version), None
        every = self._config.full_verify_every
        full = (every > 0 and self._num_publishes % every == 0) or self._is_small(manifest) or self._num_publishes == 0
        self._num_publishes += 1
        workers = self._fleet.workers.live_workers
        reports = self._reports(version, self._transport.send(learner, workers, ref, manifest, version, full))
        return {
            "publish/seconds": time.perf_counter() - began,
            "publish/bytes": float(manifest.num_bytes),
            "publish/verified_tensors": float(min((r.num_exact for r in reports), default=0)),
            "publish/probed_tensors": float(max((r.num_probed for r in reports), default=0)),
        }

    def _reports(self, version: int, results: Mapping[int, Ok[PublishReport] | Err]) -> list[PublishReport]:
        """What the engines found; stops the run unless each of them verified or was lost on the way."""
        reports: list[PublishReport] = []
        for worker, result in results.items():
            name = self._fleet.workers.name(worker)
            if isinstance(result, Err):
                if not result.lost:
                    raise RunStopped(f"publish {version} failed in {name}: {result}")
            elif result.value.mismatches:
                wrong = ", ".join(result.value.mismatches[:20])
                raise RunStopped(
                    f"publish {version}: {name} does not compute with {self._whose}. "
                    f"{len(result.value.mismatches)} tensors differ: {wrong}"
                )
            else:
                reports.append(result.value)
        return reports

    def _republish(self, worker: int) -> None:
        if self._current is None:
            if self._before is not None:
                self._before(worker)
            return
        ref, manifest, version = self._current
        results = self._store.send(None, [worker], ref, manifest, version, True)
        if not self._reports(version, results):
            raise ActorError(f"{self._fleet.workers.name(worker)} was lost again while it took the current weights")

    def _is_small(self, manifest: WeightManifest) -> bool:
        return manifest.num_bytes <= self._config.full_verify_max_mib * 2**20

    def _manifest(self, ref: Any) -> WeightManifest:
        """The payload's manifest; also where an exception of ``gather_weights`` surfaces, as itself."""
        timeout_s = self._fleet.workers.call_timeout_s
        if sum(node["Alive"] for node in ray.nodes()) == 1:
            return ray.get(ref, timeout=timeout_s)[0]  # the payload itself is mapped, not copied
        return ray.get(ray.remote(num_cpus=0)(_first).remote(ref), timeout=timeout_s)  # runs where the payload lies


def _first(payload: Payload) -> WeightManifest:
    return payload[0]
