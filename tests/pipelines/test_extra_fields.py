"""Fields beside the text become metadata, the same from rows and from columns."""

import pyarrow as pa

from pipelines.document import conform
from pipelines.extra_fields import MAX_CHARS, MAX_FIELDS, kept_fields, metadata_of

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


def test_a_table_of_loam_keeps_its_own_metadata():
    ours = pa.table(
        {"id": ["a"], "text": ["x"], "n": [1], "metadata": pa.array([[("k", "v")]], pa.map_("string", "string"))}
    )
    assert conform(ours)["metadata"].to_pylist() == [[("k", "v")]]


def test_torn_strings_are_left_out():
    torn = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff"))
    assert metadata_of(pa.table({"id": ["a"], "torn": torn}), KNOWN).to_pylist() == [None]
