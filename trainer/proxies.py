"""Many small training runs at once: one proxy model per mixture, and their held-out losses as one table.

Each proxy is trained by the same loop as the full model, in a pool of processes that is started once, so that torch is
imported once; a proxy's result is one file, written when it is whole, so that a killed swarm goes on where it stood.
The seed decides weights and data order and does not depend on the mixture: two proxies with one seed differ in nothing
but what they read.
"""

import contextlib
import csv
import ctypes
import io
import json
import multiprocessing
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import DataError
from pipelines.execute import SCRATCH
from pipelines.files import write_atomically
from pipelines.journal import record
from pipelines.manifest import digest_of
from pipelines.orphans import end_with_parent
from pipelines.progress import track
from pipelines.shards import Blend, ShardSet
from pipelines.store import Outcome
from trainer.loop import train
from trainer.recipe import TrainRecipe

PRELOADED = ["trainer.loop"]  # torch and numba are imported once, before the pool forks
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1  # of glibc's malloc.h
HELD_BYTES = 1 << 30


@dataclass(frozen=True)
class ProxyJob:
    """One proxy to train.

    Attributes:
        id: names its result; letters, digits, dots, dashes and underscores.
        blend: what it reads.
        seed: of its weights and of the order of documents within each domain.
    """

    id: str
    blend: Blend
    seed: int


def train_proxies(
    jobs: Sequence[ProxyJob], recipe: TrainRecipe, validation: ShardSet, work: Path, workers: int = 1
) -> Outcome:
    """Train every job and measure it on every held-out shard.

    Writes `proxies/<id>.json` as they finish and `metrics.csv` at the end: id, then nats per token of each domain.

    Args:
        jobs: ids are unique.
        recipe: of every proxy; its seed is replaced by the job's.
        validation: held-out shards, one per domain.
        work: folder to fill; may hold results of a killed call.
        workers: processes; changes no byte.

    Returns:
        Metrics: proxies, parameters and tokens of each, domains measured.

    Raises:
        DataError: ids are not unique or not names, or as for `trainer.loop.train`.
    """
    _check_ids(jobs)
    pending = [job for job in jobs if not _is_done(job, recipe, validation, work)]
    started = time.perf_counter()
    with track("proxies", len(jobs), "proxies") as tracker:
        done = len(jobs) - len(pending)
        tracker.update(done)
        for _ in _perform(pending, recipe, validation, work, workers):
            done += 1
            tracker.update(done)
    seconds = time.perf_counter() - started
    if pending:
        record("proxies", trained=len(pending), workers=workers, seconds=round(seconds, 3),
               tokens_per_s=round(len(pending) * recipe.tokens / seconds))  # fmt: skip
    results = [_read(work, job) for job in jobs]
    domains = [shard.name for shard in validation.shards]
    write_atomically(work / "metrics.csv", _table(results, domains).encode())
    return Outcome(metrics={
        "proxies": len(jobs), "parameters": recipe.model.parameters(), "tokens_each": recipe.tokens, "domains": domains,
    })  # fmt: skip


def _perform(
    jobs: Sequence[ProxyJob], recipe: TrainRecipe, validation: ShardSet, work: Path, workers: int
) -> Iterator[None]:
    """Train the jobs, yielding as each one finishes."""
    if workers == 1 or len(jobs) < 2:
        for job in jobs:
            yield _train_one(job, recipe, validation, work)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context, initializer=_begin_worker) as pool:
        running: list[Future[None]] = [pool.submit(_train_one, job, recipe, validation, work) for job in jobs]
        try:
            for future in as_completed(running):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _begin_worker() -> None:
    end_with_parent()
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Let malloc reuse large blocks rather than return them: page faults are a tenth of a small model's step."""
    with contextlib.suppress(OSError, AttributeError):  # another C library does without
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, HELD_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, HELD_BYTES)


def _train_one(job: ProxyJob, recipe: TrainRecipe, validation: ShardSet, work: Path) -> None:
    """Train one proxy and write its result."""
    folder = work / SCRATCH / "proxies" / job.id
    outcome = train(recipe.model_copy(update={"seed": job.seed}), job.blend, folder, validation)
    stages: list[dict[str, Any]] = outcome.metrics["stages"]
    result = {
        "id": job.id, "seed": job.seed, "job": _identity(job, recipe, validation),
        "train_loss": stages[-1]["last_loss"], "held_out": outcome.metrics["held_out"],
        "domains": {stage["name"]: stage["domains"] for stage in stages},
    }  # fmt: skip
    write_atomically(_path(work, job), (json.dumps(result, indent=1, sort_keys=True) + "\n").encode())
    shutil.rmtree(folder)


def _identity(job: ProxyJob, recipe: TrainRecipe, validation: ShardSet) -> str:
    blend = [(weight, shard.name, shard.sha256) for weight, shard in job.blend.parts]
    held_out = [(shard.name, shard.sha256) for shard in validation.shards]
    described = {"recipe": recipe.model_dump(mode="json"), "seed": job.seed, "blend": blend, "held_out": held_out}
    return digest_of(described)


def _is_done(job: ProxyJob, recipe: TrainRecipe, validation: ShardSet, work: Path) -> bool:
    return _path(work, job).is_file() and _read(work, job)["job"] == _identity(job, recipe, validation)


def _path(work: Path, job: ProxyJob) -> Path:
    return work / "proxies" / f"{job.id}.json"


def _read(work: Path, job: ProxyJob) -> dict[str, Any]:
    return json.loads(_path(work, job).read_text(encoding="utf-8"))


def _check_ids(jobs: Sequence[ProxyJob]) -> None:
    ids = [job.id for job in jobs]
    if len(set(ids)) < len(ids):
        repeated = next(name for name in ids if ids.count(name) > 1)
        raise DataError(f"two proxies are called {repeated!r}; ids must differ")
    for name in ids:
        if not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or name.startswith("."):
            raise DataError(f"proxy id {name!r}: use letters, digits, dots, dashes and underscores")


def _table(results: Sequence[dict[str, Any]], domains: Sequence[str]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["id", *domains])
    for result in results:
        writer.writerow([result["id"], *(f"{result['held_out'][name]['loss']:.6f}" for name in domains)])
    return stream.getvalue()
