"""Web pages and web archives."""

from __future__ import annotations

import gzip
import io
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from pretrain.data.items import Counted, Found, Item
from pretrain.data.web import _media_type, decoded, html_item, read_html, read_warc
from rlplatform.config import ConfigError, SourceConfig
from rlplatform.datafiles import DataError

SOURCE = SourceConfig(path=("x",))
EXAMPLE = Path(__file__).parents[2] / "examples" / "corpus" / "page.html"
FILLER = "This sentence makes the paragraph long enough to count as the main text of the page. " * 3


def page(body: str, head: str = "") -> bytes:
    return f"<html><head><title>T</title>{head}</head><body><article><p>{body}</p></article></body></html>".encode()


def test_the_main_text_without_what_surrounds_it() -> None:
    [item] = read_html(EXAMPLE, SOURCE)
    assert isinstance(item, Item)
    assert item.text.startswith("How bread rises\nYeast eats the sugar")
    assert item.text.endswith("and the loaf falls.")
    assert not any(word in item.text for word in ("Home", "Log in", "Cookie", "Imprint"))
    assert item.meta == {"title": "How bread rises", "author": "Ada Baker", "encoding": "utf-8"}


def test_a_page_without_text_is_refused_with_its_size() -> None:
    for data in (b"", b"<html><body></body></html>", b"\x00\x01 no page"):
        item = html_item(data, "p", {})
        assert (item.reason, item.text, item.is_error) == ("no main text", "", False)
        assert item.detail == f"{len(data)} bytes of HTML"


@pytest.mark.parametrize(
    ("encoding", "charset", "head", "read_as"),
    [
        ("utf-8", "", '<meta charset="utf-8">', "utf-8"),
        ("utf-8-sig", "windows-1251", "", "utf-8-sig"),
        ("iso-8859-1", "", "<META http-equiv=Content-Type content='text/html; charset=ISO-8859-1'>", "windows-1252"),
        ("iso-8859-2", "", '<meta charset="iso-8859-2">', "iso-8859-2"),
        ("iso-8859-1", "iso-8859-1", '<meta charset="utf-8">', "windows-1252"),
        ("windows-1251", "windows-1251", "", "windows-1251"),
        ("utf-8", "ascii", '<meta charset="latin1">', "utf-8"),
        ("utf-8", "no-such", "", "utf-8"),
        ("iso-2022-jp", "ISO-2022-JP", "", "iso-2022-jp"),
        ("iso-2022-jp", "", '<meta charset="iso-2022-jp">', "iso-2022-jp"),
        ("iso-8859-1", "utf-8", '<meta charset="utf-8">', "guessed"),
    ],
)
def test_the_encoding_is_what_header_and_page_say(encoding: str, charset: str, head: str, read_as: str) -> None:
    word = {"windows-1251": "Привет мир. ", "iso-2022-jp": "日本語の文章です。"}.get(encoding, "Schöne Grüße. ")
    data = page(word * 20, head).decode().encode(encoding)
    item = html_item(data, "", {}, charset=charset)
    assert item.meta["encoding"] == read_as
    if read_as != "guessed":
        assert item.text == (word * 20).strip()


def test_settings_go_to_the_extraction() -> None:
    table = "<table><tr><td>cell one</td><td>cell two</td></tr></table>"
    data = page(FILLER + table)
    assert "cell one" in html_item(data, "", {}).text
    assert "cell one" not in html_item(data, "", {"include_tables": False}).text
    with pytest.raises(ConfigError, match="html: expected keyword arguments of trafilatura"):
        html_item(data, "", {"include_tabels": False})


# --- archives -------------------------------------------------------------------------------------------------------


def archive(path: Path, *records: dict[str, Any], compressed: bool = True) -> Path:
    """A WARC file as crawlers write it."""
    with open(path, "wb") as file:
        writer = WARCWriter(file, gzip=compressed)
        writer.write_record(writer.create_warcinfo_record("a.warc", {"software": "test"}))
        for number, record in enumerate(records):
            record = {"kind": "response", "status": "200 OK", "type": "text/html", "headers": [], **record}
            http = [("Content-Type", record["type"]), *record["headers"]]
            headers = StatusAndHeaders(record["status"], http, protocol="HTTP/1.1")
            is_http = record["kind"] in ("response", "request")
            made = writer.create_warc_record(
                f"https://example.org/{number}",
                record["kind"],
                payload=io.BytesIO(record["body"]),
                http_headers=headers if is_http else None,
                warc_content_type="" if is_http else record["type"],
                warc_headers_dict={"WARC-Date": "2026-01-31T00:00:00Z"},
            )
            writer.write_record(made)
    return path


def refused(items: list[Found]) -> Counter[tuple[str, str]]:
    return Counter((item.reason, item.detail) for item in items if isinstance(item, Item) and item.reason)


