"""`rlplatform model show`: sizes against the report's table and transformers, memory by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

from model.config import PRESETS
from model.hf import write_folder
from model.qwen3 import Qwen3
from rlplatform.cli import app
from rlplatform.config import ConfigError
from rlplatform.model_show import GIB, grouped, measure, show, training_memory

CONFIGS = Path(__file__).parents[2].parent / "shared" / "data" / "qwen3_configs" / "configs.jsonl"


def published() -> list:
    if not CONFIGS.exists():
        return [pytest.param(None, marks=pytest.mark.skip(reason=f"{CONFIGS} is absent: published sizes are needed"))]
    return [pytest.param(row, id=row["name"]) for row in map(json.loads, CONFIGS.read_text().splitlines())]


@pytest.mark.parametrize("row", published())
def test_sizes_of_the_presets(row: dict) -> None:
    size = measure(row["name"])
    assert size.num_total == row["params_total"]
    assert size.num_active == row["params_activated_with_embeddings"]
    matrices = 1 if row["tie_word_embeddings"] else 2
    assert size.num_embedding == row["vocab_size"] * row["hidden_size"] * matrices
    assert size.num_total - size.num_embedding == row["params_non_embedding"]
    assert size.cache_values == 2 * row["num_hidden_layers"] * row["num_key_value_heads"] * row["head_dim"]


@pytest.mark.parametrize("preset", ["tiny", "tiny-moe"])
def test_a_folder_is_measured_like_transformers_counts_it(tmp_path: Path, preset: str) -> None:
    policy = Qwen3(PRESETS[preset]).init_weights(0)
    write_folder(policy.config, policy.to_checkpoint(policy.hf_named_parameters()), tmp_path)
    size = measure(str(tmp_path))
    reference = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert size.num_total == reference.num_parameters()
    assert (size.shapes, size.num_active) == (measure(preset).shapes, measure(preset).num_active)
    assert size.stored.startswith(f"{reference.num_parameters():,} numbers in ")
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    assert measure(str(tmp_path)) == replace(size, stored="")  # the config is enough


@pytest.mark.parametrize("tied", [True, False])
def test_other_families(tmp_path: Path, tied: bool) -> None:
    config = AutoConfig.for_model(
        "llama", hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=100, tie_word_embeddings=tied,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    size = measure(str(tmp_path))
    with torch.device("meta"):
        reference = AutoModelForCausalLM.from_config(config)
    assert size.num_total == size.num_active == reference.num_parameters()
    assert size.num_embedding == 6400 * (1 if tied else 2)
    assert size.cache_values == 2 * 3 * 2 * 16


def test_active_parameters_of_another_mixture_of_experts(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "mixtral", hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=100, num_local_experts=4, num_experts_per_tok=1,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    size = measure(str(tmp_path))
    assert size.num_total - size.num_active == 2 * 3 * 3 * 64 * 96  # 3 idle experts of 4, 3 matrices, 2 layers


def test_training_memory_by_hand() -> None:
    """Per parameter: weights + gradients + AdamW (and float32 masters beside bfloat16)."""
    for dtype, stage, ranks, expected in [
        ("float32", 0, 8, 4 + 4 + 8),
        ("float32", 1, 8, 4 + 4 + 1),
        ("float32", 2, 8, 4 + 0.5 + 1),
        ("float32", 3, 8, 0.5 + 0.5 + 1),
        ("bfloat16", 0, 8, 2 + 4 + 12),
        ("bfloat16", 1, 8, 2 + 4 + 1.5),
        ("bfloat16", 2, 8, 2 + 0.5 + 1.5),
        ("bfloat16", 3, 8, 0.25 + 0.5 + 1.5),
        ("bfloat16", 3, 1, 18),
    ]:
        memory = training_memory(1000, dtype, stage, ranks)
        assert memory["total"] == pytest.approx(1000 * expected), (dtype, stage)
        assert memory["total"] == sum(memory[part] for part in ("weights", "gradients", "optimiser"))


def test_layers_of_equal_shape_are_one_line() -> None:
    shapes = {
        "embed.weight": (5, 2),
        "layers.0.q.weight": (2, 2),
        "layers.1.q.weight": (2, 2),
        "layers.2.q.weight": (3, 2),
        "layers.3.q.weight": (2, 2),
        "norm.weight": (2,),
    }
    assert grouped(shapes) == [
        ("embed.weight", (5, 2), 1),
        ("layers.{0-1,3}.q.weight", (2, 2), 3),
        ("layers.2.q.weight", (3, 2), 1),
        ("norm.weight", (2,), 1),
    ]
    for preset in ("tiny", "Qwen3-0.6B"):
        size = measure(preset)
        assert sum(math.prod(shape) * count for _, shape, count in grouped(size.shapes)) == size.num_total


def test_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    show("Qwen3-8B", ranks=[1, 8])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(
        "Qwen3-8B (qwen3): 36 layers, hidden 4096, 32 query and 8 key-value heads × 128, feed-for"
    )
    assert lines[2].split() == ["parameters", "8,190,735,360", "8.191", "B"]
    assert "  model.layers.{0-35}.self_attn.k_norm.weight          [128] × 36" in lines
    assert f"weights alone, GiB: float32 {8190735360 * 4 / GIB:.2f}, bfloat16 {8190735360 * 2 / GIB:.2f}" in lines
    assert any(
        line.startswith("key-value cache in bfloat16: 147,456 bytes a token, 4.50 GiB for 32,768") for line in lines
    )
    (row,) = [line.split() for line in lines if line.startswith("bfloat16") and line.split()[1:3] == ["3", "8"]]
    assert row[3:] == ["1.91", "3.81", "11.44", "17.16"]
    assert sum(line.startswith(("float32 ", "bfloat16 ")) for line in lines) == 2 * 4


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("qwen3-06b", "'qwen3-06b': no such folder, and no preset of that name; did you mean the preset Qwen3-0.6B?"),
        ("0.6B", "did you mean the preset Qwen3-0.6B?"),
        ("./runs/Qwen3-8b", "did you mean the preset Qwen3-8B?"),
        ("30B-A3B", "did you mean the preset Qwen3-30B-A3B?"),
        ("gpt", "no preset of that name; presets: Qwen3-0.6B, "),
        ("nobody/Qwen3-4B", "as a hub id it did not load"),
        ("nobody/Qwen3-4B", "did you mean the preset Qwen3-4B?"),
    ],
)
def test_unknown_names(name: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        measure(name)
    assert reason in str(caught.value)


def test_folders_that_hold_no_model(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"expected a Hugging Face folder with config.json, got notes.txt"):
        measure(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="does not parse"):
        measure(str(tmp_path))
    for values in ({}, {"model_type": "qwen3"}, {"model_type": "no-such-model"}):
        (tmp_path / "config.json").write_text(json.dumps(values))
        with pytest.raises(ConfigError, match=r"config.json does not describe a model"):
            measure(str(tmp_path))
    for values, reason in (
        ({"model_type": "llama", "hidden_size": "x"}, "hidden_size"),
        (PRESETS["tiny"].to_hf() | {"rope_parameters": [1]}, r"rope_parameters: expected an object, got \[1\]"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(values))
        with pytest.raises(ConfigError, match=f"(?s)config.json does not describe a model: .*{reason}"):
            measure(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(PRESETS["tiny"].to_hf()))
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ConfigError, match=r"^\S+/model.safetensors: expected a whole safetensors file"):
        measure(str(tmp_path))
    with pytest.raises(ConfigError, match="--ranks: expected numbers from 1 on"):
        show("tiny", ranks=[0])


def test_exit_codes() -> None:
    runner = CliRunner()
    assert runner.invoke(app, ["model", "show", "tiny", "--ranks", "2"]).exit_code == 0
    result = runner.invoke(app, ["model", "show", "tyny"])
    assert result.exit_code == 2
    assert result.stderr.startswith(
        "error: 'tyny': no such folder, and no preset of that name; did you mean the preset ti"
    )
