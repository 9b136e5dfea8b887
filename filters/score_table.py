"""What every perplexity scorer returns: sums per document, from which all else follows.

A document that cannot be scored (empty, or one token without a prefix) has a null sum, not a large number that would
spoil the quantiles. Files of scores carry the hash of their policy, since numbers of two must never meet.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

POLICY_KEY = b"loam.policy"
SCORES_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        ("sum_nll_nats", pa.float64()),  # null: unscored
        ("scored_tokens", pa.int64()),
        ("bytes", pa.int64()),  # UTF-8 bytes of the scored part
        ("chars", pa.int64()),  # characters of the scored part
        ("windows", pa.int64()),  # passes that the sum is made of
        ("truncated", pa.bool_()),
        ("domain", pa.string()),
        ("language", pa.string()),
        ("source", pa.string()),
    ]
)


class Scorer(Protocol):
    """Scores documents; opened once per process."""

    def score(self, batch: pa.Table) -> pa.Table:
        """Map documents (`id`, `text`, ...) to `SCORES_SCHEMA`, in the same order."""
        ...


@dataclass(frozen=True)
class DocumentScores:
    """Sums per document.

    Attributes:
        nll_nats_D: float64, minus log-probability of the scored tokens; anything where none was scored.
        tokens_D: int64, scored tokens; 0 for an unscored document.
        bytes_D: int64, UTF-8 bytes of the scored part.
        chars_D: int64, characters of the scored part.
        windows_D: int64, passes.
        truncated_D: bool, the end was left out.
    """

    nll_nats_D: np.ndarray
    tokens_D: np.ndarray
    bytes_D: np.ndarray
    chars_D: np.ndarray
    windows_D: np.ndarray
    truncated_D: np.ndarray


def score_table(batch: pa.Table, scores: DocumentScores) -> pa.Table:
    """Scores beside the ids, domains, languages and sources of their documents."""
    scored_D = (scores.tokens_D > 0) & np.isfinite(scores.nll_nats_D)
    columns = {
        "id": batch["id"],
        "sum_nll_nats": pa.array(scores.nll_nats_D, pa.float64(), mask=~scored_D),
        "scored_tokens": np.where(scored_D, scores.tokens_D, 0),
        "bytes": np.where(scored_D, scores.bytes_D, 0),
        "chars": np.where(scored_D, scores.chars_D, 0),
        "windows": np.where(scored_D, scores.windows_D, 0),
        "truncated": scores.truncated_D,
        **{name: batch[name] for name in ("domain", "language", "source")},
    }
    return pa.table(columns).cast(SCORES_SCHEMA)
