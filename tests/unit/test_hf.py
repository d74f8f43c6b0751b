"""Hugging Face folders in and out: bit for bit, against transformers; and what is said of damaged ones."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers import Qwen3Config as HFConfig

from model import hf
from model.config import PRESETS, Qwen3Config, UnsupportedModelError
from model.folder import INDEX, WEIGHTS, WeightFiles
from model.hf import load_policy, load_qwen3, write_folder
from model.qwen3 import Qwen3

CONFIGS = Path(__file__).resolve().parents[3] / "shared" / "data" / "qwen3_configs" / "configs.jsonl"
TINY = replace(PRESETS["tiny"], hidden_size=48, intermediate_size=64, num_hidden_layers=2, head_dim=16, vocab_size=96)
SHAPES = {
    "tied": TINY,
    "untied": replace(TINY, tie_word_embeddings=False),
    "moe": replace(
        TINY,
        tie_word_embeddings=False,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        num_key_value_heads=1,
    ),
    "moe-tied": replace(TINY, num_experts=3, num_experts_per_tok=1, moe_intermediate_size=40),
}
EXTRA = {"eos_token_id": [3, 7], "pad_token_id": 1, "bos_token_id": None, "use_cache": True, "our_own_key": {"a": [1]}}
# As published, written by transformers 4.51.
PUBLISHED = {
    "Qwen3-0.6B": """{
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024,
        "initializer_range": 0.02, "intermediate_size": 3072, "max_position_embeddings": 40960,
        "max_window_layers": 28, "model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000,
        "sliding_window": null, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0", "use_cache": true, "use_sliding_window": false, "vocab_size": 151936}""",
    "Qwen3-30B-A3B": """{
        "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 151643, "decoder_sparse_step": 1, "eos_token_id": 151645, "head_dim": 128,
        "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 6144,
        "max_position_embeddings": 40960, "max_window_layers": 48, "mlp_only_layers": [], "model_type": "qwen3_moe",
        "moe_intermediate_size": 768, "norm_topk_prob": true, "num_attention_heads": 32, "num_experts": 128,
        "num_experts_per_tok": 8, "num_hidden_layers": 48, "num_key_value_heads": 4, "output_router_logits": false,
        "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001,
        "sliding_window": null, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0", "use_cache": true, "use_sliding_window": false, "vocab_size": 151936}""",
}


def fresh(config: Qwen3Config, dtype: torch.dtype = torch.float32, seed: int = 0) -> Qwen3:
    policy = Qwen3(config).init_weights(seed).to(dtype)
    with torch.no_grad():  # no two norms alike either
        for number, parameter in enumerate(policy.parameters()):
            parameter += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)).to(dtype)
    return policy


def export(policy: Qwen3, folder: Path, **arguments: Any) -> Path:
    write_folder(policy.config, policy.to_checkpoint(policy.hf_named_parameters()), folder, **arguments)
    return folder


def assert_same(one: Qwen3, other: Qwen3) -> None:
    assert one.config == other.config
    left, right = dict(one.named_parameters()), dict(other.named_parameters())
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype
        assert torch.equal(tensor, right[name]), name


@pytest.fixture
def moe_folder(tmp_path: Path) -> Path:
    return export(fresh(SHAPES["moe"]), tmp_path / "moe", max_shard_bytes=60_000)


