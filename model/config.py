"""Qwen3's architecture as one frozen dataclass, the report's eight sizes, and two tiny ones for a laptop.

    config = PRESETS["Qwen3-30B-A3B"]
    config.num_parameters(), config.num_active_parameters()        # 30,532,122,624 and 3,353,032,704, no memory taken
    config = Qwen3Config.from_hf(json.load(open("folder/config.json")))

Field names are those of transformers' ``config.json`` where it has them. ``from_hf`` and ``to_hf`` are inverse; keys
that are not about the architecture (token ids, versions) travel in ``extra``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from model.positions import DualChunkConfig as DualChunkConfig
from model.positions import UnsupportedModelError as UnsupportedModelError
from model.positions import YarnConfig as YarnConfig
from model.positions import check_types, read_dual_chunk, read_rope, rope_settings

DENSE, MOE = "qwen3", "qwen3_moe"  # model_type of transformers and vLLM


@dataclass(frozen=True)
class Qwen3Config:
    """A dense Qwen3, or with ``num_experts`` > 0 a mixture of experts in every layer.

    Defaults as in the Qwen3 Technical Report, tables 1-2, and its published checkpoints.
    """

    hidden_size: int
    intermediate_size: int  # of the dense SwiGLU; unused with experts
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int = 128  # num_attention_heads * head_dim need not be hidden_size
    vocab_size: int = 151_936  # rows of the embedding: 151,669 ids, padded
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 40_960
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    rope_theta: float = 1_000_000.0  # 10,000 before the long-context stage (ABF, arXiv 2309.16039)
    yarn: YarnConfig | None = None
    dual_chunk: DualChunkConfig | None = None
    num_experts: int = 0  # 0: dense
    num_experts_per_tok: int = 8
    moe_intermediate_size: int = 0
    norm_topk_prob: bool = True  # the chosen experts' weights sum to 1
    balance_coef: float = 0.008  # of the load-balancing loss whose balanced value is 1: router_aux_loss_coef * top-k
    extra: Mapping[str, Any] = field(default_factory=dict)  # config.json keys without a field here, kept as they were

    def __post_init__(self) -> None:
        check_types(self)
        if self.rope_theta <= 1:
            raise ValueError(f"rope_theta: expected > 1, got {self.rope_theta}")
        if not self.rms_norm_eps > 0:
            raise ValueError(f"rms_norm_eps: expected > 0, got {self.rms_norm_eps}")
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected >= 1, got {getattr(self, name)}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads}: expected a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}"
            )
        if self.head_dim < 2 or self.head_dim % 2:
            raise ValueError(f"head_dim: expected an even number (RoPE turns pairs), got {self.head_dim}")
        if self.num_experts and not 1 <= self.num_experts_per_tok <= self.num_experts:
            raise ValueError(
                f"num_experts_per_tok: expected 1 to num_experts={self.num_experts}, got {self.num_experts_per_tok}"
            )
        if self.num_experts and self.moe_intermediate_size < 1:
            raise ValueError(f"moe_intermediate_size: expected >= 1 with experts, got {self.moe_intermediate_size}")
        if not self.num_experts and self.intermediate_size < 1:
            raise ValueError(f"intermediate_size: expected >= 1, got {self.intermediate_size}")

    @property
    def is_moe(self) -> bool:
        return self.num_experts > 0

    @property
    def model_type(self) -> str:
        return MOE if self.is_moe else DENSE

    # --- sizes ------------------------------------------------------------------------------------------------------

    def num_embedding_parameters(self) -> int:
        """Of the input embedding, and of the output matrix where it is one of its own."""
        return self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)

    def num_parameters(self) -> int:
        return self._count(self.num_experts)

    def num_active_parameters(self) -> int:
        """Parameters that one token passes through, embeddings included: the report's "activated"."""
        return self._count(self.num_experts_per_tok if self.is_moe else 0)

    def _count(self, experts: int) -> int:
        hidden, head_dim = self.hidden_size, self.head_dim
        attention = hidden * head_dim * (2 * self.num_attention_heads + 2 * self.num_key_value_heads) + 2 * head_dim
        if self.is_moe:
            mlp = hidden * self.num_experts + experts * 3 * hidden * self.moe_intermediate_size
        else:
            mlp = 3 * hidden * self.intermediate_size
        layer = attention + mlp + 2 * hidden
        return self.num_embedding_parameters() + self.num_hidden_layers * layer + hidden

    # --- config.json ------------------------------------------------------------------------------------------------

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> Qwen3Config:
        """From the contents of a ``config.json`` of model_type qwen3 or qwen3_moe, of transformers 4 or 5.

        Raises:
            UnsupportedModelError: a feature this implementation does not compute; the message names the key.
        """
        values = dict(values)
        reason = unsupported_reason(values)
        if reason:
            raise UnsupportedModelError(reason)
        moe = values["model_type"] == MOE
        taken: dict[str, Any] = {}
        for name in _PLAIN:
            if name in values:
                taken[name] = values.pop(name)
        if moe:
            for name in _MOE:
                if name in values:
                    taken[name] = values.pop(name)
            taken["num_experts"] = values.pop("num_experts", values.pop("num_local_experts", 128))
            # transformers' own defaults, where the file is silent
            taken.setdefault("moe_intermediate_size", 768)
            taken.setdefault("num_experts_per_tok", 8)
            taken.setdefault("norm_topk_prob", False)
            coef = values.pop("router_aux_loss_coef", 0.001)
            taken["balance_coef"] = coef * taken["num_experts_per_tok"]
            taken.setdefault("intermediate_size", 6144)
        for name in _PLAIN[:4]:
            if name not in taken:
                raise ValueError(f"config.json: expected {name}, got none")
        taken.setdefault("num_key_value_heads", 4 if moe else 32)
        taken.setdefault("head_dim", taken["hidden_size"] // taken["num_attention_heads"] if moe else 128)
        taken.setdefault("max_position_embeddings", 32_768)
        taken["rope_theta"], taken["yarn"] = read_rope(values, taken["max_position_embeddings"])
        taken["dual_chunk"] = read_dual_chunk(values.pop("dual_chunk_attention_config", None))
        for key in _IMPLIED:
            values.pop(key, None)
        return cls(**taken, extra=values)

    def to_hf(self) -> dict[str, Any]:
        """The contents of a ``config.json`` that transformers and vLLM load."""
        values = {name: getattr(self, name) for name in _PLAIN}
        if self.is_moe:
            values |= {name: getattr(self, name) for name in _MOE}
            values |= {
                "num_experts": self.num_experts,
                "router_aux_loss_coef": self.balance_coef / self.num_experts_per_tok,
                "decoder_sparse_step": 1,
                "mlp_only_layers": [],
            }
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": self.rope_theta}
        if self.yarn is not None:
            rope |= {
                "rope_type": "yarn",
                "factor": self.yarn.factor,
                "original_max_position_embeddings": self.yarn.original_max_position_embeddings,
                "beta_fast": self.yarn.beta_fast,
                "beta_slow": self.yarn.beta_slow,
            }
            if self.yarn.attention_factor is not None:
                rope["attention_factor"] = self.yarn.attention_factor
        values["rope_parameters"] = rope
        if self.dual_chunk is not None:
            values["dual_chunk_attention_config"] = {
                "chunk_size": self.dual_chunk.chunk_size,
                "local_size": self.dual_chunk.local_size,
                "original_max_position_embeddings": self.dual_chunk.original_max_position_embeddings,
            }
        values |= {"hidden_act": "silu", "attention_bias": False, "attention_dropout": 0.0}
        values |= {"use_sliding_window": False, "model_type": self.model_type}
        values["architectures"] = ["Qwen3MoeForCausalLM" if self.is_moe else "Qwen3ForCausalLM"]
        return {**self.extra, **values}


_AT_LEAST_ONE = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "max_position_embeddings",
)
_PLAIN = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "tie_word_embeddings",
    "max_position_embeddings",
    "rms_norm_eps",
    "initializer_range",
)
_MOE = ("num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob")
# Written anew by ``to_hf`` with the only value this implementation has.
_IMPLIED = (
    "model_type",
    "architectures",
    "hidden_act",
    "attention_bias",
    "attention_dropout",
    "use_sliding_window",
    "sliding_window",
    "max_window_layers",
    "layer_types",
    "decoder_sparse_step",
    "mlp_only_layers",
)


