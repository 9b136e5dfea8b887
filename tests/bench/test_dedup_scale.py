"""Five gigabytes through near deduplication: what it keeps, and how much memory all its processes hold at most.

`pytest -m slow tests/bench/test_dedup_scale.py -s`; needs 15 GB of disk and some minutes.
"""

import contextlib
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipelines.document import conform

pytestmark = pytest.mark.slow

FILES, BATCH_ROWS, WORDS = 20, 4000, 450
VERSIONS = 4  # copies of each planted text; version v has 2 v of 450 words changed: 0.87 similar to the first at least
MOST_RESIDENT = 2e9


def write_corpus(folder: Path, size_bytes: float) -> tuple[int, int]:
    """Write documents of random words, a fifth of them planted copies in other files; count documents and clusters."""
    generator = np.random.default_rng(1)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = pa.array(sorted({"".join(generator.choice(letters, 3 + n % 7)) for n in range(30_000)}))
    batches = max(1, int(size_bytes / FILES / BATCH_ROWS / (7.0 * WORDS)))
    planted = BATCH_ROWS // 5
    clusters = FILES * batches * planted // VERSIONS
    number = 0
    for file in range(FILES):
        path = folder / "kept" / f"part-{file:05d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(
            path, conform(pa.table({"id": ["a"], "text": ["a"]})).schema, compression="zstd"
        ) as writer:
            for batch in range(batches):
                choice = generator.integers(0, len(words), (BATCH_ROWS, WORDS), np.int32)
                for row in range(planted):
                    copy = (file * batches + batch) * planted + row
                    choice[row] = version(copy % clusters, copy // clusters, len(words))
                offsets = pa.array(np.arange(0, choice.size + 1, WORDS, dtype=np.int32))
                texts = pc.binary_join(pa.ListArray.from_arrays(offsets, words.take(pa.array(choice.ravel()))), " ")
                ids = pa.array([f"doc-{number + row:09d}" for row in range(BATCH_ROWS)])
                writer.write_table(conform(pa.table({"id": ids, "text": texts})))
                number += BATCH_ROWS
    return number, clusters


def version(cluster: int, number: int, vocabulary: int) -> np.ndarray:
    """A planted text: the words of its cluster, some of them changed."""
    words = np.random.default_rng([2, cluster]).integers(0, vocabulary, WORDS, np.int32)
    changes = np.random.default_rng([3, cluster, number])
    words[changes.choice(WORDS, 2 * number, replace=False)] = changes.integers(0, vocabulary, 2 * number, np.int32)
    return words


def peak_resident(process: subprocess.Popen, found: list[int]) -> None:
    """Sample the resident memory of a process and all below it until it ends: the sum, shared pages counted twice."""
    while process.poll() is None:
        total = 0
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            for member in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    total += member.memory_info().rss
        found.append(total)
        time.sleep(0.05)


def deduplicated(inputs: Path, out: Path, workers: int, *more: str) -> tuple[dict, int]:
    """Run the verb; its numbers and the peak of resident bytes."""
    command = [
        str(Path(sys.executable).with_name("loam")),
        "dedup",
        str(inputs),
        "-o",
        str(out),
        "-w",
        str(workers),
        "--json",
        *more,
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    found: list[int] = []
    watch = threading.Thread(target=peak_resident, args=(process, found))
    watch.start()
    output, _ = process.communicate()
    watch.join()
    assert process.returncode == 0
    return json.loads(output), max(found)


@pytest.mark.parametrize("gigabytes", [5])
def test_five_gigabytes_under_two_resident(tmp_path, gigabytes):
    documents, clusters = write_corpus(tmp_path / "in", gigabytes * 1e9)
    numbers, peak = deduplicated(tmp_path / "in", tmp_path / "out", 2)
    copies = clusters * (VERSIONS - 1)
    print(f"\n{documents} documents, peak {peak / 1e9:.2f} GB resident, {numbers['metrics']}")
    assert peak < MOST_RESIDENT
    assert numbers["counts"]["docs_in"] == documents
    assert 0.995 * copies <= sum(numbers["counts"]["dropped"].values()) <= copies
