import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer.tape import ENDLESS, Tape, merged


def tape_of(*pieces: tuple[int, int]) -> Tape:
    return Tape.of(np.array([a for a, _ in pieces], np.int64), np.array([b for _, b in pieces], np.int64))


def positions(tape: Tape, upto: int = 200) -> list[int]:
    return [p for a, b in zip(tape.start_P.tolist(), tape.end_P.tolist(), strict=True) for p in range(a, min(b, upto))]


def test_pieces_that_touch_become_one():
    tape = tape_of((2, 5), (5, 7), (9, ENDLESS))
    assert (tape.start_P.tolist(), tape.offset_P.tolist()) == ([2, 9], [0, 5])
    assert tape.length == ENDLESS
    assert tape_of((2, 5), (9, 10)).length == 4
    assert tape_of().length == 0


def test_a_range_of_offsets_is_runs_of_positions():
    assert tape_of((2, 5), (9, 11), (20, ENDLESS)).pieces(1, 6) == [(3, 2), (9, 2), (20, 2)]


def test_what_lies_before_the_tail_and_is_not_there():
    assert positions(tape_of((2, 5), (9, ENDLESS)).before()) == [0, 1, 5, 6, 7, 8]
    assert positions(tape_of((0, ENDLESS)).before()) == []


def test_windows_become_ranges():
    begin, end = merged(np.array([0, 1, 4, 6, 7]), 10)
    assert (begin.tolist(), end.tolist()) == ([0, 40, 60], [20, 50, 80])
    assert [len(part) for part in merged(np.zeros(0, np.int64), 10)] == [0, 0]


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=12),
    st.lists(st.integers(1, 9), min_size=1, max_size=12),
    st.booleans(),
)
def test_ranges_of_offsets_are_those_positions(cuts: list[int], spans: list[int], endless: bool):
    ends = np.cumsum(cuts)
    pieces = [(int(a), int(b)) for a, b in zip(ends[:-1:2], ends[1::2], strict=False)]
    tail = (int(ends[-1]) + 3, ENDLESS if endless else int(ends[-1]) + 9)
    tape = tape_of(*pieces, tail)
    bounds = np.cumsum(spans)
    begin_R, end_R = bounds[:-1:2], bounds[1::2]
    begin_R = begin_R[: len(end_R)]
    ranges = list(zip(begin_R, end_R, strict=True))
    expected = [p for offset, p in enumerate(positions(tape)) if any(a <= offset < b for a, b in ranges)]
    assert positions(tape.ranges(begin_R, end_R)) == expected
