"""Adapters under DeepSpeed: peft on transformers' model is the reference; engines and exports get merged weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import ray
import torch
from peft import PeftModel
from safetensors.torch import load_file

from actors.parity import rows_of
from actors.payload import flatten
from actors.rollout_fleet import RolloutFleet
from actors.weight_sync import WeightSync
from pretrain.sft import run_sft
from rlplatform.config import (
    CheckpointConfig,
    ConfigError,
    DataConfig,
    LearnerConfig,
    LoraConfig,
    ModelConfig,
    OptimizerConfig,
    PublishConfig,
    RLConfig,
    RolloutConfig,
    SFTConfig,
)
from rlplatform.roles import RunStopped
from rlplatform.types import SamplingParams
from tests.integration import rollout_models as kit
from tests.integration.conftest import StartLearner
from tests.integration.test_learner import Reference, relative_error, rollouts
from tests.integration.test_learner import configuration as learner_configuration

pytestmark = pytest.mark.usefixtures("cluster")

LORA = LoraConfig(rank=4, alpha=8.0)
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
DENSE_MLP = ("gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "dense": kit.save_native(kit.make_native(), folder / "dense"),
        "moe": kit.save_native(kit.make_native(experts=48, tied=False), folder / "moe"),
    }


def configuration(ranks: int = 1, *, stage: int = 2, lora: LoraConfig = LORA, **changes: Any) -> RLConfig:
    config = learner_configuration(ranks, stage=stage, budget=100, **changes)
    return replace(config, learner=replace(config.learner, lora=lora))


def base_of(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The frozen part of a learner's state, under the names it had without adapters."""
    return {name.replace(".base_layer", ""): value for name, value in state.items() if ".lora_" not in name}


def adapters_of(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.replace(".default", ""): value for name, value in state.items() if ".lora_" in name}


class AdapterReference(Reference):
    """The bare loop of test_learner.py over peft's own layers on transformers' model."""

    def __init__(self, model: str, adapters: dict[str, np.ndarray]) -> None:
        super().__init__(model)
        targets = sorted({name.split(".lora_")[0].rpartition(".")[2] for name in adapters})
        self.hf = peft.get_peft_model(self.hf, peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets))
        parameters = dict(self.hf.named_parameters())
        with torch.no_grad():
            for name, value in adapters.items():
                parameters[_peft_name(name)].copy_(torch.tensor(value))

    def adapters(self) -> dict[str, np.ndarray]:
        return {
            name.removeprefix("base_model.model.").replace(".default", ""): parameter.detach().numpy().copy()
            for name, parameter in self.hf.named_parameters()
            if parameter.requires_grad
        }


def _peft_name(name: str) -> str:
    return f"base_model.model.{name.removesuffix('.weight')}.default.weight"


def manifest_of(payload: Any) -> dict[str, tuple[Any, ...]]:
    return {entry.name: (entry.shape, entry.dtype, entry.checksum) for entry in payload[0].entries}


@pytest.mark.parametrize(
    ("kind", "ranks", "stage"),
    [
        ("dense", 1, 0),
        ("dense", 1, 2),
        ("dense", 2, 1),
        ("dense", 2, 3),
        ("moe", 1, 0),
        ("moe", 2, 3),
    ],
)
def test_updates_are_pefts_and_what_leaves_is_merged(
    start_learner: StartLearner, models: dict[str, str], tmp_path: Path, kind: str, ranks: int, stage: int
) -> None:
    model = models[kind]
    learner, batch = start_learner(configuration(ranks, stage=stage), model), rollouts()
    first = learner.full_state()
    reference = AdapterReference(model, adapters_of(first))
    targets = {name.split(".lora_")[0].rpartition(".")[2] for name in adapters_of(first)}
    assert targets == set(ATTENTION if kind == "moe" else ATTENTION + DENSE_MLP)
    np.testing.assert_allclose(learner.logprobs(batch), Reference(model).logprobs(batch), atol=5e-5)
    for _ in range(2):  # B is zero at first, and A's gradient with it
        learner.update(learner.add_logprobs(batch))
        reference.step(batch, range(12))

    state = learner.full_state()
    before, after = base_of(first), base_of(state)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert relative_error(adapters_of(state), reference.adapters(), adapters_of(first)) < 1e-3
    np.testing.assert_allclose(learner.logprobs(batch), reference.logprobs(batch), atol=5e-5)

    learner.export(str(tmp_path / "out"))
    published = manifest_of(ray.get(learner.gather_weights(), timeout=60))
    exported = load_file(tmp_path / "out" / "model.safetensors")
    assert published == manifest_of(flatten({name: exported[name] for name in published}))
    assert published.keys() == exported.keys() == load_file(Path(model) / "model.safetensors").keys()
    np.testing.assert_allclose(Reference(str(tmp_path / "out")).logprobs(batch), learner.logprobs(batch), atol=5e-5)

    adapted = Reference(model)
    adapted.hf = PeftModel.from_pretrained(adapted.hf, str(tmp_path / "out" / "adapter"))
    np.testing.assert_allclose(adapted.logprobs(batch), learner.logprobs(batch), atol=5e-5)
    settings = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["base_model_name_or_path"]) == (4, 8.0, model)


