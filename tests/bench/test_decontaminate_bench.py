"""How fast documents are searched for evaluation items, beside a set of n-grams in Python: CPU time, in one run."""

import gzip
import json
import random
import time
from pathlib import Path
from typing import Any

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


def test_decisions_and_speed_against_datatrove(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same 13-grams of the same texts, planted in half of the pages: datatrove's filter and our search."""
    pytest.importorskip("spacy")
    from datatrove.data import Document
    from datatrove.pipeline.decont import NGramsDecontFilter
    from datatrove.pipeline.decont.n_grams import NGramsDecontConfig
    from datatrove.utils.hashing import create_hash_func
    from datatrove.utils.text import TextNormConfig, ngrams, simplify_text
    from datatrove.utils.word_tokenizers import load_word_tokenizer

    with gzip.open(shared / "dedup" / "extractor_variants.jsonl.gz", "rt", encoding="utf-8") as lines:
        pages = [json.loads(line)["text"] for line in lines][:400]
    rows = read_items([shared / "qa" / "arc_easy.jsonl", shared / "math" / "math.jsonl.gz"], None)["text"].to_pylist()
    texts = [text for text in rows if len(words_of(text, False)) >= 2 * NGRAM][:2000]
    rng = random.Random(1)
    for n in range(0, len(pages), 2):
        pages[n] = f"{pages[n][:200]}\n{rng.choice(texts)}\n{pages[n][200:]}"
    config = NGramsDecontConfig(n_grams=NGRAM, norm_config=TextNormConfig(norm_numbers=False, norm_weekdays=False,
                                                                          norm_monthnames=False))  # fmt: skip
    words = load_word_tokenizer("en")
    digest: Any = create_hash_func(config.hash_config)
    simple = (words.word_tokenize(simplify_text(text, config.norm_config)) for text in texts)
    hashes = {digest(" ".join(gram)) for found in simple for gram in ngrams(found, NGRAM)}
    np.array(sorted(hashes), config.hash_config.np_descr).tofile(tmp_path / "items.index.hashes")
    block = NGramsDecontFilter(str(tmp_path), config)
    block.load_index_hashes()
    started = time.process_time()
    theirs = {n for n, page in enumerate(pages) if block.filter(Document(text=page, id=str(n))) is not True}
    theirs_s = time.process_time() - started
    column = pa.array(pages, pa.large_string())
    ones = np.zeros(len(texts), np.int64)
    reference = build_reference(pa.array(texts), ones, np.full(len(texts), NGRAM), False)
    find(column[:2], reference, False)  # compiled
    started = time.process_time()
    ours = {n for n, _, _, _ in find(column, reference, False)}
    ours_s = time.process_time() - started
    planted = set(range(0, len(pages), 2))
    megabytes = sum(len(page.encode()) for page in pages) / 1e6
    assert planted <= ours
    with capsys.disabled():
        print(f"\n{megabytes:.1f} MB, {len(planted)} of {len(pages)} pages with an item: found by loam {len(ours)}, by "
              f"datatrove {len(theirs)} ({len(planted - theirs)} planted ones missed), same decision on "
              f"{1 - len(ours ^ theirs) / len(pages):.2%}; loam {megabytes / ours_s:.1f}, datatrove "
              f"{megabytes / theirs_s:.2f} MB per CPU second ({theirs_s / ours_s:.0f}x)")  # fmt: skip
        for n in sorted(ours ^ theirs)[:20]:
            hit = next(((a, b) for m, _, a, b in find(column[n : n + 1], reference, False)), (0, 0))
            print(f"  page {n}, {'loam' if n in ours else 'datatrove'} alone: {pages[n][hit[0] : hit[1]]!r}")