# --- round trips ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_native_folder_transformers_folder_native_is_bit_equal(shape: str, dtype: str, tmp_path: Path) -> None:
    policy = fresh(replace(SHAPES[shape], extra=EXTRA), getattr(torch, dtype))
    written = export(policy, tmp_path / "ours")
    theirs, info = AutoModelForCausalLM.from_pretrained(written, dtype="auto", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert theirs.dtype == getattr(torch, dtype)
    assert (theirs.config.eos_token_id, theirs.config.pad_token_id) == ([3, 7], 1)
    assert theirs.config.our_own_key == {"a": [1]}
    in_memory = dict(theirs.named_parameters())
    for name, parameter in policy.named_parameters():
        assert torch.equal(parameter, in_memory[name]), name

    theirs.save_pretrained(tmp_path / "theirs")
    back = load_qwen3(str(tmp_path / "theirs"), dtype=dtype)
    for key, value in EXTRA.items():
        assert back.config.extra.get(key) == value, key
    assert_same(replace_extra(policy), replace_extra(back))
    again = load_qwen3(str(written), dtype=dtype)
    assert {key: again.config.extra[key] for key in EXTRA} == EXTRA
    assert_same(replace_extra(policy), replace_extra(again))
    assert all(parameter.requires_grad for parameter in again.parameters())


def replace_extra(policy: Qwen3) -> Qwen3:
    policy.config = replace(policy.config, extra={})
    return policy


@pytest.mark.parametrize("shape", ["tied", "moe"])
def test_shards_are_cut_by_size_indexed_and_read_back(shape: str, tmp_path: Path) -> None:
    policy = fresh(SHAPES[shape])
    folder = export(policy, tmp_path / "sharded", max_shard_bytes=60_000)
    index = json.loads((folder / INDEX).read_text())
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(files) > 2
    assert files == [f"model-{n:05d}-of-{len(files):05d}.safetensors" for n in range(1, len(files) + 1)]
    assert sorted(set(index["weight_map"].values())) == files
    assert index["metadata"]["total_size"] == sum(p.nbytes for p in policy.parameters())
    for file in files:
        held = load_file(folder / file)
        assert {name for name, place in index["weight_map"].items() if place == file} == held.keys()
        assert len(held) == 1 or sum(tensor.nbytes for tensor in held.values()) <= 60_000
        with safe_open(folder / file, framework="pt") as opened:
            assert opened.metadata() == {"format": "pt"}
    assert_same(policy, replace_extra(load_qwen3(str(folder))))
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    assert all(torch.equal(p, dict(theirs.named_parameters())[n]) for n, p in policy.named_parameters())

    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="60KB")
    assert (tmp_path / "theirs" / INDEX).is_file()
    assert_same(policy, replace_extra(load_qwen3(str(tmp_path / "theirs"))))

    export(policy, folder)  # one file now: the shards and their index are gone
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", WEIGHTS]


def test_checkpoint_names_are_those_that_transformers_writes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    values = SHAPES["moe"].to_hf()
    theirs = Qwen3MoeForCausalLM(Qwen3MoeConfig(**values))
    theirs.save_pretrained(tmp_path / "theirs")
    export(load_qwen3(str(tmp_path / "theirs")), tmp_path / "ours")
    left, right = (load_file(tmp_path / side / WEIGHTS) for side in ("theirs", "ours"))
    assert left.keys() == right.keys()
    assert "model.layers.1.mlp.experts.3.up_proj.weight" in left
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_experts_joined_in_the_file_load_as_experts_one_by_one(tmp_path: Path) -> None:
    policy = fresh(SHAPES["moe"])
    export(policy, tmp_path / "one-by-one")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "one-by-one")
    theirs.save_pretrained(tmp_path / "joined", save_original_format=False)
    names = load_file(tmp_path / "joined" / WEIGHTS).keys()
    assert "model.layers.0.mlp.experts.gate_up_proj" in names
    assert not any(".experts.0." in name for name in names)
    assert_same(policy, replace_extra(load_qwen3(str(tmp_path / "joined"))))


def test_a_tied_head_may_lie_in_the_file_if_it_is_the_embedding(tmp_path: Path) -> None:
    policy = fresh(SHAPES["tied"])
    folder = export(policy, tmp_path / "m")
    state = load_file(folder / WEIGHTS)
    assert "lm_head.weight" not in state
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    loaded = load_qwen3(str(folder))
    assert loaded.lm_head_weight is loaded.model.embed_tokens.weight
    assert_same(policy, replace_extra(loaded))
    state["lm_head.weight"][5, 5] += 1
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="ties the head to the embedding, but lm_head"):
        load_qwen3(str(folder))


def test_loading_in_another_dtype_rounds_once(tmp_path: Path) -> None:
    policy = fresh(SHAPES["moe"])
    folder = export(policy, tmp_path / "m")
    assert_same(policy.to(torch.bfloat16), replace_extra(load_qwen3(str(folder), dtype="bfloat16")))


