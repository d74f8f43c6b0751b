"""``rlplatform model show``: how large a model is, tensor by tensor, and what it takes to train it, without loading it.

Shapes are those of the module itself, built without memory on torch's meta device. Training memory is the model state
of ZeRO (arXiv 1910.02054, section 5 and figure 1) with the learner's dtypes: from stage 1 on the optimiser's state is
divided by the ranks, from 2 on the gradients, from 3 on the weights.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlplatform.config import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from model.config import Qwen3Config

MIB, GIB = 2**20, 2**30
# Bytes a parameter. bfloat16 trains with float32 masters, and both accumulate gradients in float32 (actors/engine.py).
TRAINING_BYTES = {
    "float32": {"weights": 4, "gradients": 4, "optimiser": 8},  # AdamW's two moments
    "bfloat16": {"weights": 2, "gradients": 4, "optimiser": 12},  # and the float32 masters
}
SHARDED_FROM = {"optimiser": 1, "gradients": 2, "weights": 3}  # ZeRO stage
_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True)
class ModelSize:
    """What ``show`` prints about one model."""

    name: str
    model_type: str
    facts: str  # layers, widths, heads, in one line
    shapes: Mapping[str, tuple[int, ...]]  # of every parameter, tied ones once
    num_active: int  # parameters that one token passes through, embeddings included
    num_embedding: int  # of the input embedding, and of the output matrix where it is one of its own
    cache_values: int  # numbers in the key-value cache a token; 0: not known
    stored: str = ""  # what the folder's safetensors hold, where there are any

    @property
    def num_total(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())


def measure(preset_or_path: str) -> ModelSize:
    """The size of a preset, of a Hugging Face folder (its config.json is enough) or of a hub id.

    Raises:
        ConfigError: neither; with the nearest preset's name.
    """
    from model.config import PRESETS, Qwen3Config, unsupported_reason

    if preset_or_path in PRESETS:
        return _qwen3(preset_or_path, PRESETS[preset_or_path])
    values = _config_json(preset_or_path, PRESETS)
    try:
        known = not unsupported_reason(values)
        size = _qwen3(preset_or_path, Qwen3Config.from_hf(values)) if known else _other(preset_or_path, values)
    except Exception as error:  # transformers' configuration classes raise whatever they like
        raise ConfigError(f"{preset_or_path}: config.json does not describe a model: {error!s:.200}") from error
    try:
        return replace(size, stored=_stored(preset_or_path))
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from error


def _config_json(path: str, presets: Mapping[str, Any]) -> dict[str, Any]:
    from model.folder import read_config

    if not Path(path).is_dir() and (path.count("/") != 1 or path.startswith((".", "~", "/"))):
        raise ConfigError(f"{path!r}: no such folder, and no preset of that name{_nearest(path, presets)}")
    try:
        return read_config(path)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if Path(path).is_dir():
            raise ConfigError(reason) from error
        raise ConfigError(
            f"{path!r}: no such folder, and as a hub id it did not load ({reason}){_nearest(path, presets)}"
        ) from error


def _nearest(name: str, presets: Mapping[str, Any]) -> str:
    lower = {preset.lower(): preset for preset in presets}
    near = difflib.get_close_matches(name.rstrip("/").rpartition("/")[2].lower(), lower, n=1, cutoff=0.55)
    hint = f"; did you mean the preset {lower[near[0]]}?" if near else ""
    return f"{hint} Presets: {', '.join(presets)}" if hint else f"; presets: {', '.join(presets)}"


def _qwen3(name: str, config: Qwen3Config) -> ModelSize:
    import torch

    from model.qwen3 import Qwen3

    with torch.device("meta"):
        module = Qwen3(config)
    heads = f"{config.num_attention_heads} query and {config.num_key_value_heads} key-value heads × {config.head_dim}"
    if config.is_moe:
        mlp = f"{config.num_experts} experts × {config.moe_intermediate_size}, {config.num_experts_per_tok} a token"
    else:
        mlp = f"feed-forward {config.intermediate_size}"
    facts = [f"{config.num_hidden_layers} layers", f"hidden {config.hidden_size}", heads, mlp]
    facts += [f"vocabulary {config.vocab_size}", f"{config.max_position_embeddings} positions"]
    facts += [f"RoPE base {config.rope_theta:,.0f}" + (f", YaRN × {config.yarn.factor:g}" if config.yarn else "")]
    facts += ["tied head"] if config.tie_word_embeddings else []
    return ModelSize(
        name,
        config.model_type,
        ", ".join(facts),
        _shapes(module),
        config.num_active_parameters(),
        config.num_embedding_parameters(),
        2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim,
    )


def _other(name: str, values: Mapping[str, Any]) -> ModelSize:
    """Any other causal language model that transformers knows."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if not isinstance(values.get("model_type"), str):
        raise ValueError(f"expected model_type, a string, got {values.get('model_type')!r}")
    config = AutoConfig.for_model(**values)
    values = config.to_dict()  # with the family's defaults where the file is silent
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config)
    shapes = _shapes(module)
    experts = sum(math.prod(shape) for key, shape in shapes.items() if ".experts." in key)
    num_experts = values.get("num_experts") or values.get("num_local_experts") or values.get("n_routed_experts") or 0
    idle = 1 - values.get("num_experts_per_tok", num_experts) / num_experts if num_experts else 0.0
    total = sum(math.prod(shape) for shape in shapes.values())
    ends = {id(end.weight): end.weight.numel() for end in (module.get_input_embeddings(), _head(module)) if end}
    wanted = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "vocab_size")
    heads = values.get("num_key_value_heads") or values.get("num_attention_heads") or 0
    width = values.get("head_dim") or values.get("hidden_size", 0) // (values.get("num_attention_heads") or 1)
    return ModelSize(
        name,
        str(values.get("model_type")),
        ", ".join(f"{key} {values[key]}" for key in wanted if key in values),
        shapes,
        total - round(experts * idle),
        sum(ends.values()),
        2 * values.get("num_hidden_layers", 0) * heads * width,
    )


