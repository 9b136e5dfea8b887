"""Long-CoT RAG: a question answered from numbered passages, with literal quotes, or declined where none answers it.

Two calls per document: a question about one of its passages (left out where the document is a question, or a sample
that has one), then a chain of steps that quote the evidence, and the answer. Passages come from the corpus itself; the
right one stands among hard distractors, and for some questions it is missing on purpose, so that declining is learned
too (RAFT: arXiv:2403.10131). Every quote is looked up in the passage that it cites: a hard check, with any model.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import xxhash

from pipelines.errors import RecipeError
from pipelines.execute import SCRATCH
from pipelines.inputs import as_documents
from pipelines.manifest import digest_of
from pipelines.textless import refuse_textless
from synth.dialogue import Dialogue
from synth.json_answers import read_object
from synth.json_schemas import NUMBER, TEXT, answer_format, list_of, object_of
from synth.kind import Inputs, Library, Stage
from synth.outputs import licence_of
from synth.prompt_files import prompt_language
from synth.rag_checks import (
    INSUFFICIENT,
    Step,
    check_answer,
    check_chain,
    check_generated,
    read_steps,
)
from synth.rag_evidence import Evidence, Found, Source
from synth.recipe import SynthSettings
from synth.retrieval import Index, Passage
from synth.retrieval_index import RECEIPT, build_index
from synth.retrieval_settings import RagSettings
from synth.retrieval_vectors import Vectors
from synth.screening import Ablation
from synth.verification import Limits

MIN_PASSAGE_CHARS = 40  # a heading or a last line asks for nothing


@dataclass(frozen=True)
class Draft:
    """A sample in the making.

    Attributes:
        name: of document and unit; what is drawn for it depends on it.
        language: `en` or `zh`.
        source: where the answer is.
        question: empty until it is made, where none was given.
        found: the evidence, once there is a question.
        steps: of the chain.
        answer: the last word.
        given: whether the question was there before.
        known: source and licence of the document.
    """

    name: str
    language: str
    source: Source
    question: str = ""
    found: Found | None = None
    steps: tuple[Step, ...] = ()
    answer: str = ""
    given: bool = False
    known: Mapping[str, str | None] = field(default_factory=dict)


class Rag:
    """The recipe `cot_rag`.

    Args:
        evidence: what packs are made with.
        settings: of the recipe.
        seed: of what is drawn.
        identity: of corpus, clusters and embeddings.
    """

    def __init__(self, evidence: Evidence, settings: RagSettings, seed: int, identity: str) -> None:
        self.evidence, self.settings, self.seed, self.identity = evidence, settings, seed, identity
        self.stages = (
            Stage("question", _question_slots, self._read_question, answer_format("question", _QUESTION),
                  wanted=lambda draft: draft.found is None),
            Stage("reason", self._reason_slots, self._read_chain, answer_format("chain", _CHAIN)),
        )  # fmt: skip

    def units(self, row: Mapping[str, Any]) -> Sequence[tuple[str, Draft]] | str:
        """The document's question with its evidence, or as many of its passages as questions are wanted."""
        metadata = dict(row["metadata"] or ())
        language = prompt_language(row["language"], row["text"])
        known = {"source": row.get("source"), "licence": licence_of(row).get("licence")}
        if question := _given_question(row["text"], metadata):
            references = _references(metadata)
            source = self._source(metadata.get("doc_id"), question, references)
            if source is None:
                return "no_oracle"
            draft = Draft(row["id"], language, source, given=True)
            made = self._with_evidence(draft, question, references)
            return made if isinstance(made, str) else [("", made)]
        passages = [one for one in self.evidence.cut(row["id"], row["text"]) if len(one.text) >= MIN_PASSAGE_CHARS]
        if not passages:
            return "no_passage"
        drawn = sorted(passages, key=lambda one: xxhash.xxh64_intdigest(f"{row['id']}\0{one.start}", self.seed))
        units = sorted(drawn[: self.settings.questions], key=lambda one: one.start)
        names = [f"question-{number}" for number in range(len(units))] if self.settings.questions > 1 else [""]
        sources = [Source(row["id"], row["text"], passage) for passage in units]
        return [(name, Draft(f"{row['id']}#{name}" if name else row["id"], language, source, known=known))
                for name, source in zip(names, sources, strict=True)]  # fmt: skip

    def _source(self, doc_id: str | None, question: str, references: Sequence[str]) -> Source | None:
        if doc_id is not None:
            return self.evidence.source_of(doc_id, question, references)
        return self.evidence.searched(question, references) if references else None

    def _with_evidence(self, draft: Draft, question: str, references: Sequence[str]) -> Draft | str:
        found = self.evidence.pack(draft.name, question, references, draft.source, draft.language)
        return found if isinstance(found, str) else replace(draft, question=question, found=found)

    def _read_question(self, answer: str, draft: Draft, limits: Limits) -> Draft | str:
        made = read_object(answer, "question", "answer")
        if isinstance(made, str):
            return made
        question, reference = made["question"], made["answer"]
        if not isinstance(question, str) or not isinstance(reference, str):
            return "wrong_shape"
        question, passage = question.strip(), draft.source.passage.text
        reason = check_generated(question, reference, passage, limits)
        return reason or self._with_evidence(draft, question, (reference.strip(),))

    def _reason_slots(self, draft: Draft, limits: Limits) -> dict[str, str]:
        low, high = limits.steps
        return {"question": draft.question, "passages": render_passages(_pack(draft).passages),
                "insufficient": INSUFFICIENT[draft.language], "min_steps": str(low), "max_steps": str(high),
                "min_words": str(limits.min_quote_words)}  # fmt: skip

    def _read_chain(self, answer: str, draft: Draft, limits: Limits) -> Draft | str:
        made = read_object(answer, "steps", "answer")
        if isinstance(made, str):
            return made
        pack, said = _pack(draft), made["answer"]
        steps = read_steps(made["steps"], pack.passages, limits)
        if isinstance(steps, str):
            return steps
        if not isinstance(said, str):
            return "wrong_shape"
        reason = check_chain(steps, said, pack, limits) or check_answer(steps, said, pack, limits)
        return reason or replace(draft, steps=steps, answer=said.strip())

    def settle(self, ended: Sequence[tuple[str, Any]]) -> Sequence[tuple[str, Any]]:
        """As they came."""
        return ended

    def sample_slots(self, draft: Draft) -> Mapping[str, str]:
        """Question, evidence, chain and answer."""
        pack = _pack(draft)
        answer = draft.answer if pack.oracle else INSUFFICIENT[draft.language]
        return {"question": draft.question, "passages": render_passages(pack.passages),
                "chain": render_steps(draft.steps, pack.passages, draft.language), "answer": answer}  # fmt: skip

    def written(self, draft: Draft) -> str:
        """The question where it was made, the chain with its quotes, and the answer."""
        slots = self.sample_slots(draft)
        question = "" if draft.given else f"{slots['question']}\n\n"
        return f"{question}{slots['chain']}\n\n{slots['answer']}"

    def shown(self, draft: Draft) -> str:
        """The passages, and the question where it was given."""
        passages = render_passages(_pack(draft).passages)
        return f"{passages}\n\n{draft.question}" if draft.given else passages

    def ablation(self, draft: Draft) -> Ablation | None:
        """Question, answer, all passages, and those without the right one."""
        pack = _pack(draft)
        others = [one for number, one in enumerate(pack.passages, 1) if number != pack.oracle]
        parts = (draft.question, draft.answer, render_passages(pack.passages), render_passages(others))
        return Ablation(*parts) if pack.oracle else None

    def dialogue(self, draft: Draft) -> Dialogue:
        """The question with its evidence, the chain as thinking, and the answer."""
        slots = self.sample_slots(draft)
        return Dialogue(f"{slots['question']}\n\n{slots['passages']}", slots["chain"], slots["answer"])

    def provenance(self, draft: Draft, mates: Sequence[str]) -> Mapping[str, str]:
        """Evidence as spans of original documents, what was quoted of it, and what was kept out of it."""
        pack = _pack(draft)
        quotes = [_span(pack.passages[step.passage - 1], step.start, step.end) for step in draft.steps if step.passage]
        found = draft.found
        assert found is not None
        return {
            "question": draft.question,
            "answer": draft.answer,
            "references": json.dumps(pack.references, ensure_ascii=False),
            "evidence": json.dumps(quotes, ensure_ascii=False),
            "passages": json.dumps([self._passage(one, draft) for one in pack.passages], ensure_ascii=False),
            "oracle": json.dumps(self._passage(draft.source.passage, draft), ensure_ascii=False),
            "oracle_absent": json.dumps(pack.oracle == 0),
            "near_duplicates_left_out": str(found.copies),
            "answer_bearing_left_out": str(found.telling),
            "retrieval": self.identity,
        }

    def _passage(self, passage: Passage, draft: Draft) -> dict[str, Any]:
        """Where a passage stands, and what its document is of: that of the sample need not be in the corpus."""
        own = draft.known if passage.doc_id == draft.source.doc_id else {}
        known = own or self.evidence.index.provenance_of(passage.doc_id)
        return {**_span(passage, 0, len(passage.text), False), **known}

    def close(self) -> None:
        """Let go of the index."""
        self.evidence.index.close()


