import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from pipelines.errors import DataError, RecipeError, StepError
from pipelines.journal import journal_to, read_journal
from pipelines.store import Outcome
from synth import backward
from synth.generate import synthesize
from synth.recipe import SynthSettings
from synth.response_log import LOG
from tests.synth.conftest import (
    CAVES,
    GOOD,
    Server,
    completion,
    cut_connection,
    good,
    measured,
    stage_of,
    status,
    write_documents,
)
from tests.synth.test_generate import bytes_of, ledger, only, run, settings_for

ROOT = Path(__file__).resolve().parents[2]
OWN_WORDS = "Document {} adds: on its north side lies a quarry that nobody has entered for a long time."


def many(folder: Path, count: int) -> Path:
    return write_documents(
        folder / "in" / "many.parquet", {f"d{n}": f"{CAVES} {OWN_WORDS.format(n)}" for n in range(count)}
    )


def payload(body: dict) -> str:
    return json.dumps(body, sort_keys=True)


def test_the_ledger_says_what_became_of_every_request(caves: Path, tmp_path: Path, server: Server):
    prices = {"price_per_million_prompt": 2.0, "price_per_million_completion": 10.0}
    outcome = synthesize([caves], tmp_path / "w", settings_for(server, prices))
    rows = ledger(tmp_path / "w")
    assert [(row["stage"], row["status"], row["http_code"], row["error_class"]) for row in rows] == [
        (stage, "answered", 200, "") for stage in ("segment", "abstract", "chain", "question")
    ]
    assert {(row["model"], row["finish_reason"], row["verdict"]) for row in rows} == {("m", "stop", "")}
    assert [row["json_read"] for row in rows] == ["strict", "strict", "strict", ""]
    assert rows[0]["cost_usd"] == pytest.approx((7 * 2 + 3 * 10) / 1e6)
    assert outcome.metrics["cost_usd"] == pytest.approx(4 * 44 / 1e6)
    assert outcome.metrics["yield"] == 1.0
    assert outcome.metrics["cost_usd_per_million_accepted_tokens"] == pytest.approx(4 * 44 / 12)


def test_without_prices_there_is_no_cost(caves: Path, tmp_path: Path, server: Server):
    outcome = run([caves], tmp_path / "w", server)
    assert (outcome.metrics["cost_usd"], ledger(tmp_path / "w")[0]["cost_usd"]) == (None, None)


def test_what_was_rejected_costs_and_yields_nothing(caves: Path, tmp_path: Path, server: Server):
    server.answer = lambda body: completion("No idea.")
    outcome = run([caves], tmp_path / "w", server)
    assert (outcome.metrics["yield"], outcome.metrics["completion_tokens"]) == (0.0, 3)
    [row] = ledger(tmp_path / "w")
    assert (row["status"], row["verdict"], row["json_read"]) == ("answered", "not_json", "")


MENDED = [
    ("```json\n{}\n```", "fence"),
    ("Here it is:\n{}\nDone.", "prose"),
    ("Here it is:\n```json\n{}\n```", "prose"),
]


@pytest.mark.parametrize(("around", "how"), MENDED, ids=["fence", "prose", "fence in prose"])
def test_how_json_was_read_is_never_silent(caves: Path, tmp_path: Path, server: Server, around: str, how: str):
    server.answer = lambda body: completion(
        around.replace("{}", GOOD["segment"])
        if len(server.calls) == 1
        else good(body)[1]["choices"][0]["message"]["content"]
    )
    outcome = run([caves], tmp_path / "w", server)
    assert (outcome.counts.kept, ledger(tmp_path / "w")[0]["json_read"]) == (1, how)
    assert outcome.metrics["json_read"] == {how: 1, "strict": 2}


def test_schemas_go_to_servers_that_keep_them(caves: Path, tmp_path: Path, server: Server):
    run([caves], tmp_path / "a", server)
    asked = [body.get("response_format", {}).get("type") for body in server.calls]
    assert asked == ["json_schema"] * 3 + [None]
    synthesize([caves], tmp_path / "b", settings_for(server, {"json_schema": False}))
    assert not any("response_format" in body for body in server.calls[4:])


