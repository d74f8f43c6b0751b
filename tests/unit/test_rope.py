"""Rotary positions: transformers' tables are the reference, and one setting reaches every user of a checkpoint."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers import Qwen3Config as ReferenceConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from actors.vllm_arguments import engine_arguments
from model.attention import PackedAttend
from model.config import PRESETS, Qwen3Config, UnsupportedModelError, YarnConfig, unsupported_reason
from model.hf import load_policy, write_folder
from model.long_context import AS_IN_CHECKPOINT, RopeOverride
from model.qwen3 import Qwen3
from model.rope import cos_sin, inverse_frequencies, rotate
from rlplatform.config import ConfigError, ModelConfig, RLConfig, RolloutConfig
from rlplatform.configfile import load_values

SMALL = Qwen3Config(64, 96, 2, 4, 2, head_dim=32, vocab_size=96, max_position_embeddings=64, rope_theta=10_000.0)
QWEN3_YARN = YarnConfig(factor=4.0, original_max_position_embeddings=32_768)
CONFIGS = {
    "before ABF": replace(PRESETS["Qwen3-0.6B"], rope_theta=10_000.0),
    "Qwen3": PRESETS["Qwen3-0.6B"],
    "Qwen3 x4": replace(PRESETS["Qwen3-8B"], yarn=QWEN3_YARN, max_position_embeddings=131_072),
    "Qwen3 x2": replace(PRESETS["Qwen3-8B"], yarn=replace(QWEN3_YARN, factor=2.0), max_position_embeddings=65_536),
    "x1": replace(PRESETS["Qwen3-8B"], yarn=replace(QWEN3_YARN, factor=1.0), max_position_embeddings=32_768),
    "own betas": replace(SMALL, yarn=YarnConfig(3.5, 64, beta_fast=8.0, beta_slow=2.0), max_position_embeddings=224),
    "own factor": replace(SMALL, yarn=YarnConfig(4.0, 16, attention_factor=1.25), max_position_embeddings=64),
    "one step": replace(SMALL, yarn=YarnConfig(4.0, 6), max_position_embeddings=24),
}


def reference(config: Qwen3Config) -> Qwen3RotaryEmbedding:
    return Qwen3RotaryEmbedding(ReferenceConfig(**config.to_hf()))


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_tables_equal_transformers_bit_for_bit_at_0_1_2_and_4_lengths(name: str) -> None:
    config = CONFIGS[name]
    length = config.yarn.original_max_position_embeddings if config.yarn else 32_768
    near = [multiple * length + step for multiple in (1, 2, 4) for step in (-1, 0, 1)]
    positions = torch.tensor([0, 1, 2, *near])
    expected = reference(config)(torch.zeros(1), positions[None])
    for ours, theirs in zip(cos_sin(config, positions), expected, strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs[0])


@pytest.mark.parametrize("name", [name for name, config in CONFIGS.items() if config.yarn])
def test_yarn_frequencies_and_attention_factor_equal_rope_init_functions(name: str) -> None:
    config = CONFIGS[name]
    assert config.yarn is not None
    frequencies, factor = ROPE_INIT_FUNCTIONS["yarn"](ReferenceConfig(**config.to_hf()))
    assert torch.equal(inverse_frequencies(config), frequencies)
    assert config.yarn.cos_sin_scale == factor
    cos, sin = cos_sin(config, torch.tensor([0]))
    assert cos.unique().tolist() == [pytest.approx(factor)]
    assert not sin.any()


def test_the_attention_factor_of_qwen3_is_1_1386() -> None:
    assert QWEN3_YARN.cos_sin_scale == pytest.approx(0.1 * math.log(4) + 1) == pytest.approx(1.138629)


def test_yarn_by_hand() -> None:
    """head_dim 32, base 10,000, trained on 64: pairs that turn 32 times or more keep their frequency (none does: the
    fastest turns 64 / 2 pi = 10 times, ramp from pair 0), those that turn less than once are four times slower."""
    config = replace(SMALL, yarn=YarnConfig(4.0, 64))
    end = math.ceil(32 * math.log(64 / (2 * math.pi)) / (2 * math.log(10_000)))
    assert end == 5
    for pair, got in enumerate(inverse_frequencies(config).tolist()):
        plain, ramp = 10_000 ** (-2 * pair / 32), min(pair / end, 1.0)
        assert got == pytest.approx(plain * (1 - ramp) + plain / 4 * ramp, rel=1e-6)


def test_a_turn_depends_on_the_distance_alone() -> None:
    config = replace(SMALL, yarn=YarnConfig(4.0, 16))
    assert config.yarn is not None
    q, k = torch.randn(2, 1, 1, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scores = []
    for base in (0, 7, 50):
        tables = [cos_sin(config, torch.tensor([base + step]), torch.float64) for step in (5, 0)]
        scores.append(float((rotate(q, *tables[0]) * rotate(k, *tables[1])).sum()))
    assert scores == pytest.approx([scores[0]] * 3, abs=1e-5)
    same = float(
        (rotate(q, *cos_sin(config, torch.tensor([9]))) * rotate(k, *cos_sin(config, torch.tensor([9])))).sum()
    )
    assert same == pytest.approx(float((q * k).sum()) * config.yarn.cos_sin_scale**2, rel=1e-5)


def test_casting_the_model_leaves_tables_computed_in_float32() -> None:
    """A frequency rounded to bfloat16 is off by up to 0.4 %: at position 100,000 that is many turns."""
    config = replace(SMALL, rope_theta=1_000_000.0)
    policy = Qwen3(config).init_weights(0).bfloat16()
    assert [name for name, _ in policy.named_buffers()] == []
    positions = torch.arange(100_000, 100_016)
    boundaries = torch.tensor([0, 16], dtype=torch.int32)
    attend = PackedAttend(config, positions, boundaries, torch.bfloat16)
    exact = (positions.double()[:, None] * 1e6 ** (-torch.arange(0, 32, 2).double() / 32)).cos().repeat(1, 2)
    assert attend.cos.dtype == torch.bfloat16
    torch.testing.assert_close(attend.cos.double(), exact, atol=2e-2, rtol=0)
    assert torch.equal(attend.cos, cos_sin(config, positions)[0].bfloat16())


def test_keys_of_transformers_4_and_5_mean_the_same() -> None:
    values = replace(SMALL, rope_theta=1_000_000.0, yarn=YarnConfig(4.0, 16)).to_hf()
    old = {key: value for key, value in values.items() if key != "rope_parameters"}
    old |= {
        "rope_theta": 1_000_000.0,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    }
    assert Qwen3Config.from_hf(old) == Qwen3Config.from_hf(values)
    plain = {**old, "rope_scaling": None}
    assert Qwen3Config.from_hf(plain).yarn is None
    assert Qwen3Config.from_hf(plain).rope_theta == 1_000_000.0
    override = RopeOverride(theta=500.0, yarn_factor=2.0, yarn_original_length=32)
    assert Qwen3Config.from_hf(override.apply(old)) == Qwen3Config.from_hf(override.apply(values))
    assert Qwen3Config.from_hf(override.apply(plain)) == Qwen3Config.from_hf(override.apply(values))


YARN_16 = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


@pytest.mark.parametrize(
    "change",
    [
        {"rope_scaling": YARN_16},  # as Qwen's documentation says to add it, beside transformers 5's plain settings
        {"rope_scaling": {**YARN_16, "rope_theta": 1e4}},
        {"rope_theta": 5e6},
        {"rope_parameters": {**YARN_16, "rope_theta": 1e4}, "rope_scaling": {**YARN_16, "factor": 2.0}},
        {"rope_parameters": {**YARN_16, "rope_theta": 1e4}, "rope_scaling": {"type": "linear", "factor": 4.0}},
    ],
)
def test_settings_stated_twice_that_differ_are_refused(change: dict[str, Any]) -> None:
    """transformers 5 takes ``rope_scaling`` and forgets the base beside it; this is nothing to guess at."""
    values = replace(SMALL, rope_theta=10_000.0).to_hf() | change
    for use in (Qwen3Config.from_hf, unsupported_reason, RopeOverride(theta=500.0).changes):
        with pytest.raises(UnsupportedModelError, match=r"rope settings are stated twice and differ.*keep one"):
            use(values)


def test_settings_stated_twice_alike_are_one() -> None:
    config = replace(SMALL, rope_theta=10_000.0, yarn=YarnConfig(4.0, 16))
    values = config.to_hf()
    both = {**values, "rope_theta": 10_000, "rope_scaling": {**values["rope_parameters"], "attention_factor": None}}
    both["rope_scaling"]["type"] = both["rope_scaling"].pop("rope_type")
    assert replace(Qwen3Config.from_hf(both), extra={}) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "factor: expected a number, got None"),
        ({"rope_parameters": {**YARN_16, "factor": "4"}}, "factor: expected a number, got '4'"),
        ({"rope_parameters": {**YARN_16, "attention_factor": "1"}}, "attention_factor: expected a number, got '1'"),
        ({"rope_parameters": {"rope_theta": "1e6"}}, "rope_theta: expected a number, got '1e6'"),
        ({"rope_parameters": {"rope_theta": 0}}, "rope_theta: expected > 1, got 0"),
        ({"rope_parameters": [1]}, r"rope_parameters: expected an object, got \[1\]"),
        ({"rope_parameters": {"full_attention": YARN_16}}, "one RoPE for all layers, got one for each of"),
        ({"rope_parameters": {**YARN_16, "partial_rotary_factor": 0.5}}, "partial_rotary_factor=1, got 0.5"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=1, got 0.5"),
    ],
)
def test_rope_settings_that_say_nothing_clear_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Qwen3Config.from_hf(SMALL.to_hf() | change)


# --- the setting ----------------------------------------------------------------------------------------------------


def noisy(model: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen3")
    policy = noisy(Qwen3(SMALL).init_weights(0))
    write_folder(SMALL, policy.to_checkpoint(policy.hf_named_parameters()), folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=96,
        max_position_embeddings=64,
    )
    noisy(AutoModelForCausalLM.from_config(config)).save_pretrained(folder)
    return folder


OVERRIDES = {
    "ABF": RopeOverride(theta=1_000_000.0),
    "YaRN": RopeOverride(yarn_factor=4.0, yarn_original_length=64),
    "both": RopeOverride(1_000_000.0, 4.0, 64),
}


def logits(policy: Any, row: torch.Tensor) -> torch.Tensor:
    boundaries = torch.tensor([0, len(row)], dtype=torch.int32)
    with torch.no_grad():
        return policy(row, torch.arange(len(row)), boundaries) @ policy.lm_head_weight.T


@pytest.mark.parametrize("name", sorted(OVERRIDES))
@pytest.mark.parametrize("kind", ["checkpoint", "llama"])
def test_the_override_reaches_policy_export_and_engine_alike(
    kind: str, name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """200 tokens of a model made for 64: policy, transformers on the export, and on the engine's overrides agree."""
    folder, rope = request.getfixturevalue(kind), OVERRIDES[name]
    row = torch.randint(3, 96, (200,), generator=torch.Generator().manual_seed(0))
    policy = load_policy(str(folder), rope=rope)
    got = logits(policy, row)
    assert (got - logits(load_policy(str(folder)), row)).abs().max() > 0.1

    policy.save_pretrained(tmp_path, policy.to_checkpoint(policy.hf_named_parameters()))
    exported = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(got, exported(row[None]).logits[0], atol=1e-5, rtol=1e-5)
    again = load_policy(str(tmp_path))
    assert torch.equal(logits(again, row), got)

    model = ModelConfig(str(folder), **{f"rope_{k}" if k == "theta" else k: v for k, v in vars(rope).items()})
    assert model.rope == rope
    arguments = engine_arguments(str(folder), model, RolloutConfig(), 60, 0)
    assert arguments["max_model_len"] == 61
    served = AutoModelForCausalLM.from_pretrained(folder).config
    for key, value in arguments["hf_overrides"].items():
        setattr(served, key, value)
    served_policy = AutoModelForCausalLM.from_pretrained(folder, config=served).eval()
    with torch.no_grad():
        torch.testing.assert_close(got, served_policy(row[None]).logits[0], atol=1e-5, rtol=1e-5)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["rope_parameters"]["rope_theta"] == (rope.theta or 10_000.0)
    assert written["max_position_embeddings"] == (256 if rope.yarn_factor else 64)


