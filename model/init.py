"""A fresh Qwen3 with random weights, as a Hugging Face folder."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

from model.config import PRESETS, DualChunkConfig, Qwen3Config, YarnConfig

SECTIONS: dict[str, type] = {"yarn": YarnConfig, "dual_chunk": DualChunkConfig}
NOT_HERE = ("vocab_size", "extra")  # said by an argument of its own; not about the architecture


def init_model(
    folder: str | Path,
    tokenizer_folder: str | Path,
    architecture: Mapping[str, Any] | None = None,
    vocab_size: int = 0,
    seed: int = 0,
) -> int:
    """Write weights, config, generation_config and tokenizer to ``folder``; returns the number of parameters.

    ``architecture`` holds fields of ``model.config.Qwen3Config`` and ``preset``, the name in ``PRESETS`` that says what
    they leave out (default ``tiny``). ``vocab_size`` is the number of embedding rows; 0 means as many as the tokenizer
    has ids. Equal arguments give equal weights, float32.

    Raises:
        ValueError: an unknown field or preset, a value that does not fit, or fewer rows than ids.
    """
    import torch
    from transformers import AutoTokenizer, GenerationConfig

    from model.hf import allocate
    from model.qwen3 import Qwen3

    tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_folder))
    vocab_size = vocab_size or len(tokenizer)
    if vocab_size < len(tokenizer):
        raise ValueError(f"init_model: expected vocab_size >= {len(tokenizer)}, the tokenizer's ids, got {vocab_size}")
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    config = replace(
        build_config(architecture or {}),
        vocab_size=vocab_size,
        extra={"eos_token_id": eos, "pad_token_id": pad, "use_cache": True},
    )
    with torch.device("meta"):  # torch's own initial values would cost time and a draw of the global generator
        policy = Qwen3(config)
    allocate(policy).init_weights(seed)
    policy.save_pretrained(folder, policy.to_checkpoint(policy.hf_named_parameters()))
    # Sampling defaults are neutral: what a run samples with is the run's own setting.
    ends = [token for token in dict.fromkeys([eos, pad]) if token is not None]
    GenerationConfig(eos_token_id=ends, pad_token_id=pad).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return config.num_parameters()


def build_config(architecture: Mapping[str, Any]) -> Qwen3Config:
    """``PRESETS[preset]`` with the fields that ``architecture`` changes.

    Raises:
        ValueError: an unknown field or preset, with the nearest name; a value that does not fit.
    """
    changes = dict(architecture)
    preset = changes.pop("preset", "tiny")
    if preset not in PRESETS:
        raise ValueError(f"architecture.preset: unknown name {preset!r}{_nearest(str(preset), PRESETS)}")
    _check_names("architecture", changes, Qwen3Config, without=NOT_HERE)
    for name, kind in SECTIONS.items():
        values = changes.get(name)
        if values is None:
            continue
        known = [field.name for field in fields(kind)]
        if not isinstance(values, Mapping):
            raise ValueError(f"architecture.{name}: expected {', '.join(known)}, got {values!r}")
        _check_names(f"architecture.{name}", values, kind)
        missing = [field.name for field in fields(kind) if field.default is MISSING and field.name not in values]
        if missing:
            raise ValueError(f"architecture.{name}: expected {' and '.join(missing)} as well")
        changes[name] = _made(f"architecture.{name}", kind, values)
    return _made("architecture", replace, changes, PRESETS[preset])


def _check_names(where: str, values: Mapping[str, Any], kind: type, without: tuple[str, ...] = ()) -> None:
    known = [field.name for field in fields(kind) if field.name not in without]  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise ValueError(f"{where}: no field {name!r} to set{_nearest(name, [*known, 'preset'])}")


def _made(where: str, make: Any, values: Mapping[str, Any], *arguments: Any) -> Any:
    try:
        return make(*arguments, **values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def _nearest(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(sorted(known))}"
