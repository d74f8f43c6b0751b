"""The reward model against transformers' classifier, alone, packed and padded; and what its folder keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from model.hf import load_policy
from model.init import init_model
from model.reward_head import (
    RewardModel,
    is_reward_model,
    load_reward_model,
    pack_rows,
    read_settings,
    score_padded,
    weights_hash,
)
from model.tokenizer import train_bpe

SHAPES: dict[str, dict[str, Any]] = {
    "dense": {"num_hidden_layers": 2, "hidden_size": 48, "intermediate_size": 64, "head_dim": 16},
    "untied": {"num_hidden_layers": 2, "hidden_size": 48, "intermediate_size": 64, "tie_word_embeddings": False},
    "moe": {"preset": "tiny-moe", "num_hidden_layers": 2, "hidden_size": 48},
}
TOLERANCE = {"rtol": 0.0, "atol": 1e-5}


def save(model: RewardModel, folder: Path) -> Path:
    model.save_pretrained(folder, model.to_checkpoint((n, p.detach()) for n, p in model.hf_named_parameters()))
    return folder


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Native ones of three shapes, and one that transformers runs."""
    from transformers import LlamaConfig, LlamaForCausalLM

    base = tmp_path_factory.mktemp("policies")
    train_bpe(["some words to merge, some more words"], 320, base / "tokenizer")
    folders = {}
    for name, architecture in SHAPES.items():
        init_model(base / name, base / "tokenizer", architecture, seed=3)
        folders[name] = base / name
    torch.manual_seed(0)
    llama = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=320,
            tie_word_embeddings=False,
        )
    )
    llama.save_pretrained(base / "llama")
    AutoTokenizer.from_pretrained(base / "tokenizer").save_pretrained(base / "llama")
    return {**folders, "llama": base / "llama"}


@pytest.fixture(scope="module")
def rows() -> list[np.ndarray]:
    """Conversations of ordinary tokens that all end with the token that ends a turn."""
    random = np.random.default_rng(0)
    return [np.append(random.integers(3, 250, size=n), 296).astype(np.int32) for n in (1, 7, 30, 12, 64)]


def alone(model: RewardModel, rows: list[np.ndarray]) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model(*pack_rows([row])) for row in rows])


def padded(rows: list[np.ndarray], side: str, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows)) + 3
    ids, mask = torch.full((len(rows), width), pad), torch.zeros(len(rows), width, dtype=torch.int64)
    for place, row in enumerate(rows):
        span = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[place, span], mask[place, span] = torch.from_numpy(row).long(), 1
    return ids, mask


@pytest.mark.parametrize("shape", ["dense", "untied", "moe", "llama"])
def test_scores_equal_those_of_transformers_from_the_saved_folder(
    shape: str, policies: dict[str, Path], rows: list[np.ndarray], tmp_path: Path
) -> None:
    """transformers pads left or right and finds the last token by the pad id; a row alone is the truth."""
    model = load_reward_model(str(policies[shape]), seed=5, settings={"thoughts": "keep"})
    expected = alone(model, rows)
    assert expected.dtype == torch.float32
    assert len({round(float(score), 4) for score in expected}) == len(rows)
    folder = save(model, tmp_path / "rm")
    theirs, report = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, output_loading_info=True, dtype=torch.float32
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    theirs.eval()
    with torch.no_grad():
        for row, score in zip(rows, expected, strict=True):
            torch.testing.assert_close(theirs(torch.from_numpy(row).long()[None]).logits[0, 0], score, **TOLERANCE)
        for side in ("left", "right"):
            ids, mask = padded(rows, side, theirs.config.pad_token_id)
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            got = theirs(ids, attention_mask=mask, position_ids=positions).logits[:, 0]
            torch.testing.assert_close(got, expected, **TOLERANCE)
    again = load_reward_model(str(folder))
    torch.testing.assert_close(alone(again, rows), expected, rtol=0, atol=0)
    assert again.settings == {"thoughts": "keep", "bias": False}


@pytest.mark.parametrize("shape", ["dense", "moe", "llama"])
def test_a_score_depends_on_nothing_but_its_own_row(
    shape: str, policies: dict[str, Path], rows: list[np.ndarray]
) -> None:
    """Not on batch mates or their order, the side of the padding, or the pad id, even that of the end of a turn."""
    model = load_reward_model(str(policies[shape]), seed=5)
    expected = alone(model, rows)
    with torch.no_grad():
        torch.testing.assert_close(model(*pack_rows(rows)), expected, **TOLERANCE)
        torch.testing.assert_close(model(*pack_rows(rows[::-1])).flip(0), expected, **TOLERANCE)
        mates = [rows[2], *[np.arange(5, 40, dtype=np.int32)] * 3]
        torch.testing.assert_close(model(*pack_rows(mates))[0], expected[2], **TOLERANCE)
    for side in ("left", "right"):
        for pad in (0, 256, 296):  # a word, <|endoftext|>, and the token that ends a turn
            torch.testing.assert_close(score_padded(model, *padded(rows, side, pad)), expected, **TOLERANCE)