@pytest.mark.parametrize(
    ("fault", "reason", "code"),
    [(status(400, "no"), "refused_by_engine", 400), (status(422), "refused_by_engine", 422),
     (status(400, "maximum context length"), "prompt_too_long", 400)],
    ids=["400", "422", "too long"],
)  # fmt: skip
def test_a_refusal_is_logged_and_never_asked_again(
    caves: Path, tmp_path: Path, server: Server, fault, reason: str, code: int
):
    server.answer = lambda body: fault
    first = run([caves], tmp_path / "w", server)
    assert (first.counts.rejected, len(server.calls)) == ({reason: 1}, 1)
    [row] = ledger(tmp_path / "w")
    assert (row["http_code"], row["error_class"], row["verdict"]) == (code, "deterministic", reason)
    assert run([caves], tmp_path / "w", server) == first
    assert len(server.calls) == 1


def test_poison_is_asked_again_only_when_told(tmp_path: Path, server: Server):
    file, bad = many(tmp_path, 3), "Document 1 adds"
    server.answer = lambda body: cut_connection if bad in body["messages"][0]["content"] else good(body)
    engine = {"patience_s": 20}
    first = synthesize([file], tmp_path / "w", settings_for(server, engine))
    assert first.counts.rejected["poison"] == 1
    assert first.metrics["errors"] == {"poison": 1}
    server.answer, calls = good, len(server.calls)
    assert synthesize([file], tmp_path / "w", settings_for(server, engine)) == first
    assert len(server.calls) == calls
    again = synthesize([file], tmp_path / "w", settings_for(server, engine | {"retry_quarantined": True}))
    assert "poison" not in again.counts.rejected
    assert {stage_of(body["messages"][0]["content"]) for body in server.calls[calls:]} == {
        "segment",
        "abstract",
        "chain",
        "question",
    }
    assert len(server.calls) == calls + 4


def test_a_server_that_goes_away_costs_nothing_twice(tmp_path: Path, server: Server):
    file = many(tmp_path, 5)
    server.answer = lambda body: good(body) if len(server.answered) < 9 else status(503)
    with pytest.raises(StepError, match="run again to resume"):
        run([file], tmp_path / "w", server)
    server.answer = good
    outcome = run([file], tmp_path / "w", server)
    assert outcome.metrics["answers"] == 20
    assert max(Counter(map(payload, server.answered)).values()) == 1


def test_another_parser_asks_nothing_again(
    caves: Path, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
):
    log, known = tmp_path / "log", settings_for(server, {"revision": "1"})
    synthesize([caves], tmp_path / "a", known, log=log)
    calls = len(server.calls)
    stages = list(backward.STAGES)
    stages[3] = type(stages[3])("question", stages[3].slots, lambda answer, draft, limits: "not_a_question")
    monkeypatch.setattr(backward, "STAGES", tuple(stages))
    stricter = synthesize(
        [caves], tmp_path / "b", known, log=log, earlier=[tmp_path / "a" / "responses"]
    )  # fmt: skip
    assert (stricter.counts.rejected, len(server.calls)) == ({"not_a_question": 1}, calls)


def test_of_a_server_without_a_revision_nothing_is_shared(caves: Path, tmp_path: Path, server: Server):
    run([caves], tmp_path / "a", server)
    synthesize([caves], tmp_path / "b", settings_for(server), earlier=[tmp_path / "a" / "responses"])
    assert len(server.calls) == 8


@pytest.mark.parametrize("stage", ["segment", "abstract", "chain"])
def test_half_a_character_is_no_json(caves: Path, tmp_path: Path, server: Server, stage: str):
    spoilt = GOOD[stage].replace('": "', '": "\\ud83d', 1) if stage != "abstract" else '{"abstracts": ["\\ud83d"]}'
    server.answer = lambda body: completion((GOOD | {stage: spoilt})[stage_of(body["messages"][0]["content"])])
    first = run([caves], tmp_path / "w", server)
    assert first.counts.rejected == {"not_json": 1}
    assert run([caves], tmp_path / "w", server) == first


