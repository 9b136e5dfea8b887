"""Speed of near deduplication, against datatrove's first MinHash stage in the same run, on the same texts and core."""

import gzip
import json
import time
from collections.abc import Callable

import pyarrow as pa
import pytest
import xxhash
from datatrove.pipeline.dedup.minhash import MinhashDedupSignature

from pipelines.decontaminate import DecontaminateSettings, _find, build_reference
from pipelines.minhash import Shape, sign
from pipelines.shingles import code_points, collapse_whitespace, utf8_buffers

pytestmark = pytest.mark.bench


@pytest.fixture(scope="module")
def texts(shared) -> list[str]:
    """1,278 real pages, 6.4 MB."""
    with gzip.open(shared / "dedup" / "extractor_variants.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def megabytes(texts: list[str]) -> float:
    return sum(len(text.encode()) for text in texts) / 1e6


def cpu_seconds(work: Callable[[], object]) -> float:
    """The least of three runs, in this process's own time: what other processes do counts for neither side."""
    taken = []
    for _ in range(3):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return min(taken)


def test_sign(benchmark, texts, tmp_path):
    pytest.importorskip("spacy")
    column = pa.array(texts)
    sign(column.slice(0, 2), Shape())  # compiles
    benchmark(sign, column, Shape())
    oracle = MinhashDedupSignature(str(tmp_path))
    oracle._hash_func = lambda text: xxhash.xxh64_intdigest(text.encode())  # xxhash 4 takes bytes only
    sample = texts[::12]
    theirs = megabytes(sample) / cpu_seconds(lambda: [oracle.get_signature(oracle.get_shingles(t)) for t in sample])
    ours = megabytes(texts) / cpu_seconds(lambda: sign(column, Shape()))
    benchmark.extra_info |= {"mb_per_s": round(ours, 1), "datatrove_mb_per_s": round(theirs, 2)}
    print(f"\nsignatures: {ours:.1f} MB/s, datatrove stage 1: {theirs:.2f} MB/s, {ours / theirs:.0f} times")
    assert ours > 10 * theirs


def test_collapse_whitespace(benchmark, texts):
    column = pa.array(texts)
    collapse_whitespace(column)
    benchmark(collapse_whitespace, column)
    benchmark.extra_info["mb_per_s"] = round(megabytes(texts) / benchmark.stats["mean"], 1)


def test_decontaminate(benchmark, texts, shared):
    lines = (shared / "qa" / "arc_easy.jsonl").read_text(encoding="utf-8").splitlines()
    reference, _ = build_reference(
        pa.chunked_array([[json.loads(line)["query"] for line in lines]]), DecontaminateSettings()
    )
    data, offsets = utf8_buffers(pa.array(texts))
    _find(data, offsets, code_points(), False, reference)
    benchmark(_find, data, offsets, code_points(), False, reference)
    benchmark.extra_info["mb_per_s"] = round(megabytes(texts) / benchmark.stats["mean"], 1)
