"""`loam synth --forms`, and what rephrasings cost."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from flows.model_estimate import synth_cost
from pipelines.recipe import load_recipe
from synth.recipe import SynthSettings
from tests.flows.conftest import Command, write_jsonl
from tests.synth.conftest import CAVES, GOOD, serving


def test_samples_as_conversations(call: Command, tmp_path: Path):
    file = write_jsonl(tmp_path / "in.jsonl", {"id": "caves", "text": CAVES})
    with serving() as server:
        given = (f"engine.url={server.url}", "engine.model_name=scripted", "min_chars=100")
        sets = [word for one in given for word in ("--set", one)]
        code, _, _ = call("synth", file, "--engine", "endpoint", "--out", "s", "--forms", "sft,rl", *sets)
    assert code == 0
    [row] = pq.read_table(tmp_path / "s" / "sft").to_pylist()
    assert row["messages"][0] == {"role": "user", "content": GOOD["question"]}
    assert pq.read_table(tmp_path / "s" / "rl").num_rows == 0


def test_a_form_that_is_not_there_is_named(call: Command, tmp_path: Path):
    file = write_jsonl(tmp_path / "in.jsonl", {"id": "caves", "text": CAVES})
    code, _, said = call("synth", file, "--out", "s", "--forms", "dpo")
    assert code == 2
    assert "forms.write" in said
    assert "'sft' or 'rl'" in said


@pytest.mark.parametrize(
    ("recipe", "calls"), [("rephrase-distill", 1), ("rephrase-wrap", 3), ("cot-synthesis-math", 4)]
)
def test_segments_of_a_document_are_calls(recipe: str, calls: int):
    settings = load_recipe(recipe, SynthSettings, ["max_documents=1", "generator.cost.document_tokens=1500"])
    assert synth_cost(settings)["calls"] == calls