def test_a_document_may_say_what_models_say_who_decline(tmp_path: Path, server: Server):
    text = f"I cannot believe it, she said. {CAVES}"
    segment = GOOD["segment"].replace("Rainwater that falls", "I cannot believe it")
    server.answer = lambda body: completion((GOOD | {"segment": segment})[stage_of(body["messages"][0]["content"])])
    assert run([write_documents(tmp_path / "d.parquet", {"d": text})], tmp_path / "w", server).counts.kept == 1


def test_who_declines_to_write_json_declines(caves: Path, tmp_path: Path, server: Server):
    server.answer = lambda body: completion("I'm sorry, I cannot help with that.")
    assert run([caves], tmp_path / "w", server).counts.rejected == {"refusal": 1}


def test_a_long_template_does_not_pass_the_budget(tmp_path: Path, server: Server):
    def wordy(body: dict) -> tuple[int, dict]:
        code, reply = measured(body)
        reply["usage"]["prompt_tokens"] += 600
        return code, reply

    file, server.answer = many(tmp_path, 20), wordy
    budgeted(file, tmp_path / "w", server, budget_tokens=10_000)
    assert 5000 < spent(tmp_path / "w") <= 10_000


def test_another_model_on_the_same_log_is_a_mistake(caves: Path, tmp_path: Path, server: Server):
    run([caves], tmp_path / "a", server)
    other = settings_for(server, {"model_name": "other"})
    with pytest.raises(DataError, match="holds answers of endpoint 1 m, this is endpoint 1 other"):
        synthesize([caves], tmp_path / "b", other, log=tmp_path / "log", replaces=tmp_path / "a")
    meant = synthesize([caves], tmp_path / "b", other, log=tmp_path / "log", replaces=tmp_path / "a", other_model=True)
    assert (meant.counts.kept, len(server.calls)) == (1, 8)


def spent(work: Path) -> int:
    return sum(row["prompt_tokens"] + row["completion_tokens"] for row in ledger(work))


def budgeted(file: Path, work: Path, server: Server, replaces: Path | None = None, **budget) -> Outcome:
    prices = {"price_per_million_prompt": 1.0, "price_per_million_completion": 1.0}
    settings = settings_for(server, prices, sampling={"max_tokens": 300}, **budget)
    return synthesize([file], work, settings, log=work.parent / "log", replaces=replaces)


@pytest.mark.parametrize("budget", [{"budget_tokens": 6000}, {"budget_usd": 0.006}], ids=["tokens", "dollars"])
def test_a_budget_is_never_passed_and_a_higher_one_goes_on(tmp_path: Path, server: Server, budget: dict):
    file, server.answer = many(tmp_path, 20), measured
    low = budgeted(file, tmp_path / "low", server, **budget)
    assert 3000 < spent(tmp_path / "low") <= 6000
    assert low.counts.rejected["budget"] >= 10
    assert low.counts.docs_in == low.counts.kept + sum(low.counts.rejected.values()) == 20
    assert len(server.calls) == len(ledger(tmp_path / "low"))
    whole = budgeted(file, tmp_path / "whole", server, tmp_path / "low")
    assert "budget" not in whole.counts.rejected
    assert len(server.calls) == len(ledger(tmp_path / "whole")) == 80
    assert max(Counter(map(payload, server.calls)).values()) == 1


def test_a_lower_budget_loses_nothing_that_was_paid(tmp_path: Path, server: Server):
    file, server.answer = many(tmp_path, 20), measured
    whole = budgeted(file, tmp_path / "whole", server)
    calls = len(server.calls)
    budgeted(file, tmp_path / "low", server, tmp_path / "whole", budget_tokens=5000)
    shutil.rmtree(tmp_path / "whole")  # its place was taken
    assert budgeted(file, tmp_path / "again", server, tmp_path / "low") == whole
    assert len(server.calls) == calls
    assert not (tmp_path / "log").exists()  # all of it is published now


def test_a_budget_falls_at_the_same_place_whatever_was_known_before(tmp_path: Path, server: Server):
    file, server.answer = many(tmp_path, 20), measured
    budgeted(file, tmp_path / "whole", server)
    calls = len(server.calls)
    budgeted(file, tmp_path / "known", server, tmp_path / "whole", budget_tokens=5000)
    assert len(server.calls) == calls
    (tmp_path / "other").mkdir()
    budgeted(file, tmp_path / "other" / "fresh", server, budget_tokens=5000)
    assert bytes_of(tmp_path / "known") == bytes_of(tmp_path / "other" / "fresh")


