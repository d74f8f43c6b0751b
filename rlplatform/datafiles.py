"""From a file, a folder or a hub id to rows: JSONL (gzipped or not), JSON, parquet. Each row says where it stands."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlplatform.config import ConfigError, DataConfig

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # an escape that is one half of a character


class DataError(ConfigError):
    """A dataset that cannot be used; the message names file, row and column."""


def parse_json(text: str, expected: str) -> Any:
    """``text`` as JSON.

    Raises:
        DataError: it does not parse, or holds half of a surrogate pair, which neither a tokenizer nor a file takes; the
            message is ``expected`` with the reason.
    """
    try:
        value = json.loads(text)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise DataError(f"{expected}: {error}") from error
    except UnicodeEncodeError as error:
        half = f"\\u{ord(str(error.object)[error.start]):04x}"
        raise DataError(f"{expected}: {half} is half of a character: its pair is missing") from error
    except RecursionError as error:
        raise DataError(f"{expected}: nested too deeply") from error
    return value


def read_json(path: Path, expected: str) -> Any:
    """The value of a JSON file; errors as in ``parse_json``."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{expected}: {error}") from error
    return parse_json(text, expected)


def jsonl_lines(path: Path, *, encoding: str = "utf-8") -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, row) of a JSONL file, gzipped or not. Blank lines are passed over.

    Raises:
        DataError: naming file and line: unreadable, not JSON, or not an object.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding=encoding) as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                row = parse_json(line, f"{path}:{number}: expected one JSON object a line")
                if not isinstance(row, dict):
                    raise DataError(f"{path}:{number}: expected a JSON object, got {type(row).__name__}")
                yield number, row
    except (OSError, UnicodeDecodeError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(``file:line``, row) of a JSONL file; errors as in ``jsonl_lines``."""
    for number, row in jsonl_lines(path):
        yield f"{path}:{number}", row


def _read_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except Exception as error:
        raise DataError(f"{path}: expected a parquet file: {error}") from error
    for number, row in enumerate(table.to_pylist(), 1):
        yield f"{path} row {number}", row


def _read_json(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    rows = read_json(path, f"{path}: expected a JSON list of objects")
    if not isinstance(rows, list):
        raise DataError(f"{path}: expected a JSON list of objects, got {type(rows).__name__}")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(f"{path} row {number}: expected an object, got {type(row).__name__}")
        yield f"{path} row {number}", row


def read_hub(path: str, split: str, *, streaming: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where it stands, row) of a hub dataset: ``openai/gsm8k:main``, or ``owner/name@revision:subset``.

    Raises:
        DataError: it does not load.
    """
    name, _, subset = path.partition(":")
    name, _, revision = name.partition("@")
    try:
        from datasets import load_dataset

        dataset = load_dataset(name, subset or None, split=split, revision=revision or None, streaming=streaming)
    except Exception as error:
        raise DataError(
            f"data.path={path!r}: no such file or folder here, and as a hub dataset it did not load "
            f"(split {split!r}): {type(error).__name__}: {str(error).splitlines()[0]}"
        ) from error
    for number, row in enumerate(dataset, 1):
        yield f"{path}[{split}] row {number}", dict(row)


def files_of_split(folder: Path, split: str) -> list[Path]:
    """The data files of ``split`` in a folder: ``SPLIT.jsonl``, ``SPLIT-00000-of-00002.parquet``, ``SPLIT/...``.

    Where none has the split's own name, those whose name goes on after it: ``SPLIT_hard.jsonl``.

    Raises:
        DataError: there is none.
    """
    own, longer = [], []
    for path in sorted(folder.rglob("*")):
        suffix = next((one for one in SUFFIXES if path.name.endswith(one)), "")
        if not suffix:
            continue
        rest = path.name.removesuffix(suffix).removeprefix(split) if path.name.startswith(split) else None
        if split in path.relative_to(folder).parts[:-1] or rest == "" or (rest and re.match(r"[-_.]\d", rest)):
            own.append(path)
        elif rest and rest[0] in "-_.":
            longer.append(path)
    found = own or longer
    if not found:
        there = sorted(p.name for p in folder.rglob("*") if p.name.endswith(SUFFIXES))[:10]
        raise DataError(f"{folder}: no file of split {split!r} ({', '.join(SUFFIXES)}); files there: {there}")
    return found


def read_rows(config: DataConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where it stands, row) of every row of the dataset, as written."""
    if not config.path:
        raise DataError("data.path: expected a JSONL or parquet file, a folder, or a hub id; got nothing")
    path = Path(config.path)
    if path.is_dir():
        paths = files_of_split(path, config.split)
    elif path.is_file():
        paths = [path]
    elif (path.suffix and ":" not in path.name) or path.is_absolute() or config.path.startswith("."):
        raise DataError(f"data.path={config.path!r}: no such file")
    else:
        yield from read_hub(config.path, config.split)
        return
    for file in paths:
        if file.name.endswith((".jsonl", ".jsonl.gz")):
            yield from read_jsonl(file)
        elif file.suffix == ".parquet":
            yield from _read_parquet(file)
        elif file.suffix == ".json":
            yield from _read_json(file)
        else:
            raise DataError(f"{file}: expected one of {', '.join(SUFFIXES)}")
