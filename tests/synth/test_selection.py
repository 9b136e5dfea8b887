import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import DataError
from synth.recipe import SynthSettings
from synth.retrieval_index import build_index
from synth.retrieval_settings import RetrievalSettings
from synth.selection import select_documents


def test_held_out_documents_are_never_drawn(tmp_path):
    pq.write_table(pa.table({"id": list("abcd"), "text": ["word " * 200] * 4}), tmp_path / "in.parquet")
    pq.write_table(pa.table({"id": ["b", "d"]}), tmp_path / "held.parquet")
    drawn = select_documents([tmp_path / "in.parquet"], SynthSettings(), [tmp_path / "held.parquet"])
    assert sorted(drawn.documents["id"].to_pylist()) == ["a", "c"]
    assert drawn.seen["held_out"] == 2


def test_a_file_without_text_is_named(tmp_path):
    file = tmp_path / "in.parquet"
    pq.write_table(pa.table({"id": ["a"], "question": ["Why?"]}), file)
    wanted = f"^{file}: documents need a column 'text'; found: id, question; "
    with pytest.raises(DataError, match=wanted):
        select_documents([file], SynthSettings())
    with pytest.raises(DataError, match=wanted):
        build_index([file], tmp_path / "index", RetrievalSettings())
