"""Documents to packed tokens: tokenised, joined by ``<|endoftext|>``, laid into rows. Ray Data, a shard at a time.

    documents-*.parquet ─ tokenise ─ order(seed, shard) ─ pack ─► full rows: tokens-*.npy ...
    copies-*.npy (a mixture)                                └───► what did not fill a row: packed once more, all
                                                                  shards together, as the last shard

Text that spells a control token is encoded as text: no document can end another. The order of documents follows from
``seed`` and the shard's number, never from which worker was faster.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pretrain.data.document import Row, label_of, num_documents, read_batches, shards_of
from pretrain.data.labels import failure_of
from pretrain.data.packing import PACKINGS, Rows
from pretrain.data.shards import Counts, Progress, Stateful, Workers, fingerprints, run_tasks
from pretrain.data.token_store import (
    MANIFEST,
    Manifest,
    ShardEntry,
    index_path,
    shard_hash,
    write_manifest,
    write_shard,
)
from rlplatform.datafiles import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEPARATOR = "<|endoftext|>"
SOURCE = "source"  # a group that every document has
NO_LABEL = "unlabelled"
BATCH_ROWS = 256
ONE_A_SHARD = Workers()
NEARLY_FULL = 0.995  # a row filled to this share stays where it is


@dataclass(frozen=True)
class TokenSettings:
    """How documents become rows."""

    row_tokens: int
    packing: str = "concatenate"
    seed: int = 0
    groups: tuple[str, ...] = (SOURCE,)  # ``source`` or names of labels


def write_tokens(
    documents: Path,
    folder: Path,
    tokenizer: str,
    settings: TokenSettings,
    *,
    copies: Path | None = None,
    workers: Workers = ONE_A_SHARD,
    progress: Progress | None = None,
) -> Manifest:
    """Tokenise and pack the shards of ``documents`` into ``folder``; a second call goes on where the first stopped.

    Args:
        tokenizer: a folder or hub id.
        copies: a folder of ``copies-*.npy``, int64 ``[documents]`` a shard: how often each document is taken (0: not).

    Raises:
        DataError: no documents, copies of another corpus, a tokenizer without ``<|endoftext|>``, or nothing to pack.
    """
    shards = shards_of(documents)
    encoder = Encoder(tokenizer)
    counts = [num_documents(path) for path in shards]
    firsts = np.cumsum([0, *counts[:-1]]).tolist()
    chosen = [None] * len(shards) if copies is None else [_copies_of(copies, k, n) for k, n in enumerate(counts)]
    tasks = [
        (mark, first, "all" if chosen_rows is None else _digest(chosen_rows))
        for mark, first, chosen_rows in zip(fingerprints(shards), firsts, chosen, strict=True)
    ]
    process = Stateful(
        _TokeniseShard,
        {"tokenizer": tokenizer, "settings": settings, "folder": folder, "copies": copies},
    )
    key = json.dumps([encoder.fingerprint, settings.row_tokens, settings.packing, settings.seed, *settings.groups])
    _make_way(folder, len(shards))
    done = run_tasks(process, tasks, folder, key=key, workers=workers, progress=progress)
    entries = [_entry(folder, shard, shard_counts) for shard, shard_counts in enumerate(done)]
    rest = _pack_rests(folder, len(shards), settings)
    if rest is not None:
        entries.append(rest)
    manifest = Manifest(
        row_tokens=settings.row_tokens,
        packing=settings.packing,
        seed=settings.seed,
        tokenizer=encoder.fingerprint,
        separator=encoder.separator,
        groups=settings.groups,
        num_documents=sum(counts),
        num_placed=sum(shard_counts["documents"] for shard_counts in done),
        shards=tuple(entries),
    )
    if not manifest.num_tokens:
        raise DataError(f"{documents}: expected at least one document to pack, got none")
    write_manifest(folder, manifest)
    return manifest


def _make_way(folder: Path, num_shards: int) -> None:
    """An attempt that is stopped leaves no manifest of the one before it, nor an index of a shard that is no more."""
    (folder / MANIFEST).unlink(missing_ok=True)
    indexes = {index_path(folder, shard) for shard in range(num_shards)}
    for path in set(folder.glob("index-*.parquet")) - indexes:
        path.unlink()


# --- text to token ids ----------------------------------------------------------------------------------------------


class Encoder:
    """Texts to token ids, each closed by the separator.

    Raises:
        DataError: the tokenizer cannot be loaded, is not a fast one, or has no ``<|endoftext|>``.
    """

    def __init__(self, tokenizer: str) -> None:
        from rlplatform.servable import tokenizer_of

        loaded: PreTrainedTokenizerBase = tokenizer_of(tokenizer, trust_remote_code=False)
        if not loaded.is_fast:
            raise DataError(f"{tokenizer}: expected a fast tokenizer (tokenizer.json), got {type(loaded).__name__}")
        separator = loaded.get_vocab().get(SEPARATOR)
        if separator is None:
            raise DataError(f"{tokenizer}: expected {SEPARATOR} in the vocabulary, which joins documents")
        self.separator = int(separator)
        self._backend = backend_of(loaded)
        self.fingerprint = hashlib.blake2b(self._backend.to_str().encode(), digest_size=16).hexdigest()

    def __call__(self, texts: Sequence[str]) -> list[np.ndarray]:
        """int32 of each text, the separator at its end."""
        encoded = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array([*one.ids, self.separator], dtype=np.int32) for one in encoded]


def backend_of(tokenizer: PreTrainedTokenizerBase) -> Any:
    """The fast tokenizer that takes every text whole and as text: nothing cut, padded or read as a control token."""
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    return backend


def group_of(row: Row, name: str) -> str:
    """``source``, or the value of a label; ``unlabelled`` where a document has none of the name, or one that failed."""
    if name == SOURCE:
        return str(row[SOURCE])
    entry = label_of(row, name)
    return NO_LABEL if entry is None or failure_of(entry) else str(entry["value"])


# --- one shard ------------------------------------------------------------------------------------------------------


class _TokeniseShard:
    """Runs in an actor of the pool: its tokenizer loads once."""

    def __init__(self, tokenizer: str, settings: TokenSettings, folder: Path, copies: Path | None) -> None:
        self.encoder = Encoder(tokenizer)
        self.settings, self.folder, self.copies = settings, folder, copies

    def __call__(self, shard: int, task: tuple[tuple[str, int, int], int, str]) -> Counts:
        (path, _, _), first, _ = task
        encoded, index = self._read(Path(path))
        copies = None if self.copies is None else _copies_of(self.copies, shard, len(encoded))
        order = document_order(len(encoded), copies, seed=self.settings.seed, shard=shard)
        return self._pack(shard, [encoded[k] for k in order], order + first, index)

    def _read(self, path: Path) -> tuple[list[np.ndarray], dict[str, list[Any]]]:
        encoded: list[np.ndarray] = []
        index: dict[str, list[Any]] = {name: [] for name in ("id", "tokens", *self.settings.groups)}
        for rows in read_batches(path, BATCH_ROWS):
            batch = self.encoder([row["text"] for row in rows])
            encoded += batch
            index["id"] += [row["id"] for row in rows]
            index["tokens"] += [len(token_ids) for token_ids in batch]
            for name in self.settings.groups:
                index[name] += [group_of(row, name) for row in rows]
        return encoded, index

    def _pack(self, shard: int, texts: list[np.ndarray], document: np.ndarray, index: Mapping[str, Any]) -> Counts:
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = PACKINGS[self.settings.packing](np.array([len(text) for text in texts]), self.settings.row_tokens)
        full, rest = split_rows(rows)
        entry = write_shard(self.folder, shard, gather(texts, full), full, document[full.document])
        _save_rest(self.folder, shard, gather(texts, rest), rest, document[rest.document])
        pq.write_table(pa.table(dict(index)), temporary := self.folder / f".index-{shard:05d}.tmp")
        temporary.replace(index_path(self.folder, shard))
        return {
            "tokens": entry.num_tokens,
            "rows": entry.num_rows,
            "pieces": entry.num_pieces,
            "documents": len(texts),
        }


def document_order(num: int, copies: np.ndarray | None, *, seed: int, shard: int) -> np.ndarray:
    """int64: the documents of a shard, each as often as ``copies`` says, in a random order of (seed, shard)."""
    documents = np.arange(num) if copies is None else np.repeat(np.arange(num), copies)
    return documents[np.random.default_rng([seed, shard]).permutation(len(documents))]


def gather(texts: Sequence[np.ndarray], rows: Rows) -> np.ndarray:
    """int32 [T]: the tokens of the rows' pieces, one after another."""
    pieces = zip(rows.document.tolist(), rows.start.tolist(), rows.length.tolist(), strict=True)
    return np.concatenate([np.zeros(0, np.int32), *(texts[k][start : start + length] for k, start, length in pieces)])


