"""Running blocks over shards with datatrove's executors.

One task per input file, whatever the number of workers and wherever they run (`pipelines/executors.py`), so that
neither changes a byte. datatrove's completion markers lie in the step's scratch folder: a killed step resumes at the
tasks that were not complete.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
from datatrove.pipeline.base import PipelineStep

from pipelines.block import ReadDocuments, WriteDocuments
from pipelines.errors import LoamError, StepError
from pipelines.executors import run_ranks
from pipelines.manifest import Counts
from pipelines.progress import watch_counts

SCRATCH = ".scratch"
REJECTED_INPUTS = "rejects/input-*.parquet"
"""In a working folder: records of a verb's inputs that could not be read."""


def parts_of(files: Sequence[Path]) -> list[str]:
    """Where each input's rows go below a fate's folder: `web_en/part-00000`.

    Files of an earlier step keep their place (what follows `kept/` or `documents/`); others are numbered.
    """
    parts = []
    for number, file in enumerate(files):
        below = next((i for i in range(len(file.parts) - 1, 0, -1) if file.parts[i - 1] in ("kept", "documents")), None)
        parts.append("/".join(file.parts[below:]).removesuffix(".parquet") if below else f"part-{number:05d}")
    return parts if len(set(parts)) == len(parts) else [f"part-{number:05d}" for number in range(len(files))]


def run_blocks(blocks: Sequence[PipelineStep], tasks: int, work: Path, workers: int = 1, name: str = "blocks") -> None:
    """Run a pipeline of blocks, one task per shard.

    Args:
        blocks: a reader, then blocks, then a writer; each is told its rank.
        tasks: number of shards.
        work: the step's working folder; completion markers and logs go to `.scratch/<name>` in it.
        workers: processes on this machine; 1 runs in this process.
        name: distinguishes several pipelines of one step.

    Raises:
        StepError: a task failed; names its log.
    """
    if not tasks:
        return
    logs = work / SCRATCH / name
    with watch_counts(work / SCRATCH / "progress", name):
        try:
            run_ranks(blocks, tasks, workers, logs, name)
        except LoamError:
            raise
        except Exception as error:
            raise StepError(
                f"{name}: {type(error).__name__}: {error}; logs in {logs}/logs; run again to resume"
            ) from error


def count_documents(out: Path, kept: str = "kept") -> Counts:
    """Count what the files under `out` hold, by fate and reason."""
    alive = sum(pq.read_metadata(path).num_rows for path in sorted((out / kept).rglob("*.parquet")))
    reasons = {fate: _reasons(out / fate) for fate in ("dropped", "rejects")}
    total = alive + sum(sum(r.values()) for r in reasons.values())
    return Counts(docs_in=total, kept=alive, dropped=reasons["dropped"], rejected=reasons["rejects"])


def with_rejected_inputs(counts: Counts, work: Path) -> Counts:
    """Add the records of a verb's inputs that could not be read to counts that were not taken by `count_documents`.

    Args:
        counts: of the documents that could be read.
        work: the step's folder, with `rejects/input-*.parquet` if `inputs.as_documents` wrote them.
    """
    unread = _reasons(work / "rejects", "input-*.parquet")
    rejected = dict(sorted((Counter(counts.rejected) + Counter(unread)).items()))
    total = counts.docs_in + sum(unread.values())
    return Counts(docs_in=total, kept=counts.kept, dropped=counts.dropped, rejected=rejected)


def _reasons(folder: Path, names: str = "*.parquet") -> dict[str, int]:
    found: Counter[str] = Counter()
    for path in sorted(folder.rglob(names)):
        for entry in pc.value_counts(pq.read_table(path, columns=["reason"])["reason"]).to_pylist():
            found[entry["values"]] += entry["counts"]
    return dict(sorted(found.items()))


def transform(files: Sequence[Path], blocks: Sequence[PipelineStep], work: Path, workers: int, name: str) -> Counts:
    """Read documents, pass them through `blocks`, write them by fate: the usual shape of a step.

    Args:
        files: Parquet documents, one task each.
        blocks: what happens between reading and writing.
        work: the step's working folder.
        workers: processes.
        name: of the pipeline, for logs and progress.
    """
    pipeline = [ReadDocuments([str(f) for f in files]), *blocks, WriteDocuments(str(work), parts_of(files))]
    run_blocks(pipeline, len(files), work, workers, name)
    return count_documents(work)
