"""What a search keeps its small runs under."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretrain import mixture_search
from pretrain.data.packing import concatenate
from pretrain.data.token_store import Manifest, TokenStore, write_manifest, write_shard
from pretrain.data.weighting import Weighting
from pretrain.mixture_search import Corpus, Search, heldout_rows
from rlplatform.config import MixtureSearchConfig
from rlplatform.runs import RunFolder

ROW = 16


def packed(folder: Path, texts: list[np.ndarray]) -> str:
    folder.mkdir()
    rows = concatenate(np.array([len(text) for text in texts]), ROW)
    entry = write_shard(folder, 0, np.concatenate(texts), rows, rows.document)
    write_manifest(folder, Manifest(ROW, "concatenate", 0, "", 99, (), len(texts), len(texts), (entry,)))
    return str(folder)


def texts_of(num: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 99, rng.integers(4, 40)).astype(np.int32) for _ in range(num)]


def corpus_of(texts: list[np.ndarray]) -> Corpus:
    kinds = np.array(["a", "b"])[np.arange(len(texts)) % 2]
    return Corpus(texts, [str(k) for k in range(len(texts))], {"kind": kinds}, "mark")


def test_other_held_out_tokens_are_other_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[str] = []

    def kept(*_: Any, key: str, **__: Any) -> list[dict[str, float]]:
        keys.append(key)
        return []

    monkeypatch.setattr(mixture_search, "run_points", kept)
    tokens = packed(tmp_path / "tokens", texts_of(20, seed=0))
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        config = MixtureSearchConfig(
            run_dir=str(tmp_path / "run"),
            documents="documents",
            tokens=tokens,
            heldout={"heldout": packed(tmp_path / name, texts_of(5, seed))},
        )
        corpus = corpus_of(TokenStore(tokens).texts())
        search = Search(config, corpus, heldout_rows(config), RunFolder(config.run_dir), lambda *_: None)
        search.losses("uniform", Weighting((), ()), [1])
    assert keys[0] == keys[1] != keys[2]
    assert json.loads(keys[0])
