"""An independent check of a token shard: `loam verify PREFIX`.

It shares no code with the writer: header and tables are parsed here with `struct` straight from the description of the
format, so that a fault of the writer cannot hide itself. Broken files give failed checks, never an exception; a check
that a broken header makes meaningless is not run, and the report fails all the same.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from pipelines.files import sha256_of

HEADER_BYTES = 34
TOKEN_TYPES = {1: ("uint8", 1), 2: ("int8", 1), 3: ("int16", 2), 4: ("int32", 4), 5: ("int64", 8), 8: ("uint16", 2)}
CHUNK_TOKENS = 1 << 22


class Check(BaseModel):
    """One thing that must hold."""

    model_config = ConfigDict(frozen=True)

    name: str
    passed: bool
    expected: str
    found: str


class Report(BaseModel):
    """What was checked, and what the shard holds.

    Attributes:
        prefix: path of the shard without suffix.
        checks: in the order they were made.
        sequences: as the header says; null when it cannot be read.
        tokens: in the `.bin`.
        dtype: of the tokens.
        sha256: of the `.bin`.
    """

    model_config = ConfigDict(frozen=True)

    prefix: str
    checks: tuple[Check, ...]
    sequences: int | None = None
    tokens: int | None = None
    dtype: str | None = None
    sha256: str | None = None

    @property
    def passed(self) -> bool:
        """Every check holds."""
        return all(check.passed for check in self.checks)

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that do not hold."""
        return tuple(check for check in self.checks if not check.passed)

    def to_dict(self) -> dict[str, Any]:
        """JSON values: the fields, and `passed`."""
        return {**self.model_dump(mode="json"), "passed": self.passed}

    def lines(self) -> list[str]:
        """For people: one line per check, then what the shard holds."""
        marks = {True: "ok  ", False: "FAIL"}
        told = [
            f"{marks[c.passed]} {c.name}: {c.found}" + ("" if c.passed else f", expected {c.expected}")
            for c in self.checks
        ]
        if self.tokens is None or self.sequences is None:
            return told
        held = f"{self.prefix}: {self.sequences} sequences, {self.tokens} tokens, {self.dtype}, sha256 {self.sha256}"
        return [*told, held]


def verify(prefix: Path, vocab_size: int | None = None, eos_id: int | None = None) -> Report:
    """Check a shard.

    Args:
        prefix: path without `.bin` / `.idx` (either suffix is understood).
        vocab_size: when given, every token must be below it.
        eos_id: when given, it must end every document and appear nowhere else.

    Both are taken from the manifest of `loam tokenize` above the shard when they are not given.
    """
    prefix = prefix.with_name(prefix.name.removesuffix(".bin").removesuffix(".idx"))
    shard = _Shard(prefix)
    told = shard.told()
    vocab_size = told.get("vocab_size") if vocab_size is None else vocab_size
    eos_id = told.get("eos_id") if eos_id is None else eos_id
    if shard.check_files() and shard.check_header() and shard.check_index_size():
        shard.check_lengths()
        shard.check_documents()
        if shard.check_pointers() and shard.check_bin_size():
            shard.check_tokens(vocab_size)
            if eos_id is not None:
                shard.check_ends(eos_id)
    shard.check_sidecar()
    shard.check_manifest()
    return shard.report()


