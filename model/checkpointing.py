"""Activation checkpointing: what a layer keeps for its backward pass and what it computes again.

``none`` keeps everything; ``full`` keeps a layer's input and runs the whole layer again; ``selective`` keeps the
results of matrix products and attention, the dear part, and runs norms, rotations and gates again (torch's selective
activation checkpointing). All three give the same gradients, bit for bit.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.utils.checkpoint import (
    CheckpointPolicy,
    _CachedTorchDispatchMode,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from model.moe import MIX_EXPERTS

if TYPE_CHECKING:
    from torch import nn

CHECKPOINTING = Literal["none", "selective", "full"]
MODES: tuple[CHECKPOINTING, ...] = ("none", "selective", "full")


@cache
def _dear_operators() -> frozenset[Any]:
    names = (
        "mm",
        "addmm",
        "bmm",
        "_grouped_mm",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
    )
    # All products of the experts are one operator, which gives out no more than the layer's output and what it keeps.
    found = [getattr(torch.ops.aten, name).default for name in names if hasattr(torch.ops.aten, name)]
    varlen = getattr(getattr(torch.ops, "torch_attn", None), "_varlen_attn", None)
    return frozenset([*found, MIX_EXPERTS, *([varlen.default] if varlen is not None else [])])


def _policy(_context: Any, operator: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in _dear_operators() else CheckpointPolicy.PREFER_RECOMPUTE


class _Replay(_CachedTorchDispatchMode):
    """Hands back what was kept. torch's own insists that forward and recomputation run the same operators one by one;
    under ZeRO-3 they do not, since gathering and releasing parameters shows up between a layer's own.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in _dear_operators():
            return func(*args, **(kwargs or {}))
        return super().__torch_dispatch__(func, types, args, kwargs)


def selective_contexts() -> tuple[Any, Any]:
    """What ``torch.utils.checkpoint`` enters for the forward and for the recomputation of a layer."""
    keep, replay = create_selective_checkpoint_contexts(_policy)
    return keep, _Replay(None, replay.storage)


def run_layer(layer: nn.Module, x: torch.Tensor, attend: Any, mode: CHECKPOINTING) -> tuple[torch.Tensor, ...]:
    """``layer(x, attend)``, keeping what ``mode`` says."""
    if mode == "none":
        return layer(x, attend)
    arguments: dict[str, Any] = {"context_fn": selective_contexts} if mode == "selective" else {}
    return checkpoint(layer, x, attend, use_reentrant=False, **arguments)
