"""The scaling-law stage around small runs whose losses are given."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretrain import scaling
from pretrain.data.packing import concatenate
from pretrain.data.token_store import Manifest, write_manifest, write_shard
from pretrain.scaling import find_law
from rlplatform.config import ConfigError, ScalingLawConfig
from rlplatform.data_marks import data_hashes


def packed(folder: Path) -> str:
    folder.mkdir()
    rows = concatenate(np.full(20, 8), 16)
    entry = write_shard(folder, 0, np.zeros(160, dtype=np.int32), rows, rows.document)
    write_manifest(folder, Manifest(16, "concatenate", 0, "", 0, (), 20, 20, (entry,)))
    return str(folder)


def config_of(folder: Path, **settings: Any) -> ScalingLawConfig:
    return ScalingLawConfig(
        run_dir=str(folder / "run"),
        tokens=packed(folder / "tokens"),
        heldout=packed(folder / "heldout"),
        sizes={"small": {"num_hidden_layers": 1}, "large": {"num_hidden_layers": 2}},
        num_tokens=(100,),
        lrs=(0.001, 0.008, 0.02, 0.1),
        **settings,
    )


def test_a_best_batch_at_the_edge_of_the_grid_is_counted_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def given(_: Any, points: Sequence[Mapping[str, Any]], *__: Any, **___: Any) -> list[dict[str, float]]:
        """Best at 0.01 and at the largest batch."""
        return [{"loss": 3 + math.log(p["lr"] / 0.01) ** 2 - 0.1 * p["rows_per_step"]} for p in points]

    monkeypatch.setattr(scaling, "run_points", given)
    config = config_of(tmp_path, rows_per_step=(1, 2, 4))
    summary = find_law(config)
    assert summary["at_edge"] == {"lr": 0, "rows_per_step": 2}
    found = json.loads((tmp_path / "run" / "law.json").read_text())
    assert [(one["size"], one["num_tokens"], one["value"], one["at_edge"]) for one in found["best_batches"]] == [
        ("small", 100, 4.0, True),
        ("large", 100, 4.0, True),
    ]


def test_a_size_that_is_checked_is_run_and_not_fitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []

    def given(_: Any, points: Sequence[Mapping[str, Any]], *__: Any, **___: Any) -> list[dict[str, float]]:
        """Best at 0.01, but with four layers at 0.04; a seed's own luck is gone in the mean."""
        ran.extend(point["architecture"]["num_hidden_layers"] for point in points)
        best = [0.04 if point["architecture"]["num_hidden_layers"] == 4 else 0.01 for point in points]
        return [
            {"loss": 3 + math.log(point["lr"] / rate) ** 2 + 99 * point["lr"] * (-1) ** point["seed"]}
            for point, rate in zip(points, best, strict=True)
        ]

    monkeypatch.setattr(scaling, "run_points", given)
    config = config_of(tmp_path, check={"unseen": {"num_hidden_layers": 4}}, num_seeds=2)
    (check,) = find_law(config)["checks"]
    assert ran == [1] * 8 + [2] * 8 + [4] * 8
    assert (check["size"], check["D"], check["at_edge"]) == ("unseen", 100, False)
    assert check["lr"] == pytest.approx(0.04)
    assert check["predicted"] == pytest.approx(0.01)
    assert check["ratio"] == pytest.approx(0.25)
    with pytest.raises(ConfigError, match="check: expected sizes that are not fitted, got small in both"):
        replace(config, check={"small": {}})


def test_other_tokens_are_another_stage(tmp_path: Path) -> None:
    tokens, heldout = packed(tmp_path / "tokens"), packed(tmp_path / "heldout")
    config = ScalingLawConfig(tokens=tokens, heldout=heldout, sizes={"a": {}, "b": {}}, lrs=(0.1, 0.2, 0.3))
    assert set(data_hashes(config)) == {f"{tokens}/manifest.json", f"{heldout}/manifest.json"}
