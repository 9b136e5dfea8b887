"""Likelihood of documents after a context, and of the same tokens alone: what a context tells a model of a document.

Context and document are tokenized apart, so that the document's tokens are the same in both; by the chain rule
-log p(document | context) is the sum over both less that over the context. Any backend of perplexity will do
(`filters/perplexity.py`), since each only sums windows. A document longer than what the window leaves is cut, in both.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from filters.perplexity import PerplexitySettings, policy_of
from filters.scorer_causal import Windows, open_tokenizer, open_transformers

LEAST_SHARE = 0.5  # of the window that the document keeps; a context that leaves less is cut at its start


class Given(NamedTuple):
    """Sums over the same tokens of a document.

    Attributes:
        alone_nats: -log p(document).
        given_nats: -log p(document | context).
        tokens: of the document that were scored.
        bytes: UTF-8 bytes of those.
        cut: whether the beginning of the context was left out, for want of room.
    """

    alone_nats: float
    given_nats: float
    tokens: int
    bytes: int
    cut: bool = False


class ConditionalScorer:
    """A language model that scores documents after contexts.

    Args:
        model: folder in Hugging Face format.
        settings: scorer, window, prefix and dtype; `long_documents` has no meaning here.

    Raises:
        DataError: the model is incomplete or its tokenizer lacks the prefix token.
        MissingExtra: the scorer is not installed.
    """

    def __init__(self, model: Path, settings: PerplexitySettings) -> None:
        self.model, self.settings = model, settings
        self.policy: Mapping[str, Any] = {**policy_of(model, settings), "conditional": 1}
        self.loaded: tuple[Any, Any] | None = None

    def score(self, contexts: Sequence[str], documents: Sequence[str]) -> list[Given | None]:
        """Score pairs.

        Args:
            contexts: what stands before each document.
            documents: as many.

        Returns:
            Sums of each; None where no token of the document could be scored.
        """
        if not documents:
            return []
        self.loaded = self.loaded or self._load()
        tokenizer, windows_nll_N = self.loaded
        return given_of(contexts, documents, tokenizer, windows_nll_N, self.policy)

    def close(self) -> None:
        """Free the weights."""
        self.loaded = None

    def _load(self) -> tuple[Any, Any]:
        tokenizer = open_tokenizer(str(self.model)).backend_tokenizer
        tokenizer.encode_special_tokens = True  # control tokens in texts are read as the text that they are
        if self.settings.scorer == "vllm":
            from filters import nll_vllm

            engine = nll_vllm.open_vllm(
                str(self.model), self.settings.dtype, self.policy["max_tokens"], self.settings.batch_tokens,
                self.policy["model"],
            )  # fmt: skip
            return tokenizer, functools.partial(nll_vllm.windows_nll_N, engine)
        return tokenizer, functools.partial(_by_transformers, str(self.model), self.settings, self.policy["model"])


def given_of(
    contexts: Sequence[str], documents: Sequence[str], tokenizer: Any, windows_nll_N: Any, policy: Mapping[str, Any]
) -> list[Given | None]:
    """Score pairs with a tokenizer and a backend.

    Args:
        contexts: what stands before each document.
        documents: as many.
        tokenizer: of the `tokenizers` library.
        windows_nll_N: maps windows (first token context, the rest scored) to float64 (N,) sums in nats.
        policy: `prefix_id` and `max_tokens` of it are used.
    """
    room, prefix = policy["max_tokens"], policy["prefix_id"]
    befores = tokenizer.encode_batch(list(contexts), add_special_tokens=False)
    texts = tokenizer.encode_batch(list(documents), add_special_tokens=False)
    head = [] if prefix is None else [prefix]
    windows: list[Sequence[int]] = []
    plans: list[tuple[int, int, bool] | None] = []
    for before, text, document in zip(befores, texts, documents, strict=True):
        context = before.ids[-int(room * (1 - LEAST_SHARE)) :]
        ids = text.ids[: room + 1 - len(context) - len(head)]
        first = 0 if head else 1  # without a prefix nothing stands before the document's first token when it is alone
        if len(ids) <= first or not context:
            plans.append(None)
            continue
        end = len(document) if len(ids) == len(text.ids) else text.offsets[len(ids)][0]
        start = text.offsets[first][0]
        plans.append((len(ids) - first, len(document[start:end].encode()), len(context) < len(before.ids)))
        alone, joined = [*head, *ids], [*head, *context, *ids]
        known = joined[: len(joined) - len(ids) + first]
        windows += [alone, joined, known]
    return _collect(plans, windows, windows_nll_N)


def _collect(
    plans: Sequence[tuple[int, int, bool] | None], windows: Sequence[Sequence[int]], windows_nll_N: Any
) -> list[Given | None]:
    sums = iter(windows_nll_N(windows).tolist() if windows else [])
    results: list[Given | None] = []
    for plan in plans:
        if plan is None:
            results.append(None)
            continue
        alone, joined, known = next(sums), next(sums), next(sums)
        results.append(Given(alone, joined - known, *plan) if np.isfinite([alone, joined, known]).all() else None)
    return results


def _by_transformers(model: str, settings: PerplexitySettings, digest: str, windows: Windows) -> np.ndarray:
    import torch

    from filters import nll

    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads)  # float sums depend on it
    try:
        loaded = open_transformers(model, settings.dtype, settings.device, digest)
        return nll.windows_nll_N(loaded, windows, settings.batch_tokens)
    finally:
        torch.set_num_threads(before)
