"""Where the tasks of a step run: processes of this machine, a Ray cluster, or a Slurm array.

The one choice that matters: an executor never shows in a result. It is no part of a step's id, of a manifest or of a
saved recipe (the journal has it), tasks are the same everywhere, and each is one rank of a datatrove executor, whose
completion markers in the step's scratch folder say what is left after a kill. Ray and Slurm want the step's folder and
this environment on a file system that all nodes share. Source: datatrove 0.10, `datatrove/executor/`.
"""

import contextlib
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from datatrove.pipeline.base import PipelineStep
from pydantic import Field

from pipelines.quantities import Bytes, Seconds
from pipelines.recipe import Section, settings_from

MAX_ARRAY = 1000  # Slurm's MaxArraySize is 1001 unless its administrator says otherwise
PASSED_ON = (
    "OMP_WAIT_POLICY", "TOKENIZERS_PARALLELISM", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "DO_NOT_TRACK",
    "NUMBA_CACHE_DIR", "PYTHONPATH",
)  # fmt: skip
THREADS = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "POLARS_MAX_THREADS",
    "RAYON_NUM_THREADS",
)  # fmt: skip


class LocalExecutor(Section):
    """Processes of this machine.

    Attributes:
        workers: processes at once; what `--workers` says when not given.
    """

    kind: Literal["local"] = "local"
    workers: int | None = Field(default=None, ge=1)


class RayExecutor(Section):
    """Tasks of a Ray cluster.

    Attributes:
        workers: tasks at once; as many as the cluster has room for when not given.
        address: of a cluster, such as `auto` or `ray://head:10001`; a cluster on this machine when not given.
        cpus_per_task: CPUs that Ray keeps for a task, and threads that its libraries may start.
        memory: bytes that Ray keeps for a task.
        retries: how often a task whose process was killed is started again.
    """

    kind: Literal["ray"] = "ray"
    workers: int | None = Field(default=None, ge=1)
    address: str | None = None
    cpus_per_task: int = Field(default=1, ge=1)
    memory: Bytes = Field(default=2 << 30, gt=0)
    retries: int = Field(default=3, ge=0)


class SlurmExecutor(Section):
    """Tasks of a Slurm array.

    Attributes:
        workers: array tasks at once; as many as there is room for when not given.
        partition: of the cluster; its default one when not given.
        time: limit of one array task.
        cpus_per_task: CPUs of an array task, and threads that its libraries may start.
        memory: bytes of an array task.
        tasks_per_job: files that one array task works through; more when there would be over 1000 array tasks.
        sbatch: further options, such as `{account: lab, qos: long, constraint: avx2}`.
        setup: shell command before the work, such as `module load gcc`.
    """

    kind: Literal["slurm"] = "slurm"
    workers: int | None = Field(default=None, ge=1)
    partition: str | None = None
    time: Seconds = Field(default=24 * 3600, gt=0)
    cpus_per_task: int = Field(default=1, ge=1)
    memory: Bytes = Field(default=2 << 30, gt=0)
    tasks_per_job: int = Field(default=1, ge=1)
    sbatch: dict[str, str] = Field(default_factory=dict)
    setup: str = ""


ExecutorSettings = Annotated[LocalExecutor | RayExecutor | SlurmExecutor, Field(discriminator="kind")]
"""Where tasks run, told apart by `kind`."""


class _Given(Section):
    executor: ExecutorSettings


_current: ExecutorSettings = LocalExecutor()
_fixed = False


def parse_executor(text: str) -> ExecutorSettings:
    """The executor that a command line names: `ray`, or `{kind: slurm, partition: cpu, time: 6h}`.

    Raises:
        RecipeError: names the field and what would be valid.
    """
    value = text if text.lstrip().startswith("{") else f"{{kind: {text}}}"
    return settings_from(_Given, [f"executor={value}"]).executor


@contextlib.contextmanager
def executor_is(settings: ExecutorSettings | None, fixed: bool = False) -> Iterator[None]:
    """Let the steps of this process run on an executor while the body runs.

    Args:
        settings: where; what held before when None.
        fixed: nothing inside may choose another: the command line goes before the recipe.
    """
    global _current, _fixed
    before = _current, _fixed
    if settings is not None and not _fixed:
        _current, _fixed = settings, fixed
    try:
        yield
    finally:
        _current, _fixed = before


def current_executor() -> ExecutorSettings:
    """Where steps of this process run now."""
    return _current


def task_environment(cpus: int) -> dict[str, str]:
    """Environment of a task on another node: what `loam` set for itself, and as many threads as it has CPUs."""
    passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    return passed | dict.fromkeys(THREADS, str(cpus))


def exports(environment: Mapping[str, str]) -> str:
    """The environment as shell commands."""
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in environment.items())


def run_ranks(blocks: Sequence[PipelineStep], tasks: int, workers: int, logs: Path, name: str) -> None:
    """Run all ranks of a pipeline that are not complete, on the current executor.

    Args:
        blocks: reader, blocks, writer.
        tasks: number of ranks.
        workers: processes on this machine; other executors have their own `workers`.
        logs: folder of completion markers and logs.
        name: of the pipeline.

    Raises:
        LoamError: that of a block in a task, whatever it ran on.
        StepError: tasks did not finish; names them and their logs.
        MissingExtra: Ray or Slurm is asked for and not there.
    """
    settings = _current
    if isinstance(settings, RayExecutor):
        from pipelines.executors_ray import RayRanks

        RayRanks(blocks, tasks, settings, logs, name).run()
    elif isinstance(settings, SlurmExecutor):
        from pipelines.executors_slurm import SlurmRanks

        SlurmRanks(blocks, tasks, settings, logs, name).submit_and_wait()
    else:
        from pipelines.executors_local import LocalRanks

        LocalRanks(blocks, tasks, settings.workers or workers, logs).run()
