import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipelines.block import Block
from pipelines.document import DROPPED, REJECTED, SCHEMA, conform, table_of, with_column, with_fate, with_scores
from pipelines.errors import DataError, StepError
from pipelines.execute import parts_of, transform
from pipelines.files import expand_inputs


class DropShort(Block):
    name = "drop short"

    def apply(self, batch):
        length = pc.utf8_length(batch["text"])
        batch = with_column(batch, "chars", length)
        return with_fate(batch, DROPPED, pc.if_else(pc.less(length, 5), "short", pa.scalar(None, pa.string())))


class RejectEven(Block):
    name = "reject even"

    def apply(self, batch):
        assert pc.min(pc.utf8_length(batch["text"])).as_py() >= 5  # dropped rows do not come back
        even = pc.ends_with(batch["id"], "4")
        return with_fate(batch, REJECTED, pc.if_else(even, "even", pa.scalar(None, pa.string())))


class Fail(Block):
    name = "fail"

    def apply(self, batch):
        raise RuntimeError("boom")


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "in" / "kept" / "web"
    folder.mkdir(parents=True)
    for part in range(3):
        rows = {"id": [f"{part}-{i}" for i in range(5)], "text": ["ab" * i for i in range(5)]}
        pq.write_table(pa.table(rows), folder / f"part-{part:05d}.parquet")
    return sorted(folder.glob("*.parquet"))


@pytest.mark.parametrize("workers", [1, 2])
def test_every_document_is_accounted_for(tmp_path, files, workers):
    counts = transform(files, [DropShort(), RejectEven()], tmp_path / "out", workers, "t")
    assert (counts.docs_in, counts.kept, counts.dropped, counts.rejected) == (15, 3, {"short": 9}, {"even": 3})
    kept = pq.read_table(tmp_path / "out" / "kept" / "web" / "part-00001.parquet")
    assert kept["id"].to_pylist() == ["1-3"]
    assert kept.schema.equals(SCHEMA)
    attributes = pq.read_table(tmp_path / "out" / "attributes" / "web" / "part-00001.parquet")
    assert sorted(attributes["chars"].to_pylist()) == [0, 2, 4, 6, 8]


def test_workers_do_not_change_a_byte(tmp_path, files):
    for workers in (1, 2, 3):
        transform(files, [DropShort()], tmp_path / str(workers), workers, "t")
    outputs = [{p.relative_to(tmp_path / w): p.read_bytes() for p in (tmp_path / w).rglob("*.parquet")} for w in "123"]
    assert outputs[0] == outputs[1] == outputs[2]


def test_a_failing_block_names_its_log(tmp_path, files):
    with pytest.raises(StepError, match=r"t: RuntimeError: boom; logs in .*run again to resume"):
        transform(files, [Fail()], tmp_path / "out", 1, "t")


def test_conform_fills_and_refuses():
    table = conform(pa.table({"id": ["a"], "text": ["b"], "unknown": [1]}))
    assert table.schema.equals(SCHEMA)
    assert table["scores"].to_pylist() == [None]
    with pytest.raises(DataError, match="documents need a column 'text'; found: id"):
        conform(pa.table({"id": ["a"]}))
    with pytest.raises(DataError, match=r"x\.parquet: column 'text' cannot be read"):
        conform(pa.table({"id": ["a"], "text": [["b"]]}), file="x.parquet")


def test_a_users_column_of_another_kind_is_metadata():
    theirs = pa.table({"id": ["a"], "text": ["b"], "scores": [3], "origin": ["web"], "domain": [["x", "y"]]})
    [row] = conform(theirs).to_pylist()
    assert (row["scores"], row["origin"], row["domain"]) == (None, None, None)
    assert row["metadata"] == [("scores", "3"), ("origin", "web"), ("domain", '["x", "y"]')]
    ours = theirs.append_column("metadata", pa.array([[("k", "v")]], SCHEMA.field("metadata").type))
    with pytest.raises(DataError, match="column 'domain' cannot be read as string"):
        conform(ours)


def test_scores_keep_their_neighbours():
    table = table_of([{"id": "a", "text": "b", "scores": {"quality": 0.5}}])
    scored = with_scores(table, language=pa.array([0.9]))
    assert scored["scores"][0].as_py()["quality"] == 0.5
    assert scored["scores"][0].as_py()["language"] == 0.9


def test_parts_keep_their_place_and_never_collide(tmp_path, files):
    assert parts_of(files)[0] == "web/part-00000"
    assert parts_of([tmp_path / "x.parquet", tmp_path / "y.parquet"]) == ["part-00000", "part-00001"]
    assert parts_of([files[0], files[0]]) == ["part-00000", "part-00001"]


def test_inputs_are_expanded_sorted_and_must_exist(tmp_path, files):
    assert expand_inputs([tmp_path / "in", str(tmp_path / "in" / "**" / "*.parquet")]) == files
    with pytest.raises(DataError, match="no file matches"):
        expand_inputs([tmp_path / "nothing-*.parquet"])
