"""PDF files: text layers, what speaks against them, and pages that models read."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pretrain.data.items import Counted, Item
from pretrain.data.pdf import HEAVY, NO_TEXT, UNREADABLE, Drawn, is_right_to_left, judge, read_pdfs, text_pages
from rlplatform.config import ConfigError, EndpointConfig, PdfConfig, SourceConfig
from rlplatform.datafiles import DataError
from tests.unit.page_reader import PageReader, Served, scanned_pdf

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "pdf"


def shared(name: str) -> Path:
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"../shared/data/pdf/{name} is absent")
    return path


def written_pdf(*pages: str) -> bytes:
    """A PDF of pages with these content streams, in Helvetica."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", "", "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]
    kids = []
    for content in pages:
        kids.append(f"{len(objects) + 1} 0 R")
        objects.append(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Resources << /Font << /F1 3 0 R >> >> "
            f"/Contents {len(objects) + 2} 0 R >>"
        )
        objects.append(f"<< /Length {len(content)} >>\nstream\n{content}\nendstream")
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>"
    body, offsets = "%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        offsets.append(len(body))
        body += f"{number} 0 obj\n{content}\nendobj\n"
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    trailer = f"trailer << /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(body)}\n%%EOF"
    return f"{body}xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}{trailer}".encode("latin-1")


def line(text: str, y: int = 700) -> str:
    return f"BT /F1 12 Tf 50 {y} Td ({text}) Tj ET"


def shapes(num: int) -> str:
    return "\n".join(f"{10 + k} 10 m {10 + k} 90 l S" for k in range(num))


def read(folder: Path, config: PdfConfig, *files: bytes) -> list[tuple[str, Any]]:
    paths = []
    for number, data in enumerate(files):
        paths.append(folder / f"{number}.pdf")
        paths[-1].write_bytes(data)
    return [(path.name, found) for path, found in read_pdfs(paths, SourceConfig(path=("x",), pdf=config))]


def documents(found: Sequence[tuple[str, Any]]) -> list[Item]:
    return [item for _, item in found if isinstance(item, Item)]


def pages_of(found: Sequence[tuple[str, Any]]) -> dict[str, int]:
    return {item.name: item.num for _, item in found if isinstance(item, Counted)}


# --- the text layer -------------------------------------------------------------------------------------------------


def test_pages_are_joined_or_documents_of_their_own(tmp_path: Path) -> None:
    data = written_pdf(line("The first page has a sentence."), "", line("The third page has another one."))
    found = read(tmp_path, PdfConfig(), data)
    [item] = documents(found)
    assert item.text == "The first page has a sentence.\n\nThe third page has another one."
    assert item.meta["pages"] == [
        {"page": 1, "method": "text layer (pdfium)"},
        {"page": 2, "method": "blank"},
        {"page": 3, "method": "text layer (pdfium)"},
    ]
    assert item.labels == [{"name": "pdf_method", "value": "text layer", "score": None, "labeller": "reader"}]
    assert pages_of(found) == {"pdf page: blank": 1, "pdf page: text layer": 2}

    by_page = documents(read(tmp_path, PdfConfig(unit="page"), data))
    assert [(page.place, page.text, page.reason) for page in by_page] == [
        ("page 1", "The first page has a sentence.", ""),
        ("page 2", "", "empty"),
        ("page 3", "The third page has another one.", ""),
    ]


def test_both_libraries_can_be_asked_for(tmp_path: Path) -> None:
    data = written_pdf(line("Read me with care, please."))
    for name in ("pdfium", "pypdf"):
        [item] = documents(read(tmp_path, PdfConfig(text_layer=name), data))  # type: ignore[arg-type]
        assert item.text.strip() == "Read me with care, please."
        assert item.meta["pages"] == [{"page": 1, "method": f"text layer ({name})"}]


TEXTS = Drawn(num_images=0, num_paths=0, num_texts=9, image_share=0.0)


@pytest.mark.parametrize(
    ("text", "drawn", "trouble"),
    [
        ("a sentence that is long enough", TEXTS, ("", "")),
        ("7", TEXTS, ("", "")),  # a short page of text alone is a short page
        ("7", Drawn(1, 0, 1, 0.1), (NO_TEXT, "1 characters")),
        ("", TEXTS, (NO_TEXT, "0 characters")),
        ("\ue000\ue001" + "a" * 38, TEXTS, (UNREADABLE, "5% of the characters")),
        ("\ufffd" + "a" * 38, TEXTS, ("", "")),
        ("a sentence that is long enough", Drawn(1, 0, 1, 0.3), (HEAVY, "images cover 30%")),
        ("a sentence that is long enough", Drawn(1, 0, 1, 0.29), ("", "")),
        ("a sentence that is long enough", Drawn(0, 150, 1, 0.0), (HEAVY, "150 lines and shapes")),
        ("a sentence that is long enough", Drawn(0, 149, 1, 0.0), ("", "")),
    ],
)
def test_what_speaks_against_a_text_layer(text: str, drawn: Drawn, trouble: tuple[str, str]) -> None:
    assert judge(text, drawn, PdfConfig()) == trouble


