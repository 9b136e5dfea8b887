"""Several shards of a domain: how they are cut, and that nothing else changes."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.document import conform
from pipelines.encode import EncodeSettings, encode
from pipelines.indexed import IndexedTokens, load_shards
from pipelines.shards import Blend
from pipelines.tokenizer import TokenizerSettings, train_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merge")
    texts = [f"document {n}: " + "loam " * (n % 9) for n in range(200)]
    for part in range(3):
        path = folder / "kept" / "web" / f"part-{part:05d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = range(part, 200, 3)
        pq.write_table(conform(pa.table({"id": [str(n) for n in rows], "text": [texts[n] for n in rows]})), path)
    train_tokenizer(sorted(folder.rglob("*.parquet")), folder, TokenizerSettings(vocab_size=300))
    return folder


def test_shards_are_cut_at_documents_and_hold_the_same_in_the_same_order(folder: Path, tmp_path: Path) -> None:
    files = sorted((folder / "kept").rglob("*.parquet"))
    for out, limit, workers in (("one", None, 1), ("many", 500, 1), ("two", 500, 2)):
        settings = EncodeSettings(validation_share=0, max_shard_tokens=limit)
        encode(files, tmp_path / out, folder, settings, workers)
    whole = IndexedTokens(tmp_path / "one" / "web")
    found = load_shards(tmp_path / "many")
    count = len(found.shards)
    assert count > 2
    assert [s.name for s in found.shards] == [f"web-{n:05d}-of-{count:05d}" for n in range(count)]
    assert all(shard.tokens <= 500 for shard in found.shards)
    parts = [IndexedTokens(shard.prefix) for shard in found.shards]
    assert np.array_equal(np.concatenate([part.tokens for part in parts]), whole.tokens)
    assert np.array_equal(np.concatenate([part.lengths for part in parts]), whole.lengths)
    for path in sorted((tmp_path / "many").glob("web*")):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_a_blend_draws_from_all_shards_of_a_domain(folder: Path, tmp_path: Path) -> None:
    files = sorted((folder / "kept").rglob("*.parquet"))
    encode(files, tmp_path, folder, EncodeSettings(validation_share=0, max_shard_tokens=500))
    found = load_shards(tmp_path)
    blend = Blend.of({"web": 1.0}, found)
    assert [shard for _, shard in blend.parts] == list(found.shards)
    assert blend.parts[0][0] == pytest.approx(found.shards[0].tokens / found.tokens)


def test_a_document_longer_than_a_shard_has_one_of_its_own(folder: Path, tmp_path: Path) -> None:
    files = sorted((folder / "kept").rglob("*.parquet"))
    encode(files, tmp_path, folder, EncodeSettings(validation_share=0, max_shard_tokens=2))
    found = load_shards(tmp_path)
    assert found.documents == len(found.shards) == 200