def test_bfloat16_trains_adapters_and_leaves_the_base(start_learner: StartLearner, models: dict[str, str]) -> None:
    config = configuration(2, stage=2, model=ModelConfig(dtype="bfloat16"))
    learner, batch = start_learner(config, models["dense"]), rollouts()
    first = learner.full_state()
    for _ in range(2):
        learner.update(learner.add_logprobs(batch))
    state = learner.full_state()
    assert all(np.array_equal(value, base_of(state)[name]) for name, value in base_of(first).items())
    assert all(np.any(value != adapters_of(state)[name]) for name, value in adapters_of(first).items())


def test_the_kl_reference_is_the_model_without_adapters(start_learner: StartLearner, models: dict[str, str]) -> None:
    from rlplatform.config import AlgorithmConfig

    config = configuration(2, stage=3, algorithm=AlgorithmConfig(kl_coef=0.5, kl_estimator="k3"))
    learner, batch = start_learner(config, models["dense"]), rollouts()
    expected = Reference(models["dense"]).logprobs(batch)
    for _ in range(2):
        train_batch = learner.add_logprobs(batch)
        np.testing.assert_allclose(train_batch.ref_logprobs, expected, atol=5e-5)
        learner.update(train_batch)
    assert np.abs(learner.logprobs(batch) - expected).max() > 1e-3


@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 2), (2, 3)])
def test_a_checkpoint_continues_bit_for_bit_and_optimises_adapters_alone(
    start_learner: StartLearner, models: dict[str, str], tmp_path: Path, ranks: int, stage: int
) -> None:
    config = configuration(ranks, stage=stage, optimizer=OptimizerConfig(lr=1e-2))
    learner, batch = start_learner(config, models["dense"]), rollouts()
    learner.update(learner.add_logprobs(batch))
    learner.save(str(tmp_path))
    num_adapted = sum(value.size for value in adapters_of(learner.full_state()).values())
    learner.update(learner.add_logprobs(batch))
    whole = learner.full_state()

    learner = start_learner(config, models["dense"])
    learner.load(str(tmp_path))
    learner.update(learner.add_logprobs(batch))
    again = learner.full_state()
    assert again.keys() == whole.keys()
    assert all(np.array_equal(again[name], whole[name]) for name in whole)

    files = sorted(tmp_path.rglob("*optim_states.pt")) or sorted(tmp_path.rglob("*model_states.pt"))
    moments = sum(
        _numel(torch.load(file, weights_only=False)["optimizer_state_dict" if stage else "optimizer"]) for file in files
    )
    assert 2 * num_adapted <= moments <= 3.2 * num_adapted  # both moments, a float32 master, padding


