import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import DataError
from trainer.chains import CORRUPTIONS, ChainSettings, chain_items, make_chain_items
from trainer.eval_items import load_items

CHAIN = "She sold 48 / 2 = 24 clips in May.\nIn both months she sold 48 + 24 = 72 clips.\nThe answer is 72."
MAY, BOTH = "She sold 48 / 2 = 24 clips in May.", "In both months she sold 48 + 24 = 72 clips."


@pytest.mark.parametrize(
    ("kind", "rank", "wrong"),
    [
        ("number", 0, CHAIN.replace("= 24", "= 34").replace("+ 24", "+ 34")),  # from there on, and no result mended
        ("number", 1, CHAIN.replace("72", "82")),
        ("operator", 0, CHAIN.replace("48 / 2", "48 * 2")),
        ("operator", 1, CHAIN.replace("48 + 24", "48 - 24")),
        ("order", 0, f"{BOTH}\n{MAY}\nThe answer is 72."),
    ],
)
def test_one_thing_is_wrong(kind: str, rank: int, wrong: str):
    assert CORRUPTIONS[kind](CHAIN, rank) == wrong


@pytest.mark.parametrize(
    ("kind", "chain"),
    [
        ("number", "No digit here."),
        ("number", "In step 1 nothing is computed."),
        ("operator", "a well-known either/or, 5 apples - or so"),
        ("operator", "in the season 2020 / 21"),
        ("order", "1 + 1 = 2\nThe answer is 2."),
        ("order", "1 + 1 = 2\n3 + 4 = 7\nThe answer is 9."),  # neither line needs the other
    ],
)
def test_what_cannot_be_wrong_is_left(kind: str, chain: str):
    assert CORRUPTIONS[kind](chain, 3) is None


@given(st.text("0123456789 =+-*/.\nab$\\{}", max_size=60), st.integers(0, 2**64 - 1), st.sampled_from([*CORRUPTIONS]))
def test_a_corrupted_chain_is_another_of_the_same_length(chain: str, rank: int, kind: str):
    wrong = CORRUPTIONS[kind](chain, rank)
    assert wrong is None or (wrong != chain and len(wrong) == len(chain))


def test_items_of_a_file(tmp_path: Path):
    rows = [{"question": "How many?", "answer": "48/2 = <<48/2=24>>24\n24+48 = <<24+48=72>>72\n#### 72"},
            {"problem": "Why?", "solution": "Because."}, {"question": " ", "answer": "x"}, ["no object"]]  # fmt: skip
    path = tmp_path / "train.jsonl.gz"
    path.write_bytes(gzip.compress(b"".join(json.dumps(row).encode() + b"\n" for row in rows) + b"not json\n", mtime=0))
    items, unused = chain_items(path, "gsm", ChainSettings())
    assert unused == {"no_question_or_chain": 3, "nothing_to_corrupt": 1}
    (item,) = items["pplpass_gsm_order"]
    assert item.query == "Question: How many?\nAnswer:"
    assert item.choices[item.gold] == " 48/2 = 24\n24+48 = 72\n#### 72"
    assert item.choices[1 - item.gold] == " 24+48 = 72\n48/2 = 24\n#### 72"
    metrics = make_chain_items({"gsm": path}, tmp_path / "out", ChainSettings()).metrics
    assert set(metrics) == {f"pplpass_gsm_{kind}" for kind in ("number", "operator", "order")}
    assert load_items(tmp_path / "out" / "items" / "pplpass_gsm_order.jsonl")[0] == [item]


def test_right_chains_stand_first_as_often_as_second(shared: Path):
    items, _ = chain_items(shared / "math" / "gsm8k" / "train.jsonl.gz", "gsm8k", ChainSettings(items=1000))
    assert {kind: len(group) for kind, group in items.items()}["pplpass_gsm8k_number"] > 980
    first = [item.gold == 0 for item in items["pplpass_gsm8k_number"]]
    assert 0.45 < sum(first) / len(first) < 0.55


def test_a_file_without_chains_is_refused(tmp_path: Path):
    (tmp_path / "bad.jsonl").write_text('{"text": "nothing"}\n')
    with pytest.raises(DataError, match="expected lines with a question and a chain"):
        make_chain_items({"bad": tmp_path / "bad.jsonl"}, tmp_path / "out", ChainSettings())
