"""Dual Chunk Attention (DCA, arXiv 2402.17463): rows longer than the model was trained on, without new positions.

A row is cut into chunks of ``c = chunk_size - local_size`` tokens. A key sits at its place in its chunk; where a query
sits depends on how far back the key's chunk is, so a relative position never exceeds ``chunk_size``::

    key                     p mod c
    query, its own chunk    p mod c                             causal
    query, the chunk before min(p mod c + c, chunk_size)        all of it
    query, earlier chunks   min(2 c - 1, chunk_size)            all of them

The three softmaxes are one: each part gives its output and its log-sum-exp, and the parts are added with weights
exp(lse_part - lse_all). A row of at most ``c`` tokens is plain attention, by the very same kernel call.

The positions are those of vLLM's ``dual_chunk_rope.py``; the paper clamps one lower, at the trained length less one.

Longer rows also sharpen attention: scores are multiplied by ``max(0.1 ln(L / original) + 1, 1)``, as YaRN does for a
fixed length. What L is differs between sources (the row's whole length, known only when it is written, or the length at
the moment a key is stored). Here, by our own choice, **L is the number of tokens the query sees, itself included**: so
a token's numbers depend only on the tokens before it, and training, prefill and decoding agree. With a YaRN config its
tables are used at these positions, its attention factor included; both scalings then apply, and
``original_max_position_embeddings: 0`` in the dual-chunk config leaves YaRN's alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from model.attention import Attend, PackedAttend, Packing, packed_attention
from model.config import DualChunkConfig, Qwen3Config
from model.rope import cos_sin, rotate

Tables = tuple[torch.Tensor, torch.Tensor]  # cos and sin, [T, head_dim] each


def query_positions(dual_chunk: DualChunkConfig, positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Where a query sits for its own chunk's keys, those of the one before, and earlier ones; as ``positions``."""
    length, size = dual_chunk.chunk_len, dual_chunk.chunk_size
    place = positions % length
    return place, (place + length).clamp(max=size), torch.full_like(place, min(2 * length - 1, size))


def length_scale(dual_chunk: DualChunkConfig, positions: torch.Tensor) -> torch.Tensor:
    """float32, shaped as ``positions``: what a query's scores are multiplied by; 1 up to the original length."""
    original = dual_chunk.original_max_position_embeddings
    if not original:
        return torch.ones_like(positions, dtype=torch.float32)
    return (0.1 * ((positions + 1).float() / original).log() + 1.0).clamp(min=1.0)


def query_tables(config: Qwen3Config, positions: torch.Tensor, dtype: torch.dtype) -> list[Tables]:
    """Three pairs of tables, as ``query_positions`` orders them; the length scale is in them."""
    assert config.dual_chunk is not None
    scale = length_scale(config.dual_chunk, positions)[..., None]
    tables = [cos_sin(config, places) for places in query_positions(config.dual_chunk, positions)]
    return [((cos * scale).to(dtype), (sin * scale).to(dtype)) for cos, sin in tables]


def key_tables(config: Qwen3Config, positions: torch.Tensor, dtype: torch.dtype) -> Tables:
    assert config.dual_chunk is not None
    return cos_sin(config, positions % config.dual_chunk.chunk_len, dtype)


