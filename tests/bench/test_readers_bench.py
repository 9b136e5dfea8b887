"""How fast raw files are read, beside datatrove's readers: CPU time in one run; and one big file on two workers."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader, WarcReader
from datatrove.pipeline.writers import ParquetWriter

from pipelines import splits
from pipelines.inputs import as_documents
from pipelines.readers import JsonReader, Reading
from pipelines.warc import read_pages
from tests.bench.cpu_time import cpu_seconds

pytestmark = pytest.mark.bench
ROUNDS = 3


def paired(ours: Callable[[], object], anchor: Callable[[], object]) -> tuple[float, float]:
    """Medians of CPU seconds over rounds in which each runs once."""
    times = [(cpu_seconds(ours), cpu_seconds(anchor)) for _ in range(ROUNDS)]
    return sorted(t[0] for t in times)[ROUNDS // 2], sorted(t[1] for t in times)[ROUNDS // 2]


def big_jsonl(shared: Path, path: Path, megabytes: int) -> Path:
    """JSON Lines of articles, numbered, as long as asked for."""
    words = (shared / "encyclopedia" / "wikitext-2" / "valid.txt").read_text(encoding="utf-8").split()
    with path.open("w", encoding="utf-8") as file:
        number = 0
        while file.tell() < megabytes * 1_000_000:
            at, length = number * 97 % (len(words) - 1000), 50 + number * 31 % 850
            row = {"id": f"doc-{number}", "url": f"http://x/{number}", "text": " ".join(words[at : at + length])}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            number += 1
    return path


def say(capsys: pytest.CaptureFixture[str], text: str) -> None:
    with capsys.disabled():
        print("\n" + text)


def test_warc_against_datatrove(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = shared / "web" / "warc" / "realpages-00000.warc.gz"
    found: dict[str, int] = {}

    def ours() -> None:
        found["ours"] = sum(len(page.payload) for page in read_pages(path, 10**8))

    def anchor() -> None:
        found["anchor"] = sum(1 for _ in WarcReader(str(path.parent), glob_pattern=path.name).run())

    mine, theirs = paired(ours, anchor)
    packed, plain = path.stat().st_size / 1e6, found["ours"] / 1e6
    say(capsys, f"WARC, {packed:.1f} MB packed, {plain:.1f} plain: loam {packed / mine:.1f} MB/s packed "
                f"({plain / mine:.0f} MB/s plain), datatrove {packed / theirs:.1f}; {theirs / mine:.1f}x")  # fmt: skip
    assert found["anchor"]


def test_jsonl_against_datatrove(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    path = big_jsonl(shared, tmp_path / "in" / "a.jsonl", 60)
    reading = Reading(id_field="id", url_field="url")
    size = path.stat().st_size / 1e6

    def ours() -> None:
        assert sum(1 for _ in JsonReader([path], path.parent, reading).run(None, 0)) > 1000

    def anchor() -> None:
        assert sum(1 for _ in JsonlReader(str(path.parent)).run()) > 1000

    mine, theirs = paired(ours, anchor)
    say(capsys, f"JSON Lines to documents: loam {size / mine:.0f} MB/s with sha256 and place of every record, "
                f"datatrove {size / theirs:.0f} MB/s; {theirs / mine:.2f}x")  # fmt: skip

    def ours_parquet() -> None:
        shutil.rmtree(tmp_path / "work", ignore_errors=True)
        as_documents([path], tmp_path / "work")

    def anchor_parquet() -> None:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        pipeline = [JsonlReader(str(path.parent)), ParquetWriter(str(tmp_path / "out"), compression="zstd")]
        LocalPipelineExecutor(pipeline, tasks=1, logging_dir=str(tmp_path / "out" / "logs")).run()

    mine, theirs = paired(ours_parquet, anchor_parquet)
    say(capsys, f"JSON Lines to Parquet (zstd): loam {size / mine:.0f} MB/s, datatrove {size / theirs:.0f} MB/s; "
                f"{theirs / mine:.2f}x")  # fmt: skip


def test_two_workers_on_one_file(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = big_jsonl(shared, tmp_path / "a.jsonl", 200)
    monkeypatch.setattr(splits, "SPLIT_BYTES", 32 << 20)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(2):
        for workers in (1, 2):
            shutil.rmtree(tmp_path / "work", ignore_errors=True)
            begin = time.perf_counter()
            parts = as_documents([path], tmp_path / "work", workers)
            seconds[workers].append(time.perf_counter() - begin)
    one, two = min(seconds[1]), min(seconds[2])
    say(capsys, f"one file of {path.stat().st_size / 1e6:.0f} MB to Parquet in {len(parts)} parts, wall time: "
                f"{one:.1f} s on one worker, {two:.1f} s on two; {one / two:.2f}x")  # fmt: skip
