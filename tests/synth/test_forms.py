"""Conversations and problems, as the trainers of other projects read them."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.recipe import load_recipe
from pipelines.store import Outcome
from synth.generate import synthesize
from synth.recipe import SynthSettings
from tests.synth.conftest import CAVES, GOOD, Server, completion

ANSWERS = {"sum": [r"\boxed{4}", r"\boxed{5}", r"\boxed{4}", "unsure"], "hard": [r"\boxed{1}"] * 4,
           "open": [r"\boxed{7}"] * 4, "letter": [r"\boxed{B}"] * 4}  # fmt: skip
METADATA = {
    "sum": {"answer": "4", "license": "MIT"},
    "hard": {"answer": "2"},
    "open": {},
    "letter": {"answer": "B", "gold_kind": "choice"},
    "code": {"tests": "assert f() == 1", "gold_kind": "code"},
}


def run(file: Path, work: Path, server: Server, recipe: str, **change: Any) -> Outcome:
    engine = {"name": "endpoint", "url": server.url, "model_name": "m", "retries": 0}
    settings = load_recipe(recipe, SynthSettings).model_dump()
    return synthesize([file], work, SynthSettings(**{**settings, "engine": engine, **change}))


def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.parquet"
    names = [*ANSWERS, "code"]
    metadata = pa.array([list(METADATA[name].items()) for name in names], pa.map_(pa.string(), pa.string()))
    pq.write_table(pa.table({"id": names, "text": [f"What is {name}?" for name in names], "metadata": metadata}), path)
    return path


def answering(body: dict[str, Any], left: dict[str, list[str]]) -> tuple[int, dict[str, Any]]:
    content = body["messages"][0]["content"]
    name = next((name for name in left if f"What is {name}?" in content), None)
    return completion(left[name].pop() if name else "```python\ndef f():\n    return 1\n```")


def test_forward(tmp_path: Path, server: Server):
    left = {name: list(answers) for name, answers in ANSWERS.items()}
    server.answer = lambda body: answering(body, left)
    outcome = run(questions(tmp_path), tmp_path / "w", server, "cot_forward", forms={"write": ["sft", "rl"]})
    problems = {row["id"]: row for row in pq.read_table(tmp_path / "w" / "rl").to_pylist()}
    assert {name: row["pass_rate"] for name, row in problems.items()} == {
        "sum": 0.6667, "hard": 0.0, "letter": 1.0, "code": 1.0,
    }  # fmt: skip
    assert problems["sum"]["prompt"] == [{"role": "user", "content": "What is sum?"}]
    assert [problems["sum"][key] for key in ("answer", "gold_kind", "rollouts", "undecided")] == ["4", "math", 4, 1]
    assert (problems["code"]["answer"], problems["code"]["tests"]) == (None, "assert f() == 1")
    assert {name: row["licence"] for name, row in problems.items()} == {
        "sum": "MIT", "hard": None, "letter": None, "code": None,
    }  # fmt: skip
    conversations = pq.read_table(tmp_path / "w" / "sft").to_pylist()
    assert {row["licence"] for row in conversations if row["doc_id"] == "sum"} == {"MIT"}
    samples = pq.read_table(tmp_path / "w" / "samples").to_pylist()
    assert [row["id"] for row in conversations] == [row["id"] for row in samples]
    assert outcome.metrics["forms"] == {"sft": len(samples), "rl": 4}
    assert outcome.metrics["references"] == {"questions": 5, "with_reference": 4}
    assert outcome.metrics["verdicts"] == {"consensus": 4, "refuted": 5, "undecided": 1, "verified": 10}
    assert {row["verdict"] for row in conversations if row["doc_id"] == "open"} == {"consensus"}


def test_problems_are_cut_to_a_band(tmp_path: Path, server: Server):
    left = {name: list(answers) for name, answers in ANSWERS.items()}
    server.answer = lambda body: answering(body, left)
    forms = {"write": ["rl"], "min_pass_rate": 0.1, "max_pass_rate": 0.7}
    run(questions(tmp_path), tmp_path / "w", server, "cot_forward", forms=forms)
    assert pq.read_table(tmp_path / "w" / "rl")["id"].to_pylist() == ["sum"]
    assert not (tmp_path / "w" / "sft").exists()


def test_backward_is_a_conversation_and_no_problem(caves: Path, tmp_path: Path, server: Server):
    outcome = run(caves, tmp_path / "w", server, "cot_backward", forms={"write": ["sft", "rl"]})
    [row] = pq.read_table(tmp_path / "w" / "sft").to_pylist()
    assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
    assert row["messages"][0]["content"] == GOOD["question"]
    assert row["messages"][1]["content"].startswith("<think>\n1. Rain picks up")
    assert row["messages"][1]["content"].endswith(f"</think>\n\n{CAVES}")
    assert outcome.metrics["forms"] == {"sft": 1, "rl": 0}


def test_datasets_loads_them(caves: Path, tmp_path: Path, server: Server):
    datasets = pytest.importorskip("datasets")
    run(caves, tmp_path / "w", server, "cot_backward", forms={"write": ["sft"]})
    files = str(tmp_path / "w" / "sft" / "*.parquet")
    loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))["train"]
    assert loaded[0]["messages"][0] == {"role": "user", "content": GOOD["question"]}


def test_a_band_has_a_lower_and_an_upper_end():
    with pytest.raises(ValueError, match=r"min_pass_rate 0\.6 is above"):
        SynthSettings(forms={"min_pass_rate": 0.6, "max_pass_rate": 0.1})
