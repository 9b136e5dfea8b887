"""How fast text becomes shards, beside the tokenizer's own batch call: CPU time, in one run, on text never seen."""

import gzip
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.document import conform
from pipelines.encode import EncodeSettings, encode
from pipelines.indexed import IndexedTokens
from pipelines.tokenizer import load_tokenizer

pytestmark = pytest.mark.bench
PARTS = 4


def cpu_seconds(action: Callable[[], object]) -> float:
    """CPU time of this process, all its threads, and of the children that ended meanwhile."""
    before = os.times()
    action()
    after = os.times()
    return sum(after[:4]) - sum(before[:4])


def texts_of(shared: Path) -> list[str]:
    """English pages and encyclopedia, mathematics, Chinese paragraphs and Python, each text once."""
    with gzip.open(shared / "dedup" / "extractor_variants.jsonl.gz", "rt", encoding="utf-8") as lines:
        found = [json.loads(line)["text"] for line in lines]
    for name in ("math/gsm8k/train", "math/math", "qa/boolq"):
        with gzip.open(shared / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
            found += [" ".join(map(str, json.loads(line).values())) for line in lines]
    found += (shared / "encyclopedia" / "wiki_demo.txt").read_text(encoding="utf-8").splitlines()
    with gzip.open(shared / "encyclopedia" / "cmrc2018" / "cmrc2018_dev.json.gz") as file:
        found += [p["context"] for entry in json.load(file)["data"] for p in entry["paragraphs"]]
    with gzip.open(shared / "instruct" / "codegen-instruct.json.gz") as file:
        found += [row["response"] for row in json.load(file)]
    return sorted({text for text in found if text})


@pytest.mark.parametrize("name", ["qwen/qwen.tiktoken", "gpt2/vocab.json"])
def test_encode_against_encode_batch(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    texts = texts_of(shared)
    files = []
    for part in range(PARTS):
        files.append(tmp_path / "in" / f"part-{part:05d}.parquet")
        files[-1].parent.mkdir(exist_ok=True)
        rows = range(part, len(texts), PARTS)
        pq.write_table(conform(pa.table({"id": [str(n) for n in rows], "text": [texts[n] for n in rows]})), files[-1])
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    monkeypatch.setenv("RAYON_NUM_THREADS", "2")
    tokenizer, settings = shared / "tokenizers" / name, EncodeSettings(validation_share=0)
    short = EncodeSettings(validation_share=0, max_document_tokens=9)
    encode(files[:1], tmp_path / "warm", tokenizer, short)  # kernels are compiled
    backend, found, seconds, walls = load_tokenizer(tokenizer).backend, [], {}, {}

    def theirs() -> None:
        for first in range(0, len(texts), 100):
            found.extend(len(e.ids) for e in backend.encode_batch(texts[first : first + 100], add_special_tokens=False))

    runs: dict[str, Callable[[], object]] = {
        "encode_batch": theirs,
        "loam, 1 worker": lambda: encode(files, tmp_path / "1", tokenizer, settings),
        "loam, 2 workers": lambda: encode(files, tmp_path / "2", tokenizer, settings, 2),
    }
    for what, action in runs.items():
        started = time.perf_counter()
        seconds[what] = cpu_seconds(action)
        walls[what] = time.perf_counter() - started
    for one in (tmp_path / "1").glob("*.bin"):
        assert one.read_bytes() == (tmp_path / "2" / one.name).read_bytes()
    assert len(IndexedTokens(tmp_path / "1" / "documents").tokens) == sum(found) + len(texts)
    with capsys.disabled():
        print(f"\n{name}: {megabytes:.1f} MB of text, load {os.getloadavg()[0]:.1f}")
        for what in ("encode_batch", "loam, 1 worker"):  # a pool's processes are not ours to count
            ratio = seconds["encode_batch"] / seconds[what]
            print(f"  {what}: {megabytes / seconds[what]:.2f} MB per CPU second ({ratio:.1f}x)")
        print("  wall:", ", ".join(f"{what} {taken:.2f} s" for what, taken in walls.items()))
