"""What a search keeps its small runs under, and that every one of them trains on as much."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretrain import mixture_search
from pretrain.data.packing import concatenate
from pretrain.data.token_store import Manifest, TokenStore, write_manifest, write_shard
from pretrain.data.weighting import Feature, Weighting
from pretrain.mixture_search import Corpus, Search, proxy
from pretrain.proxies import SmallRun, TextRows, Trained
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
        search = Search(config, corpus, config.heldout, RunFolder(config.run_dir), lambda *_: None)
        search.losses("uniform", Weighting((), ()), [1])
    assert keys[0] == keys[1] != keys[2]
    assert json.loads(keys[0])


def test_every_run_trains_on_as_many_tokens_whatever_its_mixture_drew(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def counted(run: SmallRun, rows: TextRows, heldout: Any) -> Trained:
        assert rows.cu_texts[-1] == rows.cu_rows[-1] == len(rows.token_ids)
        sizes.append(len(rows.token_ids))
        return Trained()

    monkeypatch.setattr(mixture_search, "train_small", counted)
    corpus, feature = corpus_of(texts_of(60, seed=0)), Feature("kind", "a", 0.5, 1.0)
    for theta in (-1.0, 0.0, 1.0):
        for seed in range(5):
            run = SmallRun({}, 100, rows_per_step=2, lr=0.1)
            proxy(corpus, (feature,), {}, run, 400, 4.0, ROW, theta=[theta], seed=seed)
    assert sizes == [400] * 15
