"""Documents to packed tokens on disk, without processes; tests/integration/test_tokens.py has those."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from model.tokenizer import train_bpe
from pretrain.data import tokens
from pretrain.data.document import document, label, write_shards
from pretrain.data.shards import Counts, Stateful
from pretrain.data.token_store import MANIFEST, TokenStore
from pretrain.data.tokens import TokenSettings, group_of, write_tokens
from rlplatform.datafiles import DataError


def one_after_another(process: Stateful, tasks: Sequence[Any], folder: Path, **_: Any) -> list[Counts]:
    """``shards.run_tasks`` in this process."""
    folder.mkdir(exist_ok=True)
    worker: Callable[[int, Any], Counts] = process.factory(**process.arguments)
    return [worker(index, task) for index, task in enumerate(tasks)]


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    train_bpe(["one two three"] * 4, 300, tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


def test_a_second_attempt_leaves_nothing_of_the_first(
    tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "run_tasks", one_after_another)
    rows = [document("web" if k else "old", str(k), f"s:{k}", "one two " * k) for k in range(6)]
    settings = TokenSettings(row_tokens=8)
    write_shards(rows, tmp_path / "many", 1)
    write_tokens(tmp_path / "many", tmp_path / "out", tokenizer, settings)
    write_shards(rows[1:4], tmp_path / "few", 2)
    write_tokens(tmp_path / "few", tmp_path / "out", tokenizer, settings)
    names, codes = TokenStore(tmp_path / "out", verify=True).groups("source")
    assert (names, codes.tolist()) == (("web",), [0, 0, 0])

    def killed(*_: Any, **__: Any) -> list[Counts]:
        raise KeyboardInterrupt

    monkeypatch.setattr(tokens, "run_tasks", killed)
    with pytest.raises(KeyboardInterrupt):
        write_tokens(tmp_path / "few", tmp_path / "out", tokenizer, settings)
    assert not (tmp_path / "out" / MANIFEST).exists()  # shards of two attempts are no finished folder
    with pytest.raises(DataError, match="expected packed tokens"):
        TokenStore(tmp_path / "out")


def test_a_label_that_failed_is_no_group() -> None:
    row = document("web", "1", "s:1", "text")
    assert group_of(row, "language") == "unlabelled"
    assert group_of({**row, "labels": [label("language", "!timeout: no reply", "llm@1")]}, "language") == "unlabelled"
    assert group_of({**row, "labels": [label("language", "deu_Latn", "language@1")]}, "language") == "deu_Latn"