def test_drawn_objects_are_counted_on_the_page(tmp_path: Path) -> None:
    text = line("A table has many lines between its cells.")
    [plain, heavy] = documents(read(tmp_path, PdfConfig(max_paths=20), written_pdf(text + "\n" + shapes(19)),
                                    written_pdf(text + "\n" + shapes(20))))  # fmt: skip
    assert plain.meta["pages"] == [{"page": 1, "method": "text layer (pdfium)"}]
    assert heavy.meta["pages"] == [
        {"page": 1, "method": "text layer (pdfium)", "trouble": "heavy layout", "detail": "20 lines and shapes"}
    ]
    assert heavy.text == plain.text  # no model is configured: the text layer is used, and the record says so


def test_scans_without_a_model_are_refused_by_name(tmp_path: Path) -> None:
    found = read(tmp_path, PdfConfig(), scanned_pdf([10, 20]))
    [item] = documents(found)
    assert (item.text, item.reason, item.is_error) == ("", "no text layer", False)
    assert item.meta["pages"][0] == {
        "page": 1,
        "method": "text layer (pdfium)",
        "trouble": "no text layer",
        "detail": "0 characters",
    }
    assert pages_of(found) == {"pdf page: text layer, no text layer": 2}


def test_files_that_are_no_pdf_are_errors_and_the_next_is_read(tmp_path: Path) -> None:
    good = written_pdf(line("A good file among bad ones."))
    bad, cut, item = documents(read(tmp_path, PdfConfig(), b"no pdf", good[:40], good))
    assert [(entry.is_error, entry.reason) for entry in (bad, cut)] == [(True, "pdf")] * 2
    assert "expected a PDF without a password" in bad.detail
    assert item.text == "A good file among bad ones."


def test_a_file_that_needs_a_password(tmp_path: Path) -> None:
    from pypdf import PdfReader, PdfWriter

    plain, locked = tmp_path / "plain.pdf", tmp_path / "locked.pdf"
    plain.write_bytes(written_pdf(line("Secret words on this page.")))
    writer = PdfWriter(clone_from=PdfReader(plain))
    writer.encrypt("word", algorithm="RC4-128")
    writer.write(locked)
    with pytest.raises(DataError, match="without a password"):
        text_pages(locked.read_bytes(), PdfConfig())


def test_compressed_pdfs_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf.gz"
    path.write_bytes(gzip.compress(written_pdf(line("Compressed as a whole."))))
    found = list(read_pdfs([path], SourceConfig(path=("x",))))
    assert documents([(str(name), item) for name, item in found])[0].text == "Compressed as a whole."


# --- models ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[PageReader, str]]:
    reader = PageReader()
    with Served(reader) as url:
        yield reader, url


def with_models(url: str, **settings: Any) -> PdfConfig:
    shared = {"base_url": url, "max_retries": 0, "concurrency": 1}  # one at a time: a fault meets the page it is for
    vision, refine = EndpointConfig(model="vision", **shared), EndpointConfig(model="refine", **shared)
    return PdfConfig(vision=vision, refine=refine, dpi=72, **settings)


def test_only_pages_in_trouble_go_to_the_models(tmp_path: Path, served: tuple[PageReader, str]) -> None:
    reader, url = served
    reader.requests.clear()
    text = written_pdf(line("A page with a good text layer."), line("Heavy: a form.") + "\n" + shapes(200))
    found = read(tmp_path, with_models(url), text, scanned_pdf([40, 60]))
    good, scan = documents(found)
    assert len(reader.requests) == 6
    assert good.text.split("\n\n")[0] == "A page with a good text layer."
    assert good.text.split("\n\n")[1].startswith("PAGE OF GREY 2")  # white with lines
    assert [page["method"] for page in good.meta["pages"]] == ["text layer (pdfium)", "vision, refine"]
    assert good.labels[0]["value"] == "mixed"
    assert scan.text == "PAGE OF GREY 40\n\nPAGE OF GREY 60"
    assert scan.meta["pages"][1] == {
        "page": 2,
        "method": "vision, refine",
        "trouble": "no text layer",
        "detail": "0 characters",
    }
    assert (scan.labels[0]["value"], pages_of(found)) == ("vision", {"pdf page: text layer": 1, "pdf page: vision": 2})


