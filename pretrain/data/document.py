"""A document is a row; a stage leaves a folder of parquet shards of them, in an order that is always the same.

    documents-00000.parquet  documents-00001.parquet ...   columns of SCHEMA, its version in the file's metadata
    dropped-00000.parquet ...                              the whole row with the step, reason and detail of its end
    summary.json                                           counts

Row columns: ``id`` (unique in the stage, the same in every run), ``text`` (as it was read: no normalisation),
``source`` (the configuration's name for where it came from), ``where`` (file and line, file and page, or URL),
``meta`` (JSON of every other column of the input), ``labels`` (what annotation said, each with its labeller).
"""

from __future__ import annotations

import base64
import datetime
import decimal
import hashlib
import json
import math
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlplatform.datafiles import DataError

Row = dict[str, Any]

VERSION = b"1"
_VERSION_KEY = b"rlplatform.documents"
LABEL = pa.struct(
    [("name", pa.string()), ("value", pa.string()), ("score", pa.float64()), ("labeller", pa.string())],
)
_FIELDS = [
    pa.field("id", pa.string(), nullable=False),
    pa.field("text", pa.string(), nullable=False),
    pa.field("source", pa.string(), nullable=False),
    pa.field("where", pa.string(), nullable=False),
    pa.field("meta", pa.string(), nullable=False),
    pa.field("labels", pa.list_(LABEL), nullable=False),
]
_END = [pa.field(name, pa.string(), nullable=False) for name in ("step", "reason", "detail")]
SCHEMA = pa.schema(_FIELDS, metadata={_VERSION_KEY: VERSION})
DROPPED_SCHEMA = pa.schema([*_FIELDS, *_END], metadata={_VERSION_KEY: VERSION})
COLUMNS = tuple(SCHEMA.names)

DOCUMENTS, DROPPED = "documents", "dropped"  # the prefixes of shard names


# --- rows -----------------------------------------------------------------------------------------------------------


def document_id(source: str, place: str) -> str:
    """``SOURCE/24 hex digits``: blake2b (96 bits) of the place within the source."""
    return f"{source}/{hashlib.blake2b(place.encode(), digest_size=12).hexdigest()}"


def document(source: str, place: str, where: str, text: str, meta: Mapping[str, Any] | None = None) -> Row:
    """A document without labels.

    Args:
        place: what its id follows from: unique in the source and the same wherever the data lies.
        where: what people look up.

    Raises:
        DataError: ``text`` is no text that UTF-8 can hold, or ``meta`` has a value that cannot be kept.
    """
    if not isinstance(text, str):
        raise DataError(f"{where}: expected text, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: character {error.start} of the text is half of a surrogate pair") from error
    return {
        "id": document_id(source, place),
        "text": text,
        "source": source,
        "where": where,
        "meta": meta_json(meta or {}, where),
        "labels": [],
    }


def meta_json(meta: Mapping[str, Any], where: str = "meta") -> str:
    """``meta`` as JSON. What JSON has no word for stands as an object of one entry that names its type:
    ``{"datetime": "2026-01-31T00:00:00"}``, ``{"date": ...}``, ``{"time": ...}``, ``{"decimal": "1.10"}``,
    ``{"base64": ...}`` for bytes, ``{"float": "nan"}``.

    Raises:
        DataError: a value of another type.
    """
    try:
        text = json.dumps(_plain(dict(meta)), ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: a column cannot be kept as JSON: {error}") from error
    except RecursionError as error:
        raise DataError(f"{where}: a column cannot be kept as JSON: nested too deeply") from error
    return text


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, Mapping):
        bad = [key for key in value if not isinstance(key, str)]
        if bad:
            raise TypeError(f"expected strings as keys, got {bad[0]!r}")
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, datetime.datetime):
        return {"datetime": value.isoformat()}
    if isinstance(value, datetime.date):
        return {"date": value.isoformat()}
    if isinstance(value, datetime.time):
        return {"time": value.isoformat()}
    if isinstance(value, datetime.timedelta):
        return {"seconds": value.total_seconds()}
    if isinstance(value, decimal.Decimal):
        return {"decimal": str(value)}
    if isinstance(value, uuid.UUID):
        return {"uuid": str(value)}
    if hasattr(value, "tolist"):  # numpy's scalars and arrays
        return _plain(value.tolist())
    raise TypeError(f"a {type(value).__name__}")


