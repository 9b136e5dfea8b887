"""The verifier passes good shards, and names what is wrong with damaged ones."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.files import sha256_of
from pipelines.indexed import IndexedWriter
from pipelines.verify import Report, verify

DOCUMENTS = [[5, 6, 7, 0], [9, 0], [1, 2, 3, 0]]


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    return write(tmp_path / "x")


def write(prefix: Path, documents: list[list[int]] = DOCUMENTS) -> Path:
    with IndexedWriter(prefix, 10) as writer:
        for document in documents:
            writer.append(np.array(document, np.int32), np.array([len(document)]))
    sidecar(prefix, [f"doc-{n}" for n in range(len(documents))], [len(d) for d in documents])
    return prefix


def sidecar(prefix: Path, ids: list[str], tokens: list[int]) -> None:
    pq.write_table(pa.table({"id": ids, "tokens": tokens}), f"{prefix}.origin.parquet")


def failed(prefix: Path) -> set[str]:
    return {check.name for check in verify(prefix, vocab_size=10, eos_id=0).failures}


def patch(path: Path, offset: int, data: bytes) -> None:
    raw = bytearray(path.read_bytes())
    raw[offset : offset + len(data)] = data
    path.write_bytes(raw)


def test_a_good_shard_passes(prefix: Path) -> None:
    report = verify(prefix, vocab_size=10, eos_id=0)
    assert report.passed
    assert (report.sequences, report.tokens, report.dtype) == (3, 10, "uint16")
    assert report.sha256 == sha256_of(prefix.with_suffix(".bin"))
    assert verify(prefix.with_suffix(".idx"), 10, 0) == report
    assert Report.model_validate_json(report.model_dump_json()) == report


def test_an_empty_shard_passes(tmp_path: Path) -> None:
    report = verify(write(tmp_path / "none", []), vocab_size=10, eos_id=0)
    assert (report.passed, report.sequences, report.tokens) == (True, 0, 0)


INDEX_DAMAGE = [  # offset in the .idx, bytes written there, the check that must fail
    (0, b"X", "magic"),
    (9, b"\x02", "version"),
    (17, b"\x63", "dtype code"),
    (17, b"\x04", "pointers"),  # int32 instead of uint16
    (18, b"\x04", "index size"),  # sequences
    (26, b"\xff\xff\xff\xff\xff\xff\xff\x7f", "index size"),  # documents
    (34, b"\x05", "pointers"),  # first length
    (34 + 8, b"\x05", "bin size"),  # last length
    (34 + 8, b"\xff\xff\xff\xff", "lengths"),
    (46, b"\x02", "pointers"),
    (70, b"\x01", "document indices begin"),
    (78, b"\x03", "document indices rise"),
    (94, b"\x02", "document indices end"),
]


@pytest.mark.parametrize(("offset", "data", "check"), INDEX_DAMAGE)
def test_damage_in_the_index_is_named(prefix: Path, offset: int, data: bytes, check: str) -> None:
    patch(prefix.with_suffix(".idx"), offset, data)
    assert check in failed(prefix)


TOKEN_DAMAGE = [
    (0, b"\x0a", "tokens in vocabulary"),
    (6, b"\x01", "eos at every end"),
    (0, b"\x00", "eos only at ends"),
]


@pytest.mark.parametrize(("offset", "data", "check"), TOKEN_DAMAGE)
def test_damage_in_the_tokens_is_named(prefix: Path, offset: int, data: bytes, check: str) -> None:
    patch(prefix.with_suffix(".bin"), offset, data)
    assert failed(prefix) == {check}


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_a_missing_file_is_named(prefix: Path, suffix: str) -> None:
    prefix.with_suffix(suffix).unlink()
    assert "files" in failed(prefix)


@pytest.mark.parametrize(("suffix", "check"), [(".bin", "bin size"), (".idx", "index size")])
def test_a_cut_or_longer_file_is_named(prefix: Path, suffix: str, check: str) -> None:
    path = prefix.with_suffix(suffix)
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole + b"\0"):
        path.write_bytes(damaged)
        assert check in failed(prefix)


def test_every_cut_of_the_index_fails_without_a_traceback(prefix: Path) -> None:
    path = prefix.with_suffix(".idx")
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert failed(prefix) & {"header size", "index size"}, length


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_damage_gives_a_traceback_or_passes_unseen(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    prefix = write(tmp_path_factory.mktemp("damage") / "x")
    path = prefix.with_suffix(".idx")
    raw = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(raw)
    assert failed(prefix)


@pytest.mark.parametrize(
    ("ids", "tokens", "check"),
    [
        (["a", "b"], [4, 2], "sidecar rows"),
        (["a", "b", "b"], [4, 2, 4], "sidecar ids unique"),
        (["a", "b", "c"], [4, 3, 4], "sidecar lengths"),
    ],
)
def test_a_wrong_sidecar_is_named(prefix: Path, ids: list[str], tokens: list[int], check: str) -> None:
    sidecar(prefix, ids, tokens)
    assert failed(prefix) == {check}


def test_an_unreadable_sidecar_is_named(prefix: Path) -> None:
    Path(f"{prefix}.origin.parquet").write_bytes(b"PAR1")
    assert failed(prefix) == {"sidecar"}


def test_the_manifest_above_is_compared(tmp_path: Path) -> None:
    prefix = write(tmp_path / "train" / "web" / "high")
    files = [p for p in tmp_path.rglob("high*") if p.is_file()]
    entries = [{"path": p.relative_to(tmp_path).as_posix(), "sha256": sha256_of(p)} for p in files]
    (tmp_path / "manifest.json").write_text(json.dumps({"outputs": entries}))
    assert failed(prefix) == set()
    patch(prefix.with_suffix(".bin"), 0, b"\x06")
    assert failed(prefix) == {"sha256 high.bin"}
    for broken in ("{", "[]", '{"outputs": 3}'):
        (tmp_path / "manifest.json").write_text(broken)
        assert failed(prefix) == {"manifest"}
