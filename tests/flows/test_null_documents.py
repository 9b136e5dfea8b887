"""Rows without text or id: every verb rejects them with a reason, goes on, and its counts add up."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.document import STREAM, conform, reject_nulls
from pipelines.execute import count_documents
from pipelines.inputs import as_documents
from pipelines.table_readers import has_nulls
from tests.conftest import SENTENCES
from tests.flows.conftest import Works, rows, tokenizer_of, write_jsonl

IDS = ["a", "b", "c"]
TEXTS = [" ".join(SENTENCES), None, " ".join(reversed(SENTENCES))]
VERBS = ("filter --rules=c4", "dedup --method=exact", "dedup --method=url", "dedup --method=minhash",
         "dedup --method=lines", "dedup --method=substring", "pii", "licences", "language", "tokenize", "perplexity",
         "decontaminate --against=quiz.jsonl")  # fmt: skip


def documents(folder: Path, kind: str, ids: list[str | None] | None = None, **options: Any) -> Path:
    """Three documents, the second without text."""
    if kind == "jsonl":
        return write_jsonl(folder / "in.jsonl", *({"id": i, "text": t} for i, t in zip(IDS, TEXTS, strict=True)))
    table = pa.table({"id": pa.array(ids or IDS, pa.string()), "text": pa.array(TEXTS, pa.string())})
    if kind == "arrow":
        with pa.ipc.new_file(folder / "in.arrow", table.schema) as writer:
            writer.write_table(table)
        return folder / "in.arrow"
    pq.write_table(table, folder / "in.parquet", **options)
    return folder / "in.parquet"


def check(done: dict[str, Any], out: Path, rejected: dict[str, int]) -> None:
    counts = done["counts"]
    assert counts["rejected"] == rejected
    assert counts["docs_in"] == 3 == counts["kept"] + sum(counts["dropped"].values()) + sum(rejected.values())
    assert sorted(row["reason"] for row in rows(out / "rejects")) == sorted(rejected)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_document_without_text_is_rejected(kind: str, verb: str, works: Works, tmp_path: Path, tiny_model: Path):
    write_jsonl(tmp_path / "quiz.jsonl", {"query": "unlike " * 20, "choices": [" a", " b"], "gold": 0})
    more = {"tokenize": ["--tokenizer", tokenizer_of(tiny_model)],
            "perplexity": ["--model", tiny_model, "--max-length", 16]}  # fmt: skip
    name, *options = verb.split()
    done = works(name, documents(tmp_path, kind), *options, *more.get(name, ()), "-o", "x")
    check(done, tmp_path / "x", {"no_text": 1})
    if name != "filter":
        assert done["counts"]["kept"] == 2


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_document_without_id_is_rejected(kind: str, works: Works, tmp_path: Path):
    done = works("pii", documents(tmp_path, kind, ["a", "b", None]), "-o", "x")
    check(done, tmp_path / "x", {"no_id": 1, "no_text": 1})
    assert {row["id"]: row["reason"] for row in rows(tmp_path / "x" / "rejects")} == {
        "b": "no_text", f"in.{kind}/2": "no_id"}  # fmt: skip


def test_synthesis_counts_it_beside_its_units(works: Works, tmp_path: Path, tiny_model: Path):
    done = works("synth", documents(tmp_path, "parquet"), "--recipe", "cot_backward", "--engine", "transformers",
                 "--model", tiny_model, "--set", "sampling.max_tokens=4", "-o", "x")  # fmt: skip
    assert done["counts"]["rejected"]["no_text"] == 1
    assert done["metrics"]["seen"]["documents"] == 2


def test_a_classifier_is_not_trained_on_it(works: Works, tmp_path: Path):
    texts = [f"{SENTENCES[n % 5]} {n}" if n % 2 else f"x {n} y" for n in range(40)]
    labels = [n % 2 for n in range(40)]
    table = pa.table({"id": [str(n) for n in range(41)], "text": [*texts, None], "label": [*labels, 1]})
    pq.write_table(table, tmp_path / "in.parquet")
    assert works("quality", "train", tmp_path / "in.parquet", "-o", "x")["counts"]["kept"] == 40


@pytest.mark.parametrize("statistics", [True, False])
def test_nulls_are_found_with_statistics_and_without(statistics: bool, tmp_path: Path):
    made = documents(tmp_path, "parquet", write_statistics=statistics, row_group_size=1)
    assert has_nulls(made, ("id", "text"))
    assert not has_nulls(made, ("id", "name"))
    pq.write_table(pq.read_table(made).slice(0, 1), made, write_statistics=statistics)
    assert not has_nulls(made, ("id", "text"))
    assert as_documents([made], tmp_path / "work") == [made]
    made.write_bytes(b"rubbish")
    assert not has_nulls(made, ("id", "text"))


def test_a_column_of_nothing_is_rejected_whole(tmp_path: Path):
    pq.write_table(pa.table({"id": [1, 2], "text": pa.nulls(2)}), tmp_path / "a.parquet")
    (made,) = as_documents([tmp_path / "a.parquet"], tmp_path / "work")
    assert pq.read_metadata(made).num_rows == 0
    assert count_documents(tmp_path / "work").rejected == {"no_text": 2}


def test_rows_are_numbered_from_the_first_of_the_file():
    table = conform(pa.table({"id": pa.array([None, "b"], pa.string()), "text": ["x", "y"]}), STREAM)
    found = reject_nulls(table, "web/a.parquet", 1024).select(["id", "text", "fate", "reason"]).to_pylist()
    assert json.loads(json.dumps(found)) == [
        {"id": "web/a.parquet/1024", "text": "x", "fate": "rejected", "reason": "no_id"},
        {"id": "b", "text": "y", "fate": None, "reason": None},
    ]


@pytest.mark.parametrize("verb", [("language",), ("pii",), ("dedup", "--method", "exact")], ids=lambda verb: verb[0])
def test_bytes_that_are_no_text_are_rejected(works: Works, tmp_path: Path, verb: tuple[str, ...]) -> None:
    raw = pa.array([b"one good line of text", b"torn \xff\xfe text", b"another good line"], pa.binary())
    strings = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    pq.write_table(pa.table({"id": ["a", "b", "c"], "text": strings}), tmp_path / "torn.parquet")
    counts = works(verb[0], tmp_path / "torn.parquet", *verb[1:], "-o", tmp_path / "out")["counts"]
    assert (counts["docs_in"], counts["kept"], counts["rejected"]) == (3, 2, {"invalid_utf8": 1})
