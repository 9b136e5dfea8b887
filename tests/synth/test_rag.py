"""Answers from evidence, asked of a scripted server on this machine that reads the passages it is sent."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import RecipeError
from pipelines.recipe import load_recipe
from pipelines.store import Outcome
from synth.generate import synthesize
from synth.kind import Library
from synth.recipe import SynthSettings
from synth.screening import Candidate, Finding, Screening
from synth.verification import REASONS, Limits
from tests.synth.conftest import Server, completion
from tests.synth.rag_reader import Reader
from tests.synth.test_generate import bytes_of

QUESTION, ANSWER = "What do stalactites in caves consist of?", "calcite"
SOURCE = "Water drips from the roof of a cave for ages.\nIn the caves stalactites consist of calcite, grain by grain."
CORPUS = {
    "source": SOURCE,
    "bats": "In caves of the south bats sleep in summer. The caves are dark and the bats hang from stalactites.",
    "ice": "Some caves hold ice all year. Its stalactites consist of frozen water that melts in warm summers.",
    "wells": "A well is dug by hand. What the diggers bring up is clay, sand and gravel in many layers.",
    "copy": SOURCE.replace("for ages", "for very many ages"),
    "told": "Shells consist of calcite too, which snails take from what they eat in the caves of the coast.",
}
MAP = pa.map_(pa.string(), pa.string())


def write(path: Path, texts: dict[str, str], language: str = "eng", **metadata: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"id": list(texts), "text": list(texts.values()), "language": [language] * len(texts)}
    columns["metadata"] = pa.array([list(metadata.items())] * len(texts), MAP)
    pq.write_table(pa.table(columns), path)
    return path


def settings_for(server: Server, **change) -> SynthSettings:
    engine = {"name": "endpoint", "url": server.url, "model_name": "m", "retries": 0}
    rag = {"absent_share": 0.0, **change.pop("rag", {})}
    return SynthSettings(
        **{**load_recipe("cot_rag", SynthSettings).model_dump(), "engine": engine, "rag": rag, **change}
    )


class Setting:
    """A question with its corpus on disk."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.folder, self.server = folder, server
        self.corpus = write(folder / "in" / "corpus.parquet", CORPUS)
        self.question = write(folder / "in" / "q.parquet", {"q": QUESTION}, answer=ANSWER, doc_id="source")
        server.answer = Reader({QUESTION: ANSWER})

    def run(
        self, name: str = "w", files: list[Path] | None = None, library: Library | None = None, **change
    ) -> Outcome:
        settings = settings_for(self.server, **change)
        return synthesize(
            files or [self.question], self.folder / name, settings, library=library or Library([self.corpus])
        )

    def rows(self, what: str, name: str = "w") -> list[dict]:
        return pq.read_table(self.folder / name / what / "part-00000.parquet").to_pylist()

    def known(self, name: str = "w") -> dict[str, str]:
        [row] = self.rows("samples", name)
        return dict(row["metadata"])

    def pack(self, name: str = "w") -> list[str]:
        return [one["doc_id"] for one in json.loads(self.known(name)["passages"])]


@pytest.fixture
def setting(tmp_path: Path, server: Server) -> Setting:
    return Setting(tmp_path, server)


def test_a_question_is_answered_from_its_document_with_a_literal_quote(setting: Setting):
    outcome = setting.run()
    assert (outcome.counts.docs_in, outcome.counts.kept) == (1, 1)
    assert outcome.metrics["answers"] == 1  # the question was given
    known = setting.known()
    [quote] = json.loads(known["evidence"])
    assert quote["quote"] == SOURCE[quote["char_start"] : quote["char_end"]] == SOURCE.splitlines()[1]
    assert (quote["doc_id"], known["oracle_absent"], known["answer"]) == ("source", "false", "calcite")
    text = setting.rows("samples")[0]["text"]
    assert f"Question: {QUESTION}\n\n1. {QUESTION}\n2. One of them names it outright [" in text
    assert text.endswith("] “In the caves stalactites consist of calcite, grain by grain.”\n\nAnswer: calcite")
    assert setting.rows("samples")[0]["domain"] == "synth_rag"


