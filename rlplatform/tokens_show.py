"""``rlplatform tokens show``: a conversation's tokens by role and mask, in colour on a terminal, a table elsewhere."""

from __future__ import annotations

import contextlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.text import Text

from rlplatform.config import ConfigError, DataConfig
from rlplatform.datafiles import DataError, read_json, read_rows
from rlplatform.servable import tokenizer_of
from rlplatform.tokens import Rendered, meta_file, render_row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_TOKENIZER = "Qwen/Qwen3-0.6B"
COLOURS = {"system": "cyan", "user": "blue", "tool": "magenta", "assistant": "green", "prompt": "blue", "text": ""}
TRAINED = "bold reverse"


def show_file(
    file: Path,
    *,
    tokenizer: str = "",
    stock: bool = False,
    line: int | None = None,
    rows: int = 1,
    console: Console | None = None,
) -> None:
    """Print ``rows`` rows of ``file``, from the first or from row ``line`` (counted from 1) on.

    A row is a conversation or a text as ``rlplatform tokens render`` takes it, one that it wrote (shown as stored), or
    a rollout of a run. Conversations are rendered for training, or with ``stock`` as the tokenizer's template has it.

    Raises:
        ConfigError: no such file or row, a row that cannot be rendered, or no tokenizer.
    """
    console = console or Console()
    if not file.is_file():
        raise DataError(f"{file}: no such file")
    name = tokenizer or _nearby_tokenizer(file)
    try:
        loaded = tokenizer_of(name)
    except ConfigError as error:
        raise error if tokenizer else ConfigError(f"{error}; give --tokenizer, a folder or hub id") from error
    shown = 0
    first = line or 1
    for number, (where, row) in enumerate(_rows(file), 1):
        if number < first:
            continue
        if shown == rows:
            break
        _show(console, loaded, where, row, stock)
        shown += 1
    if not shown:
        raise DataError(f"{file}: expected at least {first} rows, so that row {first} can be shown")
    console.print(f"tokenizer: {name}", highlight=False, soft_wrap=True)


