"""PDF files: the text layer where it can be used, two models where it cannot.

    page ── text layer, drawn objects ──► usable ─────────────────────────► text layer (pdfium, or pypdf)
                                          blank ──────────────────────────► nothing
                                          missing, unreadable, heavy layout
                                            a model is configured ────────► page image ─ vision ─ refine
                                            none is ──────────────────────► text layer, and ``trouble`` says what it is

Measured on the PDFs of py-pdf/sample-files: pdfium and pypdf both keep the columns of a two-column page apart; pdfium
joins words that are broken over lines and keeps table rows on one line, at a tenth of the time; it writes Arabic in
the order of the glyphs, back to front, where pypdf has it right. So ``auto`` reads with pdfium, and pages with
right-to-left text with pypdf.
"""

from __future__ import annotations

import asyncio
import io
import logging
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from pretrain.data.document import label
from pretrain.data.items import Counted, Found, Item, error
from pretrain.data.page_models import Reading, read_images
from pretrain.data.streams import open_bytes
from rewards.judge_prompts import JudgeSettingsError
from rlplatform.config import ConfigError
from rlplatform.config.corpus_documents import PdfConfig, SourceConfig
from rlplatform.datafiles import DataError

PDFIUM, PYPDF = "pdfium", "pypdf"
NO_TEXT, UNREADABLE, HEAVY = "no text layer", "unreadable text", "heavy layout"
_FILES, _IMAGES = 32, 128  # files and page images, whichever is first, whose pages are asked for together
_RIGHT_TO_LEFT = ("R", "AL")
_HYPHEN = "\x02"  # what pdfium writes for a hyphen at the end of a line, in place of both


@dataclass(frozen=True)
class Page:
    """One page and how its text came about."""

    number: int  # from 1
    text: str
    method: str  # "text layer (pdfium)", "blank", or the models' names
    trouble: str = ""  # what is wrong with the text layer: NO_TEXT, UNREADABLE or HEAVY; "" = it can be used
    detail: str = ""  # the measure
    failure: str = ""  # of a model
    image: bytes = b""  # PNG, for a model

    @property
    def record(self) -> dict[str, Any]:
        """The page's entry in the document's meta."""
        entries = {"page": self.number, "method": self.method, "trouble": self.trouble, "detail": self.detail}
        return {key: value for key, value in entries.items() if value}

    @property
    def kind(self) -> str:
        """Its method without names, for counts."""
        if self.failure:
            return self.failure
        if self.method == "blank" or self.method.startswith("text layer"):
            return f"text layer, {self.trouble}" if self.trouble else self.method.partition(" (")[0]
        return "vision"


# --- the text layer -------------------------------------------------------------------------------------------------


def text_pages(data: bytes, config: PdfConfig) -> tuple[list[Page], dict[str, str]]:
    """Every page by its text layer, with what speaks against that; and what the file says of itself.

    Pages that a model is to read carry their image.

    Raises:
        DataError: no PDF, or one that needs a password.
    """
    import pypdfium2

    try:
        with pypdfium2.PdfDocument(data) as document:
            facts = {name.lower(): value for name, value in document.get_metadata_dict(skip_empty=True).items()}
            reader = partial(_pypdf_text, cache(partial(_pypdf_reader, data)))
            return [_text_page(page, number, reader, config) for number, page in enumerate(document, 1)], facts
    except pypdfium2.PdfiumError as broken:
        raise DataError(f"expected a PDF without a password: {broken}") from broken


def _text_page(page: Any, number: int, pypdf_text: Callable[[int], str], config: PdfConfig) -> Page:
    drawn = _drawn(page)
    text, layer = _layer(page, number, pypdf_text, config)
    if not text.strip() and not drawn:
        return Page(number, "", "blank")
    trouble, detail = judge(text, drawn, config)
    wanted = bool(config.vision) and (bool(trouble) or config.pages == "all")
    image = _png(page, config.dpi) if wanted else b""
    return Page(number, text, f"text layer ({layer})", trouble, detail, image=image)


def _layer(page: Any, number: int, pypdf_text: Callable[[int], str], config: PdfConfig) -> tuple[str, str]:
    """(text, the library that read it)."""
    text = page.get_textpage().get_text_bounded().replace("\r\n", "\n").replace(_HYPHEN, "")
    if config.text_layer == PYPDF or (config.text_layer == "auto" and is_right_to_left(text)):
        return pypdf_text(number), PYPDF
    return text, PDFIUM


def _pypdf_reader(data: bytes) -> Any:
    from pypdf import PdfReader

    logging.getLogger("pypdf").setLevel(logging.ERROR)
    return PdfReader(io.BytesIO(data))


def _pypdf_text(reader: Callable[[], Any], number: int) -> str:
    try:
        return str(reader().pages[number - 1].extract_text())
    except Exception as broken:  # whatever a broken page brings up; pdfium was content with it
        raise DataError(f"page {number}: pypdf: {type(broken).__name__}: {broken}") from broken


def is_right_to_left(text: str) -> bool:
    """Any Hebrew, Arabic or other letter that is written from right to left?"""
    return any(unicodedata.bidirectional(character) in _RIGHT_TO_LEFT for character in text)


@dataclass(frozen=True)
class Drawn:
    """What is drawn on a page."""

    num_images: int
    num_paths: int
    num_texts: int
    image_share: float  # of the page's area, overlaps counted twice, at most 1

    def __bool__(self) -> bool:
        return bool(self.num_images or self.num_paths or self.num_texts)


