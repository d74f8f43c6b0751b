"""Qwen3 in plain PyTorch: packed token ids in, hidden states out.

    policy = Qwen3(PRESETS["tiny"]).init_weights(seed=0)
    hidden = policy(token_ids, positions, cu_seqlens)      # [T, H]
    logits = hidden @ policy.lm_head_weight.T              # in chunks: model/logprobs.py

Pre-norm decoder: RMSNorm, grouped-query attention with QK-Norm, SwiGLU or a mixture of experts, no biases (Qwen3
Technical Report, section 2). Modules and parameters bear transformers' names, so a state dict needs no table.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, Self

import torch
from torch import nn

from model.attention import Attend
from model.checkpointing import CHECKPOINTING, run_layer
from model.config import Qwen3Config
from model.dual_chunk import rows_attend
from model.functional import gated_silu, rms_norm
from model.moe import MoE, RouterRecord


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension; the mean in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query attention; queries and keys are normed over head_dim before they are turned by RoPE."""

    def __init__(self, config: Qwen3Config, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        width, kv_width = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=False)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)  # one weight vector for all heads
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def forward(self, x: torch.Tensor, attend: Attend) -> torch.Tensor:
        query, key, value = (
            projection(x).unflatten(-1, (-1, self.head_dim)) for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = attend(self.layer, self.q_norm(query), self.k_norm(key), value)
        return self.o_proj(mixed.flatten(-2))


class SwiGLU(nn.Module):
    def __init__(self, config: Qwen3Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(gated_silu(self.gate_proj(x), self.up_proj(x)))


class Layer(nn.Module):
    """``x [T, H] -> (x, *router)``; ``router`` is empty where the layer is dense (see ``MoE.forward``)."""

    def __init__(self, config: Qwen3Config, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp: nn.Module = MoE(config) if config.is_moe else SwiGLU(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: torch.Tensor, attend: Attend) -> tuple[torch.Tensor, ...]:
        x = x + self.self_attn(self.input_layernorm(x), attend)
        normed = self.post_attention_layernorm(x)
        if isinstance(self.mlp, MoE):
            mixed, *router = self.mlp(normed)
            return x + mixed, *router
        return (x + self.mlp(normed),)


class Backbone(nn.Module):
    def __init__(self, config: Qwen3Config) -> None:
        super().__init__()
        # No padding_idx: <|endoftext|> is a token like any other where documents are joined.
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, token_ids: torch.Tensor, attend: Attend, router: RouterRecord | None, checkpointing: CHECKPOINTING
    ) -> torch.Tensor:
        x = self.embed_tokens(token_ids)
        for layer in self.layers:
            x, *routed = run_layer(layer, x, attend, checkpointing if torch.is_grad_enabled() else "none")
            if router is not None and routed:
                router.append(*routed)
        if router is not None:
            router.num_tokens += len(token_ids)
        return self.norm(x)


class Qwen3(nn.Module):
    """``forward(token_ids[T], positions[T], cu_seqlens[B + 1]) -> hidden states [T, H]``, each row as if alone."""

    def __init__(
        self,
        config: Qwen3Config,
        *,
        source: str = "",
        activation_checkpointing: Literal["none", "selective", "full"] = "none",
    ) -> None:
        super().__init__()
        self.config = config
        self.source = source  # the folder or hub id that the weights came from
        self.activation_checkpointing: CHECKPOINTING = activation_checkpointing
        self.model = Backbone(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    @property
    def lm_head_weight(self) -> nn.Parameter:
        """[V, H]; the embedding itself where the two are tied."""
        return self.lm_head.weight  # type: ignore[return-value]

    def forward(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        cu_seqlens: torch.Tensor,
        *,
        router: RouterRecord | None = None,
    ) -> torch.Tensor:
        """Hidden states after the last norm.

        ``token_ids`` int64 [T], ``positions`` int64 [T] (0, 1, ... within each row), ``cu_seqlens`` int32 [B + 1].
        ``router`` is filled with what the routers of a mixture of experts did.
        """
        attend = rows_attend(self.config, positions, cu_seqlens, self.model.norm.weight.dtype)
        return self.model(token_ids, attend, router, self.activation_checkpointing)

    @torch.no_grad()
    def init_weights(self, seed: int) -> Self:
        """Normal with standard deviation ``initializer_range``, norms 1. Equal seeds give equal weights."""
        generator = torch.Generator(device=self.model.norm.weight.device).manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, self.config.initializer_range, generator=generator)
        return self

    def compile_layers(self) -> Self:
        """Compile every layer in place with torch.compile; attention, whose rows have many lengths, stays as it is.

        The first forward compiles (about half a minute on one core); layers share the result, and other numbers of
        tokens reuse it.
        """
        # A layer's number is then no constant of the compiled code: past eight layers dynamo would give up otherwise.
        torch._dynamo.config.allow_unspec_int_on_nn_module = True
        for layer in self.model.layers:
            layer.compile(dynamic=True)
        return self

    # --- the engine's view (actors/engine.py) ---------------------------------------------------------------------

    def hf_named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters under transformers' names, each once: a tied head is left out."""
        yield from self.named_parameters()

    def to_checkpoint(self, state: Any) -> dict[str, torch.Tensor]:
        """``state`` under the names of the checkpoint file: experts one by one. Views, no copies."""
        from model.hf import split_experts

        return dict(split_experts(state))

    def save_pretrained(self, folder: Any, state: Any) -> None:
        """Write a Hugging Face folder: ``state`` (checkpoint names) as safetensors, config and companion files."""
        from model.hf import write_folder

        write_folder(self.config, state, folder, source=self.source)
