"""Adapters against peft on transformers' model, and against the formula written out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from model.config import PRESETS
from model.hf import load_policy, write_folder
from model.lora import add_adapters, check_targets, linear_layers, merge_adapters, save_adapters
from model.qwen3 import Qwen3
from rlplatform.config import ConfigError, LearnerConfig, LoraConfig, RewardConfig, RLConfig

TINY = replace(PRESETS["tiny"], hidden_size=48, intermediate_size=64, num_hidden_layers=2, head_dim=16, vocab_size=96)
SHAPES = {
    "tied": TINY,
    "untied": replace(TINY, tie_word_embeddings=False),
    "moe": replace(TINY, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32),
}
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
DENSE_MLP = ["gate_proj", "up_proj", "down_proj"]
SETTINGS: dict[str, Any] = {"rank": 3, "alpha": 12.0}
IDS = torch.tensor([5, 3, 17, 40, 41, 8, 90])


@pytest.fixture(params=[*SHAPES, "llama"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "llama":  # through transformers: model/transformers_lm.py
        torch.manual_seed(0)
        sizes = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=96)).save_pretrained(tmp_path / "base")
    else:
        policy = Qwen3(SHAPES[request.param]).init_weights(0)
        write_folder(policy.config, policy.to_checkpoint(policy.hf_named_parameters()), tmp_path / "base")
    return tmp_path / "base"


def adapted(folder: Path, **changes: Any) -> Any:
    """A policy whose adapters are far from zero."""
    policy = load_policy(str(folder))
    add_adapters(policy, **{**SETTINGS, **changes})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.1, generator=generator)
    return policy


def logits(policy: Any) -> torch.Tensor:
    boundaries = torch.tensor([0, len(IDS)], dtype=torch.int32)
    return policy(IDS, torch.arange(len(IDS)), boundaries) @ policy.lm_head_weight.T


@torch.no_grad()
def test_merged_and_exported_adapters_equal_pefts_own_on_transformers_model(folder: Path, tmp_path: Path) -> None:
    policy = adapted(folder)
    own = logits(policy)
    assert (own - logits(load_policy(str(folder)))).abs().max() > 0.01
    state = dict(policy.hf_named_parameters())
    policy.save_pretrained(tmp_path / "merged", policy.to_checkpoint(merge_adapters(state.items(), 12 / 3)))
    save_adapters(tmp_path / "adapter", state, policy, **SETTINGS, dropout=0.0)

    config = peft.LoraConfig.from_pretrained(str(tmp_path / "adapter"))
    assert (config.r, config.lora_alpha, config.base_model_name_or_path) == (3, 12, str(folder))
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), str(tmp_path / "adapter"))
    torch.testing.assert_close(theirs(IDS[None]).logits[0], own, atol=2e-6, rtol=0)
    reference = theirs.merge_and_unload()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    for (name, tensor), (other, expected) in zip(merged.named_parameters(), reference.named_parameters(), strict=True):
        assert name == other
        torch.testing.assert_close(tensor, expected, atol=1e-7, rtol=0)
    torch.testing.assert_close(merged(IDS[None]).logits[0], own, atol=2e-6, rtol=0)
    # What an engine is sent bears the names of the base's checkpoint.
    assert load_policy(str(tmp_path / "merged")).config.vocab_size == 96


def test_merging_is_the_formula_and_leaves_the_base_alone(folder: Path) -> None:
    policy = adapted(folder, targets=["v_proj", "o_proj"])
    base = dict(load_policy(str(folder)).hf_named_parameters())
    state = dict(policy.hf_named_parameters())
    merged = dict(merge_adapters(state.items(), 4.0))
    assert merged.keys() == base.keys()
    for name, tensor in merged.items():
        layer = name.removesuffix(".weight")
        if layer.endswith(("v_proj", "o_proj")):
            a, b = state[f"{layer}.lora_A.default.weight"], state[f"{layer}.lora_B.default.weight"]
            assert a.shape == (3, base[name].shape[1])
            assert b.shape == (base[name].shape[0], 3)
            expected = base[name].double() + 4.0 * b.double() @ a.double()
            torch.testing.assert_close(tensor.double(), expected, atol=1e-7, rtol=0)
            assert torch.equal(state[f"{layer}.base_layer.weight"], base[name])
        else:
            assert tensor is state[name]
            assert torch.equal(tensor, base[name])


def test_without_adapters_merging_passes_every_tensor() -> None:
    state = dict(Qwen3(TINY).named_parameters())
    merged = dict(merge_adapters(state.items(), 0.0))
    assert all(merged[name] is tensor for name, tensor in state.items())


def test_bfloat16_is_rounded_once() -> None:
    policy = Qwen3(TINY).init_weights(0).to(torch.bfloat16)
    add_adapters(policy, rank=2, alpha=2.0, targets=["q_proj"])
    state = dict(policy.named_parameters())
    layer = "model.layers.0.self_attn.q_proj"
    with torch.no_grad():
        state[f"{layer}.lora_B.default.weight"].normal_(0.0, 0.1, generator=torch.Generator().manual_seed(0))
    a, b = state[f"{layer}.lora_A.default.weight"], state[f"{layer}.lora_B.default.weight"]
    assert a.dtype == torch.bfloat16
    exact = state[f"{layer}.base_layer.weight"].double() + b.double() @ a.double()
    got = dict(merge_adapters(state.items(), 1.0))[f"{layer}.weight"]
    assert got.dtype == torch.bfloat16
    assert (got != exact.to(torch.bfloat16)).float().mean() < 0.01  # float32 sums at the edge of two values


def test_only_adapters_train_and_fresh_ones_change_nothing(folder: Path) -> None:
    policy = load_policy(str(folder))
    with torch.no_grad():
        before = logits(policy)
    wrapped = add_adapters(policy, **SETTINGS)
    assert wrapped == (
        ATTENTION if "experts" in str([n for n, _ in policy.named_parameters()]) else ATTENTION + DENSE_MLP
    )
    assert not policy.lm_head_weight.requires_grad
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in policy.named_parameters() if ".lora_" in name}
    now = logits(policy)
    torch.testing.assert_close(now, before, atol=0, rtol=0)
    now.logsumexp(-1).sum().backward()
    for name, parameter in policy.named_parameters():
        assert (parameter.grad is not None) == (name in trained)
        if "lora_B" in name:
            assert parameter.grad is not None
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_a_layer_computed_again_drops_what_it_dropped(folder: Path, mode: Any) -> None:
    """Another mask in the recomputation would give gradients of a function that was never evaluated."""
    grads = []
    for checkpointing in ("none", mode):
        policy = load_policy(str(folder), activation_checkpointing=checkpointing)
        add_adapters(policy, **SETTINGS, dropout=0.5, targets=ATTENTION)
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                if "lora_B" in name:
                    parameter.fill_(0.1)
        policy.train()
        torch.manual_seed(3)
        logits(policy).square().sum().backward()
        grads.append({name: p.grad for name, p in policy.named_parameters() if p.grad is not None})
    assert len(grads[0]) == 2 * 2 * len(ATTENTION)
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, atol=0, rtol=0, msg=name)


@pytest.mark.parametrize("mode", ["none", "selective", "full"])
def test_gradients_are_those_of_the_formula_under_any_checkpointing(mode: Any) -> None:
    """d/dB and d/dA of a loss, by chaining the gradient of the merged weight: G -> s G A^T, s B^T G."""
    plain = Qwen3(TINY).init_weights(0)
    policy = Qwen3(TINY, activation_checkpointing=mode).init_weights(0)
    add_adapters(policy, **SETTINGS)
    state = dict(policy.named_parameters())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in state.items():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.1, generator=generator)
        for name, tensor in merge_adapters(state.items(), 4.0):
            dict(plain.named_parameters())[name].copy_(tensor)
    for model in (plain, policy):
        logits(model).log_softmax(-1)[:-1].gather(1, IDS[1:, None]).sum().backward()
    merged = dict(plain.named_parameters())
    for name in (name for name in state if "lora_A" in name):
        layer = name.partition(".lora_A")[0]
        a, b = state[name], state[name.replace("lora_A", "lora_B")]
        gradient = merged[f"{layer}.weight"].grad
        torch.testing.assert_close(a.grad, 4.0 * b.T @ gradient, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(b.grad, 4.0 * gradient @ a.T, atol=1e-4, rtol=1e-3)


def test_equal_seeds_give_equal_adapters_and_disturb_no_other_draw() -> None:
    def drawn(seed: int) -> dict[str, torch.Tensor]:
        policy = Qwen3(TINY).init_weights(0)
        torch.manual_seed(seed + 100)  # ranks have states of their own
        before = torch.get_rng_state()
        add_adapters(policy, **SETTINGS, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        return {name: tensor for name, tensor in policy.named_parameters() if "lora_A" in name}

    a, again, other = drawn(1), drawn(1), drawn(2)
    assert all(torch.equal(a[name], again[name]) for name in a)
    assert not any(torch.equal(a[name], other[name]) for name in a)


@pytest.mark.parametrize(
    ("shape", "targets", "said"),
    [
        ("moe", ["q_proj", "gate_proj"], r"q_proj, k_proj, v_proj, o_proj \(experts are one tensor.*got gate_proj"),
        ("moe", ["experts"], "cannot be adapted"),
        ("moe", ["gate"], "got gate$"),
        ("tied", ["lm_head"], "got lm_head$"),
        ("untied", ["lm_head"], "got lm_head$"),
        ("tied", ["embed_tokens", "qproj"], "got embed_tokens, qproj$"),
    ],
)
def test_what_cannot_be_adapted_is_refused(shape: str, targets: list[str], said: str) -> None:
    policy = Qwen3(SHAPES[shape])
    with pytest.raises(ValueError, match=said):
        add_adapters(policy, **SETTINGS, targets=targets)
    with torch.device("meta"), pytest.raises(ValueError, match=said):
        check_targets(Qwen3(SHAPES[shape]), targets)
    assert all(parameter.requires_grad for parameter in policy.parameters())
    assert linear_layers(policy) == (ATTENTION if shape == "moe" else ATTENTION + DENSE_MLP)


def test_a_second_set_is_refused() -> None:
    policy = Qwen3(TINY)
    add_adapters(policy, **SETTINGS)
    with pytest.raises(ValueError, match="expected a policy without adapters"):
        add_adapters(policy, **SETTINGS)


def test_configuration() -> None:
    assert (LoraConfig().scale, LoraConfig(rank=4, alpha=6.0).scale) == (0.0, 1.5)
    for wrong in ({"rank": -1}, {"alpha": 0.0}, {"dropout": 1.0}):
        with pytest.raises(ConfigError, match=f"learner.lora.{next(iter(wrong))}: expected"):
            LoraConfig(**wrong)  # type: ignore[arg-type]
    learner = LearnerConfig(lora=LoraConfig(rank=4, dropout=0.1))
    with pytest.raises(ConfigError, match="two forwards of one token must agree"):
        RLConfig(reward=RewardConfig(functions={"math": 1.0}), learner=learner)
