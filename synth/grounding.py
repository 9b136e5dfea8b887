"""Grounding gain: whether question and chain make their document likelier to a language model, per byte.

NLL(document | question, chain) must be less than NLL(document): a chain about another document, or about nothing, tells
a model no more of this one. The cheapest check by a model, since nothing is generated. Who scores is handed in (the
perplexity backend lives in filters, which synthesis does not import); here is what is asked and what is decided.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from synth.screening import Candidate, Finding
from synth.verification import Limits


class Likelihood(Protocol):
    """What a scorer says of one document; of the same tokens of it, once alone and once after a context."""

    @property
    def alone_nats(self) -> float:
        """-log p(document)."""
        ...

    @property
    def given_nats(self) -> float:
        """-log p(document | context)."""
        ...

    @property
    def tokens(self) -> int:
        """Of the document that were scored."""
        ...

    @property
    def bytes(self) -> int:
        """UTF-8 bytes of those."""
        ...

    @property
    def cut(self) -> bool:
        """Whether the beginning of the context was left out, for want of room."""
        ...


class ConditionalScorer(Protocol):
    """A language model that scores documents after contexts.

    Attributes:
        policy: what its numbers depend on, as JSON values.
    """

    policy: Mapping[str, Any]

    def score(self, contexts: Sequence[str], documents: Sequence[str]) -> Sequence[Likelihood | None]:
        """One likelihood for each pair; None where nothing of the document could be scored."""
        ...

    def close(self) -> None:
        """Let go of the model."""
        ...


class Grounding:
    """The screen `grounding`; samples without question, chain or a document of their own pass unscored.

    Args:
        scorer: the language model.
    """

    name = "grounding"

    def __init__(self, scorer: ConditionalScorer) -> None:
        self.scorer = scorer
        self.identity: Mapping[str, Any] = {"version": 1, "policy": dict(scorer.policy)}

    def judge(self, candidates: Sequence[Candidate], limits: Limits) -> Sequence[Finding]:
        """Score each document after its question and chain, and without them."""
        asked = [candidate for candidate in candidates if applies(candidate)]
        scores = self.scorer.score([context_of(c) for c in asked], [c.document for c in asked])
        found = {c.id: decide(score, limits) for c, score in zip(asked, scores, strict=True)}
        return [found.get(candidate.id, Finding()) for candidate in candidates]

    def close(self) -> None:
        """Let go of the model."""
        self.scorer.close()


def applies(candidate: Candidate) -> bool:
    """Whether a sample has a question and a chain about a document that is not the question itself."""
    whole = bool(candidate.question and candidate.chain) and candidate.document in candidate.text
    return whole and candidate.document not in candidate.question


def context_of(candidate: Candidate) -> str:
    """What stands before the document, as in the sample."""
    return f"{candidate.question}\n\n{candidate.chain}\n\n"


def decide(score: Likelihood | None, limits: Limits) -> Finding:
    """The finding of a likelihood; what could not be scored has no number, and is counted apart."""
    if score is None:
        return Finding(None if limits.keep_undecided else "grounding_unscored", "", {"grounding": "unscored"})
    gain = (score.alone_nats - score.given_nats) / score.bytes
    facts = {
        "grounding": "scored",
        "grounding_alone_nats": f"{score.alone_nats:.6f}",
        "grounding_given_nats": f"{score.given_nats:.6f}",
        "grounding_tokens": str(score.tokens),
        "grounding_bytes": str(score.bytes),
        "grounding_gain_nats_per_byte": f"{gain:.8f}",
    }
    reason = None if gain > limits.min_grounding_gain else "no_grounding_gain"
    return Finding(reason, f"gain {gain:.6f} nats per byte", facts)
