"""The samples of one shard: epochs in an order of their own, cut into windows, the windows shuffled.

An epoch is the shard's documents in an order that depends on the seed and the epoch only, never on the mixture: two
mixtures meet a domain's documents in the same order, one only gets further. As long as the length of a sample stays,
stages draw on where the one before them ended; the first epoch is Megatron's `GPTDataset` to the token (one-token
overlap, same shuffles). At another length the rest is cut anew (`tape.py`).

Legend: S sequence length, M documents, W windows of an epoch.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.compiled import kernel
from pipelines.errors import DataError
from pipelines.indexed import IndexedTokens
from pipelines.shards import Shard
from trainer.tape import ENDLESS, Tape, merged

EPOCHS_HELD = 3  # a sample may begin in one epoch and end in the next; shuffling stays within one
RECUT, REPLAYED = 1, 2  # tell the seeds of shuffles apart


@kernel
def _copy_tokens(
    tokens: np.ndarray, start_M: np.ndarray, end_M: np.ndarray, order_M: np.ndarray, at: int,
    out: np.ndarray, document_out: np.ndarray, first_document: int,
) -> None:  # fmt: skip
    """Fill `out` with the tokens of an epoch from position `at` on.

    Args:
        tokens: all tokens of the shard.
        start_M: where each document begins in `tokens`.
        end_M: where each document, in the epoch's order, ends in the epoch.
        order_M: documents in the epoch's order.
        at: position in the epoch.
        out: int64, no longer than what the epoch has left.
        document_out: int64 of the same length: the document's place in the epoch.
        first_document: added to these places.
    """
    place = np.searchsorted(end_M, at, side="right")
    filled = 0
    while filled < len(out):
        take = min(end_M[place] - at, len(out) - filled)
        document = order_M[place]
        before = end_M[place - 1] if place > 0 else 0
        source = start_M[document] + at - before
        for i in range(take):
            out[filled + i] = tokens[source + i]
            document_out[filled + i] = first_document + place
        filled += take
        at += take
        place += 1


@dataclass(frozen=True)
class _Epoch:
    order_M: np.ndarray
    end_M: np.ndarray
    random: Any  # state of the generator after the order was drawn


class ShardReader:
    """Tokens of a shard by position in its endless sequence of epochs.

    Attributes:
        shard: what is read.
        seed: of the orders.
        tokens: in one epoch.

    Raises:
        DataError: the shard is empty, missing or damaged.
    """

    def __init__(self, shard: Shard, seed: int) -> None:
        indexed = IndexedTokens(shard.prefix)
        self.shard, self.seed = shard, seed
        self._tokens = np.asarray(indexed.tokens)
        self._lengths_M = np.asarray(indexed.lengths).astype(np.int64)
        self._start_M = np.asarray(indexed.pointers) // indexed.dtype.itemsize
        self.tokens = int(self._lengths_M.sum())
        if self.tokens == 0:
            raise DataError(f"shard {shard.name} at {shard.prefix} holds no tokens; leave it out of the mixture")
        self._epochs: dict[int, _Epoch] = {}

    def copy(self, position: int, out: np.ndarray, document_out: np.ndarray) -> None:
        """Fill two int64 arrays from a position on: tokens, and a number for each document of each epoch."""
        filled = 0
        while filled < len(out):
            number, within = divmod(position + filled, self.tokens)
            take = min(self.tokens - within, len(out) - filled)
            epoch, end = self.epoch(number), filled + take
            _copy_tokens(
                self._tokens, self._start_M, epoch.end_M, epoch.order_M, within,
                out[filled:end], document_out[filled:end], number * len(self._lengths_M),
            )  # fmt: skip
            filled = end

    def epoch(self, number: int) -> _Epoch:
        """The order of an epoch."""
        if number not in self._epochs:
            random = np.random.RandomState(self.seed if number == 0 else [self.seed, 0, number])
            order_M = np.arange(len(self._lengths_M), dtype=np.int32)
            random.shuffle(order_M)
            while len(self._epochs) >= EPOCHS_HELD:
                del self._epochs[min(self._epochs)]
            self._epochs[number] = _Epoch(order_M, np.cumsum(self._lengths_M[order_M]), random.get_state())
        return self._epochs[number]

    def fill(self, pieces: list[tuple[int, int]], inputs_S: np.ndarray, targets_S: np.ndarray, documents_S: np.ndarray):
        """Fill a sample from runs of positions; the target of a token is what follows it in its epoch.

        Args:
            pieces: first position and tokens of each run.
            inputs_S: int64 (S,), filled.
            targets_S: int64 (S,), filled.
            documents_S: int64 (S,), filled with numbers from 0; a run that does not go on where the one before ended
                begins a new document.
        """
        at, gaps_S = 0, np.zeros(len(inputs_S), bool)
        for position, count in pieces:
            read, documents = np.empty(count + 1, np.int64), np.empty(count + 1, np.int64)
            self.copy(position, read, documents)
            inputs_S[at : at + count], targets_S[at : at + count] = read[:-1], read[1:]
            documents_S[at : at + count] = documents[:-1]
            gaps_S[at] = True
            at += count
        changes_S = gaps_S
        changes_S[1:] |= documents_S[1:] != documents_S[:-1]
        changes_S[0] = False
        np.cumsum(changes_S, out=documents_S)


class ShardStream:
    """What is left of a shard, in samples by number.

    Args:
        reader: of the shard.
        length: tokens that a sample trains on.
        tape: what is left; everything when not given.
        cut: how often the rest was cut anew.
    """

    def __init__(self, reader: ShardReader, length: int, tape: Tape | None = None, cut: int = 0) -> None:
        self.reader, self.length, self.cut = reader, length, cut
        self.tape = tape or Tape.endless()
        tail = int(self.tape.start_P[-1])
        self._first_bound = int(self.tape.offset_P[-1]) + (tail // reader.tokens + 1) * reader.tokens - tail
        self._shuffles: dict[int, np.ndarray] = {}

    def read(self, number: int, inputs_S: np.ndarray, targets_S: np.ndarray, documents_S: np.ndarray) -> None:
        """Fill three int64 (S,) arrays with sample `number`; see `ShardReader.fill`."""
        group = self._group(number)
        window = self._complete(group) + int(self._shuffle(group)[number - self._complete(group)])
        self.reader.fill(self.tape.pieces(window * self.length, self.length), inputs_S, targets_S, documents_S)

    def rest(self, number: int) -> Tape:
        """What is left when `number` samples were drawn."""
        group = self._group(number)
        first, end = self._complete(group), self._complete(group + 1)
        left_W = np.sort(self._shuffle(group)[number - first :]) + first
        begin_R, end_R = merged(left_W, self.length)
        return self.tape.ranges(np.append(begin_R, end * self.length), np.append(end_R, ENDLESS))

    def recut(self, number: int, length: int) -> "ShardStream":
        """The rest after `number` samples in samples of another length."""
        return ShardStream(self.reader, length, self.rest(number), self.cut + 1)

    def _complete(self, groups: int) -> int:
        """Windows that end within the first groups; a group is what an epoch adds, the first one holds what is left."""
        return max(0, (self._first_bound + (groups - 1) * self.reader.tokens - 1) // self.length) if groups else 0

    def _group(self, number: int) -> int:
        """The group in which a window is complete."""
        return max(0, -((self._first_bound - (number + 1) * self.length - 1) // self.reader.tokens))

    def _shuffle(self, group: int) -> np.ndarray:
        if group not in self._shuffles:
            shuffle_W = np.arange(self._complete(group + 1) - self._complete(group), dtype=np.int64)
            if self.cut:
                random = np.random.RandomState([self.reader.seed, RECUT, self.cut, group])
            else:  # goes on where the order of the epoch's documents stopped, as Megatron's does
                random = np.random.RandomState()
                random.set_state(self.reader.epoch(group).random)
            random.shuffle(shuffle_W)
            while len(self._shuffles) >= EPOCHS_HELD:
                del self._shuffles[min(self._shuffles)]
            self._shuffles[group] = shuffle_W
        return self._shuffles[group]


class ReplayStream:
    """What a shard gave to earlier stages, in samples by number; once all were drawn, again in another order.

    Args:
        reader: of the shard.
        length: tokens that a sample trains on.
        tape: what was trained on; not empty.
        key: of the phase that replays; seeds the order.
    """

    def __init__(self, reader: ShardReader, length: int, tape: Tape, key: int) -> None:
        self.reader, self.length, self.tape, self._key = reader, length, tape, key
        self._windows = max(1, tape.length // length)
        self._round, self._shuffle_W = -1, np.zeros(0, np.int64)

    def read(self, number: int, inputs_S: np.ndarray, targets_S: np.ndarray, documents_S: np.ndarray) -> None:
        """Fill three int64 (S,) arrays with sample `number`; see `ShardReader.fill`."""
        turn, within = divmod(number, self._windows)
        if turn != self._round:
            random = np.random.RandomState([self.reader.seed, REPLAYED, self._key, turn])
            self._round, self._shuffle_W = turn, random.permutation(self._windows)
        offset, pieces, missing = int(self._shuffle_W[within]) * self.length, [], self.length
        while missing > 0:  # a tape shorter than a sample is read round and round
            take = min(missing, self.tape.length - offset)
            pieces += self.tape.pieces(offset, take)
            offset, missing = 0, missing - take
        self.reader.fill(pieces, inputs_S, targets_S, documents_S)
