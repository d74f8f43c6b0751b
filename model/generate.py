"""Batched decoding with a key-value cache: for what the engine lacks (Dual Chunk Attention), and for a look at a model.

    completions = generate(policy, [[5, 17, 9], [3, 4]], max_new_tokens=64, temperature=1.0, seed=0)

    prompts, packed ──► prefill: the training forward ──► cache of keys and values ◄──► one token a row and step

Rows are ragged and never padded; a row's tokens come from its own seed and do not depend on its batch mates (in float32
up to the rounding of a matrix product whose shape changes with the batch). Keys lie in the cache as they are turned:
by their position, or with Dual Chunk Attention by their place in their chunk, which no query changes.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F

from model.config import Qwen3Config
from model.dual_chunk import key_tables, query_tables, rows_attend
from model.qwen3 import Qwen3
from model.rope import cos_sin, rotate
from model.sampling import Sampler, uniforms


@dataclass(frozen=True)
class Completion:
    """What followed one prompt. A stop token is the last of ``token_ids``."""

    token_ids: list[int]
    logprobs: list[float]  # of the distribution sampled from; greedy: of the model's own at temperature 1
    finish: Literal["stop", "length"]


@torch.no_grad()
def generate(
    policy: Qwen3,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = -1,
    seed: int | Sequence[int] = 0,
    stop_token_ids: Collection[int] = (),
    max_prefill_tokens: int = 8192,
) -> list[Completion]:
    """One completion a prompt, in the order of ``prompts``, on the policy's device.

    Args:
        temperature: 0 is greedy.
        top_p, top_k: 1 and -1 are off; top-k first, then top-p of what is left, as vLLM does.
        seed: of each row; one number gives row i the seed ``seed + i``.
        stop_token_ids: each ends a row.
        max_prefill_tokens: prompts are computed this many tokens at a time (a longer prompt alone).

    Raises:
        TypeError: not the native model, or token ids that are no whole numbers.
        ValueError: a prompt or a setting that cannot be, or logits that are no numbers; the message says which.
    """
    if not isinstance(policy, Qwen3):
        raise TypeError(f"generate: expected a native Qwen3 (model.hf.load_qwen3), got {type(policy).__name__}")
    sampler = Sampler(temperature, top_p, top_k)
    prompts = [[operator.index(token) for token in prompt] for prompt in prompts]
    seeds = list(seed) if isinstance(seed, Sequence) else [int(seed) + row for row in range(len(prompts))]
    _check(policy.config, prompts, max_new_tokens, seeds)
    if not prompts:
        return []
    draws = torch.stack([uniforms(row_seed, max_new_tokens) for row_seed in seeds])  # [rows, steps]
    decoder = _Decoder(policy, [len(prompt) for prompt in prompts], max_new_tokens)
    logits = decoder.prefill(prompts, max_prefill_tokens)
    rows = list(range(len(prompts)))  # slot of the cache -> prompt
    alive = [True] * len(rows)
    stops = frozenset(stop_token_ids)
    token_ids: list[list[int]] = [[] for _ in prompts]
    logprobs: list[list[float]] = [[] for _ in prompts]
    for step in range(max_new_tokens):
        tokens, chosen = sampler(logits, draws[rows, step].to(logits.device))
        for slot, (token, logprob) in enumerate(zip(tokens.tolist(), chosen.tolist(), strict=True)):
            if alive[slot]:
                token_ids[rows[slot]].append(token)
                logprobs[rows[slot]].append(logprob)
                alive[slot] = token not in stops
        if step == max_new_tokens - 1 or not any(alive):
            break
        if sum(alive) <= len(alive) // 2:  # a finished row costs as much as a running one; moving all costs too
            kept = [slot for slot, running in enumerate(alive) if running]
            decoder.keep(kept)
            tokens, rows, alive = tokens[kept], [rows[slot] for slot in kept], [True] * len(kept)
        logits = decoder.step(tokens, alive)
    finished: list[Literal["stop", "length"]] = ["stop" if ids[-1] in stops else "length" for ids in token_ids]
    return [Completion(*row) for row in zip(token_ids, logprobs, finished, strict=True)]


def _check(config: Qwen3Config, prompts: Sequence[Sequence[int]], max_new_tokens: int, seeds: Sequence[int]) -> None:
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens: expected >= 1, got {max_new_tokens}")
    if len(seeds) != len(prompts):
        raise ValueError(f"seed: expected one number or one for each of {len(prompts)} prompts, got {len(seeds)}")
    for row, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {row}: expected at least one token, got none")
        if not (min(prompt) >= 0 and max(prompt) < config.vocab_size):
            raise ValueError(f"prompt {row}: expected token ids below {config.vocab_size}, got {list(prompt)[:8]} ...")


# --- cache ----------------------------------------------------------------------------------------------------------


@dataclass
class _Cache:
    """Turned keys and values of every layer, [slots, kv_heads, capacity, head_dim] each; grows by doubling."""

    num_slots: int
    capacity: int
    most: int  # tokens that any row can reach
    keys: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)

    def write(
        self, layer: int, slots: torch.Tensor, positions: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> None:
        """Put ``key`` and ``value`` [T, kv_heads, head_dim] at ``positions`` of ``slots`` (int64 [T] each)."""
        if layer == len(self.keys):
            shape = (self.num_slots, key.shape[1], self.capacity, key.shape[2])
            self.keys.append(key.new_zeros(shape))  # zeros: what is masked is multiplied by 0, and must be finite
            self.values.append(value.new_zeros(shape))
        self.keys[layer][slots, :, positions] = key
        self.values[layer][slots, :, positions] = value

    def reserve(self, length: int) -> None:
        if length <= self.capacity:
            return
        self.capacity = min(max(length, 2 * self.capacity), self.most)
        for tensors in (self.keys, self.values):
            for layer, old in enumerate(tensors):
                new = old.new_zeros((*old.shape[:2], self.capacity, old.shape[3]))
                new[:, :, : old.shape[2]] = old
                tensors[layer] = new

    def keep(self, slots: torch.Tensor) -> None:
        self.num_slots = len(slots)
        for tensors in (self.keys, self.values):
            for layer, old in enumerate(tensors):
                tensors[layer] = old[slots]


class _PrefillAttend:
    """The training forward's attention; keys and values go into the cache as well."""

    def __init__(
        self,
        config: Qwen3Config,
        cache: _Cache,
        slots: torch.Tensor,
        positions: torch.Tensor,
        cu_seqlens: torch.Tensor,
        dtype: torch.dtype,
    ) -> None:
        self.cache, self.slots, self.positions = cache, slots, positions
        self.attend = rows_attend(config, positions, cu_seqlens, dtype)
        self.tables = _key_tables(config, positions, dtype)

    def __call__(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        self.cache.write(layer, self.slots, self.positions, rotate(key, *self.tables), value)
        return self.attend(layer, query, key, value)


class _StepAttend:
    """One new token in each slot; ``positions`` int64 [B] are where they stand, on the device and on the host."""

    def __init__(
        self, config: Qwen3Config, cache: _Cache, positions: torch.Tensor, host: Sequence[int], dtype: torch.dtype
    ) -> None:
        self.cache, self.positions = cache, positions
        self.slots = torch.arange(len(positions), device=positions.device)
        self.scale = config.head_dim**-0.5
        self.length = max(host) + 1
        cached = torch.arange(self.length, device=positions.device)
        self.mask = (cached <= positions[:, None])[:, None, None]  # [B, 1, 1, S]
        self.keys = _key_tables(config, positions, dtype)
        self.distance: torch.Tensor | None = None
        if config.dual_chunk is None:
            self.queries = [cos_sin(config, positions, dtype)]
        else:
            self.queries = query_tables(config, positions, dtype)
            chunk = config.dual_chunk.chunk_len
            if self.length > chunk:  # 0, 1, 2: the query's own chunk, the one before, an earlier one
                back = positions[:, None] // chunk - cached // chunk
                self.distance = back.clamp(0, 2)[:, None, None, None]  # [B, 1, 1, 1, S]

    def __call__(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        self.cache.write(layer, self.slots, self.positions, rotate(key, *self.keys), value)
        keys = self.cache.keys[layer][:, :, : self.length]
        values = self.cache.values[layer][:, :, : self.length]
        groups = (keys.shape[1], query.shape[1] // keys.shape[1])
        # The query heads of one key head stand where a longer query's positions would.
        turned = [rotate(query, *tables).unflatten(1, groups) for tables in self.queries]  # [B, kv_heads, G, head_dim]
        if self.distance is None:
            mixed = F.scaled_dot_product_attention(turned[0], keys, values, attn_mask=self.mask, scale=self.scale)
            return mixed.flatten(1, 2)
        # Keys are read once for all three; the score that counts is picked.
        wide = torch.cat(turned, dim=2).float() @ keys.float().mT
        scores = wide.unflatten(2, (3, groups[1]))
        scores = scores.gather(2, self.distance.expand(*scores.shape[:2], 1, *scores.shape[3:]))[:, :, 0]
        weights = (scores * self.scale).masked_fill(~self.mask, -torch.inf).softmax(dim=-1)
        return (weights @ values.float()).to(query.dtype).flatten(1, 2)


def _key_tables(config: Qwen3Config, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return (cos_sin if config.dual_chunk is None else key_tables)(config, positions, dtype)


class _Decoder:
    """The policy, its cache, and how many tokens each slot holds."""

    def __init__(self, policy: Qwen3, lengths: list[int], max_new_tokens: int) -> None:
        self.policy, self.lengths = policy, lengths
        self.dtype, self.device = policy.model.norm.weight.dtype, policy.model.norm.weight.device
        most = max(lengths) + max_new_tokens
        self.cache = _Cache(len(lengths), min(most, max(lengths) + 256), most)

    def prefill(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> torch.Tensor:
        """Logits [B, V] after each prompt."""
        logits, start = [], 0
        while start < len(prompts):
            end, num = start + 1, len(prompts[start])
            while end < len(prompts) and num + len(prompts[end]) <= max_tokens:
                num += len(prompts[end])
                end += 1
            lengths = torch.tensor(self.lengths[start:end], device=self.device)
            slots = torch.arange(start, end, device=self.device).repeat_interleave(lengths)
            ends = lengths.cumsum(0)
            positions = torch.arange(num, device=self.device) - (ends - lengths).repeat_interleave(lengths)
            tokens = torch.tensor([token for prompt in prompts[start:end] for token in prompt], device=self.device)
            cu_seqlens = F.pad(ends, (1, 0)).to(torch.int32)
            attend = _PrefillAttend(self.policy.config, self.cache, slots, positions, cu_seqlens, self.dtype)
            hidden = self.policy.model(tokens, attend, None, "none")
            logits.append(self._logits(hidden[ends - 1]))
            start = end
        return torch.cat(logits)

    def step(self, tokens: torch.Tensor, alive: Sequence[bool]) -> torch.Tensor:
        """Logits [B, V] after one more token in each slot. A slot that is not alive overwrites its last place."""
        self.cache.reserve(max(self.lengths) + 1)
        positions = torch.tensor(self.lengths, device=self.device)
        attend = _StepAttend(self.policy.config, self.cache, positions, self.lengths, self.dtype)
        hidden = self.policy.model(tokens, attend, None, "none")
        self.lengths = [length + running for length, running in zip(self.lengths, alive, strict=True)]
        return self._logits(hidden)

    def keep(self, slots: list[int]) -> None:
        self.lengths = [self.lengths[slot] for slot in slots]
        self.cache.keep(torch.tensor(slots, device=self.device))

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return (hidden @ self.policy.lm_head_weight.T).float()