class _Shard:
    """A shard under examination: collects checks."""

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        self.bin, self.idx, self.origin = (
            prefix.with_name(prefix.name + suffix) for suffix in (".bin", ".idx", ".origin.parquet")
        )
        self.checks: list[Check] = []
        self.sequences = self.documents = 0
        self.dtype: np.dtype | None = None

    def check(self, name: str, passed: bool, expected: object, found: object) -> bool:
        self.checks.append(Check(name=name, passed=bool(passed), expected=str(expected), found=str(found)))
        return bool(passed)

    def _shown(self, index: Path) -> str:
        """A shard by its name beside the prefix, or by its whole path below the folder that was given as one."""
        return str(index.with_suffix("")) if self.prefix.is_dir() else index.with_suffix("").name

    def check_files(self) -> bool:
        missing = [path.name for path in (self.bin, self.idx) if not path.is_file()]
        near = self.prefix.rglob("*.idx") if self.prefix.is_dir() else self.prefix.parent.glob("*.idx")
        others = sorted(self._shown(path) for path in near) if missing else []
        there = f"; shards there: {', '.join(others[:5])}" if others else ""
        expected = f"{self.bin.name} and {self.idx.name} in {self.prefix.parent}"
        return self.check("files", not missing, expected, _missing(missing) + there)

    def check_header(self) -> bool:
        with self.idx.open("rb") as file:
            raw = file.read(HEADER_BYTES)
        if not self.check("header size", len(raw) == HEADER_BYTES, HEADER_BYTES, len(raw)):
            return False
        magic, version, code = raw[:9], struct.unpack_from("<Q", raw, 9)[0], raw[17]
        self.check("magic", magic == b"MMIDIDX\x00\x00", "MMIDIDX", magic)
        self.check("version", version == 1, 1, version)
        self.check("dtype code", code in TOKEN_TYPES, f"one of {sorted(TOKEN_TYPES)}", code)
        if code in TOKEN_TYPES:
            self.dtype = np.dtype(TOKEN_TYPES[code][0]).newbyteorder("<")
        self.sequences, self.documents = struct.unpack_from("<QQ", raw, 18)
        return all(check.passed for check in self.checks)

    def check_index_size(self) -> bool:
        expected, found = HEADER_BYTES + 12 * self.sequences + 8 * self.documents, self.idx.stat().st_size
        modes = expected + self.sequences  # a multimodal index has one byte more for each sequence
        return self.check("index size", found in (expected, modes), expected, found)

    def table(self, kind: str, count: int, offset: int) -> np.ndarray:
        return np.memmap(self.idx, kind, "r", offset, (count,)) if count else np.zeros(0, kind)

    @property
    def last_sequences(self) -> np.ndarray:
        """The sequence that ends each document: every one, unless documents were split into sentences."""
        documents = self.table("<i8", self.documents, HEADER_BYTES + 12 * self.sequences)
        within = documents[(documents > 0) & (documents <= self.sequences)]
        return np.unique(within) - 1

    @property
    def lengths(self) -> np.ndarray:
        return self.table("<i4", self.sequences, HEADER_BYTES)

    def check_lengths(self) -> None:
        shortest = int(self.lengths.min()) if self.sequences else 1
        self.check("lengths", shortest > 0, "every sequence has tokens", f"shortest has {shortest}")

    def check_pointers(self) -> bool:
        """Each sequence begins where the one before it ends."""
        assert self.dtype is not None
        pointers = self.table("<i8", self.sequences, HEADER_BYTES + 4 * self.sequences)
        right = np.cumsum(self.lengths, dtype=np.int64) - self.lengths
        wrong = np.flatnonzero(pointers != right * self.dtype.itemsize)
        where = f"wrong from sequence {wrong[0]}: byte {pointers[wrong[0]]}" if len(wrong) else "cumulative"
        return self.check("pointers", not len(wrong), "cumulative", where)

    def check_documents(self) -> None:
        """Indices begin at 0, rise at every document (none is empty), and end at the number of sequences."""
        documents = self.table("<i8", self.documents, HEADER_BYTES + 12 * self.sequences)
        if not self.check("document count", self.documents >= 1, "at least 1 index", self.documents):
            return
        self.check("document indices begin", documents[0] == 0, 0, documents[0])
        self.check("document indices end", documents[-1] == self.sequences, self.sequences, documents[-1])
        still = int((np.diff(documents) <= 0).sum())
        self.check("document indices rise", still == 0, "0 that do not", f"{still} that do not")

    def check_bin_size(self) -> bool:
        assert self.dtype is not None
        expected = int(self.lengths.sum(dtype=np.int64)) * self.dtype.itemsize
        return self.check("bin size", self.bin.stat().st_size == expected, expected, self.bin.stat().st_size)

    def chunks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Position and tokens of each chunk of the `.bin`."""
        assert self.dtype is not None
        with self.bin.open("rb") as file:
            start = 0
            while len(chunk := np.frombuffer(file.read(CHUNK_TOKENS * self.dtype.itemsize), self.dtype)):
                yield start, chunk
                start += len(chunk)

    def check_tokens(self, vocab_size: int | None) -> None:
        low = high = 0
        for _, chunk in self.chunks():
            low, high = min(low, int(chunk.min())), max(high, int(chunk.max()))
        self.check("tokens not negative", low >= 0, "at least 0", low)
        if vocab_size is not None:
            self.check("tokens in vocabulary", high < vocab_size, f"below {vocab_size}", high)

    def check_ends(self, eos_id: int) -> None:
        """The end token stands at every end, and nowhere else: one that stood inside would cut a document in two."""
        ends = np.cumsum(self.lengths, dtype=np.int64)[self.last_sequences] - 1
        without = inside = 0
        for start, chunk in self.chunks():
            here = np.zeros(len(chunk), bool)
            here[ends[np.searchsorted(ends, start) : np.searchsorted(ends, start + len(chunk))] - start] = True
            is_eos = chunk == eos_id
            without += int((here & ~is_eos).sum())
            inside += int((is_eos & ~here).sum())
        self.check("eos at every end", without == 0, "0 documents without", f"{without} documents without")
        self.check("eos only at ends", inside == 0, "0 inside documents", f"{inside} inside documents")

    def check_sidecar(self) -> None:
        """When there is an origin sidecar, its rows are the sequences."""
        if not self.origin.is_file():
            return
        try:
            table = pq.read_table(self.origin, columns=["id", "tokens"])
            ids, lengths = table["id"].cast(pa.string()), table["tokens"].cast(pa.int64()).to_numpy()
        except (pa.ArrowException, OSError, KeyError) as error:
            self.check("sidecar", False, "readable Parquet with id and tokens", str(error).splitlines()[0])
            return
        self.check("sidecar rows", table.num_rows == self.sequences, self.sequences, table.num_rows)
        unique = pc.count_distinct(ids, mode="all").as_py()
        self.check("sidecar ids unique", unique == table.num_rows, table.num_rows, unique)
        if self.dtype is not None and len(lengths) == self.sequences and self.index_is_whole:
            differ = int((lengths != self.lengths).sum())
            self.check("sidecar lengths", differ == 0, "0 differ", f"{differ} differ")

    @property
    def index_is_whole(self) -> bool:
        return all(check.passed for check in self.checks if check.name in ("files", "header size", "index size"))

    @property
    def step(self) -> Path | None:
        """The nearest folder above with a manifest."""
        return next((f for f in self.prefix.absolute().parents if (f / "manifest.json").is_file()), None)

    def told(self) -> dict[str, int]:
        """Whole numbers among the metrics of the manifest above; none when there is none to be read."""
        try:
            metrics = json.loads((self.step / "manifest.json").read_bytes())["metrics"] if self.step else {}
            return {name: value for name, value in metrics.items() if type(value) is int}
        except (ValueError, KeyError, TypeError, AttributeError, OSError):
            return {}

    def check_manifest(self) -> None:
        """The nearest manifest.json above lists the files with the hashes that they have."""
        folder = self.step
        if folder is None:
            return
        try:
            listed = {
                entry["path"]: entry["sha256"]
                for entry in json.loads((folder / "manifest.json").read_bytes())["outputs"]
            }
        except (ValueError, KeyError, TypeError) as error:
            self.check("manifest", False, "JSON with outputs", f"{type(error).__name__}: {error}")
            return
        for path in (self.bin, self.idx, self.origin):
            name = path.absolute().relative_to(folder).as_posix()
            if path.is_file() or name in listed:
                found = sha256_of(path) if path.is_file() else "missing"
                self.check(f"sha256 {path.name}", listed.get(name) == found, listed.get(name, "listed"), found)

    def report(self) -> Report:
        known = self.dtype is not None and self.bin.is_file()
        return Report(
            prefix=str(self.prefix),
            checks=tuple(self.checks),
            sequences=self.sequences if self.dtype is not None else None,
            tokens=self.bin.stat().st_size // self.dtype.itemsize if known and self.dtype is not None else None,
            dtype=self.dtype.name if self.dtype is not None else None,
            sha256=sha256_of(self.bin) if self.bin.is_file() else None,
        )


def _missing(names: list[str]) -> str:
    return f"{' and '.join(names)} missing" if names else "both"
