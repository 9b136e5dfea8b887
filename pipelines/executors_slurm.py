"""Ranks as tasks of a Slurm array, which this process submits and waits for.

The one choice that matters: the job's name is a hash of the step's folder, so that a run that was killed finds its own
array in the queue and waits for it instead of writing beside it. A task that fails leaves its error in a file, and the
run raises it as if it had happened here. datatrove hands the pipeline to the tasks as `executor.pik` in the step's own
scratch folder: no pickle from anywhere else is read. Source: Slurm 22.05, sbatch(1), squeue(1), scancel(1).
"""

import hashlib
import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.logging import logger
from datatrove.utils.stats import PipelineStats

from pipelines import errors
from pipelines.errors import LoamError, MissingExtra, StepError
from pipelines.executors import MAX_ARRAY, SlurmExecutor, exports, task_environment
from pipelines.executors_local import QuietRanks
from pipelines.files import write_atomically
from pipelines.journal import record
from pipelines.progress import console

TOOLS = ("sbatch", "squeue")
OVER = frozenset(
    [
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "TIMEOUT",
        "REVOKED",
    ]
)
STUCK = frozenset(
    ("BadConstraints", "DependencyNeverSatisfied", "JobHeldAdmin", "PartitionNodeLimit", "PartitionTimeLimit",
     "launch failed requeued held", "launch_failed_requeued_held")
)  # fmt: skip
QUEUE_PATIENCE_S = 600  # a controller that is restarted answers again within minutes
FIRST_PATIENCE_S = 10  # before anything is submitted; a machine without a configuration never answers
FILE_PATIENCE_S = 60  # NFS shows a file of another node after its attribute cache, at most 60 s by default
LONGEST_POLL_S = 5.0
NAMED = 3  # tasks that an error names


