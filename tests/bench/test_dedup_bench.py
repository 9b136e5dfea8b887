"""Speed of near deduplication, against datatrove's first MinHash stage in the same run, on the same texts and core."""

import gzip
import json
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from datatrove.pipeline.dedup.minhash import MinhashDedupSignature

from pipelines.dedup import dedup
from pipelines.dedup_settings import DedupSettings
from pipelines.document import conform
from pipelines.key_groups import key_groups
from pipelines.line_dedup import _line_keys
from pipelines.minhash import Shape, sign
from pipelines.passages import Surroundings, anchors_of, match_leaders
from pipelines.shingles import code_points, collapse_whitespace, utf8_buffers
from tests.bench.cpu_time import cpu_seconds

pytestmark = pytest.mark.bench
ROUNDS = 3


@pytest.fixture(scope="module")
def texts(shared) -> list[str]:
    """1,278 real pages, 6.4 MB."""
    with gzip.open(shared / "dedup" / "extractor_variants.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def megabytes(texts: list[str]) -> float:
    return sum(len(text.encode()) for text in texts) / 1e6


def test_sign(benchmark, texts, tmp_path):
    pytest.importorskip("spacy")
    column = pa.array(texts)
    sign(column.slice(0, 2), Shape())  # compiles
    benchmark(sign, column, Shape())
    oracle = MinhashDedupSignature(str(tmp_path))
    oracle._hash_func = lambda text: xxhash.xxh64_intdigest(text.encode())  # xxhash 4 takes bytes only
    sample = texts[::12]
    theirs = megabytes(sample) / cpu_seconds(
        lambda: [oracle.get_signature(oracle.get_shingles(t)) for t in sample], ROUNDS
    )
    ours = megabytes(texts) / cpu_seconds(lambda: sign(column, Shape()), ROUNDS)
    benchmark.extra_info |= {"mb_per_s": round(ours, 1), "datatrove_mb_per_s": round(theirs, 2)}
    print(f"\nsignatures: {ours:.1f} MB/s, datatrove stage 1: {theirs:.2f} MB/s, {ours / theirs:.0f} times")
    assert ours > 50 * theirs


def test_sign_against_rensa(texts):
    rensa = pytest.importorskip("rensa")
    column = pa.array(texts)
    sign(column.slice(0, 2), Shape())  # compiles
    grams = [[" ".join(gram) for gram in zip(*(words[k:] for k in range(5)), strict=False)] for words in
             (text.split() for text in texts)]  # fmt: skip

    def signed_by_rensa():
        for shingles in grams:
            signer = rensa.RMinHash(112, 1)
            signer.update(shingles)
            signer.digest()

    theirs = megabytes(texts) / cpu_seconds(signed_by_rensa, ROUNDS)
    ours = megabytes(texts) / cpu_seconds(lambda: sign(column, Shape()), ROUNDS)
    print(f"\nsignatures: {ours:.1f} MB/s with words and shingles, rensa {theirs:.1f} MB/s from shingles made before")


def test_passages(texts):
    """All repeated passages of 150 bytes, against a suffix array of the same bytes where pydivsufsort is installed."""
    data, offsets = utf8_buffers(pa.array(texts))

    def found():
        places, keys = anchors_of(data, offsets, 150, 75)
        around = Surroundings(data, offsets, 150, 75)
        for groups in key_groups(lambda: iter([(places, keys, None)]), len(places), Path()):
            rows = np.searchsorted(offsets, groups.members, side="right") - 1
            match_leaders(groups.members, rows, groups.sizes, around)

    found()  # compiles
    ours = megabytes(texts) / cpu_seconds(found, ROUNDS)
    anchors = megabytes(texts) / cpu_seconds(lambda: anchors_of(data, offsets, 150, 75), ROUNDS)
    print(f"\nrepeated passages: {ours:.1f} MB/s on eleven copies of each page, anchors alone {anchors:.0f} MB/s")
    divsufsort = pytest.importorskip("pydivsufsort")
    text = data[: offsets[-1]].copy()

    def sorted_suffixes():
        divsufsort.kasai(text, divsufsort.divsufsort(text))

    theirs = megabytes(texts) / cpu_seconds(sorted_suffixes, ROUNDS)
    print(f"suffix array and common prefixes (divsufsort, kasai): {theirs:.1f} MB/s")


def test_lines(texts):
    data, offsets = utf8_buffers(pa.array(texts))
    _line_keys(data, offsets, code_points(), False, True, 30)
    seconds = cpu_seconds(lambda: _line_keys(data, offsets, code_points(), False, True, 30), ROUNDS)
    print(f"\nkeys of lines: {megabytes(texts) / seconds:.0f} MB/s")


def test_two_workers(texts, tmp_path):
    """The same sixteen files with one and two workers: wall time, in one run, on a machine that may be busy."""
    files = []
    for number in range(16):
        files.append(tmp_path / "in" / f"part-{number:05d}.parquet")
        files[-1].parent.mkdir(exist_ok=True)
        ids = [f"{number}-{n}" for n in range(len(texts))]
        pq.write_table(conform(pa.table({"id": ids, "text": texts})), files[-1])
    seconds = {}
    for workers in (1, 2):
        began = time.perf_counter()
        dedup(files, tmp_path / f"out{workers}", DedupSettings(), workers=workers)
        seconds[workers] = time.perf_counter() - began
    size = 16 * megabytes(texts)
    print(f"\nnear deduplication of {size:.0f} MB: {seconds[1]:.1f} s with 1 worker, {seconds[2]:.1f} with 2")


def test_collapse_whitespace(benchmark, texts):
    column = pa.array(texts)
    collapse_whitespace(column)
    benchmark(collapse_whitespace, column)
    benchmark.extra_info["mb_per_s"] = round(megabytes(texts) / benchmark.stats["mean"], 1)
