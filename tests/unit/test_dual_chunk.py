"""Dual Chunk Attention against softmax with every relative position written out."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import dual_chunk as module
from model.attention import PackedAttend
from model.config import PRESETS, DualChunkConfig, Qwen3Config, UnsupportedModelError, YarnConfig
from model.dual_chunk import DualChunkAttend, dual_chunk_attention, query_positions
from model.qwen3 import Qwen3

YARN = YarnConfig(factor=4.0, original_max_position_embeddings=16)
SMALL = Qwen3Config(
    64, 96, 2, 4, 2, head_dim=16, vocab_size=64, rope_theta=10_000.0, dual_chunk=DualChunkConfig(12, 4), yarn=None
)


def boundaries(lengths: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    positions = torch.cat([torch.arange(length) for length in lengths])
    return positions, torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def inputs(config: Qwen3Config, num: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(num, heads, config.head_dim) for heads in (config.num_attention_heads, 2, 2)]
    return [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]


def frequencies(config: Qwen3Config) -> list[float]:
    """RoPE's and YaRN's angles a position, from the papers' formulas in plain Python."""
    dim, theta = config.head_dim, config.rope_theta
    plain = [theta ** (-2 * i / dim) for i in range(dim // 2)]
    if config.yarn is None:
        return plain
    length, factor = config.yarn.original_max_position_embeddings, config.yarn.factor

    def pair(turns: float) -> float:
        return dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = max(math.floor(pair(32)), 0), min(math.ceil(pair(1)), dim - 1)
    ramp = [min(max((i - low) / (high - low), 0.0), 1.0) for i in range(dim // 2)]
    return [f * (1 - r) + f / factor * r for f, r in zip(plain, ramp, strict=True)]


def relative(query: int, key: int, chunk: int, size: int) -> int:
    """The distance that the query at row position ``query`` believes the key at ``key`` to be at."""
    chunks_back = query // chunk - key // chunk
    if chunks_back == 0:
        return query - key
    if chunks_back == 1:
        return min(query % chunk + chunk, size) - key % chunk
    return min(2 * chunk - 1, size) - key % chunk


def brute_force(config: Qwen3Config, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """One row in float64; the score of each pair is computed from its relative position alone."""
    assert config.dual_chunk is not None
    chunk, size = config.dual_chunk.chunk_len, config.dual_chunk.chunk_size
    length, heads, dim = q.shape
    angles = torch.tensor(frequencies(config), dtype=torch.float64)
    factor = (0.1 * math.log(config.yarn.factor) + 1) if config.yarn else 1.0
    rows = []
    for i in range(length):
        distance = torch.tensor([relative(i, j, chunk, size) for j in range(i + 1)], dtype=torch.float64)
        turn = distance[:, None] * angles  # [i + 1, dim / 2]
        original = config.dual_chunk.original_max_position_embeddings
        sharper = max(0.1 * math.log((i + 1) / original) + 1, 1.0) if original else 1.0
        outputs = []
        for head in range(heads):
            key, value = k[: i + 1, head * 2 // heads].double(), v[: i + 1, head * 2 // heads].double()
            query = q[i, head].double()
            (a, b), (c, d) = query.split(dim // 2), key.split(dim // 2, dim=-1)
            # <R(m) q, R(n) k> with m - n = distance
            scores = (turn.cos() * (a * c + b * d) + turn.sin() * (a * d - b * c)).sum(-1)
            weights = (scores * factor**2 * sharper / math.sqrt(dim)).softmax(dim=0)
            outputs.append(weights @ value)
        rows.append(torch.stack(outputs))
    return torch.stack(rows)


CONFIGS = {
    "plain": SMALL,
    "yarn": replace(SMALL, yarn=YARN),
    "length scale": replace(SMALL, dual_chunk=DualChunkConfig(12, 4, original_max_position_embeddings=6)),
    "all": replace(SMALL, yarn=YARN, dual_chunk=DualChunkConfig(9, 4, original_max_position_embeddings=20)),
    "never clamped": replace(SMALL, dual_chunk=DualChunkConfig(20, 15)),
    "no group": replace(SMALL, num_attention_heads=2),
}


@pytest.fixture(params=["kernel", "products"])
def part(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to compute a part: the CPU kernel, and the matrix products that other devices use."""
    if request.param == "products":
        _without_the_kernel(monkeypatch)
    return request.param


def _without_the_kernel(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(module, "_has_kernel", lambda tensor: False)


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_values_and_gradients_equal_every_relative_position_written_out(name: str, part: str) -> None:
    config = CONFIGS[name]
    lengths = (37, 3, 24, 8, 9, 1)
    positions, cu_seqlens = boundaries(lengths)
    tensors = inputs(config, sum(lengths))
    output = DualChunkAttend(config, positions, cu_seqlens, torch.float32)(0, *tensors)
    rows = zip(*(tensor.split(lengths) for tensor in tensors), strict=True)
    expected = torch.cat([brute_force(config, *row) for row in rows])
    torch.testing.assert_close(output.double(), expected, atol=2e-6, rtol=1e-5)
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    got = torch.autograd.grad((output * weight).sum(), tensors)
    wanted = torch.autograd.grad((expected * weight).sum(), tensors)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("yarn", [None, YARN])
def test_up_to_one_chunk_it_is_plain_attention_bit_for_bit(yarn: YarnConfig | None) -> None:
    config = replace(SMALL, yarn=yarn)
    for lengths in ((8, 3, 1, 8), (8, 20, 5)):  # the long row in the middle must not change its neighbours' bits
        positions, cu_seqlens = boundaries(lengths)
        tensors = inputs(config, sum(lengths))
        attends = [kind(config, positions, cu_seqlens, torch.float32) for kind in (DualChunkAttend, PackedAttend)]
        mine, plain = (attend(0, *tensors).split(lengths) for attend in attends)
        for length, one, other in zip(lengths, mine, plain, strict=True):
            assert torch.equal(one, other) == (length <= 8)


def test_the_positions_are_those_of_a_hand_written_row() -> None:
    """Chunks of 4, at most 6 apart: worked by hand."""
    own, before, earlier = query_positions(DualChunkConfig(6, 2), torch.arange(10))
    assert own.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert before.tolist() == [4, 5, 6, 6, 4, 5, 6, 6, 4, 5]
    assert earlier.tolist() == [6] * 10


@settings(max_examples=30, deadline=None)
@given(size=st.integers(2, 40), local=st.integers(1, 39), length=st.integers(1, 200))
def test_no_relative_position_is_negative_or_beyond_the_chunk_size(size: int, local: int, length: int) -> None:
    local = min(local, size - 1)
    config = DualChunkConfig(size, local)
    positions = torch.arange(length)
    chunk, key = positions // config.chunk_len, positions % config.chunk_len
    back = chunk[:, None] - chunk[None]
    own, before, earlier = (place[:, None] - key[None] for place in query_positions(config, positions))
    distance = torch.where(back == 0, own, torch.where(back == 1, before, earlier))[back >= 0]
    causal = (positions[:, None] >= positions[None])[back >= 0]
    assert int(distance[causal].min()) >= 0
    assert int(distance[causal].max()) <= size


def test_nothing_of_the_size_of_the_row_squared_is_made() -> None:
    """8,192 tokens in chunks of 64: one [T x T] float32 matrix a head would take 256 MiB."""
    config = replace(SMALL, dual_chunk=DualChunkConfig(96, 32))
    positions, cu_seqlens = boundaries((8192,))
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return out

    with Watch():
        DualChunkAttend(config, positions, cu_seqlens, torch.float32)(0, *inputs(config, 8192)).sum().backward()
    assert largest <= 8192 * 4 * 16  # the queries themselves


def test_gradients_pass_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(11, 2, 4)] * 3 + [(11, 1, 4)] * 2
    tensors = [torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]
    assert torch.autograd.gradcheck(lambda *t: dual_chunk_attention(*t, 4, 0.5), tensors)


def test_bfloat16_is_as_close_as_plain_attention_is() -> None:
    positions, cu_seqlens = boundaries((50,))
    tensors = inputs(SMALL, 50)
    errors = []
    for kind in (DualChunkAttend, PackedAttend):
        exact = kind(SMALL, positions, cu_seqlens, torch.float32)(0, *tensors)
        rough = kind(SMALL, positions, cu_seqlens, torch.bfloat16)(0, *(tensor.bfloat16() for tensor in tensors))
        assert rough.dtype == torch.bfloat16
        errors.append(float(((rough - exact).norm() / exact.norm()).detach()))
    assert errors[0] < 2 * errors[1] < 0.05


# --- the model ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("experts", [0, 4])
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_the_model_uses_it_and_checkpointing_changes_no_bit(experts: int, checkpointing: str) -> None:
    config = replace(SMALL, num_experts=experts, num_experts_per_tok=2, moe_intermediate_size=32)
    positions, cu_seqlens = boundaries((30, 5, 17))
    tokens = torch.randint(0, 64, (52,), generator=torch.Generator().manual_seed(0))

    def gradients(mode: str) -> list[torch.Tensor]:
        policy = Qwen3(config, activation_checkpointing=mode).init_weights(seed=0)  # type: ignore[arg-type]
        hidden = policy(tokens, positions, cu_seqlens)
        hidden.square().sum().backward()
        return [hidden.detach(), *(p.grad for p in policy.model.parameters() if p.grad is not None)]

    for one, other in zip(gradients("none"), gradients(checkpointing), strict=True):
        assert torch.equal(one, other)
    plain = Qwen3(replace(config, dual_chunk=None)).init_weights(seed=0)(tokens, positions, cu_seqlens)
    pairs = zip(gradients("none")[0].split((30, 5, 17)), plain.split((30, 5, 17)), strict=True)
    assert [torch.equal(*pair) for pair in pairs] == [False, True, False]


def test_later_tokens_and_other_rows_change_nothing() -> None:
    policy = Qwen3(replace(SMALL, dual_chunk=DualChunkConfig(12, 4, 10))).init_weights(seed=0)
    tokens = torch.randint(0, 64, (60,), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[30] += 1  # in the first row, whose tokens 30 ... 39 may change and no others
    before, after = (policy(ids % 64, *boundaries((40, 20))) for ids in (tokens, changed))
    same = (before == after).all(dim=-1)
    assert same.tolist() == [True] * 30 + [False] * 10 + [True] * 20


def test_a_config_json_keeps_it(tmp_path) -> None:
    config = replace(PRESETS["tiny"], dual_chunk=DualChunkConfig(96, 32, 64))
    assert Qwen3Config.from_hf(config.to_hf()) == config


def test_positions_that_do_not_restart_are_refused() -> None:
    _, cu_seqlens = boundaries((5, 5))
    with pytest.raises(ValueError, match="count 0, 1"):
        DualChunkAttend(SMALL, torch.arange(10), cu_seqlens, torch.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunk_size": "16"}, "chunk_size: expected a whole number, got '16'"),
        ({"original_max_position_embeddings": -5}, "expected a number of tokens, or 0 for no scaling, got -5"),
        ({"local_size": None}, "dual_chunk_attention_config: expected"),
    ],
)
def test_settings_of_another_kind_are_refused(change: dict, message: str) -> None:
    values = PRESETS["tiny"].to_hf()
    dual = {"chunk_size": 16, "local_size": 4, "original_max_position_embeddings": None}
    assert Qwen3Config.from_hf(values | {"dual_chunk_attention_config": dual}).dual_chunk == DualChunkConfig(16, 4)
    with pytest.raises(ValueError, match=message):
        Qwen3Config.from_hf(values | {"dual_chunk_attention_config": dual | change})
    with pytest.raises(UnsupportedModelError, match=r"expected an object, got \[16, 4\]"):
        Qwen3Config.from_hf(values | {"dual_chunk_attention_config": [16, 4]})
