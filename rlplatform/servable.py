"""Can a run use this model, at this length, with this tokenizer? Asked in the driver, before any engine starts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.config import DENSE, MOE, UnsupportedModelError
from model.positions import rope_settings
from rlplatform.config import (
    ConfigError,
    DPOConfig,
    EvalConfig,
    ModelConfig,
    PreferenceConfig,
    PretrainConfig,
    RLConfig,
    SampleConfig,
    SFTConfig,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TRAINED = (SFTConfig, PreferenceConfig, DPOConfig, PretrainConfig)  # on given text: no engine samples


def check_servable(path: str, model: ModelConfig, max_model_len: int) -> None:
    """Refuse a model that the engine would refuse, or compute with other numbers than the learner.

    Args:
        path: a Hugging Face folder or hub id.
        max_model_len: tokens, prompt and completion together.

    Raises:
        ConfigError: Dual Chunk Attention, a length beyond the model's, or as ``check_positions``.
    """
    values = check_positions(path, model)
    if values.get("dual_chunk_attention_config"):
        raise ConfigError(
            f"{path}: config.json has dual_chunk_attention_config, and vLLM computes no Dual Chunk Attention: no "
            "rollouts, evaluation or serving with it; model/generate.py decodes this model"
        )
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    longest = values.get("max_position_embeddings")
    other_factor = rope.get("rope_type", rope.get("type", "default")) not in ("default", "yarn")
    if longest and max_model_len > longest and not other_factor:
        raise ConfigError(
            f"{path}: prompt and completion take up to {max_model_len} tokens, the model has positions for {longest}; "
            "shorten data.max_prompt_tokens or sampling.max_new_tokens, or stretch the positions with "
            "model.yarn_factor and model.yarn_original_length"
        )


def check_positions(path: str, model: ModelConfig) -> dict[str, Any]:
    """The model's ``config.json`` with the run's positions in.

    Raises:
        ConfigError: positions that ``model.rope_theta`` or ``model.yarn_factor`` cannot change, or that a Qwen3's
            config.json states twice and differently.
    """
    values = _config_json(path)
    try:
        if values.get("model_type") in (DENSE, MOE):
            rope_settings(values)
        return model.rope.apply(values)
    except UnsupportedModelError as error:
        raise ConfigError(f"{path}: {error}") from error


def tokenizer_of(path: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or hub id; Qwen3's is checked token by token.

    Raises:
        ConfigError: what ``model.tokenizer.load_tokenizer`` refuses.
    """
    from model.tokenizer import TokenizerError, load_tokenizer

    try:
        return load_tokenizer(path, trust_remote_code=trust_remote_code)
    except TokenizerError as error:
        raise ConfigError(str(error)) from error


def check_now(config: Any) -> None:
    """What a run checks of its model before it starts, where that is a folder already there; downloads nothing."""
    if not isinstance(config, (RLConfig, EvalConfig, SampleConfig, *TRAINED)):
        return
    model = config.model
    if (Path(model.path) / "config.json").is_file():
        if isinstance(config, TRAINED):
            check_positions(model.path, model)
        else:
            check_servable(model.path, model, config.max_model_len)


def _config_json(path: str) -> Mapping[str, Any]:
    file = Path(path) / "config.json"
    try:
        if not Path(path).is_dir():
            from huggingface_hub import hf_hub_download

            file = Path(hf_hub_download(path, "config.json"))
        values = json.loads(file.read_text())
        if not isinstance(values, dict):
            raise ValueError(f"config.json: expected a JSON object, got {type(values).__name__}")
        return values
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model.path={path!r}: expected a Hugging Face folder with config.json, or a hub id, got "
            f"{type(error).__name__}: {error}"
        ) from error
