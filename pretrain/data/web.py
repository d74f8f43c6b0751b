"""Web pages: HTML to the text that people came for (trafilatura), alone or in web archives (WARC, WET).

    response record ── HTTP status, content type ──► HTML ── trafilatura ──► text, title, author, date ...
                        else: refused, with the reason

What is not the main text (menus, footers, comments) is left out by trafilatura; its settings are the source's ``html``.
"""

from __future__ import annotations

import codecs
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from pretrain.data.items import Counted, Found, Item, error
from pretrain.data.streams import open_bytes
from rlplatform.config import ConfigError
from rlplatform.config.corpus_documents import SourceConfig
from rlplatform.datafiles import DataError

_FACTS = ("title", "author", "date", "sitename", "description", "categories", "tags", "license", "language")
_HTML = ("text/html", "application/xhtml+xml")
_DECODED = ("", "identity", "gzip", "x-gzip", "deflate")  # content encodings that warcio undoes
_DECLARED = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([A-Za-z0-9_.:-]+)""", re.IGNORECASE)
_AS_BROWSERS_READ = dict.fromkeys(("iso-8859-1", "iso8859-1", "latin1", "ascii", "us-ascii"), "windows-1252")
_WITH_CONTENT = ("response", "resource", "conversion")


def read_html(path: Path, source: SourceConfig) -> Iterator[Found]:
    """One document a file."""
    with open_bytes(path) as stream:
        data = stream.read()
    yield html_item(data, "", source.html)


def html_item(data: bytes, place: str, settings: Mapping[str, Any], *, charset: str = "", **rest: Any) -> Item:
    """The main text of a page with what it says of itself; reason ``no main text`` where there is none."""
    from trafilatura import bare_extraction

    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)  # what it could not use is an item's reason here
    content, encoding = decoded(data, charset)
    options = {"include_comments": False, "with_metadata": True, **settings}
    try:
        page: Any = bare_extraction(content, **options)
    except TypeError as wrong:  # a setting it does not have
        raise ConfigError(f"html: expected keyword arguments of trafilatura.bare_extraction: {wrong}") from wrong
    text = page.text.strip() if page is not None and page.text else ""
    if page is None or not text:
        return Item(place, reason="no main text", detail=f"{len(data)} bytes of HTML", **rest)
    facts = {name: value for name in _FACTS if (value := getattr(page, name, None))} | {"encoding": encoding}
    return Item(place, text, **{**rest, "meta": {**rest.get("meta", {}), **facts}})


def decoded(data: bytes, charset: str) -> tuple[bytes | str, str]:
    """(the page, its encoding): UTF-8 where all bytes are, for other text is that by no accident; else what the HTTP
    header says, then what the page declares. Where none holds, the bytes and ``guessed``: trafilatura guesses, and does
    not look at declarations.
    """
    declared = _DECLARED.search(data[:4096])
    names = [charset, declared[1].decode("ascii") if declared else ""]
    seven_bits = [name for name in names if name.lower().startswith(("iso-2022", "hz"))]  # they look like ASCII
    for name in (*seven_bits, "utf-8-sig" if data.startswith(codecs.BOM_UTF8) else "utf-8", *names):
        name = _AS_BROWSERS_READ.get(name.lower(), name)
        try:
            return data.decode(name), name.lower()
        except (LookupError, UnicodeError):
            continue
    return data, "guessed"


# --- web archives ---------------------------------------------------------------------------------------------------


def read_warc(path: Path, source: SourceConfig) -> Iterator[Found]:
    """One document a page of a WARC file, or a plain text of a WET file; requests and the like are counted.

    Raises:
        DataError: no WARC file, or one that is broken or cut.
    """
    from warcio.archiveiterator import ArchiveIterator
    from warcio.exceptions import ArchiveLoadFailed

    number = 0
    with open_bytes(path) as stream:
        try:
            for record in ArchiveIterator(_Whole(stream, path), arc2warc=True):
                number += 1
                yield _record_item(record, number, source)
                _check_whole(record, path, number)
        except ArchiveLoadFailed as broken:
            raise DataError(f"{path}: expected WARC records, broken after record {number}: {broken}") from broken
    if not number:
        raise DataError(f"{path}: expected WARC records, found none")


class _Whole:
    """A stream whose early end is a DataError: the library takes an EOFError for the end of the file."""

    def __init__(self, stream: Any, path: Path) -> None:
        self._stream, self._path = stream, path
        self.tell = stream.tell

    def read(self, size: int = -1) -> bytes:
        """At most ``size`` bytes, what one step of decompression gives: all records before a cut are read."""
        try:
            return self._stream.read1(size)
        except EOFError as cut:
            raise DataError(f"{self._path}: compressed data are cut: {cut}") from cut


def _record_item(record: Any, number: int, source: SourceConfig) -> Found:
    if record.rec_type not in _WITH_CONTENT:
        return Counted(f"warc {record.rec_type}")
    url = record.rec_headers.get_header("WARC-Target-URI") or ""
    place, where = f"record {number} {url}".strip(), url
    meta: dict[str, Any] = {"url": url, "crawled": record.rec_headers.get_header("WARC-Date")}
    rest: dict[str, Any] = {"where": where, "meta": meta}
    http = record.http_headers
    kind = (http or record.rec_headers).get_header("Content-Type") or ""
    if record.rec_type == "response":
        if http is None:
            return error(place, "no HTTP header", f"content type {kind!r}", **rest)
        meta["status"] = http.get_statuscode()
        if meta["status"] != "200":
            return Item(place, reason="http status", detail=meta["status"], **rest)
        encoding = (http.get_header("Content-Encoding") or "").strip().lower()
        if encoding not in _DECODED:
            return Item(place, reason="content encoding", detail=encoding, **rest)
    media, charset = _media_type(kind)
    if media in _HTML:
        return html_item(_content(record), place, source.html, charset=charset, **rest)
    if media == "text/plain":
        return _plain_item(_content(record), place, charset or "utf-8", rest)
    return Item(place, reason="content type", detail=media or "none", **rest)


def _content(record: Any) -> bytes:
    content: IO[bytes] = record.content_stream()
    return content.read()


def _plain_item(data: bytes, place: str, charset: str, rest: dict[str, Any]) -> Item:
    try:
        return Item(place, data.decode(charset), **rest)
    except (LookupError, UnicodeError) as broken:
        return Item(place, reason="encoding", detail=str(broken), **rest)


def _media_type(header: str) -> tuple[str, str]:
    """(type in lower case, charset) of a Content-Type header."""
    media, *parameters = header.split(";")
    pairs = (parameter.partition("=") for parameter in parameters)
    values = {name.strip().lower(): value.strip("\"' ") for name, _, value in pairs}
    return media.strip().lower(), values.get("charset", "")


def _check_whole(record: Any, path: Path, number: int) -> None:
    """The library ends quietly where a file ends within a record."""
    stream = record.raw_stream
    while stream.read(1 << 16):
        pass
    missing = getattr(stream, "limit", 0)
    if missing:
        raise DataError(f"{path}: cut within record {number}: {missing} bytes of it are missing")
