"""Whatever the splits, the documents are those of one task, in its order, with its ids and origins."""

import gzip
import io
import json
import random
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipelines import journal, splits
from pipelines.execute import count_documents
from pipelines.extract import ExtractSettings, extract
from pipelines.inputs import as_documents
from pipelines.readers import JsonReader, RawReader, Reading, TextReader
from pipelines.records import lines
from pipelines.table_readers import ArrowReader, ParquetReader
from pipelines.tracing import read_origin
from pipelines.warc import page_planner, read_pages, write_warc

RNG = random.Random(7)
WORDS = ("sand", "silt", "clay", "loam", "humus", "火山灰", "été")
ROWS = [{"id": f"d{n}", "text": " ".join(RNG.choices(WORDS, k=RNG.randrange(1, 60)))} for n in range(400)]
LINES = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in ROWS)
PAGES = [(f"http://x/{n}", f"<html><body><p>{row['text']} page {n}</p></body></html>".encode())
         for n, row in enumerate(ROWS[:120])]  # fmt: skip


def same_gzip(data: bytes) -> bytes:
    """The same bytes at any time: they are part of a test's name."""
    return gzip.compress(data, mtime=0)


def seen(reader: RawReader) -> list[tuple]:
    return [(d.id, d.text, d.metadata["origin"], d.metadata.get("reason"))
            for task in range(len(reader.tasks)) for d in reader.run(None, task)]  # fmt: skip


def pieces(data: bytes, pack, size: int = 3000) -> bytes:
    return b"".join(pack(data[at : at + size]) for at in range(0, len(data), size))


def ipc(batches: int) -> bytes:
    sink = io.BytesIO()
    table = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_file(sink, table.schema) as writer:
        for batch in table.to_batches(max_chunksize=len(ROWS) // batches):
            writer.write_batch(batch)
    return sink.getvalue()


def parquet(path: Path) -> bytes:
    pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=30, compression="none", use_dictionary=False)
    return path.read_bytes()


def zipped() -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for row in ROWS:
            archive.writestr(f"{row['id']}.txt", row["text"])
    return sink.getvalue()


def tarred() -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for row in ROWS[:60]:
            info = tarfile.TarInfo(f"{row['id']}.txt")
            info.size = len(row["text"].encode())
            archive.addfile(info, io.BytesIO(row["text"].encode()))
    return sink.getvalue()


def warc(path: Path, plain: bool) -> bytes:
    write_warc(path, PAGES)
    return gzip.decompress(path.read_bytes()) if plain else path.read_bytes()


def json_reader(path: Path) -> RawReader:
    return JsonReader([path], path.parent, Reading(source="s"))


class Blocks(RawReader):
    """Pages as they are, without extraction: the reading alone is looked at."""

    def planner_of(self, path: Path):
        return page_planner(path)

    def read_file(self, path: Path, name: str, split: splits.Split):
        for page in read_pages(path, 1 << 16, split):
            yield self.document(page.record, name, page.member, text=page.payload.decode("latin-1").replace("\0", ""))


def page_reader(path: Path) -> RawReader:
    return Blocks([path], path.parent, Reading())


