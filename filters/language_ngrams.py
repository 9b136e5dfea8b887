"""The second opinion on a language: a fastText model of character n-grams that knows 216 languages.

The one choice that matters: py3langid knows 97 languages and is sure of them; this model knows the rest (Kabyle, Ido,
Lower Sorbian), so the two are multiplied: the n-gram model proposes five languages, py3langid re-weighs them. Source:
`language_ngrams.md` says what the model was trained on, how, and under which licences.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

MODEL = Path(__file__).with_name("language_ngrams.ftz")
PROPOSED = 5
WEIGHT = 0.7
"""Exponent of py3langid's probability in the product."""
OTHERS = 300
"""Languages that py3langid's rest is spread over: each gets (1 - p) / OTHERS when it knows it."""
TEMPERATURE = 1.8
"""Scores are divided by it before they become a confidence: the opinions are not independent."""
LABEL = "__label__"
_NOT_LETTERS = r"[^\pL\pM]+"
_ONE_CHARACTER_WORDS = r"([\p{Han}\p{Hiragana}\p{Katakana}])"


@functools.cache
def load_ngrams() -> tuple[Any, tuple[str, ...]]:
    """Read the bundled model; its ISO 639-3 codes, sorted."""
    import fasttext

    model = fasttext.load_model(str(MODEL))
    return model, tuple(sorted(str(label).removeprefix(LABEL) for label in model.get_labels()))


def letters(texts: pa.Array) -> pa.Array:
    """What the model reads: lower-case letters and marks, words apart, each ideograph a word."""
    texts = pc.replace_substring_regex(texts, _NOT_LETTERS, " ")
    return pc.utf8_trim_whitespace(pc.replace_substring_regex(texts, _ONE_CHARACTER_WORDS, r"\1 "))


def propose(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The five likeliest languages of each text.

    Args:
        texts: string (N,), lower case, NFC.

    Returns:
        index into `load_ngrams()[1]`, int64 (N, 5), -1 where there is no letter; probability, float64 (N, 5).
    """
    model, codes = load_ngrams()
    index_NK = np.full((len(texts), PROPOSED), -1, np.int64)
    share_NK = np.zeros((len(texts), PROPOSED))
    read = letters(texts)
    rows = np.flatnonzero(pc.greater(pc.utf8_length(read), 0).to_numpy(zero_copy_only=False))
    if not len(rows):
        return index_NK, share_NK
    labels, shares = model.predict(read.take(pa.array(rows)).to_pylist(), k=PROPOSED)
    sizes = np.fromiter(map(len, labels), np.int64, len(labels))
    at, rank = np.repeat(rows, sizes), np.concatenate([np.arange(PROPOSED)[:size] for size in sizes])
    flat = pa.array([label for row in labels for label in row])
    known = pa.array([LABEL + code for code in codes])
    index_NK[at, rank] = pc.index_in(flat, value_set=known).to_numpy(zero_copy_only=False)
    share_NK[at, rank] = np.concatenate(shares)
    return index_NK, share_NK


def weigh(index_NK: np.ndarray, share_NK: np.ndarray, bayes_N: np.ndarray, bayes_share_N: np.ndarray,
          covered_L: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Multiply the two opinions.

    Args:
        index_NK: proposed languages, int (N, K), -1: none.
        share_NK: their probabilities.
        bayes_N: what py3langid answers, in the same numbering, -1: nothing.
        bayes_share_N: its probability.
        covered_L: bool, languages that py3langid could have answered.

    Returns:
        best language, int64 (N,), -1: none; its share of the six candidates, float64 (N,).
    """
    same_NK = index_NK == bayes_N[:, None]
    rest_N = 1 - bayes_share_N
    spread_NK = np.where(covered_L[index_NK], rest_N[:, None] / OTHERS, rest_N[:, None])
    other_NK = np.where(same_NK, bayes_share_N[:, None], spread_NK)
    scores_NK = np.log(np.maximum(share_NK, 1e-6)) + WEIGHT * np.log(np.maximum(other_NK, 1e-4))
    scores_NK[index_NK < 0] = -np.inf
    # py3langid's own answer stands as a sixth candidate when the model did not propose it
    sixth_N = np.log(np.clip(share_NK[:, -1] / 2, 1e-6, 1e-3)) + WEIGHT * np.log(np.maximum(bayes_share_N, 1e-4))
    sixth_N[same_NK.any(axis=1) | (bayes_N < 0)] = -np.inf
    scores = np.column_stack([scores_NK, sixth_N])
    candidates = np.column_stack([index_NK, bayes_N])
    at = scores.argmax(axis=1)
    rows = np.arange(len(at))
    top_N = scores[rows, at]
    found_N = np.isfinite(top_N)
    share = np.exp((scores - np.where(found_N, top_N, 0)[:, None]) / TEMPERATURE).sum(axis=1)
    return np.where(found_N, candidates[rows, at], -1), np.divide(1.0, share, out=np.zeros(len(at)), where=found_N)