def split_rows(rows: Rows) -> tuple[Rows, Rows]:
    """The rows that are full to ``NEARLY_FULL``, and the others."""
    full = rows.lengths >= NEARLY_FULL * rows.row_tokens
    return _take(rows, np.flatnonzero(full)), _take(rows, np.flatnonzero(~full))


def _take(rows: Rows, chosen: np.ndarray) -> Rows:
    spans = [np.arange(rows.cu_pieces[row], rows.cu_pieces[row + 1]) for row in chosen]
    pieces = np.concatenate([np.zeros(0, np.int64), *spans])
    return Rows(
        document=rows.document[pieces],
        start=rows.start[pieces],
        length=rows.length[pieces],
        cu_pieces=np.cumsum([0, *(len(span) for span in spans)]).astype(np.int64),
        row_tokens=rows.row_tokens,
    )


# --- what did not fill a row ----------------------------------------------------------------------------------------


def _rest_path(folder: Path, shard: int) -> Path:
    return folder / ".rest" / f"{shard:05d}.npz"


def _save_rest(folder: Path, shard: int, token_ids: np.ndarray, rows: Rows, document: np.ndarray) -> None:
    path = _rest_path(folder, shard)
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        np.savez(file, token_ids=token_ids, document=document, start=rows.start, length=rows.length)
    temporary.replace(path)


