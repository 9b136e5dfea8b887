from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from pipelines.errors import DataError
from trainer.cloze import ClozeSettings, make_cloze_items
from trainer.eval_items import load_items

SHORT = ClozeSettings(holdout_share=1, query_words=8, continuation_words=6, items_per_domain=50)


def documents(tmp_path: Path, texts: dict[str, str], domain: str = "web/en") -> Path:
    file = tmp_path / "docs.parquet"
    pq.write_table(pa.table({"id": list(texts), "text": list(texts.values()), "domain": [domain] * len(texts)}), file)
    return file


def counted(number: int, words: int = 30) -> str:
    """`a3w0 a3w1 a3w2 ...`: any word tells its document and its place."""
    return " ".join(f"a{number}w{place}" for place in range(words))


def made(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_gold_choice_continues_the_query_and_the_others_do_not(tmp_path: Path):
    file = documents(tmp_path, {f"d{n}": counted(n) for n in range(9)})
    outcome = make_cloze_items([file], tmp_path / "out", SHORT)
    items = load_items(tmp_path / "out" / "items" / "cloze_web_en.jsonl")[0]
    assert outcome.metrics == {"items": {"cloze_web_en": 9}}
    for item in items:
        number = item.id[1:]
        assert item.query == " ".join(f"a{number}w{place}" for place in range(8))
        assert item.choices[item.gold] == "".join(f" a{number}w{place}" for place in range(8, 14))
        assert len({choice.split("w")[0] for choice in item.choices}) == len(item.choices) == 4
    assert {item.gold for item in items} > {items[0].gold}


def test_chinese_counts_characters(tmp_path: Path):
    texts = {f"d{n}": "".join(chr(0x4E00 + 40 * n + place) for place in range(40)) for n in range(5)}
    make_cloze_items([documents(tmp_path, texts, "zh")], tmp_path / "out", SHORT)
    items = load_items(tmp_path / "out" / "items" / "cloze_zh.jsonl")[0]
    assert [(len(item.query), {len(c) for c in item.choices}) for item in items] == [(8, {6})] * 5


def test_what_the_pages_of_a_site_share_makes_no_item(tmp_path: Path):
    menu = " ".join(f"menu{n}" for n in range(20))
    texts = {f"d{n}": f"{menu}\n{counted(n)}" for n in range(6)} | {f"bare{n}": f"{menu}\nend {n}" for n in range(3)}
    outcome = make_cloze_items([documents(tmp_path, texts)], tmp_path / "out", SHORT)
    items = load_items(tmp_path / "out" / "items" / "cloze_web_en.jsonl")[0]
    assert {item.query for item in items} == {" ".join(f"a{n}w{place}" for place in range(8)) for n in range(6)}
    assert outcome.counts is not None
    assert outcome.counts.dropped == {"shared_lines": 3}


def test_counts_add_up_and_say_why(tmp_path: Path):
    texts = {f"d{n}": counted(n) for n in range(6)} | {
        "short": "too few words",
        "numbers": "- " * 90,
        "twin": counted(0),
    }
    counts = make_cloze_items([documents(tmp_path, texts)], tmp_path / "out", SHORT).counts
    assert counts is not None
    assert (counts.docs_in, counts.kept) == (9, 6)
    assert counts.dropped == {"no_passage_of_this_length": 2, "same_query_as_another": 1}


def test_only_the_share_is_held_out(tmp_path: Path):
    file = documents(tmp_path, {f"d{n}": counted(n) for n in range(400)})
    outcome = make_cloze_items([file], tmp_path / "out", SHORT.model_copy(update={"holdout_share": 0.1}))
    assert outcome.counts is not None
    assert 20 <= outcome.counts.kept <= 60
    held = pq.read_table(tmp_path / "out" / "heldout.parquet")["id"].to_pylist()
    assert len(held) == outcome.counts.kept == 400 - outcome.counts.dropped["not_held_out"]


def test_order_of_files_and_rows_changes_nothing(tmp_path: Path):
    texts = {f"d{n}": counted(n) for n in range(20)}
    make_cloze_items([documents(tmp_path, texts)], tmp_path / "one", SHORT)
    make_cloze_items([documents(tmp_path, dict(reversed(texts.items())))], tmp_path / "two", SHORT)
    make_cloze_items([documents(tmp_path, texts)], tmp_path / "three", SHORT.model_copy(update={"seed": 1}))
    assert made(tmp_path / "one") == made(tmp_path / "two") != made(tmp_path / "three")


def test_wrong_choices_are_close_in_length(tmp_path: Path):
    texts = {
        f"d{n:02d}": " ".join(f"{chr(97 + n % 26)}{'x' * (n + 1)}{place}" for place in range(30)) for n in range(20)
    }
    make_cloze_items([documents(tmp_path, texts)], tmp_path / "out", SHORT)
    for item in load_items(tmp_path / "out" / "items" / "cloze_web_en.jsonl")[0]:
        lengths = [len(choice) for choice in item.choices]
        assert (
            max(lengths) - min(lengths) <= 9 * 6 + 6
        )  # eight neighbours of an ordered pool, one letter per word apart


def test_no_item_at_all_is_an_error(tmp_path: Path):
    with pytest.raises(DataError, match="no cloze item from 1 documents"):
        make_cloze_items([documents(tmp_path, {"a": counted(1)})], tmp_path / "out", SHORT)


def test_an_item_is_long_enough_to_be_found():
    with pytest.raises(ValidationError, match="at least 13"):
        ClozeSettings(query_words=6, continuation_words=6)


def test_a_file_without_text_is_named(tmp_path: Path):
    file = tmp_path / "in.parquet"
    pq.write_table(pa.table({"id": ["a"], "question": ["Why?"]}), file)
    with pytest.raises(DataError, match=f"^{file}: documents need a column 'text'; found: id, question; "):
        make_cloze_items([file], tmp_path / "work", SHORT)
