"""Perplexity by a KenLM n-gram model over SentencePiece pieces, as cc_net computes it.

A document is normalized into one line, cut into pieces and scored with sentence begin and end; its length is pieces + 1
and exp(sum_nll_nats / scored_tokens) is cc_net's perplexity. Token counts are those of the model's own pieces, so that
these scores never meet a causal model's in one set of quantiles: the policy says `kenlm`.

Source: facts of facebookresearch/cc_net, perplexity.py.
"""

import functools
import importlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from filters.ccnet_text import ccnet_normalize
from filters.score_table import DocumentScores, score_table
from pipelines.errors import DataError, MissingExtra
from pipelines.files import sha256_of

SUFFIXES = (".arpa.bin", ".arpa", ".binary", ".bin")


def pieces_model_of(model: Path) -> Path:
    """The SentencePiece model beside a KenLM file: `en.sp.model` beside `en.arpa.bin`.

    Raises:
        DataError: one of the two is not there.
    """
    if not model.is_file():
        raise DataError(f"{model} is no KenLM file; expected an .arpa or binary file, {model.stem}.sp.model beside it")
    stem = next((model.name[: -len(s)] for s in SUFFIXES if model.name.endswith(s)), model.name)
    pieces = model.with_name(f"{stem}.sp.model")
    if not pieces.is_file():
        raise DataError(
            f"{pieces} is missing: a KenLM model of cc_net comes with the SentencePiece model of its pieces"
        )
    return pieces


def kenlm_digest(model: Path) -> str:
    """Identity of a KenLM model and its pieces."""
    return f"{sha256_of(model)[:32]}+{sha256_of(pieces_model_of(model))[:32]}"


class KenlmScorer:
    """A KenLM model with its pieces.

    Args:
        model: binary or ARPA file; `<stem>.sp.model` lies beside it.

    Raises:
        DataError: a file is missing or is no model.
        MissingExtra: KenLM or SentencePiece is not installed.
    """

    def __init__(self, model: Path) -> None:
        self.model, self.pieces = _load(str(model), str(pieces_model_of(model)))

    def score(self, batch: pa.Table) -> pa.Table:
        """Score the documents of a table with `id` and `text`; rows keep their order."""
        texts = batch["text"].to_pylist()
        lines = [ccnet_normalize(text) for text in texts]
        pieces = self.pieces.encode(lines, out_type=str)
        log10 = [self.model.score(" ".join(row)) if row else math.nan for row in pieces]
        tokens = np.array([len(row) + 1 if row else 0 for row in pieces])
        return score_table(batch, DocumentScores(
            nll_nats_D=-np.array(log10) * math.log(10),
            tokens_D=tokens,
            bytes_D=np.array([len(text.encode()) for text in texts]),
            chars_D=np.array([len(text) for text in texts]),
            windows_D=np.minimum(tokens, 1),
            truncated_D=np.zeros(len(texts), bool),
        ))  # fmt: skip


@functools.lru_cache(maxsize=2)
def _load(model: str, pieces: str) -> tuple[Any, Any]:
    try:
        kenlm, sentencepiece = map(importlib.import_module, ("kenlm", "sentencepiece"))
    except ImportError:
        raise MissingExtra(
            "scorer kenlm needs kenlm and sentencepiece; run `.venv/bin/pip install -e '.[kenlm]'`"
        ) from None
    try:
        return kenlm.Model(model), sentencepiece.SentencePieceProcessor(model_file=pieces)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{model} (with {pieces}) cannot be read: {str(error).splitlines()[0]}") from None
