"""What the engine cannot compute is said before anything starts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from actors.rollout_fleet import RolloutFleet
from model.config import PRESETS, DualChunkConfig, UnsupportedModelError
from model.hf import load_policy
from model.qwen3 import Qwen3
from rlplatform.cli import app
from rlplatform.config import (
    ConfigError,
    DPOConfig,
    ModelConfig,
    PreferenceConfig,
    PretrainConfig,
    RLConfig,
    RolloutConfig,
    SFTConfig,
)
from rlplatform.configfile import load_values
from rlplatform.servable import check_now, check_servable
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
def test_a_run_refuses_it_before_it_reads_data_or_starts_ray(
    kind: str, dual_chunk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    from rlplatform import launch

    monkeypatch.setattr(launch, "tokenizer_of", lambda *_, **__: None)
    monkeypatch.setattr(launch, "prompts_of", lambda *_: pytest.fail("data were read"))
    config = load_values(
        {
            "kind": kind,
            "run_dir": str(tmp_path / "run"),
            "model": {"path": str(dual_chunk)},
            "reward": {"functions": {"math": 1.0}},
        }
    )
    with pytest.raises(ConfigError, match=REFUSED):
        launch.run_rl(config) if isinstance(config, RLConfig) else launch.run_eval(config)  # type: ignore[arg-type]
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


def test_fine_tuning_with_such_positions_is_refused_before_a_worker_starts(tmp_path: Path) -> None:
    from pretrain.sft import run_sft

    values = {"model_type": "llama", "rope_parameters": {"rope_type": "llama3", "factor": 8.0, "rope_theta": 5e5}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = SFTConfig(run_dir=str(tmp_path / "run"), model=ModelConfig(str(tmp_path), rope_theta=1e6))
    with pytest.raises(ConfigError, match="rope_type 'llama3'"):
        run_sft(config, rows=[])
    for kind in (SFTConfig, PreferenceConfig, DPOConfig, PretrainConfig):
        with pytest.raises(ConfigError, match="rope_type 'llama3'"):
            check_now(kind(model=config.model))


def test_what_transformers_would_ignore_and_what_nobody_computes_is_refused(tmp_path: Path) -> None:
    from transformers import Qwen2Config

    dual = {"chunk_size": 96, "local_size": 32}
    Qwen2Config(vocab_size=96, hidden_size=64, num_hidden_layers=1, dual_chunk_attention_config=dual).save_pretrained(
        tmp_path / "qwen2"
    )
    with pytest.raises(UnsupportedModelError, match="native Qwen3 only; transformers would ignore it"):
        load_policy(str(tmp_path / "qwen2"), meta=True)
    for odd in ({**dual, "sparse_attention_enabled": True}, {"chunk_size": 96}):
        (tmp_path / "config.json").write_text(
            json.dumps(PRESETS["tiny"].to_hf() | {"dual_chunk_attention_config": odd})
        )
        with pytest.raises(UnsupportedModelError, match="sparse attention inside chunks is not computed"):
            load_policy(str(tmp_path), meta=True)
    (tmp_path / "config.json").write_text(json.dumps(PRESETS["tiny"].to_hf() | {"dual_chunk_attention_config": dual}))
    policy = load_policy(str(tmp_path), meta=True)
    assert isinstance(policy, Qwen3)
    assert policy.config.dual_chunk == DualChunkConfig(96, 32)


@pytest.mark.parametrize("name", ["an empty folder", "nowhere/at all/of course"])
def test_a_path_that_is_no_model_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "an empty folder").mkdir()
    path = str(tmp_path / name) if name.startswith("an") else name
    with pytest.raises(ConfigError, match="expected a Hugging Face folder with") as got:
        check_servable(path, ModelConfig(), 64)
    assert path in str(got.value)


def test_positions_stated_twice_are_refused_before_anything_starts(tmp_path: Path) -> None:
    """Evaluation has no learner that would refuse them when it loads."""
    values = PRESETS["tiny"].to_hf()
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    (tmp_path / "config.json").write_text(json.dumps(values | {"rope_scaling": yarn}))
    with pytest.raises(ConfigError, match="the rope settings are stated twice and differ"):
        check_servable(str(tmp_path), ModelConfig(), 64)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"expected a Hugging Face folder with config\.json, .* got .*object"):
        check_servable(str(tmp_path), ModelConfig(), 64)
