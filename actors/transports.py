"""How a payload travels from the learner to the engines: one small interface, two ways.

``ObjectStoreTransport``: one flat array in Ray's object store. Workers on the learner's node map the very bytes it
wrote; to other nodes Ray moves them once a node.

``CollectiveTransport``: a broadcast from the learner's rank 0 to the process of every engine rank, over a process group
of its own: NCCL between GPUs, gloo on CPU. When workers were lost or restarted since the last publish, the group is
formed anew. A restarted worker alone is served from the object store, where the payload is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from actors.fleet import Err, Fleet, FleetActor, Ok
from actors.payload import Payload, PublishReport, WeightManifest
from actors.rollout_worker import RolloutWorker

if TYPE_CHECKING:
    import torch

Results = dict[int, Ok[PublishReport] | Err]


class Transport(Protocol):
    """Moves one payload into the given workers, each of which loads and verifies it."""

    def send(
        self, learner: Any, workers: Sequence[int], payload: Any, manifest: WeightManifest, version: int, full: bool
    ) -> Results: ...


class ObjectStoreTransport:
    """``payload`` is passed by reference."""

    def __init__(self, fleet: Fleet[RolloutWorker]) -> None:
        self._fleet = fleet

    def send(
        self, learner: Any, workers: Sequence[int], payload: Any, manifest: WeightManifest, version: int, full: bool
    ) -> Results:
        return self._fleet.call_each(workers, RolloutWorker.load_weights, payload, version, full)


class CollectiveTransport:
    """Rank 0 is the learner's; engine ranks follow, worker by worker. ``learner.workers`` is the learner's fleet."""

    def __init__(self, fleet: Fleet[RolloutWorker], ranks_per_worker: int, backend: str) -> None:
        self._fleet, self._ranks_per_worker, self._backend = fleet, ranks_per_worker, backend
        self._members: tuple[str, ...] = ()  # incarnations that the group was formed of

    def send(
        self, learner: Any, workers: Sequence[int], payload: Any, manifest: WeightManifest, version: int, full: bool
    ) -> Results:
        source: Fleet[Any] = learner.workers
        members = (source.incarnation(0).id, *(self._fleet.incarnation(worker).id for worker in workers))
        if members != self._members:
            self._members = ()
            self._form(source, workers)
            self._members = members
        sending = source.call_async(0, broadcast, payload)
        results = self._fleet.call_each(workers, RolloutWorker.load_broadcast, manifest, version, full)
        sent = source.wait(sending)
        if isinstance(sent, Err):
            raise RuntimeError(f"{source.name(0)}: broadcasting the weights failed: {sent}")
        if any(isinstance(result, Err) for result in results.values()):
            self._members = ()  # a member is gone
        return results

    def _form(self, source: Fleet[Any], workers: Sequence[int]) -> None:
        size = 1 + self._ranks_per_worker * len(workers)
        timeout_s = self._fleet.call_timeout_s
        host, port = source.call(0, open_store, size, timeout_s)
        joining = source.call_async(0, join_as_sender, size, self._backend, timeout_s)
        calls = [
            self._fleet.call_async(
                worker,
                RolloutWorker.join_group,
                host,
                port,
                1 + i * self._ranks_per_worker,
                size,
                self._backend,
                timeout_s,
            )
            for i, worker in enumerate(workers)
        ]
        answers = [source.wait(joining), *(self._fleet.wait(call) for call in calls)]
        errors = [str(answer) for answer in answers if isinstance(answer, Err)]
        if errors:
            raise RuntimeError(f"forming the process group of {size} ranks for weights failed: {'; '.join(errors)}")


# --- in the processes -----------------------------------------------------------------------------------------------

_store: Any = None  # of the sender, alive as long as the group
_group: Any = None


def open_store(actor: FleetActor, size: int, timeout_s: float) -> tuple[str, int]:
    """In the learner's rank 0: the rendezvous of a new group; returns where it listens."""
    global _store
    import ray
    from torch.distributed import TCPStore

    host = ray.util.get_node_ip_address()
    _store = TCPStore(host, 0, size, True, timedelta(seconds=timeout_s), wait_for_workers=False)
    return host, _store.port


def join_as_sender(actor: FleetActor, size: int, backend: str, timeout_s: float) -> None:
    _join(_store, 0, size, backend, timeout_s)


def join(host: str, port: int, rank: int, size: int, backend: str, timeout_s: float) -> None:
    """In the process of an engine rank."""
    from torch.distributed import TCPStore

    store = TCPStore(host, port, size, False, timedelta(seconds=timeout_s), wait_for_workers=False)
    _join(store, rank, size, backend, timeout_s)


def _join(store: Any, rank: int, size: int, backend: str, timeout_s: float) -> None:
    """A process group beside torch's global one, which belongs to the engine or to DeepSpeed."""
    global _group
    from torch.distributed import PrefixStore, distributed_c10d

    prefixed = PrefixStore("weights", store)
    timeout = timedelta(seconds=timeout_s)
    if backend == "gloo":
        _group = distributed_c10d.ProcessGroupGloo(prefixed, rank, size, timeout)
    else:
        options = distributed_c10d.ProcessGroupNCCL.Options()
        options._timeout = timeout
        _group = distributed_c10d.ProcessGroupNCCL(prefixed, rank, size, options)
    _broadcast(_on_device(_empty(1)))  # connects everybody now, so that a broken network shows here


def broadcast(actor: FleetActor, payload: Payload) -> None:
    """In the learner's rank 0: send the payload's bytes."""
    import torch

    _broadcast(_on_device(torch.from_numpy(payload[1].copy() if not payload[1].flags.writeable else payload[1])))


def receive(manifest: WeightManifest) -> np.ndarray:
    """In the process of an engine rank: the payload's bytes, uint8."""
    data = _on_device(_empty(manifest.num_bytes))
    _broadcast(data)
    return data.cpu().numpy()


def _empty(num_bytes: int) -> torch.Tensor:
    import torch

    return torch.zeros(num_bytes, dtype=torch.uint8)


def _on_device(data: torch.Tensor) -> torch.Tensor:
    return data.cuda() if _group.name() == "nccl" else data


def _broadcast(data: torch.Tensor) -> None:
    from torch.distributed import BroadcastOptions

    options = BroadcastOptions()
    options.rootRank, options.rootTensor = 0, 0
    _group.broadcast([data], options).wait()
