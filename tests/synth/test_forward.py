"""Forward chains of thought, asked of a server on this machine."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.recipe import load_recipe
from pipelines.store import Outcome
from synth.forward import Attempt, Forward
from synth.generate import synthesize
from synth.recipe import SynthSettings
from tests.synth.conftest import Server, completion

ANSWERS = ["4 <- guess", r"<think>2 + 2</think>So \boxed{4}.", r"It is \boxed{5}.", r"\boxed{\frac{8}{2}}"]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "questions.parquet"
    path.parent.mkdir()
    metadata = pa.array([[("answer", "4")], []], pa.map_(pa.string(), pa.string()))
    texts = ["What is 2 + 2?", "Why is there something?"]
    pq.write_table(pa.table({"id": ["sum", "open"], "text": texts, "metadata": metadata}), path)
    return path


def run(file: Path, work: Path, server: Server, **change) -> Outcome:
    engine = {"name": "endpoint", "url": server.url, "model_name": "m", "retries": 0}
    settings = load_recipe("cot_forward", SynthSettings).model_dump()
    return synthesize([file], work, SynthSettings(**{**settings, "engine": engine, **change}))


def test_chains_are_judged_and_the_pass_rate_is_kept(questions: Path, tmp_path: Path, server: Server):
    left = iter(ANSWERS)
    server.answer = lambda body: completion(next(left) if "2 + 2" in body["messages"][0]["content"] else "Because.")
    outcome = run(questions, tmp_path / "w", server)
    assert outcome.counts.docs_in == 8
    assert outcome.counts.rejected == {
        "refuted: other_value": 1, "undecided: no_answer": 1, "undecided: no_reference": 4,
    }  # fmt: skip
    samples = pq.read_table(tmp_path / "w" / "samples" / "part-00000.parquet").to_pylist()
    assert sorted(row["text"] for row in samples) == sorted(
        f"What is 2 + 2?\n\n{answer}" for answer in (ANSWERS[1], ANSWERS[3])
    )
    assert {dict(row["metadata"])["pass_rate"] for row in samples} == {
        "0.6667"
    }  # two verified, one refuted, one undecided
    assert len({row["id"] for row in samples}) == 2


def test_another_judge_asks_nothing_again(questions: Path, tmp_path: Path, server: Server):
    server.answer = lambda body: completion("The answer is (A).")
    run(questions, tmp_path / "w", server)
    asked = len(server.calls)
    outcome = run(questions, tmp_path / "w", server, gold_kind="choice")
    assert len(server.calls) == asked
    assert outcome.counts.rejected == {"refuted: other_letter": 4}
    assert outcome.counts.kept == 4  # all four say (A) to the question that has no reference


def test_a_second_attempt_would_raise_the_pass_rate():
    with pytest.raises(ValueError, match="attempts: 1"):
        SynthSettings(recipe="cot_forward", attempts=2)


def test_kinds_of_reference_have_their_judges():
    forward = Forward(1, "math")
    for metadata, answer, verdict in [
        ({"gold_kind": "choice", "answer": "B"}, r"\boxed{B}", "verified"),
        ({"gold_kind": "none", "answer": "B"}, r"\boxed{B}", "undecided"),
        ({"answer": "1/2"}, r"\boxed{0.5}", "verified"),
    ]:
        [(_, draft)] = forward.units({"text": "?", "metadata": list(metadata.items())})
        assert forward.judged(answer, draft).verdict == verdict
    forward.close()


def open_question(tmp_path: Path) -> Path:
    path = tmp_path / "open.parquet"
    pq.write_table(pa.table({"id": ["open"], "text": ["How much is a half and a quarter?"]}), path)
    return path


def test_a_majority_is_consensus_and_never_verified(tmp_path: Path, server: Server):
    left = iter([r"\boxed{3/4}", r"\boxed{0.75}", r"\boxed{\frac{3}{4}}", r"\boxed{1}"])
    server.answer = lambda body: completion(next(left))
    outcome = run(open_question(tmp_path), tmp_path / "w", server)
    assert outcome.counts.rejected == {"undecided: outvoted": 1}
    samples = pq.read_table(tmp_path / "w" / "samples" / "part-00000.parquet").to_pylist()
    for metadata in (dict(row["metadata"]) for row in samples):
        assert (metadata["verdict"], metadata["votes"], metadata["rollouts"]) == ("consensus", "3", "4")
        assert not metadata.keys() & {"gold", "pass_rate", "verified"}


def test_half_is_no_majority(tmp_path: Path, server: Server):
    left = iter([r"\boxed{3/4}", r"\boxed{0.75}", r"\boxed{1}", r"\boxed{2}"])
    server.answer = lambda body: completion(next(left))
    assert run(open_question(tmp_path), tmp_path / "w", server).counts.rejected == {"undecided: no_consensus": 4}


def test_code_without_tests_stays_undecided(tmp_path: Path, server: Server):
    server.answer = lambda body: completion("```python\npass\n```")
    outcome = run(open_question(tmp_path), tmp_path / "w", server, gold_kind="code")
    assert outcome.counts.rejected == {"undecided: no_reference": 4}


@pytest.mark.parametrize(
    ("chain", "answer", "kind", "reply"),
    [
        (r"<think>2 + 2</think>So \boxed{4}.", "4", "math", "<think>\n2 + 2\n</think>\n\nSo \\boxed{4}."),
        (r"2 + 2, so \boxed{4}", "4", "math", "<think>\n2 + 2, so \\boxed{4}\n</think>\n\n\\boxed{4}"),
        ("Easy.\n```python\npass\n```", "", "code",
         "<think>\nEasy.\n```python\npass\n```\n</think>\n\n```python\npass\n```"),
    ],
)  # fmt: skip
def test_chains_as_conversations(chain: str, answer: str, kind: str, reply: str):
    dialogue = Forward(1, "math").dialogue(Attempt("?", "4", kind, chain, answer))
    assert dialogue.reply == reply
