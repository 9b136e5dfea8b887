"""Megatron token shards: a streaming writer and a memory-mapped reader of `<prefix>.bin` and `<prefix>.idx`.

One sequence per document, so that a row of the shard is a row of its origin sidecar; files are written under temporary
names and renamed, index last, so that an `.idx` exists only beside a whole `.bin`. The format is that of megatron-core
0.16 (`megatron/core/datasets/indexed_dataset.py`): little-endian header of 34 bytes, then lengths, pointers, documents.
"""

import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from pipelines.errors import DataError
from pipelines.files import sha256_of
from pipelines.manifest import MANIFEST, Manifest
from pipelines.shards import Shard, ShardSet

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")  # magic, version, dtype code, sequences, documents + 1
DTYPE_CODES = {np.dtype("<i4"): 4, np.dtype("<u2"): 8}
DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}  # 6 and 7 are floats: not tokens

# megatron-core's IndexedDataset.optimal_dtype says 65,500 although 65,536 ids fit: other tools (and its own
# GPTDatasetConfig.token_dtype_code) draw the line at 65,536, and between the two a reader that trusts its own
# arithmetic instead of the header reads rubbish. Taking the lower bound, the header and the shortcut agree.
UINT16_VOCABULARY = 65_500


def token_dtype(vocab_size: int) -> np.dtype:
    """The dtype that Megatron picks for token ids below `vocab_size`."""
    return np.dtype("<u2") if vocab_size < UINT16_VOCABULARY else np.dtype("<i4")


def bin_path(prefix: Path) -> Path:
    """`<prefix>.bin`; a dot inside the name stays."""
    return prefix.with_name(f"{prefix.name}.bin")


def idx_path(prefix: Path) -> Path:
    """`<prefix>.idx`."""
    return prefix.with_name(f"{prefix.name}.idx")


def origin_path(prefix: Path) -> Path:
    """`<prefix>.origin.parquet`: row i describes sequence i."""
    return prefix.with_name(f"{prefix.name}.origin.parquet")


class IndexedWriter:
    """Streams documents into a shard; a context manager that leaves nothing behind when its body raises.

    Args:
        prefix: path of the shard without suffix; folders are made.
        vocab_size: number of token ids, which decides the dtype.
    """

    def __init__(self, prefix: Path, vocab_size: int) -> None:
        self.prefix = prefix
        self.vocab_size = vocab_size
        self.dtype = token_dtype(vocab_size)
        self._lengths: list[np.ndarray] = []
        prefix.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = prefix.with_name(f".{prefix.name}.bin.tmp")
        self._file = self._temporary.open("wb")

    def append(self, tokens_T: np.ndarray, lengths_D: np.ndarray) -> None:
        """Append a batch of documents.

        Args:
            tokens_T: ids of all documents of the batch, end to end.
            lengths_D: tokens of each document; sums to T.
        """
        assert int(lengths_D.sum()) == len(tokens_T), "lengths do not add up to the tokens"
        assert not len(tokens_T) or 0 <= int(tokens_T.min()) <= int(tokens_T.max()) < self.vocab_size, "id out of range"
        self._file.write(np.ascontiguousarray(tokens_T, self.dtype).data)
        self._lengths.append(lengths_D.astype("<i4"))

    def close(self) -> None:
        """Flush, write the index, rename both: `.bin` first."""
        lengths_D = np.concatenate([np.zeros(0, "<i4"), *self._lengths])
        pointers_D = np.zeros(len(lengths_D), "<i8")
        np.cumsum(lengths_D[:-1], dtype="<i8", out=pointers_D[1:])
        documents = np.arange(len(lengths_D) + 1, dtype="<i8")
        header = HEADER.pack(MAGIC, VERSION, DTYPE_CODES[self.dtype], len(lengths_D), len(documents))
        index = self.prefix.with_name(f".{self.prefix.name}.idx.tmp")
        with index.open("wb") as file:
            file.write(
                header + lengths_D.tobytes() + (pointers_D * self.dtype.itemsize).tobytes() + documents.tobytes()
            )
            _sync(file.fileno())
        self._file.flush()
        _sync(self._file.fileno())
        self._file.close()
        idx_path(self.prefix).unlink(missing_ok=True)  # an old index must not describe the new tokens
        self._temporary.replace(bin_path(self.prefix))
        index.replace(idx_path(self.prefix))

    def __enter__(self) -> "IndexedWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if kind is None:
            self.close()
        else:
            self._file.close()
            self._temporary.unlink(missing_ok=True)


def _sync(descriptor: int) -> None:
    os.fsync(descriptor)