class Look:
    """A screen that keeps what it is shown."""

    name, identity = "look", {}

    def __init__(self) -> None:
        self.seen: list[Candidate] = []

    def judge(self, candidates: Sequence[Candidate], limits: Limits) -> Sequence[Finding]:
        self.seen += candidates
        return [Finding()] * len(candidates)

    def close(self) -> None: ...


def test_passages_are_given_and_everything_else_is_written(setting: Setting):
    """An email in a distractor is nothing that the model wrote; whoever judges reads passages and question once."""
    mail = {name: f"{text} Write to bat.house@caves.org." if name == "bats" else text for name, text in CORPUS.items()}
    corpus, look = write(setting.folder / "in" / "mail.parquet", mail), Look()
    synthesize([setting.question], setting.folder / "w", settings_for(setting.server), library=Library([corpus]),
               screening=Screening(hooks=[look]))  # fmt: skip
    [one] = look.seen
    assert "bat.house@caves.org" in one.text
    assert "bat.house@caves.org" not in one.written
    assert one.written.endswith("calcite, grain by grain.”\n\ncalcite")
    assert "Question:" not in one.written
    assert one.source.startswith("[1] ")
    assert one.source.endswith(QUESTION)
    assert "bat.house@caves.org" in one.source


def test_passages_name_source_and_licence_of_their_documents(setting: Setting):
    table = pq.read_table(setting.corpus)
    licences = [[("licence", f"L-{name}")] for name in table["id"].to_pylist()]
    table = table.set_column(table.schema.get_field_index("metadata"), "metadata", pa.array(licences, MAP))
    sources = pa.array([f"from {name}" for name in table["id"].to_pylist()])
    pq.write_table(table.append_column("source", sources), setting.corpus)
    setting.run()
    told = {one["doc_id"]: (one["source"], one["licence"]) for one in json.loads(setting.known()["passages"])}
    assert told == {name: (f"from {name}", f"L-{name}") for name in ("bats", "ice", "source", "wells")}
    setting.run("made", files=[setting.corpus], rag={"near_duplicate": 0.9})
    for row in setting.rows("samples", "made"):
        known = dict(row["metadata"])
        assert json.loads(known["oracle"])["licence"] == f"L-{known['doc_id']}" == known["licence"]


def test_distractors_are_other_documents_that_neither_copy_the_source_nor_tell_the_answer(setting: Setting):
    setting.run()
    assert sorted(setting.pack()) == ["bats", "ice", "source", "wells"]
    assert setting.known()["near_duplicates_left_out"] == "1"
    assert setting.known()["answer_bearing_left_out"] == "1"


def test_without_the_check_for_copies_the_planted_one_is_evidence(setting: Setting):
    """What the check is there for: a threshold that nothing reaches lets the copy in, unless it tells the answer."""
    setting.question = write(setting.folder / "in" / "y.parquet", {"q": QUESTION}, answer="yes", doc_id="source")
    setting.server.answer = lambda body: completion("No idea.")
    setting.run(rag={"near_duplicate": 1.0})
    assert "for very many ages" in setting.server.calls[0]["messages"][0]["content"]
    setting.run("x")
    assert "for very many ages" not in setting.server.calls[1]["messages"][0]["content"]


def test_the_cluster_of_the_source_is_left_out(setting: Setting):
    rows = {"id": ["source", "ice", "bats"], "cluster": ["source", "source", "bats"]}
    pq.write_table(pa.table(rows), setting.folder / "clusters.parquet")
    setting.run(library=Library([setting.corpus], setting.folder / "clusters.parquet"))
    assert sorted(setting.pack()) == ["bats", "source", "wells"]


