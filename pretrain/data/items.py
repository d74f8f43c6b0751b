"""What a reader finds: the one type between formats and documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Item:
    """One thing found in a file: a document, or something that is none, with the reason.

    An error is input that is broken or a model that did not answer: too many of them stop the stage. Any other reason
    is a property of sound input (an empty text, a page that is not there) and is only counted.
    """

    place: str  # within the file, the same in every run: "line 12", "page 3", a record's URL; "" = the whole file
    text: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    labels: Sequence[Mapping[str, Any]] = ()
    where: str = ""  # for people, where it is not file and place: a URL
    reason: str = ""  # why it is no document, a word that can be counted; "" = it is one
    detail: str = ""
    is_error: bool = False


@dataclass(frozen=True)
class Counted:
    """Something seen that is neither a document nor refused, such as a request of a web archive or a page of a PDF."""

    name: str
    num: int = 1


Found = Item | Counted


def error(place: str, reason: str, detail: str, **rest: Any) -> Item:
    """Input that is broken."""
    return Item(place, reason=reason, detail=detail, is_error=True, **rest)
