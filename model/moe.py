"""Mixture of experts: a float32 router, the top-k experts of each token, all experts' products in one grouped call.

No shared expert; softmax over all experts first, then the top-k, renormalised to sum 1 (Qwen3 report, section 2).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from model.config import Qwen3Config


@dataclass
class RouterRecord:
    """What the routers of one forward did, a row a layer; the raw material of the load-balancing loss.

    Give one to the policy's forward and it is filled; layers append in order.
    """

    probability_sums: list[torch.Tensor] = field(default_factory=list)  # each float32 [E], with gradient
    counts: list[torch.Tensor] = field(default_factory=list)  # each int64 [E]: how many tokens chose the expert
    num_tokens: int = 0


class Router(nn.Module):
    """``x [T, H] -> weights float32 [T, k], experts int64 [T, k], probabilities float32 [T, E], logits``."""

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__()
        self.top_k, self.renormalise = config.num_experts_per_tok, config.norm_topk_prob
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        probabilities = F.linear(x.float(), self.weight.float()).softmax(dim=-1)
        weights, experts = probabilities.topk(self.top_k, dim=-1)
        if self.renormalise:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return weights, experts, probabilities


class Experts(nn.Module):
    """E SwiGLU networks; their weights lie in two tensors."""

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__()
        num, hidden, inner = config.num_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(num, 2 * inner, hidden))  # gate rows, then up rows
        self.down_proj = nn.Parameter(torch.empty(num, hidden, inner))

    def forward(self, x: torch.Tensor, weights: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
        """``x`` [T, H]; ``weights`` float32 [T, k] and ``experts`` int64 [T, k] of the router. Returns [T, H]."""
        num_tokens, top_k = experts.shape
        flat = experts.flatten()
        order = flat.argsort(stable=True)  # token-expert pairs, expert by expert
        ends = torch.bincount(flat, minlength=len(self.down_proj)).cumsum(0).to(torch.int32)
        tokens = order // top_k
        gate, up = F.grouped_mm(x[tokens], self.gate_up_proj.transpose(1, 2), offs=ends).chunk(2, dim=-1)
        out = F.grouped_mm(F.silu(gate) * up, self.down_proj.transpose(1, 2), offs=ends)
        out = out * weights.flatten()[order, None].to(out.dtype)
        # Back to token order, then a sum over k: deterministic, unlike adding at indices.
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        return out[back].view(num_tokens, top_k, -1).sum(dim=1)

    def loop(self, x: torch.Tensor, weights: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
        """The same, expert by expert in plain Python: the reference that tests compare ``forward`` with."""
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

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """``x`` [T, H] -> output [T, H], sum over tokens of the router's probabilities [E], tokens an expert [E]."""
        weights, experts, probabilities = self.gate(x)
        counts = torch.bincount(experts.flatten(), minlength=probabilities.shape[1])
        return self.experts(x, weights, experts), probabilities.sum(dim=0), counts
