"""Quality signals by rule: Gopher's, C4's and FineWeb's, in any script.

Gopher: Rae et al. 2021, arXiv:2112.11446, appendix A1.1 and table A1. C4: Raffel et al. 2020, JMLR 21(140), section
2.2. FineWeb: Penedo et al. 2024, arXiv:2406.17557, section 3.5. They were made for English web pages: a bound says what
those papers dropped, not that a text is bad. Code, poetry and tables break them; in scripts without spaces a word is a
character, and the rule on the length of words does not apply.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pretrain.data.document import Row, label_of
from pretrain.data.labellers.stop_words import STOP_WORDS
from pretrain.data.labels import Value, labeller
from pretrain.data.scripts import spaceless_share, words

_BULLETS = ("•", "‣", "▪", "●", "◦", "*", "-", "–")
_ELLIPSES = ("...", "…", ". . .")
_END = ".!?。！？؟۔।॥։።…"
_QUOTES = "\"'”’»」』)"
_SENTENCE_END = re.compile(rf"[{re.escape(_END)}]+[{re.escape(_QUOTES)}]*(?=\s|$|[^\x00-\x7f])")
_SHORT_LINE = 30  # characters

# Gopher's bounds: (signal, lowest, highest) in the order of the paper. Table A1 bounds repetition from above.
GOPHER: tuple[tuple[str, float, float], ...] = (
    ("length.words", 50, 100_000),
    ("mean_word_length", 3, 10),
    ("symbol_ratio", 0, 0.1),
    ("bullet_lines", 0, 0.9),
    ("ellipsis_lines", 0, 0.3),
    ("alphabetic_words", 0.8, 1),
    ("stop_words", 2, float("inf")),
    ("duplicate_lines", 0, 0.30),
    ("duplicate_paragraphs", 0, 0.30),
    ("duplicate_line_characters", 0, 0.20),
    ("duplicate_paragraph_characters", 0, 0.20),
    ("top_2_gram", 0, 0.20),
    ("top_3_gram", 0, 0.18),
    ("top_4_gram", 0, 0.16),
    ("duplicate_5_grams", 0, 0.15),
    ("duplicate_6_grams", 0, 0.14),
    ("duplicate_7_grams", 0, 0.13),
    ("duplicate_8_grams", 0, 0.12),
    ("duplicate_9_grams", 0, 0.11),
    ("duplicate_10_grams", 0, 0.10),
)


@labeller(version="1")
def quality(texts: Sequence[str], documents: Sequence[Row]) -> list[Mapping[str, Value]]:
    """The signals as ``quality.NAME``, and ``quality.gopher`` and ``quality.c4``: `pass` or the first broken rule.

    Stop words are those of the label ``language`` where an earlier labeller gave it, else English; a language without
    a list in ``stop_words.py`` has no such signal, and the rule on it does not apply.
    """
    return [_labels(text, _language(row)) for text, row in zip(texts, documents, strict=True)]


def _language(row: Mapping[str, Any]) -> str:
    known = label_of(row, "language")
    return known["value"].partition("_")[0] if known else "eng"


def _labels(text: str, language: str) -> dict[str, Value]:
    found = signals(text, language)
    values: dict[str, Value] = {f"quality.{name}": value for name, value in found.items()}
    verdict = gopher({**found, "length.words": len(words(text))})
    return {**values, "quality.gopher": verdict, "quality.c4": c4(text)}


def signals(text: str, language: str = "eng") -> dict[str, float | None]:
    """Every signal of a text by its name; ``None`` where it does not apply (no words, no lines, no list)."""
    found: dict[str, float | None] = {}
    tokens = words(text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    paragraphs = [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]
    spaced = spaceless_share(text) < 0.5
    found["mean_word_length"] = _share(sum(map(len, tokens)), len(tokens)) if spaced else None
    symbols = max(text.count("#"), sum(text.count(mark) for mark in _ELLIPSES))
    found["symbol_ratio"] = _share(symbols, len(tokens))
    found["bullet_lines"] = _share(sum(line.startswith(_BULLETS) for line in lines), len(lines))
    found["ellipsis_lines"] = _share(sum(line.endswith(_ELLIPSES) for line in lines), len(lines))
    found["alphabetic_words"] = _share(sum(any(map(str.isalpha, token)) for token in tokens), len(tokens))
    found["stop_words"] = stop_words(tokens, language)
    for name, units in (("line", lines), ("paragraph", paragraphs)):
        repeated = _repeated(units)
        found[f"duplicate_{name}s"] = _share(len(repeated), len(units))
        found[f"duplicate_{name}_characters"] = _share(sum(map(len, repeated)), sum(map(len, units)))
    found |= repetition(tokens)
    found["punctuated_lines"] = _share(sum(_ends_sentence(line) for line in lines), len(lines))
    found["short_lines"] = _share(sum(len(line) < _SHORT_LINE for line in lines), len(lines))
    found["sentences"] = len(_SENTENCE_END.findall(text))
    unreadable = sum(number for character, number in Counter(text).items() if _is_unreadable(character))
    found["unreadable"] = _share(unreadable, len(text))
    return found


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def stop_words(tokens: Sequence[str], language: str) -> int | None:
    """How many different stop words of a language (ISO 639-3) occur; None where there is no list."""
    known = STOP_WORDS.get(language)
    if known is None:
        return None
    return len(known & {token.casefold().strip("\"'“”‘’«»„.,;:!?()[]") for token in tokens})


def _repeated(units: Sequence[str]) -> list[str]:
    """The units that stood before."""
    seen: set[str] = set()
    return [unit for unit in units if unit in seen or seen.add(unit)]  # type: ignore[func-returns-value]


def repetition(tokens: Sequence[str]) -> dict[str, float | None]:
    """Shares of the words' characters inside n-grams that occur more than once.

    ``top_n_gram``: in all places of the most frequent n-gram; of equally frequent ones, that with the largest share.
    ``duplicate_n_grams``: in every place of an n-gram that occurred earlier. No character counts twice.
    """
    folded = [token.casefold() for token in tokens]
    lengths = [len(token) for token in tokens]
    total = sum(lengths)
    found: dict[str, float | None] = {}
    repeats = bool(total)
    for n in range(2, 11):
        places = _places(folded, n) if repeats else {}
        repeats = bool(places)  # a repeated (n+1)-gram holds a repeated n-gram
        if n <= 4:
            most = max(map(len, places.values()), default=0)
            tops = [starts for starts in places.values() if len(starts) == most]
            share = max((_covered(starts, n, lengths) for starts in tops), default=0)
            found[f"top_{n}_gram"] = share / total if total else None
        else:
            later = [start for starts in places.values() for start in starts[1:]]
            found[f"duplicate_{n}_grams"] = _covered(later, n, lengths) / total if total else None
    return found


def _places(tokens: Sequence[str], n: int) -> dict[tuple[str, ...], list[int]]:
    """Where each n-gram that occurs more than once begins."""
    grams = list(zip(*(tokens[k:] for k in range(n)), strict=False))
    counts = Counter(grams)
    places: dict[tuple[str, ...], list[int]] = {}
    for start, gram in enumerate(grams):
        if counts[gram] > 1:
            places.setdefault(gram, []).append(start)
    return places


def _covered(starts: Sequence[int], n: int, lengths: Sequence[int]) -> int:
    """Characters of the words that n-grams at ``starts`` cover."""
    return sum(lengths[k] for k in {start + offset for start in starts for offset in range(n)})


def _ends_sentence(line: str) -> bool:
    return line.rstrip(_QUOTES).endswith(tuple(_END)) and not line.endswith(_ELLIPSES)


def _is_unreadable(character: str) -> bool:
    if character in "\n\r\t\f":
        return False
    return character == "\ufffd" or unicodedata.category(character) in ("Cc", "Cn", "Co")


def gopher(found: Mapping[str, float | None]) -> str:
    """`pass`, or the first signal outside Gopher's bounds; one that is None or absent breaks no rule."""
    for name, lowest, highest in GOPHER:
        value = found.get(name)
        if value is not None and not lowest <= value <= highest:
            return name
    return "pass"


def c4(text: str) -> str:
    """`pass`, or `lorem_ipsum`, `curly_bracket` or `few_sentences`: fewer than 3 in the lines that C4 keeps.

    It keeps lines of at least 5 words that end with a sentence's punctuation and do not say "javascript".
    """
    if "lorem ipsum" in text.casefold():
        return "lorem_ipsum"
    if "{" in text:
        return "curly_bracket"
    kept = [
        line
        for line in map(str.strip, text.splitlines())
        if _ends_sentence(line) and "javascript" not in line.casefold() and len(words(line)) >= 5
    ]
    return "pass" if len(_SENTENCE_END.findall("\n".join(kept))) >= 3 else "few_sentences"
