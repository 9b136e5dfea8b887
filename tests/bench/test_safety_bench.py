"""Lists of addresses and words against datatrove's URLFilter and the regular expression of its C4BadWordsFilter."""

import gzip
import json
import re
import time

import numpy as np
import pyarrow as pa
import pytest

from filters.safety import Safety, SafetySettings
from filters.url_lists import compile_entries, match_addresses
from filters.word_lists import compile_words, count_words
from pipelines.document import STREAM, conform
from pipelines.url_key import normalise_addresses

pytestmark = pytest.mark.bench


@pytest.mark.filterwarnings("ignore")
def test_addresses_against_datatrove(shared):
    pytest.importorskip("tldextract")
    pytest.importorskip("ahocorasick")
    from datatrove.data import Document
    from datatrove.pipeline.filters import URLFilter

    with gzip.open(shared / "lists/ut1/gambling_domains.txt.gz", "rt") as lines:
        domains = [line.strip() for line in lines if line.strip()]
    with gzip.open(shared / "lists/ut1/press_domains.txt.gz", "rt") as lines:
        innocent = [line.strip() for line in lines if line.strip()]
    urls = [f"https://www.{host}/a/page-{n}.html?id={n}" for n, host in enumerate([*domains[::4], *innocent])]
    compiled = compile_entries([(0, pa.array(domains))])
    column = pa.array(urls)
    match_addresses(normalise_addresses(column.slice(0, 2), lists=True), compiled)  # compiled before the clock starts
    begin = time.process_time()
    found, _ = match_addresses(normalise_addresses(column, lists=True), compiled)
    ours = time.process_time() - begin
    anchor = URLFilter(use_integrated_lists=False, extra_domains=domains, banned_words=(), banned_subwords=(),
                       soft_banned_words=())  # fmt: skip
    sample = urls[::10]
    anchor.filter(Document("", "0", metadata={"url": sample[0]}))
    begin = time.process_time()
    kept = np.array([anchor.filter(Document("", "0", metadata={"url": url})) is True for url in sample])
    theirs = (time.process_time() - begin) * len(urls) / len(sample)
    same = (kept == (found[::10] < 0)).mean()
    print(f"\naddresses: {len(urls) / ours:,.0f} per second, datatrove {len(urls) / theirs:,.0f} "
          f"({theirs / ours:.0f} times); same decision on {same:.2%}")  # fmt: skip
    assert same > 0.99
    assert theirs > ours


def test_words_against_the_expression_of_c4(shared):
    words = [word.strip() for word in (shared / "lists/ldnoobw/en").read_text().split("\n") if word.strip()]
    texts = [entry["text"] for entry in json.loads((shared / "web/c4_demo.json").read_text())]
    with gzip.open(shared / "dedup/extractor_variants.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts += [json.loads(line)["text"] for line in lines]
    size = sum(len(text.encode()) for text in texts) / 1e6
    trie, column = compile_words(words), pa.array(texts)
    count_words(column.slice(0, 2), trie)
    begin = time.process_time()
    found, _ = count_words(column, trie)
    ours = time.process_time() - begin
    expression = re.compile(rf"(?:\W|^)({'|'.join(map(re.escape, words))})(?:\W|$)")
    begin = time.process_time()
    expected = np.array([expression.search(text.lower()) is not None for text in texts])
    theirs = time.process_time() - begin
    print(f"\nwords: {size / ours:.0f} MB/s, C4's expression {size / theirs:.2f} MB/s ({theirs / ours:.0f} times); "
          f"same decision on {((found > 0) == expected).mean():.2%} of {len(texts)}")  # fmt: skip
    assert ((found > 0) == expected).mean() > 0.99
    assert theirs > ours


def test_the_whole_block(shared):
    texts = [entry["text"] for entry in json.loads((shared / "web/c4_demo.json").read_text())] * 4
    rows = {"id": [str(n) for n in range(len(texts))], "text": texts, "url": ["http://en.example.org/a"] * len(texts)}
    table = conform(pa.table(rows), STREAM)
    block = Safety(SafetySettings(urls=str(shared / "lists/ut1"), words=str(shared / "lists/ldnoobw")))
    block.apply(table.slice(0, 2))
    begin = time.process_time()
    block.apply(table)
    seconds = time.process_time() - begin
    size = sum(len(text.encode()) for text in texts) / 1e6
    print(f"\nsafety with UT1 and LDNOOBW: {size / seconds:.0f} MB/s, {len(texts) / seconds:,.0f} documents per second")
    assert size / seconds > 1
