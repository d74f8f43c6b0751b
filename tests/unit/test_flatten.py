"""The payload of a publish: every tensor comes back bit for bit, and every kind of damage is seen and named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors.payload import ALIGN, checksum, corrupted, flatten, unflatten

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int8)


def tensor(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).mul(20).to(dtype)


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 9), max_size=3).map(tuple), st.sampled_from(DTYPES)), min_size=1, max_size=6
    )
)
def test_every_tensor_comes_back_bit_for_bit(specs) -> None:
    state = {f"layer.{i}.weight": tensor(shape, dtype, i) for i, (shape, dtype) in enumerate(specs)}
    manifest, flat = flatten(state)
    back = dict(unflatten(manifest, flat))
    assert list(back) == list(state) == list(manifest.names)
    for name, value in state.items():
        assert back[name].dtype == value.dtype
        assert back[name].shape == value.shape
        assert torch.equal(back[name], value)
    assert len(flat) == manifest.num_bytes
    assert all(entry.offset % ALIGN == 0 for entry in manifest.entries)
    assert corrupted(manifest, flat) == []


def test_views_that_are_not_contiguous_are_laid_out_by_value() -> None:
    base = tensor((6, 8), torch.float32, 0)
    manifest, flat = flatten({"t": base.t(), "column": base[:, 3]})
    back = dict(unflatten(manifest, flat))
    assert torch.equal(back["t"], base.t())
    assert torch.equal(back["column"], base[:, 3])


@given(st.integers(1, 40_000), st.data())
def test_any_changed_byte_changes_the_checksum(size, data) -> None:
    array = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    before = checksum(array)
    place = data.draw(st.integers(0, size - 1))
    array[place] ^= np.uint8(data.draw(st.integers(1, 255)))
    assert checksum(array) != before


@pytest.mark.parametrize("shape", [(64, 48), (128, 384), (100, 7), (64, 2048)])
def test_a_transpose_a_roll_and_a_swap_change_the_checksum(shape) -> None:
    weight = tensor(shape, torch.float32, 1).numpy()

    def of(array: np.ndarray) -> int:
        return checksum(np.ascontiguousarray(array).view(np.uint8).reshape(-1))

    assert len({of(weight), of(weight.T), of(np.roll(weight, 1, axis=0)), of(weight[:, ::-1]), of(weight * -1)}) == 5


def test_the_checksum_by_hand() -> None:
    data = np.zeros(20, dtype=np.uint8)
    data[0], data[8], data[16] = 3, 5, 7  # words 3 and 5, a tail of 7
    assert checksum(data) == 3 * 1 + 5 * 3 + 7 + 20


def test_damage_is_named() -> None:
    manifest, flat = flatten({"a": tensor((4, 4), torch.float32, 0), "b": tensor((300, 9), torch.bfloat16, 1)})
    damaged = flat.copy()
    damaged[manifest.entries[1].offset + 17] ^= 1
    assert corrupted(manifest, damaged) == ["b"]
    assert corrupted(manifest, flat[:-1]) == [f"(payload of {len(flat) - 1} bytes, expected {len(flat)})"]


def test_a_buffer_of_the_right_length_is_reused_and_another_is_not() -> None:
    state = {"a": tensor((4, 4), torch.float32, 0)}
    _, flat = flatten(state)
    state["a"] = state["a"] + 1
    manifest, again = flatten(state, out=flat)
    assert again is flat
    assert corrupted(manifest, again) == []
    _, other = flatten({"a": tensor((400,), torch.float32, 0)}, out=flat)
    assert other is not flat
