"""A fresh Qwen3-architecture model with random weights, as a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

# About one million parameters with a vocabulary of 512: trains and generates in seconds on one core.
TINY = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}


def init_model(
    folder: str | Path,
    tokenizer_folder: str | Path,
    architecture: Mapping[str, Any] | None = None,
    vocab_size: int = 0,
    seed: int = 0,
) -> int:
    """Write weights, config, generation_config and tokenizer to ``folder``; returns the number of parameters.

    ``architecture`` holds fields of transformers' ``Qwen3Config``; what it leaves out comes from ``TINY``.
    ``vocab_size`` is the number of embedding rows; 0 means as many as the tokenizer has ids. Equal arguments give equal
    weights. Raises ``ValueError`` for a field that ``Qwen3Config`` does not have and for fewer rows than ids.
    """
    import torch
    from transformers import AutoTokenizer, GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_folder))
    vocab_size = vocab_size or len(tokenizer)
    if vocab_size < len(tokenizer):
        raise ValueError(f"init_model: expected vocab_size >= {len(tokenizer)}, the tokenizer's ids, got {vocab_size}")
    known = {field.name for field in fields(Qwen3Config)} - {"vocab_size"}
    unknown = sorted(set(architecture or {}) - known)
    if unknown:
        raise ValueError(f"init_model: Qwen3Config has no field {', '.join(unknown)} to set; fields: {sorted(known)}")

    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    config = Qwen3Config(
        **{
            "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
            **TINY,
            **(architecture or {}),
            "vocab_size": vocab_size,
            "eos_token_id": eos,
            "pad_token_id": pad,
        }
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    # Sampling defaults are neutral: what a run samples with is the run's own setting.
    model.generation_config = GenerationConfig(eos_token_id=list(dict.fromkeys([eos, pad])), pad_token_id=pad)
    with _no_progress_bar():
        model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return sum(parameter.numel() for parameter in model.parameters())


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Saving one small file needs no bar on the screen."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
