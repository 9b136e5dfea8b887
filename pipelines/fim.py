"""Fill in the middle: a document told as prefix, suffix, middle, so that a model learns to write between two pieces.

Bavarian et al. 2022 (arXiv:2207.14255): cut at two characters drawn evenly, at a rate of one half, half of those with
the suffix first. Whole documents only: one that is cut to a length stays as it is. All draws are hashes of (seed, id).
"""

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import Field
from tokenizers import AddedToken

from pipelines.errors import DataError, RecipeError
from pipelines.recipe import Section
from pipelines.sample import hash_ids
from pipelines.tokenizer import Tokenizer

PSM, SPM = "psm", "spm"


class FimSettings(Section):
    """Which documents are told with their middle last.

    Attributes:
        rate: share of the documents of `domains`.
        spm_rate: share of those that begin with the suffix: `<prefix><suffix>` suffix `<middle>` prefix middle; the
            others are `<prefix>` prefix `<suffix>` suffix `<middle>` middle.
        domains: patterns of domains; `code*` takes `code`, `code/high` and `code_python`.
        tokens: the three special tokens: prefix, middle, suffix.
    """

    rate: float = Field(default=0.5, ge=0, le=1)
    spm_rate: float = Field(default=0.5, ge=0, le=1)
    domains: tuple[str, ...] = ("code*",)
    tokens: tuple[str, str, str] = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")


class Segments(NamedTuple):
    """Chosen documents in three segments each, in the order in which they are told.

    Attributes:
        rows: int64 (R,), documents of the batch.
        modes: `psm` or `spm` of each.
        texts: 3 for each document.
        leads: int32 (3 R, 2), ids of the special tokens before each segment, -1 for none.
    """

    rows: np.ndarray
    modes: list[str]
    texts: list[str]
    leads: np.ndarray


def make_special(tokenizer: Tokenizer, names: Sequence[str]) -> list[int]:
    """Find tokens, and make them special, so that no text can produce them.

    Returns:
        Their ids.

    Raises:
        RecipeError: the tokenizer lacks some; the message names them.
    """
    ids = [tokenizer.backend.token_to_id(name) for name in names]
    if missing := [name for name, found in zip(names, ids, strict=True) if found is None]:
        raise RecipeError(
            f"fill in the middle needs {', '.join(missing)}, which the tokenizer does not have; name its own in "
            "fim.tokens (prefix, middle, suffix), or leave fim out"
        )
    tokenizer.backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return [int(found) for found in ids if found is not None]


class FillInTheMiddle:
    """Cuts documents for a tokenizer.

    Args:
        settings: which, and how often.
        seed: decides which, and where.
        tokenizer: one that `make_special` has seen.
    """

    def __init__(self, settings: FimSettings, seed: int, tokenizer: Tokenizer) -> None:
        self.settings = settings
        self.seed = seed
        self.prefix, self.middle, self.suffix = make_special(tokenizer, settings.tokens)

    def segments(self, ids: pa.Array | pa.ChunkedArray, texts: pa.ChunkedArray, domains: Sequence[str]) -> Segments:
        """Choose and cut.

        Args:
            ids: of the documents, strings.
            texts: without nulls.
            domains: of each document.
        """
        right = {name: any(fnmatchcase(name, p) for p in self.settings.domains) for name in set(domains)}
        drawn = _drawn(hash_ids(ids, f"{self.seed}/fim"), self.settings.rate)
        rows = np.flatnonzero(np.array([right[name] for name in domains], bool) & drawn)
        taken = ids.take(pa.array(rows))
        spm = _drawn(hash_ids(taken, f"{self.seed}/fim/mode"), self.settings.spm_rate)
        cuts = [hash_ids(taken, f"{self.seed}/fim/{which}").tolist() for which in ("first", "second")]
        found: list[str] = []
        for text, one, two, suffix_first in zip(texts.take(pa.array(rows)).to_pylist(), *cuts, spm, strict=True):
            first, last = sorted((one % (len(text) + 1), two % (len(text) + 1)))
            prefix, middle, suffix = text[:first], text[first:last], text[last:]
            found += [suffix, prefix, middle] if suffix_first else [prefix, suffix, middle]
        p, m, s = self.prefix, self.middle, self.suffix
        by_mode = np.array([[[p, -1], [s, -1], [m, -1]], [[p, s], [m, -1], [-1, -1]]], np.int32)
        leads = by_mode[spm.astype(int)].reshape(-1, 2)
        return Segments(rows, [SPM if first else PSM for first in spm], found, leads)

    def restore(self, ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> str:
        """The document that was told so, its end token left out: the inverse.

        Args:
            ids: as written to a shard, without the end of text.
            decode: ids to text.

        Raises:
            DataError: the special tokens do not stand in one of the two orders.
        """
        marks = [(at, i) for at, i in enumerate(ids) if i in (self.prefix, self.middle, self.suffix)]
        order = [i for _, i in marks]
        if not order:
            return decode(ids)
        if order != [self.prefix, self.suffix, self.middle] or marks[0][0] != 0:
            raise DataError(f"these ids are not a document with its middle last: special tokens at {marks}")
        (_, _), (at_suffix, _), (at_middle, _) = marks
        suffix, rest = decode(ids[at_suffix + 1 : at_middle]), decode(ids[at_middle + 1 :])
        if at_suffix == 1:  # suffix first: what follows is prefix and middle in their order
            return rest + suffix
        return decode(ids[1:at_suffix]) + rest + suffix


def _drawn(hash_D: np.ndarray, rate: float) -> np.ndarray:
    """Bool (D,): a share `rate` of the hashes; all of them at 1."""
    return (hash_D >> np.uint64(1)) < np.uint64(int(rate * 2**63))