def test_loading_holds_one_model_and_one_tensor(moe_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[Any] = []
    read = WeightFiles.__iter__

    def watched(self: WeightFiles) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in read(self):
            alive.append(weakref.ref(tensor))
            yield name, tensor
            del tensor
            assert sum(ref() is not None for ref in alive) <= 1  # the consumer's loop variable

    monkeypatch.setattr(WeightFiles, "__iter__", watched)
    policy = load_qwen3(str(moe_folder), dtype="bfloat16")
    assert len(alive) == len(WeightFiles(str(moe_folder)).shapes)
    assert all(ref() is None for ref in alive)
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in policy.parameters()}
    assert sum(storages.values()) == sum(p.nbytes for p in policy.parameters())


def test_a_loaded_model_does_not_depend_on_its_files(tmp_path: Path) -> None:
    """Exporting over the folder that was loaded must not change the model under way."""
    policy = fresh(SHAPES["tied"])
    folder = export(policy, tmp_path / "m")
    loaded = replace_extra(load_qwen3(str(folder)))
    with open(folder / WEIGHTS, "r+b") as file:
        file.seek(-4000, 2)
        file.write(b"\xff" * 4000)
    assert_same(policy, loaded)


def test_companion_files_travel_and_the_dtype_is_said_once(tmp_path: Path) -> None:
    folder = export(fresh(replace(SHAPES["tied"], extra={**EXTRA, "torch_dtype": "bfloat16"})), tmp_path / "a")
    (folder / "generation_config.json").write_text('{"eos_token_id": [3, 7], "pad_token_id": 1}')
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "training_args.bin").write_bytes(b"?")
    loaded = load_policy(str(folder))
    loaded.save_pretrained(tmp_path / "b", loaded.to_checkpoint(loaded.hf_named_parameters()))
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        WEIGHTS,
    ]
    assert json.loads((tmp_path / "b" / "generation_config.json").read_text())["eos_token_id"] == [3, 7]
    values = json.loads((tmp_path / "b" / "config.json").read_text())
    assert values["dtype"] == "float32"
    assert "torch_dtype" not in values


def test_config_json_is_read_alike_by_both_generations_of_transformers(tmp_path: Path) -> None:
    """transformers 4 knows only ``rope_theta`` and ``rope_scaling``; 5 writes only ``rope_parameters``."""
    published = json.loads(PUBLISHED["Qwen3-0.6B"])
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 10_240}
    old = Qwen3Config.from_hf({**published, "rope_scaling": yarn})
    new = Qwen3Config.from_hf(HFConfig(**{**published, "rope_scaling": dict(yarn)}).to_dict())
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 8}
    assert replace(old, extra={}) == replace(new, extra={})
    folder = export(fresh(replace(old, **small, num_attention_heads=2, num_key_value_heads=1)), tmp_path / "m")
    values = json.loads((folder / "config.json").read_text())
    assert values["rope_theta"] == 1_000_000
    assert {key: values["rope_scaling"][key] for key in yarn} == yarn
    read = HFConfig.from_pretrained(folder)
    assert read.rope_parameters["rope_theta"] == 1_000_000
    assert {key: read.rope_parameters[key] for key in yarn} == yarn
    for dropped in ({"rope_parameters"}, {"rope_theta", "rope_scaling"}):
        only = {key: value for key, value in values.items() if key not in dropped}
        again = Qwen3Config.from_hf(only)
        assert (again.rope_theta, again.yarn) == (old.rope_theta, old.yarn)


# --- the published sizes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_its_preset_and_transformers_keys_survive(name: str) -> None:
    values = json.loads(PUBLISHED[name])
    config = Qwen3Config.from_hf(values)
    assert replace(config, extra={}) == PRESETS[name]
    written = config.to_hf()
    for key in ("eos_token_id", "bos_token_id", "use_cache", "transformers_version", "vocab_size", "rms_norm_eps"):
        assert written[key] == values[key]
    if config.is_moe:
        assert written["router_aux_loss_coef"] == pytest.approx(0.001)
        assert written["output_router_logits"] is False


