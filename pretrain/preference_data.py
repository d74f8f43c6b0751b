"""Rows of preferences as pairs of packed conversations: read, rendered, checked before any worker starts.

A row is one of

    {"prompt": str | messages, "chosen": str | messages, "rejected": str | messages}
    {"chosen": messages, "rejected": messages}                    the prompt is what both begin with
    {"conversations": [{"from": "human", "value": ...}], "chosen": {"from": "gpt", "value": ...}, "rejected": ...}

The second is TRL's implicit prompt, the third LLaMA-Factory's (with ``data.prompt: conversations``).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from model.messages import RenderError
from pretrain.examples import Examples, pack
from rlplatform.config import DataConfig
from rlplatform.data import normalise
from rlplatform.datafiles import DataError, read_rows
from rlplatform.preference_text import RewardText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EQUAL, TOO_LONG = "chosen and rejected are equal", "too long"
SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
Messages = list[dict[str, Any]]
Side = tuple[np.ndarray, np.ndarray, int]  # token ids, targets, tokens of the last turn


@dataclass(frozen=True)
class Pairs:
    """``P`` pairs: rows ``2 i`` (chosen) and ``2 i + 1`` (rejected) of ``examples``. For a reward model the only target
    is the last token, where the score is read; for DPO every token of the assistant's."""

    examples: Examples  # 2 P rows
    margins: np.ndarray  # float32 [P], by how much the chosen score should be higher, at the least
    completion_tokens: np.ndarray  # int64 [2 P], of the last turn, its end token included

    def __post_init__(self) -> None:
        if len(self.examples) != 2 * len(self.margins) or len(self.completion_tokens) != 2 * len(self.margins):
            raise ValueError(
                f"Pairs: expected 2 rows a margin, got {len(self.margins)} margins, {len(self.examples)} rows and "
                f"{len(self.completion_tokens)} lengths of completions"
            )

    def __len__(self) -> int:
        return len(self.margins)

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 [P], tokens of both conversations."""
        total: np.ndarray = self.examples.lengths.reshape(-1, 2).sum(axis=1)
        return total

    @cached_property
    def ids(self) -> tuple[str, ...]:
        return tuple(row_id.removesuffix("/chosen") for row_id in self.examples.ids[::2])

    def fingerprint(self) -> str:
        """Changes with any token, boundary or margin."""
        return hashlib.blake2b(
            self.examples.fingerprint().encode() + self.margins.tobytes(), digest_size=16
        ).hexdigest()


@dataclass(frozen=True)
class PairColumns:
    """Where a row keeps what."""

    chosen: str = "chosen"
    rejected: str = "rejected"
    margin: str = ""  # "" = the constant
    constant_margin: float = 0.0


def load_pairs(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    text: RewardText,
    columns: PairColumns,
    rows: Iterable[Mapping[str, Any]] | None = None,
    select: Callable[[str], bool] = lambda prompt: True,
) -> tuple[Pairs, list[dict[str, Any]]]:
    """Read and render ``rows``, or the dataset that ``config`` names.

    Args:
        select: is asked for each row's prompt (as JSON) whether the row belongs here.

    Returns:
        The pairs, and ``{"id", "why", "tokens", "max_tokens"}`` of each row left out: its longer conversation has more
        than ``text.max_tokens`` tokens, or chosen and rejected are the same conversation.

    Raises:
        DataError: an unreadable row, a missing column, or not one usable row.
    """

    def write(prompt: str | Messages, answer: str | Messages, tools: Any) -> Side:
        written = text.write(tokenizer, prompt, answer, tools=tools)
        last = np.arange(len(written.token_ids)) == len(written.token_ids) - 1
        return written.token_ids, last, written.completion_tokens

    return read_pairs(config, write, columns=columns, max_tokens=text.max_tokens, rows=rows, select=select)


def read_pairs(
    config: DataConfig,
    write: Callable[[str | Messages, str | Messages, Any], Side],
    *,
    columns: PairColumns,
    max_tokens: int,
    rows: Iterable[Mapping[str, Any]] | None = None,
    select: Callable[[str], bool] = lambda prompt: True,
) -> tuple[Pairs, list[dict[str, Any]]]:
    """``load_pairs`` with ``write(prompt, answer, tools)`` saying how a conversation becomes tokens and targets."""
    source = read_rows(config) if rows is None else ((f"row {i}", dict(row)) for i, row in enumerate(rows, 1))
    kept: list[tuple[str, list[Side], float]] = []
    dropped: list[dict[str, Any]] = []
    for index, (where, row) in enumerate(source):
        if config.limit and index >= config.limit:
            break
        row_id = str(row.get("id", f"{config.split}-{index}"))
        prompt, answers, margin, tools = read_pair(row, where, config, columns)
        if not select(json.dumps(prompt, sort_keys=True, default=str)):
            continue
        try:
            sides = [write(prompt, answer, tools) for answer in answers]
        except RenderError as error:
            raise DataError(f"{where}: {error}") from error
        tokens = max(len(token_ids) for token_ids, _, _ in sides)
        equal = np.array_equal(sides[0][0], sides[1][0])
        if equal or tokens > max_tokens:
            why = EQUAL if equal else TOO_LONG
            dropped.append({"id": row_id, "why": why, "tokens": tokens, "max_tokens": max_tokens})
            continue
        kept.append((row_id, sides, margin))
    if not kept:
        reasons = ", ".join(f"{sum(d['why'] == why for d in dropped)} {why}" for why in (TOO_LONG, EQUAL))
        raise DataError(
            f"{config.path or 'rows'}: expected at least one pair of two different conversations of at most "
            f"max_tokens={max_tokens} tokens, got none ({reasons})"
        )
    return _pack(kept), dropped


def _pack(pairs: Sequence[tuple[str, Sequence[Side], float]]) -> Pairs:
    rows = [
        (f"{row_id}/{name}", token_ids, mask)
        for row_id, sides, _ in pairs
        for name, (token_ids, mask, _) in zip(("chosen", "rejected"), sides, strict=True)
    ]
    return Pairs(
        examples=pack(rows),
        margins=np.array([margin for *_, margin in pairs], dtype=np.float32),
        completion_tokens=np.array([length for _, sides, _ in pairs for *_, length in sides], dtype=np.int64),
    )


def held_out(prompt: str, *, seed: int, share: float) -> bool:
    """Does the row with this prompt belong to the held-out ``share``? All rows of one prompt are on one side."""
    digest = hashlib.blake2b(f"{seed}/{prompt}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


# --- one row --------------------------------------------------------------------------------------------------------


def read_pair(
    row: Mapping[str, Any], where: str, config: DataConfig, names: PairColumns
) -> tuple[str | Messages, tuple[str | Messages, str | Messages], float, Any]:
    """(prompt, (chosen, rejected), margin, tools). Raises DataError: a column is missing or holds something else."""
    implicit = config.prompt not in row and "." not in config.prompt
    value, columns = normalise({**row, config.prompt: ""} if implicit else row, where, config)
    for name in (names.chosen, names.rejected):
        if name not in columns:
            raise DataError(f"{where}: column {name!r} is missing; columns there: {sorted(row)}")
    chosen, rejected = (_text(columns[name], where, name) for name in (names.chosen, names.rejected))
    if implicit:
        value, chosen, rejected = _split(chosen, rejected, where, config.prompt)
    prompt = _text(value, where, config.prompt)
    if isinstance(prompt, list) and prompt and prompt[-1]["role"] == "assistant":
        raise DataError(
            f"{where}: column {config.prompt!r}: expected a prompt, got messages that end with the assistant's"
        )
    margin: Any = columns.get(names.margin) if names.margin else names.constant_margin
    if isinstance(margin, bool) or not isinstance(margin, (int, float)) or not math.isfinite(margin):
        raise DataError(f"{where}: column {names.margin!r}: expected a finite number as margin, got {margin!r:.60}")
    return prompt, (chosen, rejected), float(margin), columns.get("tools")


def _split(chosen: Any, rejected: Any, where: str, prompt: str) -> tuple[Messages, Messages, Messages]:
    """Two whole conversations: the prompt is all but the last message, and it is the same in both."""
    whole = isinstance(chosen, list) and isinstance(rejected, list)
    if not whole or len(chosen) < 2 or chosen[:-1] != rejected[:-1]:
        raise DataError(
            f"{where}: column {prompt!r} is missing, so chosen and rejected must be whole conversations that differ in "
            "the last message only; they are not"
        )
    return chosen[:-1], chosen[-1:], rejected[-1:]


def _text(value: Any, where: str, column: str) -> str | Messages:
    """A string as it is; one message or a list of them as messages with role and content."""
    if isinstance(value, str):
        return value
    listed = [value] if isinstance(value, Mapping) else value
    if isinstance(listed, Sequence) and listed and all(isinstance(message, Mapping) for message in listed):
        return [_message(message, where, column) for message in listed]
    raise DataError(
        f"{where}: column {column!r}: expected a string or messages, got {str(value)[:60]!r} ({type(value).__name__})"
    )


def _message(message: Mapping[str, Any], where: str, column: str) -> dict[str, Any]:
    if "role" in message:
        return dict(message)
    speaker, value = message.get("from"), message.get("value")
    if speaker not in SPEAKERS or not isinstance(value, str):
        raise DataError(
            f"{where}: column {column!r}: expected messages with role and content, or with from "
            f"({', '.join(SPEAKERS)}) and value, got {str(dict(message))[:80]}"
        )
    return {"role": SPEAKERS[speaker], "content": value}
