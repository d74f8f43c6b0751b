"""The small BPE tokenizer: Qwen3's pre-tokeniser, ids and flags, checked against the published ones where present."""

from __future__ import annotations

import base64
import gzip
import json
import shutil
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from model.chat import CHAT_TEMPLATE
from model.tokenizer import (
    ADDED_TOKENS,
    CONTROL_TOKENS,
    MIN_VOCAB_SIZE,
    NUM_BYTES,
    PRETOKENIZER_PATTERN,
    TEXT_TOKENS,
    TokenizerError,
    added_token_differences,
    chat_texts,
    load_tokenizer,
    looks_like_qwen3,
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


# --- loading Qwen3's own ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def qwen3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tokenizer.json alone."""
    folder = tmp_path_factory.mktemp("qwen3")
    with gzip.open(qwen3_file("tokenizer.json.gz"), "rb") as packed, (folder / "tokenizer.json").open("wb") as file:
        shutil.copyfileobj(packed, file)
    return folder


@pytest.fixture(scope="module")
def qwen3(qwen3_folder: Path):
    return load_tokenizer(qwen3_folder)


def test_published_tokenizer_loads_complete(qwen3) -> None:
    assert len(qwen3) == 151_669
    assert (qwen3.eos_token, qwen3.eos_token_id) == ("<|im_end|>", 151_645)
    assert (qwen3.pad_token, qwen3.pad_token_id) == ("<|endoftext|>", 151_643)
    assert qwen3.bos_token is None
    assert qwen3.chat_template == CHAT_TEMPLATE
    assert looks_like_qwen3(qwen3)
    assert qwen3.convert_tokens_to_ids(list(ADDED_TOKENS)) == list(range(151_643, 151_669))
    published = json.loads(qwen3_file("special_tokens.json").read_text())["added_tokens"]
    assert [(t["content"], t["special"]) for t in published] == [(t, t in CONTROL_TOKENS) for t in ADDED_TOKENS]


def test_published_vectors(qwen3) -> None:
    rows = [json.loads(line) for line in qwen3_file("golden_vectors.jsonl").read_text().splitlines()]
    assert rows
    for row in rows:
        assert qwen3.encode(row["text"]) == row["ids"], row["text"]
        assert qwen3.decode(row["ids"]) == row["decoded"], row["text"]
        assert (row["decoded"] == row["text"]) == row["roundtrip"]


def test_known_encodings_of_the_think_tokens(qwen3) -> None:
    assert qwen3.encode("/think") == [20439, 766]
    assert qwen3.encode("/no_think") == [33100, 5854, 766]
    assert qwen3.encode("<think>\n\n</think>\n\n") == [151667, 271, 151668, 271]
    assert qwen3.decode([151667, 271, 151668, 271, 151645, 151643], skip_special_tokens=True) == (
        "<think>\n\n</think>\n\n"
    )
    text = "".join(ADDED_TOKENS)
    assert qwen3.decode(qwen3.encode(text), skip_special_tokens=True) == "".join(TEXT_TOKENS)


def test_vocabulary_is_that_of_the_tiktoken_file(qwen3) -> None:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that byte-level BPE writes as themselves
    character = {byte: chr(byte) for byte in printable}
    for place, byte in enumerate(byte for byte in range(256) if byte not in character):
        character[byte] = chr(256 + place)
    with gzip.open(qwen3_file("qwen.tiktoken.gz"), "rt") as file:
        ranks = dict(line.split() for line in file)
    theirs = {"".join(map(character.__getitem__, base64.b64decode(t))): int(rank) for t, rank in ranks.items()}
    vocabulary = qwen3.get_vocab()
    assert len(theirs) == 151_643
    assert {token: index for token, index in vocabulary.items() if index < 151_643} == theirs
    assert sorted(set(vocabulary) - set(theirs)) == sorted(ADDED_TOKENS)


def broken(qwen3_folder: Path, folder: Path, change) -> Path:
    data = json.loads((qwen3_folder / "tokenizer.json").read_text())
    change(data["added_tokens"])
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(data))
    return folder


