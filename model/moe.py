"""Mixture of experts: a float32 router, the top-k experts of each token, all products in one grouped call.

No shared expert; softmax over all experts first, then the top-k, renormalised to sum 1 (Qwen3 report, section 2).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from model.config import Qwen3Config


@dataclass
class RouterRecord:
    """What the routers of one forward did, an entry a layer; the raw material of ``model.balance``.

    Give one to the policy's forward and it is filled; layers append in order.
    """

    probability_sums: list[torch.Tensor] = field(default_factory=list)  # each float32 [E], with gradient
    counts: list[torch.Tensor] = field(default_factory=list)  # each int64 [E]: how many tokens chose the expert
    z_sums: list[torch.Tensor] = field(default_factory=list)  # each float32 []: sum of logsumexp^2, with gradient
    entropy_sums: list[torch.Tensor] = field(default_factory=list)  # each float32 []: nats, without gradient
    num_tokens: int = 0

    def append(
        self, probability_sum: torch.Tensor, count: torch.Tensor, z: torch.Tensor, entropy: torch.Tensor
    ) -> None:
        self.probability_sums.append(probability_sum)
        self.counts.append(count)
        self.z_sums.append(z)
        self.entropy_sums.append(entropy)


class Router(nn.Module):
    """``x [T, H] -> weights float32 [T, k], experts int64 [T, k], logits and probabilities float32 [T, E]``.

    All of it in float32, whatever the dtype of ``x``: rounded logits tie (docs/moe.md has what the difference is).
    """

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__()
        self.top_k, self.renormalise = config.num_experts_per_tok, config.norm_topk_prob
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        logits = F.linear(x.float(), self.weight.float())
        probabilities = logits.softmax(dim=-1)
        weights, experts = probabilities.topk(self.top_k, dim=-1)
        if self.renormalise:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return weights, experts, logits, probabilities


class Dispatch(NamedTuple):
    """The T * k token-expert pairs sorted by expert, tokens of one expert in order. Integers only, no host sync."""

    tokens: torch.Tensor  # int64 [T * k]: whose pair
    back: torch.Tensor  # int64 [T, k]: where in that order a token's pairs stand
    ends: torch.Tensor  # int32 [E]: where each expert's pairs end

    @classmethod
    def of(cls, experts: torch.Tensor, num_experts: int) -> Dispatch:
        """``experts`` int64 [T, k]."""
        chosen, order = experts.flatten().sort(stable=True)
        every = torch.arange(num_experts, device=experts.device)
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        ends = torch.searchsorted(chosen, every, right=True, out_int32=True)
        return cls(order // experts.shape[1], back.view_as(experts), ends)

    @property
    def counts(self) -> torch.Tensor:
        """int64 [E]: tokens that chose each expert."""
        return self.ends.diff(prepend=self.ends.new_zeros(1)).long()


class Experts(nn.Module):
    """E SwiGLU networks; their weights lie in two tensors.

    Raises:
        ValueError: widths that the grouped product cannot take.
    """

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__()
        num, hidden, inner = config.num_experts, config.hidden_size, config.moe_intermediate_size
        if hidden % 8 or inner % 8:
            raise ValueError(
                f"experts: expected hidden_size and moe_intermediate_size to be multiples of 8 (rows of 16 bytes in "
                f"bfloat16, which grouped products need), got {hidden} and {inner}"
            )
        self.gate_up_proj = nn.Parameter(torch.empty(num, 2 * inner, hidden))  # gate rows, then up rows
        self.down_proj = nn.Parameter(torch.empty(num, hidden, inner))

    def forward(self, x: torch.Tensor, weights: torch.Tensor, dispatch: Dispatch) -> torch.Tensor:
        """``x`` [T, H]; ``weights`` float32 [T, k] of the router. Returns [T, H] in the dtype of ``x``."""
        return _mix(x, weights, self.gate_up_proj, self.down_proj, dispatch)

    def loop(self, x: torch.Tensor, weights: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
        """The same from ``experts`` int64 [T, k], one by one in plain Python: what tests compare ``forward`` with."""
        out = torch.zeros_like(x)
        for expert in range(len(self.down_proj)):
            tokens, place = torch.where(experts == expert)
            gate, up = (x[tokens] @ self.gate_up_proj[expert].T).chunk(2, dim=-1)
            mixed = (F.silu(gate) * up) @ self.down_proj[expert].T
            out = out.index_add(0, tokens, mixed * weights[tokens, place, None].to(x.dtype))
        return out


class MoE(nn.Module):
    """Router and experts; beside the output, what ``RouterRecord`` keeps of this layer."""

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__()
        self.gate = Router(config)
        self.experts = Experts(config)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """``x`` [T, H] -> output [T, H] and the arguments of ``RouterRecord.append``."""
        weights, experts, logits, probabilities = self.gate(x)
        dispatch = Dispatch.of(experts, logits.shape[1])
        out = self.experts(x, weights, dispatch)
        normaliser = logits.logsumexp(dim=-1)
        with torch.no_grad():
            entropy = normaliser.sum() - torch.linalg.vecdot(probabilities.flatten(), logits.flatten())
        return out, probabilities.sum(dim=0), dispatch.counts, normaliser.square().sum(), entropy


@torch.compiler.disable  # inductor has no grouped product in float32
def _mix(
    x: torch.Tensor, weights: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, dispatch: Dispatch
) -> torch.Tensor:
    return _Mix.apply(x, weights, gate_up, down, *dispatch)


@torch.library.custom_op("rlplatform::mix_experts", mutates_args=())  # one operator, for model/checkpointing.py
def mix_experts(
    x: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    tokens: torch.Tensor,
    back: torch.Tensor,
    ends: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """y [T, H] and h [T * k, 2I] of ``_Mix``."""
    h = F.grouped_mm(x.index_select(0, tokens), gate_up.transpose(1, 2), offs=ends)
    rows = F.grouped_mm(_gated(h), down.transpose(1, 2), offs=ends)
    return _gather_sum(rows, back, weights.to(x.dtype)), h


MIX_EXPERTS: Any = torch.ops.rlplatform.mix_experts.default


class _Mix(torch.autograd.Function):
    """y_t = sum_j w_tj D_e (silu(G_e x_t) * U_e x_t), e = the j-th expert of t.

    Autograd would keep six [T * k, .] tensors of a layer; this keeps one, the products ``h = [G x, U x]``. With
    a = silu(G x) * U x, every other tensor follows by a gather or elementwise, and the gradient of a routing weight
    needs no output of an expert: dw = <dy, D a> = <D^T dy, a>.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,  # [T, H]
        weights: torch.Tensor,  # float32 [T, k]
        gate_up: torch.Tensor,  # [E, 2I, H]
        down: torch.Tensor,  # [E, H, I]
        tokens: torch.Tensor,
        back: torch.Tensor,
        ends: torch.Tensor,
    ) -> torch.Tensor:
        out, h = mix_experts(x, weights, gate_up, down, tokens, back, ends)
        ctx.save_for_backward(x, weights, gate_up, down, tokens, back, ends, h)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weights, gate_up, down, tokens, back, ends, h = ctx.saved_tensors
        need_x, _, need_gate_up, need_down = ctx.needs_input_grad[:4]
        grad_x = grad_gate_up = grad_down = None
        sorted_weights = torch.empty_like(weights.flatten()).index_copy_(0, back.flatten(), weights.flatten())
        sorted_weights = sorted_weights.to(x.dtype)[:, None]
        gate, up = h.chunk(2, dim=-1)
        # [T * k, .] tensors are written over as soon as they are used up: fresh memory costs as much as arithmetic.
        rows = grad.index_select(0, tokens)  # also makes an expanded gradient contiguous
        grad_a = F.grouped_mm(rows, down, offs=ends)  # before the routing weight
        silu = F.silu(gate)
        a = silu * up
        grad_weights = torch.linalg.vecdot(grad_a, a).to(weights.dtype)[back]
        if need_down:
            grad_down = F.grouped_mm(rows.T, a.mul_(sorted_weights), offs=ends)
        grad_a.mul_(sorted_weights)
        grad_h = torch.empty_like(h)
        grad_gate, grad_up = grad_h.chunk(2, dim=-1)
        torch.mul(grad_a, silu, out=grad_up)
        torch.ops.aten.silu_backward.grad_input(grad_a.mul_(up), gate, grad_input=grad_gate)
        if need_gate_up:
            torch.index_select(x, 0, tokens, out=rows)
            grad_gate_up = F.grouped_mm(grad_h.T, rows, offs=ends)
        del rows, a, silu, grad_a
        if need_x:
            grad_x = _gather_sum(F.grouped_mm(grad_h, gate_up, offs=ends), back, None)
        return grad_x, grad_weights, grad_gate_up, grad_down, None, None, None


def _gated(h: torch.Tensor) -> torch.Tensor:
    gate, up = h.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def _gather_sum(rows: torch.Tensor, back: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """``sum_j weights[t, j] * rows[back[t, j]]``: gathered and summed in one pass, in a fixed order."""
    return F.embedding_bag(back, rows, mode="sum", per_sample_weights=weights)