@pytest.mark.parametrize("compressed", [True, False])
def test_responses_are_documents_and_everything_else_is_counted(tmp_path: Path, compressed: bool) -> None:
    zipped = gzip.compress(page("A page sent compressed. " + FILLER))
    chunked = b"%x\r\n" % len(zipped) + zipped + b"\r\n0\r\n\r\n"
    path = archive(
        tmp_path / ("a.warc.gz" if compressed else "a.warc"),
        {"body": page("The first page. " + FILLER), "type": "text/html; charset=utf-8"},
        {"body": b"GET / HTTP/1.1\r\n\r\n", "kind": "request"},
        {"body": b"gone", "status": "404 Not Found"},
        {"body": chunked, "headers": [("Content-Encoding", "gzip"), ("Transfer-Encoding", "chunked")]},
        {"body": b"%PDF-", "type": "application/pdf"},
        {"body": "Plain Grüße".encode("latin-1"), "type": 'text/plain; charset="iso-8859-1"'},
        {"body": b"\xff", "type": "text/plain"},
        {"body": b"squeezed", "headers": [("Content-Encoding", "br")]},
        {"body": "A text of a WET file: é".encode(), "kind": "conversion", "type": "text/plain"},
        {"body": b"<html></html>"},
        compressed=compressed,
    )
    items = list(read_warc(path, SOURCE))
    assert Counter(item.name for item in items if isinstance(item, Counted)) == {"warc warcinfo": 1, "warc request": 1}
    documents = {item.where: item for item in items if isinstance(item, Item) and not item.reason}
    assert {url: item.text[:21] for url, item in documents.items()} == {
        "https://example.org/0": "The first page. This ",
        "https://example.org/3": "A page sent compresse",
        "https://example.org/5": "Plain Grüße",
        "https://example.org/8": "A text of a WET file:",
    }
    first = documents["https://example.org/0"]
    assert first.place == "record 2 https://example.org/0"
    assert first.meta == {
        "url": "https://example.org/0",
        "crawled": "2026-01-31T00:00:00Z",
        "status": "200",
        "title": "T",
        "encoding": "utf-8",
    }
    undecodable = [detail for reason, detail in refused(items) if reason == "encoding"]
    assert len(undecodable) == 1
    assert refused(items) == {
        ("http status", "404"): 1,
        ("content type", "application/pdf"): 1,
        ("encoding", undecodable[0]): 1,
        ("content encoding", "br"): 1,
        ("no main text", "13 bytes of HTML"): 1,
    }


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("left_out", [1, 5, 30, 200])
def test_a_cut_archive_is_an_error_and_what_came_before_is_read(
    tmp_path: Path, compressed: bool, left_out: int
) -> None:
    bodies = [{"body": page(f"Page {k}. " + FILLER)} for k in range(3)]
    path = archive(tmp_path / ("a.warc.gz" if compressed else "a.warc"), *bodies, compressed=compressed)
    whole = path.read_bytes()
    assert len(list(read_warc(path, SOURCE))) == 4
    left_out += 0 if compressed else 4  # the empty lines behind a record, without which it is whole
    path.write_bytes(whole[:-left_out])
    found: list[Found] = []
    with pytest.raises(DataError, match=r"cut|missing"):
        found.extend(read_warc(path, SOURCE))
    assert len(found) in (3, 4)


def test_a_file_that_is_no_archive(tmp_path: Path) -> None:
    path = tmp_path / "a.warc"
    for content in (b"", b"some text\nthat goes on\n" * 9):
        path.write_bytes(content)
        with pytest.raises(DataError, match="expected WARC records"):
            list(read_warc(path, SOURCE))


@pytest.mark.parametrize("header", ["text/plain; Charset=KOI8-R", "text/plain; charset = 'koi8-r'"])
def test_the_name_of_the_charset_parameter_is_read_in_any_case(header: str) -> None:
    media, charset = _media_type(header)
    assert (media, charset.lower()) == ("text/plain", "koi8-r")


def test_a_codec_that_decodes_nothing_is_no_encoding() -> None:
    assert decoded(b"caf\xe9", "undefined") == (b"caf\xe9", "guessed")


def test_pages_of_an_arc_file_have_their_address(tmp_path: Path) -> None:
    about = b"1 0 Test\nURL IP-address Archive-date Content-type Archive-length\n"
    body = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nhello"
    path = tmp_path / "a.arc"
    path.write_bytes(
        b"filedesc://a.arc 0.0.0.0 20200102030405 text/plain %d\n%s\n" % (len(about), about)
        + b"http://a.org/x 93.184.215.14 20200102030405 text/plain %d\n%s\n" % (len(body), body)
    )
    [page] = [item for item in read_warc(path, SOURCE) if isinstance(item, Item)]
    assert (page.text, page.where) == ("hello", "http://a.org/x")
    assert page.meta["url"] == "http://a.org/x"
    assert page.meta["crawled"] == "2020-01-02T03:04:05Z"
