"""A fresh model's folder: what config says, loadable by transformers, equal for equal seeds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from model.config import PRESETS
from model.hf import load_policy
from model.init import build_config, init_model
from model.qwen3 import Qwen3
from model.tokenizer import train_bpe
from rlplatform.config import ConfigError, InitModelConfig

SMALL = {"hidden_size": 64, "num_hidden_layers": 2}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_bpe(["one two three 123"] * 4, 320, folder)
    return folder


@pytest.mark.parametrize(
    "architecture",
    [
        SMALL,
        {**SMALL, "tie_word_embeddings": False},
        {**SMALL, "preset": "tiny-moe"},
        {**SMALL, "yarn": {"factor": 2.0, "original_max_position_embeddings": 1024}},
    ],
    ids=["dense", "untied", "moe", "yarn"],
)
def test_the_folder_is_whole_and_equal_in_both_implementations(
    architecture: dict, tokenizer: Path, tmp_path: Path
) -> None:
    count = init_model(tmp_path, tokenizer, architecture, vocab_size=330, seed=3)
    policy = load_policy(str(tmp_path))
    assert isinstance(policy, Qwen3)
    assert policy.config.vocab_size == 330
    assert policy.config.num_hidden_layers == 2
    assert policy.config.is_moe == (architecture.get("preset") == "tiny-moe")
    assert count == sum(p.numel() for p in policy.parameters())
    theirs, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert sum(p.numel() for p in theirs.parameters()) == count
    ids = torch.tensor([5, 300, 17, 40, 41, 8])
    with torch.no_grad():
        hidden = policy(ids, torch.arange(6), torch.tensor([0, 6], dtype=torch.int32))
        torch.testing.assert_close(hidden @ policy.lm_head_weight.T, theirs(ids[None]).logits[0], atol=1e-5, rtol=0)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    own = GenerationConfig.from_pretrained(tmp_path)
    assert theirs.config.eos_token_id == saved.eos_token_id
    assert theirs.config.pad_token_id == own.pad_token_id == saved.pad_token_id
    assert saved.eos_token_id in own.eos_token_id
    assert (own.do_sample or False, own.temperature or 1.0, own.repetition_penalty or 1.0) == (False, 1.0, 1.0)


def test_weights_are_normal_of_the_stated_width_and_norms_one(tokenizer: Path, tmp_path: Path) -> None:
    init_model(tmp_path, tokenizer, {"preset": "tiny-moe", "initializer_range": 0.05})
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        if name.endswith("norm.weight"):
            assert torch.equal(tensor, torch.ones_like(tensor))
        else:  # at least 1,024 values of each
            assert tensor.std() == pytest.approx(0.05, rel=0.1), name
            assert abs(float(tensor.mean())) < 0.05 * 0.15, name


def test_equal_seeds_give_equal_weights_and_disturb_no_other_draw(tokenizer: Path, tmp_path: Path) -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        init_model(tmp_path / name, tokenizer, SMALL, seed=seed)
    assert torch.equal(torch.get_rng_state(), before)
    a, b, c = (load_file(tmp_path / name / "model.safetensors") for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not any(torch.equal(a[name], c[name]) for name in a if not name.endswith("norm.weight"))


def test_defaults_are_the_tiny_preset_with_the_tokenizers_ids(tokenizer: Path, tmp_path: Path) -> None:
    init_model(tmp_path, tokenizer)
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["vocab_size"] == len(AutoTokenizer.from_pretrained(tokenizer))
    assert build_config({}) == PRESETS["tiny"]
    assert build_config({"preset": "Qwen3-30B-A3B"}) == PRESETS["Qwen3-30B-A3B"]


@pytest.mark.parametrize(
    ("architecture", "said"),
    [
        ({"num_hiden_layers": 2}, "no field 'num_hiden_layers' to set; did you mean 'num_hidden_layers'"),
        ({"persets": "tiny"}, "did you mean 'preset'"),
        ({"vocab_size": 9}, "no field 'vocab_size' to set"),
        ({"preset": "tiny_moe"}, "unknown name 'tiny_moe'; did you mean 'tiny-moe'"),
        ({"preset": "Qwen3-30B-A3"}, "did you mean 'Qwen3-30B-A3B'"),
        ({"yarn": {"factr": 2}}, "architecture.yarn: no field 'factr' to set; did you mean 'factor'"),
        ({"yarn": {"factor": 0.5, "original_max_position_embeddings": 8}}, "architecture.yarn: YaRN factor"),
        ({"num_attention_heads": 3}, "architecture: num_attention_heads=3: expected a multiple of"),
        ({"yarn": 3}, "architecture.yarn: expected factor, original_max_position_embeddings, .*, got 3"),
        ({"yarn": {"factor": 4.0}}, "architecture.yarn: expected original_max_position_embeddings as well"),
        ({"dual_chunk": [8, 2]}, "architecture.dual_chunk: expected chunk_size, local_size, "),
        ({"rms_norm_eps": 0}, "rms_norm_eps: expected > 0, got 0"),
        ({"max_position_embeddings": 0}, "max_position_embeddings: expected >= 1, got 0"),
    ],
)
def test_what_config_gets_wrong_is_named_before_anything_runs(architecture: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build_config(architecture)
    with pytest.raises(ConfigError, match=said):
        InitModelConfig(architecture=architecture)


def test_fewer_rows_than_ids_are_refused(tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected vocab_size >= "):
        init_model(tmp_path, tokenizer, vocab_size=100)
