"""Personal data: F1 against presidio's pattern recognizers, and speed against datatrove's block."""

import gzip
import json
import time

import pyarrow as pa
import pytest

from filters.pii import MaskPii, find
from pipelines.document import STREAM, conform

pytestmark = pytest.mark.bench
KINDS = {"EMAIL_ADDRESS": "email", "CREDIT_CARD": "credit_card", "PHONE_NUMBER": "phone_number", "IBAN_CODE": "iban",
         "US_SSN": "us_ssn", "IP_ADDRESS": "ip_address"}  # fmt: skip

Found = set[tuple[int, str, int, int]]


def f1(truth: Found, found: Found) -> float:
    return 2 * len(truth & found) / (len(truth) + len(found))


def touching(truth: Found, found: Found) -> float:
    """F1 where a span counts when it overlaps one of its type."""
    pairs = {(t, f) for t in truth for f in found if t[:2] == f[:2] and t[2] < f[3] and f[2] < t[3]}
    precision, recall = len({f for _, f in pairs}) / len(found), len({t for t, _ in pairs}) / len(truth)
    return 2 * precision * recall / (precision + recall)


def presidio_finds(texts: list[str], threshold: float) -> Found:
    """What presidio's own recognizers by pattern say (no model of names: none of these types needs one)."""
    analyzer = pytest.importorskip("presidio_analyzer")
    spacy = pytest.importorskip("spacy")
    from presidio_analyzer.nlp_engine import NlpArtifacts, NlpEngine

    blank = spacy.blank("en")

    class Blank(NlpEngine):
        def process_text(self, text, language):
            document = blank(text)
            return NlpArtifacts([], document, [t.idx for t in document], [t.lower_ for t in document], self, language)

        def process_batch(self, texts, language, **kwargs):
            return ((text, self.process_text(text, language)) for text in texts)

        def get_supported_languages(self):
            return ["en"]

        def get_supported_entities(self):
            return []

        def is_punct(self, word, language):
            return blank.vocab[word].is_punct

        def is_loaded(self):
            return True

        def is_stopword(self, word, language):
            return blank.vocab[word].is_stop

        def load(self):
            pass

    engine = analyzer.AnalyzerEngine(nlp_engine=Blank(), supported_languages=["en"], default_score_threshold=threshold)
    return {
        (row, KINDS[result.entity_type], result.start, result.end)
        for row, text in enumerate(texts)
        for result in engine.analyze(text, "en", entities=list(KINDS))
    }


@pytest.mark.filterwarnings("ignore")
def test_f1_against_presidio(shared):
    entries = json.loads((shared / "pii/presidio_synth_dataset_v2.json").read_text())
    texts = [entry["full_text"] for entry in entries]
    truth = {
        (row, KINDS[s["entity_type"]], s["start_position"], s["end_position"])
        for row, entry in enumerate(entries) for s in entry["spans"] if s["entity_type"] in KINDS
    }  # fmt: skip
    ours = {(row, span.type, span.start, span.end) for row, text in enumerate(texts) for span in find(text)}
    theirs = max((presidio_finds(texts, threshold) for threshold in (0, 0.35, 0.5)), key=lambda found: f1(truth, found))
    for name, found in (("loam", ours), ("presidio at its best threshold", theirs)):
        each = {kind: f1({t for t in truth if t[1] == kind}, {t for t in found if t[1] == kind})
                for kind in KINDS.values()}  # fmt: skip
        rounded = {kind: round(value, 3) for kind, value in each.items()}
        print(f"\n{name}: F1 {f1(truth, found):.3f}, counting any overlap {touching(truth, found):.3f}; {rounded}")
    assert f1(truth, ours) > f1(truth, theirs)


def test_speed_against_datatrove(shared):
    from datatrove.pipeline.formatters import PIIFormatter

    texts = [entry["text"] for entry in json.loads((shared / "web/c4_demo.json").read_text())]
    with gzip.open(shared / "dedup/extractor_variants.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts += [json.loads(line)["text"] for line in lines]
    size = sum(len(text.encode()) for text in texts) / 1e6
    table = conform(pa.table({"id": [str(n) for n in range(len(texts))], "text": texts}), STREAM)
    block, anchor = MaskPii(), PIIFormatter()
    block.apply(table.slice(0, 2))  # compiled before the clock starts
    begin = time.process_time()
    block.apply(table)
    ours = time.process_time() - begin
    begin = time.process_time()
    for text in texts:
        anchor.format(text)
    theirs = time.process_time() - begin
    print(f"\npii, {len(KINDS)} kinds and more: {size / ours:.1f} MB/s; "
          f"datatrove's email and IPv4: {size / theirs:.1f} MB/s; {theirs / ours:.1f} times faster")  # fmt: skip
    assert theirs > ours
