"""Screening: what finished samples must satisfy besides the rules of their stages, one screen after another.

A screen sees all samples that are left at once (duplicates have no other place), and says of each why it goes, or what
is to be written beside it. Screens of this package: evaluation sets, questions asked before, a judge. Others need what
synthesis may not import (filters): a flow hands them in, and here they are only called. Cheap ones come first, and the
judge, who is paid for every sample, last.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pipelines.decontaminate import DecontaminateSettings
from synth.outputs import Maker, Reject, Work
from synth.verification import Limits


@dataclass(frozen=True)
class Ablation:
    """An answer and what may stand before it: what is taken away shows what it does.

    Attributes:
        question: that is answered.
        answer: to it.
        evidence: all passages.
        distractors: the passages without the right one.
    """

    question: str
    answer: str
    evidence: str
    distractors: str


@runtime_checkable
class FromEvidence(Protocol):
    """A kind whose answers rest on passages."""

    def ablation(self, draft: Any) -> Ablation | None:
        """A finished sample in parts; None where the right passage was not given."""
        ...


@dataclass(frozen=True)
class Candidate:
    """A finished sample, as screens see it.

    Attributes:
        id: of the sample.
        doc_id: of its source document.
        unit: what tells the samples of one document apart.
        language: of the source, ISO 639-3; None where it has no label.
        document: text of the source.
        question: empty where the kind of sample has none.
        chain: of thought; empty where the kind has none.
        written: what the model wrote, and nothing that it was given.
        text: the sample.
        row: the source document.
        evidence: what the model was given to write from, where that is not the document.
        ablation: the sample in parts, where its kind answers from passages and the right one is among them.
    """

    id: str
    doc_id: str
    unit: str
    language: str | None
    document: str
    question: str
    chain: str
    written: str
    text: str
    row: Mapping[str, Any]
    evidence: str = ""
    ablation: Ablation | None = None

    @property
    def source(self) -> str:
        """What the model wrote from, once: for whoever judges the one by the other."""
        return self.evidence or self.document

    @property
    def before(self) -> str:
        """Everything that stood there before the model wrote."""
        return "\n\n".join(filter(None, [self.document, self.evidence]))


@dataclass(frozen=True)
class Finding:
    """What a screen says of a sample.

    Attributes:
        reason: why it goes, one of `REASONS`; None where it stays.
        detail: for people: the words, the span, the other sample.
        facts: written into the sample's metadata, and the reject's details; numbers as they are stored.
    """

    reason: str | None = None
    detail: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)


class Screen(Protocol):
    """One look at all samples that are left.

    Attributes:
        name: the stage in `rejects`.
        identity: what its verdicts depend on besides the thresholds: versions, models, lists, as JSON values.
    """

    name: str
    identity: Mapping[str, Any]

    def judge(self, candidates: Sequence[Candidate], limits: Limits) -> Sequence[Finding]:
        """A finding for each candidate, in their order."""
        ...

    def close(self) -> None:
        """Let go of models."""
        ...


@dataclass(frozen=True)
class Screening:
    """What a caller hands in to screen samples with, besides the recipe.

    Attributes:
        benchmarks: evaluation sets that neither documents nor samples may hold.
        hooks: screens that need what synthesis may not import.
        earlier: folders `judge/` of other runs, whose answers are used where the same judge gave them.
        judge_model: folder of the judge's model, where the recipe names none.
        decontaminate: what counts as holding an item, where the recipe does not say.
    """

    benchmarks: Sequence[Path] = ()
    hooks: Sequence[Screen] = ()
    earlier: Sequence[Path] = ()
    judge_model: Path | None = None
    decontaminate: DecontaminateSettings | None = None


def run_screens(works: Sequence[Work], screens: Sequence[Screen], maker: Maker) -> None:
    """Reject what the screens reject, and note what they found; changes the works.

    Args:
        works: all of a run; those that were rejected before are passed over.
        screens: in the order in which they look.
        maker: of the samples.
    """
    for screen in screens:
        left = [one for one in works if one.reject is None]
        candidates = [candidate_of(one, maker) for one in left]
        for one, finding in zip(left, screen.judge(candidates, maker.settings.limits) if left else (), strict=True):
            one.facts = {**one.facts, **finding.facts}
            if finding.reason is not None:
                one.reject = Reject(screen.name, finding.reason, finding.detail, screened=True)


def candidate_of(one: Work, maker: Maker) -> Candidate:
    """A finished sample as screens see it."""
    slots = maker.kind.sample_slots(one.draft)
    return Candidate(
        id=maker.sample_id(one),
        doc_id=one.row["id"],
        unit=one.unit,
        language=one.row["language"],
        document=one.row["text"],
        question=slots.get("question", ""),
        chain=slots.get("chain", ""),
        written=maker.kind.written(one.draft),
        text=maker.text(one),
        row=one.row,
        evidence=maker.kind.shown(one.draft),
        ablation=maker.kind.ablation(one.draft) if isinstance(maker.kind, FromEvidence) else None,
    )
