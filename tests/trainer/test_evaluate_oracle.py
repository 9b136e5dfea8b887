"""The same model, texts and items through lm-evaluation-harness: the numbers agree one by one."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.eval_items import EvalItem
from trainer.evaluate import EvaluateSettings, evaluate

MAX_LENGTH = 32
SETTINGS = EvaluateSettings(tokens_per_domain=None, max_length=MAX_LENGTH)
TASKS = """\
task: local_{name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}, cache_dir: {cache}}}
test_split: test
output_type: {kind}
doc_to_text: "{text}"
doc_to_target: "{target}"
{more}
metadata: {{version: 1}}
"""


QUERIES = ("Question: what does the river carry?\nAnswer:", "天气很好，我们去", "def twice(x):\n    return", "a b  ")
ANSWERS = ("sand", "clay and sand", "x * 2", "公园", "“quotes” – Ünïcödé", "x")


def sample_items() -> list[EvalItem]:
    """Every query with two to four answers, in several scripts and lengths."""
    items = []
    for number in range(24):
        choices = tuple(f" {ANSWERS[(number + step) % len(ANSWERS)]}" for step in range(2 + number % 3))
        items.append(EvalItem(f"q{number}", "guess", QUERIES[number % 4], choices, number % len(choices)))
    return items


@pytest.fixture(scope="module")
def harness(tiny_model: Path) -> Any:
    pytest.importorskip("lm_eval", reason="lm-eval is in the dev extra")
    pytest.importorskip("accelerate", reason="lm-eval drives transformers through accelerate, in the dev extra")
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(tiny_model), max_length=MAX_LENGTH, batch_size=3, device="cpu", dtype="float32")


def run_harness(harness: Any, folder: Path, name: str, rows: list[dict], **task: str) -> dict:
    """Samples and results of a task over local rows."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    data, tasks = folder / f"{name}.jsonl", folder / "tasks"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tasks.mkdir()
    text = TASKS.format(name=name, file=data, cache=folder / "cache", **task)
    (tasks / f"{name}.yaml").write_text(text, encoding="utf-8")
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    found = simple_evaluate(harness, tasks=[f"local_{name}"], task_manager=manager, log_samples=True, bootstrap_iters=0)
    assert found is not None
    return {"samples": found["samples"][f"local_{name}"], "results": found["results"][f"local_{name}"]}


def test_multiple_choice_agrees_item_by_item(harness: Any, tiny_model: Path, tmp_path: Path):
    items = sample_items()
    rows = [{"query": i.query, "choices": [c[1:] for c in i.choices], "gold": i.gold} for i in items]
    more = 'doc_to_choice: "{{choices}}"\nmetric_list: [{metric: acc}, {metric: acc_norm}]'
    theirs = run_harness(
        harness, tmp_path, "mc", rows, kind="multiple_choice", text="{{query}}", target="{{gold}}", more=more
    )
    file = tmp_path / "items.jsonl"
    file.write_text("".join(item.to_json() + "\n" for item in items), encoding="utf-8")
    ours = evaluate(tiny_model, tmp_path / "out", SETTINGS, {}, [file]).metrics["benchmarks"]["guess"]
    mine = {row["id"]: row for row in pq.read_table(tmp_path / "out" / "items.parquet").to_pylist()}
    for sample in theirs["samples"]:
        row = mine[f"q{sample['doc_id']}"]
        assert row["loglikelihoods"] == pytest.approx([float(r[0][0]) for r in sample["resps"]], abs=1e-4)
    assert len(theirs["samples"]) == len(mine) == len(rows)
    assert (ours["acc"], ours["acc_norm"]) == (theirs["results"]["acc,none"], theirs["results"]["acc_norm,none"])


def test_bits_per_byte_agree(harness: Any, tiny_model: Path, tmp_path: Path):
    texts = ["The river carries sand. " * k for k in (1, 2, 7)] + ["天气很好，我们去公园。\n\n\tÜnïcödé – “quotes”"]
    more = "metric_list: [{metric: bits_per_byte}]"
    theirs = run_harness(
        harness, tmp_path, "text", [{"text": text} for text in texts],
        kind="loglikelihood_rolling", text="", target="{{text}}", more=more,
    )  # fmt: skip
    documents = tmp_path / "documents.parquet"
    pq.write_table(pa.table({"id": [str(n) for n in range(len(texts))], "text": texts}), documents)
    ours = evaluate(tiny_model, tmp_path / "out", SETTINGS, {"all": [documents]}).metrics["domains"]["all"]
    mine = {row["id"]: row["nll_nats"] for row in pq.read_table(tmp_path / "out" / "documents.parquet").to_pylist()}
    for sample in theirs["samples"]:
        assert -mine[str(sample["doc_id"])] == pytest.approx(float(sample["resps"][0][0]), abs=1e-3)
    assert ours["bits_per_byte"] == pytest.approx(theirs["results"]["bits_per_byte,none"], rel=1e-6)
