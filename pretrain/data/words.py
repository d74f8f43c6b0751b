r"""Words with their places in the text, and hashes of n-grams of words: what duplicates and contamination stand on.

A word is a run of letters and digits; signs are none. In scripts without spaces between words (Chinese, Japanese, Thai,
Lao, Khmer, Burmese) every character is a word, since there is nothing to split at. Words are compared in NFKC and
case-folded: ``ﬁne`` is ``fine``. Combining marks belong to the letter before them, and characters that nobody sees
(soft hyphens, joiners, spaces of no width) are none.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]

# Thai, Lao; Burmese; Khmer; kana, CJK with extension A; compatibility ideographs; halfwidth kana; extensions B to H.
_SPACELESS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f"
    "\U00020000-\U000323af"
)
_MARKS = "".join(  # accents written apart and vowel signs: letters to a reader, not to \w
    chr(code) for code in range(0x300, 0x3000) if unicodedata.category(chr(code)) in ("Mn", "Mc")
)
_HIDDEN = "\u00ad\u200b-\u200d\u2060\ufeff"  # hyphens that show at a line's end alone, joiners, breaks of no width
_WORD = re.compile(rf"[{_SPACELESS}]|(?:[^\W_{_SPACELESS}]|[{_MARKS}])(?:[^\W_{_SPACELESS}]|[{_MARKS}{_HIDDEN}])*")
_UNSEEN = re.compile(f"[{_HIDDEN}]+")
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd: multiplying by it loses nothing modulo 2**64


@dataclass(frozen=True)
class Words:
    """The words of one text. Lengths W."""

    hashes: Hashes  # [W] 64 bits of BLAKE2b of the folded word
    starts: Places  # [W] character at which each begins
    ends: Places  # [W] and the character after its last

    def __len__(self) -> int:
        return len(self.hashes)


def fold(word: str) -> str:
    """The form in which words are compared."""
    return unicodedata.normalize("NFKC", _UNSEEN.sub("", word)).casefold()


@lru_cache(maxsize=1 << 17)  # of a text's words most have been seen before
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(fold(word).encode(), digest_size=8).digest(), "little")


def words(text: str) -> Words:
    """All words of a text, in order.

    >>> text = "Don't stop, 世界!"
    >>> found = words(text)
    >>> [text[a:b] for a, b in zip(found.starts, found.ends)]
    ['Don', 't', 'stop', '世', '界']
    """
    hashes, starts, ends = [], [], []
    for match in _WORD.finditer(text):
        hashes.append(_word_hash(match[0]))
        starts.append(match.start())
        ends.append(match.end())
    return Words(np.array(hashes, np.uint64), np.array(starts, np.int64), np.array(ends, np.int64))


def gram_hashes(words: Hashes, n: int) -> Hashes:
    """A 64-bit hash of every n-gram of words, in order: [W - n + 1]; none where there are fewer than n words.

    The sum of ``h[k + i] * B**i`` modulo 2**64 (``h`` random 64-bit hashes, ``B`` odd), then mixed: two different
    n-grams share a hash with a probability of about 2**-64.

    Raises:
        ValueError: n below 1.
    """
    if n < 1:
        raise ValueError(f"expected n-grams of at least 1 word, got {n}")
    length = len(words) - n + 1
    if length < 1:
        return np.empty(0, np.uint64)
    total, power = np.zeros(length, np.uint64), np.uint64(1)
    with np.errstate(over="ignore"):
        for i in range(n):
            total += words[i : i + length] * power
            power = power * _BASE
    return mix(total)


def mix(values: Hashes) -> Hashes:
    """The finaliser of SplitMix64: every bit of the answer depends on every bit of the value."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def shingles(text: str, n: int) -> Hashes:
    """The set of a text's n-grams of words as sorted hashes; a text of 1 to n - 1 words is one gram by itself."""
    found = words(text).hashes
    return np.unique(gram_hashes(found, min(n, len(found)))) if len(found) else np.empty(0, np.uint64)


def jaccard(a: Hashes, b: Hashes) -> float:
    """Shared / all of two sorted sets; 0 where both are empty."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    union = len(a) + len(b) - shared
    return shared / union if union else 0.0


def exact_key(text: str) -> bytes:
    """16 bytes of BLAKE2b of the text folded, with runs of white space as one space and none at the ends.

    Signs count: ``7 + 2`` and ``7 - 2`` are different texts.
    """
    return hashlib.blake2b(" ".join(fold(text).split()).encode(), digest_size=16).digest()
