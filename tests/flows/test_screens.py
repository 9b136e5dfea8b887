"""Screens that flows hand to synthesis, the verb's options for them, and what a run publishes of them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from flows.steps.screens import Language, PersonalData, UnsafeWords, screening_of
from pipelines.errors import RecipeError
from synth.recipe import SynthSettings
from synth.screening import Candidate
from synth.verification import REASONS, Limits
from tests.flows.conftest import Works, write_jsonl
from tests.synth.conftest import CAVES, GOOD, Server, completion, stage_of, write_documents
from tests.synth.conftest import server as one_server
from tests.synth.rag_reader import Reader
from tests.synth.test_rag import ANSWER, CORPUS, QUESTION

server = one_server

ENGLISH = "Rain dissolves limestone over thousands of years and makes caves, which fill with air when the water falls."
FRENCH = "La pluie dissout le calcaire pendant des milliers d'années et creuse des grottes, qui se remplissent d'air."


def candidate(written: str, document: str = ENGLISH, language: str | None = "eng") -> Candidate:
    return Candidate(
        id="s", doc_id="d", unit="", language=language, document=document, question="", chain="", written=written,
        text=f"{written}\n\n{document}", row={},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("written", "document", "detail"),
    [
        ("Write to anna.schmidt@webmail.org today.", ENGLISH, "email"),
        ("Write to anna.schmidt@webmail.org today.", "It is anna.schmidt@webmail.org again.", ""),
        ("Nothing of the kind.", ENGLISH, ""),
    ],
)
def test_personal_data_that_the_document_has_not(written: str, document: str, detail: str):
    [finding] = PersonalData().judge([candidate(written, document)], Limits())
    assert (finding.reason, finding.detail) == ("personal_data" if detail else None, detail)


def test_a_passages_personal_data_is_not_the_models():
    """An email in a passage, quoted over the end of a line, was there before."""
    said = candidate("Ask anna.schmidt@webmail.org or call +49 30 1234 5678.", ENGLISH)
    given = replace(said, evidence="[1] anna.schmidt@webmail.org, call +49 30\n1234 5678.")
    assert [one.reason for one in PersonalData().judge([said, given], Limits())] == ["personal_data", None]


@pytest.mark.parametrize(
    ("written", "document", "reason"),
    [
        ("badtwo", "badone badone", "unsafe_words"),
        ("badone badone badone", "badone", None),
        ("badone badtwo", "badtwo, badone", None),
        ("bad", "badone", None),
    ],
)
def test_words_are_compared_not_counted(tmp_path: Path, written: str, document: str, reason: str | None):
    (tmp_path / "en").write_text("badone\nbadtwo\n")
    assert [one.reason for one in UnsafeWords(tmp_path).judge([candidate(written, document)], Limits())] == [reason]


def test_verdicts_depend_on_lists_rules_and_models(tmp_path: Path):
    (tmp_path / "en").write_text("badone\n")
    one, same = UnsafeWords(tmp_path).identity, UnsafeWords(tmp_path).identity
    (tmp_path / "en").write_text("badtwo\n")
    assert one == same != UnsafeWords(tmp_path).identity
    assert {*PersonalData().identity, *Language().identity} == {"version", "rules", "sure", "model"}


def test_listed_words_that_the_document_has_not(tmp_path: Path):
    (tmp_path / "en").write_text("fiddlesticks\n")
    said = [candidate("Oh fiddlesticks!"), candidate("Oh fiddlesticks!", "fiddlesticks"), candidate("Oh dear!"),
            candidate("Oh fiddlesticks!", language="fra")]  # fmt: skip
    found = [finding.reason for finding in UnsafeWords(tmp_path).judge(said, Limits())]
    assert found == ["unsafe_words", None, None, None]


@pytest.mark.parametrize(
    ("written", "document", "reason"),
    [(FRENCH, ENGLISH, "language_mismatch"), (ENGLISH, ENGLISH, None), (FRENCH, FRENCH, None), ("Oui.", ENGLISH, None)],
)
def test_other_languages_of_one_script(written: str, document: str, reason: str | None):
    assert [finding.reason for finding in Language().judge([candidate(written, document)], Limits())] == [reason]


def test_screens_are_the_recipes(tmp_path: Path):
    off = SynthSettings.model_validate({"screen": {"language": False, "personal_data": False}})
    assert screening_of(off).hooks == []
    assert [screen.name for screen in screening_of(SynthSettings()).hooks] == ["language", "personal_data"]
    with pytest.raises(RecipeError, match="grounding needs a language model"):
        screening_of(SynthSettings.model_validate({"grounding": {}}))


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    return write_documents(tmp_path / "d.parquet", {"caves": CAVES})


def options(server: Server) -> list[object]:
    sets = ("engine.name=endpoint", f"engine.url={server.url}", "engine.model_name=m", "min_chars=100")
    return [word for name in sets for word in ("--set", name)]


def test_grounding_by_the_verb(works: Works, tmp_path: Path, documents: Path, server: Server, tiny_model: Path):
    given = [*options(server), "--grounding", tiny_model]
    done = works("synth", documents, "-o", "kept", *given, "--set", "limits.min_grounding_gain=-100")
    assert done["counts"]["kept"] == 1
    [sample] = pq.read_table(tmp_path / "kept" / "samples").to_pylist()
    facts = dict(sample["metadata"])
    nats = float(facts["grounding_alone_nats"]) - float(facts["grounding_given_nats"])
    assert nats / int(facts["grounding_bytes"]) == pytest.approx(float(facts["grounding_gain_nats_per_byte"]), abs=1e-7)
    assert int(facts["grounding_bytes"]) <= len(CAVES.encode())
    done = works("synth", documents, "-o", "gone", *given, "--set", "limits.min_grounding_gain=100")
    assert done["counts"]["rejected"] == {"no_grounding_gain": 1}
    [reject] = pq.read_table(tmp_path / "gone" / "rejects").to_pylist()
    assert dict(reject["facts"])["grounding_gain_nats_per_byte"] == facts["grounding_gain_nats_per_byte"]


def question_with_corpus(folder: Path) -> list[object]:
    """Options of `cot_rag` for one question, whose answer stands in one of the documents."""
    asked = write_jsonl(folder / "q.jsonl", {"id": "q", "text": QUESTION, "answer": ANSWER, "doc_id": "source"})
    corpus = write_jsonl(folder / "c.jsonl", *({"id": name, "text": text} for name, text in CORPUS.items()))
    sets = ("min_chars=1", "rag.absent_share=0", "grounding.evidence=true", "screen.language=false")
    return [asked, "--recipe", "cot_rag", "--corpus", corpus, *(word for name in sets for word in ("--set", name))]


def nats_of(model: Path, context: str, answer: str) -> float:
    """-log p(answer | context), one token after the other in float64."""
    tokenizer, network = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model).double()
    before = [tokenizer.eos_token_id, *tokenizer(context, add_special_tokens=False)["input_ids"]]
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        logits_TV = network(input_ids=torch.tensor([before + ids])).logits[0].log_softmax(-1)
    return -sum(float(logits_TV[len(before) - 1 + n, token]) for n, token in enumerate(ids))


def test_what_the_evidence_does_to_the_answer(works: Works, tmp_path: Path, server: Server, tiny_model: Path):
    server.answer = Reader({QUESTION: ANSWER})
    wide = shutil.copytree(tiny_model, tmp_path / "wide")  # with room for all passages
    config = json.loads((wide / "config.json").read_text())
    (wide / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2048}))
    given = [*options(server), *question_with_corpus(tmp_path)]
    done = works("synth", *given, "-o", "hf", "--grounding", wide)
    [sample] = pq.read_table(tmp_path / "hf" / "samples").to_pylist()
    facts = dict(sample["metadata"])
    passages, asked = sample["text"].split(f"\n\nQuestion: {QUESTION}")[0], f"{QUESTION}\n\n"
    kept = [text for name, text in CORPUS.items() if name in ("bats", "ice", "wells") and text in passages]
    order = sorted(kept, key=passages.index)
    distractors = "\n\n".join(f"[{number}] {text}" for number, text in enumerate(order, 1))
    for name, context in (("evidence", f"{passages}\n\n{asked}"), ("question", asked),
                          ("distractors", f"{distractors}\n\n{asked}")):  # fmt: skip
        assert float(facts[f"ablation_{name}_nats"]) == pytest.approx(nats_of(wide, context, ANSWER), rel=1e-4)
    assert int(facts["ablation_bytes"]) == len(ANSWER)
    told = done["metrics"]["evidence_gain"]
    assert told["evidence_gain_nats_per_byte"] == pytest.approx(float(facts["evidence_gain_nats_per_byte"]), abs=1e-6)
    works("import", wide, "-o", "native")
    shutil.copytree("native/final", "run/train/final")
    shutil.copytree(wide, "run/tokenizer/tokenizer")
    works("synth", *given, "-o", "own", "--grounding", "run", "--set", "grounding.scorer=native")
    [own] = pq.read_table(tmp_path / "own" / "samples").to_pylist()
    works("export", "run", "--to", "hf", "-o", "hf_of_run")  # the embedding's unused rows are cut
    expected = nats_of(tmp_path / "hf_of_run", f"{passages}\n\n{asked}", ANSWER)
    assert float(dict(own["metadata"])["ablation_evidence_nats"]) == pytest.approx(expected, rel=1e-4)


def test_benchmarks_and_report_by_the_verb(works: Works, tmp_path: Path, documents: Path, server: Server):
    item = "Over 10,000 years the acid dissolves the rock along its cracks. The cracks widen into passages."
    (tmp_path / "bench.jsonl").write_text(json.dumps({"id": "q1", "question": item}) + "\n")
    done = works("synth", documents, "-o", "s", *options(server), "--benchmarks", tmp_path / "bench.jsonl")
    assert (done["counts"]["rejected"], server.calls) == ({"contaminated": 1}, [])
    report = json.loads((tmp_path / "s" / "report.json").read_text())
    assert (report["units"], report["accepted"], report["reasons"][0]["reason"]) == (1, 0, "contaminated")
    assert (tmp_path / "s" / "report.svg").read_text().startswith("<svg")
    assert [row["item"] for row in pq.read_table(tmp_path / "s" / "contamination.parquet").to_pylist()] == ["q1"]


@pytest.mark.parametrize(("ngram", "rejected"), [(13, {}), (8, {"contaminated": 1})])
def test_a_recipe_says_what_counts_as_contamination(
    works: Works, tmp_path: Path, documents: Path, server: Server, ngram: int, rejected: dict[str, int]
):
    """Ten words in a row are the document's, and the recipe names the set."""
    item = "Nobody knows why over 10,000 years the acid dissolves the rock along its stony sides in the far north."
    (tmp_path / "bench.jsonl").write_text(json.dumps({"id": "q1", "question": item}) + "\n")
    named = [f"screen.benchmarks=[{tmp_path / 'bench.jsonl'}]", f"screen.decontaminate.ngram={ngram}"]
    sets = [word for name in named for word in ("--set", name)]
    done = works("synth", documents, "-o", "s", *options(server), *sets)
    assert done["counts"]["rejected"] == rejected


def test_a_judge_by_the_verb(works: Works, tmp_path: Path, documents: Path, server: Server, tiny_model: Path):
    given = ["--judge", tiny_model, "--set", "judge.sampling.max_tokens=4"]
    server.answer = lambda body: completion(GOOD[stage_of(body["messages"][0]["content"])])
    done = works("synth", documents, "-o", "s", *options(server), *given)
    assert done["counts"]["rejected"] == {"judge_unreadable": 1}
    assert (tmp_path / "s" / "judge" / "responses.jsonl").is_file()


def test_a_model_does_not_judge_itself(fails, documents: Path, tiny_model: Path):
    fails(2, "the judge is the generator", "synth", documents, "--model", tiny_model, "--judge", tiny_model, "-o", "s",
          "--set", "min_chars=100")  # fmt: skip


def test_every_rule_stands_in_the_reference():
    from flows.reference import pages

    page = pages()["synthesis-rules.md"]
    for reason, (version, meaning) in REASONS.items():
        assert f"| `{reason}` | {version} | {meaning} |" in page
