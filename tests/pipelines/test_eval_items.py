"""Evaluation sets in the shapes in which they are published."""

import json
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import DataError
from pipelines.eval_items import names_of, read_items, write_index


def texts(path: Path, fields=None) -> list[tuple[str, str, str]]:
    rows = read_items([path], fields).to_pylist()
    return [(row["item"], row["field"], row["text"]) for row in rows]


def test_json_lines_arrays_and_wrapped_arrays(tmp_path):
    item = {"id": "x", "question": "Why?", "license": "none", "options": {"A": "yes", "B": "no"}}
    for name, content in {"l.jsonl": item, "a.json": [item], "w.json": {"version": 1, "data": [item]}}.items():
        (tmp_path / name).write_text(json.dumps(content))
        assert texts(tmp_path / name) == [("x", "question", "Why?"), ("x", "options", "yes"), ("x", "options", "no")]


def test_squad_keeps_answers_apart_from_questions(tmp_path):
    qa = {"question": "Who?", "answers": [{"text": "Ada", "answer_start": 3}]}
    squad = {"data": [{"title": "t", "paragraphs": [{"context": "Long ago.", "qas": [qa]}]}]}
    (tmp_path / "squad.json").write_text(json.dumps(squad))
    with pytest.raises(DataError, match="found: title, paragraphs"):
        texts(tmp_path / "squad.json", ("absent",))
    assert [(f, t) for _, f, t in texts(tmp_path / "squad.json", ("context", "question", "answers"))] == [
        ("context", "Long ago."), ("question", "Who?"), ("answers", "Ada")
    ]  # fmt: skip


def test_csv_with_and_without_header_and_archives(tmp_path):
    (tmp_path / "with.csv").write_text("question,licence\nWhy?,free\n")
    (tmp_path / "mmlu.csv").write_text('"Which, then?",one,two,A\n')
    assert texts(tmp_path / "with.csv") == [("0", "question", "Why?")]
    assert [(f, t) for _, f, t in texts(tmp_path / "mmlu.csv")] == [
        ("question", "Which, then?"), ("choices", "one"), ("choices", "two"), ("choices", "A")
    ]  # fmt: skip
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.write(tmp_path / "with.csv", "dev/with.csv")
    with tarfile.open(tmp_path / "lean.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "mmlu.csv", "a/b.lean")
    assert texts(tmp_path / "set.zip") == [("dev/with", "question", "Why?")]
    assert texts(tmp_path / "lean.tar.gz")[0][0] == "a/b"


def test_what_every_item_repeats_belongs_to_none(tmp_path):
    lines = [json.dumps({"question": f"q {n}", "answer": "see the book"}) for n in range(30)]
    (tmp_path / "e.jsonl").write_text("\n".join(lines))
    assert {field for _, field, _ in texts(tmp_path / "e.jsonl")} == {"question"}


def test_a_canary_is_taken_once(tmp_path):
    lines = [json.dumps({"question": f"q {n}", "canary": "canary GUID 26b5c67b-86dc"}) for n in range(3)]
    (tmp_path / "e.jsonl").write_text("\n".join(lines))
    assert [row for row in texts(tmp_path / "e.jsonl") if row[1] == "canary"] == [
        ("canary", "canary", "canary GUID 26b5c67b-86dc")
    ]


def test_a_file_that_says_only_its_part_is_called_by_its_folder(tmp_path):
    files = [tmp_path / "gsm8k" / "test.jsonl", tmp_path / "gsm8k" / "train-00000.parquet", tmp_path / "arc.jsonl"]
    assert list(names_of(files)) == ["gsm8k", "gsm8k_train-00000", "arc"]


def test_an_index_comes_back_beside_files(tmp_path):
    (tmp_path / "e.jsonl").write_text('{"question": "Why?"}')
    write_index(read_items([tmp_path / "e.jsonl"], None), tmp_path / "index.parquet")
    pq.write_table(pa.table({"question": ["How?"]}), tmp_path / "f.parquet")
    found = read_items([tmp_path / "index.parquet", tmp_path / "f.parquet"], None)
    assert found.select(["benchmark", "text"]).to_pylist() == [
        {"benchmark": "e", "text": "Why?"}, {"benchmark": "f", "text": "How?"}
    ]  # fmt: skip
