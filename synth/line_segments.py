"""Segments of a program by the numbers of their lines, under the same rules as segments of prose."""

from collections.abc import Sequence
from itertools import accumulate

from synth.verification import Limits, Span
from synth.words import solid_chars


def locate_lines(text: str, ranges: Sequence[tuple[int, int]], limits: Limits) -> tuple[Span, ...] | str:
    """Find segments by their first and last lines.

    Args:
        text: of the program.
        ranges: first and last line of each segment, from 1, both included.
        limits: thresholds.

    Returns:
        Spans of characters, in order and without overlap, or the reason why not.
    """
    if not limits.segments[0] <= len(ranges) <= limits.segments[1]:
        return "segment_count"
    lines = text.splitlines(keepends=True)
    starts = [0, *accumulate(map(len, lines))]
    spans, at = [], 0
    for first, last in ranges:
        if not 1 <= first <= last <= len(lines):
            return "marker_not_found"
        if first <= at:
            return "overlap"
        segment = text[starts[first - 1] : starts[last]].rstrip()
        if len(segment.strip()) < limits.min_segment_chars:
            return "segment_length"
        spans.append(Span(starts[first - 1], starts[first - 1] + len(segment)))
        at = last
    covered = sum(solid_chars(text[span.start : span.end]) for span in spans)
    return "coverage_low" if covered < limits.min_coverage * solid_chars(text) else tuple(spans)
