import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import DataError
from pipelines.execute import count_documents
from pipelines.inputs import Batches, as_documents
from pipelines.readers import JsonReader, RawReader, Reading, TextReader
from pipelines.records import cut, json_items, lines, paragraphs, sections, whole
from pipelines.table_readers import ParquetReader
from pipelines.templates import filled
from pipelines.tracing import read_origin


def texts_of(reader: RawReader, rank: int = 0) -> list[str]:
    return [d.metadata.get("reason") or d.text for d in reader.run(None, rank, 1)]


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def bodies(data: bytes, cutter, max_bytes: int = 100) -> list[bytes | str]:
    return [record.problem or record.data for record in cut(io.BytesIO(data), cutter, max_bytes)]


@pytest.mark.parametrize(
    ("cutter", "data", "expected"),
    [
        (lines, b"one\n\n two\r\nthree", [b"one", b" two", b"three"]),
        (lines, b"ok\n" + b"x" * 101 + b"\nend\n", [b"ok", "too_large", b"end"]),
        (lines, b"x" * 100 + b"\r\n", [b"x" * 100]),
        (lines, b"", ["empty_file"]),
        (lines, b"\n \n", ["no_records"]),
        (whole, b"a\nb", [b"a\nb"]),
        (whole, b"x" * 101, ["too_large"]),
        (paragraphs, b"a\nb\n\n\nc\n", [b"a\nb\n", b"c\n"]),
        (paragraphs, b"a\n" * 51 + b"\nb", ["too_large", b"b"]),
        (sections("^= "), b"intro\n= A\na\n\na\n= B\nb", [b"intro\n", b"= A\na\n\na\n", b"= B\nb"]),
        (json_items(), b' [1, {"a": [2]} ,"x"]', [b"1", b'{"a": [2]}', b'"x"']),
        (json_items(), b'{"a": 1}', [b'{"a": 1}']),
        (json_items("d.p"), b'{"v":0,"d":[{"p":[1,2],"q":[9]},{"p":[3]}]}', [b"1", b"2", b"3"]),
        (json_items(), b'[1, 2, {"a"', [b"1", b"2", "bad_json"]),
        (json_items(), b"[" * 100_000, ["bad_json"]),
        (json_items(), b'["\xff"]', ["invalid_utf8"]),
        (json_items(), b"[]", ["no_records"]),
    ],
)
def test_streams_are_cut_into_records(cutter, data, expected):
    assert bodies(data, cutter) == expected


@given(st.lists(st.text(max_size=20), max_size=8), st.sampled_from(["lines", "paragraphs", "json"]))
def test_the_place_of_a_record_is_where_its_bytes_are(pieces, kind):
    data = json.dumps(pieces, ensure_ascii=False).encode() if kind == "json" else "\n\n".join(pieces).encode()
    cutter = {"lines": lines, "paragraphs": paragraphs, "json": json_items()}[kind]
    for record in cut(io.BytesIO(data), cutter, 1000):
        assert record.data == data[record.offset : record.offset + record.length]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{q}\n{a.b}", "what\nthis"),
        ("{list}", "x y"),
        ("{list.1}", "y"),
        ("{nothing|q}", "what"),
        ("{number}", "3"),
        (r"\frac{1}{2} {q}", None),  # a template cannot hold braces of its own
        ("{empty}", None),
        ("{nothing}", None),
    ],
)
def test_templates(template, expected):
    fields = {"q": "what", "a": {"b": "this"}, "list": ["x", "y"], "number": 3, "empty": ""}
    assert filled(template, fields, join=" ") == expected


def test_json_lines_with_everything_that_can_be_wrong(tmp_path):
    file = put(
        tmp_path / "a.jsonl",
        b'{"id":"a","text":"good"}\n{bad\n{"text":"\xff"}\n{"text":"a\\u0000b"}\n{"id":"d"}\n[1]\n'
        b'{"text":"\\ud800"}\n{"id":7,"text":"last","n":NaN}\n' + b"[" * 100_000,
    )
    reader = JsonReader([file], tmp_path, Reading(source="s", id_field="id"))
    assert texts_of(reader) == ["good", "bad_json", "invalid_utf8", "nul_bytes", "no_text", "not_an_object",
                                "bad_unicode", "last", "bad_json"]  # fmt: skip
    assert [d.id for d in reader.run(None)][:2] == ["s/a", "s/a.jsonl/1"]


@pytest.mark.parametrize(("suffix", "pack"), [("", bytes), (".gz", gzip.compress), (".zst", None)])
def test_compressions_read_the_same(tmp_path, suffix, pack):
    plain = b'{"text":"one"}\n{"text":"two"}\n'
    if pack is None:
        import zstandard

        pack = zstandard.ZstdCompressor().compress
    file = put(tmp_path / f"a.jsonl{suffix}", pack(plain))
    assert texts_of(JsonReader([file], tmp_path, Reading())) == ["one", "two"]


