"""The ground truth of packing is each row alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen3Config, Qwen3MoeConfig

from model import packing
from model.attention import Packing
from model.config import UnsupportedModelError
from model.hf import load_policy
from model.qwen3 import Qwen3
from model.transformers_lm import PackedCausalLM, check_config

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 96,
    "max_position_embeddings": 256,
    "eos_token_id": 1,
    "bos_token_id": 0,
    "pad_token_id": 2,
}
CONFIGS = {
    "qwen3-tied": Qwen3Config(**SMALL, head_dim=32, tie_word_embeddings=True),
    "qwen3-untied": Qwen3Config(**SMALL, head_dim=32, tie_word_embeddings=False),
    "llama-tied": LlamaConfig(**SMALL, tie_word_embeddings=True),
    "llama-untied-no-gqa": LlamaConfig(**{**SMALL, "num_key_value_heads": 4}, tie_word_embeddings=False),
    "qwen3-yarn": Qwen3Config(
        **{**SMALL, "max_position_embeddings": 64},
        head_dim=32,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ),
    "qwen3-moe": Qwen3MoeConfig(
        **SMALL, head_dim=32, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, tie_word_embeddings=False
    ),
}
LENGTHS = (7, 1, 40, 13, 40)


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp(request.param)
    hf = AutoModelForCausalLM.from_config(CONFIGS[request.param])
    with torch.no_grad():  # weights large enough that attention is far from uniform
        for parameter in hf.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    hf.save_pretrained(path)
    return path


def rows_of(lengths: tuple[int, ...], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, SMALL["vocab_size"], (length,), generator=generator) for length in lengths]


def pack(rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    lengths = torch.tensor([0] + [len(row) for row in rows], dtype=torch.int32)
    return torch.cat(rows), torch.cat([torch.arange(len(row)) for row in rows]), lengths.cumsum(0, dtype=torch.int32)


def logits(policy: PackedCausalLM | Qwen3, rows: list[torch.Tensor]) -> torch.Tensor:
    return policy(*pack(rows)) @ policy.lm_head_weight.T


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_each_packed_row_equals_the_row_alone_in_plain_transformers(folder: Path, checkpointing: str) -> None:
    policy = load_policy(str(folder), activation_checkpointing=checkpointing)
    reference = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    rows = rows_of(LENGTHS)
    packed = logits(policy, rows).split(LENGTHS)
    for row, got in zip(rows, packed, strict=True):
        torch.testing.assert_close(got, reference(row[None]).logits[0], atol=1e-5, rtol=1e-5)


def test_changing_one_row_leaves_the_others_bit_equal(folder: Path) -> None:
    policy = load_policy(str(folder))
    rows = rows_of(LENGTHS)
    changed = [*rows]
    changed[2] = rows_of(LENGTHS, seed=1)[2]
    before, after = logits(policy, rows).split(LENGTHS), logits(policy, changed).split(LENGTHS)
    assert not torch.equal(before[2], after[2])
    for index in (0, 1, 3, 4):
        assert torch.equal(before[index], after[index])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="the variable-length kernel needs a GPU")
def test_the_variable_length_kernel_equals_the_row_alone(folder: Path) -> None:
    policy = load_policy(str(folder), dtype="bfloat16").cuda()
    reference = load_policy(str(folder)).cuda()  # float32: row by row
    rows = [row.cuda() for row in rows_of(LENGTHS)]
    boundaries = [tensor.cuda() for tensor in pack(rows)]
    packed = policy(*boundaries).float().split(LENGTHS)
    for row, got in zip(rows, packed, strict=True):
        alone = [tensor.cuda() for tensor in pack([row])]
        torch.testing.assert_close(got, policy(*alone).float(), atol=2e-2, rtol=2e-2)
    error = (policy(*boundaries).float() - reference(*boundaries)).norm() / reference(*boundaries).norm()
    assert float(error.detach()) < 0.05


def test_gradients_of_packed_rows_are_the_sum_over_rows_alone(folder: Path) -> None:
    rows = rows_of((9, 1, 21))
    policy = load_policy(str(folder))
    logits(policy, rows).square().sum().backward()
    reference = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    for row in rows:
        reference(row[None]).logits.square().sum().backward()
    expected = dict(reference.named_parameters())
    for name, parameter in policy.hf_named_parameters():
        error = (parameter.grad - expected[name].grad).norm() / expected[name].grad.norm()
        assert float(error) < 1e-5, f"{name}: relative error {float(error):.1e}"


def test_exported_folder_is_the_source_folder(folder: Path, tmp_path: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    policy = load_policy(str(folder))
    state = policy.to_checkpoint((name, p.detach()) for name, p in policy.hf_named_parameters())
    policy.save_pretrained(tmp_path / "out", state)
    from safetensors.torch import load_file

    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys() == state.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ messages }}"
    row = rows_of((12,))[0]
    loaded, original = (AutoModelForCausalLM.from_pretrained(path) for path in (tmp_path / "out", folder))
    assert torch.equal(loaded(row[None]).logits, original(row[None]).logits)


def test_a_tied_head_is_named_once(folder: Path) -> None:
    policy = load_policy(str(folder), meta=True)
    names = [name for name, _ in policy.hf_named_parameters()]
    assert len(names) == len(set(names))
    assert ("lm_head.weight" in names) is not policy.config.tie_word_embeddings
    assert all(parameter.is_meta for _, parameter in policy.hf_named_parameters())


def test_no_mask_of_all_tokens_by_all_tokens_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    masks: list[Any] = []
    original = packing.packed_attention

    def spy(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any) -> Any:
        masks.append(attention_mask)
        return original(module, query, key, value, attention_mask, **kwargs)

    monkeypatch.setattr(packing, "packed_attention", spy)
    packing.register()
    hf = AutoModelForCausalLM.from_config(CONFIGS["llama-tied"], attn_implementation=packing.NAME)
    logits(PackedCausalLM(hf), rows_of(LENGTHS))
    assert masks == [None, None]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Qwen3Config(**SMALL, use_sliding_window=True, sliding_window=8, max_window_layers=1), "sliding_attention"),
        (MistralConfig(**SMALL, sliding_window=16), "sliding"),
        (LlamaConfig(**SMALL, logit_scale=0.5), "logit_scale=0.5"),
        (LlamaConfig(**SMALL, final_logit_softcapping=30.0), "final_logit_softcapping=30.0"),
    ],
)
def test_models_that_packing_would_change_are_refused(config: Any, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        check_config(config)


def test_a_head_with_bias_is_refused() -> None:
    hf = AutoModelForCausalLM.from_config(CONFIGS["llama-tied"])
    hf.lm_head = torch.nn.Linear(SMALL["hidden_size"], SMALL["vocab_size"], bias=True)
    with pytest.raises(UnsupportedModelError, match="without bias"):
        PackedCausalLM(hf)


def test_layers_with_an_attention_of_their_own_are_refused() -> None:
    packing.register()
    hf = AutoModelForCausalLM.from_config(CONFIGS["llama-tied"], attn_implementation="sdpa")
    with pytest.raises(UnsupportedModelError, match="0 of 2 layers"):
        logits(PackedCausalLM(hf), rows_of((3, 4)))


@pytest.mark.parametrize("kind", ["falcon", "stablelm"])
def test_layers_that_take_no_attention_of_ours_are_refused_as_such(kind: str, tmp_path: Path) -> None:
    """Falcon's choose among classes of their own, StableLM's do not hand the row boundaries on."""
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = AutoConfig.for_model(kind, **sizes, num_attention_heads=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    rows = torch.tensor([1, 2, 3]), torch.arange(3), torch.tensor([0, 3], dtype=torch.int32)
    with pytest.raises(UnsupportedModelError, match=r"(falcon|StableLm).*packed attention"):
        load_policy(str(tmp_path))(*rows)


@pytest.mark.parametrize("boundaries", [[0], [0, 0, 3], [1, 3], [0, 3, 2]])
def test_boundaries_that_are_no_rows_are_refused(boundaries: list[int]) -> None:
    with pytest.raises(ValueError, match="cu_seqlens"):
        Packing(torch.tensor(boundaries, dtype=torch.int32))
