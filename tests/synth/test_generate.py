import json
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.execute import SCRATCH
from pipelines.recipe import load_recipe
from pipelines.store import Outcome
from synth.generate import synthesize
from synth.recipe import SynthSettings
from synth.verification import REASONS
from tests.synth.conftest import CAVES, GOOD, Server, completion, stage_of, write_documents


def run(files: list[Path], work: Path, server: Server, **change) -> Outcome:
    return synthesize(files, work, settings_for(server, **change))


def settings_for(server: Server, engine: dict | None = None, **change) -> SynthSettings:
    asked = {"name": "endpoint", "url": server.url, "model_name": "m", "retries": 0, "patience_s": 0.2}
    return SynthSettings(**{"min_chars": 100, "engine": asked | (engine or {}), **change})


def ledger(work: Path) -> list[dict]:
    return pq.read_table(work / "ledger.parquet").to_pylist()


def only(path: Path) -> dict:
    [row] = pq.read_table(path).to_pylist()
    return row


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Of all outputs: what is in scratch goes before a step is sealed."""
    files = {p.relative_to(folder): p for p in sorted(folder.rglob("*")) if p.is_file()}
    return {name.as_posix(): p.read_bytes() for name, p in files.items() if name.parts[0] != SCRATCH}


def test_right_answers_make_a_sample(caves: Path, tmp_path: Path, server: Server):
    outcome = run([caves], tmp_path / "w", server)
    assert (outcome.counts.kept, outcome.metrics["passed_stage"]["question"]) == (1, 1)
    sample = only(tmp_path / "w" / "samples" / "part-00000.parquet")
    metadata = dict(sample["metadata"])
    assert sample["text"].startswith(GOOD["question"] + "\n\n1. Rain picks up")
    assert sample["text"].endswith("\n\n" + CAVES)
    assert (sample["domain"], sample["source"], sample["origin"]["file"]) == ("synth_cot", "cc", "raw.warc")
    assert (metadata["doc_id"], metadata["question"]) == ("caves", GOOD["question"])
    spans = [CAVES[start:end] for start, end in json.loads(metadata["segments"])]
    assert "".join(spans).replace(" ", "") == CAVES.replace("\n", "").replace(" ", "")
    assert [segment for segment, _ in json.loads(metadata["steps"])] == [1, 2, 3]
    assert "{{" not in json.dumps(server.calls)


def test_ledger_counts_every_call(caves: Path, tmp_path: Path, server: Server):
    outcome = run([caves], tmp_path / "w", server)
    rows = pq.read_table(tmp_path / "w" / "ledger.parquet").to_pylist()
    assert [row["stage"] for row in rows] == ["segment", "abstract", "chain", "question"]
    assert (outcome.metrics["prompt_tokens"], outcome.metrics["completion_tokens"]) == (28, 12)
    logged = [json.loads(line)["key"] for line in (tmp_path / "w" / "responses" / "responses.jsonl").open()]
    assert sorted(row["request_key"] for row in rows) == logged


WRONG = [
    ("segment", "No idea.", "not_json"),
    ("segment", GOOD["segment"].replace("Rainwater that falls", "Snow that falls"), "marker_not_found"),
    ("segment", GOOD["segment"].replace("Over 10,000 years", "Rainwater that falls"), "overlap"),
    ("segment", '{"segments": [{"start": "Rainwater"}]}', "wrong_shape"),
    ("segment", GOOD["segment"].replace("millimetres a year.", "the passages are"), "coverage_low"),
    ("abstract", '{"abstracts": ["Rain is an acid."]}', "abstract_count"),
    ("abstract", GOOD["abstract"].replace("10000", "20000"), "number_not_in_document"),
    ("chain", '{"steps": [{"segment": 1, "thought": "Rain."}]}', "step_count"),
    ("chain", GOOD["chain"].replace('"segment": 2', '"segment": 7'), "citation_invalid"),
    ("chain", GOOD["chain"].replace('"segment": 3', '"segment": 1'), "step_order"),
    ("chain", GOOD["chain"].replace("Rain picks", "The passage says rain picks"), "meta_phrase"),
    ("question", "Rain makes caves.", "not_a_question"),
    ("question", "Why is it that rainwater that falls on limestone is slightly acidic, because of air?",
     "question_copies_document"),
    ("question", "Почему дождь создаёт пещеры в известняке?", "language_mismatch"),
    ("question", "As an AI I cannot ask that, can I?", "refusal"),
    ("question", " ", "empty"),
]  # fmt: skip


@pytest.mark.parametrize(("stage", "answer", "reason"), WRONG, ids=[f"{stage}-{reason}" for stage, _, reason in WRONG])
def test_wrong_answers_are_rejected_by_reason(
    caves: Path, tmp_path: Path, server: Server, stage: str, answer: str, reason: str
):
    server.answer = lambda body: completion((GOOD | {stage: answer})[stage_of(body["messages"][0]["content"])])
    outcome = run([caves], tmp_path / "w", server)
    assert (outcome.counts.docs_in, outcome.counts.kept, outcome.counts.rejected) == (1, 0, {reason: 1})
    reject = only(tmp_path / "w" / "rejects" / "part-00000.parquet")
    assert (reject["id"], reject["reason"], reject["stage"], reject["excerpt"]) == (
        "caves",
        reason,
        stage,
        answer[:300],
    )
    assert stage_of(server.calls[-1]["messages"][0]["content"]) == stage  # nothing more was asked
    assert pq.read_table(tmp_path / "w" / "samples" / "part-00000.parquet").num_rows == 0
    assert reason in REASONS


def test_a_truncated_answer_is_never_used(caves: Path, tmp_path: Path, server: Server):
    server.answer = lambda body: completion(GOOD[stage_of(body["messages"][0]["content"])], "length")
    assert run([caves], tmp_path / "w", server).counts.rejected == {"truncated": 1}


def test_a_second_attempt_may_pass(caves: Path, tmp_path: Path, server: Server):
    server.answer = lambda body: completion(
        "No idea." if len(server.calls) == 1 else GOOD[stage_of(body["messages"][0]["content"])]
    )
    outcome = run([caves], tmp_path / "w", server, attempts=2)
    assert (outcome.counts.kept, outcome.metrics["answers"]) == (1, 5)
    assert server.calls[0]["seed"] != server.calls[1]["seed"]


def test_running_again_asks_nothing(caves: Path, tmp_path: Path, server: Server):
    first = run([caves], tmp_path / "w", server)
    before, calls = bytes_of(tmp_path / "w"), len(server.calls)
    assert run([caves], tmp_path / "w", server) == first
    assert (bytes_of(tmp_path / "w"), len(server.calls)) == (before, calls)


def test_other_thresholds_ask_nothing_again(caves: Path, tmp_path: Path, server: Server):
    run([caves], tmp_path / "w", server)
    calls = len(server.calls)
    stricter = run([caves], tmp_path / "w", server, limits={"min_segment_chars": 150})
    assert (stricter.counts.rejected["segment_length"], len(server.calls)) == (1, calls)


def test_replay_gives_the_same_samples(caves: Path, tmp_path: Path, server: Server):
    run([caves], tmp_path / "w", server)
    engine = {"name": "replay", "responses": tmp_path / "w" / "responses"}
    synthesize([caves], tmp_path / "again", SynthSettings(min_chars=100, engine=engine))
    assert bytes_of(tmp_path / "again") == bytes_of(tmp_path / "w")


def test_order_of_answers_changes_nothing(tmp_path: Path, server: Server):
    file = write_documents(tmp_path / "d.parquet", {f"d{n}": CAVES for n in range(6)})

    def slowly(body: dict) -> tuple[int, dict]:
        time.sleep(body["seed"] % 7 / 500)
        return completion(GOOD[stage_of(body["messages"][0]["content"])])

    one_question = {"questions": False}
    assert run([file], tmp_path / "a", server, screen=one_question).counts.kept == 6
    server.answer = slowly
    run([file], tmp_path / "b", server, screen=one_question)
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")


def test_documents_are_drawn_by_hash_not_by_place(tmp_path: Path, server: Server):
    texts = {f"d{n}": CAVES for n in range(30)}
    whole = write_documents(tmp_path / "whole.parquet", texts)
    items = list(texts.items())
    parts = [write_documents(tmp_path / f"{n}.parquet", dict(items[n::3])) for n in (2, 0, 1)]
    drawn = []
    for name, files in (("w", [whole]), ("p", parts)):
        run(files, tmp_path / name, server, max_documents=4, screen={"questions": False})
        drawn.append([row["doc_id"] for row in ledger(tmp_path / name)])
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 4


def test_documents_that_do_not_fit_are_counted_not_drawn(tmp_path: Path, server: Server):
    texts = {"short": "x", "long": CAVES * 40, "marks": CAVES + "<|im_start|>system", "fits": CAVES}
    outcome = run([write_documents(tmp_path / "d.parquet", texts)], tmp_path / "w", server)
    seen = {"documents": 4, "too_short": 1, "too_long": 1, "control_tokens": 1, "repeated_id": 0, "held_out": 0}
    assert (outcome.counts.docs_in, outcome.metrics["seen"]) == (1, seen)


def test_no_documents_is_no_error(tmp_path: Path, server: Server):
    outcome = run([write_documents(tmp_path / "d.parquet", {"short": "x"})], tmp_path / "w", server)
    assert (outcome.counts.docs_in, outcome.metrics["accepted_share"], server.calls) == (0, None, [])


def test_the_shipped_recipe_loads():
    settings = load_recipe("cot_backward", SynthSettings, ["engine.name=endpoint", "sampling.max_tokens=64"])
    assert (settings.recipe, settings.engine.name, settings.sampling.max_tokens) == ("cot_backward", "endpoint", 64)
