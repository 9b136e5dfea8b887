"""Questions that were asked before: near duplicates among the samples of one run.

Loam's own MinHash proposes pairs, and the Jaccard similarity of the two sets of word pairs decides; the sample with the
least id stays, whatever the order. Samples of one document (its rollouts) are never duplicates of each other.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.clusters import new_forest, roots_of
from pipelines.minhash import Shape, Shingled, Signed, compare_groups, sign
from synth.screening import Candidate, Finding
from synth.verification import Limits

SHAPE = Shape(by_char=False, ngram=2, bands=32, rows=4, seed=1)
"""Questions are short: pairs of words, and bands that propose 99.98% of the pairs at a similarity of 0.7."""
DIGITS = str.maketrans("0123456789", "οαβγδεζηθι")
"""Shingles take all numbers for one; two questions that differ in a number are two."""


class Questions:
    """The screen `questions`."""

    name = "questions"
    identity: Mapping[str, Any] = {"version": 1}

    def judge(self, candidates: Sequence[Candidate], limits: Limits) -> Sequence[Finding]:
        """Find samples whose question is that of another document's sample with a lesser id."""
        asked = [candidate for candidate in candidates if candidate.question]
        kept_for = duplicates_of(
            [candidate.id for candidate in asked],
            [candidate.doc_id for candidate in asked],
            [candidate.question for candidate in asked],
            limits.question_jaccard,
        )
        return [
            Finding("question_duplicate", f"{candidate.question} (as {kept})", {"duplicate_of": kept})
            if (kept := kept_for.get(candidate.id)) else Finding()
            for candidate in candidates
        ]  # fmt: skip

    def close(self) -> None:
        """Nothing is held."""


def duplicates_of(
    ids: Sequence[str], documents: Sequence[str], questions: Sequence[str], least: float
) -> dict[str, str]:
    """Questions that another document's sample asks, too.

    Args:
        ids: of samples.
        documents: of which each is made.
        questions: of each.
        least: Jaccard similarity of two that are the same.

    Returns:
        Id of each duplicate -> id of the sample that stays for it: the least of its component.
    """
    first: dict[tuple[str, str], str] = {}  # a document's question stands for all its samples that ask it
    for sample, document, question in sorted(zip(ids, documents, questions, strict=True)):
        first.setdefault((document, question), sample)
    if len(first) < 2:
        return {}
    order = sorted(first, key=lambda key: first[key])
    signed = sign(pa.array([question.translate(DIGITS) for _, question in order], pa.string()), SHAPE)
    roots_N = _components(signed, least)
    taken: dict[int, str] = {}
    gone: dict[tuple[str, str], str] = {}
    for rank, (document, question) in enumerate(order):
        root = int(roots_N[rank])
        keeper = taken.setdefault(root, document)
        if keeper != document:
            gone[document, question] = first[order[root]]
    return {
        sample: gone[document, question]
        for sample, document, question in zip(ids, documents, questions, strict=True)
        if (document, question) in gone
    }


def _components(signed: Signed, least: float) -> np.ndarray:
    """The lowest rank of each question's component: int64 (N,)."""
    count = len(signed.sizes)
    forest = new_forest(count)
    starts_N = np.concatenate([[0], np.cumsum(signed.sizes)[:-1]]).astype(np.int64)
    halves_S = (signed.shingles >> np.uint64(32)).astype(np.uint32)
    sets = Shingled(halves_S, starts_N, signed.sizes, np.ascontiguousarray(signed.bands.T))
    for band in range(SHAPE.bands if count else 0):
        able = np.flatnonzero(signed.sizes)
        order = able[np.argsort(signed.bands[able, band], kind="stable")]
        _, sizes_G = np.unique(signed.bands[order, band], return_counts=True)
        wanted = np.repeat(sizes_G > 1, sizes_G)
        compare_groups(order[wanted], sizes_G[sizes_G > 1], band, sets, least, forest)
    return roots_of(forest)
