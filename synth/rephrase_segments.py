"""Documents to segments that fit a prompt: lines joined up to a number of tokens, longer lines split.

A line that is too long is split where it hurts least: between sentences, then clauses, then words, and only within a
word where even that is too long. The published pipeline drops such lines, and with them most Chinese, code and tables.
Segments are slices of the document: nothing is lost between them but white space.
"""

import re
from collections.abc import Sequence
from itertools import pairwise

from synth.token_counts import CountTokens
from synth.verification import Span

_CLOSERS = "\"'”’」』）)\\]】》"
_BORDERS = (
    re.compile(r"(?<=\n)"),
    re.compile(rf"(?<=[.!?…])[{_CLOSERS}]*\s+|(?<=[。！？])[{_CLOSERS}]*\s*"),
    re.compile(r"(?<=[,;:])\s+|(?<=[，、；：])\s*"),
    re.compile(r"\s+|(?<=[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff])(?=[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff])"),
)
"""Where a text may be cut (at the end of the match), best first: lines, sentences, clauses, words."""


def segments_of(text: str, max_tokens: int, count: CountTokens) -> list[Span]:
    """Cut a document.

    Args:
        text: of the document.
        max_tokens: of a segment, by the sum of its pieces' counts.
        count: texts to numbers of tokens.

    Returns:
        Slices in order, without white space at their ends; together they hold every other character.
    """
    stripped = [_strip(text, span) for span in _fit(text, Span(0, len(text)), max_tokens, count, 0)]
    return [span for span in stripped if span.start < span.end]


def _fit(text: str, span: Span, max_tokens: int, count: CountTokens, level: int) -> list[Span]:
    """Pieces of a level, too long ones split at the next, joined again as far as they fit."""
    pieces = _pieces(text, span, level)
    counts = count([text[piece.start : piece.end] for piece in pieces])
    fitting: list[Span] = []
    held = 0  # tokens of the last one in `fitting`, if more may be joined to it
    for piece, tokens in zip(pieces, counts, strict=True):
        if tokens > max_tokens and piece.end - piece.start > 1:
            fitting += _fit(text, piece, max_tokens, count, min(level + 1, len(_BORDERS)))
            held = max_tokens  # what was split stays apart from the next line
        elif fitting and held + tokens <= max_tokens:
            fitting[-1] = Span(fitting[-1].start, piece.end)
            held += tokens
        else:
            fitting.append(piece)
            held = tokens
    return fitting


def _pieces(text: str, span: Span, level: int) -> list[Span]:
    if level == len(_BORDERS):  # no border is left: in halves
        middle = (span.start + span.end) // 2
        return [Span(span.start, middle), Span(middle, span.end)]
    inside = [match.end() for match in _BORDERS[level].finditer(text, span.start, span.end)]
    cuts = sorted({span.start, *(cut for cut in inside if span.start < cut < span.end), span.end})
    return [Span(start, end) for start, end in pairwise(cuts)]


def _strip(text: str, span: Span) -> Span:
    piece = text[span.start : span.end]
    start = span.start + len(piece) - len(piece.lstrip())
    return Span(start, max(start, span.start + len(piece.rstrip())))


def long_enough(text: str, spans: Sequence[Span], min_tokens: int, count: CountTokens) -> tuple[list[Span], int]:
    """Segments of at least `min_tokens`, and how many were shorter."""
    counts = count([text[span.start : span.end] for span in spans]) if spans else []
    kept = [span for span, tokens in zip(spans, counts, strict=True) if tokens >= min_tokens]
    return kept, len(spans) - len(kept)