def unsupported_reason(values: Mapping[str, Any]) -> str:
    """Why the native Qwen3 does not compute the model of this ``config.json``; "" where it does."""
    kind = values.get("model_type")
    if kind not in (DENSE, MOE):
        return f"model_type: expected {DENSE} or {MOE}, got {kind!r}"
    expected: dict[str, Any] = {"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False}
    if kind == MOE:
        expected |= {"decoder_sparse_step": 1, "mlp_only_layers": []}
    for key, value in expected.items():
        if values.get(key, value) not in (value, None):
            return f"{kind}: expected {key}={value!r}, got {values[key]!r}"
    odd = sorted(set(values.get("layer_types") or ()) - {"full_attention"})
    if odd:
        return f"{kind}: expected every layer to be full attention, got layer types {odd}"
    rope = rope_settings(values)
    rope_type = rope["rope_type"]
    if rope_type not in ("default", "yarn"):
        return f"{kind}: expected rope_type default or yarn, got {rope_type!r}"
    if rope_type == "yarn" and (rope.get("mscale") or rope.get("mscale_all_dim") or rope.get("truncate") is False):
        return f"{kind}: expected YaRN without mscale, mscale_all_dim and truncate=false, got {rope}"
    partial = rope.get("partial_rotary_factor", values.get("partial_rotary_factor"))
    if partial not in (None, 1):
        return f"{kind}: expected partial_rotary_factor=1, got {partial!r}"
    return ""


def _dense(hidden: int, ffn: int, layers: int, heads: int, *, tied: bool) -> Qwen3Config:
    return Qwen3Config(hidden, ffn, layers, heads, 8, tie_word_embeddings=tied)


# Qwen3 Technical Report, tables 1-2; hidden and FFN sizes as in the published checkpoints.
PRESETS: dict[str, Qwen3Config] = {
    "Qwen3-0.6B": _dense(1024, 3072, 28, 16, tied=True),
    "Qwen3-1.7B": _dense(2048, 6144, 28, 16, tied=True),
    "Qwen3-4B": _dense(2560, 9728, 36, 32, tied=True),
    "Qwen3-8B": _dense(4096, 12288, 36, 32, tied=False),
    "Qwen3-14B": _dense(5120, 17408, 40, 40, tied=False),
    "Qwen3-32B": _dense(5120, 25600, 64, 64, tied=False),
    "Qwen3-30B-A3B": Qwen3Config(2048, 6144, 48, 32, 4, num_experts=128, moe_intermediate_size=768),
    "Qwen3-235B-A22B": Qwen3Config(4096, 12288, 94, 64, 4, num_experts=128, moe_intermediate_size=1536),
    # Ours, not the report's: about one million parameters, seconds on one core.
    "tiny": Qwen3Config(
        128, 384, 4, 4, 2, head_dim=32, vocab_size=512, tie_word_embeddings=True, max_position_embeddings=2048
    ),
}
PRESETS["tiny-moe"] = replace(
    PRESETS["tiny"], num_experts=8, num_experts_per_tok=2, moe_intermediate_size=96, balance_coef=0.002
)
