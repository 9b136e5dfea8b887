"""A search that is killed while proxies train, while the law is fitted and while it confirms ends in the same bytes.

Also on Slurm, where each proxy is one task. The processes are real, and so are the kills.
"""

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from pipelines.journal import read_journal
from tests.flows.ablation import write_recipe, write_shards
from tests.flows.conftest import Loam, only

pytestmark = pytest.mark.slow
STEPS = ("swarm", "proxies", "law", "confirm", "mixture", "report")
MOMENTS = {"proxies": 2.0, "law": 0.3, "confirm": 2.0}  # seconds after a step began


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a search that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    write_recipe(folder / "r.yaml", write_shards(folder / "sh"))
    Loam(folder).ok("ablate", "r.yaml", "--no-prefect", "--workers", 1)
    return folder


def tree(folder: Path) -> dict[str, str]:
    run = only(folder.glob("runs/sharded@*"))
    files = (path for step in STEPS for path in (run / step).rglob("*") if path.is_file())
    return {path.relative_to(run).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def kill_in(loam: Loam, step: str, workers: int) -> bool:
    """Start the search and kill its whole group so long after a step began; whether that step was still running."""
    process = loam.start("ablate", "r.yaml", "--no-prefect", "--workers", workers)
    patience = time.monotonic() + 300
    while process.poll() is None and not list(loam.folder.glob(f"runs/*/.{step}.*.work")):
        assert time.monotonic() < patience
        time.sleep(0.01)
    time.sleep(MOMENTS[step])
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return not list(loam.folder.glob(f"runs/*/{step}/manifest.json"))


@pytest.mark.parametrize("workers", [1, 2])
def test_kills_in_proxies_law_and_confirmation_change_no_byte(whole: Path, tmp_path: Path, workers: int):
    write_recipe(tmp_path / "r.yaml", whole / "sh")
    loam = Loam(tmp_path)
    assert sum(kill_in(loam, step, workers) for step in MOMENTS) >= 2  # a law may be quicker than the kill
    loam.ok("ablate", "r.yaml", "--no-prefect", "--workers", workers)
    assert tree(tmp_path) == tree(whole)


def test_a_finished_proxy_is_not_trained_again_after_a_kill(whole: Path, tmp_path: Path):
    write_recipe(tmp_path / "r.yaml", whole / "sh")
    loam = Loam(tmp_path)
    process = loam.start("ablate", "r.yaml", "--no-prefect", "--workers", 1)
    while len(found := list(loam.folder.glob("runs/*/.proxies.*.work/proxies/*.json"))) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    written = {path.name: path.stat().st_mtime_ns for path in found}
    loam.ok("ablate", "r.yaml", "--no-prefect", "--workers", 1)
    results = only(tmp_path.glob("runs/sharded@*")) / "proxies" / "proxies"
    assert {name: (results / name).stat().st_mtime_ns for name in written} == written
    trained = [e["trained"] for e in read_journal(results.parents[1] / "journal.jsonl") if e["event"] == "proxies"]
    assert trained[0] <= 8 - len(written)


def test_proxies_are_tasks_of_slurm_with_the_same_bytes(whole: Path, tmp_path: Path):
    if shutil.which("sinfo") is None:
        pytest.skip("no Slurm on this machine; `.ci/slurm start` installs one")
    nodes = subprocess.run(["sinfo", "--noheader", "--format=%t"], capture_output=True, text=True, timeout=60)
    if nodes.stdout.split()[:1] not in (["idle"], ["mix"], ["alloc"]):
        pytest.skip("no Slurm with a node that is up; `.ci/slurm start` starts one")
    write_recipe(
        tmp_path / "r.yaml", whole / "sh", "executor: {kind: slurm, time: 600, memory: 1GiB, tasks_per_job: 6}"
    )
    Loam(tmp_path).ok("ablate", "r.yaml", "--no-prefect", "--workers", 1)
    assert tree(tmp_path) == tree(whole)
