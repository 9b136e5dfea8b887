"""Deduplication: exact, by URL, or near (MinHash), within a set of documents and against an earlier one.

Each shard is signed on its own, in parallel; pairs and clusters are found on the signatures alone; a second pass over
the shards writes what is kept and what is dropped. Candidates of MinHash are verified by the Jaccard similarity of
their shingles, because at 14 bands of 8 rows more than half of the pairs at similarity 0.7 share a band (Leskovec et
al., Mining of Massive Datasets, ch. 3).

Memory of the deciding process: about 16 + 8 bands + 60 bytes and its id for each document (250 bytes at 14 bands).
Scratch on disk: 8 bytes for each distinct shingle (about 1.3 times the text); of it only documents that share a band
are read again, through a memory map. A text too short for one shingle has no signature and is kept; `exact` handles it.
"""

import itertools
import json
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from datatrove.pipeline.base import PipelineStep
from pydantic import Field

from pipelines import clusters
from pipelines.block import ReadDocuments
from pipelines.document import DROPPED, with_fate
from pipelines.errors import DataError
from pipelines.execute import SCRATCH, run_blocks, transform
from pipelines.files import write_atomically
from pipelines.journal import record
from pipelines.minhash import Shape, Shingled, in_company, sign, similar_pairs
from pipelines.recipe import Section
from pipelines.shingles import collapse_whitespace
from pipelines.store import Outcome

SKETCH = 1024  # an index stores a document's smallest shingles, so many: error of a similarity near 0.8 is 0.0125
REASONS = {"exact": "exact_duplicate", "url": "url_duplicate", "minhash": "near_duplicate"}
CLUSTERS = pa.schema(
    [
        ("id", pa.string()),
        ("cluster", pa.string()),  # id of the document that stands for all; of the index, when one of the index does
        ("kept", pa.bool_()),
        ("matched_id", pa.string()),  # the document most like it, one of the index before others; null when kept
        ("jaccard", pa.float64()),  # of their shingles; null for url
    ]
)


class DedupSettings(Section):
    """What counts as a duplicate, and which copy stays.

    Attributes:
        method: `exact` (equal but for whitespace), `url` (equal normalized URL) or `minhash` (near).
        unit: of shingles; a character of a script without spaces is a word.
        ngram: units of a shingle.
        bands: groups of hashes of which one must agree.
        rows: hashes of a band.
        seed: of the permutations.
        verify_jaccard: least similarity of two near duplicates; null takes every pair that shares a band.
        prefer: the copy that stays: the least id, the highest quality score, or the longest text; ties by least id.
        within: whether documents of different domains can be duplicates of each other.
    """

    method: Literal["exact", "url", "minhash"] = "minhash"
    unit: Literal["word", "char"] = "word"
    ngram: int = Field(default=5, ge=1)
    bands: int = Field(default=14, ge=1)
    rows: int = Field(default=8, ge=1)
    seed: int = Field(default=1, ge=0, lt=2**32)
    verify_jaccard: float | None = Field(default=0.8, ge=0, le=1)
    prefer: Literal["first", "quality", "longest"] = "first"
    within: Literal["all", "domain"] = "all"

    @property
    def shape(self) -> Shape:
        """The shape of the signatures."""
        return Shape(self.unit == "char", self.ngram, self.bands, self.rows, self.seed)

    @property
    def of_index(self) -> dict[str, object]:
        """What two runs must share for one to use the other's index."""
        names = ["method", "within"] + (["unit", "ngram", "bands", "rows", "seed"] if self.method == "minhash" else [])
        return {name: getattr(self, name) for name in names}

    @property
    def columns(self) -> pa.Schema:
        """Of signature files and of the index."""
        fields = [("id", pa.string()), ("preference", pa.float64()), ("key_0", pa.uint64()), ("key_1", pa.uint64())]
        if self.method == "minhash":
            fields += [("size", pa.int64()), ("bands", pa.list_(pa.uint64(), self.bands)),
                       ("shingles", pa.large_list(pa.uint64()))]  # fmt: skip
        return pa.schema(fields)


