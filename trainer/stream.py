"""Samples of a blend by number: sample k of a stage is a pure function of (seed, stage, k), so resuming is a number.

Each domain is an endless sequence of epochs; an epoch is the domain's documents in an order that depends on the seed
and the epoch only, never on the mixture: two mixtures meet a domain's documents in the same order, one only gets
further. The first epoch of the first stage is Megatron's `GPTDataset` to the token (one-token overlap, same shuffles),
and domains are interleaved by Megatron's greedy rule (`build_blending_indices`). A later stage draws in an order of
its own: documents may return in it before every other was seen once.

Legend: B samples of a batch, S sequence length, N samples of a stage, P parts of the blend, M documents.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.compiled import kernel
from pipelines.errors import DataError
from pipelines.indexed import IndexedTokens
from pipelines.shards import Blend, Shard
from trainer.recipe import StageSettings

EPOCHS_HELD = 3  # a sample may begin in one epoch and end in the next; shuffling stays within one
CAP_TOLERANCE = 1.01  # whole batches and samples round a share up


@kernel
def greedy_blend(weights_P: np.ndarray, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Interleave parts so that after every sample each part's count is as near to its share as can be.

    Args:
        weights_P: float64 shares that sum to 1.
        samples: how many to draw.

    Returns:
        int16 (samples,): the part of each; int64 (samples,): its number within that part.
    """
    part_N = np.empty(samples, dtype=np.int16)
    number_N = np.empty(samples, dtype=np.int64)
    counts_P = np.zeros(len(weights_P), dtype=np.int64)
    for t in range(samples):
        scale = max(float(t), 1.0)
        best, best_lag = 0, weights_P[0] * scale - counts_P[0]
        for p in range(1, len(weights_P)):
            lag = weights_P[p] * scale - counts_P[p]
            if lag > best_lag:  # strictly: the first of equals wins
                best, best_lag = p, lag
        part_N[t], number_N[t] = best, counts_P[best]
        counts_P[best] += 1
    return part_N, number_N