CASES = {
    "a.jsonl": (lambda _: LINES, json_reader),
    "a.txt": (lambda _: LINES, lambda path: TextReader([path], path.parent, Reading(), lines)),
    "b.jsonl.gz": (lambda _: pieces(LINES, gzip.compress), json_reader),
    "c.jsonl.zst": (lambda _: pieces(LINES, zstandard.ZstdCompressor(write_checksum=True).compress), json_reader),
    "a.warc.gz": (lambda folder: warc(folder / "raw.warc.gz", plain=False), page_reader),
    "b.warc": (lambda folder: warc(folder / "raw.warc.gz", plain=True), page_reader),
    "a.parquet": (lambda folder: parquet(folder / "raw.parquet"),
                  lambda path: ParquetReader([path], path.parent, Reading())),
    "a.arrow": (lambda _: ipc(20), lambda path: ArrowReader([path], path.parent, Reading())),
    "a.zip": (lambda _: zipped(), lambda path: TextReader([path], path.parent, Reading())),
    "a.tar": (lambda _: tarred(), lambda path: TextReader([path], path.parent, Reading())),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_splits_read_what_one_task_reads(tmp_path, monkeypatch, name):
    make, reader_of = CASES[name]
    path = tmp_path / name
    path.write_bytes(make(tmp_path))
    whole = seen(reader_of(path))
    assert len(whole) > 50
    for size in (1000, 2500):
        monkeypatch.setattr(splits, "SPLIT_BYTES", size)
        reader = reader_of(path)
        assert len(reader.tasks) > 2
        assert seen(reader) == whole
    for document in (whole[0], whole[len(whole) // 2], whole[-1]):
        assert len(read_origin(document[2], [tmp_path])) == document[2]["length"]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl.gz", same_gzip(LINES)),
        ("a.jsonl.zst", zstandard.compress(LINES)),
        ("a.jsonl.gz", pieces(LINES, same_gzip)[:-9]),  # broken off: its reader will say so
        ("a.jsonl", b"x" * 50_000),  # one line
    ],
)
def test_a_file_without_points_of_entry_is_one_task_and_the_journal_says_so(tmp_path, monkeypatch, name, data):
    (tmp_path / name).write_bytes(data)
    monkeypatch.setattr(splits, "SPLIT_BYTES", 1000)
    with journal.journal_to(tmp_path / "journal.jsonl"):
        assert len(json_reader(tmp_path / name).tasks) == 1
    told = journal.read_journal(tmp_path / "journal.jsonl")
    assert [event["event"] for event in told] == ["unsplit"]
    assert told[0]["file"] == name


@pytest.mark.parametrize("damage", ["several records in a member", "a byte", "a plain length"])
def test_a_warc_that_is_not_one_record_per_member_is_one_task(tmp_path, monkeypatch, damage):
    path = tmp_path / "a.warc.gz"
    data = warc(path, plain=False)
    if damage == "several records in a member":
        data = gzip.compress(gzip.decompress(data)[:4000]) + data
    elif damage == "a byte":
        data = data[:3000] + bytes([data[3000] ^ 0xFF]) + data[3001:]
    else:
        data = gzip.decompress(data).replace(b"\r\nContent-Length: 4", b"\r\nContent-Length: 5", 1)
    path.write_bytes(data)
    whole = seen(page_reader(path))
    monkeypatch.setattr(splits, "SPLIT_BYTES", 2000)
    if damage == "a byte":  # lengths are as they should be: the damage lies within one split
        assert [row[1] for row in seen(page_reader(path))] == [row[1] for row in whole]
    else:
        assert len(page_reader(path).tasks) == 1


@settings(max_examples=80)
@given(st.lists(st.binary(max_size=12), max_size=30), st.integers(1, 40), st.sampled_from(["plain", "gzip", "zstd"]))
def test_any_lines_are_split_at_line_ends(tmp_path_factory, parts, size, packing):
    path = tmp_path_factory.getbasetemp() / "any.txt"
    data = b"\n".join(parts)
    assume(data.strip())  # a file without any record is one reject, which no split alone can know
    pack = {"plain": bytes, "gzip": gzip.compress, "zstd": zstandard.compress}[packing]
    path.write_bytes(pieces(data, pack, 20))
    reader_of = CASES["a.txt"][1]
    whole = seen(reader_of(path))
    before = splits.SPLIT_BYTES
    try:
        splits.SPLIT_BYTES = size
        assert seen(reader_of(path)) == whole
    finally:
        splits.SPLIT_BYTES = before


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.parquet")
            if ".scratch" not in path.parts}  # fmt: skip


def test_workers_share_one_big_file_and_change_no_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(splits, "SPLIT_BYTES", 9000)
    (tmp_path / "a.warc.gz").write_bytes(warc(tmp_path / "raw.warc.gz", plain=False))
    for workers in (1, 2):
        outcome = extract([tmp_path / "a.warc.gz"], tmp_path / f"w{workers}", ExtractSettings(), workers)
        assert outcome.counts is not None
        assert outcome.counts.docs_in == len(PAGES)
    assert len(contents(tmp_path / "w1")) > 2
    assert contents(tmp_path / "w1") == contents(tmp_path / "w2")


def test_inputs_of_verbs_are_shared_too(tmp_path, monkeypatch):
    monkeypatch.setattr(splits, "SPLIT_BYTES", 4000)
    (tmp_path / "a.jsonl").write_bytes(LINES + b"broken\n")
    (tmp_path / "a.parquet").write_bytes(parquet(tmp_path / "raw.parquet"))
    (tmp_path / "a.arrow").write_bytes(ipc(20))
    files = [tmp_path / name for name in ("a.jsonl", "a.parquet", "a.arrow")]
    made = as_documents(files, tmp_path / "work", workers=2)
    assert len(made) > 10
    texts = [text for path in made for text in pq.read_table(path)["text"].to_pylist()]
    assert texts == [row["text"] for row in ROWS] * 3
    assert count_documents(tmp_path / "work").rejected == {"bad_json": 1}


def test_big_parquet_passes_as_one_of_many(tmp_path, monkeypatch):
    monkeypatch.setattr(splits, "SPLIT_BYTES", 100)
    big = parquet(tmp_path / "raw.parquet")
    files = [tmp_path / f"{number:02d}.parquet" for number in range(17)]
    for file in files:
        file.write_bytes(big)
    assert as_documents(files, tmp_path / "many", workers=1) == files
    few = as_documents(files[:15], tmp_path / "few", workers=1)
    assert not {*few} & {*files}
    assert [text for path in few for text in pq.read_table(path)["text"].to_pylist()] == [r["text"] for r in ROWS] * 15
