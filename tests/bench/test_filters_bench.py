"""Speed (CPU seconds of one core) and agreement of the heuristics against datatrove's blocks, on the same pages."""

import gzip
import json
import time
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from filters.characters import MARK, character_table
from filters.heuristics import FilterSettings, filter_documents
from filters.language_words import languages
from filters.pii import MaskPii
from filters.rule_tables import RULE_SETS
from filters.rules import judge, rule_set
from filters.text_memory import decode, lexicon, scratch
from filters.text_stats import text_stats
from filters.word_split import split_words
from pipelines.document import STREAM, conform

pytestmark = pytest.mark.bench


TABLE = character_table()
BLOCKS = ("gopher_repetition", "gopher_quality", "c4_fineweb", "fineweb")


@pytest.fixture(scope="module")
def pages(shared) -> list[str]:
    texts = [entry["text"] for entry in json.loads((shared / "web/c4_demo.json").read_text())]
    with gzip.open(shared / "dedup/extractor_variants.jsonl.gz", "rt", encoding="utf-8") as lines:
        return texts + [json.loads(line)["text"] for line in lines]


def megabytes(texts: list[str]) -> float:
    return sum(len(text.encode()) for text in texts) / 1e6


def datatrove_reasons(texts: list[str]) -> tuple[dict[str, list[str | None]], float]:
    """What each of FineWeb's heuristic blocks says of each page, one page after the other, and the CPU seconds.

    The blocks come in the order of FineWeb's pipeline; each looks at the page as it came, so that its answers can be
    compared. datatrove keeps the words of the last text, so that its blocks share one split of a page, as ours do.
    """
    from datatrove.data import Document
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )

    made = (GopherRepetitionFilter(), GopherQualityFilter(), C4QualityFilter(filter_no_terminal_punct=False),
            FineWebQualityFilter())  # fmt: skip
    blocks = dict(zip(BLOCKS, made, strict=True))
    for block in blocks.values():
        block.filter(Document(text="warm up. " * 10, id="0"))
    reasons: dict[str, list[str | None]] = {name: [] for name in blocks}
    begin = time.process_time()
    for text in texts:
        for name, block in blocks.items():
            result = block.filter(Document(text=text, id="0"))
            reasons[name].append(result[1] if isinstance(result, tuple) else None)
    return reasons, time.process_time() - begin


def seconds_of(column: pa.Array, names: Sequence[str], words) -> float:
    """CPU seconds of measuring and judging by these rule sets: the middle of three runs."""
    rules = rule_set(list(names))
    wanted = {rule.stat for rule in rules}
    text_stats(column.slice(0, 2), words, wanted, languages())  # compiled before the clock starts
    times = []
    for _ in range(3):
        begin = time.process_time()
        stats = text_stats(column, words, wanted, languages())
        judge(rules, stats, len(column), np.zeros(len(column), np.int64))
        times.append(time.process_time() - begin)
    return sorted(times)[1]


def cause_of(text: str, cjk: float) -> str:
    """Why a page is judged otherwise than by datatrove."""
    from datatrove.utils.text import PUNCTUATION_SET, split_into_words

    ours, theirs = words_of(text), split_into_words(text, "eng")
    if cjk >= 0.05:
        return f"each Han or Kana character is a word: {len(ours)} words, spaCy's English rules give {len(theirs)}"
    apart = sum((Counter(ours) - Counter(theirs)).values())
    if ours == theirs:
        marks = sorted(
            {word for word in ours if all(TABLE[ord(c)] & MARK for c in word) and not set(word) <= PUNCTUATION_SET}
        )
        return f"words agree, but {marks} are marks by Unicode and words in datatrove's list"
    example = next(((a, b) for a, b in zip(ours, theirs, strict=False) if a != b), ("", ""))
    return f"words differ in {apart} of {len(theirs)}, first {example[0]!r} for spaCy's {example[1]!r}"


def words_of(text: str) -> list[str]:
    words, data = lexicon(), np.frombuffer(text.encode(), np.uint8)
    memory = scratch(len(data))
    n = decode(data, 0, len(data), words.table, memory.cps, memory.cls)
    count = split_words(memory.cps, memory.cls, n, memory.starts, memory.ends, words.abbreviations, words.units)
    return [text[a:b] for a, b in zip(memory.starts[:count], memory.ends[:count], strict=True)]


def test_heuristics_against_datatrove(pages):
    words, column, size = lexicon(), pa.array(pages), megabytes(pages)
    reasons, theirs = datatrove_reasons(pages)
    print(f"\ndatatrove's four blocks: {size / theirs:.3f} MB/s")
    every = [name for name in RULE_SETS if name != "none"]
    for label, names in (("the same four sets", list(BLOCKS)), (f"all {len(every)} rule sets", every)):
        ours = seconds_of(column, names, words)
        print(f"{label} in one pass: {size / ours:.1f} MB/s, {theirs / ours:.0f} times faster")
        assert theirs / ours > 5
    stats = text_stats(column, words)
    spaced = stats["cjk"] < 0.05
    for name in BLOCKS:
        verdicts = judge(RULE_SETS[name], stats, len(pages)).to_pylist()
        same = np.array([(a is None) == (b is None) for a, b in zip(verdicts, reasons[name], strict=True)])
        print(f"{name}: same decision on {same.mean():.2%} of {len(pages)}, {same[spaced].mean():.2%} without CJK")
        for row in np.flatnonzero(~same):
            cause = cause_of(pages[row], stats["cjk"][row])
            print(f"  page {row}: {verdicts[row]}, datatrove {reasons[name][row]}: {cause}")
        assert same[spaced].mean() >= 0.995
    kept = np.array(judge(rule_set(list(BLOCKS)), stats, len(pages)).is_null())
    theirs_kept = np.array([all(reason is None for reason in row) for row in zip(*reasons.values(), strict=True)])
    print(f"all four together: same decision on {(kept == theirs_kept).mean():.2%}")
    assert (kept == theirs_kept).mean() >= 0.995


def test_values_are_cut_again_faster_than_they_are_measured(pages, tmp_path):
    table = conform(pa.table({"id": [str(n) for n in range(len(pages))], "text": pages}))
    pq.write_table(table, tmp_path / "pages.parquet")
    settings, seconds = FilterSettings(rules="web_en"), {}
    for name, attributes in (("warm", []), ("measured", []), ("again", [tmp_path / "measured/attributes"])):
        begin = time.process_time()
        files = [path for folder in attributes for path in folder.glob("*.parquet")]
        filter_documents([tmp_path / "pages.parquet"], tmp_path / name, settings, 1, files)
        seconds[name] = time.process_time() - begin
    print(f"\nmeasured: {seconds['measured']:.2f} s, cut again: {seconds['again']:.2f} s of CPU")
    assert seconds["again"] < seconds["measured"]


def test_pii_speed(pages):
    table = conform(pa.table({"id": [str(n) for n in range(len(pages))], "text": pages}), STREAM)
    MaskPii().apply(table.slice(0, 2))  # compiled before the clock starts
    begin = time.process_time()
    masked = MaskPii().apply(table)
    seconds = time.process_time() - begin
    spans = pc.sum(pc.list_value_length(masked["pii.spans"])).as_py()
    print(f"\npii: {megabytes(pages) / seconds:.1f} MB/s, {spans} spans in {len(pages)} pages")
    assert spans > 100
