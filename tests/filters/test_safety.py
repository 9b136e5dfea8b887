import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from filters.safety import Safety, SafetySettings, safety
from pipelines.document import STREAM, conform
from pipelines.errors import DataError


@pytest.fixture
def lists(tmp_path):
    (tmp_path / "urls/adult").mkdir(parents=True)
    (tmp_path / "urls/adult/domains").write_text("bad.com\nworse.org\n")
    (tmp_path / "urls/adult/urls").write_text("host.com/bad\n")
    with gzip.open(tmp_path / "urls/bank_domains.txt.gz", "wt") as file:
        file.write("bank.com\n")
    (tmp_path / "urls/hard_words.txt").write_text("porn\n")
    (tmp_path / "urls/soft_words.txt").write_text("# words that two of say something\nnude\nescort\n")
    (tmp_path / "urls/inside_words.txt").write_text("xxxvideo\n")
    (tmp_path / "words").mkdir()
    (tmp_path / "words/en").write_text("slut\nhot carl\n")
    (tmp_path / "words/zh").write_text("色情\n")
    (tmp_path / "words/LICENSE").write_text("a licence is no list\n")
    return {"urls": str(tmp_path / "urls"), "words": str(tmp_path / "words")}


def judge(settings, *rows):
    table = pa.table({"id": [f"d{n}" for n in range(len(rows))], "url": [row[0] for row in rows],
                      "text": [row[1] for row in rows], "language": [row[2] for row in rows]},
                     schema=pa.schema([("id", pa.string()), ("url", pa.string()), ("text", pa.string()),
                                       ("language", pa.string())]))  # fmt: skip
    return Safety(settings).apply(conform(table, STREAM))


def test_reasons(lists):
    result = judge(
        SafetySettings(**lists),
        ("http://a.bad.com/x", "fine", "eng"),
        ("http://host.com/bad/1", "fine", "eng"),
        ("http://x.com/PORN/x", "fine", "eng"),
        ("http://x.com/nude-art", "fine", "eng"),
        ("http://x.com/nude_escort", "fine", "eng"),
        ("http://x.com/myxxxvideos", "fine", "eng"),
        ("http://bank.com", "fine", "eng"),
        (None, "a Slut here", None),
        (None, "全是色情内容", "cmn"),
        (None, "全是色情内容", "fra"),
        ("http://scunthorpe.com/slutsky", "Slutsky", "eng"),
    )
    assert result["reason"].to_pylist() == [
        "url.domain.adult", "url.address.adult", "url.hard_words", None, "url.soft_words", "url.inside_words", None,
        "words.en", "words.zh", None, None,
    ]  # fmt: skip
    assert result["safety.url"].to_pylist()[:3] == ["adult", "adult", "hard_words"]
    assert result["safety.words"].to_pylist()[7:] == [1, 1, None, 0]
    assert result["safety.word"].to_pylist()[7:9] == ["slut", "色情"]


def test_categories_and_counts_can_be_chosen(lists):
    bank = judge(
        SafetySettings(**lists, categories=["bank"]), ("http://bank.com", "x", "eng"), ("http://bad.com", "x", "eng")
    )
    assert bank["reason"].to_pylist() == ["url.domain.bank", None]
    lenient = judge(SafetySettings(**lists, most_words=1), (None, "slut", "eng"), (None, "slut slut", "eng"))
    assert lenient["reason"].to_pylist() == [None, "words.en"]
    hard = judge(SafetySettings(**lists, listed_words="hard"), ("http://x.com/slut", "x", "eng"))
    assert hard["reason"].to_pylist() == ["url.hard_words"]
    with pytest.raises(DataError, match=r"of which .* has no list; it has: adult, bank"):
        Safety(SafetySettings(**lists, categories=["adlut"]))


def test_a_share_of_documents_with_words_stays_by_their_id(lists):
    rows = [(None, "slut", "eng")] * 400
    for seed in (0, 1):
        settings = SafetySettings(words=lists["words"], keep_fraction=0.25, seed=seed)
        kept = judge(settings, *rows)["reason"].null_count
        assert 70 <= kept <= 130
        assert judge(settings, *rows)["reason"].null_count == kept


def test_a_missing_list_is_named_with_the_command_that_gets_it(tmp_path):
    with pytest.raises(DataError, match=r"safety\.urls: .*nowhere does not exist; UT1"):
        Safety(SafetySettings(urls=str(tmp_path / "nowhere")))
    with pytest.raises(DataError, match="no list is given"):
        safety([], tmp_path, SafetySettings())


def test_the_verb_counts_what_it_drops(lists, tmp_path):
    path = tmp_path / "in.parquet"
    rows = {"id": ["a", "b", "c"], "url": ["http://bad.com", "http://good.com", None], "text": ["x", "y", "slut"]}
    pq.write_table(pa.table(rows), path)
    outcome = safety([path], tmp_path / "out", SafetySettings(**lists), workers=2)
    assert outcome.counts.dropped == {"url.domain.adult": 1, "words.en": 1}
    assert outcome.metrics["categories"] == ["adult"]
    assert pq.read_table(tmp_path / "out/kept/part-00000.parquet")["id"].to_pylist() == ["b"]
    assert pq.read_table(tmp_path / "out/attributes/part-00000.parquet").num_rows == 3


def test_real_lists(shared):
    settings = SafetySettings(urls=str(shared / "lists/ut1"), words=str(shared / "lists/ldnoobw"))
    block = Safety(settings)
    rows = {
        "id": ["a", "b"],
        "url": ["http://www.adultdating.com/", "https://en.wikipedia.org/wiki/Essex"],
        "text": ["x", "y"],
    }
    assert block.apply(conform(pa.table(rows), STREAM))["reason"].to_pylist() == ["url.domain.dating", None]
