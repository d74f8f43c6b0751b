"""What a pretraining run refuses before anything starts, and what it forgets when it begins again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from model.config import PRESETS
from pretrain import pretraining
from pretrain.data.packing import concatenate
from pretrain.data.token_store import Manifest, write_manifest, write_shard
from pretrain.pretraining import COMPLETIONS, Watch, run_pretraining
from rlplatform.config import (
    CompletionsConfig,
    ConfigError,
    LearnerConfig,
    ModelConfig,
    PackedDataConfig,
    PretrainConfig,
)
from rlplatform.runs import RunFolder

ROW = 64
STARTS = "Ray is not running"  # what is said where nothing was refused


def packed(folder: Path, row_tokens: int = ROW) -> str:
    folder.mkdir()
    lengths = np.full(8, row_tokens // 2)
    rows = concatenate(lengths, row_tokens)
    entry = write_shard(folder, 0, np.zeros(lengths.sum(), dtype=np.int32), rows, rows.document)
    write_manifest(folder, Manifest(row_tokens, "concatenate", 0, "", 0, (), 8, 8, (entry,)))
    return str(folder)


def model_of(folder: Path, **changes: Any) -> ModelConfig:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(PRESETS["tiny"].to_hf() | changes))
    return ModelConfig(str(folder))


@pytest.fixture
def config(tmp_path: Path) -> PretrainConfig:
    return PretrainConfig(
        run_dir=str(tmp_path / "run"),
        tokens_per_step=4 * ROW,
        model=model_of(tmp_path / "model", max_position_embeddings=2 * ROW),
        data=PackedDataConfig(tokens=packed(tmp_path / "tokens")),
        learner=LearnerConfig(num_workers=2),
    )


def test_a_step_that_rows_cannot_fill_is_refused(config: PretrainConfig) -> None:
    """It would hold fewer tokens than it says, and the run train on fewer than num_tokens."""
    with pytest.raises(ConfigError, match=STARTS):
        run_pretraining(config)
    with pytest.raises(ConfigError, match="tokens_per_step=250: expected a multiple of row_tokens=64"):
        run_pretraining(replace(config, tokens_per_step=250))


def test_rows_beyond_the_models_positions_are_refused(config: PretrainConfig, tmp_path: Path) -> None:
    long = PackedDataConfig(tokens=packed(tmp_path / "long", 4 * ROW))
    with pytest.raises(ConfigError, match=r"rows of 256 tokens, .* has positions for 128"):
        run_pretraining(replace(config, data=long, tokens_per_step=8 * ROW))
    stretched = replace(config.model, yarn_factor=2.0, yarn_original_length=2 * ROW)
    with pytest.raises(ConfigError, match=STARTS):
        run_pretraining(replace(config, data=long, model=stretched, tokens_per_step=8 * ROW))


def test_held_out_rows_need_not_fit_into_a_step(config: PretrainConfig, tmp_path: Path) -> None:
    data = replace(config.data, heldout=packed(tmp_path / "heldout", 2 * ROW))
    with pytest.raises(ConfigError, match=STARTS):
        run_pretraining(replace(config, data=data, tokens_per_step=3 * ROW))


@pytest.mark.parametrize(
    ("name", "changes"),
    [("peak_tflops", {"peak_tflops": 1.0}), ("completions.prompts", {"completions": CompletionsConfig(("a",))})],
)
def test_what_only_a_native_model_gives_is_refused_of_others(
    config: PretrainConfig, tmp_path: Path, name: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=STARTS):
        run_pretraining(replace(config, **changes))
    other = model_of(tmp_path / "other", attention_bias=True)
    with pytest.raises(ConfigError, match=rf"{name}: expected a native model .*attention_bias"):
        run_pretraining(replace(config, model=other, **changes))


def test_completions_of_a_step_that_runs_again_stand_once(
    config: PretrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretraining, "complete", lambda engine, config: [{"prompt": "a", "completion": "b"}])
    monkeypatch.setattr("torch.distributed.barrier", lambda: None)
    asked = CompletionsConfig(prompts=("a",), every=2)
    engine: Any = SimpleNamespace(rank=0)
    watch = Watch(engine, replace(config, completions=asked, num_tokens=2000), RunFolder(tmp_path), None)
    for step in (2, 4, 4, 6):  # killed behind 4, resumed behind 2
        watch({"step": step})
    lines = (tmp_path / COMPLETIONS).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4, 6]
