"""Long-CoT RAG on real paragraphs: evidence is exact, leaks nothing, and survives a SIGKILL."""

import gzip
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from flows.cli import app
from pipelines.errors import DataError
from pipelines.recipe import ROOT
from synth.generate import synthesize
from synth.kind import Library
from synth.rag_checks import holds
from tests.synth.conftest import Server
from tests.synth.rag_reader import Reader
from tests.synth.test_generate import bytes_of
from tests.synth.test_rag import MAP, settings_for, write
from tests.synth.test_retrieval import CMRC, read_cmrc, read_lines


def questions_of(path: Path, rows: list[tuple[str, str, list[str], str]], language: str) -> Path:
    """Write (id, question, answers, document)."""
    known = [[("answers", json.dumps(answers)), ("doc_id", source)] for _, _, answers, source in rows]
    columns = {"id": [row[0] for row in rows], "text": [row[1] for row in rows], "language": [language] * len(rows)}
    pq.write_table(pa.table({**columns, "metadata": pa.array(known, MAP)}), path)
    return path


def cmrc(shared: Path, folder: Path) -> tuple[Path, Path, dict[str, str], dict[str, str]]:
    """Paragraphs and questions: two files, texts by id, and one answer of each question."""
    texts, _ = read_cmrc(shared)
    data = json.loads(gzip.decompress((shared / CMRC).read_bytes()))["data"]
    rows = [(asked["id"], asked["question"], [one["text"] for one in asked["answers"]], paragraph["id"])
            for article in data for paragraph in article["paragraphs"] for asked in paragraph["qas"]]  # fmt: skip
    corpus = write(folder / "corpus.parquet", texts, "cmn")
    return corpus, questions_of(folder / "q.parquet", rows, "cmn"), texts, {row[1]: row[2][0] for row in rows}


def check_samples(folder: Path, texts: dict[str, str]) -> list[dict[str, str]]:
    """Every span of every sample is the document's own; an absent passage is really absent."""
    metadata = [dict(row["metadata"]) for row in pq.read_table(folder / "samples/part-00000.parquet").to_pylist()]
    for known in metadata:
        quotes, passages = json.loads(known["evidence"]), json.loads(known["passages"])
        for quote in quotes:
            assert texts[quote["doc_id"]][quote["char_start"] : quote["char_end"]] == quote["quote"]
        shown = [texts[one["doc_id"]][one["char_start"] : one["char_end"]] for one in passages]
        oracle, references = json.loads(known["oracle"]), json.loads(known["references"])
        assert (oracle in passages) is (known["oracle_absent"] == "false")
        assert len({one["doc_id"] for one in passages}) == len(passages)
        telling = [text for text in shown if any(holds(text, one) for one in references)]
        assert len(telling) == (known["oracle_absent"] == "false")
    return metadata


def test_chinese_questions_on_their_corpus(shared: Path, tmp_path: Path, server: Server):
    corpus, questions, texts, answers = cmrc(shared, tmp_path)
    server.answer = Reader(answers)
    settings = settings_for(server, max_documents=100, rag={"absent_share": 0.3})
    outcome = synthesize([questions], tmp_path / "w", settings, library=Library([corpus]))
    print(outcome.counts)
    metadata = check_samples(tmp_path / "w", texts)
    assert len(metadata) == outcome.counts.kept >= 80
    assert 0.15 < sum(known["oracle_absent"] == "true" for known in metadata) / len(metadata) < 0.5
    assert {len(json.loads(known["passages"])) for known in metadata} == {5}


def test_yes_and_no_on_english_passages(shared: Path, tmp_path: Path, server: Server):
    """Near-duplicate passages are common in BoolQ (several questions on one): none may be a distractor."""
    texts, asked = read_lines(shared / "qa/boolq.jsonl.gz", "query")
    rows = [(f"q{n}", question.capitalize(), ["yes"], name) for n, (question, name) in enumerate(asked[:400])]
    corpus = write(tmp_path / "corpus.parquet", texts)
    questions = questions_of(tmp_path / "q.parquet", rows, "eng")
    settings = settings_for(server, max_documents=60)
    server.answer = Reader({row[1]: "passage" for row in rows})  # declines: the reader finds no answer in them
    outcome = synthesize([questions], tmp_path / "w", settings, library=Library([corpus]))
    assert outcome.counts.kept == 0
    shown = [call["messages"][0]["content"] for call in server.calls]
    by_text = {row[1]: texts[row[3]] for row in rows}
    repeated = 0
    for prompt in shown:
        source = next(text for question, text in by_text.items() if f"alone: {question}\n" in prompt)
        repeated += prompt.count(source[:60]) > 1
    assert (len(shown), repeated) == (60, 0)


def test_questions_are_made_about_real_articles(shared: Path, tmp_path: Path, server: Server):
    text = (shared / "encyclopedia/wikitext-2/valid.txt").read_text()
    articles = [part for part in text.split("\n = ") if len(part) > 2000][:40]
    texts = {f"w{n}": article for n, article in enumerate(articles)}
    server.answer = Reader()
    settings = settings_for(server, rag={"questions": 2, "absent_share": 0.3})
    outcome = synthesize([write(tmp_path / "d.parquet", texts)], tmp_path / "w", settings)
    print(outcome.counts)
    assert outcome.counts.docs_in == 2 * len(texts)
    assert len(check_samples(tmp_path / "w", texts)) == outcome.counts.kept >= len(texts) // 2


