"""`loam synth` and what it paid for: budgets, other settings, other models, servers that go away, signals."""

import json
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.conftest import SENTENCES
from tests.flows.conftest import Command, Loam, write_jsonl
from tests.synth.conftest import CAVES, Server, completion, good, measured, serving, status


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


def documents(folder: Path, count: int = 4) -> Path:
    texts = [
        f"{CAVES} Document {number} adds that a quarry lies on the north side of its hill." for number in range(count)
    ]
    return write_jsonl(folder / "in.jsonl", *({"id": f"d{n}", "text": text} for n, text in enumerate(texts)))


def asking(server: Server, file: Path, *more: object) -> list[object]:
    settings = {"min_chars": 100, "engine.url": server.url, "engine.patience_s": 0.3, "engine.model_name": "m",
                "sampling.max_tokens": 300, "screen.questions": "false"}  # fmt: skip
    sets = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    return ["synth", file, "--engine", "endpoint", "--out", "s", *sets, *more]


def ledger(folder: Path) -> list[dict]:
    return pq.read_table(folder / "s" / "ledger.parquet").to_pylist()


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def test_a_budget_stops_and_a_higher_one_goes_on(call: Command, tmp_path: Path, server: Server):
    file, server.answer = documents(tmp_path, 12), measured
    code, out, _ = call(*asking(server, file, "--budget-tokens", "4000", "--json"))
    low = json.loads(out)
    assert (code, low["counts"]["docs_in"]) == (0, 12)
    assert low["counts"]["rejected"]["budget"] > 0
    assert 0 < sum(row["prompt_tokens"] + row["completion_tokens"] for row in ledger(tmp_path)) <= 4000
    assert hidden(tmp_path) == []
    code, out, _ = call(*asking(server, file, "--budget-tokens", "1M", "--json"))
    assert (code, json.loads(out)["counts"]["kept"], len(ledger(tmp_path))) == (0, 12, 48)
    assert max(Counter(json.dumps(body) for body in server.calls).values()) == 1
    call(*asking(server, file, "--budget-tokens", "4000"))
    assert hidden(tmp_path) == [".s.answers"]  # what this run has no use for, and was paid for
    call(*asking(server, file))
    assert (len(server.calls), hidden(tmp_path)) == (48, [])


def test_a_budget_below_one_request_says_what_one_needs(call: Command, tmp_path: Path, server: Server):
    file, server.answer = documents(tmp_path, 1), measured
    code, out, _ = call(*asking(server, file, "--budget-tokens", "400", "--json"))
    told = json.loads(out)["metrics"]["budget"]
    assert (code, len(server.calls), told["left_tokens"]) == (0, 0, 400)
    needed = told["needed_tokens"]
    assert needed > 400
    code, out, _ = call(*asking(server, file, "--budget-tokens", str(needed - 1)))
    assert f"the next request may take {needed} tokens" in out
    assert (len(server.calls), f"of the budget {needed - 1} tokens are left" in out) == (0, True)
    call(*asking(server, file, "--budget-tokens", str(needed)))
    assert len(server.calls) == 1


def test_a_refused_synthesis_of_a_synthesis_leaves_nothing(call: Command, tmp_path: Path, server: Server):
    call(*asking(server, documents(tmp_path, 1), "--out", "w"))
    code, _, error = call("synth", "w", "--engine", "replay", "--out", "again")
    assert (code, "needs engine.responses" in error) == (2, True)
    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    code, _, error = call(*asking(server, tmp_path / "torn.parquet", "--out", "other"))
    assert (code, "torn.parquet is not readable Parquet" in error) == (3, True)
    assert not [name for name in hidden(tmp_path) if name.endswith(".answers")]
    call(*asking(server, documents(tmp_path, 1), "--out", "other"))
    assert hidden(tmp_path) == []  # though its reports are no documents, and were rejected


def test_a_corpus_is_told_what_its_text_is(call: Command, tmp_path: Path, server: Server):
    corpus = write_jsonl(tmp_path / "c.jsonl", *({"id": f"c{n}", "body": body} for n, body in enumerate(SENTENCES)))
    questions = write_jsonl(
        tmp_path / "q.jsonl", {"id": "q", "ask": "Where to?", "answer": "the plain", "doc_id": "c0"}
    )
    command = asking(server, questions, "--recipe", "cot_rag", "--text", "{ask}", "--corpus", corpus)
    command += ["--set", "min_chars=1", "--set", "rag.absent_share=0"]
    server.answer = lambda body: completion("nothing")
    code, _, error = call(*command)
    assert (code, "its fields are id, body; say what the text is, such as --corpus-text '{body}'" in error) == (3, True)
    code, _, error = call(*command, "--corpus-text", "body")
    assert (code, "--corpus-text 'body' names no field" in error, server.calls) == (2, True, [])
    assert call(*command, "--corpus-text", "{body}")[0] == 0
    asked = server.calls[0]["messages"][0]["content"]
    assert "Where to?" in asked
    assert SENTENCES[0] in asked


def test_other_thresholds_ask_nothing(call: Command, tmp_path: Path, server: Server):
    file = documents(tmp_path)
    call(*asking(server, file))
    code, out, _ = call(*asking(server, file, "--set", "limits.min_segment_chars=150", "--json"))
    assert (code, len(server.calls)) == (0, 16)
    assert json.loads(out)["counts"]["rejected"] == {"segment_length": 4}


def test_another_model_must_be_meant(call: Command, tmp_path: Path, server: Server):
    file = documents(tmp_path, 1)
    call(*asking(server, file))
    other = asking(server, file, "--set", "engine.model_name=other")
    code, _, error = call(*other)
    assert (code, error.count("\n"), len(server.calls)) == (3, 1, 4)
    assert "holds answers of endpoint 1 m, this is endpoint 1 other; give another --out" in error
    assert call(*other, "--allow-model-change")[0] == 0
    assert {body["model"] for body in server.calls[4:]} == {"other"}


def test_a_server_that_goes_away_is_one_line_and_costs_nothing_twice(call: Command, tmp_path: Path, server: Server):
    file = documents(tmp_path)
    server.answer = lambda body: good(body) if len(server.answered) < 6 else status(503)
    code, _, error = call(*asking(server, file))
    assert (code, error.count("\n")) == (4, 1)
    assert "all answers so far are kept, run again to resume" in error
    server.answer = good
    code, out, _ = call(*asking(server, file, "--set", "limits.min_coverage=0.79", "--json"))  # even other settings
    assert (code, json.loads(out)["counts"]["kept"]) == (0, 4)
    assert max(Counter(json.dumps(body) for body in server.answered).values()) == 1


def test_told_to_stop_it_says_how_to_go_on(loam: Loam, tmp_path: Path, server: Server):
    file, processes = documents(tmp_path), []

    def answer(body: dict):
        if len(server.calls) == 7:
            processes[0].send_signal(signal.SIGTERM)
        return good(body)

    server.answer = answer
    processes.append(loam.start(*asking(server, file, "--set", "engine.concurrency=1")))
    _, error = processes[0].communicate()
    assert (processes[0].returncode, error) == (130, "loam: stopped; run the same command again to resume\n")
    assert not (tmp_path / "s").exists()
    before = len(server.calls)
    server.answer = good
    loam.ok(*asking(server, file, "--set", "engine.concurrency=1"))
    assert 5 <= before <= len(server.calls) <= 18  # only what was under way is asked again
