"""How fast text becomes shards on two workers, beside the tokenizer's own batch call."""

import os
import sysconfig
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.document import conform
from pipelines.encode import EncodeSettings, encode
from pipelines.tokenizer import TokenizerSettings, load_tokenizer, train_tokenizer

pytestmark = pytest.mark.bench
FILES = 1500


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python sources of the standard library in four files, and a tokenizer of 8,192 trained on them."""
    folder = tmp_path_factory.mktemp("corpus")
    paths = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))[:FILES]
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in paths]
    for part in range(4):
        path = folder / "kept" / "code" / f"part-{part:05d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        ids = [str(number) for number in range(part, len(texts), 4)]
        pq.write_table(conform(pa.table({"id": ids, "text": texts[part::4]})), path)
    train_tokenizer(sorted((folder / "kept").rglob("*.parquet")), folder, TokenizerSettings(sample_bytes=8_000_000))
    return folder


def test_encode_against_encode_batch(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted((corpus / "kept").rglob("*.parquet"))
    texts = [text for file in files for text in pq.read_table(file)["text"].to_pylist()]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    seconds = {}
    for workers in (1, 2):
        started = time.perf_counter()
        metrics = encode(files, tmp_path / str(workers), corpus, EncodeSettings(validation_share=0), workers).metrics
        seconds[f"loam, {workers} workers"] = time.perf_counter() - started
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    monkeypatch.setenv("RAYON_NUM_THREADS", "2")
    backend = load_tokenizer(corpus).backend
    started = time.perf_counter()
    ids = [e.ids for n in range(0, len(texts), 100) for e in backend.encode_batch(texts[n : n + 100])]
    seconds["encode_batch, threads"] = time.perf_counter() - started
    with capsys.disabled():
        load = os.getloadavg()[0]
        told = ", ".join(f"{name} {megabytes / taken:.2f} MB/s" for name, taken in seconds.items())
        print(f"\n{megabytes:.1f} MB of text: {told} (load {load:.1f})")
    assert metrics["totals"]["train"]["tokens"] == sum(map(len, ids)) + sum(1 for row in ids if row)
