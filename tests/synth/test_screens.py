import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.decontaminate import DecontaminateSettings
from pipelines.errors import RecipeError
from pipelines.manifest import Counts
from pipelines.model_cost import HubModel
from synth.generate import synthesize
from synth.judge import read_verdict, same_model
from synth.protocol import Identity
from synth.recipe import SynthSettings
from synth.screening import Screening
from synth.verification import REASONS, Limits
from tests.synth.conftest import CAVES, GOOD, Server, completion, stage_of, write_documents

FINE = {"scores": {"faithful": 5, "coherent": 4, "useful": 3}, "reason": "It could say more."}
JUDGE = {"name": "endpoint", "model_name": "judge", "retries": 0}


def engine(server: Server, **change) -> dict:
    return {"name": "endpoint", "url": server.url, "model_name": "m", "retries": 0} | change


def run(files: list[Path], work: Path, server: Server, screening: Screening | None = None, **change) -> Counts:
    settings = SynthSettings.model_validate({"min_chars": 100, "engine": engine(server), **change})
    outcome = synthesize(files, work, settings, screening=screening)
    assert outcome.counts is not None
    return outcome.counts


def judged(server: Server, answer: str) -> dict:
    """Settings for a judge at the same server; it answers so."""
    server.answer = lambda body: completion(
        answer if body["model"] == "judge" else GOOD[stage_of(body["messages"][0]["content"])]
    )
    return {"engine": engine(server, model_name="judge")}


def rows(path: Path) -> list[dict]:
    return pq.read_table(path).to_pylist()


def samples(work: Path) -> list[dict]:
    return rows(work / "samples" / "part-00000.parquet")


def rejects(work: Path) -> list[dict]:
    return rows(work / "rejects" / "part-00000.parquet")


def bytes_of(folder: Path) -> dict[str, bytes]:
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files if ".scratch" not in p.parts}


def items(path: Path, *texts: str) -> Path:
    path.write_text("".join(json.dumps({"id": str(n), "question": text}) + "\n" for n, text in enumerate(texts)))
    return path


def test_one_question_is_kept_once(tmp_path: Path, server: Server):
    file = write_documents(tmp_path / "d.parquet", {f"d{n}": CAVES for n in range(4)})
    counts = run([file], tmp_path / "w", server)
    assert (counts.kept, counts.rejected) == (1, {"question_duplicate": 3})
    [kept] = samples(tmp_path / "w")
    assert all(kept["id"] < row["sample_id"] for row in rejects(tmp_path / "w"))
    assert {dict(row["facts"])["duplicate_of"] for row in rejects(tmp_path / "w")} == {kept["id"]}


def test_contaminated_documents_are_never_asked_about(tmp_path: Path, server: Server):
    item = "Over 10,000 years the acid dissolves the rock along its cracks. The cracks widen into passages."
    file = write_documents(
        tmp_path / "d.parquet", {"dirty": CAVES, "clean": CAVES.replace("rock along its", "stone in")}
    )
    server.answer = lambda body: completion("No idea.")
    work = tmp_path / "w"
    counts = run([file], work, server, Screening([items(tmp_path / "bench.jsonl", item)]))
    assert counts.rejected == {"contaminated": 1, "not_json": 1}
    assert len(server.calls) == 1
    at = CAVES.index("Over 10,000")
    [row] = [row for row in rejects(work) if row["reason"] == "contaminated"]
    assert (row["doc_id"], row["stage"], row["excerpt"].split(":")[0]) == (
        "dirty",
        "document",
        f"bench 0 [{at}, {at + len(item) - 1})",
    )
    [hit] = rows(work / "contamination.parquet")
    assert CAVES[hit["start"] : hit["end"]] == hit["text"] == item.rstrip(".")


def test_a_model_that_knows_the_benchmark_is_caught(caves: Path, tmp_path: Path, server: Server):
    item = "How does the ordinary rain of every autumn end up making wide caves with stalactites in limestone?"
    server.answer = lambda body: completion((GOOD | {"question": item})[stage_of(body["messages"][0]["content"])])
    work = tmp_path / "w"
    counts = run([caves], work, server, Screening([items(tmp_path / "bench.jsonl", item)]))
    assert counts.rejected == {"contaminated": 1}
    assert [(row["stage"], row["reason"]) for row in rejects(work)] == [("benchmarks", "contaminated")]
    assert [row["stage"] for row in rows(work / "contamination.parquet")] == ["benchmarks"]


