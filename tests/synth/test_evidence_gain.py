"""What is taken away shows what it did: signs, pairs and totals, with a model that only knows what it has just read."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import pytest

from synth.evidence_gain import EvidenceGain, contexts_of
from synth.generate import synthesize
from synth.kind import Library
from synth.screening import Ablation, Screening
from tests.synth.conftest import Server
from tests.synth.test_rag import ANSWER, CORPUS, QUESTION, Setting, settings_for


class Said(NamedTuple):
    alone_nats: float
    given_nats: float
    tokens: int
    bytes: int
    cut: bool = False


class Copier:
    """A language model that takes 1 nat for a document that stands in its context, and 8 for another."""

    policy: ClassVar = {"model": "copier"}

    def score(self, contexts: Sequence[str], documents: Sequence[str]) -> list[Said | None]:
        """Nothing is said of an empty document."""
        return [
            Said(8.0, 1.0 if document in context else 8.0, 1, len(document.encode())) if document else None
            for context, document in zip(contexts, documents, strict=True)
        ]

    def close(self) -> None:
        """Nothing is held."""


def setting(tmp_path: Path, server: Server) -> Setting:
    return Setting(tmp_path, server)


def test_the_right_passage_is_what_helps(tmp_path: Path, server: Server):
    one = setting(tmp_path, server)
    screening = Screening(hooks=[EvidenceGain(Copier())])
    outcome = synthesize([one.question], tmp_path / "w", settings_for(server), library=Library([one.corpus]),
                         screening=screening)  # fmt: skip
    known = one.known()
    nats = [known[f"ablation_{name}_nats"] for name in ("evidence", "question", "distractors")]
    assert nats == ["1.000000", "8.000000", "8.000000"]
    assert known["evidence_gain_nats_per_byte"] == known["oracle_gain_nats_per_byte"] == f"{7 / len(ANSWER):.8f}"
    assert outcome.metrics["evidence_gain"] == {
        "samples": 1, "evidence_gain_nats_per_byte": 1.0, "oracle_gain_nats_per_byte": 1.0,
        "share_above_question": 1.0, "share_above_distractors": 1.0,
    }  # fmt: skip


def test_without_the_right_passage_there_is_nothing_to_measure(tmp_path: Path, server: Server):
    one = setting(tmp_path, server)
    settings = settings_for(server, rag={"absent_share": 1.0})
    outcome = synthesize([one.question], tmp_path / "w", settings, library=Library([one.corpus]),
                         screening=Screening(hooks=[EvidenceGain(Copier())]))  # fmt: skip
    assert outcome.counts is not None
    assert outcome.counts.kept == 1
    assert not [key for key in one.known() if "ablation" in key]
    assert "evidence_gain" not in outcome.metrics


def test_it_is_off_unless_asked_for(tmp_path: Path, server: Server):
    one = setting(tmp_path, server)
    one.run()
    assert not [key for key in one.known() if "ablation" in key]


def test_contexts_end_with_the_question():
    part = Ablation("Why?", "so", "[1] a\n\n[2] b", "[1] b")
    assert contexts_of(part) == ("[1] a\n\n[2] b\n\nWhy?\n\n", "Why?\n\n", "[1] b\n\nWhy?\n\n")


def test_what_cannot_be_scored_has_no_number(tmp_path: Path, server: Server):
    class Silent(Copier):
        def score(self, contexts: Sequence[str], documents: Sequence[str]) -> list[Said | None]:
            return [None] * len(documents)

    one = setting(tmp_path, server)
    synthesize([one.question], tmp_path / "w", settings_for(server), library=Library([one.corpus]),
               screening=Screening(hooks=[EvidenceGain(Silent())]))  # fmt: skip
    assert {key: value for key, value in one.known().items() if "ablation" in key} == {"ablation": "unscored"}


def test_evidence_that_does_not_fit_is_not_measured(tmp_path: Path, server: Server):
    class Narrow(Copier):
        def score(self, contexts: Sequence[str], documents: Sequence[str]) -> list[Said | None]:
            return [Said(8.0, 8.0, 1, 1, cut=len(context) > 100) for context in contexts]

    one = setting(tmp_path, server)
    synthesize([one.question], tmp_path / "w", settings_for(server), library=Library([one.corpus]),
               screening=Screening(hooks=[EvidenceGain(Narrow())]))  # fmt: skip
    assert one.known()["ablation"] == "evidence_cut"


@pytest.mark.parametrize("gone", ["source", "bats"])
def test_distractors_are_all_but_the_right_passage(tmp_path: Path, server: Server, gone: str):
    from tests.synth.test_rag import Look

    one, look = setting(tmp_path, server), Look()
    synthesize([one.question], tmp_path / "w", settings_for(server), library=Library([one.corpus]),
               screening=Screening(hooks=[look]))  # fmt: skip
    [seen] = look.seen
    assert seen.ablation is not None
    text = CORPUS[gone].splitlines()[-1]
    assert text in seen.ablation.evidence
    assert (text in seen.ablation.distractors) == (gone != "source")
    assert (seen.ablation.question, seen.ablation.answer) == (QUESTION, ANSWER)
