"""Hugging Face folders in and out, and the one door to a policy: native Qwen3, or transformers for anything else.

    policy = load_policy("path/to/model", dtype="float32")
    hidden = policy(token_ids, positions, cu_seqlens)      # [T, H]
    logits = hidden @ policy.lm_head_weight.T              # in chunks: model/logprobs.py

Reading and writing are exact inverses: tensors bit for bit, keys of config.json that are not ours kept as they were.
A checkpoint file holds each expert's three matrices; the model keeps them in two tensors a layer.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from model.checkpointing import CHECKPOINTING, MODES
from model.config import DENSE, MOE, Qwen3Config, UnsupportedModelError, unsupported_reason
from model.long_context import AS_IN_CHECKPOINT, RopeOverride
from model.qwen3 import Qwen3

if TYPE_CHECKING:
    from model.transformers_lm import PackedCausalLM

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MAX_SHARD_SIZE = "5GB"
HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "config.json"]
# Files beside the weights that an exported folder needs to serve: tokenizer, chat template, generation defaults.
COMPANION_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
_EXPERT = re.compile(r"(?P<layer>.*\.mlp\.experts)\.(?P<expert>\d+)\.(?P<part>gate|up|down)_proj\.weight")


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

    ``model_type`` qwen3 and qwen3_moe run natively; a variant of them that is not implemented (sliding windows, biases,
    dense layers among experts) and every other architecture run through transformers.

    Args:
        dtype: ``float32`` or ``bfloat16``, of parameters and compute.
        activation_checkpointing: ``none``, ``selective`` or ``full``; see model/checkpointing.py.
        meta: parameters without storage, from the config alone: names and shapes.
        rope: positions to use instead of the checkpoint's; exports carry them.

    Raises:
        UnsupportedModelError: packing would change the model's numbers.
        ValueError: the folder's weights do not fit its config; the message names the tensors.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {sorted(DTYPES)}, got {dtype!r}")
    if activation_checkpointing not in MODES:
        raise ValueError(f"activation_checkpointing: expected one of {MODES}, got {activation_checkpointing!r}")
    values = read_config(path)
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
    if meta:
        return policy
    state = dict(join_experts(read_weights(path), config.num_experts))
    if config.tie_word_embeddings:
        state.pop("lm_head.weight", None)  # some files hold the tied head twice
    expected = dict(policy.named_parameters())
    missing, unknown = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    wrong = [
        f"{name} {list(state[name].shape)}, not {list(parameter.shape)}"
        for name, parameter in expected.items()
        if name in state and state[name].shape != parameter.shape
    ]
    if missing or unknown or wrong:
        parts = [("missing", missing), ("not in the model", unknown), ("of another shape", wrong)]
        found = "; ".join(f"{what}: {_some(names)}" for what, names in parts if names)
        raise ValueError(f"{path}: the weights do not fit config.json ({found})")
    converted = {name: tensor.to(DTYPES[dtype]).contiguous() for name, tensor in state.items()}
    policy.load_state_dict(converted, strict=False, assign=True)
    if config.tie_word_embeddings:
        policy.lm_head.weight = policy.model.embed_tokens.weight
    for parameter in policy.parameters():
        parameter.requires_grad_(True)
    return policy


def _some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# --- reading --------------------------------------------------------------------------------------------------------


def read_config(path: str) -> dict[str, Any]:
    """``config.json`` of a folder or hub id."""
    file = Path(path) / "config.json"
    if not Path(path).is_dir():
        from huggingface_hub import hf_hub_download

        file = Path(hf_hub_download(path, "config.json"))
    if not file.is_file():
        raise FileNotFoundError(f"{path}: expected a Hugging Face folder with config.json, got {_content(Path(path))}")
    return json.loads(file.read_text())


def _content(folder: Path) -> str:
    return ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "an empty folder"


def read_weights(path: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of a folder or hub id under their names in the safetensors files, one at a time, shards in order."""
    from safetensors import safe_open

    folder = Path(path)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(path, allow_patterns=HUB_FILES))
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = sorted({folder / name for name in json.loads(index.read_text())["weight_map"].values()})
    else:
        files = [folder / "model.safetensors"]
    lost = [file.name for file in files if not file.is_file()]
    if lost:
        raise FileNotFoundError(f"{path}: expected {_some(lost)} with the weights, got {_content(folder)}")
    for file in files:
        with safe_open(file, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118 - not a mapping
                yield name, shard.get_tensor(name)


def join_experts(state: Iterable[tuple[str, torch.Tensor]], num_experts: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Each layer's experts as ``gate_up_proj`` [E, 2I, H] and ``down_proj`` [E, H, I]; other tensors as they are.

    Raises:
        ValueError: an expert's matrix is missing.
    """
    layers: dict[str, dict[tuple[int, str], torch.Tensor]] = {}
    for name, tensor in state:
        match = _EXPERT.fullmatch(name)
        if match is None:
            yield name, tensor
            continue
        layer, parts = match["layer"], layers.setdefault(match["layer"], {})
        parts[int(match["expert"]), match["part"]] = tensor
        if len(parts) == 3 * num_experts:
            del layers[layer]
            every = range(num_experts)
            pairs = [torch.cat((parts[expert, "gate"], parts[expert, "up"])) for expert in every]
            yield f"{layer}.gate_up_proj", torch.stack(pairs)
            yield f"{layer}.down_proj", torch.stack([parts[expert, "down"] for expert in every])
    for layer, parts in layers.items():
        raise ValueError(f"{layer}: expected 3 matrices for each of {num_experts} experts, got {len(parts)}")


def split_experts(state: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """The inverse of ``join_experts``; every tensor is a view."""
    for name, tensor in state:
        layer, _, last = name.rpartition(".")
        if last == "gate_up_proj" and layer.endswith(".mlp.experts"):
            for expert, pair in enumerate(tensor.unbind(0)):
                gate, up = pair.chunk(2, dim=0)
                yield f"{layer}.{expert}.gate_proj.weight", gate
                yield f"{layer}.{expert}.up_proj.weight", up
        elif last == "down_proj" and layer.endswith(".mlp.experts"):
            for expert, down in enumerate(tensor.unbind(0)):
                yield f"{layer}.{expert}.down_proj.weight", down
        else:
            yield name, tensor


# --- writing --------------------------------------------------------------------------------------------------------


def write_folder(
    config: Qwen3Config,
    state: Mapping[str, torch.Tensor],
    folder: str | Path,
    *,
    source: str = "",
    max_shard_size: str = MAX_SHARD_SIZE,
) -> None:
    """config.json, ``state`` (checkpoint names) as safetensors in shards, and the companion files of ``source``."""
    from huggingface_hub import save_torch_state_dict

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in state.values()}
    values = config.to_hf() | ({"dtype": dtypes.pop()} if len(dtypes) == 1 else {})
    (folder / "config.json").write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
    tensors = {name: _own_storage(tensor.detach().contiguous()) for name, tensor in state.items()}
    save_torch_state_dict(tensors, folder, max_shard_size=max_shard_size)
    copy_companion_files(source, folder)


def _own_storage(tensor: torch.Tensor) -> torch.Tensor:
    """An expert is a view of its layer's tensor; safetensors wants tensors that share nothing."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def copy_companion_files(source: str, folder: Path) -> None:
    """Copy tokenizer, chat template and generation_config beside exported weights; what is absent is left absent."""
    origin = Path(source)
    if origin.is_dir():
        for name in COMPANION_FILES:
            if (origin / name).is_file() and (origin / name).resolve() != (folder / name).resolve():
                shutil.copyfile(origin / name, folder / name)
        return
    if source:
        from transformers import AutoTokenizer

        AutoTokenizer.from_pretrained(source).save_pretrained(folder)


__all__ = ["Qwen3Config", "UnsupportedModelError", "load_policy", "load_qwen3", "read_config", "write_folder"]
