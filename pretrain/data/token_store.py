"""Packed tokens on disk: rows of at most ``row_tokens`` tokens, memory-mapped, read by number from any process.

    tokens-00000.npy   int32 [T]      the rows of one shard, one after another
    pieces-00000.npy   int64 [P, 3]   document, first token within it, tokens
    rows-00000.npy     int64 [R + 1]  row r is made of the pieces slice(rows[r], rows[r + 1])
    index-00000.parquet               id, tokens and groups of the documents of one shard of the input
    manifest.json                     sizes, hashes, tokenizer, settings: written last

A document's number is its place in the input, over all its shards. Row numbers run over all shards; so a row's number
says the same tokens whatever the world size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np

from pretrain.data.packing import Rows
from rlplatform.datafiles import DataError
from rlplatform.runs import write_atomically

MANIFEST = "manifest.json"
VERSION = 1
KINDS = ("tokens", "pieces", "rows")


@dataclass(frozen=True)
class ShardEntry:
    """What the manifest says of one shard."""

    num_tokens: int
    num_pieces: int
    num_rows: int
    blake2b: str  # of the three arrays' files


@dataclass(frozen=True)
class Manifest:
    """What a folder of packed tokens holds."""

    row_tokens: int
    packing: str  # a name of ``pretrain.data.packing.PACKINGS``
    seed: int
    tokenizer: str  # fingerprint of vocabulary and separator
    separator: int  # the id that ends every document
    groups: tuple[str, ...]  # columns of the index that losses are told apart by
    num_documents: int  # of the input
    num_placed: int  # documents laid into rows, each copy counted
    shards: tuple[ShardEntry, ...]
    version: int = VERSION

    @property
    def num_tokens(self) -> int:
        return sum(shard.num_tokens for shard in self.shards)

    @property
    def num_rows(self) -> int:
        return sum(shard.num_rows for shard in self.shards)

    @property
    def num_cuts(self) -> int:
        """How often a document goes on in another row."""
        return sum(shard.num_pieces for shard in self.shards) - self.num_placed

    @property
    def waste(self) -> float:
        """Room that holds no token, as a share of all room."""
        room = self.num_rows * self.row_tokens
        return 1.0 - self.num_tokens / room if room else 0.0


@dataclass(frozen=True)
class Batch:
    """Some rows, end to end. ``T`` tokens, ``P`` pieces."""

    token_ids: np.ndarray  # int32 [T]
    cu_pieces: np.ndarray  # int64 [P + 1], tokens
    cu_rows: np.ndarray  # int64 [B + 1], tokens
    document: np.ndarray  # int64 [P]


def array_path(folder: Path, kind: str, shard: int) -> Path:
    return folder / f"{kind}-{shard:05d}.npy"


def index_path(folder: Path, shard: int) -> Path:
    return folder / f"index-{shard:05d}.parquet"


def write_shard(folder: Path, shard: int, token_ids: np.ndarray, rows: Rows, document: np.ndarray) -> ShardEntry:
    """The arrays of one shard, each file whole or not at all.

    Args:
        token_ids: int32 ``[T]``, the rows one after another.
        document: int64 ``[P]``, the number of each piece's document.
    """
    arrays: dict[str, np.ndarray] = {
        "tokens": token_ids.astype(np.int32, copy=False),
        "pieces": np.stack([document, rows.start, rows.length], axis=1).astype(np.int64),
        "rows": rows.cu_pieces.astype(np.int64),
    }
    for kind, array in arrays.items():
        path = array_path(folder, kind, shard)
        temporary = path.with_name(f".{path.name}.tmp")
        with open(temporary, "wb") as file:
            np.save(file, array)
        temporary.replace(path)
    return ShardEntry(len(token_ids), len(document), len(rows), shard_hash(folder, shard))


def shard_hash(folder: Path, shard: int) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for kind in KINDS:
        with open(array_path(folder, kind, shard), "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    write_atomically(folder / MANIFEST, json.dumps(asdict(manifest), indent=1) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """Raises DataError: no finished folder of packed tokens, or of another version."""
    try:
        values = json.loads((folder / MANIFEST).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise DataError(f"{folder}: expected packed tokens (a `tokens` stage leaves {MANIFEST}): {error}") from error
    if values.get("version") != VERSION:
        raise DataError(f"{folder}: expected packed tokens of version {VERSION}, got {values.get('version')!r}")
    values["groups"] = tuple(values["groups"])
    values["shards"] = tuple(ShardEntry(**entry) for entry in values["shards"])
    return Manifest(**values)


class TokenStore:
    """A folder of packed tokens, opened for reading.

    Raises:
        DataError: the folder is not finished, or a file is not what the manifest says (with ``verify``, by its hash).
    """

    def __init__(self, folder: str | Path, *, verify: bool = False) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        self._arrays = [self._open(shard, entry, verify) for shard, entry in enumerate(self.manifest.shards)]

    def _open(self, shard: int, entry: ShardEntry, verify: bool) -> dict[str, np.ndarray]:
        try:
            arrays = {kind: np.load(array_path(self.folder, kind, shard), mmap_mode="r") for kind in KINDS}
        except (OSError, ValueError) as error:
            raise DataError(f"{self.folder}: shard {shard} cannot be read: {error}") from error
        found = (len(arrays["tokens"]), len(arrays["pieces"]), len(arrays["rows"]) - 1)
        expected = (entry.num_tokens, entry.num_pieces, entry.num_rows)
        if found != expected or (verify and shard_hash(self.folder, shard) != entry.blake2b):
            raise DataError(
                f"{self.folder}: shard {shard} is not what {MANIFEST} says: expected {expected} tokens, pieces and "
                f"rows with hash {entry.blake2b}, got {found}; run its stage again"
            )
        return arrays

    def __len__(self) -> int:
        return self.manifest.num_rows

    @cached_property
    def _first_rows(self) -> np.ndarray:
        return np.cumsum([0, *(entry.num_rows for entry in self.manifest.shards)])

    @cached_property
    def _token_bounds(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of every shard: where its pieces and its rows begin, in tokens, with the end."""
        bounds = []
        for arrays in self._arrays:
            cu_tokens = np.concatenate(([0], np.cumsum(arrays["pieces"][:, 2])))
            bounds.append((cu_tokens, cu_tokens[arrays["rows"]]))
        return bounds

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 [R], tokens of each row."""
        return np.concatenate([np.diff(rows) for _, rows in self._token_bounds] or [np.zeros(0, dtype=np.int64)])

    @cached_property
    def pieces_per_row(self) -> np.ndarray:
        """int64 [R]."""
        return np.concatenate([np.diff(arrays["rows"]) for arrays in self._arrays] or [np.zeros(0, dtype=np.int64)])

    def piece_lengths(self, row: int) -> np.ndarray:
        """int64, tokens of each piece of a row; reads no token."""
        shard, local = self._place(row)
        arrays = self._arrays[shard]
        return np.asarray(arrays["pieces"][arrays["rows"][local] : arrays["rows"][local + 1], 2])

    def _place(self, row: int) -> tuple[int, int]:
        """(shard, row within it)"""
        shard = int(np.searchsorted(self._first_rows, row, side="right")) - 1
        return shard, int(row - self._first_rows[shard])

    def read(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """The given rows, in the given order."""
        tokens, lengths, documents, row_lengths = [], [], [], []
        for row in np.asarray(rows, dtype=np.int64):
            shard, local = self._place(row)
            arrays, (cu_pieces, cu_rows) = self._arrays[shard], self._token_bounds[shard]
            first, last = arrays["rows"][local], arrays["rows"][local + 1]
            tokens.append(np.asarray(arrays["tokens"][cu_rows[local] : cu_rows[local + 1]]))
            lengths.append(np.diff(cu_pieces[first : last + 1]))
            documents.append(np.asarray(arrays["pieces"][first:last, 0]))
            row_lengths.append(len(tokens[-1]))
        none = [np.zeros(0, dtype=np.int64)]
        return Batch(
            token_ids=np.concatenate(tokens or none).astype(np.int32),
            cu_pieces=np.concatenate(([0], np.cumsum(np.concatenate(lengths or none)))).astype(np.int64),
            cu_rows=np.concatenate(([0], np.cumsum(row_lengths))).astype(np.int64),
            document=np.concatenate(documents or none),
        )

    def texts(self) -> list[np.ndarray]:
        """int32 of every document in order, its separator at its end; the whole corpus in memory.

        Raises:
            DataError: a document was laid more than once, or not at all.
        """
        pieces: list[tuple[int, int, np.ndarray]] = []
        for arrays, (cu_pieces, _) in zip(self._arrays, self._token_bounds, strict=True):
            spans = zip(arrays["pieces"][:, :2].tolist(), cu_pieces[:-1], cu_pieces[1:], strict=True)
            pieces += [(number, start, arrays["tokens"][a:b]) for (number, start), a, b in spans]
        pieces.sort(key=lambda piece: piece[:2])
        firsts = [at for at, piece in enumerate(pieces) if piece[1] == 0]
        if [pieces[at][0] for at in firsts] != list(range(self.manifest.num_documents)):
            raise DataError(
                f"{self.folder}: expected every document once, as a tokens stage without a mixture lays them"
            )
        bounds = [*firsts, len(pieces)]
        return [np.concatenate([piece[2] for piece in pieces[a:b]]) for a, b in pairwise(bounds)]

    def groups(self, column: str) -> tuple[tuple[str, ...], np.ndarray]:
        """The values of a group column, sorted, and int32 [documents]: which of them each document has.

        Raises:
            DataError: the index has no such column.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        if column not in self.manifest.groups:
            raise DataError(f"{self.folder}: expected one of the groups {self.manifest.groups}, got {column!r}")
        paths = sorted(self.folder.glob("index-*.parquet"))
        values = pa.concat_tables([pq.read_table(path, columns=[column]) for path in paths]).column(column)
        names, codes = np.unique(values.to_numpy(zero_copy_only=False).astype(str), return_inverse=True)
        return tuple(names.tolist()), codes.astype(np.int32)