def dedup(
    files: Sequence[Path], work: Path, settings: DedupSettings, workers: int = 1, against: Path | None = None
) -> Outcome:
    """Drop duplicates.

    Writes `kept/`, `dropped/` (reason `exact_duplicate`, `url_duplicate` or `near_duplicate`), `clusters.parquet`
    (`CLUSTERS`: the documents that have a duplicate, and no others), and `index/`, which a later run takes as
    `against`; it holds the documents kept here and those of this run's own `against`: the newest stands for all.

    Args:
        files: Parquet documents.
        work: folder to fill; may hold the beginnings of a killed run.
        settings: what counts as a duplicate.
        workers: processes.
        against: the output or the `index/` of an earlier run. Only documents of `files` are dropped.

    Raises:
        DataError: `against` is not an index, or one made with other settings.
    """
    began = time.perf_counter()
    (work / SCRATCH).mkdir(parents=True, exist_ok=True)
    indexed = _open_index(against, settings) if against else []
    signer = SignDocuments(str(work), settings)
    run_blocks([ReadDocuments([str(f) for f in files]), signer], len(files), work, workers, "sign")
    record("dedup", stage="sign", seconds=round(time.perf_counter() - began, 3))
    shards = [_map(signer.file(rank)) for rank in range(len(files))]
    decision = _decide([_map(path) for path in indexed], shards, settings, work)
    record("dedup", stage="decide", seconds=round(time.perf_counter() - began, 3))
    _write_clusters(work / "clusters.parquet", decision.clusters)
    _write_index(work / "index", indexed, shards, decision.dropped, settings)
    for rank, dropped in enumerate(decision.dropped):
        np.save(work / SCRATCH / f"dropped-{rank:05d}.npy", dropped)
    counts = transform(files, [DropDuplicates(str(work), REASONS[settings.method])], work, workers, "drop")
    record("dedup", stage="drop", seconds=round(time.perf_counter() - began, 3))
    return Outcome(counts, decision.metrics)


class SignDocuments(PipelineStep):
    """End of a pipeline: one signature file per shard, in Arrow's file format, rows as in the shard."""

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
        path, seen = self.file(rank), 0
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        with pa.ipc.new_file(temporary, self.settings.columns) as writer:
            for batch in data:
                writer.write_table(self._signed(batch))
                seen += batch.num_rows
                write_atomically(Path(self.work) / SCRATCH / "progress" / str(rank), str(seen).encode())
        temporary.replace(path)

    def _signed(self, batch: pa.Table) -> pa.Table:
        settings = self.settings
        columns: dict[str, pa.Array | pa.ChunkedArray] = {"id": batch["id"], "preference": self._preference(batch)}
        domains_N = self._domains(batch)
        if settings.method == "minhash":
            signed = sign(batch["text"], settings.shape)
            absent_N = signed.sizes == 0
            keys_N2 = signed.keys ^ domains_N[:, None]
            bands = (signed.bands ^ domains_N[:, None]).reshape(-1)
            starts = np.concatenate([[0], np.cumsum(signed.sizes)])
            columns["size"] = pa.array(signed.sizes)
            columns["bands"] = pa.FixedSizeListArray.from_arrays(pa.array(bands), settings.bands)
            columns["shingles"] = pa.LargeListArray.from_arrays(starts, pa.array(signed.shingles))
        else:
            keys_N2, absent_N = _text_keys(batch["text"]) if settings.method == "exact" else _url_keys(batch["url"])
            keys_N2 = keys_N2 ^ domains_N[:, None]
        for k in (0, 1):
            columns[f"key_{k}"] = pa.array(keys_N2[:, k], mask=absent_N)
        return pa.table({name: columns[name] for name in settings.columns.names}, schema=settings.columns)

    def _preference(self, batch: pa.Table) -> pa.ChunkedArray | pa.Array:
        if self.settings.prefer == "quality":
            return pc.struct_field(batch["scores"], "quality")
        if self.settings.prefer == "longest":
            return pc.utf8_length(batch["text"]).cast(pa.float64())
        return pa.array(np.zeros(batch.num_rows))

    def _domains(self, batch: pa.Table) -> np.ndarray:
        """A number for each document's domain, mixed into its keys: uint64 (N,), zeros when domains do not matter."""
        if self.settings.within == "all":
            return np.zeros(batch.num_rows, np.uint64)
        coded = pc.fill_null(batch["domain"], "").combine_chunks().dictionary_encode()
        numbers = np.array([xxhash.xxh64_intdigest(name.encode()) for name in coded.dictionary.to_pylist()], np.uint64)
        return numbers[coded.indices.to_numpy()]


class DropDuplicates(PipelineStep):
    """Marks the rows that were found to be duplicates."""

    type = "block"
    name = "drop"

    def __init__(self, work: str, reason: str) -> None:
        super().__init__()
        self.work = work
        self.reason = reason

    def run(self, data: Iterable[pa.Table], rank: int = 0, world_size: int = 1) -> Iterator[pa.Table]:
        """Mark each batch; rows come in the order in which they were signed."""
        dropped, at = np.load(Path(self.work) / SCRATCH / f"dropped-{rank:05d}.npy"), 0
        for batch in data:
            here = pa.array(dropped[at : at + batch.num_rows])
            at += batch.num_rows
            yield with_fate(batch, DROPPED, pc.if_else(here, self.reason, pa.scalar(None, pa.string())))


