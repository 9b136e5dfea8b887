import gzip
import json
from pathlib import Path

import pytest

from pipelines.errors import DataError
from trainer.eval_items import EvalItem, load_benchmarks, load_items, write_items


def write(path: Path, *rows: object) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_bare_question_is_written_out(tmp_path: Path):
    file = write(tmp_path / "arc.jsonl", {"query": "Question: Sky?\n", "choices": ["blue ", "red"], "gold": 0})
    assert load_items(file)[0] == [EvalItem("1", "arc", "Question: Sky?\nAnswer:", (" blue", " red"), 0)]


def test_a_query_that_ends_with_answer_stays(tmp_path: Path):
    file = write(tmp_path / "siqa.jsonl", {"query": "Q?\nA. x\nB. y\nAnswer:", "choices": ["A", "B"], "gold": 1})
    assert load_items(file)[0] == [EvalItem("1", "siqa", "Q?\nA. x\nB. y\nAnswer:", (" A", " B"), 1)]


def test_own_items_come_back_as_they_were_written(tmp_path: Path):
    item = EvalItem("d-7", "cloze_zh", "  天气很好，", ("我们去\n公园", "他 说"), 1)
    write_items(tmp_path / "x.jsonl", [item])
    assert load_benchmarks([tmp_path / "x.jsonl"]) == ({"cloze_zh": [item]}, {})


GOOD = {"id": "a", "query": "q", "choices": ["x", "y"], "gold": 1}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"query": "cut of', "not_json"),
        ("[1, 2]", "missing_field"),
        ({"query": "q", "gold": 0}, "missing_field"),
        (GOOD | {"query": " \n"}, "empty_query"),
        (GOOD | {"choices": ["x"]}, "fewer_than_two_choices"),
        (GOOD | {"choices": "xy"}, "fewer_than_two_choices"),
        (GOOD | {"choices": ["x", " "]}, "empty_choice"),
        (GOOD | {"gold": 2}, "gold_out_of_range"),
        (GOOD | {"gold": True}, "gold_out_of_range"),
        (GOOD | {"query": "again"}, "duplicate_id"),
    ],
)
def test_a_bad_row_is_counted(tmp_path: Path, row: object, reason: str):
    items, rejected = load_items(write(tmp_path / "b.jsonl", GOOD, row))
    assert (len(items), rejected) == (1, {reason: 1})


def test_nothing_usable_is_an_error(tmp_path: Path):
    with pytest.raises(DataError, match=r"b\.jsonl: no usable item \(\{'missing_field': 1\}\)"):
        load_benchmarks([write(tmp_path / "b.jsonl", "{}")])


def test_a_broken_gzip_is_an_error(tmp_path: Path):
    file = tmp_path / "b.jsonl.gz"
    file.write_bytes(gzip.compress(json.dumps(GOOD).encode() * 50)[:40])
    with pytest.raises(DataError, match="cannot be read as items"):
        load_items(file)


@pytest.mark.parametrize(
    ("name", "rows", "choices"),
    [("arc_easy", 2376, 4), ("piqa", 1838, 2), ("siqa", 1954, 2), ("commonsense_qa", 1221, 4)],
)
def test_real_benchmarks_load(shared: Path, name: str, rows: int, choices: int):
    items, rejected = load_items(shared / "qa" / f"{name}.jsonl")
    assert len(items) + sum(rejected.values()) == rows
    assert len(items) > 0.99 * rows
    assert all(item.query.endswith("Answer:") and item.choices[0].startswith(" ") for item in items)
    assert choices in {len(item.choices) for item in items}
