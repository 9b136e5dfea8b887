"""How these tests call `loam`: as a process of its own, the way a user does."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

LOAM = Path(sys.executable).with_name("loam")
TINY = Path(__file__).with_name("recipes") / "tiny.yaml"


class Loam:
    """The command, started in one folder.

    Attributes:
        folder: current directory of its processes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        """Start it in a session of its own, so that a test can kill all of it."""
        return subprocess.Popen(
            [str(LOAM), *map(str, arguments)], cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, start_new_session=True, env={**os.environ, "LOAM_DEBUG": ""},
        )  # fmt: skip

    def __call__(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run it to its end, whatever that is."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=600)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def ok(self, *arguments: object) -> str:
        """What it prints; it must succeed and say nothing on stderr."""
        done = self(*arguments)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return done.stdout

    def run_tiny(self, *arguments: object) -> Path:
        """Run the tiny recipe, and give the run's folder."""
        self.ok("run", TINY, *arguments)
        return only(self.folder.glob("runs/tiny@*"))


def only(found: Sequence[Path] | object) -> Path:
    """The one path that there is."""
    (path,) = found  # type: ignore[misc]
    return path


@pytest.fixture
def loam(tmp_path: Path) -> Loam:
    """The command, in an empty folder."""
    return Loam(tmp_path)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of the tiny recipe by one worker that nothing disturbed: what others are compared with."""
    return Loam(tmp_path_factory.mktemp("undisturbed")).run_tiny("--no-prefect", "--workers", 1)
