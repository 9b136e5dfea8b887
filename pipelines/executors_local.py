"""Ranks as processes of this machine, and what ranks have in common wherever they run.

datatrove writes rank 0 to stderr and keeps a `multiprocess.Manager` for counters that we do not show; a manager
outlives a SIGKILL of its parent for ever, so ranks run in this process or in a plain pool, which does not.
"""

import contextlib
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from pathlib import Path

from datatrove.executor.base import PipelineExecutor
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.logging import logger
from datatrove.utils.stats import PipelineStats

from pipelines.orphans import end_with_parent

LAZY = ("pandas",)
"""What libraries import late (pyarrow: at its first `pa.array`): with the blocks' modules it is imported once, by the
process that all workers are forked from, not by each of them; it cost a worker more than reading 60 MB."""
_NOWHERE = open(os.devnull, "w")  # noqa: SIM115 - loguru writes to it for as long as the process lives


class QuietRanks(PipelineExecutor):
    """Each rank with a pipeline of its own, so that none sees what another left in a block; its log in files only."""

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> PipelineStats:
        logger.remove()
        pipeline, self.pipeline = self.pipeline, deepcopy(self.pipeline)
        try:
            with contextlib.redirect_stderr(_NOWHERE):
                # that of the base: Ray's own keeps logs in the machine's /tmp under names that two runs would share
                return PipelineExecutor._run_for_rank(self, rank, local_rank, node_rank)
        finally:
            self.pipeline = pipeline


class LocalRanks(QuietRanks, LocalPipelineExecutor):
    """datatrove's local executor, without its manager process.

    Args:
        blocks: reader, blocks, writer.
        tasks: number of ranks.
        workers: processes; 1 runs in this process.
        logs: folder of completion markers and logs.
    """

    def __init__(self, blocks: Sequence[PipelineStep], tasks: int, workers: int, logs: Path) -> None:
        # absolute: fsspec keeps a relative folder as it was resolved first, whatever the current folder is by now
        super().__init__(list(blocks), tasks=tasks, workers=min(workers, tasks), logging_dir=str(logs.resolve()))

    def run(self) -> None:
        """Run the ranks that are not complete."""
        self.save_executor_as_json()
        ranks = self.get_incomplete_ranks(range(self.tasks))
        if self.workers == 1:
            for rank in ranks:
                self._run_for_rank(rank)
            return
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(
            [*LAZY, *sorted({__name__, *(type(block).__module__ for block in self.pipeline)})]
        )
        # not a Pool: that waits for ever for a worker that the kernel has killed
        with ProcessPoolExecutor(min(self.workers, len(ranks) or 1), context, initializer=end_with_parent) as pool:
            for done in [pool.submit(self._run_for_rank, rank) for rank in ranks]:
                done.result()