class DualChunkAttend:
    """``Attend`` over packed rows with the dual-chunk positions of ``config.dual_chunk``.

    Raises:
        ValueError: ``positions`` do not count 0, 1, ... within each row.
    """

    def __init__(
        self, config: Qwen3Config, positions: torch.Tensor, cu_seqlens: torch.Tensor, dtype: torch.dtype
    ) -> None:
        assert config.dual_chunk is not None
        self.packing = Packing(cu_seqlens)
        expected = torch.cat([torch.arange(length) for length in self.packing.lengths]).to(positions.device)
        if not torch.equal(positions, expected):
            raise ValueError("dual chunk attention: expected positions that count 0, 1, ... within each row")
        self.chunk_len = config.dual_chunk.chunk_len
        self.queries, self.keys = query_tables(config, positions, dtype), key_tables(config, positions, dtype)
        self.scale = config.head_dim**-0.5
        self.alone = [  # a row that is plain attention
            Packing(cu_seqlens.new_tensor([0, length])) if length <= self.chunk_len else None
            for length in self.packing.lengths
        ]

    def __call__(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        key = rotate(key, *self.keys)
        if self.packing.max_length <= self.chunk_len:
            return packed_attention(rotate(query, *self.queries[0]), key, value, self.packing, self.scale)
        turned = [rotate(query, *tables) for tables in self.queries]
        return self._rows(*turned, key, value)

    @torch.compiler.disable
    def _rows(self, *tensors: torch.Tensor) -> torch.Tensor:
        self.packing.calls += 1
        outputs = []
        rows = zip(*(tensor.split(self.packing.lengths) for tensor in tensors), strict=True)
        for alone, (own, before, earlier, key, value) in zip(self.alone, rows, strict=True):
            if alone is not None:
                outputs.append(packed_attention(own, key, value, alone, self.scale))
            else:
                outputs.append(dual_chunk_attention(own, before, earlier, key, value, self.chunk_len, self.scale))
        return torch.cat(outputs)


def rows_attend(config: Qwen3Config, positions: torch.Tensor, cu_seqlens: torch.Tensor, dtype: torch.dtype) -> Attend:
    """The attention of ``config`` over packed rows."""
    kind = PackedAttend if config.dual_chunk is None else DualChunkAttend
    return kind(config, positions, cu_seqlens, dtype)


def dual_chunk_attention(
    own: torch.Tensor,
    before: torch.Tensor,
    earlier: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    chunk_len: int,
    scale: float,
) -> torch.Tensor:
    """One row, chunk by chunk; memory grows with the row's length, not with its square.

    Args:
        own, before, earlier: [T, heads, head_dim], the queries turned for each of the three distances.
        key, value: [T, kv_heads, head_dim].

    Returns:
        [T, heads, head_dim], differentiable once.
    """
    by_head = (tensor.transpose(0, 1)[None] for tensor in (own, before, earlier, key, value))
    return _DualChunk.apply(*by_head, chunk_len, scale)[0].transpose(0, 1)  # type: ignore[no-untyped-call]


class _DualChunk(torch.autograd.Function):
    """All tensors [1, heads, T, head_dim].

    The backward pass gives each part the output and log-sum-exp of the whole softmax. With those, a part's own formula
    P = exp(S - lse), dS = P (dO V^T - sum(dO O)) is its share of the whole gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        own: torch.Tensor,
        before: torch.Tensor,
        earlier: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        chunk_len: int,
        scale: float,
    ) -> torch.Tensor:
        output = torch.empty_like(own)
        heads, length = own.shape[1:3]
        lse = _wide(own.new_empty((1, length, heads))).transpose(1, 2)  # the CPU kernel's own layout
        for rows, parts in _parts(length, chunk_len, whole=_has_kernel(own)):
            merged: Tables | None = None
            for distance, keys in parts:
                query = (own, before, earlier)[distance][:, :, rows]
                part = _attend(query, key[:, :, keys], value[:, :, keys], causal=distance == 0, scale=scale)
                merged = part if merged is None else _merge(merged, part)
            assert merged is not None
            output[:, :, rows], lse[:, :, rows] = merged
        ctx.save_for_backward(own, before, earlier, key, value, output, lse)
        ctx.chunk_len, ctx.scale = chunk_len, scale
        return output

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *queries, key, value, output, lse = ctx.saved_tensors
        grads = [torch.zeros_like(query) for query in queries]
        # Summed over chunks in float32: a bfloat16 sum would lose the later ones.
        grad_key, grad_value = (_wide(torch.zeros_like(tensor)) for tensor in (key, value))
        for rows, parts in _parts(output.shape[2], ctx.chunk_len, whole=_has_kernel(output)):
            for distance, keys in parts:
                part = _attend_backward(
                    grad[:, :, rows],
                    queries[distance][:, :, rows],
                    key[:, :, keys],
                    value[:, :, keys],
                    output[:, :, rows],
                    lse[:, :, rows],
                    causal=distance == 0,
                    scale=ctx.scale,
                )
                grads[distance][:, :, rows] += part[0]
                grad_key[:, :, keys] += part[1]
                grad_value[:, :, keys] += part[2]
        return *grads, grad_key.to(key.dtype), grad_value.to(value.dtype), None, None


def _parts(length: int, chunk_len: int, *, whole: bool) -> list[tuple[slice, list[tuple[int, slice]]]]:
    """For each chunk of queries: its rows, and what it attends to as (distance 0, 1 or 2, rows of keys).

    ``whole`` gives the earlier chunks as one part; otherwise each is a part, which bounds the [rows x keys] matrix.
    """
    found = []
    for start in range(0, length, chunk_len):
        rows = slice(start, min(start + chunk_len, length))
        parts = [(0, rows)]
        if start >= chunk_len:
            parts.append((1, slice(start - chunk_len, start)))
        step = max(start - chunk_len, 1) if whole else chunk_len
        parts += [(2, slice(begin, begin + step)) for begin in range(0, start - chunk_len, step)]
        found.append((rows, parts))
    return found


def _merge(one: Tables, other: Tables) -> Tables:
    """Two parts (output, log-sum-exp) of a softmax as one; float32."""
    (output_a, lse_a), (output_b, lse_b) = one, other
    lse = torch.logaddexp(lse_a, lse_b)
    weights = ((lse_a - lse).exp()[..., None], (lse_b - lse).exp()[..., None])
    return _wide(output_a) * weights[0] + _wide(output_b) * weights[1], lse


# --- one part -------------------------------------------------------------------------------------------------------


def _has_kernel(tensor: torch.Tensor) -> bool:
    """The CPU's flash attention returns the log-sum-exp and takes another's. Elsewhere matrix products do it."""
    return tensor.device.type == "cpu" and tensor.dtype != torch.float64


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, causal: bool, scale: float) -> Tables:
    """[1, heads, n, head_dim] and the log-sum-exp of each query's scores, float32 [1, heads, n]."""
    if _has_kernel(query):
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, attn_mask=None, scale=scale
        )
    scores, value = _scores(query, key, causal, scale), _repeat(value, query)
    lse = scores.logsumexp(dim=-1)
    return (scores - lse[..., None]).exp() @ value, lse


def _attend_backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    lse: torch.Tensor,
    *,
    causal: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of query, key and value, given output and log-sum-exp of the whole softmax."""
    if _has_kernel(query):
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, query, key, value, output, lse, 0.0, causal, attn_mask=None, scale=scale
        )
    probabilities = (_scores(query, key, causal, scale) - lse[..., None]).exp()
    grad = _wide(grad)
    delta = (grad * _wide(output)).sum(-1, keepdim=True)
    grad_scores = probabilities * (grad @ _repeat(value, query).mT - delta) * scale
    heads = (key.shape[1], query.shape[1] // key.shape[1])
    grad_key = (grad_scores.mT @ _wide(query)).unflatten(1, heads).sum(2)
    grad_value = (probabilities.mT @ grad).unflatten(1, heads).sum(2)
    return grad_scores @ _repeat(key, query), grad_key, grad_value


def _scores(query: torch.Tensor, key: torch.Tensor, causal: bool, scale: float) -> torch.Tensor:
    scores = _wide(query) @ _repeat(key, query).mT * scale
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    return scores


def _repeat(tensor: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """Keys or values once for each of their query heads, in float32 or wider."""
    return _wide(tensor).repeat_interleave(query.shape[1] // tensor.shape[1], dim=1)
