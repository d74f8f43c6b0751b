"""Rows and texts out of files: JSONL, parquet, plain text, hub datasets. Each reader is ``file, settings -> items``.

A reader streams: its memory follows one row or one row group, never the file. Broken rows are items with an error, so
that what to do about them is decided in one place; a file that cannot be a file of its format raises ``DataError``.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pretrain.data.items import Found, Item, error
from pretrain.data.streams import open_bytes
from rlplatform.config.corpus_documents import SourceConfig
from rlplatform.datafiles import DataError, parse_json, read_hub

_BOM = b"\xef\xbb\xbf"
_PARQUET_BATCH = 256  # rows

# --- lines ----------------------------------------------------------------------------------------------------------


def lines_of(lines: Iterable[bytes], encoding: str) -> Iterator[tuple[int, str | UnicodeDecodeError]]:
    """(number from 1, line without its end), or what is wrong with its bytes. UTF-8's mark at the start is no text."""
    is_utf8 = _is_utf8(encoding)
    for number, line in enumerate(lines, 1):
        if number == 1 and is_utf8:
            line = line.removeprefix(_BOM)
        try:
            yield number, line.removesuffix(b"\n").removesuffix(b"\r").decode(encoding)
        except UnicodeDecodeError as broken:
            yield number, broken


def _is_utf8(encoding: str) -> bool:
    return codecs.lookup(encoding).name == "utf-8"


def _undecodable(place: str, broken: UnicodeDecodeError) -> Item:
    return error(place, "encoding", f"expected {broken.encoding}, byte {broken.start}: {broken.reason}")


def read_jsonl(path: Path, source: SourceConfig) -> Iterator[Found]:
    """One document a line; blank lines are passed over."""
    with open_bytes(path) as stream:
        for number, line in lines_of(stream, source.encoding):
            place = f"line {number}"
            if isinstance(line, UnicodeDecodeError):
                yield _undecodable(place, line)
            elif line.strip():
                yield _json_item(line, place, source)


def _json_item(line: str, place: str, source: SourceConfig) -> Item:
    try:
        row = parse_json(line, "expected one JSON object a line")
    except ValueError as broken:  # a DataError, or Python's limit on the digits of a number
        return error(place, "json", str(broken))
    if not isinstance(row, dict):
        return error(place, "json", f"expected one JSON object a line, got {type(row).__name__}")
    return row_item(row, place, source.text)


def row_item(row: Mapping[str, Any], place: str, columns: Iterable[str], meta: Mapping[str, Any] | None = None) -> Item:
    """A row as a document: the text columns joined by a blank line, the others as its meta."""
    columns = tuple(columns)
    rest = {name: value for name, value in row.items() if name not in columns} | dict(meta or {})
    missing = [name for name in columns if name not in row]
    if missing:
        return error(place, "column", f"expected column {missing[0]!r}, got {', '.join(map(str, row))}", meta=rest)
    texts = [row[name] for name in columns]
    wrong = next((name for name, text in zip(columns, texts, strict=True) if not isinstance(text, str | None)), None)
    if wrong is not None:
        detail = f"column {wrong!r}: expected text, got {type(row[wrong]).__name__}"
        return error(place, "column", detail, meta=rest)
    return Item(place, "\n\n".join(text for text in texts if text), rest)


def read_text(path: Path, source: SourceConfig) -> Iterator[Found]:
    """A document a file, a line, or a block between blank lines; white space alone is none."""
    with open_bytes(path) as stream:
        if source.unit == "file":
            yield _whole(stream.read(), source.encoding)
        elif source.unit == "line":
            for number, line in lines_of(stream, source.encoding):
                place = f"line {number}"
                if isinstance(line, UnicodeDecodeError):
                    yield _undecodable(place, line)
                elif line.strip():
                    yield Item(place, line)
        else:
            yield from _blocks(lines_of(stream, source.encoding))


def _whole(data: bytes, encoding: str) -> Item:
    try:
        return Item("", data.decode("utf-8-sig" if _is_utf8(encoding) else encoding))
    except UnicodeDecodeError as broken:
        return _undecodable("", broken)


def _blocks(lines: Iterable[tuple[int, str | UnicodeDecodeError]]) -> Iterator[Item]:
    block: list[str] = []
    broken: UnicodeDecodeError | None = None
    first = 0

    def finished() -> Item:
        place = f"line {first}"
        return Item(place, "\n".join(block)) if broken is None else _undecodable(place, broken)

    for number, line in lines:
        if isinstance(line, str) and not line.strip():
            if first:
                yield finished()
            block, broken, first = [], None, 0
            continue
        first = first or number
        if isinstance(line, str):
            block.append(line)
        else:
            broken = broken or line
    if first:
        yield finished()


# --- tables ---------------------------------------------------------------------------------------------------------


def read_parquet(path: Path, source: SourceConfig) -> Iterator[Found]:
    """One document a row.

    Raises:
        DataError: not a parquet file, or without the text columns.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            missing = [name for name in source.text if name not in file.schema_arrow.names]
            if missing:
                raise DataError(
                    f"{path}: expected column {missing[0]!r} (setting text), got {', '.join(file.schema_arrow.names)}"
                )
            for batch in file.iter_batches(batch_size=_PARQUET_BATCH):
                for row in _rows(batch):
                    number += 1
                    place = f"row {number}"
                    yield error(place, "value", row) if isinstance(row, str) else row_item(row, place, source.text)
    except (OSError, pa.ArrowException) as broken:
        raise DataError(f"{path}: expected a parquet file, broken after row {number}: {broken}") from broken


def _rows(batch: Any) -> list[dict[str, Any] | str]:
    """The rows of a record batch; of one with a value that Python does not have (a date after 9999) what is wrong."""
    try:
        rows: list[dict[str, Any] | str] = batch.to_pylist()
        return rows
    except (ValueError, OverflowError, KeyError) as wrong:
        if len(batch) == 1:
            return [f"{type(wrong).__name__}: {wrong}"]
        return [row for k in range(len(batch)) for row in _rows(batch.slice(k, 1))]


def read_hub_dataset(name: str, source: SourceConfig) -> Iterator[Found]:
    """One document a row of a hub dataset ``owner/name@revision:subset``, or of a folder that ``datasets`` reads.

    Raises:
        DataError: it does not load.
    """
    rows = read_hub(name, source.split, streaming=source.streaming)
    for number, (_, row) in enumerate(rows, 1):
        yield row_item(row, f"{source.split} row {number}", source.text)
