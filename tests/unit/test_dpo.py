"""The reference of DPO: taken once, kept, and the same on every rank."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pretrain import dpo
from pretrain.dpo import with_reference
from pretrain.examples import pack
from pretrain.preference_data import Pairs
from rlplatform.config import DPOConfig, ModelConfig
from rlplatform.runs import RunFolder


@pytest.fixture
def pairs() -> Pairs:
    row = (np.arange(4, dtype=np.int32), np.array([False, False, True, True]))
    rows = [(f"{k}/{side}", *row) for k in range(2) for side in ("chosen", "rejected")]
    return Pairs(pack(rows), np.zeros(2, dtype=np.float32), np.full(4, 2))


def test_a_rank_that_does_not_see_the_kept_file_yet_goes_with_rank_0(
    pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []
    scored: list[int] = []

    def broadcast(box: list[Any], src: int) -> None:
        sent.append(box[0]) if rank == 0 else box.__setitem__(0, sent[-1])

    def scores(engine: Any, *_: Any) -> np.ndarray:
        scored.append(engine.rank)
        return np.arange(4.0)

    monkeypatch.setattr("torch.distributed.broadcast_object_list", broadcast)
    monkeypatch.setattr(dpo, "score_answers", scores)
    config = DPOConfig(run_dir=str(tmp_path), model=ModelConfig("model"))
    for rank, folder in ((0, "seen"), (1, "unseen"), (0, "seen"), (1, "unseen")):  # a start, and a restart
        engine: Any = SimpleNamespace(rank=rank)
        (tmp_path / folder).mkdir(exist_ok=True)
        found = with_reference(engine, config, RunFolder(tmp_path / folder), pairs, "train")
        assert found.reference.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert scored == [0, 1]


def test_other_pairs_or_another_model_have_another_reference(
    pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.distributed.broadcast_object_list", lambda box, src: None)
    scored = iter(([0.0] * 4, [1.0] * 4, [2.0] * 4))
    monkeypatch.setattr(dpo, "score_answers", lambda *_: np.array(next(scored)))
    engine: Any = SimpleNamespace(rank=0)
    other = Pairs(pairs.examples, np.ones(2, dtype=np.float32), pairs.completion_tokens)
    found = [
        with_reference(engine, DPOConfig(model=ModelConfig(model)), RunFolder(tmp_path), given, "train").reference[0]
        for model, given in (("a", pairs), ("a", pairs), ("b", pairs), ("b", other), ("b", other))
    ]
    assert found == [0.0, 0.0, 1.0, 2.0, 2.0]
