"""The mixture stage on documents in shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretrain.data.document import Row, document, label, write_shards
from pretrain.data.mixture_stage import make_mixture
from pretrain.data.tokens import copies_path
from pretrain.data.weighting import Feature, Weighting
from rlplatform.config import ConfigError, MixtureConfig, PartConfig
from rlplatform.datafiles import DataError


def row(number: int, size: int, domain: str) -> Row:
    labels = [label("length.tokens", str(size), "length@1", float(size)), label("domain", domain, "rule@1")]
    return {**document("made", str(number), f"made:{number}", "x" * size), "labels": labels}


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """Seven shards of 100 documents; 100 tokens of web, 400 of books, every second."""
    rows = [row(k, 400 if k % 2 else 100, "books" if k % 2 else "web") for k in range(650)]
    write_shards(rows, tmp_path / "documents", per_shard=100)
    return tmp_path / "documents"


def mixture(documents: Path, **changes: Any) -> tuple[dict[str, Any], np.ndarray]:
    run_dir = documents.parent / "mixture"
    run_dir.mkdir(exist_ok=True)
    summary = make_mixture(MixtureConfig(run_dir=str(run_dir), documents=str(documents), **changes))
    copies = [np.load(copies_path(run_dir, shard)) for shard in range(7)]
    assert [len(part) for part in copies] == [100] * 6 + [50]
    return summary, np.concatenate(copies)


def test_without_parts_every_document_is_taken_once(documents: Path) -> None:
    summary, copies = mixture(documents)
    assert (copies == 1).all()
    assert summary["tokens"] == 325 * 500 == summary["parts"]["all"]["tokens_asked"]


def test_long_documents_get_their_share(documents: Path) -> None:
    parts = {"long": PartConfig(0.75, min_size=200), "short": PartConfig(0.25, {"domain": "web"})}
    summary, copies = mixture(documents, num_tokens=100_000, parts=parts)
    long = summary["parts"]["long"]
    assert long["tokens_asked"] == 75_000
    assert long["tokens"] == 400 * copies[1::2].sum() == pytest.approx(75_000, rel=0.1)
    assert summary["parts"]["short"]["tokens"] == pytest.approx(25_000, rel=0.1)
    assert summary["in_no_part"] == 0
    assert set(copies[1::2].tolist()) == {0, 1}


def test_what_belongs_to_no_part_is_not_taken_and_counted(documents: Path) -> None:
    summary, copies = mixture(documents, parts={"books": PartConfig(1.0, {"domain": ["books"], "source": "made"})})
    assert summary["in_no_part"] == 325
    assert copies[::2].sum() == 0
    assert summary["tokens"] == 325 * 400


def test_a_share_that_is_not_there_is_refused(documents: Path) -> None:
    with pytest.raises(ConfigError, match=r"part 'code': expected 81,250 tokens .* its 0 documents hold 0"):
        mixture(documents, parts={"code": PartConfig(0.5, {"domain": "code"}), "rest": PartConfig(0.5)})


def test_weights_say_how_often_beside_the_others(documents: Path) -> None:
    weights = documents.parent / "weights.json"
    Weighting((Feature("domain", "books", 0.0, 1.0),), (float(np.log(3)),)).save(weights)
    summary, copies = mixture(documents, num_tokens=100_000, weights=str(weights))
    books, web = copies[1::2].mean(), copies[::2].mean()
    assert books / web == pytest.approx(3.0, rel=0.35)
    assert summary["tokens"] == pytest.approx(100_000, rel=0.12)  # 3.3 % is one standard deviation of the draws


def test_documents_without_a_size_are_refused(documents: Path) -> None:
    with pytest.raises(DataError, match=r"expected the label 'length\.words' with a number"):
        mixture(documents, size="length.words")


def test_a_label_is_read_as_a_class_or_as_a_number(documents: Path) -> None:
    weights = documents.parent / "weights.json"
    Weighting((Feature("level", None, 2.0, 1.0),), (0.5,)).save(weights)
    with pytest.raises(ConfigError, match=r"label 'level': expected a class \(parts\) or a number \(weights, size\)"):
        mixture(documents, weights=str(weights), parts={"all": PartConfig(1.0, {"level": ["2", "3"]})})


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"a": PartConfig(0.5)}, "expected shares that sum to 1, got 0.5"),
        ({}, "documents: expected a folder"),
    ],
)
def test_settings_that_cannot_be_are_refused(parts: dict[str, PartConfig], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MixtureConfig(documents="" if not parts else "somewhere", parts=parts)


def test_parts_check_their_own_bounds() -> None:
    with pytest.raises(ConfigError, match="expected in"):
        PartConfig(share=1.5)
    with pytest.raises(ConfigError, match="expected 0 <= min_size <= max_size"):
        PartConfig(min_size=5, max_size=3)
    for value in (True, ["yes", False]):  # what YAML makes of an unquoted yes and no
        with pytest.raises(ConfigError, match=r"labels.verified: expected .*; quote words such as yes"):
            PartConfig(labels={"verified": value})
