"""How these tests call `loam` (in a process of its own, or in this one), and the input that they give it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from flows.cli import main
from pipelines.warc import write_warc
from tests.conftest import SENTENCES

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


def only(found: Iterable[Path]) -> Path:
    """The one path that there is."""
    (path,) = found
    return path


@pytest.fixture
def loam(tmp_path: Path) -> Loam:
    """The command, in an empty folder."""
    return Loam(tmp_path)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of the tiny recipe by one worker that nothing disturbed: what others are compared with."""
    return Loam(tmp_path_factory.mktemp("undisturbed")).run_tiny("--no-prefect", "--workers", 1)


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Run `loam` in this process, in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOAM_DEBUG", raising=False)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["loam", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capfd.readouterr()
        code = end.value.code
        assert isinstance(code, int)
        assert "Traceback" not in out + err
        return code, out, err

    return run


@pytest.fixture
def works(call: Command) -> Callable[..., dict[str, Any]]:
    """Run a verb with --json: it succeeds, stdout is one JSON document, stderr is empty."""

    def run(*arguments: object) -> dict[str, Any]:
        code, out, err = call(*arguments, "--json")
        assert (code, err) == (0, "")
        return json.loads(out)

    return run


@pytest.fixture
def fails(call: Command) -> Callable[..., None]:
    """Run a verb that cannot work: one line on stderr that holds some words, nothing on stdout."""

    def run(expected_code: int, words: str, *arguments: object) -> None:
        code, out, err = call(*arguments)
        assert (code, out) == (expected_code, ""), err
        assert err.startswith("loam: ")
        assert err.count("\n") == 1
        assert words in err

    return run


Works = Callable[..., dict[str, Any]]
Fails = Callable[..., None]


def rows(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.rglob("*.parquet")) for row in pq.ParquetFile(path).read().to_pylist()]


def columns(path: Path) -> list[str]:
    return pq.read_schema(path).names


def write_jsonl(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def html(body: str) -> bytes:
    return f"<html><head><title>Soil</title></head><body>{body}</body></html>".encode()


def article() -> str:
    return "<article>" + "".join(f"<p>{sentence} {sentence}</p>" for sentence in SENTENCES) + "</article>"


def warc(path: Path, *pages: bytes) -> Path:
    write_warc(path, [(f"http://soil.example/{number}", page) for number, page in enumerate(pages)])
    return path


def tokenizer_of(model: Path) -> Path:
    return model / "tokenizer.json"
