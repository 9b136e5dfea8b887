"""Building a retrieval index: a corpus as passages, and for every term the passages that hold it with its weight there.

Weights are BM25's (Robertson and Zaragoza 2009, doi:10.1561/1500000019, with the never negative idf of Lucene),
computed once, so that a search only adds. Terms are 64-bit hashes: nothing of a vocabulary is kept, and memory is that
of one range of hashes, whatever the corpus. The index's name is a hash of the documents (not of how they lie in files),
of the settings and of the version of `retrieval_text`.

Legend of suffixes: D documents, P passages, T pairs of term and passage, V distinct terms.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from pipelines.block import BATCH_ROWS
from pipelines.compiled import kernel
from pipelines.document import conform, stated_licences
from pipelines.errors import DataError
from pipelines.files import write_atomically
from pipelines.manifest import digest_of
from pipelines.shingles import utf8_buffers
from synth.retrieval_settings import RetrievalSettings
from synth.retrieval_text import VERSION, cut_passages, terms_of

RECEIPT = "index.json"
REMEDY = "remove the folder to have it made again, or give --corpus the documents"
PASSAGES = pa.schema([("doc_id", pa.string()), ("start", pa.int32()), ("end", pa.int32()), ("text", pa.string())])
DOCUMENTS = pa.schema([(name, pa.string()) for name in ("id", "source", "licence")])
POSTING = np.dtype([("term", "<u8"), ("passage", "<u4"), ("count", "<u4")])
RANGE_BYTES = 256 << 20  # of text per range of hashes: its postings are sorted in memory
BATCH_BYTES = 16 << 20


def build_index(files: Sequence[Path], folder: Path, settings: RetrievalSettings) -> str:
    """Index a corpus, unless the folder holds that index already.

    Args:
        files: Parquet documents; of several with one id only the first counts.
        folder: for the index; whole once it holds `index.json`.
        settings: of passages and weights.

    Returns:
        The index's identity.

    Raises:
        DataError: a file is not readable, or no document holds a word.
    """
    if (receipt := folder / RECEIPT).is_file():
        return read_receipt(folder)["index"]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    ranges = 1 << max(0, int(sum(file.stat().st_size for file in files) * 4 // RANGE_BYTES).bit_length())
    found = _write_passages(files, folder, settings, min(ranges, 1024))
    if not found["passages"]:
        raise DataError(f"no passage in {', '.join(map(str, files[:3])) or 'no file'}; a corpus needs text")
    _write_postings(folder, settings)
    known = {"corpus": found.pop("corpus"), "settings": settings.model_dump(mode="json"), "text": VERSION}
    identity = digest_of(known)[:16]
    shutil.rmtree(folder / "ranges")
    write_atomically(receipt, json.dumps({"index": identity, **known, **found}, indent=1).encode())
    return identity


def read_receipt(folder: Path) -> dict[str, Any]:
    """What an index says of itself: `index`, `settings` and numbers.

    Raises:
        DataError: there is no index, or its description is damaged.
    """
    path = folder / RECEIPT
    if not path.is_file():
        raise DataError(f"{folder} holds no retrieval index ({RECEIPT} is missing)")
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {error}; {REMEDY}") from None
    if not (
        isinstance(found, dict) and isinstance(found.get("index"), str) and isinstance(found.get("settings"), dict)
    ):
        raise DataError(f"{path} does not describe a retrieval index; {REMEDY}")
    return found


def _batches(files: Sequence[Path]) -> Iterator[pa.Table]:
    """Ids, texts, sources and licences, in tables of bounded bytes."""
    for file in files:
        try:
            with pq.ParquetFile(file) as parquet:
                for batch in parquet.iter_batches(BATCH_ROWS):
                    whole = conform(pa.Table.from_batches([batch]), file=file).combine_chunks()
                    stated = stated_licences(whole["metadata"].combine_chunks())
                    table = whole.select(["id", "text", "source"]).append_column("licence", stated)
                    step = max(1, BATCH_BYTES * table.num_rows // max(1, table.nbytes))
                    yield from (table.slice(at, step) for at in range(0, table.num_rows, step))
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{file} is not readable Parquet: {error}") from None


def _write_passages(files: Sequence[Path], folder: Path, settings: RetrievalSettings, ranges: int) -> dict:
    """Write `passages.arrow`, documents' and passages' numbers, and the postings by range of hashes."""
    known: set[str] = set()
    digests: list[bytes] = []
    ids: list[str] = []
    known_D: list[pa.Table] = []
    docs_P: list[np.ndarray] = []
    sizes_P: list[np.ndarray] = []
    (folder / "ranges").mkdir()
    with ExitStack() as stack:
        writer = stack.enter_context(pa.ipc.new_file(folder / "passages.arrow", PASSAGES))
        parts = [stack.enter_context((folder / "ranges" / f"{r:04d}").open("wb")) for r in range(ranges)]
        total = 0
        for batch in _batches(files):
            names, texts = batch["id"].to_pylist(), batch["text"].combine_chunks()
            fresh = np.array([not (name in known or known.add(name)) for name in names], bool)
            known_D.append(batch.select(DOCUMENTS.names).cast(DOCUMENTS).filter(pa.array(fresh)))
            names, texts = [n for n, new in zip(names, fresh, strict=True) if new], texts.filter(pa.array(fresh))
            digests += [
                xxhash.xxh3_128_digest(f"{n}\0{t}".encode()) for n, t in zip(names, texts.to_pylist(), strict=True)
            ]
            data_B, _ = utf8_buffers(texts)
            spans_P5 = cut_passages(texts, settings.passage_bytes)
            terms_T, sizes = terms_of(data_B, spans_P5[:, 1:3])
            _append(parts, terms_T, sizes, total)
            writer.write_table(_passage_table(names, data_B, spans_P5))
            docs_P.append(spans_P5[:, 0] + len(ids))
            sizes_P.append(sizes)
            ids += names
            total += len(sizes)
    order_D = np.argsort(np.array(ids, object), kind="stable") if ids else np.zeros(0, np.int64)
    ranks_D = np.empty(len(ids), np.int64)
    ranks_D[order_D] = np.arange(len(ids))
    _save(folder, "docs", np.concatenate([*docs_P, np.zeros(0, np.int64)]).astype(np.int32))
    _save(folder, "ranks", ranks_D.astype(np.int32))
    _save(folder, "sizes", np.concatenate([*sizes_P, np.zeros(0, np.int64)]).astype(np.int32))
    pq.write_table(pa.concat_tables([DOCUMENTS.empty_table(), *known_D]), folder / "documents.parquet")
    corpus = hashlib.sha256(b"".join(digests[d] for d in order_D)).hexdigest()
    return {"corpus": corpus, "documents": len(ids), "passages": total}


def _passage_table(names: Sequence[str], data_B: np.ndarray, spans_P5: np.ndarray) -> pa.Table:
    view = data_B.data
    texts = [str(view[first:end], "utf-8") for first, end in spans_P5[:, 1:3]]
    ids = pa.array(names, pa.string()).take(pa.array(spans_P5[:, 0]))
    starts, ends = (pa.array(spans_P5[:, k].astype(np.int32)) for k in (3, 4))
    return pa.table([ids, starts, ends, pa.array(texts, pa.string())], schema=PASSAGES)


@kernel
def _counted(terms_T, sizes_P, first, out_T):
    """Sort each passage's terms and write (term, passage, count) of the distinct ones; return how many."""
    used, at = 0, 0
    for p in range(len(sizes_P)):
        own = terms_T[at : at + sizes_P[p]]
        own.sort()
        for t in range(len(own)):
            if t and own[t] == own[t - 1]:
                out_T[used - 1].count += 1
            else:
                out_T[used].term, out_T[used].passage, out_T[used].count = own[t], first + p, 1
                used += 1
        at += sizes_P[p]
    return used