def _numel(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel()
    if isinstance(value, dict):
        return sum(_numel(part) for part in value.values())
    if isinstance(value, (list, tuple)):
        return sum(_numel(part) for part in value)
    return 0


def test_an_engine_computes_with_the_merged_weights(
    start_learner: StartLearner, models: dict[str, str], tmp_path: Path
) -> None:
    model = models["dense"]
    fleet = RolloutFleet(
        model,
        ModelConfig(path=model),
        RolloutConfig(cpus_per_worker=0.5, max_num_seqs=64, kv_cache_gib=0.25),
        SamplingParams(max_new_tokens=32),
        128,
        seed=0,
    )
    try:
        learner = start_learner(configuration(2, stage=2, optimizer=OptimizerConfig(lr=3e-2)), model)
        learner.attach(WeightSync(fleet, PublishConfig()))
        learner.publish()
        initial = rows_of(fleet.generate(kit.requests(8, 2)))
        np.testing.assert_allclose(
            learner.logprobs(initial)[initial.loss_mask], initial.rollout_logprobs[initial.loss_mask], atol=1e-4
        )
        for _ in range(2):
            learner.update(learner.add_logprobs(rollouts()))
            metrics = learner.publish()
            sampled = rows_of(fleet.generate(kit.requests(8, 2)))
            own = learner.logprobs(sampled)
            mask = sampled.loss_mask
            np.testing.assert_allclose(own[mask], sampled.rollout_logprobs[mask], atol=1e-4)
            assert np.abs(own - Reference(model).logprobs(sampled))[mask].max() > 1e-2  # stale weights would show
        assert metrics["publish/verified_tensors"] == len(load_file(Path(model) / "model.safetensors")) + 1  # tied head
    finally:
        fleet.close()


def test_supervised_training_exports_merged_weights_and_adapters(models: dict[str, str], tmp_path: Path) -> None:
    model = models["dense"]
    rows = [
        {"messages": [{"role": "user", "content": f"one {i}"}, {"role": "assistant", "content": "two three"}]}
        for i in range(8)
    ]
    (Path(model) / "chat_template.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    config = SFTConfig(
        run_dir=str(tmp_path / "sft"),
        num_steps=6,
        tokens_per_step=256,
        max_tokens=64,
        model=ModelConfig(path=model),
        data=DataConfig(prompt="messages"),
        optimizer=OptimizerConfig(lr=1e-2),
        learner=LearnerConfig(
            num_workers=2, zero_stage=2, lora=replace(LORA, dropout=0.1, targets=("q_proj", "down_proj"))
        ),
        checkpoint=CheckpointConfig(every=3),
    )
    result = run_sft(config, rows=rows)
    losses = [json.loads(line)["loss"] for line in result.metrics_file.read_text().splitlines()]
    assert losses[-1] < losses[0] - 0.5
    base, merged = (load_file(folder / "model.safetensors") for folder in (Path(model), result.model))
    adapters = load_file(result.model / "adapter" / "adapter_model.safetensors")
    assert base.keys() == merged.keys()
    for name, tensor in merged.items():
        layer = name.removesuffix(".weight")
        if layer.endswith(("q_proj", "down_proj")):
            a, b = (adapters[f"base_model.model.{layer}.lora_{part}.weight"] for part in "AB")
            torch.testing.assert_close(tensor, base[name] + 2.0 * b @ a, atol=1e-6, rtol=0)
            assert not torch.equal(tensor, base[name])
        else:
            assert torch.equal(tensor, base[name]), name
    assert len(adapters) == 2 * 2 * 4


def test_what_cannot_go_on_is_refused_and_says_what_to_set(
    start_learner: StartLearner, models: dict[str, str], tmp_path: Path
) -> None:
    """Last: a refusal on the ranks puts their group out of service."""
    config = configuration(1)
    learner = start_learner(config, models["dense"])
    learner.save(str(tmp_path))
    other = replace(config, learner=replace(config.learner, lora=replace(LORA, rank=2)))
    learner = start_learner(other, models["dense"])
    with pytest.raises(RunStopped, match=r"trains .* parameters, this run .*; set learner.lora as it was"):
        learner.load(str(tmp_path))
    wrong = replace(configuration(2).learner, lora=replace(LORA, targets=("gate_proj",)))
    with pytest.raises(ConfigError, match=r"learner.lora.targets: expected some of q_proj, .*got gate_proj"):
        start_learner(replace(configuration(2), learner=wrong), models["moe"])
