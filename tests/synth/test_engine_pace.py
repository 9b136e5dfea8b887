import pytest
from hypothesis import given
from hypothesis import strategies as st

from synth import engine_pace
from synth.engine_pace import Pace, backoff_s, wish_of


def test_the_window_opens_by_one_per_answer_at_first():
    pace = Pace(100)
    for _ in range(10):
        pace.answered()
    assert pace.limit == 18


def test_a_small_ceiling_is_where_it_starts():
    assert Pace(3).limit == 3


def test_strain_halves_and_then_it_opens_slowly():
    pace = Pace(100)
    pace.strained(pace.launch())
    assert pace.limit == 4
    for _ in range(4):
        pace.answered()
    assert 4.8 < pace.limit < 5.0  # about one per window


def test_requests_of_one_moment_strain_it_once():
    pace = Pace(100)
    tickets = [pace.launch() for _ in range(8)]
    for ticket in tickets:
        pace.strained(ticket)
    assert pace.limit == 4
    pace.strained(pace.launch())
    assert pace.limit == 2


def test_a_server_that_went_down_is_asked_one_thing_at_a_time():
    pace = Pace(100)
    pace.broken()
    assert pace.limit == 1


@given(st.integers(1, 300), st.lists(st.sampled_from(["answered", "strained", "broken"]), max_size=200))
def test_the_window_stays_within_its_bounds(ceiling: int, events: list[str]):
    pace = Pace(ceiling)
    for event in events:
        ticket = pace.launch()
        if event == "answered":
            pace.answered()
        elif event == "strained":
            pace.strained(ticket)
        else:
            pace.broken()
        assert 1 <= pace.limit <= ceiling


def test_waits_double_up_to_a_ceiling():
    for failures, most in ((1, 0.5), (2, 1.0), (3, 2.0), (8, 60.0), (500, 60.0)):
        waits = [backoff_s(failures) for _ in range(50)]
        assert most / 2 <= min(waits) < max(waits) <= most
    assert engine_pace.FIRST_WAIT_S == 0.5


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(None, None), ("", None), ("soon", None), ("7", 7.0), ("0.5", 0.5), ("-3", 0.0),
     ("inf", None), ("nan", None), ("Wed, 21 Oct 99999999999999999999 07:28:00 GMT", None),
     ("Wed, 99 Xxx 2026 99:99:99 GMT", None), (", ", None), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0)],
)  # fmt: skip
def test_wishes_are_seconds_or_dates(header: str | None, seconds: float | None):
    assert wish_of(header) == seconds


def test_a_date_to_come_is_waited_for():
    wish = wish_of("Wed, 21 Oct 2099 07:28:00 GMT")
    assert wish is not None
    assert wish > 1e9
