"""Where tasks run changes no byte: processes, a real local Ray, a real Slurm of one node; and failures are named."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from datatrove.pipeline.base import PipelineStep

from filters.heuristics import FilterSettings, filter_documents
from pipelines.block import ReadDocuments, WriteDocuments
from pipelines.dedup import DedupSettings, dedup
from pipelines.document import conform, table_of
from pipelines.encode import EncodeSettings, encode
from pipelines.errors import DataError, MissingExtra, RecipeError, StepError
from pipelines.execute import SCRATCH, run_blocks
from pipelines.executors import (
    LocalExecutor,
    RayExecutor,
    SlurmExecutor,
    current_executor,
    executor_is,
    parse_executor,
    task_environment,
)
from pipelines.executors_slurm import SlurmRanks
from pipelines.recipe import ROOT
from pipelines.store import perform
from tests.conftest import SENTENCES

SLURM = SlurmExecutor(time=600, memory=1 << 30)
RAY = RayExecutor(workers=2, memory=256 << 20)


@pytest.fixture
def slurm() -> SlurmExecutor:
    """A Slurm that answers and has a node; `.ci/slurm start` makes one where that is allowed."""
    if shutil.which("sinfo") is None:
        pytest.skip("no Slurm on this machine; `.ci/slurm start` installs one")
    nodes = subprocess.run(["sinfo", "--noheader", "--format=%t"], capture_output=True, text=True, timeout=60)
    if nodes.stdout.split()[:1] not in (["idle"], ["mix"], ["alloc"]):
        pytest.skip("no Slurm with a node that is up; `.ci/slurm start` starts one")
    return SLURM


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[RayExecutor]:
    ray = pytest.importorskip("ray")
    yield RAY
    ray.shutdown()


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two files of twelve documents; each text stands in both, slightly changed in one."""
    made = []
    for number in range(2):
        rows = []
        for row in range(12):
            text = " ".join(SENTENCES[(row * step + row) % 5] for step in range(1, 25)) + f" Note {row}."
            rows.append({"id": f"doc-{number}-{row:02d}", "text": text + " And so on." * number, "domain": "field"})
        made.append(tmp_path / "in" / "documents" / f"part-{number:05d}.parquet")
        made[-1].parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(conform(table_of(rows)), made[-1])
    return made


class HoldBack(PipelineStep):
    """Says that its rank has begun, and waits for a file before it lets documents pass."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def run(self, data: Iterable[Any], rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        (self.folder / f"begun-{rank}").touch()
        while not (self.folder / "go").exists():
            time.sleep(0.05)
        yield from data


class FailOnce(PipelineStep):
    """Kills its own process, as the kernel does when memory is short, the first time that it is run."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def run(self, data: Iterable[Any], rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        if not (mark := self.folder / f"killed-{rank}").exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        yield from data


