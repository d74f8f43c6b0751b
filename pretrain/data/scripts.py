"""Letters, words, pieces and the script of a text, whatever language it is in. Pure functions of strings."""

from __future__ import annotations

import functools
import unicodedata
from collections import Counter

import regex

# ISO 15924 code of the first word of a letter's Unicode name.
_CODES = {
    "LATIN": "Latn", "CYRILLIC": "Cyrl", "GREEK": "Grek", "ARABIC": "Arab", "HEBREW": "Hebr", "DEVANAGARI": "Deva",
    "BENGALI": "Beng", "GURMUKHI": "Guru", "GUJARATI": "Gujr", "ORIYA": "Orya", "TAMIL": "Taml", "TELUGU": "Telu",
    "KANNADA": "Knda", "MALAYALAM": "Mlym", "SINHALA": "Sinh", "THAI": "Thai", "LAO": "Laoo", "TIBETAN": "Tibt",
    "MYANMAR": "Mymr", "GEORGIAN": "Geor", "HANGUL": "Hang", "ETHIOPIC": "Ethi", "CHEROKEE": "Cher", "KHMER": "Khmr",
    "MONGOLIAN": "Mong", "CJK": "Hani", "HIRAGANA": "Hira", "KATAKANA": "Kana", "ARMENIAN": "Armn", "SYRIAC": "Syrc",
    "THAANA": "Thaa", "TIFINAGH": "Tfng", "JAVANESE": "Java", "NKO": "Nkoo", "VAI": "Vaii", "YI": "Yiii",
    "CANADIAN": "Cans", "ADLAM": "Adlm", "BAMUM": "Bamu", "CHAKMA": "Cakm", "BOPOMOFO": "Bopo",
    "KATAKANA-HIRAGANA": "Kana", "IDEOGRAPHIC": "Hani",
}  # fmt: skip
NO_SCRIPT = "Zyyy"  # ISO 15924's "common": a text without letters
_OTHER = "Zzzz"  # a script that has no code above
_SPACELESS = (
    r"\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}\p{Script=Lao}\p{Script=Khmer}"
    r"\p{Script=Myanmar}\p{Script=Tibetan}"
)
_WORD = regex.compile(rf"[{_SPACELESS}]\p{{M}}*|(?:(?![{_SPACELESS}])\S)+")


def words(text: str) -> list[str]:
    """Runs of characters without white space; in scripts written without spaces, each letter with its marks.

    Chinese, Japanese, Thai, Lao, Khmer, Burmese and Tibetan have no spaces between words: a character stands for one,
    as in multilingual scorers. Punctuation stays with the word beside it, as in Gopher's rules.
    """
    return _WORD.findall(text)


def pieces(text: str, num_characters: int) -> list[str]:
    """``text`` in pieces of at least ``num_characters``, cut at white space, or anywhere where there is none.

    What is left at the end stands alone if it is half as long, else it belongs to the piece before.
    """
    units = text.split() if any(map(str.isspace, text.strip())) else list(text.strip())
    joint = " " if len(units) > 1 and len(units) < len(text.strip()) else ""
    found: list[list[str]] = []
    length = num_characters  # of the last piece
    for unit in units:
        if length >= num_characters:
            found.append([])
            length = 0
        found[-1].append(unit)
        length += len(unit) + len(joint)
    if len(found) > 1 and length < num_characters / 2:
        rest = found.pop()
        found[-1] += rest
    return [joint.join(piece) for piece in found]


def spaceless_share(text: str) -> float:
    """The share of letters in scripts that are written without spaces."""
    counts = scripts(text)
    spaceless = sum(counts[code] for code in ("Hani", "Hira", "Kana", "Thai", "Laoo", "Khmr", "Mymr", "Tibt"))
    return spaceless / max(1, counts.total())


def scripts(text: str) -> Counter[str]:
    """Letters by script, as ISO 15924 codes."""
    counts: Counter[str] = Counter()
    for character, number in Counter(text).items():
        if character.isalpha():
            counts[_script(character)] += number
    return counts


@functools.lru_cache(maxsize=65536)
def _script(letter: str) -> str:
    full = unicodedata.name(letter, "UNKNOWN")
    name = full.removeprefix("FULLWIDTH ").removeprefix("HALFWIDTH ").split()[0]
    if name in ("FEMININE", "MASCULINE", "MODIFIER", "KELVIN", "ANGSTROM"):
        return "Latn"
    return _CODES.get(name, _OTHER)


def script(text: str) -> str:
    """The script of most letters: ISO 15924, with Jpan for Chinese characters among kana, Hans or Hant otherwise.

    A tie goes to the code that is first in the alphabet. ``Zyyy``: no letters.
    """
    counts = scripts(text)
    if not counts:
        return NO_SCRIPT
    kana = counts.pop("Hira", 0) + counts.pop("Kana", 0)
    han = counts.pop("Hani", 0)
    if han or kana:
        counts["Jpan" if kana * 10 > han else "Hani"] = han + kana
    code = min(counts, key=lambda one: (-counts[one], one))
    return _han_variant(text) if code == "Hani" else code


def _han_variant(text: str) -> str:
    """Hans or Hant by the characters that only one of GB 2312 and Big5 has; Hani where they are as many or none."""
    simplified = traditional = 0
    for character, number in Counter(text).items():
        in_gb, in_big5 = _encodes(character, "gb2312"), _encodes(character, "big5")
        simplified += number * (in_gb and not in_big5 and character >= "\u3400")
        traditional += number * (in_big5 and not in_gb and character >= "\u3400")
    if simplified == traditional:
        return "Hani"
    return "Hans" if simplified > traditional else "Hant"


@functools.lru_cache(maxsize=65536)
def _encodes(character: str, encoding: str) -> bool:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True
