"""The search on Ray Tune: documents of noise against documents that teach what is measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.tokenizer import train_bpe
from pretrain.data.document import Row, document, label, write_shards
from pretrain.data.tokens import TokenSettings, write_tokens
from pretrain.data.weighting import Weighting
from pretrain.mixture_search import search_mixture
from pretrain.proxies import ProxyError, run_points
from rlplatform.config import ConfigError, MixtureSearchConfig
from rlplatform.datafiles import DataError

pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.timeout(1200)]


def corpus(num: int, seed: int, kinds: tuple[str, ...]) -> list[Row]:
    """``count``: numbers in order. ``noise``: letters without any; both from one source."""
    rng = np.random.default_rng(seed)
    rows = []
    for k in range(num):
        kind, start = kinds[k % len(kinds)], int(rng.integers(0, 70))
        noise = "".join(rng.choice(list("abcdefghij "), size=60))
        text = " ".join(map(str, range(start, start + 20))) if kind == "count" else noise
        row = document("made", f"{seed}-{k}", f"made:{k}", text)
        order = 1.0 if kind == "count" else 0.0
        rows.append({**row, "labels": [label("kind", kind, "rule@1"), label("order", str(order), "rule@1", order)]})
    return rows


@pytest.fixture(scope="module")
def folder(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    parts = {
        "train": corpus(200, 0, ("count", "noise")),
        "heldout": corpus(20, 1, ("count",)),
        "test": corpus(20, 2, ("count",)),
    }
    train_bpe([row["text"] for row in parts["train"]], 300, folder / "tokenizer")
    for name, rows in parts.items():
        write_shards(rows, folder / name, per_shard=200)
        settings = TokenSettings(row_tokens=64)
        write_tokens(folder / name, folder / f"{name}_tokens", str(folder / "tokenizer"), settings)
    return folder


def config_of(folder: Path, run_dir: Path) -> MixtureSearchConfig:
    return MixtureSearchConfig(
        run_dir=str(run_dir),
        documents=str(folder / "train"),
        tokens=str(folder / "train_tokens"),
        heldout={"count": str(folder / "heldout_tokens")},
        test={"unseen": str(folder / "test_tokens")},
        domain="kind",
        numbers=("order",),
        num_proxies=6,
        num_seeds=2,
        proxy_tokens=12_000,
        rows_per_step=4,
        architecture={"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 64},
    )


@pytest.mark.slow
def test_weights_turn_to_the_documents_that_teach_and_a_second_call_runs_nothing(folder: Path, tmp_path: Path) -> None:
    ran: list[tuple[str, int, int]] = []
    config = config_of(folder, tmp_path)
    summary = search_mixture(config, progress=lambda *row: ran.append(row))
    assert summary["features"] == {"uniform": 0, "domain": 2, "instance": 3}
    weighting = Weighting.load(tmp_path / "weights.json")
    columns = {"kind": np.array(["count", "noise"]), "order": np.array([1.0, 0.0])}
    teaches, noise = weighting.weights(columns, 2)
    assert teaches > 1.5 * noise
    assert summary["heldout_loss"]["instance"] < summary["heldout_loss"]["uniform"]
    assert -1.0 <= summary["rank_correlation"]["instance"] <= 1.0
    found = json.loads((tmp_path / "search.json").read_text())
    assert [len(found["proxies"][arm]) for arm in ("domain", "instance")] == [6, 6]
    assert [len(found["heldout_loss"][arm]) for arm in ("uniform", "domain", "instance")] == [2, 2, 2]
    assert {*found["proxies"]["instance"][0]["loss"]} == {"count"}  # what decides
    assert {*found["heldout_loss"]["instance"][0]} == {"unseen"}  # what is told of it
    assert ("domain", 0, 6) in ran
    ran.clear()
    assert search_mixture(config, progress=lambda *row: ran.append(row)) == summary
    assert all(done == num for _, done, num in ran)


def test_what_cannot_be_searched_is_refused(folder: Path, tmp_path: Path) -> None:
    config = config_of(folder, tmp_path)
    with pytest.raises(DataError, match="expected the 20 documents"):
        search_mixture(replace(config, documents=str(folder / "heldout")))
    with pytest.raises(ConfigError, match="expected at most"):
        search_mixture(replace(config, proxy_tokens=10_000_000))
    with pytest.raises(DataError, match="do not vary"):
        search_mixture(replace(config, domain="source"))


def broken(value: int) -> dict[str, int]:
    if value == 2:
        raise ValueError("two is not taken")
    return {"squared": value * value}


@pytest.mark.slow
def test_a_failed_point_is_named_and_the_others_stay(tmp_path: Path) -> None:
    points = [{"value": value} for value in (1, 2, 3)]
    with pytest.raises(ProxyError, match="1 of 3 small runs failed"):
        run_points(broken, points, tmp_path, shared={}, key="k")
    assert len(list((tmp_path / "points").glob("*.json"))) == 2
    assert run_points(broken, points[::2], tmp_path, shared={}, key="k") == [{"squared": 1}, {"squared": 9}]