def test_all_planted_canaries_are_found(tmp_path: Path, server: Server):
    canaries = [f"Canary number {n}: which of the {n + 40} grey stones by the northern gate of the old town did the "
                f"mason number {n + 90} carve first in spring?" for n in range(60)]  # fmt: skip
    texts = {f"canary{n}": f"{CAVES}\n{text.upper()}" for n, text in enumerate(canaries)}
    texts |= {f"clean{n}": f"{CAVES} Stone {n}." for n in range(20)}
    server.answer = lambda body: completion("No idea.")
    file = write_documents(tmp_path / "d.parquet", texts)
    run([file], tmp_path / "w", server, Screening([items(tmp_path / "canaries.jsonl", *canaries)]))
    found = {row["doc_id"] for row in rejects(tmp_path / "w") if row["reason"] == "contaminated"}
    assert found == {name for name in texts if name.startswith("canary")}


def test_the_judge_marks_samples(caves: Path, tmp_path: Path, server: Server):
    counts = run([caves], tmp_path / "w", server, judge=judged(server, json.dumps(FINE)))
    assert counts.kept == 1
    [sample] = samples(tmp_path / "w")
    metadata = dict(sample["metadata"])
    assert json.loads(metadata["judge_scores"]) == FINE["scores"]
    assert (metadata["judge"], metadata["judge_reason"]) == ("endpoint 1 judge", FINE["reason"])
    asked = server.calls[-1]
    assert (asked["model"], asked["temperature"]) == ("judge", 0)
    assert CAVES in asked["messages"][0]["content"]
    assert asked["messages"][0]["content"].count(CAVES) == 1
    ledger = rows(tmp_path / "w" / "ledger.parquet")
    assert [row["stage"] for row in ledger] == ["segment", "abstract", "chain", "question", "judge"]
    assert len((tmp_path / "w" / "judge" / "responses.jsonl").read_bytes().splitlines()) == 1


LOW = {**FINE, "scores": {**FINE["scores"], "faithful": 2}}
VERDICTS = [
    (json.dumps(LOW), {}, "judge_low"),
    (json.dumps(LOW), {"min_judge_score": 2}, None),
    (json.dumps(FINE), {"min_judge_score": 4}, "judge_low"),
    ("Quite good, I think.", {}, "judge_unreadable"),
    ("Quite good, I think.", {"keep_undecided": True}, None),
    ('{"scores": {"faithful": 5}, "reason": "fine"}', {}, "judge_unreadable"),
    (json.dumps({**FINE, "scores": {**FINE["scores"], "faithful": 9}}), {}, "judge_unreadable"),
]


@pytest.mark.parametrize(("answer", "limits", "reason"), VERDICTS)
def test_verdicts(caves: Path, tmp_path: Path, server: Server, answer: str, limits: dict, reason: str | None):
    counts = run([caves], tmp_path / "w", server, judge=judged(server, answer), limits=limits)
    assert counts.rejected == ({reason: 1} if reason else {})
    assert reason is None or reason in REASONS
    if reason:
        [row] = rejects(tmp_path / "w")
        assert (row["stage"], dict(row["facts"])["judge"]) == ("judge", "endpoint 1 judge")


def test_the_generator_may_not_judge_itself(caves: Path, tmp_path: Path, server: Server):
    with pytest.raises(RecipeError, match="the judge is the generator"):
        run([caves], tmp_path / "w", server, judge={"engine": engine(server)})
    assert not server.calls


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (("a", "d1"), ("b", "d1"), True),
        (("a", "d1"), ("a", "d2"), False),
        (("a", ""), ("a", ""), True),
        (("a", ""), ("b", ""), False),
        (("local", "d1"), ("a", ""), False),
    ],
)
def test_models_are_told_apart(one: tuple[str, str], other: tuple[str, str], same: bool):
    first, second = (Identity(model=m, digest=d, backend="x", version="1") for m, d in (one, other))
    assert same_model(first, second) is same