def test_routers_are_counted_in_a_pass_that_scores_nothing(policies: dict[str, Path], rows: list[np.ndarray]) -> None:
    from model.moe import RouterRecord

    model, router = load_reward_model(str(policies["moe"])), RouterRecord()
    *packed, scored = pack_rows(rows)
    with torch.no_grad():
        assert model(*packed, scored[:0], router=router).shape == (0,)
    assert router.num_tokens == sum(map(len, rows))


def test_padding_with_a_hole_or_without_a_token_is_refused(policies: dict[str, Path], rows: list[np.ndarray]) -> None:
    model = load_reward_model(str(policies["dense"]))
    ids, mask = padded(rows, "right", 0)
    mask[2, 3] = 0
    with pytest.raises(ValueError, match="row 2: expected its real tokens side by side"):
        score_padded(model, ids, mask)
    mask[2] = 0
    with pytest.raises(ValueError, match="row 2"):
        score_padded(model, ids, mask)
    with pytest.raises(ValueError, match="none empty"):
        pack_rows([])


def test_the_score_is_the_head_on_the_last_hidden_state(policies: dict[str, Path], rows: list[np.ndarray]) -> None:
    model = load_reward_model(str(policies["dense"]), bias=True)
    policy = load_policy(str(policies["dense"]))
    with torch.no_grad():
        model.score.bias.fill_(0.75)
        arguments = pack_rows([rows[1]])
        last = policy(*arguments[:3])[-1]
        assert float(model(*arguments)) == pytest.approx(float(last @ model.score.weight[0]) + 0.75, abs=1e-6)


def test_a_bias_survives_the_folder_and_names_no_class_of_transformers(
    policies: dict[str, Path], rows: list[np.ndarray], tmp_path: Path
) -> None:
    model = load_reward_model(str(policies["llama"]), bias=True)
    with torch.no_grad():
        model.score.bias.fill_(-2.0)
    folder = save(model, tmp_path / "rm")
    assert json.loads((folder / "config.json").read_text())["architectures"] == []
    torch.testing.assert_close(alone(load_reward_model(str(folder)), rows), alone(model, rows), rtol=0, atol=0)


def test_the_pad_token_of_the_folder_never_ends_a_turn(policies: dict[str, Path], tmp_path: Path) -> None:
    """A tokenizer with pad == eos: transformers would score the token before the last one."""
    import shutil

    source = tmp_path / "policy"
    shutil.copytree(policies["dense"], source)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(source)
    folder = save(load_reward_model(str(source), seed=1), tmp_path / "rm")
    saved = AutoTokenizer.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    assert saved.eos_token == "<|im_end|>" != saved.pad_token
    assert config["pad_token_id"] == saved.pad_token_id
    texts = ["<|im_start|>assistant\nyes<|im_end|>", "<|im_start|>assistant\nmany more words here<|im_end|>"]
    theirs = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    model = load_reward_model(str(folder))
    expected = alone(model, [np.array(saved(text)["input_ids"]) for text in texts])
    for side in ("left", "right"):
        batch = saved(texts, padding=True, padding_side=side, return_tensors="pt")
        positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            got = theirs(**batch, position_ids=positions).logits[:, 0]
        torch.testing.assert_close(got, expected, **TOLERANCE)


def test_weights_that_do_not_fit_are_named(policies: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for shape in ("dense", "llama"):
        folder = save(load_reward_model(str(policies[shape])), tmp_path / shape)
        tensors = load_file(folder / "model.safetensors")
        name = next(name for name in tensors if name.endswith("0.self_attn.q_proj.weight"))
        save_file({n: t for n, t in tensors.items() if n != name}, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(ValueError, match=f"do not fit config.json \\(missing: {name}"):
            load_reward_model(str(folder))
        save_file({n: t for n, t in tensors.items() if n != "score.weight"}, folder / "model.safetensors")
        with pytest.raises(ValueError, match=r"the weights have no score\.weight"):
            load_reward_model(str(folder))


def test_a_policy_is_no_reward_model_and_the_hash_changes_with_the_weights(
    policies: dict[str, Path], tmp_path: Path
) -> None:
    assert not is_reward_model(str(policies["dense"]))
    assert read_settings(str(policies["dense"])) == {}
    model = load_reward_model(str(policies["dense"]), settings={"max_tokens": 9})
    first = weights_hash(str(save(model, tmp_path / "a")))
    assert weights_hash(str(save(model, tmp_path / "b"))) == first
    assert is_reward_model(str(tmp_path / "a"))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (policies["dense"] / name).read_bytes(), name
    assert read_settings(str(tmp_path / "a"))["max_tokens"] == 9
    with torch.no_grad():
        model.score.weight[0, 0] += 1e-3
    assert weights_hash(str(save(model, tmp_path / "c"))) != first
