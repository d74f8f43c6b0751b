"""Documents to packed tokens on local Ray: every token once, the same bytes again, text never becomes control."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.tokenizer import train_bpe
from pretrain.data.document import Row, document, label, read_documents, write_shards
from pretrain.data.token_store import Manifest, TokenStore
from pretrain.data.tokens import Encoder, TokenSettings, copies_path, write_tokens
from rlplatform.datafiles import DataError

pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.timeout(1200)]


def corpus(num: int, seed: int) -> list[Row]:
    rng = np.random.default_rng(seed)
    words = ["alpha", "beta", "gamma", "delta", "<|endoftext|>", "<think>", "é", "数"]
    rows = []
    for k in range(num):
        text = " ".join(rng.choice(words, size=int(rng.integers(1, 40))))
        row = document("made", str(k), f"made:{k}", text)
        row["labels"] = [label("domain", "even" if k % 2 == 0 else "odd", "rule@1")]
        rows.append(row)
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    rows = corpus(90, seed=0)
    write_shards(rows, folder / "documents", per_shard=40)
    train_bpe([row["text"] for row in rows], 400, folder / "tokenizer")
    return folder


def settings(**changes: Any) -> TokenSettings:
    return TokenSettings(**{"row_tokens": 64, "seed": 3, "groups": ("source", "domain"), **changes})


def written(folder: Path, name: str, **changes: Any) -> tuple[Manifest, TokenStore]:
    copies = changes.pop("copies", None)
    manifest = write_tokens(
        folder / "documents", folder / name, str(folder / "tokenizer"), settings(**changes), copies=copies
    )
    return manifest, TokenStore(folder / name, verify=True)


def documents_of(store: TokenStore) -> Counter[tuple[int, tuple[int, ...]]]:
    """(document, its tokens), put together from the pieces as often as it was laid."""
    pieces: dict[int, list[tuple[int, ...]]] = {}
    for shard, arrays in enumerate(store._arrays):
        at = 0
        assert shard < len(store.manifest.shards)
        for number, start, length in arrays["pieces"].tolist():
            pieces.setdefault(number, []).append((start, tuple(arrays["tokens"][at : at + length].tolist())))  # type: ignore[arg-type]
            at += length
    whole: Counter[tuple[int, tuple[int, ...]]] = Counter()
    for number, spans in pieces.items():
        spans.sort()
        copies = sum(start == 0 for start, _ in spans)
        text = [token for _, part in spans for token in part]
        if copies == 1:
            assert [start for start, _ in spans] == np.cumsum([0, *(len(p) for _, p in spans[:-1])]).tolist()
        whole[(number, tuple(text))] += 1
    return whole


@pytest.mark.parametrize("packing", ["concatenate", "best_fit"])
def test_every_document_is_there_once_and_ends_with_the_separator(folder: Path, packing: str) -> None:
    manifest, store = written(folder, packing, packing=packing)
    encoder = Encoder(str(folder / "tokenizer"))
    expected = encoder([row["text"] for row in read_documents(folder / "documents")])
    found = dict(documents_of(store).keys())
    assert len(found) == manifest.num_documents == manifest.num_placed == 90
    for number, token_ids in enumerate(expected):
        assert found[number] == tuple(token_ids.tolist())
    assert manifest.num_tokens == sum(map(len, expected)) == store.lengths.sum()
    assert (store.lengths <= 64).all()
    assert manifest.waste == pytest.approx(1 - manifest.num_tokens / (64 * len(store)))
    if packing == "concatenate":
        assert (store.lengths < 64).sum() <= 1  # what shards leave over is packed together
    else:
        assert manifest.num_cuts == sum(-(-len(tokens) // 64) - 1 for tokens in expected)


def test_a_control_token_spelt_in_a_text_stays_text(folder: Path) -> None:
    encoder = Encoder(str(folder / "tokenizer"))
    (spelt,) = encoder(["alpha <|endoftext|> beta"])
    assert (spelt == encoder.separator).sum() == 1
    assert spelt[-1] == encoder.separator


def test_rows_are_the_same_bytes_again_and_follow_the_seed(folder: Path) -> None:
    first, _ = written(folder, "again_a")
    second, _ = written(folder, "again_b")
    other, _ = written(folder, "again_c", seed=4)
    assert first == second
    assert [shard.blake2b for shard in first.shards] != [shard.blake2b for shard in other.shards]


def test_a_second_call_goes_on_with_the_shards_that_are_missing(folder: Path) -> None:
    first, _ = written(folder, "resumed")
    finished = sorted((folder / "resumed" / ".finished").iterdir())
    before = (folder / "resumed" / "tokens-00000.npy").stat().st_mtime_ns
    finished[1].unlink()
    (folder / "resumed" / "tokens-00001.npy").unlink()
    second, _ = written(folder, "resumed")
    assert second == first
    assert (folder / "resumed" / "tokens-00000.npy").stat().st_mtime_ns == before


def test_copies_say_how_often_a_document_is_laid(folder: Path) -> None:
    copies = folder / "copies"
    copies.mkdir()
    chosen = [np.arange(40) % 3, np.zeros(40, dtype=np.int64), np.ones(10, dtype=np.int64)]
    for shard, numbers in enumerate(chosen):
        np.save(copies_path(copies, shard), numbers)
    manifest, store = written(folder, "copied", copies=copies)
    assert manifest.num_placed == sum(int(numbers.sum()) for numbers in chosen)
    starts = Counter(number for arrays in store._arrays for number, start, _ in arrays["pieces"].tolist() if start == 0)
    assert [starts[k] for k in range(90)] == np.concatenate(chosen).tolist()


def test_copies_of_other_documents_are_refused(folder: Path) -> None:
    copies = folder / "wrong"
    copies.mkdir()
    for shard in range(3):
        np.save(copies_path(copies, shard), np.ones(7, dtype=np.int64))
    with pytest.raises(DataError, match="expected 40 numbers >= 0, one a document of the shard"):
        written(folder, "refused", copies=copies)


def test_groups_name_every_documents_label(folder: Path) -> None:
    _, store = written(folder, "grouped")
    names, codes = store.groups("domain")
    assert names == ("even", "odd")
    assert codes.tolist() == [k % 2 for k in range(90)]
    assert store.groups("source")[0] == ("made",)
    with pytest.raises(DataError, match="expected one of the groups"):
        store.groups("language")


def test_reading_rows_gives_their_tokens_pieces_and_documents(folder: Path) -> None:
    _, store = written(folder, "read")
    batch = store.read([5, 0])
    assert np.diff(batch.cu_rows).tolist() == store.lengths[[5, 0]].tolist()
    assert batch.cu_pieces[-1] == batch.cu_rows[-1] == len(batch.token_ids)
    assert set(batch.cu_rows.tolist()) <= set(batch.cu_pieces.tolist())
    assert len(batch.document) == len(batch.cu_pieces) - 1
    alone = [store.read([row]).token_ids for row in (5, 0)]
    assert batch.token_ids.tolist() == np.concatenate(alone).tolist()


def test_a_changed_file_is_noticed(folder: Path) -> None:
    written(folder, "whole")
    shutil.copytree(folder / "whole", folder / "broken")
    path = folder / "broken" / "tokens-00001.npy"
    token_ids = np.load(path)
    token_ids[7] += 1
    np.save(path, token_ids)
    with pytest.raises(DataError, match=r"shard 1 is not what manifest\.json says"):
        TokenStore(folder / "broken", verify=True)
    np.save(path, token_ids[:-1])
    with pytest.raises(DataError, match=r"shard 1 is not what manifest\.json says"):
        TokenStore(folder / "broken")