class SlurmRanks(QuietRanks, SlurmPipelineExecutor):
    """The ranks of one pipeline as a Slurm array.

    Args:
        blocks: reader, blocks, writer.
        tasks: number of ranks.
        settings: of the recipe.
        logs: folder of completion markers and logs, seen by all nodes.
        name: of the pipeline.

    Raises:
        MissingExtra: Slurm's commands are not there.
        StepError: the path of `logs` cannot be given to Slurm.
    """

    def __init__(
        self, blocks: Sequence[PipelineStep], tasks: int, settings: SlurmExecutor, logs: Path, name: str
    ) -> None:
        if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
            raise MissingExtra(
                f"executor: slurm needs {missing[0]}, which is not on PATH; run on a node from which jobs of the "
                "cluster are submitted, or choose another executor.kind"
            )
        folder = str(logs.resolve())
        if any(character.isspace() or character == "%" for character in folder):
            raise StepError(f"{folder}: Slurm takes no path with blanks or '%'; choose another folder for the output")
        job_name = f"loam-{name}-{hashlib.sha256(folder.encode()).hexdigest()[:10]}"
        here = f"export PATH={Path(sys.executable).parent}:$PATH"
        super().__init__(
            list(blocks), tasks=tasks, time=_clock(settings.time), partition=settings.partition or "",
            cpus_per_task=settings.cpus_per_task, mem_per_cpu_gb=0, workers=settings.workers or -1, job_name=job_name,
            qos="", env_command="\n".join([settings.setup, exports(task_environment(settings.cpus_per_task)), here]),
            sbatch_args=dict(settings.sbatch), max_array_size=-1, logging_dir=folder, with_srun=False,
            tasks_per_job=max(settings.tasks_per_job, math.ceil(tasks / MAX_ARRAY)),
        )  # fmt: skip
        self.memory_mib = math.ceil(settings.memory / 2**20)
        self.label = name

    def submit_and_wait(self) -> None:
        """Run the ranks that are not complete; those of an array that is in the queue already are waited for.

        Raises:
            LoamError: that of a block in a task.
            StepError: Slurm refused the job, or array tasks did not finish; names them and their logs.
        """
        if not self.get_incomplete_ranks():
            return
        if job := self._active_job():
            self._wait(job)
            if not self.get_incomplete_ranks():
                return
        shutil.rmtree(Path(self.logging_dir.path) / "errors", ignore_errors=True)
        logger.remove()  # datatrove tells stderr about every job
        try:
            self.launch_job()
        except subprocess.CalledProcessError as error:
            raise StepError(
                f"{self.label}: sbatch refused the job (exit {error.returncode}, its reason is above); "
                "see executor.partition, time, memory and sbatch in the recipe"
            ) from None
        states = self._wait(str(self.job_id))
        if missing := self._still_missing(states):
            raise self._failure(str(self.job_id), missing, states)

    def launch_merge_stats(self) -> None:
        """Submit nothing: datatrove's job that adds up counters would wait for ever for an array that failed."""

    def get_sbatch_args(self, max_array: int = 1) -> dict[str, Any]:
        """Datatrove's options, with memory per task to the MiB and without those that are not given."""
        given = super().get_sbatch_args(max_array)
        given |= {"mem": f"{self.memory_mib}M", "mem-per-cpu": None, "partition": given["partition"] or None}
        return {name: value for name, value in given.items() if value is not None} | self._sbatch_args

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> PipelineStats:
        """In the array task: the rank, its error kept in a file for the process that waits."""
        try:
            return super()._run_for_rank(rank, local_rank, node_rank)
        except Exception as error:
            problem = {"type": type(error).__name__, "message": str(error)}
            write_atomically(Path(self.logging_dir.path) / "errors" / f"{rank:05d}.json", json.dumps(problem).encode())
            raise

    def _queue(self, patience_s: float = QUEUE_PATIENCE_S) -> dict[str, dict[str, tuple[str, str]]]:
        """What Slurm knows of this step's arrays: job -> array task -> (state, reason)."""
        command = ["squeue", "--me", "--noheader", "--array", "--states=all", f"--name={self.job_name}",
                   "--format=%F|%K|%T|%r"]  # fmt: skip
        patience = time.monotonic() + patience_s
        while (asked := subprocess.run(command, capture_output=True, text=True)).returncode:
            if time.monotonic() > patience:
                raise StepError(
                    f"{self.label}: Slurm has not answered for {patience_s:.0f} seconds ({asked.stderr.strip()}); "
                    "see whether `squeue` works here; tasks that were submitted go on: run again to wait for them"
                )
            time.sleep(LONGEST_POLL_S)
        jobs: dict[str, dict[str, tuple[str, str]]] = {}
        for line in asked.stdout.splitlines():
            job, task, state, reason = line.strip().split("|", 3)
            jobs.setdefault(job, {})[task] = (state, reason)
        return jobs

    def _active_job(self) -> str | None:
        """This step's array that has not ended, if there is one."""
        found = (
            job
            for job, tasks in self._queue(FIRST_PATIENCE_S).items()
            if any(state not in OVER for state, _ in tasks.values())
        )
        return next(found, None)

    def _wait(self, job: str) -> dict[str, str]:
        """Wait until no task of the array is in the queue; the last state of each, as far as Slurm still knows it.

        A queue without the array is asked once more: a job just submitted may not be listed yet.
        """
        record("slurm", job=job, name=self.job_name)
        if console.is_terminal:
            console.print(f"[dim]Slurm job {job} ({self.job_name}); `scancel {job}` stops it[/dim]", highlight=False)
        pause, before = 0.25, None
        while True:
            tasks = self._queue().get(job, {})
            if all(state in OVER for state, _ in tasks.values()) and (tasks or before == {}):
                return {task: state for task, (state, _) in tasks.items()}
            if stuck := next((reason for _, reason in tasks.values() if reason in STUCK), None):
                raise StepError(
                    f"{self.label}: Slurm will never start job {job} ({stuck}); `scancel {job}`, "
                    "then change executor in the recipe and run again"
                )
            before = tasks
            time.sleep(pause)
            pause = min(LONGEST_POLL_S, pause * 1.3)

    def _still_missing(self, states: dict[str, str]) -> list[int]:
        """Ranks without a marker; looked for again unless Slurm says that a task failed, since files travel slowly."""
        patience = time.monotonic() + FILE_PATIENCE_S
        while (missing := self.get_incomplete_ranks()) and set(states.values()) <= {"COMPLETED"}:
            if time.monotonic() > patience:
                break
            time.sleep(1)
            self.logging_dir.invalidate_cache()
        return missing

    def _failure(self, job: str, missing: list[int], states: dict[str, str]) -> LoamError:
        """What to raise for ranks that did not finish: the error of a block if one was kept, else what Slurm says."""
        folder = Path(self.logging_dir.path)
        for rank in missing:
            if (kept := folder / "errors" / f"{rank:05d}.json").is_file():
                problem = json.loads(kept.read_text())
                kind = getattr(errors, problem["type"], None)
                if kind is not None:
                    return kind(problem["message"])
                return StepError(
                    f"{self.label}: {problem['type']}: {problem['message']} (task {rank} of Slurm job {job}); "
                    f"log: {folder}/logs/task_{rank:05d}.log; run again to resume"
                )
        launched = json.loads((folder / "ranks_to_run.json").read_text())
        where = {rank: str(number // self.tasks_per_job) for number, rank in enumerate(launched)}
        named = [
            f"task {rank}: {states.get(where[rank], 'UNKNOWN')}, log {folder}/slurm_logs/{job}_{where[rank]}.out"
            for rank in missing[:NAMED]
        ]
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        return StepError(
            f"{self.label}: {len(missing)} of {self.tasks} tasks of Slurm job {job} did not finish: "
            f"{'; '.join(named)}{more}; run again to resume"
        )


def _clock(seconds: float) -> str:
    """A duration as Slurm writes it."""
    whole = math.ceil(seconds)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"
