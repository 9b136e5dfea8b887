"""Ranks as tasks of a Ray cluster.

datatrove's own Ray executor runs each rank in a pool inside an actor, and that pool waits for ever for a process that
the kernel has killed; here a rank is a plain Ray task, which Ray starts again. The rest (ranks, markers, logs) is
datatrove's. Ray is told not to report home. Source: Ray 2.60, "Task fault tolerance".
"""

import importlib
import logging
import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datatrove.executor.ray import RayPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.logging import logger

from pipelines.errors import MissingExtra, StepError
from pipelines.executors import RayExecutor, task_environment
from pipelines.executors_local import QuietRanks

OBJECT_STORE_BYTES = 128 << 20  # only a pickled pipeline passes through it: documents go by files


class RayRanks(QuietRanks, RayPipelineExecutor):
    """The ranks of one pipeline on a Ray cluster.

    Args:
        blocks: reader, blocks, writer.
        tasks: number of ranks.
        settings: of the recipe.
        logs: folder of completion markers and logs, seen by all nodes.
        name: of the pipeline.
    """

    def __init__(
        self, blocks: Sequence[PipelineStep], tasks: int, settings: RayExecutor, logs: Path, name: str
    ) -> None:
        logger.remove()  # datatrove would tell stderr that all nodes must see the folder: docs/clusters.md does
        memory_gb = settings.memory / settings.cpus_per_task / 2**30
        super().__init__(
            list(blocks), tasks=tasks, workers=settings.workers or tasks, logging_dir=str(logs.resolve()),
            cpus_per_task=settings.cpus_per_task, mem_per_cpu_gb=memory_gb,
        )  # fmt: skip
        self.settings = settings
        self.label = name

    def run(self) -> None:
        """Run the ranks that are not complete.

        Raises:
            LoamError: that of a block in a task.
            StepError: a task's process was killed more often than it may be started again, or no node has room.
        """
        ranks = deque(self.get_incomplete_ranks(range(self.tasks)))
        if not ranks:
            return
        self.save_executor_as_json()
        ray = _connected(self.settings)
        task = ray.remote(_run_rank).options(
            num_cpus=self.settings.cpus_per_task, memory=self.settings.memory, max_retries=self.settings.retries,
            runtime_env={"env_vars": task_environment(self.settings.cpus_per_task)}, name=f"loam-{self.label}",
        )  # fmt: skip
        itself, running = ray.put(self), {}
        try:
            while ranks or running:
                while ranks and len(running) < self.workers:
                    rank = ranks.popleft()
                    running[task.remote(itself, os.getcwd(), rank)] = rank
                for done in ray.wait(list(running))[0]:
                    self._finish(done, running.pop(done))
        finally:
            for left in running:
                ray.cancel(left, force=True)

    def _finish(self, done: Any, rank: int) -> None:
        ray, exceptions = importlib.import_module("ray"), importlib.import_module("ray.exceptions")
        try:
            ray.get(done)
        except exceptions.RayTaskError as error:
            raise error.cause from None
        except exceptions.RayError as error:
            problem = str(error).strip().splitlines()[0]
            raise StepError(
                f"{self.label}: task {rank} did not finish on Ray ({type(error).__name__}: {problem}); "
                f"logs in {self.logging_dir.path}/logs; run again to resume"
            ) from None


def _run_rank(executor: RayRanks, folder: str, rank: int) -> None:
    """The body of a Ray task."""
    os.chdir(folder)  # paths of blocks may be relative to where `loam` was started
    executor._run_for_rank(rank)


def _connected(settings: RayExecutor) -> Any:
    """Ray, connected to the cluster; the connection lasts as long as this process.

    Raises:
        MissingExtra: Ray is not installed.
        StepError: the cluster does not answer, or no node of it has room for a task.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported home
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        ray = importlib.import_module("ray")
    except ImportError:
        raise MissingExtra(
            "executor: ray needs Ray, which is not installed: .venv/bin/pip install -e '.[ray]'"
        ) from None
    if not ray.is_initialized():
        local: dict[str, Any] = {
            "num_cpus": (settings.workers or os.cpu_count() or 1) * settings.cpus_per_task,
            "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False,
        }  # fmt: skip
        try:
            ray.init(
                address=settings.address or "local", log_to_driver=False, logging_level=logging.ERROR,
                **({} if settings.address else local),
            )  # fmt: skip
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise StepError(f"Ray at {settings.address or 'this machine'} cannot be reached: {error}") from None
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus, memory = settings.cpus_per_task, settings.memory
    if not any(node.get("CPU", 0) >= cpus and node.get("memory", 0) >= memory for node in nodes):
        raise StepError(
            f"no node of the Ray cluster has {cpus} CPUs and {memory / 2**30:.3g} GiB for a task: "
            "lower executor.cpus_per_task or executor.memory"
        )
    return ray
