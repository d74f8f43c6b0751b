"""Rows and texts out of files."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pretrain.data.items import Item
from pretrain.data.readers import _blocks, lines_of, read_hub_dataset, read_jsonl, read_parquet, read_text
from rlplatform.config import ConfigError, SourceConfig
from rlplatform.datafiles import DataError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def source(**settings: Any) -> SourceConfig:
    return SourceConfig(**{"path": ("x",), **settings})


def items(found: Any) -> list[Item]:
    found = list(found)
    assert all(isinstance(item, Item) for item in found)
    return found


def test_jsonl_rows_are_documents_with_all_other_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    rows = [{"text": "one\ntwo", "id": 7, "deep": {"a": [1]}}, {"title": "T", "text": "ü"}]
    lines = [json.dumps(rows[0]), "", json.dumps(rows[1], ensure_ascii=False)]
    path.write_bytes(gzip.compress(("\ufeff" + "\n".join(lines)).encode()))
    assert items(read_jsonl(path, source())) == [
        Item("line 1", "one\ntwo", {"id": 7, "deep": {"a": [1]}}),
        Item("line 3", "ü", {"title": "T"}),
    ]
    joined = items(read_jsonl(path, source(text=("title", "text"))))
    assert joined[1] == Item("line 3", "T\n\nü")
    assert joined[0].is_error
    assert joined[0].detail == "expected column 'title', got text, id, deep"


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        (b'{"text": "a"', "json", "expected one JSON object a line"),
        (b'["text"]', "json", "got list"),
        (b'{"text": "\\ud800"}', "json", "half of a character"),
        (b'{"text": 5, "b": 1}', "column", "'text': expected text, got int"),
        (b'{"text": ["a"]}', "column", "got list"),
        (b'{"txt": "a"}', "column", "expected column 'text', got txt"),
        (b'{"text": "\xff"}', "encoding", "expected utf-8, byte 10"),
    ],
)
def test_a_broken_row_is_an_error_and_the_next_is_read(tmp_path: Path, line: bytes, reason: str, detail: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(line + b'\n{"text": "good"}\n')
    bad, good = items(read_jsonl(path, source()))
    assert (bad.place, bad.reason, bad.is_error, good.text) == ("line 1", reason, True, "good")
    assert detail in bad.detail


def test_an_empty_text_is_left_to_the_stage_to_refuse(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": null, "k": 1}\n')
    assert items(read_jsonl(path, source())) == [Item("line 1", "", {"k": 1})]


# --- text -----------------------------------------------------------------------------------------------------------

TEXT = b"\xef\xbb\xbfa\r\nb\n \n\n\nc\n"


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("file", [("", "a\r\nb\n \n\n\nc\n")]),
        ("line", [("line 1", "a"), ("line 2", "b"), ("line 6", "c")]),
        ("block", [("line 1", "a\nb"), ("line 6", "c")]),
    ],
)
def test_a_text_file_has_three_readings(tmp_path: Path, unit: Any, expected: list[tuple[str, str]]) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(TEXT)
    assert items(read_text(path, source(unit=unit))) == [Item(place, text) for place, text in expected]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from(["a", "b c", " d", "", "  ", "\t"]), max_size=12))
def test_blocks_are_what_a_regular_expression_finds(lines: list[str]) -> None:
    found = list(_blocks((number, line) for number, line in enumerate(lines, 1)))
    pieces = re.split(r"(?:^[ \t]*$\n?)+", "\n".join(lines), flags=re.MULTILINE)
    assert [item.text for item in found] == [piece.strip("\n") for piece in pieces if piece.strip()]
    assert all(lines[int(item.place.split()[1]) - 1] == item.text.split("\n")[0] for item in found)


def test_bytes_that_are_no_text_of_the_encoding(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("schön\nok\n\nend".encode("latin-1"))
    [whole] = items(read_text(path, source()))
    assert (whole.is_error, whole.reason) == (True, "encoding")
    assert "byte 3: invalid" in whole.detail
    assert [(i.place, i.text, i.is_error) for i in items(read_text(path, source(unit="line")))] == [
        ("line 1", "", True),
        ("line 2", "ok", False),
        ("line 4", "end", False),
    ]
    assert [(i.place, i.is_error) for i in items(read_text(path, source(unit="block")))] == [
        ("line 1", True),
        ("line 4", False),
    ]
    assert items(read_text(path, source(encoding="latin-1")))[0].text == "schön\nok\n\nend"
    path.write_bytes("wide".encode("utf-16"))
    assert items(read_text(path, source(encoding="utf-16", format="text")))[0].text == "wide"


def test_lines_end_with_newline_alone() -> None:
    """Not with the other characters at which str.splitlines cuts: a paragraph separator in a text is text."""
    lines = [b"a\x0bb\x1cc\xe2\x80\xa8d\n", b"e\r\n", b"f\r"]
    assert list(lines_of(lines, "utf-8")) == [(1, "a\x0bb\x1cc\u2028d"), (2, "e"), (3, "f")]


# --- tables ---------------------------------------------------------------------------------------------------------


def test_parquet_rows_are_streamed(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    schema = pa.schema([("text", pa.string()), ("n", pa.int64()), ("m", pa.map_(pa.string(), pa.int64()))])
    columns = {"text": [f"t{i}" for i in range(600)], "n": range(600), "m": [[("k", i)] for i in range(600)]}
    table = pa.table(columns, schema=schema)
    pq.write_table(table, path, row_group_size=100)
    found = items(read_parquet(path, source()))
    assert found[599] == Item("row 600", "t599", {"n": 599, "m": [("k", 599)]})
    assert len(found) == 600
    with pytest.raises(DataError, match=r"expected column 'body' \(setting text\), got text, n, m"):
        list(read_parquet(path, source(text=("body",))))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="expected a parquet file"):
        list(read_parquet(path, source()))


def test_a_broken_row_group_says_how_far_it_was_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["x" * 50 + str(i) for i in range(512)]}), path, row_group_size=256)
    data = bytearray(path.read_bytes())
    second = pq.read_metadata(path).row_group(1).column(0)
    data[second.data_page_offset : second.data_page_offset + 40] = b"\xff" * 40
    path.write_bytes(data)
    found = read_parquet(path, source())
    assert next(found) == Item("row 1", "x" * 50 + "0")
    with pytest.raises(DataError, match="broken after row 256"):
        list(found)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_hub_dataset_is_read_by_the_datasets_library(tmp_path: Path, streaming: bool) -> None:
    """A folder laid out as a hub dataset: nothing is fetched."""
    folder = tmp_path / "owner--name"
    folder.mkdir()
    pq.write_table(pa.table({"text": ["a", "b"], "k": [1, 2]}), folder / "train-00000-of-00001.parquet")
    pq.write_table(pa.table({"text": ["c"], "k": [3]}), folder / "test-00000-of-00001.parquet")
    settings = source(format="hub", path=(str(folder),), streaming=streaming)
    assert items(read_hub_dataset(str(folder), settings)) == [
        Item("train row 1", "a", {"k": 1}),
        Item("train row 2", "b", {"k": 2}),
    ]
    assert items(read_hub_dataset(str(folder), source(format="hub", split="test")))[0].text == "c"
    with pytest.raises(DataError, match="did not load"):
        list(read_hub_dataset("owner/absent@v1:subset", source(format="hub")))


# --- real files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "unit", "documents"),
    [
        ("pretrain/c4_demo.jsonl.gz", "file", 300),
        ("pretrain/wiki_demo.txt.gz", "line", 30),
        ("pretrain/pride_and_prejudice_pg1342.txt.gz", "file", 1),
        ("udhr/udhr.jsonl.gz", "file", 532),
    ],
)
def test_shared_files_are_read_whole(name: str, unit: Any, documents: int) -> None:
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"../shared/data/{name} is absent")
    with gzip.open(path, "rt", encoding="utf-8-sig", newline="") as file:
        raw = file.read()
    read = read_jsonl if ".jsonl" in name else read_text
    found = items(read(path, source(unit=unit)))
    assert (len(found), any(item.reason for item in found)) == (documents, False)
    if read is read_jsonl:
        assert [item.text for item in found] == [json.loads(line)["text"] for line in raw.split("\n") if line]
    elif unit == "line":
        assert [item.text for item in found] == [line for line in raw.split("\n") if line.strip()]
    else:
        assert found[0].text == raw
        assert not raw.startswith("\ufeff")


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": ()}, "path: expected"),
        ({"format": "json"}, "format: expected one of"),
        ({"text": ()}, "text: expected"),
        ({"limit": -1}, "limit"),
        ({"encoding": "utf-99"}, "encoding: unknown encoding"),
        ({"encoding": "utf-16", "unit": "line", "format": "text"}, "a line ends with one byte"),
        ({"encoding": "utf-16"}, "a line ends with one byte"),
        ({"html": {"deduplicate": True}}, "html: deduplicate: not a setting here"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        source(**settings)


def test_the_byte_order_mark_is_no_text_however_the_encoding_is_spelt(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfabc")
    for encoding in ("utf-8", "utf_8", "UTF8", "U8"):
        for unit in ("file", "line", "block"):
            assert [item.text for item in items(read_text(path, source(encoding=encoding, unit=unit)))] == ["abc"]


def test_a_row_that_no_limit_of_python_takes_is_an_error_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "a", "n": {"1" * 5000}}}\n{{"text": "b"}}\n')
    broken, sound = items(read_jsonl(path, source()))
    assert (broken.is_error, broken.reason, sound.text) == (True, "json", "b")
    assert "4300 digits" in broken.detail


def test_a_value_that_python_has_no_word_for_is_an_error_of_its_row(tmp_path: Path) -> None:
    """Databases write infinity as a date beyond the year 9999."""
    days = pa.array([1, 2**31 - 1, 2], pa.date32())
    pq.write_table(pa.table({"text": ["a", "b", "c"], "day": days}), tmp_path / "a.parquet")
    first, infinite, last = items(read_parquet(tmp_path / "a.parquet", source()))
    assert (first.text, last.text, last.place) == ("a", "c", "row 3")
    assert (infinite.place, infinite.is_error, infinite.reason) == ("row 2", True, "value")
    assert infinite.detail.startswith("OverflowError: ")
