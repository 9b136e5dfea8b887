"""Signature files: what deduplication knows of each document, one file per shard, without the text.

An Arrow file holds a column for each band, so that one band of a whole corpus is read without the others; the shingles
lie beside it in a plain file of 32-bit numbers, and only those of candidates are ever read. An index is made of the
same files. A text of fewer units than a shingle has no bands: its key is that of its bytes but for whitespace, so that
it has exact duplicates only.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from datatrove.pipeline.base import PipelineStep

from pipelines.dedup_settings import DedupSettings
from pipelines.document import ORIGIN, SCORES
from pipelines.errors import DataError
from pipelines.execute import SCRATCH
from pipelines.files import write_atomically
from pipelines.minhash import sign
from pipelines.shingles import collapse_whitespace, utf8_buffers
from pipelines.url_key import page_keys

LIGHT = pa.schema(
    [
        ("id", pa.string()),
        ("priority", pa.int32()),
        ("preference", pa.float64()),
        ("key_0", pa.uint64()),  # null: the document cannot have a duplicate
        ("key_1", pa.uint64()),
        ("tie", pa.uint64()),  # of url, origin and the very text: ranks documents of one id and one key
    ]
)
DATES = ("date", "warc_date", "fetched", "timestamp", "crawl_date")


def columns_of(settings: DedupSettings) -> pa.Schema:
    """Of signature files of these settings; `size` is of the shingles for minhash, of the text in bytes for others."""
    bands = settings.bands if settings.method == "minhash" else 0
    return pa.schema([*LIGHT, ("size", pa.int64()), *((f"band_{k}", pa.uint64()) for k in range(bands))])


class SignatureFile(NamedTuple):
    """One shard's signatures.

    Attributes:
        path: of the Arrow file; shingles lie beside it, as `.u32`.
        rows: documents in it.
    """

    path: Path
    rows: int

    @property
    def shingles(self) -> Path:
        """The file of the shingles' upper halves, document after document."""
        return self.path.with_suffix(".u32")

    @property
    def vectors(self) -> Path:
        """The file of the embeddings, for method `semantic`: `.npy`, float32 (rows, dimensions)."""
        return self.path.with_suffix(".npy")

    def batches(self, names: Sequence[str]) -> Iterator[pa.Table]:
        """Some columns, batch by batch; memory is that of one batch."""
        with pa.memory_map(str(self.path)) as source, pa.ipc.open_file(source) as reader:
            for number in range(reader.num_record_batches):
                yield pa.table(reader.get_batch(number)).select(names)

    def column(self, name: str) -> np.ndarray:
        """One column, copied."""
        found = [batch[name].to_numpy().copy() for batch in self.batches([name])]
        return np.concatenate(found) if found else np.zeros(0, np.int64)

    def take(self, rows: np.ndarray, names: Sequence[str]) -> pa.Table:
        """Some columns of some rows (ascending)."""
        found, base = [], 0
        for batch in self.batches(names):
            first, end = np.searchsorted(rows, [base, base + batch.num_rows])
            if end > first:
                found.append(batch.take(pa.array(rows[first:end] - base)))
            base += batch.num_rows
        return pa.concat_tables(found) if found else pa.table(LIGHT.empty_table()).select([])


def open_signatures(path: Path) -> SignatureFile:
    """Open one file.

    Raises:
        DataError: it is no signature file.
    """
    try:
        with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
            rows = sum(reader.get_batch(number).num_rows for number in range(reader.num_record_batches))
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is not a readable signature file: {error}; remove its folder and run again") from None
    return SignatureFile(path, rows)


class SignDocuments(PipelineStep):
    """End of a pipeline: one signature file per shard, rows as in the shard."""

    type = "block"
    name = "sign"

    def __init__(self, work: str, settings: DedupSettings) -> None:
        super().__init__()
        self.work = work
        self.settings = settings

    def file(self, rank: int) -> Path:
        """Where a shard's signatures are."""
        return Path(self.work) / SCRATCH / "signatures" / f"{rank:05d}.arrow"

    def run(self, data: Iterable[pa.Table], rank: int = 0, world_size: int = 1) -> None:
        """Consume the stream."""
        path, seen, schema = self.file(rank), 0, columns_of(self.settings)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        with pa.ipc.new_file(temporary, schema) as writer, path.with_suffix(".u32").open("wb") as shingles:
            for batch in data:
                columns, halves = self._signed(batch)
                writer.write_table(pa.table({name: columns[name] for name in schema.names}, schema=schema))
                halves.tofile(shingles)
                seen += batch.num_rows
                write_atomically(Path(self.work) / SCRATCH / "progress" / str(rank), str(seen).encode())
        temporary.replace(path)

    def _signed(self, batch: pa.Table) -> tuple[dict[str, Any], np.ndarray]:
        settings, halves = self.settings, np.zeros(0, np.uint32)
        columns: dict[str, Any] = {
            "id": batch["id"], "priority": priorities(batch, settings), "preference": preferences(batch, settings)
        }  # fmt: skip
        columns["size"] = pc.binary_length(batch["text"]).cast(pa.int64())
        domains_N, absent_N = _domains(batch, settings), np.zeros(batch.num_rows, bool)
        if settings.method == "minhash":
            signed = sign(batch["text"], settings.shape)
            keys_N2, short_N = signed.keys, signed.sizes == 0
            keys_N2[short_N] = text_keys(batch["text"].filter(pa.array(short_N)))
            columns["size"] = pa.array(signed.sizes)
            for k in range(settings.bands):
                columns[f"band_{k}"] = pa.array(signed.bands[:, k] ^ domains_N)
            halves = (signed.shingles >> np.uint64(32)).astype(np.uint32)
        elif settings.method == "url":
            keys_N2, absent_N = _url_keys(batch["url"])
        else:
            keys_N2 = text_keys(batch["text"])
        for k in (0, 1):
            columns[f"key_{k}"] = pa.array(keys_N2[:, k] ^ domains_N, mask=absent_N)
        columns["tie"] = ties(batch)
        return columns, halves