def swap_ids(added: list[dict]) -> None:
    added[-1]["id"], added[-2]["id"] = added[-2]["id"], added[-1]["id"]
    added[-1], added[-2] = added[-2], added[-1]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda added: added.pop(-2), "<think> is missing; </think>: expected id 151668, got 151667"),
        (swap_ids, "<think>: expected id 151667, got 151668; </think>: expected id 151668, got 151667"),
        (lambda added: added[-1].update(special=True), "</think>: expected special=False, got True"),
        (lambda added: added[14].update(lstrip=True), "<tool_call>: expected lstrip=False, got True"),
    ],
)
def test_added_tokens_that_are_not_qwen3s_are_named(qwen3_folder: Path, tmp_path: Path, change, reason: str) -> None:
    with pytest.raises(TokenizerError, match="not Qwen3's 26 added tokens: ") as caught:
        load_tokenizer(broken(qwen3_folder, tmp_path / "broken", change))
    assert str(caught.value).endswith(reason)


# --- loading anything else -------------------------------------------------------------------------------------------


def test_a_trained_folder_loads_as_it_was_saved(tokenizer, folder: Path) -> None:
    loaded = load_tokenizer(folder)
    assert added_token_differences(loaded) == []
    assert looks_like_qwen3(loaded)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert (loaded.eos_token, loaded.pad_token) == ("<|im_end|>", "<|endoftext|>")


def test_what_a_checkpoint_says_of_itself_is_kept(tokenizer, tmp_path: Path) -> None:
    """Base checkpoints end with <|endoftext|>; a checkpoint's own template wins over ours; more tokens may follow."""
    copy = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    copy.add_tokens(["<mine>"])
    copy.eos_token, copy.chat_template = "<|endoftext|>", "{{ messages[0].content }}"
    copy.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert (loaded.eos_token, loaded.chat_template) == ("<|endoftext|>", "{{ messages[0].content }}")


def test_another_familys_tokenizer_is_returned_as_it_is(tmp_path: Path) -> None:
    raw = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(pre_tokenizers.ByteLevel.alphabet())}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.add_tokens(["<think>", "</think>"])
    PreTrainedTokenizerFast(tokenizer_object=raw).save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert not looks_like_qwen3(loaded)
    assert (loaded.eos_token, loaded.pad_token, loaded.chat_template) == (None, None, None)


def test_qwen2s_tokens_are_no_claim_to_be_qwen3(qwen3_folder: Path, tmp_path: Path) -> None:
    def without_the_new(added: list[dict]) -> None:
        del added[-4:]

    loaded = load_tokenizer(broken(qwen3_folder, tmp_path / "qwen2", without_the_new))
    assert not looks_like_qwen3(loaded)
    assert loaded.encode("Hello world") == [9707, 1879]


def test_what_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "tokenizer.json.gz").write_bytes(b"")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "tokenizer.json").write_text("{")
    for path, reason in {
        tmp_path: r"expected tokenizer.json in the folder; files there: \['a.txt', 'damaged', 'packed'\]",
        tmp_path / "packed": "tokenizer.json.gz is packed: gunzip it",
        tmp_path / "damaged": "its files do not load: ",
        tmp_path / "a.txt": "expected a folder with tokenizer.json or a hub id, got a file",
        tmp_path / "nowhere": "no such folder, and not a hub id",
        "nowhere": "no such folder, and not a hub id",
        "./owner/name": "no such folder, and not a hub id",
        "nobody/nothing-of-that-name": "no such folder here, and from the hub it did not load: ",
    }.items():
        with pytest.raises(TokenizerError, match=reason) as caught:
            load_tokenizer(path)
        assert repr(str(path)) in str(caught.value)