def _text_keys(texts: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    data_B, offsets_N = collapse_whitespace(texts)
    view, ends = data_B.data, offsets_N.tolist()
    digests = b"".join(xxhash.xxh3_128_digest(view[a:b]) for a, b in itertools.pairwise(ends))
    return np.frombuffer(digests, np.uint64).reshape(-1, 2), np.zeros(len(texts), bool)


def _url_keys(urls: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    names = [normalized_url(url) if url else "" for url in urls.to_pylist()]
    digests = b"".join(xxhash.xxh3_128_digest(name.encode("utf-8", "surrogatepass")) for name in names)
    return np.frombuffer(digests, np.uint64).reshape(-1, 2), np.array([not name for name in names], bool)


def normalized_url(url: str) -> str:
    """What two addresses of one page have in common.

    Scheme, `www.`, default port, fragment, a last slash and parameters of campaigns (`utm_...`, `fbclid`, `gclid`) are
    left out; the host is in lower case; parameters are sorted.
    """
    url = url.strip()
    try:
        parts = urlsplit(url if "://" in url else f"//{url}")
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:  # brackets or a port that mean nothing: only equal strings are equal
        return url
    address = host.removeprefix("www.") + (f":{port}" if port not in (None, 80, 443) else "") + parts.path.rstrip("/")
    parameters = [p for p in parts.query.split("&") if p and not p.startswith(("utm_", "fbclid=", "gclid="))]
    return address + ("?" + "&".join(sorted(parameters)) if parameters else "")


class _Decision(NamedTuple):
    dropped: list[np.ndarray]
    clusters: pa.Table
    metrics: dict[str, int]


def _decide(indexed: list[pa.Table], shards: list[pa.Table], settings: DedupSettings, work: Path) -> _Decision:
    tables = [*indexed, *shards]
    light = ["id", "preference", "key_0", "key_1"]
    documents = pa.concat_tables([t.select(light) for t in tables]) if tables else settings.columns.empty_table()
    old = sum(t.num_rows for t in indexed)
    documents = documents.append_column("settled", pa.array(np.arange(documents.num_rows) < old))
    order_N = clusters.rank_order(documents)
    order_N = order_N[pc.is_valid(documents["key_0"]).to_numpy()[order_N]]
    settled = int((order_N < old).sum())
    keys = [pc.fill_null(documents[f"key_{k}"], 0).to_numpy()[order_N] for k in (0, 1)]
    one_E, other_E = clusters.equal_pairs(np.stack(keys, axis=1))
    similar_E = np.ones(len(one_E))
    metrics = {"documents": documents.num_rows - old, "without_key": documents.num_rows - len(order_N),
               "indexed": old, "equal": len(one_E)}  # fmt: skip
    if settings.method == "minhash":
        pairs = _near_pairs(tables, order_N, np.setdiff1d(np.arange(len(order_N)), other_E), settled, settings, work)
        one_E, other_E = np.concatenate([one_E, pairs[0]]), np.concatenate([other_E, pairs[1]])
        similar_E = np.concatenate([similar_E, pairs[2]])
        metrics |= pairs[3]
    roots_N = clusters.components(len(order_N), one_E, other_E)
    matches_N, nearest_N = clusters.best_matches(len(order_N), one_E, other_E, similar_E, settled)
    first_E, twin_E = one_E[: metrics["equal"]], other_E[: metrics["equal"]]
    to_old = (first_E >= settled) & (matches_N[first_E] >= 0) & (matches_N[first_E] < settled)
    for values_N in (matches_N, nearest_N):  # only the first of equal texts was compared with the index
        values_N[twin_E[to_old]] = values_N[first_E[to_old]]
    ranks = np.flatnonzero((matches_N >= 0) & (np.arange(len(order_N)) >= settled))
    kept = roots_N[ranks] == ranks
    dropped = np.zeros(documents.num_rows, bool)
    dropped[order_N[ranks[~kept]]] = True
    ids = documents["id"].combine_chunks()
    table = pa.table(
        {
            "id": ids.take(order_N[ranks]),
            "cluster": ids.take(order_N[roots_N[ranks]]),
            "kept": kept,
            "matched_id": pc.if_else(kept, pa.scalar(None, pa.string()), ids.take(order_N[matches_N[ranks]])),
            "jaccard": pa.array(nearest_N[ranks], mask=kept | (settings.method == "url")),
        },
        schema=CLUSTERS,
    )
    bounds = np.cumsum([0, *(t.num_rows for t in shards)]) + old
    parts = [dropped[a:b] for a, b in itertools.pairwise(bounds)]
    metrics |= {"clusters": len(np.unique(roots_N[ranks])), "duplicates": int(dropped.sum())}
    return _Decision(parts, table, metrics)


def _near_pairs(
    tables: list[pa.Table], order_N: np.ndarray, first_N: np.ndarray, settled: int, settings: DedupSettings, work: Path
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, int]]:
    """Similar pairs among the documents that are the first of their key; ranks, similarities, counts."""
    bands = [_flat(column, settings.bands) for table in tables for column in table["bands"].chunks]
    bands_NK = np.concatenate(bands)[order_N[first_N]] if bands else np.zeros((0, settings.bands), np.uint64)
    company = in_company(bands_NK)
    ranks = first_N[company]
    sets = _gather(tables, order_N[ranks], work / SCRATCH / "candidates.u64")
    least = 0.0 if settings.verify_jaccard is None else settings.verify_jaccard
    found = similar_pairs(bands_NK[company], sets, least, int((ranks < settled).sum()))
    counts = {"compared": found.compared, "similar": len(found.one), "not_compared": found.left}
    return ranks[found.one], ranks[found.other], found.similarity, counts


def _flat(bands: pa.FixedSizeListArray, width: int) -> np.ndarray:
    return bands.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)