def test_held_out_documents_are_no_evidence(setting: Setting):
    pq.write_table(pa.table({"id": ["ice"]}), setting.folder / "held.parquet")
    synthesize([setting.question], setting.folder / "w", settings_for(setting.server),
               held_out=[setting.folder / "held.parquet"], library=Library([setting.corpus]))  # fmt: skip
    assert sorted(setting.pack()) == ["bats", "source", "wells"]
    pq.write_table(pa.table({"id": ["source"]}), setting.folder / "held.parquet")
    outcome = synthesize([setting.question], setting.folder / "x", settings_for(setting.server),
                         held_out=[setting.folder / "held.parquet"], library=Library([setting.corpus]))  # fmt: skip
    assert outcome.counts.rejected == {"no_oracle": 1}


def test_with_the_right_passage_left_out_the_answer_is_the_label(setting: Setting):
    outcome = setting.run(rag={"absent_share": 1.0})
    assert outcome.counts.kept == 1
    assert sorted(setting.pack()) == ["bats", "ice", "wells"]
    known = setting.known()
    assert (known["oracle_absent"], json.loads(known["evidence"])) == ("true", [])
    assert setting.rows("samples")[0]["text"].endswith("\n\nAnswer: Insufficient evidence")


GOOD = [{"thought": "Stalactites in caves are asked about.", "passage": 0, "quote": ""},
        {"thought": "They are made of calcite.", "passage": -1, "quote": "stalactites consist of calcite"}]  # fmt: skip


def reply(server: Server, steps: list[dict], answer: object) -> None:
    """Answer with steps; passage -1 is the source's, -2 that of the bats, wherever they stand."""

    def answer_to(body: dict) -> tuple[int, dict]:
        prompt = body["messages"][0]["content"]
        marks = {-1: "Water drips", -2: "In caves of the south"}
        places = {mark: re.search(rf"\[(\d+)\] {text}", prompt) for mark, text in marks.items()}
        at = {mark: int(found.group(1)) for mark, found in places.items() if found}
        made = [{**step, "passage": at.get(step["passage"], step["passage"])} for step in steps]
        return completion(json.dumps({"steps": made, "answer": answer}))

    server.answer = answer_to


def changed(**step: object) -> list[dict]:
    return [GOOD[0], GOOD[1] | step]


BATS = {"thought": "Bats hang from stalactites.", "passage": -2, "quote": "the bats hang from stalactites"}
WRONG = [
    (changed(quote="stalactites are made of calcite"), "calcite", "quote_not_found"),
    (changed(passage=-2), "calcite", "quote_not_found"),
    (changed(quote=" "), "calcite", "quote_not_found"),
    (changed(quote="of calcite"), "calcite", "quote_too_short"),
    (changed(passage=9), "calcite", "citation_invalid"),
    (changed(passage=-7), "calcite", "citation_invalid"),
    (changed(passage=0), "calcite", "citation_invalid"),
    ([GOOD[0], BATS], "calcite", "oracle_not_quoted"),
    (GOOD, "ice", "answer_differs"),
    (GOOD, "insufficient EVIDENCE.", "evidence_overlooked"),
    (GOOD, " ", "empty"),
    (changed(thought=" "), "calcite", "empty"),
    (changed(thought="They grew for 4321 years."), "calcite", "number_not_in_document"),
    (changed(thought="Они состоят из кальцита, и только из него, уже очень давно в этих пещерах."), "calcite",
     "language_mismatch"),
    (changed(thought=7), "calcite", "wrong_shape"),
    (changed(passage=True), "calcite", "wrong_shape"),
    (changed(thought="\ud800"), "calcite", "not_json"),
    (GOOD, 7, "wrong_shape"),
    (GOOD[1:], "calcite", "step_count"),
]  # fmt: skip


@pytest.mark.parametrize(("steps", "answer", "reason"), WRONG, ids=[f"{n}-{one[2]}" for n, one in enumerate(WRONG)])
def test_wrong_answers_are_rejected_by_reason(setting: Setting, steps: list[dict], answer: object, reason: str):
    reply(setting.server, steps, answer)
    assert setting.run().counts.rejected == {reason: 1}
    assert reason in REASONS
    [reject] = setting.rows("rejects")
    assert (reject["stage"], reject["id"]) == ("reason", "q")


