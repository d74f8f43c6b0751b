"""Compressed files as streams of bytes."""

from __future__ import annotations

import bz2
import gzip
import lzma
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pretrain.data.streams import open_bytes, plain_suffix
from rlplatform.datafiles import DataError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

DATA = b"".join(b"line %d\n" % i for i in range(20_000))
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".zst": zstd.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


@pytest.mark.parametrize("suffix", COMPRESS)
def test_members_and_frames_are_one_stream(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(COMPRESS[suffix](DATA) + COMPRESS[suffix](b"the end"))
    with open_bytes(path) as stream:
        assert stream.read() == DATA + b"the end"
    with open_bytes(path) as stream:
        assert next(iter(stream)) == b"line 0\n"


@pytest.mark.parametrize("suffix", [name for name in COMPRESS if name])
@pytest.mark.parametrize("share", [0.3, 0.999])
def test_a_cut_file_is_an_error(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"a.txt{suffix}"
    whole = COMPRESS[suffix](DATA)
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match="are broken or cut"), open_bytes(path) as stream:
        stream.read()


@pytest.mark.parametrize("suffix", [name for name in COMPRESS if name])
def test_a_changed_byte_is_an_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.txt{suffix}"
    options = {zstd.CompressionParameter.checksum_flag: 1}  # as the program `zstd` writes, and the library does not
    whole = bytearray(zstd.compress(DATA, options=options) if suffix == ".zst" else COMPRESS[suffix](DATA))
    whole[len(whole) // 2] ^= 0x10
    path.write_bytes(whole)
    with pytest.raises(DataError, match=rf"a\.txt\{suffix}"), open_bytes(path) as stream:
        stream.read()


def test_long_windows_of_zstd_are_read(tmp_path: Path) -> None:
    compressor = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 30})
    path = tmp_path / "a.zst"
    path.write_bytes(compressor.compress(DATA) + compressor.flush())  # streamed: its length is not known ahead
    with pytest.raises(zstd.ZstdError), zstd.open(path) as stream:  # what happens without the setting
        stream.read()
    with open_bytes(path) as stream:
        assert stream.read() == DATA


def test_an_absent_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"), open_bytes(tmp_path / "no.gz"):
        pass


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("a.jsonl.gz", ".jsonl"), ("a.WARC.GZ", ".warc"), ("a/b.txt", ".txt"), ("a.warc.wet.gz", ".wet"), ("gz", "")],
)
def test_the_ending_behind_the_compression(name: str, suffix: str) -> None:
    assert plain_suffix(name) == suffix


def test_an_ending_in_capitals_is_the_same_ending(tmp_path: Path) -> None:
    for suffix, compress in COMPRESS.items():
        path = tmp_path / f"A.TXT{suffix.upper()}"
        path.write_bytes(compress(b"text"))
        with open_bytes(path) as stream:
            assert stream.read() == b"text"
