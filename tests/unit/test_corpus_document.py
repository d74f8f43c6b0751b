"""Document rows and the shards that hold them."""

from __future__ import annotations

import datetime
import decimal
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pretrain.data.document import (
    COLUMNS,
    DROPPED,
    DROPPED_SCHEMA,
    SCHEMA,
    ShardWriter,
    document,
    label,
    label_of,
    meta_json,
    meta_of,
    read_batches,
    read_documents,
    shards_of,
    write_shards,
)
from rlplatform.datafiles import DataError


def documents(num: int) -> list[dict[str, Any]]:
    return [document("s", f"a.txt#line {i}", f"data/a.txt:{i}", f"text {i}", {"i": i}) for i in range(num)]


def test_the_id_follows_from_source_and_place_alone() -> None:
    row = document("web", "a.jsonl#line 3", "/somewhere/a.jsonl:3", "hello", {"b": 1})
    assert row["id"] == "web/" + hashlib.blake2b(b"a.jsonl#line 3", digest_size=12).hexdigest()
    elsewhere = document("web", "a.jsonl#line 3", "/elsewhere/a.jsonl:3", "other text")
    assert elsewhere["id"] == row["id"] != document("other", "a.jsonl#line 3", "", "hello")["id"][4:]
    assert tuple(row) == COLUMNS
    assert (row["labels"], json.loads(row["meta"])) == ([], {"b": 1})


def test_text_is_kept_as_it_is() -> None:
    decomposed = "e\u0301 \r\n\x00\ufeff"  # neither composed nor cleaned
    assert document("s", "p", "w", decomposed)["text"] == decomposed


@pytest.mark.parametrize(("text", "word"), [("\ud800", "half of a surrogate"), (b"bytes", "got bytes"), (None, "None")])
def test_what_is_no_text_is_refused(text: Any, word: str) -> None:
    with pytest.raises(DataError, match=f"w:7.*{word}"):
        document("s", "p", "w:7", text)


def test_meta_keeps_every_value_by_its_type() -> None:
    meta = {
        "when": datetime.datetime(2026, 1, 31, 12, 30),
        "day": datetime.date(2026, 1, 31),
        "price": decimal.Decimal("1.10"),
        "bytes": b"\x00\xff",
        "nan": math.nan,
        "inf": -math.inf,
        "list": (1, 2.5, None, True),
        "deep": {"a": [{"b": "ü"}]},
        "numpy": np.array([1, 2]),
        "scalar": np.float32(0.5),
    }
    assert json.loads(meta_json(meta)) == {
        "when": {"datetime": "2026-01-31T12:30:00"},
        "day": {"date": "2026-01-31"},
        "price": {"decimal": "1.10"},
        "bytes": {"base64": "AP8="},
        "nan": {"float": "nan"},
        "inf": {"float": "-inf"},
        "list": [1, 2.5, None, True],
        "deep": {"a": [{"b": "ü"}]},
        "numpy": [1, 2],
        "scalar": 0.5,
    }


@pytest.mark.parametrize("value", [object(), {1: 2}, {"a": {3: 4}}, "\udfff"])
def test_meta_that_cannot_be_kept_is_refused(value: Any) -> None:
    with pytest.raises(DataError, match="file:3: a column cannot be kept"):
        meta_json({"x": value}, "file:3")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.text(), json_values, max_size=4))
def test_json_goes_through_meta_unchanged(meta: dict[str, Any]) -> None:
    assert meta_of(document("s", "p", "w", "t", meta)) == meta


def test_the_last_label_of_a_name_counts_and_a_labeller_can_be_asked() -> None:
    row = documents(1)[0] | {
        "labels": [label("lang", "en", "a", 0.9), label("lang", "de", "b", 0.4), label("domain", "x", "a")]
    }
    found = label_of(row, "lang")
    assert found is not None
    assert (found["value"], found["labeller"]) == ("de", "b")
    assert label_of(row, "lang", "a") == {"name": "lang", "value": "en", "score": 0.9, "labeller": "a"}
    assert label_of(row, "safety") is None is label_of(row, "domain", "b")


# --- shards ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num", "sizes"), [(7, [3, 3, 1]), (6, [3, 3]), (0, [0])])
def test_rows_come_back_in_order(tmp_path: Path, num: int, sizes: list[int]) -> None:
    rows = documents(num)
    if rows:
        rows[0]["labels"] = [label("lang", "en", "me", None), label("quality", "", "me", 0.25)]
    paths = write_shards(rows, tmp_path, 3)
    assert [path.name for path in paths] == [f"documents-{k:05d}.parquet" for k in range(len(sizes))]
    assert [pq.read_metadata(path).num_rows for path in paths] == sizes
    assert list(read_documents(tmp_path)) == rows
    assert [len(batch) for batch in read_batches(paths[0], 2)] == ([2, 1] if num else [])
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_the_schema_says_its_version(tmp_path: Path) -> None:
    [path] = write_shards(documents(1), tmp_path, 9)
    assert pq.read_schema(path).metadata == {b"rlplatform.documents": b"1"}
    other = pq.read_table(path).replace_schema_metadata({b"rlplatform.documents": b"2"})
    pq.write_table(other, path)
    with pytest.raises(DataError, match=r"expected documents of version 1.*got version 2"):
        list(read_documents(tmp_path))
    pq.write_table(pa.table({"text": ["a"]}), path)
    with pytest.raises(DataError, match="got version none with columns text"):
        list(read_documents(tmp_path))
    path.write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="expected a parquet shard"):
        list(read_documents(tmp_path))


def test_a_missing_shard_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected shards documents-00000\.parquet \.\.\., found none"):
        shards_of(tmp_path)
    paths = write_shards(documents(5), tmp_path, 2)
    (tmp_path / "documents-notes.parquet").write_bytes(b"")  # not one of ours
    assert shards_of(tmp_path) == paths
    paths[1].unlink()
    with pytest.raises(DataError, match=r"documents-00001\.parquet is missing"):
        shards_of(tmp_path)


def test_an_interrupted_shard_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "documents-00000.parquet"
    path.write_bytes(b"the old one")

    def write() -> None:
        with ShardWriter(path) as writer:
            writer.write(documents(3))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert path.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"extra": 1}, "expected the columns"),
        ({"text": 3}, "document 's/"),
        ({"labels": [{"name": "n", "value": "v", "score": "high", "labeller": "l"}]}, "document 's/"),
        ({"text": "\ud800"}, "document 's/"),
        ({"text": None}, "document 's/"),
    ],
)
def test_a_row_that_does_not_fit_is_named(tmp_path: Path, change: dict[str, Any], word: str) -> None:
    good, bad = documents(2)
    with pytest.raises(DataError, match=word) as caught, ShardWriter(tmp_path / "x.parquet") as writer:
        writer.write([good, bad | change])
    assert bad["id"] in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_dropped_rows_are_whole_rows_with_their_end(tmp_path: Path) -> None:
    assert DROPPED_SCHEMA.names == [*SCHEMA.names, "step", "reason", "detail"]
    row = {**documents(1)[0], "step": "s", "reason": "r", "detail": "d"}
    with ShardWriter(tmp_path / "dropped-00000.parquet", DROPPED_SCHEMA) as writer:
        writer.write([row])
    assert list(read_documents(tmp_path, DROPPED)) == [row]


def test_a_column_that_is_nested_too_deeply_is_refused() -> None:
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(DataError, match="file:3: a column cannot be kept as JSON: nested too deeply"):
        meta_json({"x": deep}, "file:3")