def tree(folder: Path) -> dict[str, bytes]:
    """Every file's bytes, but for scratch."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and SCRATCH not in path.parts
    }


def wait_for(condition: Callable[[], bool], at_most_s: float = 300) -> None:
    """Wait until it holds; a machine may be busy, so that only a hang fails."""
    end = time.monotonic() + at_most_s
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.1)


def run_held(files: list[Path], folder: Path, work: Path) -> None:
    names = [str(file) for file in files]
    writer = WriteDocuments(str(work), ["part-00000", "part-00001"])
    run_blocks([ReadDocuments(names), HoldBack(folder), writer], len(files), work, 1, "held")


# Settings


def test_an_executor_is_named_or_written_out():
    assert parse_executor("local") == LocalExecutor()
    assert parse_executor("ray") == RayExecutor()
    assert parse_executor("{kind: slurm, partition: cpu, time: 6h, memory: 8GiB}") == SlurmExecutor(
        partition="cpu", time=6 * 3600, memory=8 << 30
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [("moon", "local.*ray.*slurm"), ("{kind: local, partition: cpu}", "partition: unknown key"),
     ("{kind: slurm, tiem: 6h}", "did you mean 'time'"), ("{kind: ray, workers: 0}", "greater than or equal to 1")],
)  # fmt: skip
def test_what_is_no_executor_is_refused(text: str, words: str):
    with pytest.raises(RecipeError, match=words):
        parse_executor(text)


def test_the_command_line_goes_before_the_recipe():
    with executor_is(RAY, fixed=True), executor_is(SLURM):
        assert current_executor() == RAY
    with executor_is(RAY), executor_is(None):
        assert current_executor() == RAY
    assert current_executor() == LocalExecutor()


def test_tasks_get_their_threads_and_what_loam_set(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.setenv("SECRET", "stays here")
    environment = task_environment(cpus=3)
    assert environment["OMP_WAIT_POLICY"] == "passive"
    assert {environment[name] for name in ("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "NUMBA_NUM_THREADS")} == {"3"}
    assert "SECRET" not in environment


# What is not there


def test_slurm_without_sbatch(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with executor_is(SLURM), pytest.raises(MissingExtra, match="needs sbatch, which is not on PATH"):
        filter_documents(files, tmp_path / "work", FilterSettings(rules="c4"))


def test_ray_that_is_not_installed(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with executor_is(RAY), pytest.raises(MissingExtra, match=r"pip install -e '.\[ray\]'"):
        filter_documents(files, tmp_path / "work", FilterSettings(rules="c4"))


# A queue that says nothing


class Asked(SlurmRanks):
    """Answers of squeue, and how many ranks have no marker each time that they are looked for."""

    def __init__(self, queue: list[dict[str, Any]], missing: list[list[int]]) -> None:
        self.queue, self.missing = queue, missing
        self.job_name = self.label = "asked"
        self.logging_dir = SimpleNamespace(invalidate_cache=lambda: None)

    def _queue(self) -> dict[str, Any]:
        return self.queue.pop(0)

    def get_incomplete_ranks(self, ranks: Any = None, skip_completed: Any = True) -> list[int]:
        return self.missing.pop(0)


def test_a_queue_without_the_array_is_asked_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipelines.executors_slurm.time.sleep", lambda seconds: None)
    listed = {"7": {"0": ("COMPLETED", "None")}}
    assert Asked([{}, {"7": {"0": ("RUNNING", "None")}}, listed], [])._wait("7") == {"0": "COMPLETED"}
    assert Asked([{}, {}], [])._wait("7") == {}


@pytest.mark.parametrize(("states", "found"), [({}, []), ({"0": "COMPLETED"}, []), ({"0": "FAILED"}, [0])])
def test_markers_are_waited_for_unless_a_task_failed(states: dict[str, str], found: list[int], monkeypatch: Any):
    monkeypatch.setattr("pipelines.executors_slurm.time.sleep", lambda seconds: None)
    assert Asked([], [[0], [0], []])._still_missing(states) == found


# Slurm, where there is one


def test_a_slurm_array_writes_the_same_bytes(slurm: SlurmExecutor, files: list[Path], tmp_path: Path):
    settings = FilterSettings(rules="gopher_quality")
    filter_documents(files, tmp_path / "local", settings)
    with executor_is(slurm):
        counts = filter_documents(files, tmp_path / "slurm", settings).counts
    assert counts is not None
    assert counts.docs_in == 24
    assert tree(tmp_path / "slurm") == tree(tmp_path / "local") != {}


@pytest.mark.slow
def test_a_path_that_slurm_cannot_take(slurm: SlurmExecutor, files: list[Path], tmp_path: Path):
    with executor_is(slurm), pytest.raises(StepError, match="no path with blanks"):
        filter_documents(files, tmp_path / "my work", FilterSettings(rules="c4"))


@pytest.mark.slow
def test_a_partition_that_is_not_there(slurm: SlurmExecutor, files: list[Path], tmp_path: Path):
    nowhere = slurm.model_copy(update={"partition": "nowhere"})
    with executor_is(nowhere), pytest.raises(StepError, match="sbatch refused the job"):
        filter_documents(files, tmp_path / "work", FilterSettings(rules="c4"))


@pytest.mark.slow
def test_an_error_in_a_slurm_task_is_the_error_here(slurm: SlurmExecutor, files: list[Path], tmp_path: Path):
    files[1].write_bytes(b"PAR1 and then nothing")
    with executor_is(slurm), pytest.raises(DataError, match=r"part-00001\.parquet is not readable Parquet"):
        filter_documents(files, tmp_path / "work", FilterSettings(rules="c4"))


@pytest.mark.slow
def test_a_cancelled_array_is_noticed_and_nothing_is_lost(
    slurm: SlurmExecutor, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    work, folder = tmp_path / "work", tmp_path
    with executor_is(slurm), ThreadPoolExecutor(1) as pool:
        running = pool.submit(run_held, files, folder, work)
        wait_for((folder / "begun-0").exists)
        name = next(iter(jobs_of(work)))
        subprocess.run(["scancel", f"--name={name}"], check=True)
        with pytest.raises(StepError, match=r"2 of 2 tasks .* task 0: CANCELLED, log .*slurm_logs.*run again"):
            running.result()
        (folder / "go").touch()
        run_held(files, folder, work)
    run_held(files, folder, tmp_path / "local")
    assert tree(work) == tree(tmp_path / "local") != {}


def jobs_of(work: Path) -> dict[str, set[str]]:
    """Job ids by name of the arrays that were submitted for a folder."""
    script = (work / SCRATCH / "held" / "launch_script.slurm").read_text()
    name = next(line.partition("=")[2] for line in script.splitlines() if line.startswith("#SBATCH --job-name"))
    command = ["squeue", "--noheader", "--states=all", f"--name={name}", "--format=%F"]
    return {name: set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())}


@pytest.mark.slow
def test_a_run_that_was_killed_waits_for_its_array(
    slurm: SlurmExecutor, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The array goes on without the process that submitted it; the next one finds it instead of writing beside it."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    folder, work = tmp_path, tmp_path / "work"
    code = (
        "import sys; from pathlib import Path\n"
        "from tests.pipelines.test_executors import SLURM, executor_is, run_held\n"
        "files, folder, work = [Path(n) for n in sys.argv[3:]], Path(sys.argv[1]), Path(sys.argv[2])\n"
        "with executor_is(SLURM): run_held(files, folder, work)\n"
    )
    killed = subprocess.Popen([sys.executable, "-c", code, folder, work, *files], start_new_session=True)
    wait_for((folder / "begun-0").exists)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    (folder / "go").touch()
    with executor_is(slurm):
        run_held(files, folder, work)
    assert [len(ids) for ids in jobs_of(work).values()] == [1]
    run_held(files, folder, tmp_path / "local")
    assert tree(work) == tree(tmp_path / "local") != {}


# All of them


@pytest.mark.slow
def test_filter_dedup_and_tokenize_are_the_same_everywhere(
    slurm: SlurmExecutor, ray_cluster: RayExecutor, files: list[Path], tmp_path: Path, tiny_model: Path
):
    """Outputs and manifests; on processes with one worker and with two."""

    def way(out: Path, workers: int) -> dict[str, bytes]:
        rules, near = FilterSettings(rules="gopher_quality"), DedupSettings(method="minhash")
        tokens, tokenizer = EncodeSettings(validation_share=0.2), tiny_model / "tokenizer.json"
        perform("filter", out / "filter", lambda work: filter_documents(files, work, rules, workers), {}, {})
        kept = sorted((out / "filter" / "kept").rglob("*.parquet"))
        perform("dedup", out / "dedup", lambda work: dedup(kept, work, near, workers), {}, {})
        left = sorted((out / "dedup" / "kept").rglob("*.parquet"))
        perform("tokenize", out / "tokenize", lambda work: encode(left, work, tokenizer, tokens, workers), {}, {})
        return tree(out)

    expected = way(tmp_path / "one", 1)
    assert {"filter/manifest.json", "dedup/manifest.json", "tokenize/manifest.json"} <= expected.keys()
    assert way(tmp_path / "two", 2) == expected
    with executor_is(ray_cluster):
        assert way(tmp_path / "ray", 1) == expected
    with executor_is(slurm):
        assert way(tmp_path / "slurm", 1) == expected
    with executor_is(slurm.model_copy(update={"tasks_per_job": 2})):
        assert way(tmp_path / "bundled", 1) == expected


@pytest.mark.slow
def test_ray_starts_a_killed_task_again(
    ray_cluster: RayExecutor, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def run(work: Path) -> None:
        writer = WriteDocuments(str(work), ["part-00000", "part-00001"])
        run_blocks([ReadDocuments([str(f) for f in files]), FailOnce(tmp_path), writer], 2, work, 1, "killed")

    with executor_is(ray_cluster):
        run(tmp_path / "ray")
    run(tmp_path / "local")  # its marks are there, so that nothing is killed
    assert tree(tmp_path / "ray") == tree(tmp_path / "local") != {}


@pytest.mark.slow
def test_an_error_in_a_ray_task_is_the_error_here(ray_cluster: RayExecutor, files: list[Path], tmp_path: Path):
    files[1].write_bytes(b"PAR1 and then nothing")
    with executor_is(ray_cluster), pytest.raises(DataError, match=r"part-00001\.parquet is not readable Parquet"):
        filter_documents(files, tmp_path / "work", FilterSettings(rules="c4"))


@pytest.mark.slow
def test_a_task_that_no_node_has_room_for(ray_cluster: RayExecutor, files: list[Path], tmp_path: Path):
    huge = ray_cluster.model_copy(update={"memory": 1 << 60})
    with executor_is(huge), pytest.raises(StepError, match="no node of the Ray cluster has"):
        filter_documents(files, tmp_path / "work", FilterSettings(rules="c4"))
