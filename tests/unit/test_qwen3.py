"""The native Qwen3 against transformers' on the same weights, and each row against the row alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from model.checkpointing import MODES
from model.config import PRESETS, Qwen3Config, UnsupportedModelError, unsupported_reason
from model.functional import gated_silu, rms_norm
from model.hf import load_qwen3
from model.qwen3 import Qwen3

PUBLISHED = Path(__file__).parents[2].parent / "shared" / "data" / "qwen3_configs" / "configs.jsonl"
DENSE = replace(PRESETS["tiny"], num_hidden_layers=3, vocab_size=96)
# Named by what is odd about each.
CONFIGS = {
    "tied": DENSE,
    "untied": replace(DENSE, tie_word_embeddings=False),
    "wide-heads": replace(DENSE, hidden_size=96, num_attention_heads=8, num_key_value_heads=1),  # 8 x 32 is not 96
    "moe": replace(PRESETS["tiny-moe"], num_hidden_layers=3, vocab_size=96),
    "moe-raw-weights": replace(
        PRESETS["tiny-moe"], num_hidden_layers=2, vocab_size=96, norm_topk_prob=False, tie_word_embeddings=False
    ),
}
LENGTHS = (7, 1, 40, 13, 40)


def loud(config: Qwen3Config) -> Qwen3:
    """Random weights large enough that attention and routing are far from uniform, norms away from 1."""
    policy = Qwen3(config).init_weights(seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5, generator=generator)
            elif "embed" not in name and "lm_head" not in name:
                parameter.mul_(4.0)
    return policy


def save(policy: Qwen3, folder: Path) -> Path:
    policy.save_pretrained(folder, policy.to_checkpoint(policy.hf_named_parameters()))
    return folder


def reference(folder: Path, attention: str = "eager", dtype: torch.dtype = torch.float32):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention, dtype=dtype).eval()


def rows_of(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 96, (length,), generator=generator) for length in lengths]


def pack(rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    ends = torch.tensor([0] + [len(row) for row in rows], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return torch.cat(rows), torch.cat([torch.arange(len(row)) for row in rows]), ends


def logits(policy: Qwen3, rows: list[torch.Tensor]) -> torch.Tensor:
    return policy(*pack(rows)) @ policy.lm_head_weight.T


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(loud(CONFIGS[request.param]), tmp_path_factory.mktemp(request.param))


# --- against transformers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_float32_logits_of_each_packed_row_are_those_of_transformers(folder: Path, attention: str) -> None:
    policy, other, rows = load_qwen3(str(folder)), reference(folder, attention), rows_of()
    for row, got in zip(rows, logits(policy, rows).split(LENGTHS), strict=True):
        assert float((got - other(row[None]).logits[0]).abs().max().detach()) <= 1e-5


def test_bfloat16_logits_differ_no_more_than_transformers_own_attentions_do(folder: Path) -> None:
    """At most twice what eager and sdpa differ by; measured over many tokens, since it is a maximum."""
    bf16 = torch.bfloat16
    policy, rows = load_qwen3(str(folder), dtype="bfloat16"), rows_of((60, 60, 60, 60), seed=3)
    eager, sdpa = reference(folder, "eager", bf16), reference(folder, "sdpa", bf16)
    got = logits(policy, rows).float().split(60)
    with torch.no_grad():
        first = [eager(row[None]).logits[0].float() for row in rows]
        second = [sdpa(row[None]).logits[0].float() for row in rows]

    def widest(left: list[torch.Tensor], right: list[torch.Tensor]) -> float:
        return max(float((a - b).abs().max().detach()) for a, b in zip(left, right, strict=True))

    allowed = 2 * widest(first, second)
    assert widest(list(got), first) <= allowed
    assert widest(list(got), second) <= allowed


def test_gradients_are_those_of_transformers(folder: Path) -> None:
    policy, other, rows = load_qwen3(str(folder)), reference(folder), rows_of((9, 1, 21))
    logits(policy, rows).square().sum().backward()
    for row in rows:
        other(row[None]).logits.square().sum().backward()
    expected = dict(other.named_parameters())
    for name, parameter in policy.named_parameters():
        error = (parameter.grad - expected[name].grad).norm() / expected[name].grad.norm()
        assert float(error) < 1e-5, f"{name}: relative error {float(error):.1e}"


def test_parameters_bear_transformers_names_and_shapes(folder: Path) -> None:
    ours = {name: parameter.shape for name, parameter in load_qwen3(str(folder), meta=True).named_parameters()}
    assert ours == {name: parameter.shape for name, parameter in reference(folder).named_parameters()}
    assert not any(name.endswith("bias") for name in ours)


# --- packing --------------------------------------------------------------------------------------------------------


def test_changing_one_row_leaves_the_others_bit_equal(folder: Path) -> None:
    policy, rows = load_qwen3(str(folder)), rows_of()
    changed = [*rows[:2], rows_of(seed=1)[2], *rows[3:]]
    before, after = logits(policy, rows).split(LENGTHS), logits(policy, changed).split(LENGTHS)
    assert not torch.equal(before[2], after[2])
    for index in (0, 1, 3, 4):
        torch.testing.assert_close(before[index], after[index], rtol=0, atol=0 if "moe" not in folder.name else 1e-6)


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_a_packed_row_is_the_row_alone(lengths: list[int], seed: int) -> None:
    policy = loud(CONFIGS["wide-heads"])
    rows = rows_of(tuple(lengths), seed)
    for row, got in zip(rows, logits(policy, rows).split(lengths), strict=True):
        torch.testing.assert_close(got, logits(policy, [row]), rtol=1e-5, atol=1e-5)


def test_positions_count_from_the_row_and_shift_nothing() -> None:
    """RoPE is relative: a row moved by 1,000 positions gives the same; two rows counted through do not."""
    policy, rows = loud(CONFIGS["tied"]), rows_of((20, 20))
    token_ids, positions, ends = pack(rows)
    packed = policy(token_ids, positions, ends)
    torch.testing.assert_close(policy(token_ids, positions + 1000, ends), packed, rtol=1e-3, atol=1e-3)
    doubled = policy(token_ids, positions * 2, ends)
    assert float((doubled - packed).abs().max().detach()) > 0.05


@pytest.mark.parametrize("wrong", [(3,), (5,)])
def test_positions_of_another_number_of_tokens_are_refused(wrong: tuple[int]) -> None:
    with pytest.raises(ValueError, match="cu_seqlens end at 4, the batch has"):
        Qwen3(CONFIGS["tied"])(torch.zeros(wrong[0], dtype=torch.int64), torch.arange(wrong[0]), torch.tensor([0, 4]))


# --- memory and speed -----------------------------------------------------------------------------------------------


def gradients(policy: Qwen3, rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    policy.zero_grad()
    logits(policy, rows).square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in policy.named_parameters()}


@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_activation_checkpointing_changes_no_bit(folder: Path, mode: str, dtype: str) -> None:
    rows = rows_of((11, 30))
    plain = gradients(load_qwen3(str(folder), dtype=dtype), rows)
    again = gradients(load_qwen3(str(folder), dtype=dtype, activation_checkpointing=mode), rows)  # type: ignore[arg-type]
    assert all(torch.equal(plain[name], again[name]) for name in plain)


@pytest.mark.parametrize("name", ["tied", "moe"])
def test_activation_checkpointing_keeps_less(name: str) -> None:
    """Bytes that autograd holds between forward and backward: none > selective > full."""
    kept = {}
    for mode in MODES:
        policy = loud(CONFIGS[name])
        policy.activation_checkpointing = mode
        parameters = {p.untyped_storage().data_ptr() for p in policy.parameters()}
        held: dict[int, int] = {}

        def pack_hook(tensor: torch.Tensor, held: dict[int, int] = held, skip: set[int] = parameters) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in skip:
                held[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack_hook, lambda tensor: tensor):
            policy(*pack(rows_of((200, 300))))
        kept[mode] = sum(held.values())
    assert kept["full"] < kept["none"]
    if name == "tied":  # what selective keeps is held by its own context, not by hooks: see the benchmark for its bytes
        assert kept["selective"] < kept["none"]


def test_many_layers_share_what_is_compiled() -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    before = counters["stats"]["unique_graphs"]
    policy = loud(replace(DENSE, num_hidden_layers=10)).compile_layers()
    with torch.no_grad():
        policy(*pack(rows_of((11, 30))))
    assert counters["stats"]["unique_graphs"] - before <= 6


@pytest.mark.parametrize("name", ["tied", "moe"])
def test_compiled_layers_compute_the_same(name: str) -> None:
    plain, compiled = loud(CONFIGS[name]), loud(CONFIGS[name]).compile_layers()
    for rows in (rows_of((11, 30)), rows_of((5, 9, 17), seed=2)):  # another shape: no second compilation is needed
        expected, got = gradients(plain, rows), gradients(compiled, rows)
        for key, value in expected.items():
            error = (got[key] - value).norm() / value.norm()
            assert float(error) < 1e-5, f"{key}: relative error {float(error):.1e}"


# --- building blocks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 16), (3, 4, 8)])
def test_norm_has_the_gradient_of_its_formula(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float32, requires_grad=True)
    weight = torch.rand(shape[-1], requires_grad=True)
    upstream = torch.randn(shape)

    def plain() -> torch.Tensor:
        return weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6))

    assert torch.equal(rms_norm(x, weight, 1e-6), plain())
    expected = torch.autograd.grad(plain(), (x, weight), upstream)
    for got, want in zip(torch.autograd.grad(rms_norm(x, weight, 1e-6), (x, weight), upstream), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_gate_has_the_gradient_of_its_formula() -> None:
    gate, up = (torch.randn(7, 12, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.equal(gated_silu(gate, up), torch.nn.functional.silu(gate) * up)
    torch.autograd.gradcheck(gated_silu, (gate, up))


# --- sizes and configs ----------------------------------------------------------------------------------------------


def published() -> list:
    if not PUBLISHED.exists():
        return [pytest.param(None, marks=pytest.mark.skip(reason=f"{PUBLISHED} is absent: published sizes needed"))]
    return [pytest.param(row, id=row["name"]) for row in map(json.loads, PUBLISHED.read_text().splitlines())]


@pytest.mark.parametrize("row", published())
def test_presets_have_the_published_sizes(row: dict) -> None:
    config = PRESETS[row["name"]]
    assert config.num_parameters() == row["params_total"]
    assert config.num_parameters() - config.num_embedding_parameters() == row["params_non_embedding"]
    assert config.num_active_parameters() == row["params_activated_with_embeddings"]
    same = {key: value for key, value in row.items() if hasattr(config, key)}
    assert len(same) >= 9
    assert {key: getattr(config, key) for key in same} == same
    assert config.is_moe == row["moe"]


# From the report's tables 1 and 2, so that the counts are checked without the shared data too.
@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        ("Qwen3-0.6B", 596_049_920, 596_049_920),
        ("Qwen3-8B", 8_190_735_360, 8_190_735_360),
        ("Qwen3-30B-A3B", 30_532_122_624, 3_353_032_704),
    ],
)
def test_counts_equal_the_parameters_of_the_module(name: str, total: int, active: int) -> None:
    """Built on the meta device: shapes without memory."""
    config = PRESETS[name]
    with torch.device("meta"):
        policy = Qwen3(config)
    assert sum(parameter.numel() for parameter in policy.parameters()) == config.num_parameters() == total
    assert config.num_active_parameters() == active


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_config_json_round_trips(name: str) -> None:
    config = PRESETS[name]
    values = json.loads(json.dumps(config.to_hf()))
    assert replace(Qwen3Config.from_hf(values), extra={}) == config
    assert Qwen3Config.from_hf(values | {"eos_token_id": 7}).to_hf()["eos_token_id"] == 7
    assert values.get("router_aux_loss_coef", 0.001) == pytest.approx(0.001)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "expected qwen3 or qwen3_moe, got 'llama'"),
        ({"attention_bias": True}, "attention_bias=False, got True"),
        ({"use_sliding_window": True}, "use_sliding_window=False"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rope_type default or yarn, got 'llama3'"),
    ],
)
def test_what_is_not_computed_is_refused(change: dict, message: str) -> None:
    values = PRESETS["tiny"].to_hf() | change
    assert message in unsupported_reason(values)
    with pytest.raises(UnsupportedModelError, match="expected"):
        Qwen3Config.from_hf(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_key_value_heads": 3}, "expected a multiple of num_key_value_heads=3"),
        ({"head_dim": 31}, "expected an even number"),
        (
            {"num_experts": 4, "num_experts_per_tok": 5, "moe_intermediate_size": 8},
            "expected 1 to num_experts=4, got 5",
        ),
        ({"num_experts": 4, "num_experts_per_tok": 2}, "moe_intermediate_size: expected >= 1"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: expected >= 1, got 0"),
    ],
)
def test_impossible_sizes_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(PRESETS["tiny"], **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": "128"}, "hidden_size: expected a whole number, got '128'"),
        ({"num_hidden_layers": True}, "num_hidden_layers: expected a whole number, got True"),
        ({"num_key_value_heads": None}, "num_key_value_heads: expected a whole number, got None"),
        ({"head_dim": 32.0}, r"head_dim: expected a whole number, got 32\.0"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps: expected a number, got '1e-6'"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings: expected true or false, got 'false'"),
    ],
)
def test_values_of_another_type_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Qwen3Config.from_hf(PRESETS["tiny"].to_hf() | change)


@pytest.mark.parametrize("preset", ["tiny", "tiny-moe"])
@pytest.mark.parametrize("name", ["hidden_size", "num_hidden_layers", "num_attention_heads"])
def test_a_config_without_a_size_is_refused(preset: str, name: str) -> None:
    values = {key: value for key, value in PRESETS[preset].to_hf().items() if key not in (name, "head_dim")}
    with pytest.raises(ValueError, match=f"config.json: expected {name}, got none"):
        Qwen3Config.from_hf(values)