def _nearby_tokenizer(file: Path) -> str:
    """What the rendered file says; else a tokenizer beside the file or in its run folder; else Qwen3's from the hub."""
    meta = meta_file(file)
    if meta.is_file():
        try:
            return str(json.loads(meta.read_text(encoding="utf-8"))["tokenizer"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ConfigError(f"{meta}: expected a JSON object with `tokenizer`; give --tokenizer") from error
    here = file.resolve().parent
    for folder in (here, here / "tokenizer", here.parent / "model"):
        if (folder / "tokenizer.json").is_file():
            return str(folder)
    return DEFAULT_TOKENIZER


def _rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, row); a JSON file may hold one row, or one conversation as a list of messages."""
    if file.suffix != ".json":
        yield from read_rows(DataConfig(path=str(file)))
        return
    value = read_json(file, f"{file}: expected a JSON row or list of messages")
    if isinstance(value, list) and value and all(isinstance(item, dict) and "role" in item for item in value):
        value = {"messages": value}
    for number, row in enumerate(value if isinstance(value, list) else [value], 1):
        if not isinstance(row, dict):
            raise DataError(f"{file}: expected a JSON row or list of messages, got {type(row).__name__}")
        yield f"{file} row {number}", row


# --- one row --------------------------------------------------------------------------------------------------------


def _show(console: Console, tokenizer: PreTrainedTokenizerBase, where: str, row: dict[str, Any], stock: bool) -> None:
    rendered = _stored(tokenizer, row, where) if "token_ids" in row else None
    if rendered is None:
        rendered = render_row(tokenizer, row, where, training=not stock)
    roles = token_roles(tokenizer, rendered)
    console.print(Text(_summary(where, rendered, roles)), soft_wrap=True)
    for note in rendered.notes:
        console.print(Text(f"note: {note}"), soft_wrap=True)
    for difference in rendered.differences:
        reason = f"differs from the template, message {difference.message}: {difference.reason}"
        console.print(Text(reason), soft_wrap=True)
        console.print(Text(f"  here:     {difference.training!r}"), soft_wrap=True)
        console.print(Text(f"  template: {difference.stock!r}"), soft_wrap=True)
    pieces = token_texts(tokenizer, rendered.token_ids)
    if console.is_terminal:
        console.print(_legend(roles))
        console.print(_coloured(pieces, roles, rendered.loss_mask), soft_wrap=True)
        return
    print_table(console, rendered, roles, pieces)


def print_table(console: Console, rendered: Rendered, roles: Sequence[str], pieces: Sequence[str]) -> None:
    console.print(f"{'place':>6} {'id':>7}  {'role':<9}  {'mask':<7}  token", soft_wrap=True, highlight=False)
    for place, (token, role, piece) in enumerate(zip(rendered.token_ids, roles, pieces, strict=True)):
        mask = "trained" if rendered.loss_mask[place] else "-"
        line = f"{place:>6} {token:>7}  {role:<9}  {mask:<7}  {piece!r}"
        console.print(Text(line), soft_wrap=True)


def _summary(where: str, rendered: Rendered, roles: Sequence[str]) -> str:
    total, trained = len(roles), int(rendered.loss_mask.sum())
    by_role = ", ".join(f"{role} {count}" for role, count in Counter(roles).items())
    return f"{where}: {total} tokens, {trained} trained ({trained / max(total, 1):.1%}); {by_role}"


def _legend(roles: Sequence[str]) -> Text:
    legend = Text("legend: ")
    for role in dict.fromkeys(roles):
        legend.append(role, style=COLOURS.get(role, "")).append("  ")
    legend.append("trained", style=TRAINED).append("  every second token underlined")
    return legend


def _coloured(pieces: Sequence[str], roles: Sequence[str], mask: np.ndarray) -> Text:
    text = Text()
    for place, (piece, role) in enumerate(zip(pieces, roles, strict=True)):
        style = " ".join(
            part for part in (COLOURS.get(role, ""), TRAINED * bool(mask[place]), "underline" * (place % 2)) if part
        )
        text.append(piece.replace("\n", "⏎\n"), style=style)
    return text


def _stored(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any], where: str) -> Rendered:
    """A row that holds its tokens: what ``tokens render`` wrote, or a run's rollout."""
    ids, mask = row["token_ids"], row.get("loss_mask")
    if not isinstance(ids, list) or not isinstance(mask, list) or len(ids) != len(mask):
        raise DataError(f"{where}: expected token_ids and loss_mask, lists of one length")
    if not all(type(token) is int and -(2**31) <= token < 2**31 for token in ids):
        raise DataError(f"{where}: expected token_ids to be whole numbers of 32 bits")
    if not all(isinstance(trained, bool) for trained in mask):
        raise DataError(f"{where}: expected loss_mask to be true or false throughout")
    prompt: list[int] = []
    text = row.get("text")
    if isinstance(row.get("prompt"), str) and isinstance(row.get("completion"), str):  # a rollout
        prompt, text = tokenizer(row["prompt"], add_special_tokens=False)["input_ids"], None
    elif isinstance(text, str) and (
        not all(0 <= token < len(tokenizer) for token in ids) or _nfc(tokenizer.decode(ids)) != _nfc(text)
    ):
        raise DataError(f"{where}: token_ids are not this tokenizer's encoding of `text`; give --tokenizer")
    rendered = Rendered(
        text or "",
        np.array([*prompt, *ids], dtype=np.int32),
        np.array([*[False] * len(prompt), *mask], dtype=np.bool_),
    )
    if row.get("messages") is None or not text:
        return rendered
    with contextlib.suppress(DataError):  # it was rendered otherwise
        fresh = render_row(tokenizer, row, where, training=True)
        if fresh.text == text:
            return replace(rendered, differences=fresh.differences, notes=fresh.notes)
    return rendered


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


# --- tokens ---------------------------------------------------------------------------------------------------------


def token_roles(tokenizer: PreTrainedTokenizerBase, rendered: Rendered) -> list[str]:
    """The role of every token.

    Where the tokenizer has ``<|im_start|>`` and ``<|im_end|>`` the turns are read off the tokens, as the model reads
    them; what stands between ``<tool_response>`` tags is the tool's. Elsewhere trained tokens are the assistant's and
    the others the prompt's.
    """
    ids = rendered.token_ids.tolist()
    added = tokenizer.get_added_vocab()
    start, end = added.get("<|im_start|>"), added.get("<|im_end|>")
    if start is None or end is None or start not in ids:
        if rendered.loss_mask.any():
            return ["assistant" if trained else "prompt" for trained in rendered.loss_mask]
        return ["text"] * len(ids)
    opened, closed = added.get("<tool_response>"), added.get("</tool_response>")
    roles: list[str] = []
    role, in_tool = "text", False
    for place, token in enumerate(ids):
        if token == start:
            head = "".join(token_texts(tokenizer, rendered.token_ids[place + 1 : place + 8]))
            named = re.match(r"[a-z_]{1,20}(?=\n)", head)
            role, in_tool = named[0] if named else "text", False
        in_tool = in_tool or token == opened
        roles.append("tool" if in_tool and role == "user" else role)
        if token in (closed, end):
            in_tool = False
    return roles


def token_texts(tokenizer: PreTrainedTokenizerBase, token_ids: np.ndarray) -> list[str]:
    """The text of each token; bytes that are no whole character are written ``<0xE4>``.

    A model samples ids beyond the vocabulary too, where its embedding has more rows: ``<id 318>``.
    """
    texts = []
    for token in token_ids.tolist():
        if not 0 <= token < len(tokenizer):
            texts.append(f"<id {token}>")
            continue
        text = tokenizer.decode([token])
        if "\ufffd" in text:
            raw = tokenizer.convert_ids_to_tokens(token)
            if all(character in _BYTES for character in raw):
                text = bytes(_BYTES[character] for character in raw).decode("utf-8", "surrogateescape")
                text = "".join(f"<0x{ord(c) - 0xDC00:02X}>" if 0xDC80 <= ord(c) <= 0xDCFF else c for c in text)
        texts.append(text)
    return texts


def _byte_characters() -> dict[str, int]:
    """The characters that byte-level BPE writes for bytes: printable ones as they are, the others from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTES = _byte_characters()
