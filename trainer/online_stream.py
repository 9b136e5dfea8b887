"""Samples of domains whose weights change between steps, in a state of a few numbers.

The order within a domain is that of `stream.py`: the k-th sample drawn from a domain is the same one whatever the
weights were, so what differs between two methods is only how far each domain has got. Which domain comes next follows
the greedy rule with the sum of all weights so far in place of `weight * samples`: drawn shares stay within a sample of
requested ones, however the weights moved. The state is two counts for each part, which a checkpoint holds.

Legend: B samples of a batch, S sequence length, D domains, P parts (shards; a domain may be cut into several).
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from pipelines.shards import Blend, ShardSet
from trainer.shard_stream import ShardReader, ShardStream


class OnlineStream:
    """The samples of a run whose mixture moves.

    Args:
        shards: where they come from.
        domains: names, in the order of the weights.
        seed: of the orders within domains.
        sequence_length: tokens that a sample trains on.

    Raises:
        DataError: a domain has no shard, or one is damaged or empty.
    """

    def __init__(self, shards: ShardSet, domains: Sequence[str], seed: int, sequence_length: int) -> None:
        parts = [(place, part) for place, name in enumerate(domains) for part in Blend.of({name: 1.0}, shards).parts]
        self.domains = tuple(domains)
        self._length = sequence_length
        self._domain_P = np.array([place for place, _ in parts])
        self._share_P = np.array([share for _, (share, _) in parts])
        self._streams = [ShardStream(ShardReader(shard, seed), sequence_length) for _, (_, shard) in parts]
        self._requested_P = np.zeros(len(parts))
        self._drawn_P = np.zeros(len(parts), np.int64)

    def draw(self, weights_D: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The next samples under some weights.

        Returns:
            int64 (count, S + 1), and the domain of each, int64 (count,).
        """
        weights_P = weights_D[self._domain_P] * self._share_P
        out_BS = np.empty((count, self._length + 1), np.int64)
        domain_B = np.empty(count, np.int64)
        last_S, documents_S = np.empty((2, self._length), np.int64)
        for row in range(count):
            wanted_P = self._requested_P if self._drawn_P.any() else weights_P  # Megatron's rule for the very first
            part = int(np.argmax(np.where(weights_P > 0, wanted_P - self._drawn_P, -np.inf)))
            self._streams[part].read(int(self._drawn_P[part]), out_BS[row, :-1], last_S, documents_S)
            out_BS[row, -1] = last_S[-1]
            domain_B[row] = self._domain_P[part]
            self._drawn_P[part] += 1
            self._requested_P = self._requested_P + weights_P
        return out_BS, domain_B

    def drawn_D(self) -> np.ndarray:
        """Samples drawn from each domain so far, int64 (D,)."""
        return np.bincount(self._domain_P, self._drawn_P, len(self.domains)).astype(np.int64)

    def ledger(self) -> dict[str, dict[str, float]]:
        """For each domain: share of the tokens requested and drawn so far, tokens, passes over it."""
        samples = max(1, int(self._drawn_P.sum()))
        held_D = np.bincount(self._domain_P, [stream.reader.tokens for stream in self._streams])
        requested_D = np.bincount(self._domain_P, self._requested_P) / samples
        return {
            name: {"requested": round(float(requested), 6), "achieved": round(float(drawn / samples), 6),
                   "tokens": int(drawn) * self._length, "epochs": round(float(drawn * self._length / held), 6)}
            for name, requested, drawn, held in zip(self.domains, requested_D, self.drawn_D(), held_D, strict=True)
        }  # fmt: skip

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold."""
        return {"stream.requested": torch.from_numpy(self._requested_P.copy()),
                "stream.drawn": torch.from_numpy(self._drawn_P.copy())}  # fmt: skip

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave."""
        self._requested_P = tensors["stream.requested"].numpy().copy()
        self._drawn_P = tensors["stream.drawn"].numpy().copy()
