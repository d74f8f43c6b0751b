"""Floating-point operations of a Qwen3 forward pass, counted from its config: what a teacher's logits cost.

A multiplication and an addition are two operations. Counted are the matrix products: projections, SwiGLU or the chosen
experts and the router, attention's two products over the visible keys, the output matrix. Left out are norms, RoPE,
softmax, activations and the embedding lookup (below 1 % for hidden sizes of 1024 and more). A backward pass costs twice
a forward pass; computing activations again costs one more forward.
"""

from __future__ import annotations

from model.config import Qwen3Config


def forward_flops_per_token(config: Qwen3Config, context: int, *, with_logits: bool = True) -> int:
    """One token that sees ``context`` keys, itself included.

    ``with_logits=False`` leaves the output matrix out: prompt tokens whose distribution nobody reads.

    Raises:
        ValueError: context below 1.
    """
    if context < 1:
        raise ValueError(f"forward_flops_per_token: expected context >= 1 (a token sees itself), got {context}")
    queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    projections = config.hidden_size * (2 * queries + 2 * keys)
    attention = 2 * queries * context
    if config.is_moe:
        mlp = config.hidden_size * config.num_experts
        mlp += config.num_experts_per_tok * 3 * config.hidden_size * config.moe_intermediate_size
    else:
        mlp = 3 * config.hidden_size * config.intermediate_size
    head = config.hidden_size * config.vocab_size if with_logits else 0
    return 2 * (config.num_hidden_layers * (projections + attention + mlp) + head)


def forward_flops(config: Qwen3Config, num_tokens: int, *, num_prompt_tokens: int = 0) -> int:
    """One causal sequence of ``num_tokens``, of which the first ``num_prompt_tokens`` need no logits.

    Token t (from 1) sees t keys; the sum is exact, as for a kernel that skips what the causal mask hides. With a
    key-value cache a sequence that is generated costs the same.

    Raises:
        ValueError: a negative count, or more prompt tokens than tokens.
    """
    if not 0 <= num_prompt_tokens <= num_tokens:
        raise ValueError(
            f"forward_flops: expected 0 <= num_prompt_tokens <= num_tokens, got {num_prompt_tokens} and {num_tokens}"
        )
    if num_tokens == 0:
        return 0
    first = forward_flops_per_token(config, 1, with_logits=False)
    per_key = forward_flops_per_token(config, 2, with_logits=False) - first
    head = 2 * config.hidden_size * config.vocab_size * (num_tokens - num_prompt_tokens)
    return num_tokens * first + per_key * (num_tokens * (num_tokens - 1) // 2) + head
