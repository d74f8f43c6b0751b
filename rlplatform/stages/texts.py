"""Words, n-grams and seeded ranks: what several filters stand on."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

# Scripts without spaces between words: each character is a word. Unlike rewards.text.tokens, signs count as well:
# 347 + 285 and 347 - 285 are two questions.
_CHARACTER = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_PIECE = re.compile(rf"[{_CHARACTER}]|[^\W{_CHARACTER}]+|[^\w\s]")

Gram = tuple[str, ...]


def pieces(text: str) -> list[str]:
    """Words and signs, in lower case (NFKC, case-folded)."""
    return _PIECE.findall(unicodedata.normalize("NFKC", text).casefold())


def grams(text: str, n: int) -> frozenset[Gram]:
    """The n-grams of ``pieces``; a shorter text is one gram by itself, an empty one has none."""
    words = pieces(text)
    if len(words) <= n:
        return frozenset([tuple(words)] if words else [])
    return frozenset(tuple(words[k : k + n]) for k in range(len(words) - n + 1))


def jaccard(a: frozenset[Gram], b: frozenset[Gram]) -> float:
    """Shared grams / all grams; 0 where both are empty."""
    union = len(a | b)
    return len(a & b) / union if union else 0.0


def prompt_text(row: Mapping[str, Any]) -> str:
    """The question as one text: column ``prompt``, a string or messages, of which the users' are joined.

    Raises:
        ValueError: neither.
    """
    prompt = row.get("prompt")
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Sequence) and all(
        isinstance(m, Mapping) and isinstance(m.get("content"), str) for m in prompt
    ):
        return "\n".join(message["content"] for message in prompt if message.get("role") == "user")
    raise ValueError(f"row {row.get('id')!r}: expected prompt to be a string or messages, got {prompt!r:.60}")


def same_question(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Equal for two rows that ask the same, but for case, spaces and Unicode's ways to write one character."""
    return tuple(pieces(prompt_text(row)))


def rank(seed: int, *names: object) -> int:
    """A number that depends on the seed and the names alone: sorting by it is a shuffle that survives added rows."""
    return int.from_bytes(hashlib.blake2b(repr((seed, *names)).encode(), digest_size=8).digest(), "big")
