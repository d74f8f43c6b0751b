"""``rlplatform tokens render``: conversations and texts of a file as text, token ids and loss mask.

An input row has ``messages``, and optionally ``tools``, ``add_generation_prompt`` and ``kwargs`` (variables of the chat
template, e.g. ``enable_thinking``); or it has ``text`` alone. The output row is the input row plus ``text``,
``token_ids`` and ``loss_mask``. Beside the output lies ``OUT.meta.json``, which names the tokenizer.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from rlplatform.config import ConfigError
from rlplatform.datafiles import DataError, read_jsonl
from rlplatform.servable import tokenizer_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from model.chat import Difference, Segment
    from model.turns import Conversation

MAX_SHOWN = 20  # differences and notes that ``render`` prints


@dataclass(frozen=True)
class Rendered:
    """One row as a model sees it. ``T`` tokens."""

    text: str
    token_ids: np.ndarray  # int32 [T]
    loss_mask: np.ndarray  # bool [T], True where the token is trained
    differences: tuple[Difference, ...] = ()  # to the template's own rendering; of the training rendering only
    notes: tuple[str, ...] = ()  # what a person should know about the row

    def __post_init__(self) -> None:
        if len(self.token_ids) != len(self.loss_mask):
            raise ValueError(f"expected one mask bit a token, got {len(self.loss_mask)} for {len(self.token_ids)}")


def render_row(tokenizer: PreTrainedTokenizerBase, row: Mapping[str, Any], where: str, *, training: bool) -> Rendered:
    """Render and encode one row.

    ``training`` picks the rendering of ``model.chat.render_segments``, encoded stretch by stretch, with an exact mask.
    Without it the row is what the tokenizer's template writes, encoded in one go; the mask is then what of the
    assistant's text stands in it. A bare text says of no token that it is trained: its mask is False throughout.

    Raises:
        DataError: naming ``where`` (file and line), what was expected and what came.
    """
    from model.messages import RenderError

    if row.get("messages") is None:
        return _encode_text(tokenizer, row, where)
    tools, prompt, kwargs = _options(row, where)
    unread = [name for name in kwargs if not re.search(rf"\b{re.escape(name)}\b", str(tokenizer.chat_template))]
    try:
        render = _training if training else _stock
        rendered = render(tokenizer, row["messages"], tools, prompt, kwargs)
    except RenderError as error:
        raise DataError(f"{where}: {error}") from error
    if unread:
        note = f"kwargs: the chat template does not read {', '.join(unread)}"
        rendered = replace(rendered, notes=(*rendered.notes, note))
    return rendered


def _encode_text(tokenizer: PreTrainedTokenizerBase, row: Mapping[str, Any], where: str) -> Rendered:
    text = row.get("text")
    if not isinstance(text, str):
        columns = ", ".join(row) or "no columns"
        got = f"text of type {type(text).__name__}" if "text" in row else f"a row with {columns}"
        raise DataError(f"{where}: expected `messages` (a list), or `text` (a string), got {got}")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return Rendered(text, np.array(ids, dtype=np.int32), np.zeros(len(ids), dtype=np.bool_))


def _options(row: Mapping[str, Any], where: str) -> tuple[Any, bool, dict[str, Any]]:
    prompt = row.get("add_generation_prompt")
    if prompt not in (True, False, None):
        raise DataError(f"{where}: add_generation_prompt: expected true or false, got {prompt!r}")
    kwargs = row.get("kwargs")
    if not (kwargs is None or isinstance(kwargs, Mapping)):
        raise DataError(f"{where}: kwargs: expected an object of template variables, got {kwargs!r:.60}")
    return row.get("tools"), bool(prompt), dict(kwargs or {})


def _training(
    tokenizer: PreTrainedTokenizerBase, messages: Any, tools: Any, prompt: bool, kwargs: dict[str, Any]
) -> Rendered:
    from model.chat import differences, encode_segments, training_segments
    from model.turns import Conversation
    from rewards.response import OPEN, parse

    thinking = kwargs.pop("enable_thinking", None)
    conversation = Conversation(
        tokenizer,
        messages,
        tools=tools,
        enable_thinking=True if thinking is None else thinking,
        add_generation_prompt=prompt,
        template_kwargs=kwargs,
    )
    segments = training_segments(conversation)
    token_ids, mask = encode_segments(tokenizer, segments)
    text = _joined(segments)
    notes: tuple[str, ...] = ()
    if not conversation.turns:
        notes += ("no assistant message: nothing of it is trained",)
    notes += tuple(
        f"message {turn.message}: the think block is not closed, and the end of the turn after it is trained"
        for turn in conversation.turns
        if not parse(turn.text, opened=turn.before.rstrip().endswith(OPEN)).finished
    )
    notes += tuple(
        f"message {turn.message}: its text holds {conversation.end!r}, where the model will stop"
        for turn in conversation.turns
        if conversation.end in turn.text
    )
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    if whole != token_ids.tolist():
        notes += (
            f"{len(token_ids)} tokens, {len(whole)} if the text is encoded in one go: prompt and completion are "
            "encoded apart, as they are when the model samples",
        )
    return Rendered(text, token_ids, mask, tuple(differences(conversation)), notes)


def _stock(
    tokenizer: PreTrainedTokenizerBase, messages: Any, tools: Any, prompt: bool, kwargs: dict[str, Any]
) -> Rendered:
    from model.chat import Segment, encode_whole, render_chat
    from model.messages import RenderError
    from model.turns import Conversation

    notes: tuple[str, ...] = ()
    text = render_chat(tokenizer, messages, tools=tools, add_generation_prompt=prompt, template_kwargs=kwargs)
    thinking = kwargs.pop("enable_thinking", None)
    if not isinstance(thinking, bool | None):
        notes += (f"enable_thinking={thinking!r} is neither true nor false; Qwen3's template takes it for true",)
    segments = [Segment(text, trained=False)]
    spoken = [{**message, "content": message.get("content") or ""} for message in messages]  # None is shown like ""
    try:
        conversation = Conversation(
            tokenizer,
            spoken,
            tools=tools,
            enable_thinking=thinking is not False,
            add_generation_prompt=prompt,
            template_kwargs=kwargs,
        )
        segments = _segments_of(conversation, text)
    except RenderError as error:
        notes += (f"loss_mask is false throughout: {error}",)
    token_ids, mask = encode_whole(tokenizer, segments)
    return Rendered(text, token_ids, mask, notes=notes)


def _segments_of(conversation: Conversation, text: str) -> list[Segment]:
    from model.chat import stock_segments
    from model.messages import RenderError

    segments = stock_segments(conversation)
    if _joined(segments) != text:
        raise RenderError(
            "the template writes something else when enable_thinking, or content that is absent, is given"
        )
    return segments


def _joined(segments: list[Segment]) -> str:
    return "".join(segment.text for segment in segments)


# --- files ----------------------------------------------------------------------------------------------------------


def render_file(tokenizer_name: str, data: Path, out: Path, *, training: bool) -> None:
    """Render ``data`` (JSONL, gzipped or not) into ``out`` and print what came of it.

    Raises:
        ConfigError: a tokenizer that does not load, or a row that cannot be rendered, by file and line; ``out`` is
            then as it was before.
    """
    if not data.is_file():
        raise DataError(f"{data}: no such file")
    tokenizer = tokenizer_of(tokenizer_name)
    rows = tokens = trained = untrained_rows = 0
    remarks: list[str] = []
    with _replacing(out) as file:
        for where, row in read_jsonl(data):
            rendered = render_row(tokenizer, row, where, training=training)
            added = {
                "text": rendered.text,
                "token_ids": rendered.token_ids.tolist(),
                "loss_mask": rendered.loss_mask.tolist(),
            }
            file.write(json.dumps({**row, **added}, ensure_ascii=False) + "\n")
            rows += 1
            tokens += len(rendered.token_ids)
            trained += int(rendered.loss_mask.sum())
            untrained_rows += not rendered.loss_mask.any()
            remarks += [f"{where}: message {d.message}: {d.reason}" for d in rendered.differences]
            remarks += [f"{where}: {note}" for note in rendered.notes]
        if not rows:
            raise DataError(f"{data}: expected at least one row, got an empty file")
    about = {"tokenizer": _lasting(tokenizer_name), "rendering": "training" if training else "template"}
    meta_file(out).write_text(json.dumps(about) + "\n", encoding="utf-8")
    for remark in remarks[:MAX_SHOWN]:
        print(remark)
    if len(remarks) > MAX_SHOWN:
        print(f"... and {len(remarks) - MAX_SHOWN} more; `rlplatform tokens show {out}` shows them row by row")
    print(
        f"{out}: {rows} rows, {tokens} tokens, {trained} trained ({trained / max(tokens, 1):.1%})"
        + (f"; {untrained_rows} rows without a trained token" if untrained_rows else "")
    )


def meta_file(out: Path) -> Path:
    """Beside a rendered file: with which tokenizer it was made."""
    return out.with_name(out.name + ".meta.json")


def _lasting(name: str) -> str:
    return str(Path(name).resolve()) if Path(name).is_dir() else name


@contextmanager
def _replacing(path: Path) -> Iterator[IO[str]]:
    """Write beside ``path`` and put it in place at the end; an error leaves what was there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise ConfigError(f"--out {path}: cannot be written: {error}") from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            yield file
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
