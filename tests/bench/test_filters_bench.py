"""Speed (CPU seconds of one core) and agreement of the heuristics against datatrove's blocks, on the same pages."""

import gzip
import json
import time

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from filters.language_model import identify
from filters.pii import MaskPii
from filters.rules import RULE_SETS, judge
from filters.text_stats import lexicon, text_stats
from pipelines.document import STREAM, conform

pytestmark = pytest.mark.bench


@pytest.fixture(scope="module")
def pages(shared) -> list[str]:
    texts = [entry["text"] for entry in json.loads((shared / "web/c4_demo.json").read_text())]
    with gzip.open(shared / "dedup/extractor_variants.jsonl.gz", "rt", encoding="utf-8") as lines:
        return texts + [json.loads(line)["text"] for line in lines]


def megabytes(texts: list[str]) -> float:
    return sum(len(text.encode()) for text in texts) / 1e6


def datatrove_verdicts(texts: list[str]) -> tuple[dict[str, np.ndarray], float]:
    """Kept or not by each of FineWeb's heuristic blocks, and the seconds that they took."""
    from datatrove.data import Document
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )

    blocks = {
        "gopher_repetition": GopherRepetitionFilter(), "gopher_quality": GopherQualityFilter(),
        "c4_fineweb": C4QualityFilter(filter_no_terminal_punct=False), "fineweb": FineWebQualityFilter(),
    }  # fmt: skip
    begin = time.process_time()
    kept = {
        name: np.array([block.filter(Document(text=text, id="0")) is True for text in texts])
        for name, block in blocks.items()
    }
    return kept, time.process_time() - begin


def test_heuristics_against_datatrove(pages):
    words = lexicon()
    text_stats(pa.array(pages[:2]), words)  # compiled before the clock starts
    column = pa.array(pages)
    begin = time.process_time()
    stats = text_stats(column, words)
    verdicts = {name: judge(RULE_SETS[name], stats, len(pages)) for name in RULE_SETS}
    ours = time.process_time() - begin
    kept, theirs = datatrove_verdicts(pages)
    size = megabytes(pages)
    print(f"\nall rules: {size / ours:.1f} MB/s, datatrove: {size / theirs:.2f} MB/s, {theirs / ours:.0f} times faster")
    spaced = stats["cjk"] < 0.05  # datatrove's English words of Chinese and Japanese are whole clauses
    for name, expected in kept.items():
        same = np.asarray(pc.is_null(verdicts[name])) == expected
        print(
            f"{name}: same decision on {same.mean():.2%} of {len(pages)}, {same[spaced].mean():.2%} without CJK pages"
        )
        assert same[spaced].mean() >= 0.995
        assert same.mean() >= 0.99
    assert theirs / ours > 5


def test_language_speed(pages):
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identify(pa.array(pages[:2]))
    begin = time.process_time()
    identify(pa.array(pages))
    ours = time.process_time() - begin
    oracle = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    begin = time.process_time()
    for page in pages:
        oracle.classify(page[:2048])
    theirs = time.process_time() - begin
    print(
        f"\nlanguage: {len(pages) / ours:.0f} pages/s, py3langid on the same heads: {len(pages) / theirs:.0f} pages/s"
    )
    assert theirs > ours


def test_pii_speed(pages):
    table = conform(pa.table({"id": [str(n) for n in range(len(pages))], "text": pages}), STREAM)
    begin = time.process_time()
    masked = MaskPii().apply(table)
    seconds = time.process_time() - begin
    spans = pc.sum(pc.list_value_length(masked["pii.spans"])).as_py()
    print(f"\npii: {megabytes(pages) / seconds:.1f} MB/s, {spans} spans in {len(pages)} pages")
    assert spans > 100