def _head(module: Any) -> Any:
    return module.get_output_embeddings()


def _stored(path: str) -> str:
    from model.folder import WeightFiles

    files = sorted(Path(path).glob("*.safetensors")) if Path(path).is_dir() else []
    if not files:
        return ""
    shapes = WeightFiles(path).shapes
    numbers = sum(math.prod(shape) for shape in shapes.values())
    size = sum(file.stat().st_size for file in files)
    return f"{numbers:,} numbers in {len(shapes)} tensors of {len(files)} safetensors files, {size / GIB:.2f} GiB"


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


# --- memory ---------------------------------------------------------------------------------------------------------


def training_memory(num_parameters: int, dtype: str, stage: int, ranks: int) -> dict[str, float]:
    """Bytes a rank of weights, gradients and optimiser state, and their total."""
    parts = {
        part: num_parameters * size / (ranks if stage >= SHARDED_FROM[part] else 1)
        for part, size in TRAINING_BYTES[dtype].items()
    }
    return {**parts, "total": sum(parts.values())}


def show(preset_or_path: str, *, ranks: Sequence[int] = (1, 8, 64)) -> None:
    """Print parameters, shapes and memory.

    Raises:
        ConfigError: no such preset, folder or hub id, or a number of ranks below 1.
    """
    if any(number < 1 for number in ranks):
        raise ConfigError(f"--ranks: expected numbers from 1 on, got {list(ranks)}")
    size = measure(preset_or_path)
    print(f"{size.name} ({size.model_type}): {size.facts}\n")
    print(f"{'parameters':<12}{size.num_total:>18,}  {size.num_total / 1e9:.3f} B")
    print(f"{'  active':<12}{size.num_active:>18,}  {size.num_active / 1e9:.3f} B, those one token passes through")
    print(f"{'  embedding':<12}{size.num_embedding:>18,}  {size.num_embedding / 1e9:.3f} B, input and output\n")
    rows = grouped(size.shapes)
    width = max(len(name) for name, *_ in rows)
    print("shapes")
    for name, shape, count in rows:
        times = f" × {count}" if count > 1 else ""
        print(f"  {name:<{width}}  {list(shape)}{times}")
    if size.stored:
        print(f"\nstored: {size.stored}")
    unit, scale = ("GiB", GIB) if size.num_total >= 10**8 else ("MiB", MIB)
    alone = (f"{dtype} {size.num_total * parts['weights'] / scale:.2f}" for dtype, parts in TRAINING_BYTES.items())
    print(f"\nweights alone, {unit}: {', '.join(alone)}")
    if size.cache_values:
        cache = 2 * size.cache_values
        print(f"key-value cache in bfloat16: {cache:,} bytes a token, {cache * 32768 / GIB:.2f} GiB for 32,768 tokens")
    print(f"\ntraining with AdamW, {unit} a rank; without activations, logits and communication buffers")
    print(f"{'dtype':<10}{'ZeRO':>5}{'ranks':>7}{'weights':>11}{'gradients':>11}{'optimiser':>11}{'total':>11}")
    for dtype in TRAINING_BYTES:
        # Without sharding the ranks do not matter, and on one rank the stage does not.
        for stage, number in [(0, 1), *((stage, number) for stage in (1, 2, 3) for number in ranks if number > 1)]:
            memory = training_memory(size.num_total, dtype, stage, number)
            columns = [f"{memory[part] / scale:>11.2f}" for part in ("weights", "gradients", "optimiser", "total")]
            print(f"{dtype:<10}{stage:>5}{number if stage else 'any':>7}{''.join(columns)}")
    print(
        "one rank needs as much at every stage; bfloat16 keeps float32 masters, and the learner runs it from stage 1 on"
    )


def grouped(shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[str, tuple[int, ...], int]]:
    """(name, shape, how many) with the numbers of equal layers drawn together: ``model.layers.{0-27}.mlp...``."""
    found: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for name, shape in shapes.items():
        number = _LAYER.search(name)
        found.setdefault((_LAYER.sub("{}", name, count=1), shape), []).append(number[0] if number else "")
    return [
        (
            pattern.replace("{}", numbers[0] if len(numbers) == 1 else "{" + _spans(numbers) + "}", 1),
            shape,
            len(numbers),
        )
        for (pattern, shape), numbers in found.items()
    ]


def _spans(numbers: Sequence[str]) -> str:
    spans: list[list[int]] = []
    for number in map(int, numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(f"{first}-{last}" if first < last else str(first) for first, last in spans)
