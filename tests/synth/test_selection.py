import pyarrow as pa
import pyarrow.parquet as pq

from synth.recipe import SynthSettings
from synth.selection import select_documents


def test_held_out_documents_are_never_drawn(tmp_path):
    pq.write_table(pa.table({"id": list("abcd"), "text": ["word " * 200] * 4}), tmp_path / "in.parquet")
    pq.write_table(pa.table({"id": ["b", "d"]}), tmp_path / "held.parquet")
    drawn = select_documents([tmp_path / "in.parquet"], SynthSettings(), [tmp_path / "held.parquet"])
    assert sorted(drawn.documents["id"].to_pylist()) == ["a", "c"]
    assert drawn.seen["held_out"] == 2