def _gather(tables: list[pa.Table], rows: np.ndarray, path: Path) -> Shingled:
    """Copy the shingles of some documents into one file, which is mapped: the system keeps in memory what it can."""
    counts, sizes, starts = (np.zeros(len(rows), np.int64) for _ in range(3))
    total, base = 0, 0
    with path.open("wb") as file:
        for table in tables:
            here = np.flatnonzero((rows >= base) & (rows < base + table.num_rows))
            here = here[np.argsort(rows[here])]
            taken = table.select(["size", "shingles"]).take(pa.array(rows[here] - base))
            lengths = pc.list_value_length(taken["shingles"]).to_numpy()
            counts[here], sizes[here] = lengths, taken["size"].to_numpy()
            starts[here] = total + np.cumsum(lengths) - lengths
            for chunk in taken["shingles"].chunks:
                chunk.flatten().to_numpy(zero_copy_only=False).tofile(file)
            total, base = total + int(lengths.sum()), base + table.num_rows
    stored = np.memmap(path, np.uint64, mode="c") if total else np.zeros(0, np.uint64)
    return Shingled(np.asarray(stored), starts, counts, sizes)


def _map(path: Path) -> pa.Table:
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is not a readable signature file: {error}; remove its folder and run again") from None


def _open_index(against: Path, settings: DedupSettings) -> list[Path]:
    folder = against / "index" if (against / "index").is_dir() else against
    described = folder / "index.json"
    if not described.is_file():
        raise DataError(f"{against} holds no index; give the folder that an earlier `loam dedup` wrote")
    found, asked = json.loads(described.read_text()), settings.of_index
    if found != asked:
        names = sorted(name for name in {*found, *asked} if found.get(name) != asked.get(name))
        differences = ", ".join(f"{name} {found.get(name)}, asked for {asked.get(name)}" for name in names)
        raise DataError(f"the index {folder} was made with other settings: {differences}; use the same, or no index")
    return sorted(folder.glob("*.arrow"))


def _write_index(
    folder: Path, before: list[Path], shards: list[pa.Table], dropped: list[np.ndarray], settings: DedupSettings
) -> None:
    """Write the index: the files of the one before, then one file for each shard with the documents that were kept."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number, path in enumerate(before):
        shutil.copyfile(path, folder / f"{number:05d}.arrow")
    for number, (table, gone) in enumerate(zip(shards, dropped, strict=True), start=len(before)):
        kept = table.filter(pc.and_(pc.is_valid(table["key_0"]), pa.array(~gone)))
        if settings.method == "minhash":
            cut = pc.list_slice(kept["shingles"], 0, SKETCH).cast(pa.large_list(pa.uint64()))
            kept = kept.set_column(kept.schema.get_field_index("shingles"), "shingles", cut)
        with pa.ipc.new_file(folder / f"{number:05d}.arrow", settings.columns) as writer:
            writer.write_table(kept.cast(settings.columns).combine_chunks())
    write_atomically(folder / "index.json", json.dumps(settings.of_index, indent=1, sort_keys=True).encode())


def _write_clusters(path: Path, table: pa.Table) -> None:
    ordered = table.sort_by([("cluster", "ascending"), ("kept", "descending"), ("id", "ascending")])
    temporary = path.with_name(f".{path.name}.tmp")
    pq.write_table(ordered, temporary, compression="zstd")
    temporary.replace(path)