def open_rag(settings: SynthSettings, inputs: Inputs) -> Rag:
    """The kind `cot_rag`; indexes the corpus into `index/` of the working folder, unless an index is given.

    Raises:
        RecipeError: the index that was given was made with other settings.
    """
    asked = settings.rag.retrieval
    library = inputs.library
    given = library.corpus[0] if len(library.corpus) == 1 and (library.corpus[0] / RECEIPT).is_file() else None
    folder = given or inputs.work / "index"
    if given is None:
        build_index(
            _corpus(library, inputs.work / SCRATCH / "corpus") if library.corpus else inputs.files, folder, asked
        )
    index = Index(folder)
    if index.receipt["settings"] != asked.model_dump(mode="json"):
        raise RecipeError(f"{folder} was made with {index.receipt['settings']}, the recipe asks for "
                          f"{asked.model_dump(mode='json')}: give --corpus the documents instead")  # fmt: skip
    scratch = inputs.work / SCRATCH / "vectors.npy"
    vectors = Vectors(library.embeddings, index, scratch) if library.embeddings else None
    evidence = Evidence(index, settings.rag, settings.seed, library.clusters, vectors, inputs.held_out)
    known = {"index": index.identity, "barred": evidence.digest, "embeddings": vectors.digest if vectors else None}
    return Rag(evidence, settings.rag, settings.seed, digest_of(known)[:16])


