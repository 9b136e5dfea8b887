"""Places in a domain's endless sequence of epochs, with pieces cut out: what is left, and what was trained on.

A position counts tokens through all epochs of a domain, one after the other. A tape lists pieces of positions in rising
order and may end in an endless tail; a stage reads it in windows. When the length of a sample changes between two
stages, the windows that were drawn are cut out and the rest is read in windows of the new length: no token is lost and
none is trained on twice.

Legend: P pieces, W windows, R ranges.
"""

from dataclasses import dataclass

import numpy as np

ENDLESS = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Tape:
    """Pieces of positions; offsets count along them.

    Attributes:
        start_P: int64, first position of each piece; rising.
        end_P: int64, the position after it; the last one may be `ENDLESS`.
        offset_P: int64, offset at which each piece begins.
    """

    start_P: np.ndarray
    end_P: np.ndarray
    offset_P: np.ndarray

    @classmethod
    def of(cls, start_P: np.ndarray, end_P: np.ndarray) -> "Tape":
        """A tape of disjoint pieces in rising order; neighbours that touch become one."""
        opens = np.concatenate([[True], start_P[1:] != end_P[:-1]]) if len(start_P) else np.zeros(0, bool)
        start, end = start_P[opens], end_P[np.flatnonzero(np.concatenate([opens[1:], [True]]))] if len(opens) else end_P
        lengths = (end - start)[:-1] if len(end) else end
        return cls(start, end, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)[: len(start)])

    @classmethod
    def endless(cls) -> "Tape":
        """Every position."""
        return cls.of(np.zeros(1, np.int64), np.full(1, ENDLESS))

    @property
    def length(self) -> int:
        """Tokens on it; `ENDLESS` with a tail."""
        if not len(self.end_P):
            return 0
        last = int(self.end_P[-1])
        return ENDLESS if last == ENDLESS else int(self.offset_P[-1]) + last - int(self.start_P[-1])

    def pieces(self, offset: int, count: int) -> list[tuple[int, int]]:
        """Where `count` tokens from an offset on lie: first position and tokens of each run."""
        found = []
        piece = int(np.searchsorted(self.offset_P, offset, side="right")) - 1
        while count > 0:
            position = int(self.start_P[piece]) + offset - int(self.offset_P[piece])
            take = min(int(self.end_P[piece]) - position, count)
            found.append((position, take))
            offset, count, piece = offset + take, count - take, piece + 1
        return found

    def ranges(self, begin_R: np.ndarray, end_R: np.ndarray) -> "Tape":
        """The tape that some ranges of offsets cover.

        Args:
            begin_R: int64, rising.
            end_R: int64, the offset after each range; `ENDLESS` reaches to the tape's end.
        """
        if not len(begin_R):
            return Tape.of(begin_R, end_R)
        begin_R, end_R = np.minimum(begin_R, self.length), np.minimum(end_R, self.length)
        cuts = np.unique(np.concatenate([begin_R, end_R, self.offset_P, [self.length]]))
        begin, end = cuts[:-1], cuts[1:]
        of = np.searchsorted(begin_R, begin, side="right") - 1
        inside = (of >= 0) & (begin < end_R[np.maximum(of, 0)])
        begin, end = begin[inside], end[inside]
        piece = np.searchsorted(self.offset_P, begin, side="right") - 1
        start = self.start_P[piece] + begin - self.offset_P[piece]
        return Tape.of(start, np.where(end == ENDLESS, ENDLESS, start + (end - begin)))

    def before(self) -> "Tape":
        """What lies between position 0 and the endless tail and is not on this tape."""
        assert self.length == ENDLESS
        start_P, end_P = np.append(0, self.end_P[:-1]), self.start_P
        holds = start_P < end_P
        return Tape.of(start_P[holds], end_P[holds])


def merged(window_W: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Ranges of offsets that windows cover.

    Args:
        window_W: int64 numbers of windows, rising.
        length: tokens of a window.

    Returns:
        Begins and ends, int64 (R,); neighbours are one range.
    """
    opens = np.diff(window_W, prepend=-2) != 1
    closes = np.append(opens[1:], True) if len(opens) else opens
    return window_W[opens] * length, (window_W[closes] + 1) * length
