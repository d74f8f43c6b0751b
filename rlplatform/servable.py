"""Can the vLLM engine compute this model, at this length? Asked in the driver, before any engine starts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.config import UnsupportedModelError
from rlplatform.config import ConfigError, EvalConfig, ModelConfig, RLConfig


def check_servable(path: str, model: ModelConfig, max_model_len: int) -> None:
    """Refuse a model that the engine would refuse, or compute with other numbers than the learner.

    Args:
        path: a Hugging Face folder or hub id.
        max_model_len: tokens, prompt and completion together.

    Raises:
        ConfigError: Dual Chunk Attention, positions that ``model.rope_theta`` or ``model.yarn_factor`` cannot change,
            or a length beyond the model's.
    """
    values = _config_json(path)
    if values.get("dual_chunk_attention_config"):
        raise ConfigError(
            f"{path}: config.json has dual_chunk_attention_config, and vLLM computes no Dual Chunk Attention: no "
            "rollouts, evaluation or serving with it; model/generate.py decodes this model"
        )
    try:
        values = model.rope.apply(values)
    except UnsupportedModelError as error:
        raise ConfigError(f"{path}: {error}") from error
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    longest = values.get("max_position_embeddings")
    other_factor = rope.get("rope_type", rope.get("type", "default")) not in ("default", "yarn")
    if longest and max_model_len > longest and not other_factor:
        raise ConfigError(
            f"{path}: prompt and completion take up to {max_model_len} tokens, the model has positions for {longest}; "
            "shorten data.max_prompt_tokens or sampling.max_new_tokens, or stretch the positions with "
            "model.yarn_factor and model.yarn_original_length"
        )


def check_now(config: Any) -> None:
    """``check_servable`` for a run whose model is a folder that is already there; nothing is downloaded."""
    if isinstance(config, (RLConfig, EvalConfig)) and (Path(config.model.path) / "config.json").is_file():
        check_servable(config.model.path, config.model, config.max_model_len)


def _config_json(path: str) -> Mapping[str, Any]:
    file = Path(path) / "config.json"
    if not Path(path).is_dir():
        from huggingface_hub import hf_hub_download

        file = Path(hf_hub_download(path, "config.json"))
    return json.loads(file.read_text())