def test_the_right_answer_beside_them_is_accepted(setting: Setting):
    reply(setting.server, [GOOD[0], BATS, GOOD[1]], "They consist of calcite.")
    assert setting.run().counts.kept == 1
    quotes = json.loads(setting.known()["evidence"])
    assert [CORPUS[one["doc_id"]][one["char_start"] : one["char_end"]] for one in quotes] == [
        "the bats hang from stalactites", "stalactites consist of calcite",
    ]  # fmt: skip


def test_an_answer_without_evidence_is_rejected(setting: Setting):
    reply(setting.server, [GOOD[0], BATS], "calcite")
    assert setting.run(rag={"absent_share": 1.0}).counts.rejected == {"answered_without_evidence": 1}


def test_a_document_is_asked_about_first(setting: Setting):
    outcome = setting.run(files=[setting.corpus], library=Library(), rag={"near_duplicate": 0.9})
    assert outcome.metrics["passed_stage"]["question"] == 6
    assert outcome.counts.kept + sum(outcome.counts.rejected.values()) == 6
    assert outcome.counts.kept >= 4
    for row in setting.rows("samples"):
        known = dict(row["metadata"])
        [reference] = json.loads(known["references"])
        oracle = json.loads(known["oracle"])
        assert known["doc_id"] == oracle["doc_id"]
        assert reference in CORPUS[oracle["doc_id"]][oracle["char_start"] : oracle["char_end"]]


MADE = [
    ({"question": "What do they consist of?"}, "wrong_shape"),
    ({"question": QUESTION, "answer": "gypsum"}, "answer_not_in_passage"),
    ({"question": QUESTION, "answer": "stalactites"}, "answer_in_question"),
    ({"question": "Stalactites.", "answer": "calcite"}, "not_a_question"),
    ({"question": "What does the passage say of stalactites?", "answer": "calcite"}, "meta_phrase"),
    ({"question": QUESTION, "answer": 7}, "wrong_shape"),
]


@pytest.mark.parametrize(("made", "reason"), MADE, ids=[one[1] for one in MADE])
def test_a_question_must_be_one_that_its_passage_answers(setting: Setting, made: dict, reason: str):
    setting.server.answer = lambda body: completion(json.dumps(made))
    document = write(setting.folder / "in" / "d.parquet", {"source": SOURCE})
    assert setting.run(files=[document]).counts.rejected == {reason: 1}
    assert reason in REASONS


def test_a_sample_of_another_recipe_brings_its_question(setting: Setting):
    sample = write(setting.folder / "in" / "s.parquet", {"sample": f"{QUESTION}\n\n1. ...\n\n{SOURCE}"},
                   question=QUESTION, doc_id="source")  # fmt: skip
    assert setting.run(files=[sample]).counts.kept == 1
    assert (setting.known()["question"], json.loads(setting.known()["references"])) == (QUESTION, [])


def test_a_question_of_unknown_origin_needs_a_passage_that_holds_its_answer(setting: Setting):
    texts = {"q": QUESTION}
    with_answer = write(setting.folder / "in" / "a.parquet", texts, answers=json.dumps(["calcite", "lime"]))
    assert setting.run(files=[with_answer]).counts.kept == 1
    assert [one for one in setting.pack() if "calcite" in CORPUS[one]] == [
        json.loads(setting.known()["oracle"])["doc_id"]
    ]
    without = write(setting.folder / "in" / "b.parquet", texts)
    assert setting.run("x", files=[without]).counts.rejected == {"no_oracle": 1}
    elsewhere = write(setting.folder / "in" / "c.parquet", texts, answer="calcite", doc_id="unknown")
    assert setting.run("y", files=[elsewhere]).counts.rejected == {"no_oracle": 1}
    assert len(setting.server.calls) == 1


def test_a_lonely_document_has_no_distractor(setting: Setting):
    alone = write(setting.folder / "in" / "alone.parquet", {"source": SOURCE})
    assert setting.run(library=Library([alone])).counts.rejected == {"no_distractor": 1}


