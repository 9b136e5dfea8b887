import json
from pathlib import Path

import pyarrow.parquet as pq

from synth.generate import synthesize
from synth.outputs import REJECTS, Reject, Work
from synth.recipe import SynthSettings
from synth.report import meaning_of, passed_stages
from synth.verification import REASONS
from tests.synth.conftest import CAVES, GOOD, Server, completion, stage_of, write_documents


def run(tmp_path: Path, server: Server) -> Path:
    """Six documents: an abstract of one has a number too many, the others all end in one question."""
    texts = {f"d{n}": f"{CAVES} Case {n} of 6." for n in range(6)}
    file = write_documents(tmp_path / "d.parquet", texts)
    answers = {"segment": GOOD["segment"], "question": GOOD["question"], "chain": GOOD["chain"]}

    def answer(body: dict) -> tuple[int, dict]:
        prompt = body["messages"][0]["content"]
        stage = stage_of(prompt)
        if stage == "abstract":
            return completion(GOOD["abstract"].replace("10000", "77777") if "Case 0" in prompt else GOOD["abstract"])
        return completion(answers[stage])

    server.answer = answer
    engine = {"name": "endpoint", "url": server.url, "model_name": "m", "retries": 0}
    segment = json.loads(GOOD["segment"])
    segment["segments"][2]["end"] = "of 6."
    answers["segment"] = json.dumps(segment)
    synthesize([file], tmp_path / "w", SynthSettings.model_validate({"min_chars": 100, "engine": engine}))
    return tmp_path / "w"


def test_what_became_of_every_unit(tmp_path: Path, server: Server):
    whole = json.loads((run(tmp_path, server) / "report.json").read_text())
    assert (whole["units"], whole["accepted"]) == (6, 1)
    assert [(s["stage"], s["units"], s["passed"]) for s in whole["stages"]] == [
        ("segment", 6, 6), ("abstract", 6, 5), ("chain", 5, 5), ("question", 5, 5), ("questions", 5, 1),
    ]  # fmt: skip
    reasons = {r["reason"]: r for r in whole["reasons"]}
    assert list(reasons) == ["question_duplicate", "number_not_in_document"]
    assert reasons["number_not_in_document"]["stages"] == {"abstract": 1}
    assert [e["id"] for e in reasons["number_not_in_document"]["examples"]] == ["d0"]
    assert len(reasons["question_duplicate"]["examples"]) == 3
    assert sum(r["units"] for r in whole["reasons"]) + whole["accepted"] == whole["units"]
    assert whole["by_language"] == {"eng": {"units": 6, "accepted": 1}}


def test_the_report_for_people_says_the_same(tmp_path: Path, server: Server):
    text = (run(tmp_path, server) / "report.md").read_text()
    assert "6 units, 1 accepted (16.7%)" in text
    assert "| question_duplicate | 4 | 66.7% | questions |" in text
    assert "77777" in text.partition("## number_not_in_document")[2]


def test_rejects_have_the_key_columns_of_samples(tmp_path: Path, server: Server):
    work = run(tmp_path, server)
    table = pq.read_table(work / "rejects" / "part-00000.parquet")
    assert table.schema.equals(REJECTS)
    [sample] = pq.read_table(work / "samples" / "part-00000.parquet").to_pylist()
    metadata = dict(sample["metadata"])
    for row in table.to_pylist():
        keys = ("recipe", "recipe_hash", "verification", "generator", "doc_domain")
        assert {key: row[key] for key in keys} == {key: metadata[key] for key in keys}
        assert (row["domain"], row["language"], row["source"]) == ("synth_cot", "eng", "cc")
        assert row["reason"] in REASONS
    ids = [*table["sample_id"].to_pylist(), sample["id"]]
    assert len(set(ids)) == 6


def test_stages_are_passed_until_one_fails():
    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

    works = [Work({"id": str(n)}, "", None, Reject(stage, "r", "") if stage else None)
             for n, stage in enumerate(["one", "two", None, "document"])]  # fmt: skip
    assert passed_stages(works, [Named("one"), Named("two")]) == {"one": 2, "two": 1}  # type: ignore[arg-type]


def test_meanings_of_verdicts_with_details():
    assert meaning_of("empty") == REASONS["empty"][1]
    assert meaning_of("nothing of the kind") == ""
