import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from synth import engine_guard

SERVER = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
print(os.getpid(), child.pid, flush=True)
child.wait()
"""
OWNER = """
import os, subprocess, sys
subprocess.Popen([sys.executable, sys.argv[1], str(os.getpid()), sys.executable, "-c", sys.argv[2]])
sys.stdin.read()
"""


def guarded(parent: int, *command: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, engine_guard.__file__, str(parent), *command], stdout=subprocess.PIPE)


def pids_of(process: subprocess.Popen) -> list[int]:
    assert process.stdout is not None
    return [int(pid) for pid in process.stdout.readline().split()]


def read_to_end(process: subprocess.Popen) -> None:
    """Returns once nobody holds the pipe: the server and its children are gone."""
    assert process.stdout is not None
    assert process.stdout.read() == b""


@pytest.fixture
def server() -> Iterator[subprocess.Popen]:
    process = guarded(os.getpid(), sys.executable, "-c", SERVER)
    yield process
    process.kill()
    process.wait()


def test_told_to_stop_it_ends_the_whole_group(server: subprocess.Popen):
    pids_of(server)
    server.terminate()
    read_to_end(server)
    assert server.wait() == 0


def test_a_server_that_ends_by_itself_is_told(tmp_path: Path):
    assert guarded(os.getpid(), sys.executable, "-c", "raise SystemExit(7)").wait() == 7


def test_the_server_ends_with_its_owner():
    command = [sys.executable, "-c", OWNER, engine_guard.__file__, SERVER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        for pid in pids_of(owner):
            os.kill(pid, 0)
        owner.send_signal(signal.SIGKILL)
        read_to_end(owner)


def test_a_server_that_will_not_stop_is_killed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine_guard, "GRACE_S", 0.3)
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); signal.pause()"
    process = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE, start_new_session=True)
    pids_of(process)
    engine_guard.end_group(process.pid)
    read_to_end(process)
    assert process.wait() in (0, -signal.SIGKILL)
