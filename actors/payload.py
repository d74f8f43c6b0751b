"""The payload of a publish: every tensor of a model in one flat array, and a manifest that says what lies where."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

ALIGN = 64  # bytes; every tensor starts on a cache line
_COLUMNS = 1021  # 8-byte words a row of the checksum's table; a prime, so that no matrix lines up with it
_WEIGHTS = np.arange(1, 2 * _COLUMNS, 2, dtype=np.uint64)


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


Payload = tuple[WeightManifest, np.ndarray]  # what LearnerGroup.gather_weights() refers to: manifest, uint8 [bytes]


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
