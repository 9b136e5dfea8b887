"""How fast text becomes shards, beside the tokenizer's own batch call: CPU and wall time, in one run."""

import functools
import gzip
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.document import conform
from pipelines.indexed import IndexedTokens
from pipelines.tokenizer import load_tokenizer
from tests.bench.cpu_time import cpu_seconds

pytestmark = pytest.mark.bench
PARTS, REPEATS = 4, 6


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


def write(folder: Path, texts: list[str], times: int) -> list[str]:
    folder.mkdir()
    rows = [(f"{time}-{n}", text) for time in range(times) for n, text in enumerate(texts)]
    files = [folder / f"part-{part:05d}.parquet" for part in range(PARTS)]
    for part, file in enumerate(files):
        ids, mine = zip(*rows[part::PARTS], strict=True)
        pq.write_table(conform(pa.table({"id": ids, "text": mine})), file)
    return [str(file) for file in files]


@pytest.mark.parametrize("name", ["qwen/qwen.tiktoken", "gpt2/vocab.json"])
def test_the_verb_against_encode_batch(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """`loam tokenize` as users call it, start, loading, reading and writing included; theirs: the call alone."""
    texts = texts_of(shared)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    monkeypatch.setenv("RAYON_NUM_THREADS", "2")
    tokenizer = shared / "tokenizers" / name
    backend, found = load_tokenizer(tokenizer).backend, []

    def theirs() -> None:
        for first in range(0, len(texts), 100):
            found.extend(len(e.ids) for e in backend.encode_batch(texts[first : first + 100], add_special_tokens=False))

    def verb(times: int, workers: int) -> None:
        out = tmp_path / f"{times}-{workers}"
        command = [sys.executable, "-m", "flows.cli", "tokenize", *inputs[times], "--tokenizer", str(tokenizer)]
        subprocess.run([*command, "--out", str(out), "--workers", str(workers)], check=True, capture_output=True)

    inputs = {times: write(tmp_path / f"in-{times}", texts, times) for times in (1, REPEATS)}
    runs: dict[str, tuple[int, Callable[[], object]]] = {"encode_batch, 2 threads": (1, theirs)}
    for times, workers in itertools.product(inputs, (1, 2)):
        what = f"loam tokenize, {workers} workers, {megabytes * times:.0f} MB"
        runs[what] = (times, functools.partial(verb, times, workers))
    told = []
    for what, (times, action) in runs.items():
        started = time.perf_counter()
        cpu = cpu_seconds(action)
        told.append((what, megabytes * times / cpu, megabytes * times / (time.perf_counter() - started)))
    for times in inputs:
        one, two = (tmp_path / f"{times}-{workers}" / "documents" for workers in (1, 2))
        assert one.with_suffix(".bin").read_bytes() == two.with_suffix(".bin").read_bytes()
        assert len(IndexedTokens(one).tokens) == times * (sum(found) + len(texts))
    with capsys.disabled():
        print(f"\n{name}, load {os.getloadavg()[0]:.1f}")
        for what, cpu, wall in told:
            line = f"  {what}: {wall:.2f} MB per second of wall time ({wall / told[0][2]:.1f}x)"
            if "2 workers" not in what:  # a pool's processes are not ours to count
                line += f", {cpu:.2f} MB per CPU second ({cpu / told[0][1]:.1f}x)"
            print(line)