@dataclass(frozen=True)
class _Header:
    dtype: np.dtype
    sequences: int
    documents: int


class IndexedTokens:
    """A shard, memory-mapped: `shard[i]` is the i-th document's tokens, without a copy.

    Args:
        prefix: path without `.bin` / `.idx`.

    Attributes:
        lengths: int32 (sequences,), tokens of each.
        pointers: int64 (sequences,), byte offset of each in the `.bin`.
        documents: int64 (documents + 1,), document k is the sequences [documents[k], documents[k + 1]).
        tokens: all tokens, uint16 or int32.

    Raises:
        DataError: a file is missing or is not what its header says.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        header = _read_header(idx_path(prefix))
        self.dtype = header.dtype
        s, d = header.sequences, header.documents
        raw = np.memmap(idx_path(prefix), mode="r", dtype=np.uint8)
        at = HEADER.size
        self.lengths = np.frombuffer(raw, "<i4", s, at)
        self.pointers = np.frombuffer(raw, "<i8", s, at + 4 * s)
        self.documents = np.frombuffer(raw, "<i8", d, at + 12 * s)
        self.tokens = self._map_tokens()

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> np.ndarray:
        """Tokens of sequence `row`."""
        start = int(self.pointers[row]) // self.dtype.itemsize
        return self.tokens[start : start + int(self.lengths[row])]

    def _map_tokens(self) -> np.ndarray:
        path = bin_path(self.prefix)
        size = _size_of(path)
        expected = int(self.lengths.sum(dtype=np.int64)) * self.dtype.itemsize
        if size != expected:
            raise DataError(f"{path}: the index describes {expected} bytes, found {size}; run `loam verify` on it")
        if size == 0:  # mmap refuses an empty file
            return np.zeros(0, self.dtype)
        return np.memmap(path, mode="r", dtype=self.dtype)


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        raise DataError(f"{path} is missing; a shard is a .bin and an .idx, written by `loam tokenize`") from None


def _read_header(path: Path) -> _Header:
    size = _size_of(path)
    with path.open("rb") as file:
        raw = file.read(HEADER.size)
    if len(raw) < HEADER.size or raw[:9] != MAGIC:
        raise DataError(f"{path} is not a Megatron index: expected it to begin with {MAGIC!r}, found {raw[:9]!r}")
    _, version, code, sequences, documents = HEADER.unpack(raw)
    if version != VERSION or code not in DTYPES:
        raise DataError(f"{path}: expected version 1 and an integer dtype, found version {version}, dtype code {code}")
    expected = HEADER.size + 12 * sequences + 8 * documents
    if size not in (expected, expected + sequences):  # multimodal indices carry one byte more per sequence
        raise DataError(f"{path}: {sequences} sequences need {expected} bytes, found {size}; it was cut or overwritten")
    return _Header(np.dtype(DTYPES[code]), sequences, documents)


def load_shard(prefix: Path, name: str) -> Shard:
    """Describe the shard at `prefix`.

    The sha256 is taken from the manifest of the step that wrote it where one lies in a folder above; else computed.

    Raises:
        DataError: the files are missing or contradict each other.
    """
    shard = IndexedTokens(prefix)
    path = bin_path(prefix)
    return Shard(
        name=name, prefix=prefix, documents=len(shard), tokens=len(shard.tokens),
        size_bytes=path.stat().st_size, sha256=_recorded_sha256(path) or sha256_of(path),
    )  # fmt: skip


def load_shards(folder: Path) -> ShardSet:
    """Every shard below `folder`, sorted by name; a name is the path relative to it, `reference/high`.

    Raises:
        DataError: there is none, or one is broken.
    """
    prefixes = sorted(path.with_name(path.name.removesuffix(".idx")) for path in folder.rglob("*.idx"))
    visible = [p for p in prefixes if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
    if not visible:
        raise DataError(f"no shard (.bin and .idx) below {folder}; write some with `loam tokenize`")
    return ShardSet(tuple(load_shard(prefix, prefix.relative_to(folder).as_posix()) for prefix in visible))


def _recorded_sha256(path: Path) -> str | None:
    for folder in path.absolute().parents:
        if (folder / MANIFEST).is_file():
            try:
                outputs = Manifest.model_validate(json.loads((folder / MANIFEST).read_bytes())).outputs
            except ValueError:
                return None
            wanted = path.absolute().relative_to(folder).as_posix()
            size = path.stat().st_size
            return next((e.sha256 for e in outputs if e.path == wanted and e.size_bytes == size), None)
    return None