def test_passages_with_marks_of_chat_templates_are_no_evidence(setting: Setting):
    marked = write(setting.folder / "in" / "m.parquet", CORPUS | {"ice": CORPUS["ice"] + " <|im_start|>system"})
    setting.run(library=Library([marked]))
    assert sorted(setting.pack()) == ["bats", "source", "wells"]


def test_the_index_is_part_of_the_recipe_and_may_be_given(setting: Setting):
    setting.run()
    built = setting.folder / "w" / "index"
    setting.run("again", library=Library([built]))
    assert bytes_of(setting.folder / "again" / "samples") == bytes_of(setting.folder / "w" / "samples")
    assert not (setting.folder / "again" / "index").exists()
    more = write(setting.folder / "in" / "more.parquet", CORPUS | {"new": "Nothing of interest."})
    setting.run("more", library=Library([more]))
    assert setting.known("more")["recipe_hash"] != setting.known()["recipe_hash"]
    with pytest.raises(RecipeError, match="was made with"):
        setting.run("other", library=Library([built]), rag={"retrieval": {"k1": 1.0}})


def test_embeddings_bring_distractors_that_share_no_word(setting: Setting):
    ids = list(CORPUS)
    vectors = [[1.0, 0.0] if one in ("source", "wells") else [0.0, 1.0] for one in ids]
    pq.write_table(pa.table({"id": ids, "embedding": vectors}), setting.folder / "v.parquet")
    plain = setting.run("plain", rag={"distractors": 1})
    setting.run("near", library=Library([setting.corpus], None, [setting.folder / "v.parquet"]), rag={"distractors": 1})
    assert plain.counts.kept == 1
    assert sorted(setting.pack("plain")) == ["ice", "source"]
    assert sorted(setting.pack("near")) == ["source", "wells"]
    assert setting.known("near")["retrieval"] != setting.known("plain")["retrieval"]


def test_the_order_of_the_corpus_and_running_again_change_nothing(setting: Setting):
    first = setting.run()
    calls = len(setting.server.calls)
    assert setting.run() == first
    assert len(setting.server.calls) == calls
    turned = write(setting.folder / "in" / "turned.parquet", dict(reversed(CORPUS.items())))
    setting.run("turned", library=Library([turned]))
    for what in ("samples", "rejects"):
        assert bytes_of(setting.folder / "turned" / what) == bytes_of(setting.folder / "w" / what)


def test_as_a_conversation_the_evidence_belongs_to_the_question(setting: Setting):
    setting.run(forms={"write": ["sft"]})
    [user, assistant] = setting.rows("sft")[0]["messages"]
    assert user["content"].startswith(f"{QUESTION}\n\n[1] ")
    assert assistant["content"].endswith("grain by grain.”\n</think>\n\ncalcite")


def test_chinese_is_asked_and_answered_in_chinese(setting: Setting):
    corpus = {
        "源": "溶洞形成于石灰岩地区。钟乳石的主要成分是碳酸钙，每年只长高一点点。",
        "甲": "溶洞里常有蝙蝠栖息。冬天蝙蝠倒挂在钟乳石上，一直睡到春天。",
        "乙": "古人把钟乳石当作药材，溶洞因此常有人进出，留下许多题记。",
    }
    question = "钟乳石的主要成分是什么？"
    setting.server.answer = Reader({question: "碳酸钙"})
    files = [write(setting.folder / "zh" / "q.parquet", {"q": question}, "cmn", answer="碳酸钙", doc_id="源")]
    library = Library([write(setting.folder / "zh" / "corpus.parquet", corpus, "cmn")])
    assert setting.run(files=files, library=library).counts.kept == 1
    assert setting.rows("samples")[0]["text"].endswith("“钟乳石的主要成分是碳酸钙，每年只长高一点点。”\n\n答案：碳酸钙")
    assert setting.run("w0", files=files, library=library, rag={"absent_share": 1.0}).counts.kept == 1
    assert setting.rows("samples", "w0")[0]["text"].endswith("\n\n答案：证据不足")
    assert "{{" not in json.dumps(setting.server.calls)
