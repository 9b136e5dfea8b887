import hashlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.document import ORIGIN
from pipelines.errors import DataError
from pipelines.readers import JsonReader, Reading
from pipelines.tracing import read_origin, trace

ORIGIN_OF_BETA = {"file": "a.txt", "member": None, "offset": 6, "row": 1, "length": 4,
                  "sha256": hashlib.sha256(b"beta").hexdigest()}  # fmt: skip


def test_the_bytes_come_back_from_the_first_root_that_has_the_file(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"alpha\nbeta\n")
    assert read_origin(ORIGIN_OF_BETA, [tmp_path / "elsewhere", tmp_path]) == b"beta"


def test_changed_bytes_are_named_with_both_hashes(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"alpha\nBETA\n")
    found = hashlib.sha256(b"BETA").hexdigest()
    with pytest.raises(DataError, match=f"expected sha256 {ORIGIN_OF_BETA['sha256']}, found {found}"):
        read_origin(ORIGIN_OF_BETA, [tmp_path])


def test_a_missing_file_names_where_it_was_looked_for(tmp_path):
    with pytest.raises(DataError, match=r"raw file a\.txt is not in"):
        read_origin(ORIGIN_OF_BETA, [tmp_path])


def test_damage_and_missing_members_are_data_errors(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"no archive" * 100)
    with pytest.raises(DataError, match="cannot be read"):
        read_origin({**ORIGIN_OF_BETA, "file": "a.tar", "member": "m"}, [tmp_path])


def test_every_json_line_is_found_again(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "één"}\r\n\n{"text": "two"}')
    documents = JsonReader([tmp_path / "a.jsonl"], tmp_path, Reading()).run(None)
    raw = [read_origin(document.metadata["origin"], [tmp_path]).decode() for document in documents]
    assert raw == ['{"text": "één"}', '{"text": "two"}']


def test_a_row_of_a_shard_leads_to_its_document(tmp_path):
    rows = [{"id": f"d{n}", "source": "s", "domain": "web", "origin": {**ORIGIN_OF_BETA, "row": n}} for n in range(5)]
    schema = pa.schema([("id", pa.string()), ("source", pa.string()), ("domain", pa.string()), ("origin", ORIGIN)])
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "web.origin.parquet", row_group_size=2)
    assert trace(tmp_path / "web", 3) == rows[3]
    with pytest.raises(DataError, match="rows 0 to 4; there is no row 5"):
        trace(tmp_path / "web", 5)
    with pytest.raises(DataError, match="missing"):
        trace(tmp_path / "code", 0)
