"""Segments by numbers of lines."""

import pytest

from synth.backward import Backward, Draft, read_lines
from synth.line_segments import locate_lines
from synth.verification import Limits, Span

CODE = "import os\n\n\ndef name():\n    return os.getlogin()\n"
LIMITS = Limits(segments=(1, 3), min_segment_chars=5)


def test_lines_become_characters():
    found = locate_lines(CODE, [(1, 2), (4, 5)], LIMITS)
    assert found == (Span(0, 9), Span(12, 48))
    assert [CODE[span.start : span.end] for span in found if not isinstance(span, str)] == [
        "import os", "def name():\n    return os.getlogin()",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("ranges", "reason"),
    [
        ([], "segment_count"),
        ([(0, 2)], "marker_not_found"),
        ([(4, 6)], "marker_not_found"),
        ([(5, 4)], "marker_not_found"),
        ([(1, 4), (4, 5)], "overlap"),
        ([(4, 5), (1, 2)], "overlap"),
        ([(1, 1), (2, 3)], "segment_length"),
        ([(1, 1)], "coverage_low"),
    ],
)
def test_wrong_lines_are_named(ranges: list[tuple[int, int]], reason: str):
    assert locate_lines(CODE, ranges, LIMITS) == reason


def test_code_is_shown_with_numbers_and_cut_by_them():
    stage = Backward("cot_synthesis_code").stages[0]
    assert stage.slots(Draft("a\n  b\n"), LIMITS)["document"] == "1: a\n2:   b"
    draft = read_lines('{"segments": [{"first": 1, "last": 5}]}', Draft(CODE), LIMITS)
    assert isinstance(draft, Draft)
    assert draft.spans == (Span(0, 48),)
    assert read_lines('{"segments": [{"first": "1", "last": 5}]}', Draft(CODE), LIMITS) == "wrong_shape"