def test_a_budget_too_small_for_one_call_asks_nothing(caves: Path, tmp_path: Path, server: Server):
    outcome = run([caves], tmp_path / "w", server, budget_tokens=10)
    assert (outcome.counts.rejected, server.calls) == ({"budget": 1}, [])
    assert only(tmp_path / "w" / "rejects" / "part-00000.parquet")["stage"] == "segment"


def test_dollars_need_prices(caves: Path, tmp_path: Path, server: Server):
    with pytest.raises(RecipeError, match="price_per_million_prompt"):
        run([caves], tmp_path / "w", server, budget_usd=1.0)


def test_speed_goes_to_the_journal_alone(caves: Path, tmp_path: Path, server: Server):
    with journal_to(tmp_path / "journal.jsonl"):
        run([caves], tmp_path / "w", server)
    [event] = [event for event in read_journal(tmp_path / "journal.jsonl") if event["event"] == "synth"]
    assert event["asked"] == 4
    assert {"latency_p50_s", "latency_p99_s", "tokens_per_second"} <= event.keys()


SCRIPT = """
import sys
from pathlib import Path
from synth.generate import synthesize
from synth.recipe import SynthSettings
documents, work, settings = sys.argv[1:]
synthesize([Path(documents)], Path(work), SynthSettings.model_validate_json(settings))
"""


def weak(body: dict) -> tuple[int, dict]:
    """A model that is wrong at every third thing, always the same ones."""
    code, reply = good(body)
    if body["seed"] % 3 == 0:
        reply["choices"][0]["message"]["content"] = "No idea."
    return code, reply


def start(documents: Path, work: Path, settings: SynthSettings) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SCRIPT, str(documents), str(work), settings.model_dump_json()]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment)


def check_kills(tmp_path: Path, server: Server, at: list[int], concurrency: int) -> None:
    """Kill runs at the given calls (each counted from its start), resume, compare with a run that nobody killed."""
    file, server.answer = many(tmp_path, 8), weak
    whole = synthesize([file], tmp_path / "whole", settings_for(server, {"patience_s": 30}, attempts=2))
    expected, server.calls[:], server.answered[:] = len(server.calls), [], []
    settings = settings_for(server, {"concurrency": concurrency, "patience_s": 30}, attempts=2)
    log = tmp_path / "work" / ".scratch" / "answers" / "responses" / LOG
    for number in at:
        before, known = len(server.calls), set(map(payload_of, read_whole(log)))
        process = start(file, tmp_path / "work", settings)

        def kill(body: dict, number: int = number, before: int = before, process: subprocess.Popen = process):
            if len(server.calls) - before >= number:
                process.send_signal(signal.SIGKILL)
            return weak(body)

        server.answer = kill
        assert process.wait() == -signal.SIGKILL
        assert not known & set(map(payload, server.calls[before:]))  # what was in the log is not asked again
    server.answer, before = weak, len(server.calls)
    known = set(map(payload_of, read_whole(log)))
    assert synthesize([file], tmp_path / "work", settings) == whole
    assert bytes_of(tmp_path / "work") == bytes_of(tmp_path / "whole")
    assert not known & set(map(payload, server.calls[before:]))
    assert len(server.calls) <= expected + len(at) * (concurrency + 1)  # twice only what was under way at a kill


def read_whole(log: Path) -> list[bytes]:
    return [line for line in log.read_bytes().splitlines(True) if line.endswith(b"\n")] if log.is_file() else []


def payload_of(line: bytes) -> str:
    return payload(json.loads(line)["payload"])


def test_killed_in_the_midst_and_resumed(tmp_path: Path, server: Server):
    check_kills(tmp_path, server, [11], concurrency=3)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_killed_anywhere_and_resumed(tmp_path: Path, server: Server, seed: int):
    rng = random.Random(seed)
    check_kills(tmp_path, server, [rng.randint(1, 10) for _ in range(3)], concurrency=rng.choice([1, 4, 8]))
