"""Any other Hugging Face causal language model behind the narrow forward of ``model/qwen3.py``.

A model whose logits are more than ``hidden @ weight.T``, or whose layers are not all plain full attention, is refused
when it is loaded: packing would change its numbers without an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from model import packing
from model.attention import Packing
from model.checkpointing import CHECKPOINTING, selective_contexts
from model.config import UnsupportedModelError
from model.hf import copy_companion_files

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


class PackedCausalLM(nn.Module):
    """``forward(token_ids[T], positions[T], cu_seqlens[B + 1]) -> hidden states [T, H]``, each row as if alone."""

    def __init__(self, hf: PreTrainedModel, source: str = "") -> None:
        super().__init__()
        check_supported(hf)
        self.hf = hf
        self.source = source  # the folder or hub id that the weights came from
        self.config: PreTrainedConfig = hf.config

    @property
    def lm_head_weight(self) -> nn.Parameter:
        """[V, H]; the embedding itself where the two are tied."""
        return self.hf.get_output_embeddings().weight

    def forward(self, token_ids: torch.Tensor, positions: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
        """Hidden states after the last norm.

        ``token_ids`` int64 [T], ``positions`` int64 [T] (0, 1, ... within each row), ``cu_seqlens`` int32 [B + 1].
        """
        boundaries = Packing(cu_seqlens)
        backbone = getattr(self.hf, self.hf.base_model_prefix)
        output = backbone(
            input_ids=token_ids[None], position_ids=positions[None], use_cache=False, packing=boundaries
        ).last_hidden_state[0]
        if boundaries.calls != self.config.num_hidden_layers:
            raise UnsupportedModelError(
                f"{type(self.hf).__name__}: {boundaries.calls} of {self.config.num_hidden_layers} layers used the "
                "packed attention; the others would let rows see each other"
            )
        return output

    def hf_named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters under transformers' names, each once: a tied head is left out."""
        yield from self.hf.named_parameters()

    def to_checkpoint(self, state: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """``state`` under the names of the checkpoint file, where transformers renames or fuses (experts)."""
        from transformers.core_model_loading import revert_weight_conversion

        return revert_weight_conversion(self.hf, dict(state))

    def save_pretrained(self, folder: str | Path, state: Mapping[str, torch.Tensor]) -> None:
        """Write a Hugging Face folder: ``state`` (checkpoint names) as safetensors, config and companion files."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.hf.save_pretrained(folder, state_dict=dict(state), save_original_format=False)
        copy_companion_files(self.source, folder)


def load_transformers(
    path: str,
    *,
    dtype: torch.dtype,
    activation_checkpointing: CHECKPOINTING,
    meta: bool,
    trust_remote_code: bool,
    changes: Mapping[str, Any] | None = None,
) -> PackedCausalLM:
    """Arguments as those of ``model.hf.load_policy``; ``changes`` are keys of config.json (``RopeOverride``)."""
    from transformers import AutoConfig, AutoModelForCausalLM

    packing.register()
    arguments: dict[str, Any] = {"dtype": dtype, "attn_implementation": packing.NAME}
    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    for key, value in (changes or {}).items():
        setattr(config, key, value)
    check_config(config)
    arguments["trust_remote_code"] = trust_remote_code
    try:
        if meta:
            with torch.device("meta"):
                hf = AutoModelForCausalLM.from_config(config, **arguments)
        else:
            hf = AutoModelForCausalLM.from_pretrained(path, config=config, **arguments)
    except KeyError as error:
        if error.args != (packing.NAME,):
            raise
        raise UnsupportedModelError(
            f"{config.model_type}: its layers choose among attentions of their own; they cannot take the packed "
            "attention, and rows packed together would see each other"
        ) from error
    for module in hf.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # two forwards of one token must agree
    if activation_checkpointing != "none":
        contexts = {"context_fn": selective_contexts} if activation_checkpointing == "selective" else {}
        hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False, **contexts})
        hf.train()
    return PackedCausalLM(hf, source=str(path))


def check_config(config: Any) -> None:
    """Refuse, from the config alone, what packing or a bare ``hidden @ weight.T`` would get wrong."""
    name = getattr(config, "model_type", type(config).__name__)
    kinds = sorted(set(getattr(config, "layer_types", None) or ()) - {"full_attention"})
    if kinds:
        raise UnsupportedModelError(
            f"{name}: expected every layer to be full attention, got layer types {kinds}; rows packed together would "
            "leak into each other there"
        )
    if not getattr(config, "layer_types", None) and getattr(config, "sliding_window", None) is not None:
        raise UnsupportedModelError(f"{name}: expected full attention, got sliding_window={config.sliding_window}")
    if getattr(config, "dual_chunk_attention_config", None):
        raise UnsupportedModelError(
            f"{name}: dual_chunk_attention_config is computed for native Qwen3 only; transformers would ignore it"
        )
    neutral = {
        "logit_scale": 1.0,
        "logits_scaling": 1.0,
        "final_logit_softcapping": None,
        "attn_logit_softcapping": None,
    }
    for key, value in neutral.items():
        got = getattr(config, key, None)
        if got is not None and got != value:
            raise UnsupportedModelError(f"{name}: expected logits of hidden @ weight.T alone, got {key}={got}")


def check_supported(hf: PreTrainedModel) -> None:
    """Refuse, from the built model, a head that is more than a matrix."""
    check_config(hf.config)
    head = hf.get_output_embeddings()
    if head is None or getattr(head, "weight", None) is None:
        raise UnsupportedModelError(f"{type(hf).__name__}: expected a causal LM with an output matrix, got none")
    if getattr(head, "bias", None) is not None:
        raise UnsupportedModelError(
            f"{type(hf).__name__}: expected a head without bias, got one of shape {head.bias.shape}"
        )
    if not isinstance(getattr(hf, hf.base_model_prefix, None), nn.Module):
        raise UnsupportedModelError(f"{type(hf).__name__}: expected a base model under `{hf.base_model_prefix}`")
