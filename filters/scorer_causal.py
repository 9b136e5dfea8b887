"""Perplexity by a causal language model: a document's tokens, cut into windows, summed over what a backend returns.

Tokens, windows, bytes and what counts as scored are decided here, once for every backend: transformers in this process
(`filters/nll.py`) and vLLM (`filters/nll_vllm.py`) only map windows to sums. Prefix and windows follow
lm-evaluation-harness.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from filters.score_table import DocumentScores, score_table
from pipelines.errors import DataError

READ_CHARS_PER_TOKEN = 64  # of a first window; a line of 50 MB, tokenized whole, takes minutes and gigabytes
Windows = Sequence[Sequence[int]]


class CausalScorer:
    """A tokenizer and a backend.

    Args:
        windows_nll_N: maps windows (first token context, the rest scored) to float64 (N,) sums in nats.
        tokenizer: of the `tokenizers` library; control tokens in documents are read as the text that they are.
        prefix: token id before each document, or None.
        max_tokens: the window, at most what the model takes.
        whole: score every window of a document, not the first alone.
    """

    def __init__(
        self, windows_nll_N: Callable[[Windows], np.ndarray], tokenizer: Any, prefix: int | None, max_tokens: int,
        whole: bool,
    ) -> None:  # fmt: skip
        self.windows_nll_N, self.tokenizer, self.prefix = windows_nll_N, tokenizer, prefix
        self.max_tokens, self.whole = max_tokens, whole
        tokenizer.encode_special_tokens = True

    def score(self, batch: pa.Table) -> pa.Table:
        """Score the documents of a table with `id` and `text`; rows keep their order."""
        from filters.nll import windows_of

        read = None if self.whole else READ_CHARS_PER_TOKEN * self.max_tokens
        documents = batch["text"].to_pylist()
        texts = [text[:read] for text in documents]
        encodings = self.tokenizer.encode_batch(texts, add_special_tokens=False)
        windows, owners, rows = [], [], []
        for number, (document, text, encoding) in enumerate(zip(documents, texts, encodings, strict=True)):
            ids = encoding.ids
            mine = windows_of(ids, self.prefix, self.max_tokens, self.whole) if len(ids) > 1 else []
            windows += mine
            owners += [number] * len(mine)
            scored, size, chars, cut = _measure(
                text, encoding, sum(len(window) - 1 for window in mine), self.prefix is not None
            )
            rows.append((scored, size, chars, len(mine), cut or (scored > 0 and len(text) < len(document))))
        sums_N = self.windows_nll_N(windows)
        nll_D = np.bincount(owners, weights=sums_N, minlength=len(texts)) if owners else np.zeros(len(texts))
        tokens, sizes, chars, passes, truncated = (np.array(column) for column in zip(*rows, strict=True))
        return score_table(batch, DocumentScores(nll_D, tokens, sizes, chars, passes, truncated))


def _measure(text: str, encoding: Any, scored: int, prefixed: bool) -> tuple[int, int, int, bool]:
    """Scored tokens, bytes and characters of the scored part, and whether the end was left out."""
    possible = len(encoding.ids) if prefixed else len(encoding.ids) - 1
    if not scored:
        return 0, 0, 0, False
    first = 0 if prefixed else encoding.offsets[0][1]
    last = len(text) if scored == possible else encoding.offsets[scored - prefixed][1]
    part = text[first:last]
    return scored, len(part.encode()), len(part), scored < possible


def prefix_id(tokenizer: Any, prefix: str, model: Path) -> int | None:
    """Token id of the prefix.

    Raises:
        DataError: the tokenizer has no such token.
    """
    if prefix == "none":
        return None
    named = {"eos": tokenizer.eos_token_id, "bos": tokenizer.bos_token_id}
    found = named[prefix] if prefix in named else tokenizer.get_vocab().get(prefix)
    if found is None:
        raise DataError(f"{model}: the tokenizer has no {prefix} token; use prefix: none, or name one in its config")
    return found


def open_tokenizer(model: str) -> Any:
    """The tokenizer of a model folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model, local_files_only=True)


@functools.lru_cache(maxsize=1)
def open_transformers(model: str, dtype: str, device: str, digest: str) -> Any:
    """Load a model; the digest tells two models apart that stood at one path."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    if device == "cuda" and not torch.cuda.is_available():
        where = "--set device=cpu, or grounding.device=cpu for synthesis"
        raise DataError(f"there is no CUDA device on this machine; {where}, scores on the processor")
    logging.disable_progress_bar()  # weights load in silence: progress is Loam's to show
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        model, local_files_only=True, use_safetensors=True, dtype=getattr(torch, dtype)
    )
    return loaded.to(device).eval()
