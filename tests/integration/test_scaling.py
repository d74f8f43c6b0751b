"""The scaling law stage on Ray Tune, small; its fits are tested alone in tests/unit/test_scaling_fit.py."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.tokenizer import train_bpe
from pretrain.data.document import Row, document, write_shards
from pretrain.data.tokens import TokenSettings, write_tokens
from pretrain.proxies import SmallRun, fresh_model, size_of_model
from pretrain.scaling import find_law
from rlplatform.config import ConfigError, ScalingLawConfig

pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.timeout(1200)]

SIZES = {
    "small": {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 32},
    "large": {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 64},
}


def corpus(num: int, seed: int) -> list[Row]:
    rng = np.random.default_rng(seed)
    starts = [int(rng.integers(0, 70)) for _ in range(num)]
    return [
        document("made", f"{seed}-{k}", f"made:{k}", " ".join(map(str, range(start, start + 20))))
        for k, start in enumerate(starts)
    ]


@pytest.fixture(scope="module")
def config(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> ScalingLawConfig:
    folder = tmp_path_factory.mktemp("law")
    parts = {"train": corpus(120, 0), "heldout": corpus(10, 1)}
    train_bpe([row["text"] for row in parts["train"]], 300, folder / "tokenizer")
    for name, rows in parts.items():
        write_shards(rows, folder / name, per_shard=200)
        settings = TokenSettings(row_tokens=64)
        write_tokens(folder / name, folder / f"{name}_tokens", str(folder / "tokenizer"), settings)
    return ScalingLawConfig(
        run_dir=str(folder / "run"),
        tokens=str(folder / "train_tokens"),
        heldout=str(folder / "heldout_tokens"),
        sizes=SIZES,
        num_tokens=(4_000,),
        rows_per_step=(4,),
        lrs=(1e-3, 1e-2, 1e-1),
        target={"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 128},
    )


@pytest.mark.slow
def test_a_grid_becomes_a_law_a_prediction_and_a_picture(config: ScalingLawConfig) -> None:
    Path(config.run_dir).mkdir(exist_ok=True)
    summary = find_law(config)
    assert summary["runs"] == 6
    law = json.loads((Path(config.run_dir) / "law.json").read_text())
    assert [run["size"] for run in law["runs"]] == ["small"] * 3 + ["large"] * 3
    assert all(run["loss"] > 0 for run in law["runs"])
    assert law["parameters"]["small"] < law["parameters"]["large"] < summary["predicted"]["N"]
    assert 1e-5 < summary["predicted"]["lr"] < 10
    assert len(law["optima"]) == 2
    assert (Path(config.run_dir) / "scaling.png").stat().st_size > 10_000
    assert find_law(config) == summary  # nothing runs again, the numbers are the same


def test_a_size_is_counted_as_the_model_has_it() -> None:
    policy = fresh_model(SmallRun(SIZES["small"], 300, 4, 1e-3))
    own = sum(
        p.numel() for name, p in policy.named_parameters() if "embed_tokens" not in name and "lm_head" not in name
    )
    assert size_of_model(SIZES["small"], 300) == own


def test_what_cannot_be_run_is_refused(config: ScalingLawConfig) -> None:
    with pytest.raises(ConfigError, match="expected at most the"):
        find_law(replace(config, num_tokens=(10**9,)))
    with pytest.raises(ConfigError, match="at least three increasing rates"):
        replace(config, lrs=(1e-2, 1e-3, 1e-1))
    with pytest.raises(ConfigError, match="sizes: expected at least two"):
        replace(config, sizes={"one": {}})
