"""Every format that a user may give, from this disk or behind a URL, and what happens to what is damaged."""

import gzip
import io
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pipelines import archives
from pipelines.errors import DataError, MissingExtra
from pipelines.execute import count_documents
from pipelines.extract import ExtractSettings, PageReader, extract
from pipelines.files import expand_inputs
from pipelines.inputs import MemberReader, as_documents
from pipelines.locations import RemoteFile, common_root, location
from pipelines.readers import JsonReader, RawReader, Reading, TextReader
from pipelines.table_readers import ArrowReader, CsvReader, ParquetReader
from pipelines.tracing import read_origin
from pipelines.warc import write_warc

JSON = b'{"id": "a", "text": "one"}\n{"id": "b", "text": "two"}\n'
TABLE = pa.table({"id": ["a", "b"], "text": ["one", "two"]})


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def told(reader: RawReader) -> list[str]:
    return [d.metadata.get("reason") or d.text for task in range(len(reader.tasks)) for d in reader.run(None, task)]


def ipc(kind: str, table: pa.Table = TABLE) -> bytes:
    sink = io.BytesIO()
    with (pa.ipc.new_file if kind == "file" else pa.ipc.new_stream)(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(TABLE, sink)
    return sink.getvalue()


def zip_of(members: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return sink.getvalue()


def tar_of(members: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return sink.getvalue()


FORMATS = {
    "a.jsonl": JSON,
    "a.jsonl.gz": gzip.compress(JSON),
    "a.ndjson.zst": zstandard.compress(JSON),
    "a.jsonl.zstd": zstandard.compress(JSON),
    "bom.jsonl": b"\xef\xbb\xbf" + JSON,
    "a.json": b'\xef\xbb\xbf[{"id": "a", "text": "one"}, {"id": "b", "text": "two"}]',
    "a.csv": b"id,text\na,one\nb,two\n",
    "a.tsv.gz": gzip.compress(b"id\ttext\na\tone\nb\ttwo\n"),
    "a.arrow": ipc("file"),
    "a.feather": ipc("file"),
    "a.arrows": ipc("stream"),
    "a.parquet": parquet(),
    "a.zip": zip_of({"x/1.txt": b"one", "x/2.md": b"two"}),
    "a.tar": tar_of({"a.jsonl": JSON}),
    "b.tar": tar_of({"a.json": b'[{"text": "one"}]', "b.json": b'{"text": "two"}\n'}),
    "a.tar.gz": gzip.compress(tar_of({"1.txt": b"one", "2.txt": b"two"})),
    "a.tar.zst": zstandard.compress(tar_of({"a.csv": b"id;text\na;one\nb;two\n"})),
    "a.tar.zstd": zstandard.compress(tar_of({"a.jsonl": JSON})),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_becomes_documents(tmp_path, name):
    (made,) = as_documents([put(tmp_path / name, FORMATS[name])], tmp_path / "work")
    assert pq.read_table(made)["text"].to_pylist() == ["one", "two"]


def test_remote_files_read_like_local_ones(tmp_path):
    memory = fsspec.filesystem("memory")
    for name, data in FORMATS.items():
        memory.pipe(f"/bucket/{name}", data)
    write_warc(tmp_path / "a.warc.gz", [("http://x/", b"<html><body><p>a page of its own</p></body></html>")])
    memory.pipe("/bucket/a.warc.gz", (tmp_path / "a.warc.gz").read_bytes())
    files = expand_inputs([f"memory://bucket/{name}" for name in FORMATS])
    made = as_documents(files, tmp_path / "work", workers=1)
    assert [pq.read_table(path)["text"].to_pylist() for path in made] == [["one", "two"]] * len(FORMATS)
    assert [str(file) for file in expand_inputs(["memory://bucket/a.tar*"])] == [
        "memory://bucket/a.tar", "memory://bucket/a.tar.gz", "memory://bucket/a.tar.zst",
        "memory://bucket/a.tar.zstd"]  # fmt: skip
    assert len(expand_inputs(["memory://bucket"])) == len(FORMATS) + 1
    assert common_root(files) == RemoteFile("memory://bucket")
    extract(expand_inputs(["memory://bucket/a.warc.gz"]), tmp_path / "pages", ExtractSettings())
    row = pq.read_table(tmp_path / "pages" / "documents").to_pylist()[0]
    assert row["text"] == "a page of its own"
    assert b"200 OK" in read_origin(row["origin"], [RemoteFile("memory://bucket")])


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        ("hf://datasets/o/n/a.jsonl", DataError, "needs a download; run: loam fetch"),
        ("https://example.invalid/a.jsonl", DataError, "LOAM_HTTP=1"),
        ("nothing://a/b.jsonl", DataError, "nothing is known that opens nothing://"),
        ("s3://bucket/a.jsonl", MissingExtra, "extra s3"),
        ("memory://none/*.jsonl", DataError, "no file matches"),
    ],
)
def test_urls_that_cannot_be_read_say_why(url, error, message):
    with pytest.raises(error, match=message):
        expand_inputs([url])


def test_file_urls_are_paths(tmp_path):
    assert location(f"file://{tmp_path}/a") == tmp_path / "a"
    assert expand_inputs([f"file://{put(tmp_path / 'a.txt', b'x')}"]) == [tmp_path / "a.txt"]


def test_csv(tmp_path):
    data = 'id,text\n1,"a ""quoted"" word\nand a line"\n2,too,many\n3,été\n'.encode("latin-1")
    reader = CsvReader([put(tmp_path / "a.csv", data)], tmp_path, Reading(id_field="id"))
    assert told(reader) == ['a "quoted" word\nand a line', "bad_row", "été"]
    first = next(iter(reader.run(None, 0)))
    assert read_origin(first.metadata["origin"], [tmp_path]) == b'1,"a ""quoted"" word\nand a line"'
    headless = CsvReader([put(tmp_path / "b.tsv", b'eng\tsay "hi\n')], tmp_path, Reading(), ["lang", "text"])
    assert told(headless) == ['say "hi']
    opened = CsvReader([put(tmp_path / "c.csv", b'text\n"' + b"x" * 300 + b"\nok\n")], tmp_path,
                       Reading(max_record_bytes=100))  # fmt: skip
    assert told(opened) == ["too_large", "ok"]


def test_arrow_rows_are_traced(tmp_path):
    for name, kind in (("a.arrow", "file"), ("a.arrows", "stream")):
        reader = ArrowReader([put(tmp_path / name, ipc(kind))], tmp_path, Reading())
        last = list(reader.run(None, 0))[-1]
        assert (last.id, last.text) == (f"{name}/1", "two")
        assert read_origin(last.metadata["origin"], [tmp_path]) == b'{"id": "b", "text": "two"}'


@pytest.mark.parametrize("name", ["a.arrow", "a.arrows", "a.parquet"])
@pytest.mark.parametrize("damage", ["empty", "half", "rubbish"])
def test_damaged_tables_are_named(tmp_path, name, damage):
    data = FORMATS[name]
    damaged = {"empty": b"", "half": data[: len(data) // 2], "rubbish": b"rubbish " * 50}[damage]
    kind = ParquetReader if name == "a.parquet" else ArrowReader
    with pytest.raises(DataError, match=rf"{name} is not readable"):
        told(kind([put(tmp_path / name, damaged)], tmp_path, Reading()))


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_a_stream_that_breaks_off_keeps_what_came_before(tmp_path, pack):
    data = pack(b"".join(b'{"text": "%d"}\n' % (n * 7919) for n in range(50_000)))
    found = told(JsonReader([put(tmp_path / "a.jsonl.gz", data[: len(data) * 2 // 3])], tmp_path, Reading()))
    assert found[:2] == ["0", "7919"]
    assert found[-1] == "truncated"


def test_bombs_end_early(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "RATIO_FREE_BYTES", 1 << 20)
    zeros = zlib.compressobj(9, wbits=31)
    gz = b"".join([zeros.compress(bytes(1 << 20)) for _ in range(64)]) + zeros.flush()
    assert told(JsonReader([put(tmp_path / "a.jsonl.gz", gz)], tmp_path, Reading())) == ["bomb"]
    zst = zstandard.compress(bytes(64 << 20))
    assert told(TextReader([put(tmp_path / "a.txt.zst", zst)], tmp_path, Reading())) == ["bomb"]
    tar = gzip.compress(tar_of({"a.txt": bytes(64 << 20)}))
    assert "bomb" in told(MemberReader([put(tmp_path / "a.tar.gz", tar)], tmp_path, Reading(max_record_bytes=100)))


def test_sizes_that_are_claimed_take_no_memory(tmp_path):
    member = tar_of({"a.txt": b"tiny"})
    claimed = member[:124] + b"%011o\0" % (1 << 30) + member[136:]
    checksum = sum(claimed[:148]) + 8 * 32 + sum(claimed[156:512])
    claimed = claimed[:148] + b"%06o\0 " % checksum + claimed[156:]
    found = told(MemberReader([put(tmp_path / "a.tar", claimed)], tmp_path, Reading(max_record_bytes=1000)))
    assert found in (["too_large"], ["truncated"], ["too_large", "truncated"])
    head = (
        b"WARC/1.0\r\nWARC-Type: response\r\nContent-Type: application/http\r\nContent-Length: 1073741824\r\n\r\nHTTP"
    )
    page = PageReader([put(tmp_path / "a.warc", head)], tmp_path, Reading(), ExtractSettings())
    assert set(told(page)) <= {"too_large", "truncated"}


def test_archives_in_archives_are_counted_and_not_opened(tmp_path):
    nested = zip_of({"inner.zip": zip_of({"a.txt": b"deep"}), "b.txt": b"flat"})
    found = told(MemberReader([put(tmp_path / "a.zip", nested)], tmp_path, Reading()))
    assert found[1:] == ["flat"]
    assert found[0] in ("nul_bytes", "bad_encoding")


def test_an_encrypted_member_is_a_reject(tmp_path):
    data = bytearray(zip_of({"a.txt": b"secret"}))
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.find(magic) + offset
        data[at : at + 2] = struct.pack("<H", 1)
    assert told(MemberReader([put(tmp_path / "a.zip", bytes(data))], tmp_path, Reading())) == ["corrupt"]


def test_pages_in_archives_are_extracted(tmp_path):
    page = b"<html><body><p>a page of its own</p></body></html>"
    put(tmp_path / "a.zip", zip_of({"x/a.html": page, "logo.png": b"\x89PNG"}))
    outcome = extract([tmp_path / "a.zip"], tmp_path / "out", ExtractSettings())
    assert outcome.counts is not None
    assert (outcome.counts.kept, dict(outcome.counts.dropped)) == (1, {"not_html": 1})
    row = pq.read_table(tmp_path / "out/documents").to_pylist()[0]
    assert row["id"] == "a.zip!x/a.html"
    assert read_origin(row["origin"], [tmp_path]) == page


def test_arc_and_warc_of_one_crawl_give_the_same_documents(shared, tmp_path):
    texts = {}
    for kind in ("arc", "warc"):
        path = shared / "web" / "warc" / f"aut-example.{kind}.gz"
        counts = extract([path], tmp_path / kind, ExtractSettings()).counts
        assert counts is not None
        rows = pq.read_table(tmp_path / kind / "documents").to_pylist()
        assert counts.kept == len(rows) > 50
        texts[kind] = [(row["url"], row["text"]) for row in rows]
    assert texts["arc"] == texts["warc"]


def test_rejects_add_up_over_formats(tmp_path):
    files = [put(tmp_path / "a.jsonl", JSON + b"{bad\n"), put(tmp_path / "b.txt", b""), put(tmp_path / "c.csv", b"")]
    as_documents(files, tmp_path / "work")
    assert count_documents(tmp_path / "work").rejected == {"bad_json": 1, "empty_file": 2}
