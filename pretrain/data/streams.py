"""Files as streams of bytes, compressed or not: the same interface, and a truncated file is always an error."""

from __future__ import annotations

import bz2
import gzip
import lzma
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from rlplatform.datafiles import DataError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

SUFFIXES = (".gz", ".zst", ".bz2", ".xz")
_WINDOW_LOG = 31  # corpora are often compressed with long windows (`zstd --long=31`)


@contextmanager
def open_bytes(path: str | Path) -> Iterator[IO[bytes]]:
    """The decompressed bytes of a file, by its ending: gz, zst, bz2, xz, else as they are. Several members or frames
    one behind the other are one stream.

    Raises:
        DataError: there is no such file, or its compressed data are broken or end too early; also while reading.
    """
    path = Path(path)
    try:
        with _open(path) as stream:
            yield stream
    except (EOFError, zlib.error, lzma.LZMAError, zstd.ZstdError, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: compressed data are broken or cut: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _open(path: Path) -> IO[bytes]:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return cast("IO[bytes]", gzip.open(path, "rb"))
    if suffix == ".zst":
        options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: _WINDOW_LOG}
        return cast("IO[bytes]", zstd.open(path, "rb", options=options))
    if suffix == ".bz2":
        return cast("IO[bytes]", bz2.open(path, "rb"))
    if suffix == ".xz":
        return cast("IO[bytes]", lzma.open(path, "rb"))
    return open(path, "rb")


def plain_suffix(path: str | Path) -> str:
    """The ending without that of the compression, in lower case: ``.jsonl`` of ``a.jsonl.gz``."""
    name = Path(path).name.lower()
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return Path(name).suffix
