"""The small BPE tokenizer: Qwen3's pre-tokeniser, ids and flags, checked against the published ones where present."""

from __future__ import annotations

import gzip
import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, pre_tokenizers
from transformers import AutoTokenizer

from model.tokenizer import (
    ADDED_TOKENS,
    CONTROL_TOKENS,
    MIN_VOCAB_SIZE,
    NUM_BYTES,
    PRETOKENIZER_PATTERN,
    TEXT_TOKENS,
    chat_texts,
    train_bpe,
)

QWEN3 = Path(__file__).parents[2].parent / "shared" / "data" / "tokenizer_qwen3"
TEXTS = [
    "What is 347 + 285?",
    "The quick brown fox jumps over the lazy dog, and the dog's owner isn't amused.\n\nThe end.",
    "<think>\n7+5=12 carry 1\n4+8+1=13 carry 1\n</think>\n\n\\boxed{632}",
] * 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizer")


@pytest.fixture(scope="module")
def tokenizer(folder: Path):
    return train_bpe(TEXTS, 360, folder)


def qwen3_file(name: str) -> Path:
    path = QWEN3 / name
    if not path.exists():
        pytest.skip(f"{path} is absent: Qwen3's published tokenizer is needed for this comparison")
    return path


@settings(deadline=None)
@given(st.text())
def test_any_nfc_text_comes_back(tokenizer, text: str) -> None:
    text = unicodedata.normalize("NFC", text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_text_that_is_not_nfc_is_normalised(tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("e\u0301")) == "\u00e9"


def test_digits_stay_single_tokens(tokenizer) -> None:
    assert tokenizer.tokenize("347") == ["3", "4", "7"]
    assert len({tuple(tokenizer.encode(d)) for d in "0123456789"}) == 10


def test_added_tokens_follow_the_vocabulary_in_order(tokenizer) -> None:
    ids = tokenizer.convert_tokens_to_ids(list(ADDED_TOKENS))
    assert ids == list(range(len(tokenizer) - 26, len(tokenizer)))
    assert len(ADDED_TOKENS) == 26
    for token, token_id in zip(ADDED_TOKENS, ids, strict=True):
        assert tokenizer.encode(f"a{token}b") == [*tokenizer.encode("a"), token_id, *tokenizer.encode("b")]


def test_eos_and_pad(tokenizer) -> None:
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.bos_token is None
    assert tokenizer.unk_token is None
    assert tokenizer.encode("a") == tokenizer.encode("a", add_special_tokens=False)


def test_skip_special_tokens_keeps_think_and_tool_tokens(tokenizer) -> None:
    text = "".join(ADDED_TOKENS)
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == "".join(TEXT_TOKENS)
    assert len(CONTROL_TOKENS) == 14


def test_added_tokens_inside_texts_are_not_learned_from(tmp_path: Path) -> None:
    tokenizer = train_bpe(["<think><|im_start|></think>"] * 100, 400, tmp_path)
    assert len(tokenizer) == NUM_BYTES + 26  # nothing else was in the text: no merges
    with_words = train_bpe(chat_texts([[{"role": "assistant", "content": "yes"}]] * 9), 400, tmp_path / "words")
    assert with_words.tokenize("assistant") == ["assistant"]


def test_vocabulary_too_small_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=str(MIN_VOCAB_SIZE)):
        train_bpe(TEXTS, MIN_VOCAB_SIZE - 1, tmp_path)
    assert len(train_bpe(TEXTS, MIN_VOCAB_SIZE, tmp_path)) == MIN_VOCAB_SIZE


def test_equal_texts_give_equal_files_and_the_file_is_what_was_trained(tokenizer, folder: Path, tmp_path: Path) -> None:
    train_bpe(TEXTS, 360, tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    text = "\n".join(TEXTS[:3])
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids == tokenizer.encode(text)
    tokenizer.save_pretrained(str(tmp_path / "again"))
    first, again = (json.loads((f / "tokenizer.json").read_text()) for f in (folder, tmp_path / "again"))
    for part in ("model", "added_tokens", "normalizer"):
        assert again[part] == first[part], part
    assert AutoTokenizer.from_pretrained(str(tmp_path / "again")).encode(text) == tokenizer.encode(text)


def test_the_vocabulary_is_filled_when_the_text_allows(tmp_path: Path) -> None:
    varied = [f"{chr(97 + i)}{chr(97 + j)}{chr(97 + k)}" for i in range(26) for j in range(26) for k in range(9)]
    assert len(train_bpe(varied, 400, tmp_path)) == 400


def test_pipeline_equals_the_published_one(folder: Path) -> None:
    with gzip.open(qwen3_file("tokenizer.json.gz"), "rt") as file:
        published = json.load(file)
    saved = json.loads((folder / "tokenizer.json").read_text())
    assert saved["normalizer"] == published["normalizer"]
    assert saved["pre_tokenizer"] == published["pre_tokenizer"]
    assert saved["decoder"]["type"] == published["decoder"]["type"] == "ByteLevel"
    flags = ("content", "special", "normalized", "lstrip", "rstrip", "single_word")
    ours, theirs = ([tuple(token[flag] for flag in flags) for token in d["added_tokens"]] for d in (saved, published))
    assert ours == theirs
    for key in ("type", "dropout", "unk_token", "fuse_unk", "byte_fallback", "ignore_merges"):
        assert saved["model"][key] == published["model"][key], key


def test_words_are_split_as_the_pattern_says_by_hand() -> None:
    split = pre_tokenizers.Split(Regex(PRETOKENIZER_PATTERN), behavior="isolated")
    assert [piece for piece, _ in split.pre_tokenize_str("It's 12 o'clock,\n\n  ok?")] == [
        "It", "'s", " ", "1", "2", " o", "'clock", ",\n\n", " ", " ok", "?",
    ]  # fmt: skip
