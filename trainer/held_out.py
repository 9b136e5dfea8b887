"""Held-out text as tokens with its size in bytes: what bits per byte are measured on.

It comes from documents, which are tokenized here, or from validation shards with their sidecars, where that is done;
both give the same tokens. Documents are taken in the order of a hash of their ids, so that a part of them is a sample.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from pipelines.document import conform
from pipelines.errors import DataError
from pipelines.indexed import IndexedTokens, load_shards, origin_path
from trainer.likelihood import Scorer

ENCODED_AT_ONCE = 256  # documents tokenized before the token budget is looked at again


@dataclass(frozen=True)
class HeldOut:
    """One document.

    Attributes:
        id: of the document.
        tokens: without an end-of-text token.
        size_bytes: UTF-8 bytes of the text that the tokens encode.
    """

    id: str
    tokens: Sequence[int]
    size_bytes: int


@dataclass(frozen=True)
class Documents:
    """Held-out Parquet documents; a longer one counts up to `chars` characters."""

    files: tuple[Path, ...]
    chars: int

    def read(self, scorer: Scorer) -> Iterator[HeldOut]:
        """Tokenize them, in hashed order.

        Raises:
            DataError: a file is unreadable.
        """
        tables = [conform(_read(file, ["id", "text"]), file=file).select(["id", "text"]) for file in self.files]
        table = pa.concat_tables(tables)
        ids = table["id"].to_pylist()
        order = _hashed_order(ids)
        for first in range(0, len(order), ENCODED_AT_ONCE):
            chosen = order[first : first + ENCODED_AT_ONCE]
            texts = [text[: self.chars] for text in table["text"].take(pa.array(chosen)).to_pylist()]
            for row, text, tokens in zip(chosen, texts, scorer.encode_all(texts), strict=True):
                yield HeldOut(ids[row], tokens, len(text.encode()))


@dataclass(frozen=True)
class TokenShard:
    """A held-out shard at `prefix`, one document per sequence, sizes in its sidecar."""

    prefix: Path

    def read(self, scorer: Scorer) -> Iterator[HeldOut]:
        """Read it, in hashed order, the end-of-text token of each document left out.

        Raises:
            DataError: shard or sidecar is unreadable, or its tokens are not those of this model.
        """
        shard = IndexedTokens(self.prefix)
        sidecar = _read(origin_path(self.prefix), ["id", "bytes"])
        if len(sidecar) != len(shard):
            raise DataError(f"{self.prefix}: {len(shard)} sequences, but its sidecar describes {len(sidecar)}")
        if len(shard.tokens) and (found := int(shard.tokens.max())) >= scorer.vocab_size:
            raise DataError(
                f"{self.prefix} has token {found}, the model only {scorer.vocab_size}; it needs its own tokenizer"
            )
        ids, sizes = sidecar["id"].to_pylist(), sidecar["bytes"].to_pylist()
        for row in _hashed_order(ids):
            tokens_T = np.asarray(shard[row])
            if len(tokens_T) and tokens_T[-1] == scorer.eos_id:
                tokens_T = tokens_T[:-1]
            yield HeldOut(ids[row], tokens_T.tolist(), sizes[row])


def held_out(validation: Path | Mapping[str, Sequence[Path]], chars: int) -> dict[str, Documents | TokenShard]:
    """The held-out text of each domain.

    Args:
        validation: a folder of shards, whose names are the domains, or domain -> Parquet documents.
        chars: characters of a document that count.

    Raises:
        DataError: the folder has no shard.
    """
    if isinstance(validation, Path):
        return {shard.name: TokenShard(shard.prefix) for shard in load_shards(validation).shards}
    return {domain: Documents(tuple(files), chars) for domain, files in validation.items() if files}


def _hashed_order(ids: Sequence[str]) -> list[int]:
    return sorted(range(len(ids)), key=lambda row: (xxhash.xxh3_64_intdigest(ids[row].encode()), ids[row], row))


def _read(file: Path, columns: list[str]) -> pa.Table:
    try:
        return pq.read_table(file, columns=columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{file} is not readable Parquet with {' and '.join(columns)}: {error}") from None
