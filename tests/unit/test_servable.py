"""What the engine cannot compute is said before anything starts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from actors.rollout_fleet import RolloutFleet
from model.config import PRESETS, DualChunkConfig
from rlplatform.cli import app
from rlplatform.config import ConfigError, ModelConfig, RolloutConfig
from rlplatform.servable import check_servable
from rlplatform.types import SamplingParams

REFUSED = "config.json has dual_chunk_attention_config, and vLLM computes no Dual Chunk Attention"


@pytest.fixture
def dual_chunk(tmp_path: Path) -> Path:
    config = replace(PRESETS["tiny"], dual_chunk=DualChunkConfig(96, 32))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config.to_hf()))
    return tmp_path / "model"


def test_dual_chunk_attention_is_refused_in_one_line_that_names_what_decodes_it(dual_chunk: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        check_servable(str(dual_chunk), ModelConfig(), 64)
    message = str(refused.value)
    assert message.startswith(f"{dual_chunk}: {REFUSED}")
    assert message.endswith("model/generate.py decodes this model")
    assert "\n" not in message


def test_a_fleet_refuses_it_without_a_cluster(dual_chunk: Path) -> None:
    import ray

    with pytest.raises(ConfigError, match=REFUSED):
        RolloutFleet(str(dual_chunk), ModelConfig(), RolloutConfig(), SamplingParams(max_new_tokens=8), 64, 0)
    assert not ray.is_initialized()


@pytest.mark.parametrize("kind", ["rl", "eval"])
def test_a_dry_run_refuses_it_alone_and_inside_a_recipe(kind: str, dual_chunk: Path, tmp_path: Path) -> None:
    data = "data: {path: data.jsonl}, reward: {functions: {math: 1}}"
    stage = f"{{kind: {kind}, model: {{path: {dual_chunk}}}, {data}}}"
    alone, recipe = tmp_path / "run.yaml", tmp_path / "recipe.yaml"
    alone.write_text(stage)
    recipe.write_text(f"{{kind: recipe, stages: {{one: {stage}}}}}")
    for file in (alone, recipe):
        result = CliRunner().invoke(app, ["run", str(file), "--dry-run"])
        assert result.exit_code == 2
        assert f"error: {dual_chunk}: {REFUSED}" in result.output


def test_a_dry_run_of_training_alone_and_of_a_model_not_there_yet_passes(dual_chunk: Path, tmp_path: Path) -> None:
    """The native trainer computes Dual Chunk Attention."""
    file = tmp_path / "run.yaml"
    later = "{kind: rl, model: {path: elsewhere}, data: {path: data.jsonl}, reward: {functions: {math: 1}}}"
    for text in (f"{{kind: sft, model: {{path: {dual_chunk}}}, data: {{path: data.jsonl}}}}", later):
        file.write_text(text)
        assert CliRunner().invoke(app, ["run", str(file), "--dry-run"]).exit_code == 0


def test_a_length_beyond_the_positions_is_refused_and_yarn_makes_room(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PRESETS["tiny"].to_hf()))
    check_servable(str(tmp_path), ModelConfig(), 2048)
    with pytest.raises(ConfigError, match=r"up to 2049 tokens, the model has positions for 2048; .*model\.yarn_factor"):
        check_servable(str(tmp_path), ModelConfig(), 2049)
    check_servable(str(tmp_path), ModelConfig(yarn_factor=4.0, yarn_original_length=2048), 8192)
    with pytest.raises(ConfigError, match="positions for 8192"):
        check_servable(str(tmp_path), ModelConfig(yarn_factor=4.0, yarn_original_length=2048), 8193)


def test_positions_that_the_setting_cannot_change_are_refused(tmp_path: Path) -> None:
    values = {"model_type": "llama", "rope_parameters": {"rope_type": "llama3", "factor": 8.0, "rope_theta": 5e5}}
    (tmp_path / "config.json").write_text(json.dumps(values | {"max_position_embeddings": 64}))
    check_servable(str(tmp_path), ModelConfig(), 512)  # another kind of scaling; the engine knows its length
    with pytest.raises(ConfigError, match="rope_type 'llama3'"):
        check_servable(str(tmp_path), ModelConfig(rope_theta=1e6), 64)