def test_a_config_without_the_setting_changes_nothing(checkpoint: Path) -> None:
    values = json.loads((checkpoint / "config.json").read_text())
    assert AS_IN_CHECKPOINT.changes(values) == {}
    assert AS_IN_CHECKPOINT.apply(values) == values
    assert ModelConfig().rope == AS_IN_CHECKPOINT
    assert engine_arguments(str(checkpoint), ModelConfig(), RolloutConfig(), 40, 0)["hf_overrides"] == {}
    assert replace(load_policy(str(checkpoint)).config, extra={}) == SMALL


def test_abf_on_a_yarn_checkpoint_keeps_its_yarn_and_a_new_yarn_replaces_it() -> None:
    values = replace(SMALL, yarn=YarnConfig(4.0, 16, beta_fast=8.0, attention_factor=1.3)).to_hf()
    abf = Qwen3Config.from_hf(RopeOverride(theta=1e6).apply(values))
    assert abf == replace(SMALL, yarn=YarnConfig(4.0, 16, beta_fast=8.0, attention_factor=1.3), rope_theta=1e6)
    new = Qwen3Config.from_hf(RopeOverride(yarn_factor=2.0, yarn_original_length=24).apply(values))
    assert (new.yarn, new.max_position_embeddings) == (YarnConfig(2.0, 24), 48)
    silent = {**values, "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}}
    assert RopeOverride(theta=1e6).changes(silent)["rope_parameters"]["original_max_position_embeddings"] == 64


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "llama", "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}}, "rope_type 'llama3'"),
        ({"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type 'linear'"),
        (
            {"model_type": "gemma3", "rope_parameters": {"full_attention": {}, "sliding_attention": {}}},
            "one RoPE for all layers, got one for each of",
        ),
        ({"model_type": "llama"}, "states no rope_theta; set model.rope_theta"),
    ],
)
def test_positions_that_cannot_be_changed_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        RopeOverride(yarn_factor=2.0, yarn_original_length=64).changes(values)
    assert AS_IN_CHECKPOINT.changes(values) == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"yarn_factor": 4}, r"model\.yarn_factor and yarn_original_length: expected both or neither"),
        ({"yarn_original_length": 32768}, r"model\.yarn_factor and yarn_original_length: expected both or neither"),
        ({"yarn_factor": 0.5, "yarn_original_length": 64}, r"model\.yarn_factor: expected >= 1, or 0"),
        ({"yarn_factor": 4, "yarn_original_length": -1}, r"model\.yarn_original_length: expected a number of tokens"),
        ({"rope_theta": -5}, r"model\.rope_theta: expected > 1, or 0"),
    ],
)
def test_settings_that_cannot_be_are_refused_when_the_config_is_read(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_values({"kind": "rl", "reward": {"functions": {"math": 1.0}}, "model": settings})


def test_the_setting_is_read_from_a_file() -> None:
    model = {"rope_theta": 1_000_000, "yarn_factor": 4, "yarn_original_length": 32768}
    config = load_values({"kind": "rl", "reward": {"functions": {"math": 1.0}}, "model": model})
    assert isinstance(config, RLConfig)
    assert config.model.rope == RopeOverride(1_000_000.0, 4.0, 32_768)