def meta_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The other columns of the input, as JSON gives them back."""
    meta: dict[str, Any] = json.loads(row["meta"])
    return meta


def label(name: str, value: str, labeller: str, score: float | None = None) -> Row:
    """One entry of ``labels``: who says what of a document, and how sure (or how much) where that is a number."""
    return {"name": name, "value": value, "score": score, "labeller": labeller}


def label_of(row: Mapping[str, Any], name: str, labeller: str = "") -> Row | None:
    """The label ``name`` of a document, of one labeller if it is named; the last where there are several."""
    found = [entry for entry in row["labels"] if entry["name"] == name and labeller in ("", entry["labeller"])]
    return found[-1] if found else None


# --- files ----------------------------------------------------------------------------------------------------------


def shard_name(index: int, prefix: str = DOCUMENTS) -> str:
    """``documents-00012.parquet``"""
    return f"{prefix}-{index:05d}.parquet"


def shards_of(folder: str | Path, prefix: str = DOCUMENTS) -> list[Path]:
    """The shards of a finished stage in order.

    Raises:
        DataError: none are there, or one is missing between the first and the last.
    """
    folder = Path(folder)
    pattern = re.compile(rf"{re.escape(prefix)}-(\d{{5,}})\.parquet")
    found = {int(match[1]): path for path in folder.glob(f"{prefix}-*.parquet") if (match := pattern.match(path.name))}
    if not found:
        raise DataError(f"{folder}: expected shards {shard_name(0, prefix)} ..., found none")
    missing = sorted(set(range(max(found) + 1)) - set(found))
    if missing:
        raise DataError(f"{folder}: {shard_name(missing[0], prefix)} is missing between other shards")
    return [found[index] for index in sorted(found)]


def read_batches(path: str | Path, num_rows: int = 1024) -> Iterator[list[Row]]:
    """The rows of one shard, ``num_rows`` at a time; memory follows the batch, not the file.

    Raises:
        DataError: no parquet file, or not of this version's documents.
    """
    try:
        with pq.ParquetFile(path) as file:
            _check_schema(path, file.schema_arrow)
            for batch in file.iter_batches(batch_size=num_rows):
                yield batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: expected a parquet shard of documents: {error}") from error


def _check_schema(path: str | Path, schema: pa.Schema) -> None:
    version = (schema.metadata or {}).get(_VERSION_KEY)
    missing = [name for name in COLUMNS if name not in schema.names]
    if version != VERSION or missing:
        raise DataError(
            f"{path}: expected documents of version {VERSION.decode()} with columns {', '.join(COLUMNS)}; got version "
            f"{version.decode() if version else 'none'} with columns {', '.join(schema.names)}"
        )


def num_documents(path: str | Path) -> int:
    """Rows of one shard, from its footer."""
    return int(pq.read_metadata(path).num_rows)


def read_documents(folder: str | Path, prefix: str = DOCUMENTS) -> Iterator[Row]:
    """All rows of a finished stage, in order; errors as in ``shards_of`` and ``read_batches``."""
    for path in shards_of(folder, prefix):
        for rows in read_batches(path):
            yield from rows


class ShardWriter:
    """Rows to one parquet file that appears whole or not at all: a context manager that leaves nothing on an error."""

    def __init__(self, path: Path, schema: pa.Schema = SCHEMA) -> None:
        self.path, self.schema, self.num_rows = path, schema, 0
        self._temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")

    def __enter__(self) -> ShardWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self._temporary, "wb")
        self._writer = pq.ParquetWriter(self._file, self.schema, compression="zstd")
        return self

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows, as one row group.

        Raises:
            DataError: a row whose columns are not the schema's; it is named.
        """
        if rows:
            self._writer.write_table(_table(rows, self.schema))
            self.num_rows += len(rows)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self._writer.close()
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())
            self._file.close()
            if kind is None:
                os.replace(self._temporary, self.path)
        finally:
            self._file.close()
            self._temporary.unlink(missing_ok=True)


def _table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    names = set(schema.names)
    for row in rows:
        if set(row) != names:
            raise DataError(
                f"document {row.get('id')!r}: expected the columns {', '.join(schema.names)}, got {', '.join(row)}"
            )
        empty = next((name for name in schema.names if row[name] is None), None)
        if empty is not None:
            raise DataError(f"document {row['id']!r}: column {empty}: expected a value, got None")
    try:
        return pa.Table.from_pylist(rows, schema=schema)
    except (pa.ArrowException, UnicodeEncodeError) as error:
        culprit = next(filter(None, (_fault(row, schema) for row in rows)), str(error))
        raise DataError(f"expected documents of the schema: {culprit}") from error


def _fault(row: Mapping[str, Any], schema: pa.Schema) -> str:
    try:
        pa.Table.from_pylist([row], schema=schema)
    except (pa.ArrowException, UnicodeEncodeError) as error:
        return f"document {row.get('id')!r}: {error}"
    return ""


def write_shards(
    rows: Iterable[Mapping[str, Any]], folder: Path, per_shard: int, prefix: str = DOCUMENTS
) -> list[Path]:
    """``rows`` as shards of ``per_shard`` documents; for data made in one process."""
    paths: list[Path] = []
    batch: list[Mapping[str, Any]] = []

    def flush() -> None:
        path = folder / shard_name(len(paths), prefix)
        with ShardWriter(path) as writer:
            writer.write(batch)
        paths.append(path)
        batch.clear()

    for row in rows:
        batch.append(row)
        if len(batch) == per_shard:
            flush()
    if batch or not paths:
        flush()
    return paths
