import json
from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from filters.pii import MaskPii, PiiSettings, find, mask, mask_pii, replace_spans
from filters.pii_patterns import CANDIDATE, CARD_PREFIXES, iban, luhn
from pipelines.document import STREAM, conform


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Write to jane.doe+x@mail.example.co.uk.", "Write to <EMAIL>."),
        ("联系me@host.cn吧", "联系<EMAIL>吧"),
        ("from 86.121.97.248 today", "from <IP_ADDRESS> today"),
        ("at 2a00:1450:4001:81b:2004:aaaa:1:3 now", "at <IP_ADDRESS> now"),
        ("card 4111 1111 1111 1111, thanks", "card <CREDIT_CARD>, thanks"),
        ("card 2720992593319364", "card <CREDIT_CARD>"),
        ("IBAN GB82 WEST 1234 5698 7654 32.", "IBAN <IBAN>."),
        ("IBAN DE89370400440532013000", "IBAN <IBAN>"),
        ("SSN 460-89-9847", "SSN <US_SSN>"),
        ("ring +1-984-182-0190 or (579)888-3058", "ring <PHONE_NUMBER> or <PHONE_NUMBER>"),
        ("Phone: 0490 75 40 81", "Phone: <PHONE_NUMBER>"),
        ("电话：13812345678。", "电话：<PHONE_NUMBER>。"),
        ("key AKIAIOSFODNN7EXAMPLE end", "key <API_KEY> end"),
        ("ghp_" + "a1B2c3D4e5" * 4, "<API_KEY>"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIB\n-----END RSA PRIVATE KEY-----", "<PRIVATE_KEY>"),
    ],
)
def test_personal_data_is_masked(text, masked):
    assert mask(text)[0] == masked


@pytest.mark.parametrize(
    "text",
    [
        "version 10.20.30.40 of the driver", "section 1.2.3.4", "localhost is 127.0.0.1, the router 192.168.1.254",
        "1.2.3.4.5", "at 10:30:15 sharp", "std::vector<int>::iterator", "fe80::1 and 2001:db8::5",
        "4111 1111 1111 1112", "1234567890123456", "0000 0000 0000 0000", "GB82 WEST 1234 5698 7654 33",
        "order 000-12-3456", "ISBN 978-3-16-148410-0", "2019-11-21 to 2020-01-02", "pi is 3.14159265358979",
        "git@github.com:org/repo", "@decorator and a@b", "sk-learn-contrib-extensions-for-python",
        "Rekening 0061947069", "population 212 555 1234", "0.905-674-3793e5",
    ],
)  # fmt: skip
def test_other_things_stay(text):
    assert mask(text) == (text, [])


def test_spans_are_positions_in_the_original():
    text = "é: a@host.org, b@host.org"
    masked, spans = mask(text)
    assert [text[s.start : s.end] for s in spans] == ["a@host.org", "b@host.org"]
    assert masked == "é: <EMAIL>, <EMAIL>" == replace_spans(text, spans)
    assert mask(masked) == (masked, [])


def test_types_can_be_chosen():
    assert mask("a@host.org 86.121.97.248", ["email"])[0] == "<EMAIL> 86.121.97.248"


@given(st.text(alphabet=st.sampled_from("a1@.-:+ ()x49"), max_size=60))
def test_the_columnar_search_misses_nothing(text):
    if find(text):
        assert pc.match_substring_regex(pa.array([text]), CANDIDATE).to_pylist() == [True]


def test_check_digits():
    assert luhn("79927398713")
    assert not luhn("79927398710")
    assert iban("GB82WEST12345698765432")
    assert not iban("XX82WEST12345698765432")
    assert CARD_PREFIXES.fullmatch("2221000000000009")
    assert not CARD_PREFIXES.fullmatch("2220000000000000")


def documents(*texts: str) -> pa.Table:
    return conform(pa.table({"id": [f"d{n}" for n in range(len(texts))], "text": list(texts)}), STREAM)