def _pack_rests(folder: Path, num_shards: int, settings: TokenSettings) -> ShardEntry | None:
    """The unfilled rows' pieces of all shards, packed together; None where every row was full."""
    saved = [dict(np.load(_rest_path(folder, shard))) for shard in range(num_shards)]
    joined = {name: np.concatenate([one[name] for one in saved]) for name in saved[0]}
    if not len(joined["length"]):
        return None
    ends = np.cumsum(joined["length"])
    texts = [joined["token_ids"][end - length : end] for end, length in zip(ends, joined["length"], strict=True)]
    rows = PACKINGS[settings.packing](joined["length"], settings.row_tokens)
    placed = Rows(
        document=joined["document"][rows.document],
        start=rows.start + joined["start"][rows.document],
        length=rows.length,
        cu_pieces=rows.cu_pieces,
        row_tokens=rows.row_tokens,
    )
    return write_shard(folder, num_shards, gather(texts, rows), placed, placed.document)


def _entry(folder: Path, shard: int, counts: Counts) -> ShardEntry:
    return ShardEntry(counts["tokens"], counts["pieces"], counts["rows"], shard_hash(folder, shard))


# --- copies ---------------------------------------------------------------------------------------------------------


def copies_path(folder: Path, shard: int) -> Path:
    return folder / f"copies-{shard:05d}.npy"


def _copies_of(folder: Path, shard: int, num: int) -> np.ndarray:
    try:
        copies: np.ndarray = np.load(copies_path(folder, shard))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: expected how often each document is taken: {error}") from error
    if copies.shape != (num,) or (copies < 0).any():
        raise DataError(
            f"{copies_path(folder, shard)}: expected {num} numbers >= 0, one a document of the shard, got "
            f"{copies.shape}; was the mixture made of other documents?"
        )
    return copies


def _digest(array: np.ndarray) -> str:
    return hashlib.blake2b(array.tobytes(), digest_size=16).hexdigest()
