"""Fill in the middle: a document is cut in three and its middle told last (arXiv:2207.14255).

The cut is made in a packed sample, document by document, after the sample was drawn: the order of the data stays that
of the stream, and what three more tokens per document push over the end of the sample is lost, as in Megatron's
`GPTFIMDataset`. The last token of a document that ends within the sample stays where it is: it says that it ends.

Legend: T positions of a sample and the token after them.
"""

from collections.abc import Callable
from typing import Annotated

import numpy as np
from pydantic import Field

from pipelines.errors import RecipeError
from pipelines.recipe import Section

Token = Annotated[int, Field(ge=0)] | str
SHORTEST = 4  # tokens of a document that is worth three parts


class FillInMiddle(Section):
    """How often, and with which tokens.

    Attributes:
        share: of the documents in a sample that are cut.
        suffix_first: of those, the share told as suffix, prefix, middle (SPM) instead of prefix, suffix, middle (PSM).
        prefix: token before the prefix: its id, or its name in the tokenizer.
        suffix: token before the suffix.
        middle: token before the middle.
        domains: names of the domains that are cut, those of code as a rule; all when empty.
    """

    share: float = Field(default=0.5, gt=0, le=1)
    suffix_first: float = Field(default=0.5, ge=0, le=1)
    prefix: Token = "<|fim_prefix|>"
    suffix: Token = "<|fim_suffix|>"
    middle: Token = "<|fim_middle|>"
    domains: tuple[str, ...] = ()

    def with_ids(self, id_of: Callable[[str], int | None]) -> "FillInMiddle":
        """The same with ids for names.

        Args:
            id_of: gives a token's id, or None.

        Raises:
            RecipeError: a name has no id.
        """
        ids: dict[str, int] = {}
        for field in ("prefix", "suffix", "middle"):
            name = getattr(self, field)
            found = id_of(name) if isinstance(name, str) else name
            if found is None:
                raise RecipeError(
                    f"fill_in_middle: the tokenizer has no token {name!r}; give {field} another, or its id"
                )
            ids[field] = found
        return self.model_copy(update=ids)

    def token_ids(self) -> tuple[int, int, int]:
        """Ids of prefix, suffix and middle.

        Raises:
            RecipeError: one is a name still; a tokenizer knows its id.
        """
        ids = []
        for name in (self.prefix, self.suffix, self.middle):
            if isinstance(name, str):
                raise RecipeError(f"fill_in_middle: {name!r} is the name of a token; give its id, or a tokenizer")
            ids.append(name)
        return ids[0], ids[1], ids[2]


def cut_sample(
    tokens_T: np.ndarray, documents_T: np.ndarray, settings: FillInMiddle, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Cut some documents of a sample.

    Args:
        tokens_T: int64 (T,).
        documents_T: int64 (T,): the document of each, counted from 0.
        settings: how.
        random: of this sample alone.

    Returns:
        Tokens and documents of the same length; what does not fit any more is left out at the end.
    """
    prefix, suffix, middle = settings.token_ids()
    bounds = np.flatnonzero(np.diff(documents_T)) + 1
    pieces: list[np.ndarray] = []
    for begin, end in zip([0, *bounds.tolist()], [*bounds.tolist(), len(tokens_T)], strict=True):
        body, last = (tokens_T[begin:end], tokens_T[end:end])
        if end < len(tokens_T):
            body, last = tokens_T[begin : end - 1], tokens_T[end - 1 : end]
        # three draws for every document, cut or not: what one document does moves no other's numbers
        chance, order = random.random(2)
        first, second = np.sort(random.integers(0, len(body) + 1, 2))
        if chance >= settings.share or len(body) < SHORTEST:
            pieces.append(tokens_T[begin:end])
            continue
        a, b, c = body[:first], body[first:second], body[second:]
        told = ([prefix, suffix], c, [middle], a, b) if order < settings.suffix_first else (
            [prefix], a, [suffix], c, [middle], b
        )  # fmt: skip
        pieces.append(np.concatenate([*(np.asarray(part, np.int64) for part in told), last]))
    lengths = [len(piece) for piece in pieces]
    return np.concatenate(pieces)[: len(tokens_T)], np.repeat(np.arange(len(pieces)), lengths)[: len(tokens_T)]
