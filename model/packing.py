"""The packed attention of ``model/attention.py`` as a registered attention function of transformers."""

from __future__ import annotations

from typing import Any

import torch

from model.attention import Packing
from model.attention import packed_attention as attend_packed
from model.config import UnsupportedModelError

NAME = "rlplatform_packed"  # the attention implementation's name inside transformers


def register() -> None:
    """Make ``attn_implementation=NAME`` known to transformers, with no mask of its own. Idempotent."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, no_mask)


def no_mask(*_: Any, **__: Any) -> None:
    """The mask interface's answer: row boundaries travel as ``packing``, never as a [T x T] mask."""


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # [1, heads, T, head_dim]
    key: torch.Tensor,  # [1, kv_heads, T, head_dim]
    value: torch.Tensor,  # [1, kv_heads, T, head_dim]
    attention_mask: torch.Tensor | None,
    *,
    packing: Packing | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,  # not applied: it would make the first update's ratio differ from 1
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each row; returns ([1, T, heads, head_dim], None)."""
    if packing is None:
        raise UnsupportedModelError(
            f"{type(module).__name__} does not hand row boundaries (`packing`) to the packed attention; rows would see "
            "each other. Or the model was not called through PackedCausalLM"
        )
    for feature in ("sliding_window", "softcap", "s_aux", "position_bias"):
        if kwargs.get(feature) is not None:
            raise ValueError(
                f"{type(module).__name__} asks for `{feature}`, which packed attention does not compute; "
                "use a model whose layers are all plain full attention"
            )
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # [T, heads, head_dim]
    return attend_packed(q, k, v, packing, scaling)[None], None
