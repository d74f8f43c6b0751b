"""How long a document is: characters, words, tokens."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from pretrain.data.labels import Value, labeller
from pretrain.data.scripts import words
from pretrain.data.tokens import backend_of


@labeller(version="2", files=("tokenizer",))
def length(texts: Sequence[str], *, tokenizer: str = "") -> list[Mapping[str, Value]]:
    """``length.characters``, ``length.words``, and with ``tokenizer`` (a folder) ``length.tokens``.

    Tokens are those of the text alone: no special token is added, and none is read in it.
    """
    found: list[dict[str, Value]] = [
        {"length.characters": len(text), "length.words": len(words(text))} for text in texts
    ]
    if tokenizer:
        for answer, ids in zip(found, encode(tokenizer, texts), strict=True):
            answer["length.tokens"] = len(ids)
    return list(found)


def encode(folder: str, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text alone; what looks like a special token is text."""
    return [list(encoding.ids) for encoding in _tokenizer(folder).encode_batch(list(texts), add_special_tokens=False)]


def token_id(folder: str, token: str) -> int | None:
    """The id of a token, or None where the tokenizer does not have it."""
    found = _tokenizer(folder).token_to_id(token)
    return None if found is None else int(found)


@functools.cache
def _tokenizer(folder: str) -> Any:
    from model.tokenizer import load_tokenizer

    return backend_of(load_tokenizer(folder))
