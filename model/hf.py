"""Hugging Face folders in and out, and the one door to a policy: native Qwen3, or transformers for anything else.

    policy = load_policy("path/to/model", dtype="float32")
    hidden = policy(token_ids, positions, cu_seqlens)      # [T, H]
    logits = hidden @ policy.lm_head_weight.T              # in chunks: model/logprobs.py

The files themselves are model/folder.py's. What does not fit a model is said before a tensor is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from model import folder as files
from model.checkpointing import CHECKPOINTING, MODES
from model.config import DENSE, MOE, Qwen3Config, UnsupportedModelError, unsupported_reason
from model.folder import MAX_SHARD_BYTES, WeightFiles, copy_companion_files, read_config, some, split_experts
from model.long_context import AS_IN_CHECKPOINT, RopeOverride
from model.qwen3 import Qwen3

if TYPE_CHECKING:
    from model.transformers_lm import PackedCausalLM

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_policy(
    path: str,
    *,
    dtype: str = "float32",
    activation_checkpointing: CHECKPOINTING = "none",
    meta: bool = False,
    trust_remote_code: bool = False,
    rope: RopeOverride = AS_IN_CHECKPOINT,
) -> Qwen3 | PackedCausalLM:
    """Load a folder or hub id behind the narrow forward.

    ``model_type`` qwen3 and qwen3_moe run natively; a variant of them that is not implemented (biases, dense layers
    among experts) and every other architecture run through transformers, if packing leaves their numbers alone.

    Args:
        dtype: ``float32`` or ``bfloat16``, of parameters and compute.
        activation_checkpointing: ``none``, ``selective`` or ``full``; see model/checkpointing.py.
        meta: parameters without storage, from the config alone: names and shapes.
        rope: positions to use instead of the checkpoint's; exports carry them.

    Raises:
        UnsupportedModelError: packing would change the model's numbers.
        FileNotFoundError: no config.json or no safetensors there.
        ValueError: an unreadable file, or weights that do not fit the config; the message names the tensors.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {sorted(DTYPES)}, got {dtype!r}")
    if activation_checkpointing not in MODES:
        raise ValueError(f"activation_checkpointing: expected one of {MODES}, got {activation_checkpointing!r}")
    values = read_config(path)
    if values.get("quantization_config"):
        raise UnsupportedModelError(
            f"{path}: expected weights in float32, bfloat16 or float16, got a model with quantization_config "
            f"({values['quantization_config'].get('quant_method')}); convert it first"
        )
    if values.get("model_type") in (DENSE, MOE) and not (unsupported_reason(values) or "auto_map" in values):
        return load_qwen3(path, dtype=dtype, activation_checkpointing=activation_checkpointing, meta=meta, rope=rope)
    from model.transformers_lm import load_transformers

    return load_transformers(
        path,
        dtype=DTYPES[dtype],
        activation_checkpointing=activation_checkpointing,
        meta=meta,
        trust_remote_code=trust_remote_code,
        changes=rope.changes(values),
    )


def load_qwen3(
    path: str,
    *,
    dtype: str = "float32",
    activation_checkpointing: CHECKPOINTING = "none",
    meta: bool = False,
    rope: RopeOverride = AS_IN_CHECKPOINT,
) -> Qwen3:
    """The native model of a folder or hub id; errors as in ``load_policy``."""
    config = Qwen3Config.from_hf(rope.apply(read_config(path)))
    with torch.device("meta"):
        policy = Qwen3(config, source=str(path), activation_checkpointing=activation_checkpointing)
    policy = policy.to(DTYPES[dtype])
    if not meta:
        fill(policy, WeightFiles(path))
    return policy


def allocate(policy: Qwen3) -> Qwen3:
    """Give a model on the meta device storage on the CPU, without values; a tied head stays tied."""
    policy.to_empty(device="cpu")
    if policy.config.tie_word_embeddings:
        policy.lm_head.weight = policy.model.embed_tokens.weight
    return policy


@torch.no_grad()
def fill(policy: Qwen3, weights: WeightFiles) -> None:
    """Give a model on the meta device its storage, and copy the files' tensors into it one by one.

    Experts may lie in the files one by one, or joined as transformers holds them in memory. A tied head may be in the
    files as well, if it equals the embedding.

    Raises:
        ValueError: a tensor is missing, in surplus or of another shape; nothing was read or allocated.
    """
    targets = _targets(policy, dict(policy.named_parameters()), weights)
    whole = dict(allocate(policy).named_parameters())
    places = whole | dict(split_experts(whole.items()))
    head: torch.Tensor | None = None
    for name, tensor in weights:
        if name in targets:
            places[name].copy_(tensor)
        else:
            head = tensor.to(policy.lm_head.weight.dtype, copy=True)
    if head is not None and not torch.equal(head, policy.lm_head.weight):
        raise ValueError(
            f"{weights.path}: config.json ties the head to the embedding, but lm_head.weight in the files is another "
            "matrix; set tie_word_embeddings to false, or remove lm_head.weight"
        )


def _targets(policy: Qwen3, parameters: Mapping[str, torch.Tensor], weights: WeightFiles) -> set[str]:
    """Names in the files that a parameter, or one expert's part of a parameter, is filled from."""
    expected: dict[str, torch.Tensor] = {}
    for name, parameter in parameters.items():
        joined = name in weights.shapes
        expected |= {name: parameter} if joined else dict(split_experts([(name, parameter)]))
    surplus = weights.shapes.keys() - expected.keys()
    if policy.config.tie_word_embeddings:
        surplus -= {"lm_head.weight"}
    wrong = [
        f"{name} {list(weights.shapes[name])}, not {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in weights.shapes and weights.shapes[name] != tuple(tensor.shape)
    ]
    missing = [name for name in expected if name not in weights.shapes]
    if missing or surplus or wrong:
        parts = [("missing", missing), ("not in the model", sorted(surplus)), ("of another shape", wrong)]
        found = "; ".join(f"{what}: {some(names)}" for what, names in parts if names)
        raise ValueError(f"{weights.path}: the weights do not fit config.json ({found})")
    return set(expected)


def write_folder(
    config: Qwen3Config,
    state: Mapping[str, torch.Tensor],
    folder: str | Path,
    *,
    source: str = "",
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """The folder of a native model: ``model.folder.write_folder`` with its config."""
    files.write_folder(config.to_hf(), state, folder, source=source, max_shard_bytes=max_shard_bytes)


__all__ = [
    "Qwen3Config",
    "UnsupportedModelError",
    "copy_companion_files",
    "load_policy",
    "load_qwen3",
    "read_config",
    "split_experts",
    "write_folder",
]