def hub(dataset: str, revision: str | None = None) -> HubModel:
    return HubModel(dataset=dataset, revision=revision)


def test_a_folder_and_a_server_of_one_repository_are_one_model():
    folder = Identity(model="local", digest="d1", backend="vllm", version="1")
    served = Identity(model="Org/Model-7B", digest="", backend="endpoint", version="1")
    assert not same_model(folder, served)
    assert same_model(served, folder, None, hub("org/model-7b"))
    assert same_model(folder, served, hub("Org/Model-7B", "r1"), hub("Other/Name"))
    alias = served.model_copy(update={"model": "judge"})
    assert same_model(folder, alias, hub("Org/Model-7B"), hub("Org/Model-7B"))
    assert not same_model(folder, alias, hub("Org/Model-7B"), hub("Org/Model-72B"))


def test_another_size_of_ngram(tmp_path: Path, server: Server):
    item = "Nobody knows why over 10,000 years the acid dissolves the rock along its stony sides in the far north."
    bench, file = [items(tmp_path / "bench.jsonl", item)], write_documents(tmp_path / "d.parquet", {"caves": CAVES})
    assert run([file], tmp_path / "a", server, Screening(bench)).rejected == {}
    given = Screening(bench, decontaminate=DecontaminateSettings(ngram=8))
    assert run([file], tmp_path / "b", server, given).rejected == {"contaminated": 1}
    stricter = {"decontaminate": {"ngram": 13}}  # the recipe's own word comes first
    assert run([file], tmp_path / "c", server, given, screen=stricter).rejected == {}


def test_samples_keep_the_licence_of_their_document(caves: Path, tmp_path: Path, server: Server):
    table = pq.read_table(caves)
    metadata = pa.array([[("licence", "CC-BY-4.0"), ("other", "x")]], pa.map_(pa.string(), pa.string()))
    pq.write_table(table.append_column("metadata", metadata), caves)
    run([caves], tmp_path / "w", server)
    [sample] = samples(tmp_path / "w")
    assert dict(sample["metadata"])["licence"] == "CC-BY-4.0"


def test_a_judge_in_this_process(caves: Path, tmp_path: Path, server: Server, tiny_model: Path):
    judge = {"model": tiny_model, "sampling": {"temperature": 0, "max_tokens": 4}}
    counts = run([caves], tmp_path / "w", server, judge=judge)
    assert counts.rejected == {"judge_unreadable": 1}


def test_another_threshold_asks_the_judge_nothing_again(caves: Path, tmp_path: Path, server: Server):
    judge = judged(server, json.dumps(FINE))
    run([caves], tmp_path / "w", server, judge=judge)
    calls = len(server.calls)
    counts = run([caves], tmp_path / "w", server, judge=judge, limits={"min_judge_score": 5})
    assert (counts.rejected, len(server.calls)) == ({"judge_low": 1}, calls)


def test_running_again_gives_the_same_bytes(tmp_path: Path, server: Server):
    file = write_documents(tmp_path / "d.parquet", {f"d{n}": CAVES for n in range(3)})
    bench = Screening([items(tmp_path / "bench.jsonl", "What is the deepest cave that anybody ever saw on the moon?")])
    settings = {"judge": judged(server, json.dumps(FINE))}
    run([file], tmp_path / "w", server, bench, **settings)
    before, calls = bytes_of(tmp_path / "w"), len(server.calls)
    run([file], tmp_path / "w", server, bench, **settings)
    assert (bytes_of(tmp_path / "w"), len(server.calls)) == (before, calls)
    run([file], tmp_path / "other", server, bench, **settings)
    assert bytes_of(tmp_path / "other") == before


