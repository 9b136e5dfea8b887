from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.encode import EncodeSettings, encode
from pipelines.errors import DataError
from trainer.evaluate import EvaluateSettings, evaluate
from trainer.held_out import Documents, TokenShard, held_out
from trainer.likelihood import Scorer

TEXTS = ["The river carries sand and clay.", "天气很好，我们去公园。", "x", "an <eos> written out is text, not an end"]
ALL = EvaluateSettings(tokens_per_domain=None)


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    path = tmp_path / "documents.parquet"
    pq.write_table(pa.table({"id": [f"d{n}" for n in range(len(TEXTS))], "text": TEXTS}), path)
    return path


@pytest.fixture
def shards(tmp_path: Path, documents: Path, tiny_model: Path) -> Path:
    encode([documents], tmp_path / "shards", tiny_model, EncodeSettings(validation_share=0), name="web/en")
    return tmp_path / "shards"


@pytest.fixture(scope="module")
def scorer(tiny_model: Path) -> Scorer:
    return Scorer(tiny_model)


def test_shards_and_documents_give_the_same_tokens(shards: Path, documents: Path, scorer: Scorer):
    from_shards = held_out(shards, 999)
    assert from_shards == {"web/en": TokenShard(shards / "web/en")}
    read = list(from_shards["web/en"].read(scorer))
    assert read == list(Documents((documents,), 999).read(scorer))
    assert {held.id: held.size_bytes for held in read} == {f"d{n}": len(t.encode()) for n, t in enumerate(TEXTS)}
    assert all(scorer.eos_id not in held.tokens for held in read)


def test_a_long_document_counts_up_to_a_limit(documents: Path, scorer: Scorer):
    sizes = {held.id: held.size_bytes for held in Documents((documents,), 3).read(scorer)}
    assert sizes == {"d0": 3, "d1": 9, "d2": 1, "d3": 3}


def test_shards_and_documents_give_the_same_bits_per_byte(
    shards: Path, documents: Path, tiny_model: Path, tmp_path: Path
):
    one = evaluate(tiny_model, tmp_path / "one", ALL, shards).metrics["domains"]["web/en"]
    two = evaluate(tiny_model, tmp_path / "two", ALL, {"web/en": [documents]}).metrics["domains"]["web/en"]
    assert one == two
    assert (one["documents"], one["bytes"]) == (4, sum(len(text.encode()) for text in TEXTS))


def test_tokens_of_another_vocabulary_are_refused(shards: Path, scorer: Scorer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scorer, "vocab_size", 100)
    with pytest.raises(DataError, match="the model only 100"):
        list(TokenShard(shards / "web/en").read(scorer))


def test_a_broken_file_is_named(tmp_path: Path, scorer: Scorer):
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"broken\.parquet is not readable Parquet"):
        list(Documents((tmp_path / "broken.parquet",), 9).read(scorer))


def test_a_file_whose_text_is_no_text_is_named(tmp_path: Path, scorer: Scorer):
    file = tmp_path / "in.parquet"
    pq.write_table(pa.table({"id": ["a"], "text": [{"body": "x"}]}), file)
    with pytest.raises(DataError, match=f"^{file}: column 'text' cannot be read as string"):
        list(Documents((file,), 99).read(scorer))