@pytest.mark.skipif(not CONFIGS.is_file(), reason=f"needs {CONFIGS.parent.parent.name}/{CONFIGS.parent.name}")
def test_the_eight_published_sizes_build_on_the_meta_device_with_their_parameter_counts(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in CONFIGS.read_text().splitlines()]
    assert len(rows) == 8
    for row in rows:
        config = PRESETS[row["name"]]
        (tmp_path / "config.json").write_text(json.dumps(config.to_hf()))
        policy = load_policy(str(tmp_path), meta=True, dtype="bfloat16")
        assert isinstance(policy, Qwen3)
        parameters = list(policy.parameters())
        assert all(parameter.is_meta for parameter in parameters)
        assert sum(parameter.numel() for parameter in parameters) == row["params_total"] == config.num_parameters()
        embedding = sum(p.numel() for n, p in policy.named_parameters() if "embed_tokens" in n or n == "lm_head.weight")
        assert row["params_total"] - embedding == row["params_non_embedding"]
        assert embedding == config.num_embedding_parameters()
        assert config.num_active_parameters() == row["params_activated_with_embeddings"]
        for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
            assert getattr(config, key) == row[key]


# --- damage -----------------------------------------------------------------------------------------------------------


def _edit(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    """A change of the last shard's tensors."""

    def damage(folder: Path) -> None:
        file = sorted(folder.glob("*.safetensors"))[-1]
        state = load_file(file)
        change(state)
        save_file(state, file)

    return damage


def _one_file(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        state: dict[str, torch.Tensor] = {}
        for file in folder.glob("*.safetensors"):
            state |= load_file(file)
            file.unlink()
        (folder / INDEX).unlink()
        change(state)
        save_file(state, folder / WEIGHTS)

    return damage


def _values(**changes: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(values | changes))

    return damage


def _integers(folder: Path) -> None:
    file = sorted(folder.glob("*.safetensors"))[0]
    save_file({name: tensor.long() for name, tensor in load_file(file).items()}, file)


def _bin_only(folder: Path) -> None:
    for file in [*folder.glob("*.safetensors"), folder / INDEX]:
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"pickle")


def _truncated(folder: Path) -> None:
    file = sorted(folder.glob("*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[:-100])


EXPERT = "model.layers.1.mlp.experts.2.up_proj.weight"
DAMAGE: dict[str, tuple[Callable[[Path], None], type[Exception], str]] = {
    "no folder content": (
        lambda f: [p.unlink() for p in f.iterdir()],  # type: ignore[func-returns-value]
        FileNotFoundError,
        "with config.json, got an empty folder",
    ),
    "no config.json": (lambda f: (f / "config.json").unlink(), FileNotFoundError, "with config.json, got model-00001"),
    "config.json cut": (
        lambda f: (f / "config.json").write_text('{"model_type": "qwen3_moe", ') and None,
        ValueError,
        "config.json: expected JSON",
    ),
    "config.json a list": (
        lambda f: (f / "config.json").write_text("[]") and None,
        ValueError,
        "expected a JSON object, got list",
    ),
    "index cut": (lambda f: (f / INDEX).write_text("{") and None, ValueError, "index.json: expected JSON"),
    "index with odd names": (
        lambda f: (f / INDEX).write_text('{"weight_map": {"a": 3}}') and None,
        ValueError,
        "under weight_map",
    ),
    "quantised": (
        lambda f: (
            (f / "config.json").write_text(
                json.dumps(
                    json.loads((f / "config.json").read_text()) | {"quantization_config": {"quant_method": "fp8"}}
                )
            )
            and None
        ),
        UnsupportedModelError,
        r"quantization_config \(fp8\); convert it first",
    ),
    "integers": (_integers, ValueError, "expected tensors of F32, BF16, F16, got .* in I64"),
    "index without a map": (lambda f: (f / INDEX).write_text("{}") and None, ValueError, "under weight_map"),
    "index lost": (lambda f: (f / INDEX).unlink(), FileNotFoundError, "Shards need their model.safetensors.index.json"),
    "a shard lost": (
        lambda f: sorted(f.glob("*.safetensors"))[1].unlink(),
        FileNotFoundError,
        "index.json names model-00002-of-",
    ),
    "a shard cut short": (_truncated, ValueError, "expected a whole safetensors file"),
    "pickles only": (_bin_only, FileNotFoundError, "Pickled weights are not read"),
    "both one file and shards": (
        lambda f: shutil.copy(sorted(f.glob("*.safetensors"))[0], f / WEIGHTS) and None,
        ValueError,
        "expected one set of weights",
    ),
    "a tensor in two shards": (
        _edit(lambda s: s.update({"model.embed_tokens.weight": torch.zeros(96, 48)})),
        ValueError,
        "model.embed_tokens.weight is in model-",
    ),
    "a tensor lost": (
        _edit(lambda s: s.pop("model.norm.weight")),
        ValueError,
        r"fit config.json \(missing: model.norm.weight\)",
    ),
    "a tensor too many": (
        _edit(lambda s: s.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(3)})),
        ValueError,
        r"not in the model: model.layers.0.self_attn.q_proj.bias",
    ),
    "a tensor of another shape": (
        _edit(lambda s: s.update({"model.norm.weight": torch.zeros(47)})),
        ValueError,
        r"of another shape: model.norm.weight \[47\], not \[48\]",
    ),
    "one expert's matrix lost": (_one_file(lambda s: s.pop(EXPERT)), ValueError, f"missing: {EXPERT}"),
    "one expert too many": (
        _one_file(lambda s: s.update({EXPERT.replace(".2.", ".4."): torch.zeros(24, 48)})),
        ValueError,
        "not in the model: model.layers.1.mlp.experts.4.up_proj",
    ),
    "experts both joined and one by one": (
        _one_file(lambda s: s.update({"model.layers.1.mlp.experts.down_proj": torch.zeros(4, 48, 24)})),
        ValueError,
        "not in the model: model.layers.1.mlp.experts.0.down_proj.weight, .* and 1 more",
    ),
    "untied without a head": (_one_file(lambda s: s.pop("lm_head.weight")), ValueError, "missing: lm_head.weight"),
    "another number of layers": (
        _values(num_hidden_layers=1),
        ValueError,
        r"not in the model: model.layers.1.input_layernorm.weight, .* and \d+ more",
    ),
    "another width": (_values(moe_intermediate_size=32), ValueError, r"\[24, 48\], not \[32, 48\]"),
}


@pytest.mark.parametrize("path", ["/nowhere/model", "./nowhere", "~/model", "a/b/c", "nowhere"])
def test_a_path_that_is_neither_folder_nor_hub_id_is_said_to_be_so(path: str) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder, and not a hub id"):
        load_policy(path)


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_one_clear_error(kind: str, moe_folder: Path) -> None:
    damage, error, said = DAMAGE[kind]
    damage(moe_folder)
    with pytest.raises(error, match=said) as caught:
        load_policy(str(moe_folder))
    assert "\n" not in str(caught.value)
    assert str(moe_folder) in str(caught.value)


def test_damage_is_found_before_storage_is_taken(moe_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _values(num_hidden_layers=1)(moe_folder)

    def never(self: WeightFiles) -> Iterator[Any]:
        raise AssertionError("a tensor was read")
        yield

    monkeypatch.setattr(WeightFiles, "__iter__", never)
    monkeypatch.setattr(Qwen3, "to_empty", lambda *_, **__: pytest.fail("storage was allocated"))
    with pytest.raises(ValueError, match="do not fit"):
        load_qwen3(str(moe_folder))


def test_a_hub_id_is_a_folder_of_the_cache(moe_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (moe_folder / "generation_config.json").write_text('{"eos_token_id": 3}')
    asked: list[set[str]] = []

    def download(path: str, allow_patterns: list[str]) -> str:
        assert path == "some/model"
        asked.append(set(allow_patterns))
        return str(moe_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    policy = load_policy("some/model")
    assert_same(fresh(SHAPES["moe"]), replace_extra(policy))
    policy.save_pretrained(tmp_path / "out", policy.to_checkpoint(policy.hf_named_parameters()))
    assert (tmp_path / "out" / "generation_config.json").is_file()
    assert {"config.json"} in asked
    assert any("*.safetensors" in patterns for patterns in asked)
    assert not any("*.bin" in patterns for patterns in asked)


def test_variants_that_are_not_native_are_named(tmp_path: Path) -> None:
    folder = export(fresh(SHAPES["tied"]), tmp_path / "m")
    _values(attention_bias=True)(folder)
    with pytest.raises(UnsupportedModelError, match="attention_bias"):
        load_qwen3(str(folder))
    with pytest.raises(ValueError, match="dtype: expected one of"):
        load_policy(str(folder), dtype="float16")
    assert hf.DTYPES.keys() == {"float32", "bfloat16"}