def test_a_screened_rollout_still_counts_as_verified(tmp_path: Path, server: Server):
    file = tmp_path / "q.parquet"
    write_documents(file, {"q": "What is twice twenty-one, as a whole number, please?"})
    table = pq.read_table(file)
    metadata = pa.array([[("answer", "42")]], pa.map_(pa.string(), pa.string()))
    pq.write_table(table.append_column("metadata", metadata), file)
    marks = iter(["2", "5"])

    def answer(body: dict) -> tuple[int, dict]:
        if body["model"] != "judge":
            return completion("Twice 21 is \\boxed{42}.")
        scores = dict.fromkeys(("faithful", "coherent", "useful"), int(next(marks)))
        return completion(json.dumps({"scores": scores, "reason": "so"}))

    judge = {"engine": engine(server, model_name="judge", concurrency=1)}
    server.answer = answer
    counts = run([file], tmp_path / "w", server, recipe="cot_forward", rollouts=2, min_chars=1, judge=judge)
    assert counts.rejected == {"judge_low": 1}
    [sample] = samples(tmp_path / "w")
    assert dict(sample["metadata"])["pass_rate"] == "1.0"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [("", "not_json"), ("[]", "not_json"), ("{}", "wrong_shape"), ('{"scores": [], "reason": ""}', "wrong_shape"),
     ("null", "not_json"), ('{"scores": {}, "reason": 1}', "wrong_shape")],
)  # fmt: skip
def test_what_is_no_verdict(answer: str, reason: str):
    assert read_verdict(answer, None, Limits()) == reason


def test_half_a_character_in_the_reason_is_no_verdict(caves: Path, tmp_path: Path, server: Server):
    judge = judged(server, json.dumps({**FINE, "reason": "\ud83d"}))
    for _ in range(2):
        assert run([caves], tmp_path / "w", server, judge=judge).rejected == {"judge_unreadable": 1}


def test_dollars_need_the_judges_prices(caves: Path, tmp_path: Path, server: Server):
    prices = {"price_per_million_prompt": 1.0, "price_per_million_completion": 1.0}
    paid = engine(server, **prices)
    with pytest.raises(RecipeError, match=r"judge\.engine\.price_per_million_prompt"):
        run([caves], tmp_path / "w", server, engine=paid, budget_usd=1.0, judge=judged(server, json.dumps(FINE)))
    assert not server.calls
    judge = {"engine": engine(server, model_name="judge", **prices)}
    assert run([caves], tmp_path / "w", server, engine=paid, budget_usd=1.0, judge=judge).kept == 1


def test_what_screens_reject_yields_nothing(caves: Path, tmp_path: Path, server: Server):
    found = []
    for name, answer in (("low", LOW), ("fine", FINE)):
        judge = judged(server, json.dumps(answer))
        settings = SynthSettings.model_validate({"min_chars": 100, "engine": engine(server), "judge": judge})
        metrics = synthesize([caves], tmp_path / name, settings).metrics
        found.append((metrics["yield"], metrics["answers"], metrics["judge"]["answers"]))
    assert found == [(0.0, 4, 1), (1.0, 4, 1)]


def test_other_runs_verdicts_are_used_and_not_hoarded(caves: Path, tmp_path: Path, server: Server):
    judge = judged(server, json.dumps(FINE))
    judge["engine"]["revision"] = "1"
    settings = SynthSettings.model_validate({"min_chars": 100, "engine": engine(server), "judge": judge})
    synthesize([caves], tmp_path / "one", settings)
    many = write_documents(tmp_path / "m.parquet", {"d0": CAVES, "d1": f"{CAVES} Stone."})
    synthesize([many], tmp_path / "two", settings)
    shared, log = Screening(earlier=[tmp_path / name / "judge" for name in ("one", "two")]), tmp_path / "log" / "log"
    before = len(server.calls)
    synthesize([caves], tmp_path / "three", settings, log=log, screening=shared)
    assert "judge" not in [body["model"] for body in server.calls[before:]]
    assert not log.with_name("log-judge").exists()  # all of it is published


def test_verdicts_depend_on_who_screens(caves: Path, tmp_path: Path, server: Server):
    run([caves], tmp_path / "a", server)
    run([caves], tmp_path / "b", server, judge=judged(server, json.dumps(FINE)))
    hashes = [dict(samples(tmp_path / name)[0]["metadata"])["verification"] for name in "ab"]
    assert hashes[0] != hashes[1]
