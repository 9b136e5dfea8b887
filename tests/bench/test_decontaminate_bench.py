"""How fast documents are searched for evaluation items, beside a set of n-grams in Python: CPU time, in one run."""

import gzip
import json
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipelines.eval_items import read_items
from pipelines.ngram_index import build_reference, find
from pipelines.shingles import words_of

pytestmark = pytest.mark.bench
NGRAM = 13


def test_search_against_a_set_of_ngrams(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with gzip.open(shared / "dedup" / "extractor_variants.jsonl.gz", "rt", encoding="utf-8") as lines:
        pages = [json.loads(line)["text"] for line in lines][:600]
    items = read_items([shared / "qa" / "arc_easy.jsonl", shared / "math" / "math.jsonl.gz"], None)
    long = pa.array([len(words_of(text, False)) >= NGRAM for text in items["text"].to_pylist()])
    texts = items["text"].filter(long)
    column = pa.array(pages, pa.large_string())
    reference = build_reference(texts, np.zeros(len(texts), np.int64), np.full(len(texts), NGRAM), False)
    find(column[:2], reference, False)  # compiled
    started = time.process_time()
    found = {n for n, _, _, _ in find(column, reference, False)}
    ours_s = time.process_time() - started
    grams = {tuple(words[i : i + NGRAM]) for words in map(str.split, map(str.lower, texts.to_pylist()))
             for i in range(len(words) - NGRAM + 1)}  # fmt: skip
    started = time.process_time()
    plain = set()
    for n, page in enumerate(pages):
        words = page.lower().split()
        if any(tuple(words[i : i + NGRAM]) in grams for i in range(len(words) - NGRAM + 1)):
            plain.add(n)
    theirs_s = time.process_time() - started
    megabytes = sum(len(page.encode()) for page in pages) / 1e6
    assert plain <= found
    speeds = f"loam {megabytes / ours_s:.1f}, a Python set {megabytes / theirs_s:.1f} MB per CPU second"
    with capsys.disabled():
        print(f"\n{megabytes:.1f} MB: {speeds} ({theirs_s / ours_s:.1f}x)")