@kernel
def _copy_tokens(
    tokens: np.ndarray, start_M: np.ndarray, end_M: np.ndarray, order_M: np.ndarray, at: int, out: np.ndarray
) -> None:
    """Fill `out` with the tokens of an epoch from position `at` on.

    Args:
        tokens: all tokens of the shard.
        start_M: where each document begins in `tokens`.
        end_M: where each document, in the epoch's order, ends in the epoch.
        order_M: documents in the epoch's order.
        at: position in the epoch.
        out: int64, no longer than what the epoch has left.
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
        filled += take
        at += take
        place += 1


@dataclass(frozen=True)
class _Epoch:
    order_M: np.ndarray
    end_M: np.ndarray
    shuffle: np.ndarray


class ShardStream:
    """The endless stream of one shard in samples of `sequence_length + 1` tokens, one token shared by neighbours.

    Args:
        shard: what to read.
        key: seeds the orders; `(seed, stage)`.
        sequence_length: tokens that a sample trains on.

    Raises:
        DataError: the shard is empty.
    """

    def __init__(self, shard: Shard, key: tuple[int, int], sequence_length: int) -> None:
        indexed = IndexedTokens(shard.prefix)
        self.shard = shard
        self._key = key
        self._length = sequence_length
        self._tokens = np.asarray(indexed.tokens)
        self._lengths_M = np.asarray(indexed.lengths).astype(np.int64)
        self._start_M = np.asarray(indexed.pointers) // indexed.dtype.itemsize
        self.tokens = int(self._lengths_M.sum())
        if self.tokens == 0:
            raise DataError(f"shard {shard.name} at {shard.prefix} holds no tokens; leave it out of the mixture")
        self._epochs: dict[int, _Epoch] = {}

    def read(self, number: int, out: np.ndarray) -> None:
        """Fill `out`, int64 (S + 1,), with sample `number`."""
        epoch = -(-((number + 1) * self._length + 1) // self.tokens) - 1  # in which the sample is complete
        first = self._complete(epoch)
        at = (first + int(self._epoch(epoch).shuffle[number - first])) * self._length
        filled = 0
        while filled < len(out):
            epoch, within = divmod(at + filled, self.tokens)
            take = min(self.tokens - within, len(out) - filled)
            held = self._epoch(epoch)
            _copy_tokens(
                self._tokens, self._start_M, held.end_M, held.order_M, within, out[filled : filled + take]
            )  # fmt: skip
            filled += take

    def _complete(self, epochs: int) -> int:
        """Samples that end within the first `epochs` epochs."""
        return max(0, (epochs * self.tokens - 1) // self._length)

    def _epoch(self, epoch: int) -> _Epoch:
        if epoch not in self._epochs:
            seed, stage = self._key
            random = np.random.RandomState(seed if stage == epoch == 0 else [seed, stage, epoch])
            order_M = np.arange(len(self._lengths_M), dtype=np.int32)
            random.shuffle(order_M)
            shuffle = np.arange(self._complete(epoch + 1) - self._complete(epoch), dtype=np.int64)
            random.shuffle(shuffle)
            while len(self._epochs) >= EPOCHS_HELD:
                del self._epochs[min(self._epochs)]
            self._epochs[epoch] = _Epoch(order_M, np.cumsum(self._lengths_M[order_M]), shuffle)
        return self._epochs[epoch]


class BlendStream:
    """The samples of one stage.

    Args:
        blend: where they come from.
        seed: of the orders.
        stage: number of the stage, from 0.
        sequence_length: tokens that a sample trains on.
        samples: how many the stage needs.

    Raises:
        DataError: a shard is missing, damaged or empty.
    """

    def __init__(self, blend: Blend, seed: int, stage: int, sequence_length: int, samples: int) -> None:
        parts = [(weight, shard) for weight, shard in blend.parts if weight > 0]
        weights_P = np.array([weight for weight, _ in parts])
        self.samples = samples
        self._length = sequence_length
        self._streams = [ShardStream(shard, (seed, stage), sequence_length) for _, shard in parts]
        self._part_N, self._number_N = greedy_blend(weights_P / weights_P.sum(), samples)

    def batch(self, first: int, count: int) -> np.ndarray:
        """Samples `first` to `first + count - 1`, int64 (count, S + 1)."""
        out_BS = np.empty((count, self._length + 1), dtype=np.int64)
        for row in range(count):
            stream = self._streams[self._part_N[first + row]]
            stream.read(int(self._number_N[first + row]), out_BS[row])
        return out_BS

    def ledger(self) -> dict[str, dict[str, float]]:
        """Tokens drawn from each domain in the whole stage, and how many passes over it they are."""
        drawn_P = np.bincount(self._part_N, minlength=len(self._streams)) * self._length
        return {
            stream.shard.name: {"tokens": int(drawn), "epochs": round(int(drawn) / stream.tokens, 6)}
            for stream, drawn in zip(self._streams, drawn_P, strict=True)
        }


def check_epochs(stages: Sequence[StageSettings], blends: Sequence[Blend], cap: float | None) -> None:
    """Refuse a plan that passes over a domain more often than allowed.

    Args:
        stages: of the recipe.
        blends: of each stage.
        cap: most passes, all stages together; None allows any number.

    Raises:
        DataError: names the worst domain, its passes and the cap.
    """
    passes: dict[str, float] = {}
    for stage, blend in zip(stages, blends, strict=True):
        for name, epochs in blend.epochs(stage.steps * stage.batch_tokens).items():
            passes[name] = passes.get(name, 0.0) + epochs
    worst = max(passes, key=lambda name: passes[name])
    if cap is not None and passes[worst] > cap * CAP_TOLERANCE:
        raise DataError(
            f"domain {worst} would be passed over {passes[worst]:.2f} times, the cap is {cap:g}: "
            "lower its weight or the tokens, or raise epoch_cap"
        )


def blends_of_stages(stages: Sequence[StageSettings], blends: Mapping[str, Blend] | Blend) -> list[Blend]:
    """The blend of each stage.

    Raises:
        DataError: a stage names a blend that was not given, or names none though several were.
    """
    if isinstance(blends, Blend):
        return [blends] * len(stages)
    found = []
    for stage in stages:
        name = next(iter(blends)) if stage.blend is None and len(blends) == 1 else stage.blend
        if name is None or name not in blends:
            there = ", ".join(sorted(blends))
            raise DataError(f"stage {stage.name} draws from blend {name!r}; there are: {there}")
        found.append(blends[name])
    return found