def test_all_pages_go_to_the_models_when_asked(tmp_path: Path, served: tuple[PageReader, str]) -> None:
    reader, url = served
    reader.requests.clear()
    [item] = documents(read(tmp_path, with_models(url, pages="all"), written_pdf(line("A page with a text layer."))))
    assert (len(reader.requests), item.labels[0]["value"]) == (2, "vision")


@pytest.mark.parametrize(
    ("model", "fault", "failure"), [("vision", "500", "vision error"), ("refine", "cut", "refine cut")]
)
def test_a_page_that_a_model_failed_on_is_never_the_text_layer(
    tmp_path: Path, served: tuple[PageReader, str], model: str, fault: str, failure: str
) -> None:
    reader, url = served
    config = with_models(url, pages="all")
    reader.faults[model].append(fault)
    data = written_pdf(line("This text layer must not be used."))
    found = read(tmp_path, config, data, scanned_pdf([80]))
    failed, after = documents(found)
    assert (failed.is_error, failed.reason, failed.text) == (True, failure, "")
    assert failed.detail.startswith("page 1: ")
    assert after.text == "PAGE OF GREY 80"
    assert [(name, item.name, item.num) for name, item in found if isinstance(item, Counted)] == [
        ("0.pdf", f"pdf page: {failure}", 1),
        ("1.pdf", "pdf page: vision", 1),
    ]


def test_a_page_that_the_model_finds_blank_is_empty(tmp_path: Path, served: tuple[PageReader, str]) -> None:
    [item] = documents(read(tmp_path, with_models(served[1]), scanned_pdf([255])))
    assert (item.reason, item.is_error, item.meta["pages"][0]["method"]) == ("empty", False, "vision")


def test_a_missing_key_stops_and_is_no_property_of_a_page(
    tmp_path: Path, served: tuple[PageReader, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PAGES_KEY", raising=False)
    vision = EndpointConfig(base_url=served[1], model="vision", api_key_env="PAGES_KEY")
    with pytest.raises(ConfigError, match="PAGES_KEY is not set") as caught:
        read(tmp_path, PdfConfig(vision=vision), scanned_pdf([10]))
    assert not isinstance(caught.value, DataError)


# --- real files -----------------------------------------------------------------------------------------------------


def text_of(name: str, layer: Any = "auto") -> tuple[str, str]:
    pages, _ = text_pages(shared(name).read_bytes(), PdfConfig(text_layer=layer))
    return pages[0].text, pages[0].method


def test_columns_are_read_one_after_the_other() -> None:
    """Two columns of lorem ipsum, whose paragraphs have a known order."""
    text, method = text_of("multicolumn.pdf")
    order = [
        "Abstract",
        "Lorem ipsum dolor sit amet",
        "Nam dui ligula",
        "Nulla malesuada porttitor",
        "Quisque ullamcorper",
    ]
    places = [text.index(words) for words in order]
    assert places == sorted(places)
    assert method == "text layer (pdfium)"
    assert "consectetuer adipiscing elit" in text  # broken over a line on the page: adip-iscing


def test_arabic_is_in_reading_order() -> None:
    assert text_of("habibi.pdf") == ("حَبيبي habibi حَبيبي ", "text layer (pypdf)")
    assert "حَبيبي" not in text_of("habibi.pdf", "pdfium")[0]  # what auto is there to avoid
    assert is_right_to_left("שלום")
    assert not is_right_to_left("Καλημέρα 123")


def test_words_and_table_rows_keep_together() -> None:
    text, _ = text_of("minimal-document.pdf")
    assert "Stet clita kasd gubergren, no sea takimata sanctus est" in text
    assert not any(character < " " and character != "\n" for character in text)
    table, _ = text_of("google-doc-document.pdf")
    assert "Capital Jakarta Berlin Vienna Paris Vatican City" in table.split("\n")


@pytest.mark.parametrize(
    ("name", "pages"),
    [("minimal-document.pdf", 1), ("pdflatex-4-pages.pdf", 4), ("mistitled_outlines_example.pdf", 4)],
)
def test_every_page_of_the_sample_files_has_a_text_layer(name: str, pages: int) -> None:
    read_pages, facts = text_pages(shared(name).read_bytes(), PdfConfig())
    assert [(page.number, page.trouble) for page in read_pages] == [(k, "") for k in range(1, pages + 1)]
    assert facts["producer"].startswith("pdfTeX")
