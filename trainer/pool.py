"""Many training runs at once: in a pool of processes that is started once, or each as one task of a cluster.

torch and numba are imported once, before the pool forks. A run's own function decides whether its result is there
already; how many processes there are, and where they are, changes no byte.
"""

import contextlib
import ctypes
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Generic, TypeVar

from datatrove.pipeline.base import PipelineStep

from pipelines.execute import run_blocks
from pipelines.executors import LocalExecutor, current_executor
from pipelines.manifest import digest_of
from pipelines.orphans import end_with_parent
from pipelines.progress import track

PRELOADED = ["trainer.loop"]  # torch and numba are imported once, before the pool forks
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1  # of glibc's malloc.h
HELD_BYTES = 1 << 30

Job = TypeVar("Job")


def perform_jobs(
    jobs: Sequence[Job], perform: Callable[[Job], None], done: int, workers: int, label: str
) -> None:  # fmt: skip
    """Perform jobs on this machine, as many at once as there are workers.

    Args:
        jobs: picklable, unless one worker performs them.
        perform: writes the result of one job; a function of a module.
        done: how many others are done already, for the progress shown.
        workers: processes.
        label: what the jobs are, `proxies`.
    """
    with track(label, done + len(jobs), label) as tracker:
        tracker.update(done)
        for number, _ in enumerate(_performed(jobs, perform, workers), done + 1):
            tracker.update(number)


def local_workers(workers: int) -> int | None:
    """Processes to use on this machine, or None where the executor in force is a cluster's."""
    executor = current_executor()
    return (executor.workers or workers) if isinstance(executor, LocalExecutor) else None


def perform_on_cluster(
    jobs: Sequence[Job], perform: Callable[[Job], None], identities: Sequence[str], work: Path, label: str
) -> None:
    """One task for each job, whose result may be there already.

    Args:
        jobs: picklable; their paths are absolute.
        perform: writes the result of one job unless it is there.
        identities: of the jobs; they name the folder of markers, since ranks are mere numbers.
        work: working folder of the step, absolute.
        label: what the jobs are.
    """
    run_blocks([PerformJob(jobs, perform)], len(jobs), work, name=f"{label}-{digest_of(list(identities))[:12]}")


class PerformJob(PipelineStep, Generic[Job]):
    """The tasks of a cluster: rank r performs job r."""

    type = "trainer"
    name = "jobs"

    def __init__(self, jobs: Sequence[Job], perform: Callable[[Job], None]) -> None:
        super().__init__()
        self.jobs, self.perform = list(jobs), perform

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> None:
        """Perform one job."""
        self.perform(self.jobs[rank])


def _performed(jobs: Sequence[Job], perform: Callable[[Job], None], workers: int) -> Iterator[None]:
    """Perform the jobs, yielding as each one finishes."""
    if workers == 1 or len(jobs) < 2:
        for job in jobs:
            yield perform(job)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context, initializer=_begin_worker) as pool:
        running: list[Future[Any]] = [pool.submit(perform, job) for job in jobs]
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