SCRIPT = """
import sys
from pathlib import Path
from synth.generate import synthesize
from synth.kind import Library
from synth.recipe import SynthSettings
corpus, questions, work = map(Path, sys.argv[1:4])
synthesize([questions], work, SynthSettings.model_validate_json(sys.argv[4]), library=Library([corpus]))
"""


def test_a_killed_run_resumes_to_the_same_bytes(shared: Path, tmp_path: Path, server: Server):
    corpus, questions, _, answers = cmrc(shared, tmp_path)
    reader = Reader(answers)
    settings = settings_for(server, max_documents=60, rag={"absent_share": 0.3})
    command = [sys.executable, "-c", SCRIPT, str(corpus), str(questions), str(tmp_path / "killed"),
               settings.model_dump_json()]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    killed = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment)

    def kill(body: dict) -> tuple[int, dict]:
        if len(server.calls) >= 30:
            killed.send_signal(signal.SIGKILL)
        return reader(body)

    server.answer = kill
    assert killed.wait() == -signal.SIGKILL
    server.answer, before = reader, len(server.calls)
    whole = synthesize([questions], tmp_path / "whole", settings, library=Library([corpus]))
    asked = len(server.calls)
    assert synthesize([questions], tmp_path / "killed", settings, library=Library([corpus])) == whole
    assert (asked - before, len(server.calls) - asked < 60) == (60, True)  # what was logged was not asked again
    for what in ("samples", "rejects", "index", "responses"):
        assert bytes_of(tmp_path / "killed" / what) == bytes_of(tmp_path / "whole" / what)


def test_a_tiny_model_is_rejected_with_reasons(shared: Path, tmp_path: Path, tiny_model: Path):
    corpus, questions, *_ = cmrc(shared, tmp_path)
    command = ["synth", str(questions), "--recipe", "cot_rag", "--engine", "transformers", "--model", str(tiny_model),
               "--corpus", str(corpus), "--out", str(tmp_path / "out"), "--json",
               "--set", "max_documents=2", "--set", "sampling.max_tokens=8", "--set", "rag.distractors=1",
               "--set", "rag.retrieval.passage_bytes=300"]  # fmt: skip
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    counts = json.loads(result.stdout)["counts"]
    assert counts["docs_in"] == sum(counts["rejected"].values()) == 2
    assert set(counts["rejected"]) <= {"truncated", "not_json", "empty"}
    assert json.loads((tmp_path / "out" / "index" / "index.json").read_bytes())["documents"] == 848


def test_the_command_takes_corpus_clusters_and_embeddings(tmp_path: Path, server: Server):
    texts = {f"d{n}": f"Caves of kind {word} hold calcite of {word} {word}." for n, word in
             enumerate(("slate", "chalk", "marble", "gypsum"))}  # fmt: skip
    corpus = write(tmp_path / "corpus.parquet", texts)
    question = "What do caves of kind slate hold?"
    asked = questions_of(tmp_path / "q.parquet", [("q", question, ["slate slate"], "d0")], "eng")
    pq.write_table(pa.table({"id": ["d0", "d1"], "cluster": ["d0", "d0"]}), tmp_path / "clusters.parquet")
    vectors = pa.table({"id": list(texts), "embedding": [[1.0, float(n)] for n in range(4)]})
    pq.write_table(vectors, tmp_path / "v.parquet")
    server.answer = Reader({question: "slate slate"})
    command = ["synth", str(asked), "--recipe", "cot_rag", "--engine", "endpoint", "--corpus", str(corpus),
               "--clusters", str(tmp_path / "clusters.parquet"), "--embeddings", str(tmp_path / "v.parquet"),
               "--out", str(tmp_path / "out"), "--set", f"engine.url={server.url}", "--set", "engine.model_name=m",
               "--set", "rag.absent_share=0"]  # fmt: skip
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    [sample] = pq.read_table(tmp_path / "out/samples/part-00000.parquet").to_pylist()
    passages = json.loads(dict(sample["metadata"])["passages"])
    assert sorted(one["doc_id"] for one in passages) == ["d0", "d2", "d3"]
    missing = CliRunner().invoke(
        app, [*command[:-8], "--clusters", str(tmp_path / "none"), "--out", str(tmp_path / "x")]
    )
    assert missing.exit_code != 0


@pytest.mark.parametrize("language", ["eng", "cmn"])
def test_bad_corpora_are_data_errors(tmp_path: Path, server: Server, language: str):
    torn = tmp_path / "torn.parquet"
    torn.write_bytes(b"PAR1 not really")
    asked = questions_of(tmp_path / "q.parquet", [("q", "What is it?", ["x"], "d0")], language)
    with pytest.raises(DataError, match=r"torn\.parquet"):
        synthesize([asked], tmp_path / "w", settings_for(server), library=Library([torn]))
