import gzip
import json
import sys

import pyarrow.parquet as pq
import pytest

from pipelines.charset import decode
from pipelines.errors import DataError, MissingExtra
from pipelines.extract import ExtractSettings, PageReader, extract
from pipelines.extract_engine import check_installed, extract_here
from pipelines.extract_guard import guard_of
from pipelines.extract_tree import is_too_deep
from pipelines.readers import Reading
from pipelines.tracing import read_origin
from pipelines.warc import write_warc

PROSE = "The soil of the plain is a mixture of sand, silt and clay that holds water and air in balance. " * 4
PAGE = f"<html><head><title>t</title></head><body><nav>menu</nav><article><p>{PROSE}</p></article></body></html>"
SETTINGS = ExtractSettings()


@pytest.mark.parametrize(
    ("html", "deep"),
    [
        ("<div>" * 11, True),
        ("<DIV>" * 11 + "</DIV>" * 11, True),
        ("<div></div>" * 50, False),
        ("<li>" * 50, False),  # end tags may be left out
        ("<br>" * 50, False),
        ("<div>" * 10, False),
    ],
)
def test_depth(html, deep):
    assert is_too_deep(html, 10) is deep


@pytest.mark.parametrize(
    ("html", "reason"), [(PAGE, None), ("<p></p>", "no_text"), ("", "no_text"), ("<div>" * 200_000 + "x", "too_deep")]
)
def test_reasons(html, reason):
    assert extract_here(html, SETTINGS.bounds())[2] == reason


def test_menus_are_left_out():
    text, _, _ = extract_here(PAGE, SETTINGS.bounds())
    assert text.split() == PROSE.split()


def test_trafilatura_finds_the_same_paragraph():
    pytest.importorskip("trafilatura", exc_type=ImportError)
    text, _, _ = extract_here(PAGE, ExtractSettings(engine="trafilatura").bounds())
    assert text.split() == PROSE.split()


def test_an_engine_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "trafilatura", None)
    for engine in ("trafilatura", "cascade"):
        with pytest.raises(MissingExtra, match="trafilatura"):
            check_installed(engine)
    check_installed("resiliparse")


def test_many_files_start_one_child(tmp_path):
    settings = ExtractSettings(max_depth=777)  # of no other test, so that the guard is new
    for number in range(30):
        (tmp_path / f"{number:02}.html").write_text(PAGE.replace("the plain", f"plain {number}"))
    files = sorted(tmp_path.iterdir())
    reader = PageReader(files, tmp_path, Reading(), settings)
    texts = [document.text for rank in range(30) for document in reader.run(None, rank)]
    assert [f"plain {number} is" in text for number, text in enumerate(texts)] == [True] * 30
    assert guard_of(settings.bounds()).starts == 1


def test_two_files_read_in_turn_keep_their_pages_apart(tmp_path):
    for name in "ab":
        pages = [(f"http://{name}/{n}", PAGE.replace("sand", f"{name}{n}").encode()) for n in range(150)]
        write_warc(tmp_path / f"{name}.warc.gz", pages)
    reader = PageReader(sorted(tmp_path.iterdir()), tmp_path, Reading(), SETTINGS)
    for number, pair in enumerate(zip(reader.run(None, 0), reader.run(None, 1), strict=True)):
        assert [f" {name}{number}," in document.text for name, document in zip("ab", pair, strict=True)] == [True, True]


def test_every_kind_of_file_and_every_fate(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    write_warc(raw / "a.warc.gz", [("http://x/1", PAGE.encode()), ("http://x/2", b"<p></p>")])
    (raw / "b.html.gz").write_bytes(gzip.compress(PAGE.encode()))
    (raw / "c.html").write_bytes(b"")
    (raw / "d.warc").write_bytes(
        b"WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Target-URI: http://x/3\r\nContent-Type: text/plain\r\n"
        b"Content-Length: 9\r\n\r\nextracted\r\n\r\n"
        b"WARC/1.0\r\nWARC-Type: resource\r\nContent-Type: image/gif\r\nContent-Length: 3\r\n\r\nGIF\r\n\r\n"
        b"WARC/1.0\r\nWARC-Type: metadata\r\nContent-Length: 3\r\n\r\na:b\r\n\r\n"
    )
    counts = extract(sorted(raw.iterdir()), out, SETTINGS).counts
    assert counts is not None
    assert (counts.docs_in, counts.kept) == (6, 3)
    assert (counts.dropped, counts.rejected) == ({"not_html": 1}, {"empty_file": 1, "no_text": 1})
    rows = pq.read_table(out / "documents").to_pylist()
    assert [(row["id"], row["url"]) for row in rows] == [
        ("a.warc.gz/0", "http://x/1"), ("b.html.gz", None), ("d.warc/0", "http://x/3")]  # fmt: skip
    assert [len(read_origin(row["origin"], [raw])) for row in rows] == [rows[0]["origin"]["length"], len(PAGE), 9]


def test_other_files_are_refused(tmp_path):
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    with pytest.raises(DataError, match=r"a\.pdf: expected \.warc"):
        extract([tmp_path / "a.pdf"], tmp_path / "out", SETTINGS)


def test_real_pages_in_two_languages_do_not_depend_on_workers(shared, tmp_path):
    files = [shared / "web/warc/realpages-00004.warc.gz", shared / "web/warc/aut-example.arc.gz"]
    counts = [extract(files, tmp_path / str(n), SETTINGS, workers=n).counts for n in (1, 2)]
    assert counts[0] == counts[1]
    assert counts[0] is not None
    assert counts[0].docs_in == 60 + 299
    one, two = (sorted((tmp_path / n).glob("*/*.parquet")) for n in ("1", "2"))
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in two]


def test_words_that_people_marked_are_mostly_found(shared):
    """Mean share of the words of hand-made article bodies that the extracted text has."""
    folder = shared / "web/article_extraction_benchmark"
    truth = json.loads(next(folder.glob("ground-truth*.json")).read_text())
    recalls = []
    for name, item in sorted(truth.items())[:40]:
        html = gzip.decompress((folder / "html" / f"{name}.html.gz").read_bytes())
        reader_text = extract_here((decode(html) or ("", ""))[0], SETTINGS.bounds())[0].split()
        wanted = set(item["articleBody"].split())
        recalls.append(len(wanted & set(reader_text)) / max(1, len(wanted)))
    assert sum(recalls) / len(recalls) > 0.9


def test_reader_says_the_encoding(shared):
    reader = PageReader([shared / "web/warc/realpages-00000.warc.gz"], shared, Reading(), SETTINGS)
    found = [document.metadata.get("encoding") for document in reader.run(None)]
    assert found.count("gb18030") > 15  # Chinese news pages that declare gb2312 or gbk
    assert found.count(None) == 0
