from dataclasses import dataclass

import pytest

from synth.grounding import applies, context_of, decide
from synth.screening import Candidate
from synth.verification import Limits


@dataclass(frozen=True)
class Sums:
    """What a scorer says, as plain numbers."""

    alone_nats: float
    given_nats: float
    tokens: int = 10
    bytes: int = 20


def candidate(
    question: str = "Why?", chain: str = "1. So.", document: str = "Rain falls.", text: str = ""
) -> Candidate:
    return Candidate(
        id="s", doc_id="d", unit="", language=None, document=document, question=question, chain=chain, written="",
        text=text or f"{question}\n\n{chain}\n\n{document}", row={},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "least", "reason"),
    [(20.0, 0.0, None), (30.0, 0.0, "no_grounding_gain"), (31.0, 0.0, "no_grounding_gain"),
     (20.0, 0.5, "no_grounding_gain"), (20.0, 0.49, None)],
)  # fmt: skip
def test_the_gain_per_byte_decides(given: float, least: float, reason: str | None):
    found = decide(Sums(30.0, given), Limits(min_grounding_gain=least))
    assert found.reason == reason
    assert float(found.facts["grounding_gain_nats_per_byte"]) == pytest.approx((30 - given) / 20)


def test_what_could_not_be_scored_has_no_number():
    found = decide(None, Limits())
    assert (found.reason, found.facts) == ("grounding_unscored", {"grounding": "unscored"})
    assert decide(None, Limits(keep_undecided=True)).reason is None


def test_only_chains_about_a_document_are_asked_about():
    assert applies(candidate())
    assert not applies(candidate(question=""))
    assert not applies(candidate(chain=""))
    assert not applies(candidate(text="Why? So."))
    assert not applies(candidate(question="What is twice 21?", document="What is twice 21?"))


def test_the_context_is_what_stands_before_the_document():
    one = candidate()
    assert context_of(one) + one.document == one.text