def priorities(batch: pa.Table, settings: DedupSettings) -> pa.Array:
    """Place of each document's source in the list of priorities, int32; sources not listed come last."""
    places = pc.index_in(batch["source"].combine_chunks(), value_set=pa.array(settings.priority, pa.string()))
    return pc.fill_null(places, len(settings.priority)).cast(pa.int32())


def preferences(batch: pa.Table, settings: DedupSettings) -> pa.Array | pa.ChunkedArray:
    """What decides which copy stays, float64, higher is better, null where unknown."""
    if settings.prefer == "quality":
        if SCORES.get_field_index(settings.score) >= 0:
            return pc.struct_field(batch["scores"], settings.score).cast(pa.float64())
        return pa.array([_number(value) for value in _of_metadata(batch, (settings.score,))], pa.float64())
    if settings.prefer == "longest":
        return pc.utf8_length(batch["text"]).cast(pa.float64())
    if settings.prefer == "newest":
        return pa.array([_seconds(value) for value in _of_metadata(batch, DATES)], pa.float64())
    return pa.array(np.zeros(batch.num_rows))


def _of_metadata(batch: pa.Table, names: Sequence[str]) -> Iterator[str | None]:
    for pairs in batch["metadata"].to_pylist():
        held = dict(pairs or ())
        yield next((held[name] for name in names if held.get(name)), None)


def _number(value: str | None) -> float | None:
    try:
        return float(value) if value else None
    except ValueError:
        return None


def _seconds(value: str | None) -> float | None:
    try:
        date = datetime.fromisoformat(value) if value else None
    except ValueError:
        return _number(value)
    if date is None:
        return None
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()


def _domains(batch: pa.Table, settings: DedupSettings) -> np.ndarray:
    """A number for each document's domain, mixed into its keys: uint64 (N,), zeros when domains do not matter."""
    if settings.within == "all":
        return np.zeros(batch.num_rows, np.uint64)
    coded = pc.fill_null(batch["domain"], "").combine_chunks().dictionary_encode()
    numbers = np.array([xxhash.xxh64_intdigest(name.encode()) for name in coded.dictionary.to_pylist()], np.uint64)
    return numbers[coded.indices.to_numpy()]


def text_keys(texts: pa.ChunkedArray) -> np.ndarray:
    """128 bits of each text, blind to whitespace: uint64 (N, 2)."""
    data_B, offsets_N = collapse_whitespace(texts)
    view, ends = data_B.data, offsets_N.tolist()
    digests = b"".join(xxhash.xxh3_128_digest(view[a:b]) for a, b in itertools.pairwise(ends))
    return np.frombuffer(digests, np.uint64).reshape(-1, 2)


def ties(batch: pa.Table) -> np.ndarray:
    """A hash of each document's url, origin and text, byte for byte: uint64 (N,)."""
    origin = [pc.struct_field(batch["origin"], field.name).cast(pa.string()) for field in ORIGIN]
    places = pc.binary_join_element_wise(batch["url"], *origin, "\0", null_handling="replace", null_replacement="\1")
    data_B, offsets_N = utf8_buffers(batch["text"])
    view, spans = data_B.data, itertools.pairwise(offsets_N.tolist())
    texts = (xxhash.xxh3_64_intdigest(view[a:b]) for a, b in spans)
    pairs = zip(places.cast(pa.binary()).to_pylist(), texts, strict=True)
    return np.array([xxhash.xxh3_64_intdigest(place, seed) for place, seed in pairs], np.uint64)


def _url_keys(urls: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    names = page_keys(urls)
    digests = b"".join(xxhash.xxh3_128_digest(name.encode()) for name in names)
    return np.frombuffer(digests, np.uint64).reshape(-1, 2), np.array([not name for name in names], bool)
