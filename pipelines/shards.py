"""Shards, and the Blend that the trainer is handed.

A shard is one immutable pair of Megatron files, `<prefix>.bin` and `<prefix>.idx`; a Blend is a mixture resolved to
`(weight, prefix)` pairs, which is all that a trainer ever sees. Weights are shares of *tokens*.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import DataError


@dataclass(frozen=True)
class Shard:
    """One immutable token file.

    Attributes:
        name: domain or split that it holds, `web_en/high`.
        prefix: path without `.bin` / `.idx`.
        documents: sequences in the file, one per document.
        tokens: tokens in the file, end-of-document tokens included.
        size_bytes: bytes of the `.bin`.
        sha256: of the `.bin`.
    """

    name: str
    prefix: Path
    documents: int
    tokens: int
    size_bytes: int
    sha256: str

    @property
    def domain(self) -> str:
        """The name without the number of the part that a large domain was cut into."""
        return re.sub(r"-\d{5}-of-\d{5}$", "", self.name)


@dataclass(frozen=True)
class ShardSet:
    """Shards in a fixed order, with their totals."""

    shards: tuple[Shard, ...]

    @property
    def tokens(self) -> int:
        """Tokens of all shards."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def documents(self) -> int:
        """Documents of all shards."""
        return sum(shard.documents for shard in self.shards)

    @property
    def identity(self) -> list[tuple[str, str]]:
        """What results depend on: names and hashes in order."""
        return [(shard.name, shard.sha256) for shard in self.shards]

    def named(self, name: str) -> Shard:
        """The shard called `name`.

        Raises:
            DataError: there is none; the message lists the names.
        """
        for shard in self.shards:
            if shard.name == name:
                return shard
        raise DataError(f"no shard named {name!r}; there are: {', '.join(s.name for s in self.shards)}")

    def all_named(self, name: str) -> tuple[Shard, ...]:
        """The shard called `name`, or those that it was cut into: `name-00000-of-00003` and so on.

        Raises:
            DataError: there is none; the message lists the names.
        """
        cut = re.compile(re.escape(name) + r"-\d{5}-of-\d{5}")
        return tuple(s for s in self.shards if cut.fullmatch(s.name)) or (self.named(name),)


@dataclass(frozen=True)
class Blend:
    """A mixture resolved to files.

    Attributes:
        parts: `(weight, shard)` pairs in a fixed order; weights are shares of tokens and sum to 1.
    """

    parts: tuple[tuple[float, Shard], ...]

    def __post_init__(self) -> None:
        total = math.fsum(weight for weight, _ in self.parts)
        if not self.parts or abs(total - 1) > 1e-6 or min(weight for weight, _ in self.parts) < 0:
            raise DataError(f"a blend needs non-negative weights that sum to 1; these sum to {total:.6f}")

    @classmethod
    def of(cls, weights: Mapping[str, float], shards: ShardSet) -> "Blend":
        """Resolve domain weights against shards by name; zero weights are left out.

        A domain of several shards draws from each in proportion to its tokens.

        Raises:
            DataError: a domain has no shard, or the weights do not sum to 1.
        """
        parts: list[tuple[float, Shard]] = []
        for name, weight in weights.items():
            if weight > 0:
                own = shards.all_named(name)
                total = sum(shard.tokens for shard in own)
                parts += [(weight * shard.tokens / total if len(own) > 1 else weight, shard) for shard in own]
        return cls(tuple(parts))

    @property
    def identity(self) -> list[tuple[float, str, str]]:
        """What results depend on: weights, names and hashes in order."""
        return [(weight, shard.name, shard.sha256) for weight, shard in self.parts]

    def epochs(self, tokens: int) -> dict[str, float]:
        """How often each shard is repeated when `tokens` are drawn."""
        return {shard.name: weight * tokens / shard.tokens for weight, shard in self.parts}
