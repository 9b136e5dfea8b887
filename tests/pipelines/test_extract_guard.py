import pytest

from pipelines.extract_engine import Bounds
from pipelines.extract_guard import Guard

PROSE = "The soil of the plain is a mixture of sand, silt and clay that holds water and air in balance. " * 8
GOOD = f"<html><body><article><p>{PROSE}</p></article></body></html>"
HANGS = "<html><body>" + "<div>" * 990 + "<nav>a</nav>" * 240_000  # each is taken out of a thousand sums


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
    found = list(guarded().extract([GOOD, "<p>", GOOD]))
    assert [row[2] for row in found] == [None, "no_text", None]
    assert found[0][0].split() == PROSE.split()


def test_more_text_than_a_pipe_holds(guarded):
    pages = [f"<p>{PROSE * 400}</p>"] * 20
    assert [len(row[0].split()) for row in guarded().extract(pages)] == [len(PROSE.split()) * 400] * 20


def test_a_page_that_takes_too_much_memory_costs_only_itself(guarded):
    found = list(guarded(memory=60_000_000).extract([GOOD, "<p>" + "<b>x</b>" * 400_000, GOOD]))
    assert [row[2] for row in found] in ([None, "too_much_memory", None], [None, "broke_parser", None])


def test_a_page_that_takes_too_long_costs_only_itself(guarded):
    found = list(guarded(cpu_s=1).extract([GOOD, HANGS, GOOD]))
    assert [row[2] for row in found] == [None, "too_slow", None]


@pytest.mark.parametrize(("html", "reason"), [("<" * 1_000_001, "too_many_elements"), ("<div>" * 2000, "too_deep")])
def test_bounds_that_need_no_parser(guarded, html, reason):
    assert next(guarded().extract([html]))[2] == reason
