"""Coverage-guided fuzzing of the parsers of raw files with atheris, by hand; pytest does not collect it.

    python tests/fuzz/fuzz_readers.py FORMAT -max_total_time=120

FORMAT is one of `FORMATS`, or `all` for one after another. What must hold: every file gives documents, or rejects
with a reason, or a `DataError`; nothing else is raised, nothing takes longer than libFuzzer's timeout, and every origin
is traced back to the bytes whose hash it holds. atheris is not a dependency of Loam: pip install atheris.
"""

import gzip
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import warnings
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import atheris  # noqa: E402 - the path comes first

with atheris.instrument_imports(include=["pipelines"]):
    from pipelines import archives, records, splits, table_readers, warc
    from pipelines.charset import decode
    from pipelines.errors import DataError
    from pipelines.inputs import MemberReader
    from pipelines.readers import JsonReader, RawReader, Reading, TextReader
    from pipelines.tracing import read_origin

import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import zstandard  # noqa: E402

JSON = b'{"id": "a", "text": "one"}\n{"text": "caf\xc3\xa9 \\ud83d"}\n'
HTML = b'<html><head><meta charset="gbk"></head><body><p>\xcd\xc1\xc8\xc0 text</p></body></html>'
SMALL = Reading(id_field="id", max_record_bytes=1 << 16)


def _tar() -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        info = tarfile.TarInfo("a.jsonl")
        info.size = len(JSON)
        archive.addfile(info, io.BytesIO(JSON))
    return sink.getvalue()


def _zip() -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jsonl", JSON)
        archive.writestr("b.csv", b'id,text\n1,"a\nb"\n')
    return sink.getvalue()


def _warc(packed: bool) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        warc.write_warc(Path(folder) / "a.warc.gz", [("http://x/", HTML), ("http://y/", b"<p>y")])
        data = (Path(folder) / "a.warc.gz").read_bytes()
    return data if packed else gzip.decompress(data)


def _table(kind: str) -> bytes:
    sink = io.BytesIO()
    table = pa.table({"id": ["a", "b"], "text": ["one", "two"], "n": [[1], None]})
    if kind == "parquet":
        pq.write_table(table, sink)
    else:
        with (pa.ipc.new_file if kind == "arrow" else pa.ipc.new_stream)(sink, table.schema) as writer:
            writer.write_table(table)
    return sink.getvalue()


ARC = (b"filedesc://a.arc 0.0.0.0 20200101000000 text/plain 3\n1 1\n"
       b"http://x/ 1.1.1.1 20200101000000 text/html 24\nHTTP/1.1 200 OK\r\n\r\nhello\n")  # fmt: skip


class Blocks(RawReader):
    """Pages as they are, without extraction, which has bounds and tests of its own."""

    def planner_of(self, path: Path):
        return warc.page_planner(path)

    def read_file(self, path: Path, name: str, split: splits.Split):
        for page in warc.read_pages(path, 1 << 16, split):
            yield self.document(page.record, name, page.member, text=page.payload.decode("latin-1").replace("\0", ""))


def _pages(path: Path) -> RawReader:
    return Blocks([path], path.parent, SMALL)


FORMATS = {
    "warc": ("a.warc", lambda: _warc(packed=False), _pages),
    "warcgz": ("a.warc.gz", lambda: _warc(packed=True), _pages),
    "arc": ("a.arc", lambda: ARC, _pages),
    "html": ("a.html", lambda: HTML, _pages),
    "jsonl": ("a.jsonl", lambda: JSON, lambda path: JsonReader([path], path.parent, SMALL)),
    "json": ("a.json", lambda: b"[" + JSON.replace(b"\n", b",", 1) + b"]",
             lambda path: JsonReader([path], path.parent, SMALL)),
    "gz": ("a.jsonl.gz", lambda: gzip.compress(JSON), lambda path: JsonReader([path], path.parent, SMALL)),
    "zst": ("a.jsonl.zst", lambda: zstandard.compress(JSON), lambda path: JsonReader([path], path.parent, SMALL)),
    "csv": ("a.csv", lambda: b'id,text\n1,"a ""b""\nc"\n2;x\n',
            lambda path: table_readers.CsvReader([path], path.parent, SMALL)),
    "text": ("a.txt", lambda: "土壤\nété\n".encode("gb18030"),
             lambda path: TextReader([path], path.parent, SMALL, records.lines)),
    "zip": ("a.zip", _zip, lambda path: MemberReader([path], path.parent, SMALL)),
    "tar": ("a.tar", _tar, lambda path: MemberReader([path], path.parent, SMALL)),
    "targz": ("a.tar.gz", lambda: gzip.compress(_tar()), lambda path: MemberReader([path], path.parent, SMALL)),
    "parquet": ("a.parquet", lambda: _table("parquet"),
                lambda path: table_readers.ParquetReader([path], path.parent, SMALL)),
    "arrow": ("a.arrow", lambda: _table("arrow"), lambda path: table_readers.ArrowReader([path], path.parent, SMALL)),
    "arrows": ("a.arrows", lambda: _table("stream"),
               lambda path: table_readers.ArrowReader([path], path.parent, SMALL)),
}  # fmt: skip


def check(path: Path, data: bytes, reader_of) -> None:
    """Read a file whole and in splits; trace its first documents."""
    path.write_bytes(data)
    try:
        splits.SPLIT_BYTES = 1 << 30
        whole = list(reader_of(path).run(None, 0))
        splits.SPLIT_BYTES = 64
        reader = reader_of(path)
        parts = [document for task in range(len(reader.tasks)) for document in reader.run(None, task)]
    except DataError:
        return
    read, again = [[(d.id, d.text) for d in found if d.text] for found in (whole, parts)]
    if any(d.metadata.get("reason") in ("truncated", "corrupt") for d in whole):
        # behind damage, rows may be counted otherwise, and entering again may save more
        assert {text for _, text in read} <= {text for _, text in again}, "splits lose documents"
    else:
        assert read == again, "splits change documents"
    for document in whole[:3]:
        assert document.metadata.get("reason") or document.text
        document.text.encode()
        document.id.encode()
        if document.metadata.get("reason") is None:
            read_origin(document.metadata["origin"], [path.parent])


def fuzz(name: str) -> None:
    """Fuzz one format until libFuzzer's time is up."""
    file, seed, reader_of = FORMATS[name]
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    corpus = folder / "corpus"
    corpus.mkdir()
    (corpus / "seed").write_bytes(seed())

    def one(data: bytes) -> None:
        check(folder / file, data, reader_of)
        decode(data)

    warnings.simplefilter("ignore")
    atheris.Setup([sys.argv[0], str(corpus), "-timeout=20", "-rss_limit_mb=3000", "-max_len=8192", *sys.argv[2:]], one)
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1] == "all":
        sys.exit(max(subprocess.run([sys.executable, *sys.argv[:1], name, *sys.argv[2:]]).returncode
                     for name in FORMATS))  # fmt: skip
    assert archives.STREAM_ERRORS  # instrumented with the others
    fuzz(sys.argv[1])