def test_tagging_leaves_the_text():
    tagged = MaskPii(PiiSettings(action="tag")).apply(documents("a@host.org", "nothing"))
    assert tagged["text"].to_pylist() == ["a@host.org", "nothing"]
    assert tagged["pii.spans"].to_pylist()[0] == [{"start": 0, "end": 10, "type": "email", "replacement": "<EMAIL>"}]


def test_the_verb_gathers_spans(tmp_path):
    files = []
    for part in range(2):
        path = tmp_path / "kept" / "web" / f"part-{part:05d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        table = documents("clean", f"mail to x{part}@host.org or y@host.org").select(["id", "text"])
        pq.write_table(table.set_column(0, "id", pa.array([f"p{part}-0", f"p{part}-1"])), path)
        files.append(path)
    outcome = mask_pii(files, tmp_path / "out", workers=2)
    spans = pq.read_table(tmp_path / "out/spans.parquet")
    assert spans["id"].to_pylist() == ["p0-1", "p0-1", "p1-1", "p1-1"]
    assert spans["start"].to_pylist() == [8, 23, 8, 23]
    assert outcome.metrics == {"spans": {"email": 4}}
    kept = pq.read_table(tmp_path / "out/kept/web/part-00001.parquet")
    assert kept["text"].to_pylist() == ["clean", "mail to <EMAIL> or <EMAIL>"]


def test_precision_and_recall_on_synthetic_sentences(shared):
    kinds = {"EMAIL_ADDRESS": "email", "CREDIT_CARD": "credit_card", "PHONE_NUMBER": "phone_number",
             "IBAN_CODE": "iban", "US_SSN": "us_ssn", "IP_ADDRESS": "ip_address"}  # fmt: skip
    truth, found = set(), set()
    for row, entry in enumerate(json.loads((shared / "pii/presidio_synth_dataset_v2.json").read_text())):
        spans = [s for s in entry["spans"] if s["entity_type"] in kinds]
        truth |= {(row, kinds[s["entity_type"]], s["start_position"], s["end_position"]) for s in spans}
        found |= {(row, s.type, s.start, s.end) for s in find(entry["full_text"])}
    assert len(truth & found) / len(found) > 0.99
    total, hits = Counter(t[1] for t in truth), Counter(t[1] for t in truth & found)
    recall = {kind: hits[kind] / total[kind] for kind in total}
    assert recall["email"] == recall["iban"] == recall["us_ssn"] == recall["ip_address"] == 1
    assert recall["credit_card"] > 0.92  # the others are twelve digits long
    assert recall["phone_number"] > 0.65  # national formats without a word before them are left alone


def test_language_heuristics_and_pii_in_one_pass(tmp_path):
    from filters.heuristics import FilterSettings, Heuristics
    from filters.language import IdentifyLanguage, LanguageSettings
    from filters.pii import write_spans
    from pipelines.execute import transform

    path = tmp_path / "kept" / "mail" / "part-00000.parquet"
    path.parent.mkdir(parents=True)
    letter = "Dear friend, please write to someone@host.org when you have time, and tell me of the news at home."
    pq.write_table(
        pa.table(
            {"id": ["a", "b", "c"], "text": [letter, "Cher ami, il fait beau ici.", "This is much too short to stay."]}
        ),
        path,
    )
    rules = FilterSettings(rules="gopher_quality", thresholds={"gopher_quality.word_count.low": 10})
    blocks = [IdentifyLanguage(LanguageSettings(keep=["eng"])), Heuristics(rules), MaskPii()]
    counts = transform([path], blocks, tmp_path / "out", 2, "clean")
    assert counts.dropped == {"gopher_quality.word_count": 1, "language.fra": 1}
    assert write_spans(tmp_path / "out", ["mail/part-00000"]) == {"email": 1}
    assert "<EMAIL>" in pq.read_table(tmp_path / "out/kept/mail/part-00000.parquet")["text"].to_pylist()[0]
