"""Fields beside the text become metadata, the same from rows and from columns."""

import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.feather import write_feather

from pipelines.document import STREAM, conform
from pipelines.extra_fields import MAX_CHARS, MAX_FIELDS, kept_fields, metadata_of
from pipelines.inputs import as_documents, left_out

KNOWN = ("id", "text")
ROWS = [
    {"id": "a", "text": "x", "answer": "72", "n": 3, "share": 0.5, "good": True, "tags": ["a", "b"], "vector": [1.0]},
    {"id": "b", "text": "y", "answer": None, "n": None, "share": None, "good": None, "tags": None, "vector": None},
]
KEPT = {"answer": "72", "n": "3", "share": "0.5", "good": "true", "tags": '["a", "b"]'}


def test_rows_and_columns_keep_the_same():
    assert [kept_fields(row, KNOWN) for row in ROWS] == [KEPT, {}]
    assert metadata_of(pa.Table.from_pylist(ROWS), KNOWN).to_pylist() == [list(KEPT.items()), None]


def test_an_object_metadata_wins_and_keeps_what_is_nested():
    row = {"id": "a", "text": "x", "answer": "1", "metadata": {"answer": 2, "tests": {"in": [1]}}}
    assert kept_fields(row, KNOWN) == {"answer": "2", "tests": '{"in": [1]}'}


def test_sizes_are_bounded_and_values_kept_whole_or_not_at_all():
    many = {f"k{number}": "v" for number in range(MAX_FIELDS + 5)} | {"id": "a", "text": "x"}
    assert list(kept_fields(many, KNOWN)) == [f"k{number}" for number in range(MAX_FIELDS)]
    assert len(metadata_of(pa.Table.from_pylist([many]), KNOWN).to_pylist()[0]) == MAX_FIELDS
    assert kept_fields({"long": "v" * (MAX_CHARS + 1), "fits": "v" * MAX_CHARS}, ()).keys() == {"fits"}


def test_what_is_left_out_is_counted_the_same_from_rows_and_columns():
    row = {"id": "a", "text": "x", "vector": [1.0], "place": {"page": 3}, "long": "v" * (MAX_CHARS + 1), "none": None}
    row |= {f"k{number}": "v" for number in range(MAX_FIELDS + 5)}
    by_row, by_column = Counter(), Counter()
    kept_fields(row, KNOWN, by_row)
    metadata_of(pa.Table.from_pylist([row]), KNOWN, by_column)
    assert +by_row == +by_column == {"nested": 2, "too_long": 1, "too_many": 5}


@pytest.mark.parametrize("name", ["a.jsonl", "a.arrow", "a.parquet"])
def test_inputs_count_what_they_leave_out_and_take_labels_for_columns(tmp_path: Path, name: str):
    rows = [{"id": f"d{n}", "text": "x", "language": "zho", "domain": "web", "source": "cc", "fate": "lost",
             "answer": n, "place": {"page": n}} for n in range(3)]  # fmt: skip
    file, work = tmp_path / name, tmp_path / "work"
    if name == "a.jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif name == "a.arrow":
        write_feather(pa.Table.from_pylist(rows), str(file))
    else:
        pq.write_table(pa.Table.from_pylist(rows), file)
    for _ in range(2):  # and again, after a kill
        [made] = as_documents([file], work)
        assert left_out(work) == {"nested": 3}
    documents = conform(pq.read_table(made), STREAM).to_pylist()
    assert [document["language"] + document["domain"] + document["source"] for document in documents] == [
        "zhowebcc"
    ] * 3
    assert [document["metadata"] for document in documents] == [
        [("fate", "lost"), ("answer", str(n))] for n in range(3)
    ]
    assert {document["fate"] for document in documents} == {None}  # nobody's column decides that


def test_a_table_of_loam_keeps_its_own_metadata():
    ours = pa.table(
        {"id": ["a"], "text": ["x"], "n": [1], "metadata": pa.array([[("k", "v")]], pa.map_("string", "string"))}
    )
    assert conform(ours)["metadata"].to_pylist() == [[("k", "v")]]


def test_torn_strings_are_left_out():
    torn, lost = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")), Counter()
    assert metadata_of(pa.table({"id": ["a"], "torn": torn}), KNOWN, lost).to_pylist() == [None]
    assert +lost == {"invalid_utf8": 1}