def _append(parts: Sequence[BinaryIO], terms_T: np.ndarray, sizes_P: np.ndarray, first: int) -> None:
    """Append a batch's postings to the files of the ranges of hashes that they are in."""
    out_T = np.empty(len(terms_T), POSTING)
    out_T = out_T[: _counted(terms_T, sizes_P, first, out_T)]
    if len(parts) == 1:
        out_T.tofile(parts[0])
        return
    ranges_T = (out_T["term"] >> np.uint64(65 - len(parts).bit_length())).astype(np.int64)
    order_T = np.argsort(ranges_T, kind="stable")
    ends = np.cumsum(np.bincount(ranges_T, minlength=len(parts)))
    for part, some in zip(parts, np.split(out_T[order_T], ends[:-1]), strict=True):
        some.tofile(part)


def _write_postings(folder: Path, settings: RetrievalSettings) -> None:
    """Sort each range of hashes by term and weigh its postings."""
    sizes_P = np.load(folder / "sizes.npy")
    mean = sizes_P.mean() or 1.0
    lengths_P = (settings.k1 * (1 - settings.b + settings.b * sizes_P / mean)).astype(np.float64)
    terms, counts = [], []
    with (folder / "passages.u4").open("wb") as passages, (folder / "weights.f4").open("wb") as weights:
        for part in sorted((folder / "ranges").iterdir()):
            found_T = np.fromfile(part, POSTING)
            found_T = found_T[np.argsort(found_T["term"], kind="stable")]  # passages of a term stay in order
            terms_V, counts_V = np.unique(found_T["term"], return_counts=True)
            idf_V = np.log1p((len(sizes_P) - counts_V + 0.5) / (counts_V + 0.5))
            times_T = found_T["count"].astype(np.float64)
            weights_T = np.repeat(idf_V, counts_V) * times_T / (times_T + lengths_P[found_T["passage"]])
            found_T["passage"].tofile(passages)
            weights_T.astype(np.float32).tofile(weights)
            terms.append(terms_V)
            counts.append(counts_V)
    _save(folder, "terms", np.concatenate(terms))
    _save(folder, "starts", np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64))


def _save(folder: Path, name: str, values: np.ndarray) -> None:
    np.save(folder / f"{name}.npy", values, allow_pickle=False)