def test_a_truncated_gzip_keeps_what_came_before(tmp_path):
    packed = gzip.compress(b"".join(b'{"text":"%d"}\n' % (n * 7919) for n in range(5000)))
    file = put(tmp_path / "a.jsonl.gz", packed[: len(packed) // 2])
    found = texts_of(JsonReader([file], tmp_path, Reading()))
    assert found[:2] == ["0", "7919"]
    assert found[-1] == "truncated"
    assert 1000 < len(found) < 4000


def test_text_files_in_archives_are_read_by_member(tmp_path):
    with tarfile.open(tmp_path / "t.tar.gz", "w:gz") as tar, zipfile.ZipFile(tmp_path / "t.zip", "w") as zipped:
        for name, data in (("d/a.txt", b"\xef\xbb\xbfalpha"), ("d/b.py", b"beta"), ("d/c.txt", b"caf\xe9")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
            zipped.writestr(name, data)
    for name in ("t.tar.gz", "t.zip"):
        reader = TextReader([tmp_path / name], tmp_path, Reading(members="*.txt"))
        documents = list(reader.run(None))
        assert [(d.text, d.metadata.get("encoding")) for d in documents] == [("alpha", None), ("café", "cp1252")]
        assert documents[0].id == f"{name}!d/a.txt"
        assert read_origin(documents[0].metadata["origin"], [tmp_path]) == b"\xef\xbb\xbfalpha"


@pytest.mark.parametrize("name", ["x.tar", "x.zip", "x.tar.gz"])
def test_a_broken_archive_is_one_reject(tmp_path, name):
    file = put(tmp_path / name, b"PK nonsense" * 200)
    assert texts_of(TextReader([file], tmp_path, Reading())) == ["corrupt"]


def test_limits_are_shared_out_over_files(tmp_path):
    files = [put(tmp_path / f"{n}.txt", b"a\nb\nc\nd\n") for n in range(2)]
    reader = TextReader(files, tmp_path, Reading(max_documents=5), lines)
    assert [texts_of(reader, rank) for rank in (0, 1)] == [["a", "b", "c"], ["a", "b"]]
    assert texts_of(TextReader(files, tmp_path, Reading(max_bytes=4), lines)) == ["a", "b"]


def test_parquet_rows_are_traced(tmp_path):
    pq.write_table(pa.table({"q": ["x", "y"], "n": [1, 2]}), tmp_path / "a.parquet")
    documents = list(ParquetReader([tmp_path / "a.parquet"], tmp_path, Reading(text="{q}{n}")).run(None))
    assert [d.text for d in documents] == ["x1", "y2"]
    assert json.loads(read_origin(documents[1].metadata["origin"], [tmp_path])) == {"q": "y", "n": 2}
    put(tmp_path / "b.parquet", b"no")
    with pytest.raises(DataError, match="not readable Parquet"):
        list(ParquetReader([tmp_path / "b.parquet"], tmp_path, Reading()).run(None))


def test_batches_are_bounded_by_rows_and_bytes(tmp_path):
    file = put(tmp_path / "a.txt", b"x\n" * 2500)
    tables = list(Batches().run(TextReader([file], tmp_path, Reading(domain="d"), lines).run(None)))
    assert [t.num_rows for t in tables] == [1024, 1024, 452]
    assert tables[0]["domain"][0].as_py() == "d"
    assert tables[2]["origin"][451].as_py()["offset"] == 4998


def test_as_documents_converts_json_lines_and_counts_rejects(tmp_path):
    pq.write_table(pa.table({"id": ["p"], "text": ["parquet"]}), tmp_path / "a.parquet")
    put(tmp_path / "b.jsonl", b'{"id":"x","text":"kept","url":"http://u"}\nbroken\n')
    put(tmp_path / "c.json", b'[{"text":"array"}]')
    files = [tmp_path / name for name in ("a.parquet", "b.jsonl", "c.json")]
    for _ in range(2):  # the second call resumes from what is there
        parquet, converted, array = as_documents(files, tmp_path / "work")
    assert parquet == files[0]
    assert pq.read_table(converted).select(["id", "text", "url"]).to_pylist() == [
        {"id": "x", "text": "kept", "url": "http://u"}
    ]
    assert pq.read_table(array)["id"].to_pylist() == ["c.json/0"]
    assert count_documents(tmp_path / "work").rejected == {"bad_json": 1}


@pytest.mark.parametrize(
    ("name", "message"),
    [("a.bin", "expected Parquet, Arrow, JSON Lines, CSV"), ("a.html", "loam extract"), ("no.jsonl", "No such file")],
)
def test_as_documents_refuses_other_files(tmp_path, name, message):
    put(tmp_path / "a.bin", b"a,b")
    put(tmp_path / "a.html", b"<p>a")
    with pytest.raises(DataError, match=message):
        as_documents([tmp_path / name], tmp_path / "work")
