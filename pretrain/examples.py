"""Rows of a dataset as packed training examples: rendered, masked, checked before any worker starts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from model.chat import RenderError, Segment, answer_segments, encode_segments, render_segments
from rlplatform.config import DataConfig
from rlplatform.data import normalise
from rlplatform.datafiles import DataError, read_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Examples:
    """Training examples end to end, without padding. ``B`` rows, ``T`` tokens; row ``i`` is
    ``slice(cu_seqlens[i], cu_seqlens[i + 1])``."""

    token_ids: np.ndarray  # int32 [T]
    cu_seqlens: np.ndarray  # int64 [B + 1]
    loss_mask: np.ndarray  # bool [T], True where the token is a target; never a row's first token
    ids: tuple[str, ...]  # [B], names a row in every report

    def __post_init__(self) -> None:
        if not (len(self.token_ids) == len(self.loss_mask) == self.cu_seqlens[-1]):
            raise ValueError(
                f"Examples: expected {self.cu_seqlens[-1]} tokens as cu_seqlens say, got {len(self.token_ids)} "
                f"token_ids and {len(self.loss_mask)} loss_mask"
            )
        if len(self.ids) != len(self):
            raise ValueError(f"Examples: expected {len(self)} ids, one a row, got {len(self.ids)}")
        if self.loss_mask[self.cu_seqlens[:-1]].any():
            raise ValueError("Examples: a row's first token is a target; nothing before it could predict it")

    def __len__(self) -> int:
        return len(self.cu_seqlens) - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 [B], tokens."""
        return np.diff(self.cu_seqlens)

    @cached_property
    def loss_tokens(self) -> np.ndarray:
        """int64 [B], targets of each row."""
        return np.diff(np.concatenate(([0], np.cumsum(self.loss_mask)))[self.cu_seqlens])

    def fingerprint(self) -> str:
        """Changes with any token, mask bit or boundary."""
        digest = hashlib.blake2b(digest_size=16)
        for array in (self.token_ids, self.cu_seqlens, self.loss_mask):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def pack(rows: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> Examples:
    """(id, token_ids, loss_mask) of each row, end to end."""
    lengths = [len(token_ids) for _, token_ids, _ in rows]
    empty = [np.zeros(0, dtype=np.int32)], [np.zeros(0, dtype=np.bool_)]
    return Examples(
        token_ids=np.concatenate([token_ids for _, token_ids, _ in rows] or empty[0]).astype(np.int32),
        cu_seqlens=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
        loss_mask=np.concatenate([mask for _, _, mask in rows] or empty[1]),
        ids=tuple(row_id for row_id, _, _ in rows),
    )


def load_examples(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    completion: str = "completion",
    max_tokens: int,
    history: str = "kept",
    rows: Iterable[Mapping[str, Any]] | None = None,
) -> tuple[Examples, list[dict[str, Any]]]:
    """Read, render and encode ``rows``, or the dataset that ``config`` names.

    The prompt column holds messages that end with the assistant's, or a prompt (string or messages) whose target is
    the column ``completion``. With ``config.chat`` off prompt and completion are plain text, closed by eos. With
    ``history="template"`` every assistant turn is an example (``ID/TURN``), see ``model.chat.answer_segments``.

    Returns:
        The examples, and ``{"id", "tokens", "max_tokens"}`` of each example left out for its length.

    Raises:
        DataError: an unreadable row, a missing column, a conversation without assistant, or not one usable row.
    """
    source = read_rows(config) if rows is None else ((f"row {i}", dict(row)) for i, row in enumerate(rows, 1))
    kept: list[tuple[str, np.ndarray, np.ndarray]] = []
    dropped: list[dict[str, Any]] = []
    for index, (where, row) in enumerate(source):
        if config.limit and index >= config.limit:
            break
        row_id = str(row.get("id", f"{config.split}-{index}"))
        try:
            renderings = _renderings(row, where, config, tokenizer, completion, history)
            encoded = [encode_segments(tokenizer, segments) for segments in renderings]
        except RenderError as error:
            raise DataError(f"{where}: column {config.prompt!r}: {error}") from error
        for turn, (token_ids, mask) in enumerate(encoded):
            name = row_id if history == "kept" else f"{row_id}/{turn}"
            if len(token_ids) > max_tokens:
                dropped.append({"id": name, "tokens": len(token_ids), "max_tokens": max_tokens})
                continue
            if mask[0]:
                raise DataError(f"{where}: expected a prompt before the completion, got none")
            kept.append((name, token_ids, mask))
    if not kept:
        shortest = f"; the shortest has {min(d['tokens'] for d in dropped)} tokens" if dropped else ""
        raise DataError(
            f"{config.path or 'rows'}: expected at least one row of at most max_tokens={max_tokens} tokens, got none "
            f"({len(dropped)} were too long{shortest})"
        )
    return pack(kept), dropped


def _renderings(
    row: Mapping[str, Any],
    where: str,
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    completion: str,
    history: str,
) -> list[list[Segment]]:
    """The segments of each example of a row."""
    prompt, columns = normalise(row, where, config)
    if not config.chat:
        if not isinstance(prompt, str):
            raise DataError(f"{where}: column {config.prompt!r}: chat is off, expected a string, got {prompt!r:.60}")
        target = Segment(_target(columns, completion, where) + tokenizer.eos_token, trained=True)
        return [[Segment(prompt, trained=False), target]]
    if isinstance(prompt, str):
        system = [{"role": "system", "content": config.system}] if config.system else []
        messages = [*system, {"role": "user", "content": prompt}]
    elif isinstance(prompt, Sequence) and prompt and all(isinstance(m, Mapping) and "role" in m for m in prompt):
        messages = [dict(message) for message in prompt]
    else:
        raise DataError(
            f"{where}: column {config.prompt!r}: expected a string or a list of messages with a role, "
            f"got {str(prompt)[:60]!r} ({type(prompt).__name__})"
        )
    if messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": _target(columns, completion, where)})
    tools = columns.get("tools")
    if history == "template":
        return answer_segments(tokenizer, messages, tools=tools, enable_thinking=config.enable_thinking)
    return [render_segments(tokenizer, messages, tools=tools, enable_thinking=config.enable_thinking)]


def _target(columns: Mapping[str, Any], completion: str, where: str) -> str:
    value = columns.get(completion)
    if not isinstance(value, str):
        raise DataError(
            f"{where}: expected the target text in column {completion!r} (or messages that end with the assistant's), "
            f"got {value!r:.60}; columns there: {sorted(columns)}"
        )
    return value
