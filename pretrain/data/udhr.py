"""The Universal Declaration of Human Rights as gold for languages: its translations, article by article.

A translation has 30 articles with the same content in the same order, so an article number is a split in which nothing
leaks: what is held out in one language is held out in all, parallel sentences and those that close languages share.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.data.languages import LANGUAGES
from rlplatform.datafiles import DataError, jsonl_lines

NUM_ARTICLES = 30
_MAX_HEADING = 40  # characters
_MIN_LETTERS = 20  # an article with less is a hole in the source


@dataclass(frozen=True)
class Article:
    """One article of one translation."""

    language: str  # ISO 639-3; of the report's 119 as pretrain/data/languages.py writes them
    translation: str  # the collection's code: por_BR
    number: int  # from 1
    text: str  # without its heading


def split_articles(text: str) -> list[str] | None:
    """The 30 articles without headings and what precedes the first, or None where no 30 headings are found.

    Headings are short lines with the numbers 1 to 30 in order, in any script's digits; where numbers are words, 30
    short lines that begin, or end, with the same one to four characters: "Article", "...条".
    """
    lines = text.split("\n")
    heads = _numbered(lines) or _alike(lines)
    if heads is None:
        return None
    return [
        "\n".join(lines[begin + 1 : end]).strip() for begin, end in zip(heads, [*heads[1:], len(lines)], strict=True)
    ]


def _numbered(lines: Sequence[str]) -> list[int] | None:
    found: list[int] = []
    for at, line in enumerate(lines):
        digits = "".join(str(unicodedata.decimal(c)) for c in line if c.isdecimal())
        if len(line) <= _MAX_HEADING and digits.lstrip("0") == str(len(found) + 1):
            found.append(at)
    return found if len(found) == NUM_ARTICLES else None


def _alike(lines: Sequence[str]) -> list[int] | None:
    short = [at for at, line in enumerate(lines) if len(line) <= _MAX_HEADING]
    for length in (4, 3, 2, 1):
        for part in (slice(length), slice(-length, None)):
            groups: dict[str, list[int]] = defaultdict(list)
            for at in short:
                groups[lines[at].strip().casefold()[part]].append(at)
            for group in groups.values():
                if len(group) == NUM_ARTICLES:
                    return group
    return None


def read_articles(path: str | Path) -> tuple[list[Article], dict[str, str]]:
    """Articles of every usable translation in the file, and why the others are not used: code -> reason.

    Args:
        path: JSONL, gzipped or not, with ``code``, ``iso6393`` and ``text`` of each translation.

    Raises:
        DataError: the file cannot be read, or a row lacks one of these.
    """
    codes = {code: language.iso for language in LANGUAGES for code in language.udhr}
    rows: list[dict[str, Any]] = []
    for number, row in jsonl_lines(Path(path)):
        missing = [name for name in ("code", "iso6393", "text") if not isinstance(row.get(name), str)]
        if missing:
            raise DataError(f"{path}:{number}: expected texts in code, iso6393 and text; {', '.join(missing)} is not")
        rows.append(row)
    owners: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        owners[row["text"]].append(row["code"])
    articles: list[Article] = []
    unused: dict[str, str] = {}
    for row in rows:
        code, same = row["code"], owners[row["text"]]
        if len(same) > 1:
            unused[code] = f"the same text stands under {', '.join(same)}"
            continue
        texts = split_articles(row["text"])
        if texts is None:
            unused[code] = "no 30 headings found"
            continue
        holes = [n for n, text in enumerate(texts, 1) if sum(map(str.isalpha, text)) < _MIN_LETTERS]
        if len(holes) > NUM_ARTICLES // 2:
            unused[code] = f"articles {', '.join(map(str, holes))} are empty"
            continue
        language = codes.get(code, row["iso6393"])
        articles += [Article(language, code, n, text) for n, text in enumerate(texts, 1) if n not in holes]
    return articles, unused


def rows(*, seed: int, path: str, only_listed: bool = True) -> dict[str, Iterator[dict[str, Any]]]:
    """For ``kind: dataset``: a row an article with ``text``, ``language``, ``translation`` and ``article``.

    Args:
        seed: not used: the order is the file's.
        only_listed: the translations that pretrain/data/languages.py names for the 119; else all usable ones.

    Raises:
        DataError: as ``read_articles``, or no translation is left.
    """
    listed = {code for language in LANGUAGES for code in language.udhr}
    articles = [a for a in read_articles(path)[0] if not only_listed or a.translation in listed]
    if not articles:
        raise DataError(f"{path}: expected translations of the Declaration, found no usable one")
    return {
        "train": (
            {"text": a.text, "language": a.language, "translation": a.translation, "article": str(a.number)}
            for a in articles
        )
    }
