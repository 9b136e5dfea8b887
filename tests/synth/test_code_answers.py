import gzip
import json
import socket
import time
from pathlib import Path

import pytest

from synth.answers import Verdict
from synth.code_answers import extract_code, judge_code, run_tests
from synth.sandbox import run_program

needs_sandbox = pytest.mark.skipif(
    run_program("").how == "unavailable", reason="this kernel does not allow unprivileged namespaces"
)


def test_the_last_block_is_the_candidate():
    assert extract_code("```python\na = 1\n```\nbetter:\n```python\na = 2\n```") == "a = 2\n"
    assert extract_code("no code") is None


@needs_sandbox
def test_tests_decide():
    text = "```python\ndef double(x):\n    return 2 * x\n```"
    assert judge_code(text, "assert double(2) == 4").verdict is Verdict.VERIFIED
    assert judge_code(text, "assert double(2) == 5").detail == "AssertionError"
    assert judge_code("no code", "assert True").verdict is Verdict.UNDECIDED


@needs_sandbox
@pytest.mark.parametrize(
    "evil",
    [
        "import socket\nsocket.create_connection(('127.0.0.1', 22), 2)",
        "import os\nos.fork()",
        "import sys, os\nos.write(1, str(sys._getframe(1).f_code.co_consts).encode())",
        "import subprocess\nsubprocess.run(['true'])",
        "x = 'a' * (4 << 30)",
        "while True: print('x' * 10000)",
        "import os\nos._exit(0)",
        "import sys\nsys.exit(0)",
        "raise SystemExit(0)",
        "import os\nos.kill(-1, 9)",
        "import os\nos.kill(os.getppid(), 9)",
        "import ctypes\nctypes.string_at(0)",
    ],
)
def test_whatever_it_does_it_is_not_verified(evil: str):
    assert run_tests(evil, "assert True").verdict is not Verdict.VERIFIED


@needs_sandbox
def test_nothing_can_be_written(tmp_path: Path):
    (tmp_path / "mine").write_text("mine")
    for evil in (f"open({str(tmp_path / 'new')!r}, 'w')", f"import os\nos.remove({str(tmp_path / 'mine')!r})"):
        assert run_tests(evil, "").detail == "OSError"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@needs_sandbox
def test_no_socket_of_the_file_system_is_reached(tmp_path: Path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()
        evil = f"import socket\nsocket.socket(socket.AF_UNIX).connect({str(tmp_path / 's')!r})"
        assert run_tests(evil, "").detail == "PermissionError"


@needs_sandbox
def test_a_sleeper_that_will_not_die_with_its_parent_is_killed():
    program = "import ctypes, time\nctypes.CDLL(None).prctl(1, 0, 0, 0, 0)\ntime.sleep(600)"
    assert run_program(program, wall_s=2).how == "limit"  # which is said after the program was waited for


@needs_sandbox
def test_a_hang_is_undecided():
    started = time.monotonic()
    assert run_tests("while True: pass", "", cpu_s=1).verdict is Verdict.UNDECIDED
    assert time.monotonic() - started < 60


@needs_sandbox
def test_reference_solutions_pass_and_empty_ones_fail(shared: Path):
    with gzip.open(shared / "code" / "HumanEval.jsonl.gz", "rt") as lines:
        for row in [json.loads(line) for line in lines][::16]:
            tests = f"{row['test']}\ncheck({row['entry_point']})\n"
            assert run_tests(row["prompt"] + row["canonical_solution"], tests).verdict is Verdict.VERIFIED
            assert run_tests(row["prompt"] + "    return None\n", tests).verdict is Verdict.REFUTED