def _corpus(library: Library, work: Path) -> Sequence[Path]:
    """The corpus as Parquet documents.

    Raises:
        DataError: no record has the text that was asked for.
    """
    made = as_documents(library.corpus, work, text=library.text)
    refuse_textless(made, library.corpus, work, library.text, "--corpus-text")
    return made


def render_passages(passages: Sequence[Passage]) -> str:
    """Passages with their numbers."""
    return "\n\n".join(f"[{number}] {one.text}" for number, one in enumerate(passages, 1))


def render_steps(steps: Sequence[Step], passages: Sequence[Passage], language: str) -> str:
    """A chain as numbered lines; each quote as the document has it, with the number of its passage."""
    opening, closing = ("“", "”")
    space = "" if language == "zh" else " "
    lines = []
    for number, step in enumerate(steps, 1):
        line = f"{number}. {' '.join(step.thought.split())}"
        if step.passage:
            quote = " ".join(passages[step.passage - 1].text[step.start : step.end].split())
            line += f"{space}[{step.passage}]{space}{opening}{quote}{closing}"
        lines.append(line)
    return "\n".join(lines)


def _pack(draft: Draft) -> Any:
    assert draft.found is not None
    return draft.found.pack


def _span(passage: Passage, start: int, end: int, quote: bool = True) -> dict[str, Any]:
    place = {"doc_id": passage.doc_id, "char_start": passage.start + start, "char_end": passage.start + end}
    return place | ({"quote": passage.text[start:end]} if quote else {})


def _given_question(text: str, metadata: Mapping[str, str]) -> str | None:
    """The question that a document holds: named in its metadata, or the document itself."""
    if named := (metadata.get("question") or "").strip():
        return named
    text = text.strip()
    asks = "\n" not in text and text.endswith(("?", "？"))
    return text if asks or "answer" in metadata or "answers" in metadata else None


def _references(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Right answers: `answers` as a JSON list, or `answer`."""
    with suppress(ValueError):
        several = json.loads(metadata.get("answers") or "null")
        if isinstance(several, list):
            return tuple(dict.fromkeys(str(one) for one in several if str(one).strip()))
    return tuple(filter(None, [(metadata.get("answer") or "").strip()]))


def _question_slots(draft: Draft, limits: Limits) -> dict[str, str]:
    return {"passage": draft.source.passage.text}


_QUESTION = object_of(question=TEXT, answer=TEXT)
_CHAIN = object_of(steps=list_of(object_of(thought=TEXT, passage=NUMBER, quote=TEXT)), answer=TEXT)
