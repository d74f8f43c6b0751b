"""Publishing weights: one operation that no caller can half-do.

learner rank 0        driver                      every rollout worker, between two engine steps
flatten ──► object ──► WeightSync.publish ──►     1 receive, compare checksums with the manifest
                                                  2 reload into the engine, with the cures its packing needs
                                                  3 preempt running requests, reset the prefix cache
                                                  4 compare the weights the engine computes with
                                                  5 set policy_version; a mismatch leaves the engine out of service
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from rlplatform.config import PublishConfig
from rlplatform.roles import RunStopped
from rlplatform.types import Metrics

if TYPE_CHECKING:
    import torch

    from actors.fleet import Err, Ok
    from actors.rollout_fleet import RolloutFleet

ALIGN = 64  # bytes; every tensor starts on a cache line
_COLUMNS = 1021  # 8-byte words a row of the checksum's table; a prime, so that no matrix lines up with it
_WEIGHTS = np.arange(1, 2 * _COLUMNS, 2, dtype=np.uint64)


@dataclass(frozen=True)
class PublishReport:
    """What one engine found while it took new weights."""

    mismatches: tuple[str, ...] = ()  # tensors that arrived damaged, or that the engine computes with differently
    num_exact: int = 0  # tensors compared value by value
    num_probed: int = 0  # tensors compared through probes

    @classmethod
    def merge(cls, reports: Sequence[PublishReport]) -> PublishReport:
        """One report of all ranks of an engine."""
        names = dict.fromkeys(name for report in reports for name in report.mismatches)
        return cls(tuple(names), min(r.num_exact for r in reports), min(r.num_probed for r in reports))


Payload = tuple["WeightManifest", np.ndarray]  # what LearnerGroup.gather_weights() refers to: manifest, uint8 [bytes]


# --- the payload ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WeightEntry:
    """One tensor of the payload."""

    name: str  # as in the Hugging Face checkpoint
    shape: tuple[int, ...]
    dtype: str  # torch's name, e.g. "bfloat16"
    offset: int  # bytes from the start of the payload
    nbytes: int
    checksum: int


@dataclass(frozen=True)
class WeightManifest:
    """What the flat payload holds."""

    entries: tuple[WeightEntry, ...]
    num_bytes: int  # length of the payload

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(entry.name for entry in self.entries)


def checksum(data: np.ndarray) -> int:
    """A 64-bit checksum of uint8 ``data``; one pass at memory speed.

    Words of 8 bytes in rows of 1,021: columns are summed and the sums weighted with odd numbers, modulo 2**64, so that
    every changed bit shows, and swapped columns, rolled rows or a transpose do too.
    """
    num_words = len(data) // 8
    words = data[: num_words * 8].view(np.uint64)
    num_rows = num_words // _COLUMNS
    sums = words[: num_rows * _COLUMNS].reshape(num_rows, _COLUMNS).sum(axis=0, dtype=np.uint64)
    rest = words[num_rows * _COLUMNS :]
    sums[: len(rest)] += rest
    tail = int.from_bytes(data[num_words * 8 :].tobytes(), "little")
    return (int((sums * _WEIGHTS).sum(dtype=np.uint64)) + tail + len(data)) % 2**64


def flatten(state: Mapping[str, torch.Tensor], out: np.ndarray | None = None) -> tuple[WeightManifest, np.ndarray]:
    """Lay tensors end to end in one uint8 array and describe them.

    Args:
        state: Hugging Face name -> tensor, any dtype and device. Tied tensors need to be there only once.
        out: a uint8 array to reuse when it has the right length, which saves faulting in fresh pages.
    """
    import torch

    entries: list[WeightEntry] = []
    offset = 0
    for name, tensor in state.items():
        nbytes = tensor.numel() * tensor.element_size()
        dtype = str(tensor.dtype).removeprefix("torch.")
        entries.append(WeightEntry(name, tuple(tensor.shape), dtype, offset, nbytes, 0))
        offset += -(-nbytes // ALIGN) * ALIGN
    flat = out if out is not None and len(out) == offset else np.zeros(offset, dtype=np.uint8)
    target = torch.from_numpy(flat)
    summed: list[WeightEntry] = []
    for entry, tensor in zip(entries, state.values(), strict=True):
        part = slice(entry.offset, entry.offset + entry.nbytes)
        if entry.nbytes:
            target[part].copy_(tensor.detach().contiguous().reshape(-1).view(torch.uint8))
        values = (entry.name, entry.shape, entry.dtype, entry.offset, entry.nbytes)
        summed.append(WeightEntry(*values, checksum(flat[part])))
    return WeightManifest(tuple(summed), offset), flat


def corrupted(manifest: WeightManifest, flat: np.ndarray) -> list[str]:
    """The names of tensors whose bytes differ from what was sent."""
    if len(flat) != manifest.num_bytes:
        return [f"(payload of {len(flat)} bytes, expected {manifest.num_bytes})"]
    return [e.name for e in manifest.entries if checksum(flat[e.offset : e.offset + e.nbytes]) != e.checksum]


def unflatten(manifest: WeightManifest, flat: np.ndarray) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors, as views of ``flat``: nothing is copied, and nothing may write to them."""
    import warnings

    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        buffer = torch.from_numpy(flat)
    for entry in manifest.entries:
        dtype = getattr(torch, entry.dtype)
        data = buffer[entry.offset : entry.offset + entry.nbytes]
        yield entry.name, (data.view(dtype) if entry.nbytes else torch.empty(0, dtype=dtype)).reshape(entry.shape)


