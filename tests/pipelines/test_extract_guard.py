import os
import subprocess
import sys

import pytest

from pipelines import extract_guard
from pipelines.extract_engine import Bounds
from pipelines.extract_guard import Guard, guard_of

PROSE = "The soil of the plain is a mixture of sand, silt and clay that holds water and air in balance. " * 8
GOOD = f"<html><body><article><p>{PROSE}</p></article></body></html>".encode()
HANGS = b"<html><body>" + b"<div>" * 990 + b"<aside>a</aside>" * 240_000  # each is taken out of a thousand sums


def bounds(cpu_s: int = 30, memory: int = 2_000_000_000) -> Bounds:
    return Bounds("cascade", False, False, 1000, 1, cpu_s, memory)


@pytest.fixture
def guarded():
    guards = []

    def make(**limits: int) -> Guard:
        guards.append(Guard(bounds(**limits)))
        return guards[-1]

    yield make
    for guard in guards:
        guard.close()


def test_results_come_in_order(guarded):
    found = guarded().extract([GOOD, b"<p>", GOOD])
    assert [row[2] for row in found] == [None, "no_text", None]
    assert found[0][0].split() == PROSE.split()


def test_more_text_than_a_pipe_holds(guarded):
    pages = [f"<p>{PROSE * 400}</p>".encode()] * 20
    assert [len(row[0].split()) for row in guarded().extract(pages)] == [len(PROSE.split()) * 400] * 20


def test_a_page_that_takes_too_much_memory_costs_only_itself(guarded):
    found = guarded(memory=60_000_000).extract([GOOD, b"<p>" + b"<b>x</b>" * 400_000, GOOD])
    assert [row[2] for row in found] in ([None, "too_much_memory", None], [None, "broke_parser", None])


def test_a_page_is_rejected_for_memory_only_by_a_new_child(guarded):
    guard = guarded(memory=60_000_000)
    huge = b"<p>" + b"<b>x</b>" * 400_000
    assert guard.extract([huge])[0][2] in ("too_much_memory", "broke_parser")
    assert guard.starts == 1
    other = guarded(memory=60_000_000)
    assert [row[2] is None for row in other.extract([GOOD, huge])] == [True, False]
    assert other.starts == 2


def test_what_earlier_pages_left_rejects_no_page(guarded, monkeypatch):
    """The child dies at a page that is not its first, as of memory: the page is asked for again."""
    guard, received, seen = guarded(), extract_guard._received, []

    def dying(pipe):
        seen.append(pipe)
        if len(seen) == 2 and guard.child is not None:
            guard.child.kill()
            os.waitid(os.P_PID, guard.child.pid, os.WEXITED | os.WNOWAIT)
            pipe.read()  # what it had answered
        return received(pipe)

    monkeypatch.setattr(extract_guard, "_received", dying)
    assert [row[2] for row in guard.extract([GOOD, GOOD, b"<p>"])] == [None, None, "no_text"]
    assert guard.starts == 2


def test_a_page_that_takes_too_long_costs_only_itself(guarded):
    guard = guarded(cpu_s=1)
    assert [row[2] for row in guard.extract([GOOD, HANGS, GOOD])] == [None, "too_slow", None]
    assert guard.starts == 2


@pytest.mark.parametrize(("html", "reason"), [(b"<" * 1_000_001, "too_many_elements"), (b"<div>" * 2000, "too_deep")])
def test_bounds_that_need_no_parser(guarded, html, reason):
    assert guarded().extract([html])[0][2] == reason


def test_batches_share_a_child_until_it_is_old(guarded, monkeypatch):
    monkeypatch.setattr(extract_guard, "CHILD_PAGES", 4)
    guard = guarded()
    found = [guard.extract([GOOD, b"<p>"]) for _ in range(4)]
    assert found == [found[0]] * 4
    assert guard.starts == 2


def test_a_child_that_is_killed_between_batches_costs_no_page(guarded):
    guard = guarded()
    first = guard.extract([GOOD])
    assert guard.child is not None
    guard.child.kill()
    os.waitid(os.P_PID, guard.child.pid, os.WEXITED | os.WNOWAIT)  # until it is gone
    assert guard.extract([GOOD]) == first
    assert guard.starts == 2


def test_a_batch_that_is_interrupted_leaves_no_answers(guarded, monkeypatch):
    guard = guarded()
    with monkeypatch.context() as patch:
        patch.setattr(extract_guard, "_received", interrupt)
        with pytest.raises(KeyboardInterrupt):
            guard.extract([b"<p>", b"<p>"])
    assert guard.child is None
    assert guard.extract([GOOD])[0][2] is None


def interrupt(pipe: object) -> None:
    raise KeyboardInterrupt


def test_a_fork_has_a_child_of_its_own():
    limits = bounds(cpu_s=29)
    guard = guard_of(limits)
    assert guard_of(bounds(cpu_s=29)) is guard
    first = guard.extract([GOOD])
    assert guard.child is not None
    pid = guard.child.pid
    if (fork := os.fork()) == 0:
        mine = guard_of(limits)
        same = mine.extract([GOOD]) == first and mine.starts == 1 and mine.child is not None and mine.child.pid != pid
        mine.close()
        os._exit(0 if same else 1)
    assert os.waitpid(fork, 0)[1] == 0
    assert guard.extract([GOOD]) == first
    assert (guard.starts, guard.child.pid) == (1, pid)


@pytest.mark.parametrize("end", ["pass", "os.kill(os.getpid(), 9)"])
def test_the_child_ends_with_its_process(end):
    code = (
        "import os\nfrom pipelines.extract_engine import Bounds\nfrom pipelines.extract_guard import guard_of\n"
        "guard = guard_of(Bounds('cascade', False, False, 1000, 1, 30, 2_000_000_000))\n"
        f"guard.extract([b'<p>'])\nprint(guard.starts, flush=True)\n{end}"
    )
    # the child holds the pipe of errors: a run that returns has seen its end
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr) == ("1\n", "")