def _drawn(page: Any) -> Drawn:
    from pypdfium2 import raw

    width, height = page.get_size()
    kinds: Counter[int] = Counter()
    area = 0.0
    for item in page.get_objects(max_depth=4):
        kinds[item.type] += 1
        if item.type == raw.FPDF_PAGEOBJ_IMAGE:
            left, bottom, right, top = item.get_bounds()
            area += max(min(right, width) - max(left, 0), 0) * max(min(top, height) - max(bottom, 0), 0)
    paths = kinds[raw.FPDF_PAGEOBJ_PATH] + kinds[raw.FPDF_PAGEOBJ_SHADING]
    share = min(area / (width * height), 1.0) if width * height else 0.0
    return Drawn(kinds[raw.FPDF_PAGEOBJ_IMAGE], paths, kinds[raw.FPDF_PAGEOBJ_TEXT], share)


def judge(text: str, drawn: Drawn, config: PdfConfig) -> tuple[str, str]:
    """(trouble, measure) of a text layer; ("", "") where nothing speaks against it."""
    characters = [character for character in text if not character.isspace()]
    if len(characters) < config.min_chars and (drawn.num_images or drawn.num_paths or not characters):
        return NO_TEXT, f"{len(characters)} characters"
    unreadable = sum(map(_is_unreadable, characters)) / max(len(characters), 1)
    if unreadable >= config.max_unreadable:
        return UNREADABLE, f"{unreadable:.0%} of the characters"
    if drawn.image_share >= config.max_image_share:
        return HEAVY, f"images cover {drawn.image_share:.0%}"
    if drawn.num_paths >= config.max_paths:
        return HEAVY, f"{drawn.num_paths} lines and shapes"
    return "", ""


def _is_unreadable(character: str) -> bool:
    """Private use, control or unassigned: a font without a map to Unicode."""
    return character == "\ufffd" or unicodedata.category(character) in ("Co", "Cc", "Cn")


def _png(page: Any, dpi: int) -> bytes:
    buffer = io.BytesIO()
    page.render(scale=dpi / 72).to_pil().save(buffer, format="PNG")
    return buffer.getvalue()


# --- files ----------------------------------------------------------------------------------------------------------


def read_pdfs(paths: Sequence[Path], source: SourceConfig) -> Iterator[tuple[Path, Found]]:
    """(file, item) of PDF files: a document a file or a page, and how many pages were read how.

    Pages of several files are asked for together, so that an endpoint is kept busy; the order stays.
    """
    for window in _windows(paths, source.pdf):
        pages = [page for _, found, _ in window if isinstance(found, list) for page in found]
        readings = iter(_ask(pages, source.pdf))
        for path, found, facts in window:
            if isinstance(found, Item):
                yield path, found
                continue
            read = [next(readings) for _ in found]
            for item in _documents(read, facts, source.pdf.unit):
                yield path, item


Opened = tuple[Path, list[Page] | Item, dict[str, str]]  # file, its pages or what is wrong with it, what it says


def _windows(paths: Sequence[Path], config: PdfConfig) -> Iterator[list[Opened]]:
    window: list[Opened] = []
    images = 0
    for path in paths:
        found, facts = _read(path, config)
        window.append((path, found, facts))
        images += sum(bool(page.image) for page in found) if isinstance(found, list) else 0
        if not config.vision or images >= _IMAGES or len(window) == _FILES:
            yield window
            window, images = [], 0
    if window:
        yield window


def _read(path: Path, config: PdfConfig) -> tuple[list[Page] | Item, dict[str, str]]:
    try:
        with open_bytes(path) as stream:
            data = stream.read()
        return text_pages(data, config)
    except DataError as broken:
        return error("", "pdf", str(broken)), {}


def _ask(pages: Sequence[Page], config: PdfConfig) -> list[Page]:
    """The pages, those with an image as the models read them."""
    asked = [page for page in pages if page.image]
    if not asked:
        return list(pages)
    try:
        readings = iter(asyncio.run(read_images([page.image for page in asked], config)))
    except JudgeSettingsError as wrong:
        raise ConfigError(str(wrong)) from wrong
    return [_as_read(page, next(readings)) if page.image else page for page in pages]


def _as_read(page: Page, reading: Reading) -> Page:
    return replace(
        page, text=reading.text, method=reading.method, failure=reading.failure, detail=reading.detail or page.detail,
        image=b"",
    )  # fmt: skip


def _documents(pages: Sequence[Page], facts: dict[str, str], unit: str) -> Iterator[Found]:
    for kind, number in sorted(Counter(page.kind for page in pages).items()):
        yield Counted(f"pdf page: {kind}", number)
    if unit == "page":
        for page in pages:
            yield _item(f"page {page.number}", [page], facts)
    else:
        yield _item("", pages, facts)


def _item(place: str, pages: Sequence[Page], facts: dict[str, str]) -> Item:
    meta = {"pdf": facts, "pages": [page.record for page in pages]}
    text = "\n\n".join(page.text.strip("\n") for page in pages if page.text.strip())
    failed = next((page for page in pages if page.failure), None)
    if failed is not None:
        return error(place, failed.failure, f"page {failed.number}: {failed.detail}", text=text, meta=meta)
    if not text:
        troubles = [page.trouble for page in pages if page.trouble and page.kind != "vision"]
        return Item(place, meta=meta, reason=troubles[0] if troubles else "empty")
    methods = {"vision" if page.kind == "vision" else "text layer" for page in pages if page.method != "blank"}
    method = methods.pop() if len(methods) == 1 else "mixed"
    return Item(place, text, meta, [label("pdf_method", method, "reader")])
