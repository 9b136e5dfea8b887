import gzip
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from warcio.archiveiterator import ArchiveIterator

from pipelines.errors import DataError
from pipelines.tracing import read_origin
from pipelines.warc import read_pages, write_warc

PAGES = [(f"http://x/{n}", b"<html><p>page %d" % n + b" text" * n) for n in range(5)]
LIMIT = 10**6


def offsets(path: Path) -> list[int]:
    return [page.record.offset for page in read_pages(path, LIMIT)]


def told(path: Path) -> list[str]:
    return [page.record.problem or "ok" for page in read_pages(path, LIMIT)]


def http_warc(path: Path, message: bytes) -> Path:
    head = b"WARC/1.0\r\nWARC-Type: response\r\nContent-Type: application/http\r\nContent-Length: %d\r\n\r\n"
    path.write_bytes(head % len(message) + message + b"\r\n\r\n")
    return path


def test_what_is_written_is_read_back(tmp_path):
    assert write_warc(tmp_path / "a.warc.gz", PAGES) == 5
    found = list(read_pages(tmp_path / "a.warc.gz", LIMIT))
    assert [(page.url, page.payload) for page in found] == PAGES
    assert {(page.status, page.media_type, page.charset) for page in found} == {(200, "text/html", "utf-8")}


def test_another_library_reads_the_file_and_confirms_the_digests(tmp_path):
    write_warc(tmp_path / "a.warc.gz", PAGES)
    with (tmp_path / "a.warc.gz").open("rb") as file:
        found = [(r.rec_headers["WARC-Target-URI"], r.content_stream().read(), r.digest_checker.passed)
                 for r in ArchiveIterator(file, check_digests=True)]  # fmt: skip
    assert found == [(url, html, True) for url, html in PAGES]


def test_the_same_pages_give_the_same_bytes(tmp_path):
    write_warc(tmp_path / "a.warc.gz", PAGES)
    write_warc(tmp_path / "b.warc.gz", iter(PAGES))
    assert (tmp_path / "a.warc.gz").read_bytes() == (tmp_path / "b.warc.gz").read_bytes()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_cut_file_keeps_earlier_records_and_says_so(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("cut") / "a.warc.gz"
    write_warc(path, PAGES)
    if data.draw(st.booleans()):  # plain instead of compressed
        path.write_bytes(gzip.decompress(path.read_bytes()))
    starts = offsets(path)
    at = data.draw(st.integers(1, path.stat().st_size - 30))
    whole = sum(start < at for start in starts) - 1
    path.write_bytes(path.read_bytes()[:at])
    result = told(path)
    assert result[:whole] == ["ok"] * whole
    if not any(at + gap in starts for gap in range(5)):  # a record is whole without the empty lines behind it
        assert result[-1] in ("truncated", "corrupt")
        assert len(result) <= whole + 2


def test_reading_goes_on_behind_a_damaged_record(tmp_path):
    path = tmp_path / "a.warc.gz"
    write_warc(path, PAGES)
    start, end = offsets(path)[2:4]
    data = bytearray(path.read_bytes())
    data[(start + end) // 2] ^= 0xFF
    path.write_bytes(data)
    assert told(path) == ["ok", "ok", "corrupt", "ok", "ok"]


@pytest.mark.parametrize(("data", "expected"), [(b"", ["empty_file"]), (b"rubbish " * 50, ["corrupt"])])
def test_files_that_are_no_warc(tmp_path, data, expected):
    (tmp_path / "a.warc.gz").write_bytes(data)
    assert told(tmp_path / "a.warc.gz") == expected


def test_a_missing_file_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        list(read_pages(tmp_path / "none.warc.gz", LIMIT))


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (b"Content-Encoding: gzip", gzip.compress(b"<p>hi", mtime=0)),
        (b"Content-Encoding: deflate", zlib.compress(b"<p>hi")),
        (b"Transfer-Encoding: chunked", b"5\r\n<p>hi\r\n0\r\n\r\n"),
        (b"X-Nothing: else", b"<p>hi"),
    ],
)
def test_encodings_of_http_are_taken_off(tmp_path, headers, body):
    path = http_warc(tmp_path / "a.warc", b"HTTP/1.1 200 OK\r\n" + headers + b"\r\n\r\n" + body)
    assert [page.payload for page in read_pages(path, LIMIT)] == [b"<p>hi"]


def test_a_body_that_is_not_what_its_header_says_is_bad_http(tmp_path):
    path = http_warc(tmp_path / "a.warc", b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\nnot gzip at all")
    assert told(path) == ["bad_http"]


def test_a_large_block_is_passed_over_and_hashed(tmp_path):
    write_warc(tmp_path / "a.warc.gz", [("http://x/", b"x" * 5000), ("http://y/", b"y")])
    first, second = read_pages(tmp_path / "a.warc.gz", 1000)
    assert (first.record.problem, second.record.problem) == ("too_large", None)
    origin = {"file": "a.warc.gz", "offset": first.record.offset, "row": 0,
              "length": first.record.length, "sha256": first.record.sha256}  # fmt: skip
    assert read_origin(origin, [tmp_path]).endswith(b"x" * 5000)


def test_arc_and_warc_of_the_same_crawl_agree(shared):
    folder = shared / "web" / "warc"
    arc, warc = ([(p.url, p.status, p.payload) for p in read_pages(folder / f"aut-example.{kind}.gz", 10**8)]
                 for kind in ("arc", "warc"))  # fmt: skip
    assert len(arc) == 299
    assert [page for page in arc if page[1]] == [page for page in warc if page[1]]


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        (b"", ["ok"]),
        (b"http://y/ 1.1.1.1 20200101000000 text/html 99\nHTTP/1.1 200\n", ["ok", "truncated"]),
        (b"no header line here\n", ["ok", "corrupt"]),
    ],
)
def test_arc_that_breaks_off(tmp_path, tail, expected):
    block = b"HTTP/1.1 200 OK\r\n\r\nhello"
    head = b"filedesc://a.arc 0.0.0.0 20200101000000 text/plain 3\n1 1\n"
    record = b"http://x/ 1.1.1.1 20200101000000 text/html %d\n%s\n" % (len(block), block)
    (tmp_path / "a.arc").write_bytes(head + record + tail)
    assert told(tmp_path / "a.arc") == expected
