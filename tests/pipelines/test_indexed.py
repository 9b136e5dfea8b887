"""Shards: megatron-core reads what we write, and we read what it writes."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import DataError
from pipelines.indexed import IndexedTokens, IndexedWriter, load_shard, load_shards, token_dtype

DOCUMENTS = [[5, 6, 7, 0], [9, 0], [1, 2, 3, 4, 5, 0]]


def write(prefix: Path, documents: list[list[int]], vocab_size: int = 10) -> Path:
    with IndexedWriter(prefix, vocab_size) as writer:
        for document in documents:
            writer.append(np.array(document), np.array([len(document)]))
    return prefix


@pytest.mark.parametrize("vocab_size", [256, 65_499, 65_500, 65_536, 200_000])
def test_dtype_is_megatrons(vocab_size: int) -> None:
    from megatron.core.datasets.indexed_dataset import DType

    assert token_dtype(vocab_size) == np.dtype(DType.optimal_dtype(vocab_size))


@pytest.mark.parametrize("vocab_size", [10, 70_000])
def test_megatron_reads_our_shard_token_for_token(tmp_path: Path, vocab_size: int) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    theirs = IndexedDataset(str(write(tmp_path / "a.b", DOCUMENTS, vocab_size)), mmap=True)
    assert [theirs[row].tolist() for row in range(len(theirs))] == DOCUMENTS
    assert theirs.document_indices.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_we_read_megatrons_shard_and_write_its_bytes(tmp_path: Path, dtype: type) -> None:
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=dtype)
    for document in DOCUMENTS:
        builder.add_document(torch.tensor(document), [len(document)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    shard = IndexedTokens(tmp_path / "theirs")
    assert [shard[row].tolist() for row in range(len(shard))] == DOCUMENTS
    write(tmp_path / "ours", DOCUMENTS, 10 if dtype is np.uint16 else 70_000)
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"ours{suffix}").read_bytes() == (tmp_path / f"theirs{suffix}").read_bytes()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(0, 299), min_size=1, max_size=9), max_size=12))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]]) -> None:
    shard = IndexedTokens(write(tmp_path_factory.mktemp("shard") / "x", documents, 300))
    assert [shard[row].tolist() for row in range(len(shard))] == documents


def test_an_empty_shard_can_be_read(tmp_path: Path) -> None:
    shard = IndexedTokens(write(tmp_path / "none", []))
    assert (len(shard), len(shard.tokens), shard.documents.tolist()) == (0, 0, [0])


def test_shards_are_named_by_their_path(tmp_path: Path) -> None:
    write(tmp_path / "web/high", DOCUMENTS)
    write(tmp_path / "code", DOCUMENTS[:1])
    found = load_shards(tmp_path)
    assert [(s.name, s.documents, s.tokens, s.size_bytes) for s in found.shards] == [
        ("code", 1, 4, 8), ("web/high", 3, 12, 24)
    ]  # fmt: skip
    with pytest.raises(DataError, match="loam tokenize"):
        load_shards(tmp_path / "web" / "nothing")


def test_a_failed_writer_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AssertionError), IndexedWriter(tmp_path / "x", 10) as writer:
        writer.append(np.array([99]), np.array([1]))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["cut index", "cut tokens", "no tokens", "other file"])
def test_a_broken_shard_is_a_data_error(tmp_path: Path, damage: str) -> None:
    prefix = write(tmp_path / "x", DOCUMENTS)
    index, tokens = prefix.with_suffix(".idx"), prefix.with_suffix(".bin")
    match damage:
        case "cut index":
            index.write_bytes(index.read_bytes()[:-1])
        case "cut tokens":
            tokens.write_bytes(tokens.read_bytes()[:-1])
        case "no tokens":
            tokens.unlink()
        case "other file":
            index.write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(DataError, match=r"x\.(idx|bin)"):
        load_shard(prefix, "x")