# --- the operation --------------------------------------------------------------------------------------------------


class WeightSource(Protocol):
    """The learner, as far as publishing needs it."""

    def gather_weights(self) -> Any: ...  # ray.ObjectRef of a Payload, whole tensors under checkpoint names


class WeightSync:
    """Publishes a learner's weights to every rollout worker, and again to a worker that was restarted.

    Every comparison is exact on the first publish, on each ``full_verify_every``-th, and always for models of at most
    ``full_verify_max_mib``; between those, columns in turn and a random direction of every matrix are compared.
    """

    def __init__(self, fleet: RolloutFleet, config: PublishConfig) -> None:
        from actors.transports import CollectiveTransport, ObjectStoreTransport, Transport

        self._fleet, self._config = fleet, config
        self._store = ObjectStoreTransport(fleet.workers)
        self._transport: Transport = self._store
        if config.transport == "collective":
            backend = "nccl" if fleet.workers.gpus > 0 else "gloo"
            self._transport = CollectiveTransport(fleet.workers, fleet.ranks_per_worker, backend)
        self._num_publishes = 0
        # Payload, manifest and version that a restarted worker is given.
        self._current: tuple[Any, WeightManifest, int] | None = None
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
        self._current = (ref, manifest, version)
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
        from actors.fleet import Err

        reports: list[PublishReport] = []
        for worker, result in results.items():
            name = self._fleet.workers.name(worker)
            if isinstance(result, Err):
                if not result.lost:
                    raise RunStopped(f"publish {version} failed in {name}: {result}")
            elif result.value.mismatches:
                wrong = ", ".join(result.value.mismatches[:20])
                raise RunStopped(
                    f"publish {version}: {name} does not compute with the learner's weights. "
                    f"{len(result.value.mismatches)} tensors differ: {wrong}"
                )
            else:
                reports.append(result.value)
        return reports

    def _republish(self, worker: int) -> None:
        from actors.fleet import ActorError

        if self._current is None:
            return
        ref, manifest, version = self._current
        results = self._store.send(None, [worker], ref, manifest, version, True)
        if not self._reports(version, results):
            raise ActorError(f"{self._fleet.workers.name(worker)} was lost again while it took the current weights")

    def _is_small(self, manifest: WeightManifest) -> bool:
        return manifest.num_bytes <= self._config.full_verify_max_mib * 2**20

    def _manifest(self, ref: Any) -> WeightManifest:
        """The payload's manifest; also where an exception of ``gather_weights`` surfaces, as itself."""
        import ray

        timeout_s = self._fleet.workers.call_timeout_s
        if sum(node["Alive"] for node in ray.nodes()) == 1:
            return ray.get(ref, timeout=timeout_s)[0]  # the payload itself is mapped, not copied
        return ray.get(ray.remote(num_cpus=0)(_first).remote(ref), timeout=timeout_s)  # runs where the payload lies


def _first(payload: Payload) -> WeightManifest:
    return payload[0]
