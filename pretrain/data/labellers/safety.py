"""Explicit terms by list: a count, not a judgement. Judging harm takes a model: ``llm`` or ``classifier``.

C4 dropped every page with a word of a public list (Raffel et al. 2020, section 2.2), and with them much that was
harmless (Dodge et al. 2021, arXiv:2104.08758, section 5.3). So this gives a rate and no verdict; a filter has a bound.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

from pretrain.data.labels import Value, labeller
from pretrain.data.scripts import words
from rlplatform.datafiles import DataError

# Words of advertisements for pornography; no word has a medical or everyday use.
TERMS = frozenset(
    (
        *("porn", "porno", "pornos", "xxx", "milf", "hentai", "bukkake", "upskirt", "fuckbuddy", "escortservice"),
        *("camgirl", "camgirls", "sexcam", "sexcams", "blowjob", "blowjobs", "handjob", "creampie", "cumshot"),
        *("gangbang", "deepthroat"),
    )
)
_EDGES = "\"'“”‘’«»„.,;:!?()[]{}*_#@-"


@labeller(version="1", files=("file",))
def terms(texts: Sequence[str], *, file: str = "") -> list[Mapping[str, Value]]:
    """``safety.terms``: words from the list, per thousand words.

    Args:
        file: a list of your own, one word a line, `#` begins a comment; "" = ``TERMS``, a few English ones.

    Raises:
        DataError: the file is not there or has no words.
    """
    known = _read(file) if file else TERMS
    found: list[Mapping[str, Value]] = []
    for text in texts:
        tokens = [token.casefold().strip(_EDGES) for token in words(text)]
        found.append({"safety.terms": 1000 * sum(t in known for t in tokens) / len(tokens) if tokens else None})
    return found


@functools.cache
def _read(file: str) -> frozenset[str]:
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: expected a list of words, one a line: {error}") from error
    found = frozenset(word for line in lines if (word := line.partition("#")[0].strip().casefold()))
    spaced = [word for word in found if len(words(word)) != 1]
    if not found or spaced:
        what = f"{spaced[0]!r} is more than one word" if spaced else "it has none"
        raise DataError(f"{file}: expected a list of words, one a line: {what}")
    return found
