"""Bad input: what cannot be read is counted, what cannot be done gets one line and an exit code; never a traceback."""

import gzip
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import SENTENCES
from tests.flows.conftest import TINY, Command, Fails, Works, article, html, rows, tokenizer_of, warc, write_jsonl


def rejected(done: dict[str, Any]) -> dict[str, int]:
    return done["counts"]["rejected"]


def test_damaged_warcs_are_counted(works: Works, tmp_path: Path) -> None:
    whole = warc(tmp_path / "whole.warc.gz", html(article()), html(article())).read_bytes()
    (tmp_path / "cut.warc.gz").write_bytes(whole[:-40])
    done = works("extract", "cut.warc.gz", "-o", "cut")
    assert (done["counts"]["kept"], rejected(done)) == (1, {"truncated": 1})
    middle = len(whole) * 3 // 4
    (tmp_path / "broken.warc.gz").write_bytes(whole[:middle] + b"\0" * 40 + whole[middle + 40 :])
    done = works("extract", "broken.warc.gz", "-o", "broken")
    assert done["counts"]["kept"] <= 1
    assert sum(rejected(done).values()) >= 1
    (tmp_path / "empty.warc.gz").write_bytes(b"")
    assert rejected(works("extract", "empty.warc.gz", "-o", "empty")) == {"empty_file": 1}


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        pytest.param(b"<div>" * 100_000 + b"deep" + b"</div>" * 100_000, "too_deep", id="deep"),
        pytest.param(b"", "empty_file", id="empty"),
    ],
)
def test_bad_pages_are_counted(works: Works, tmp_path: Path, page: bytes, reason: str) -> None:
    (tmp_path / "page.html").write_bytes(page)
    assert rejected(works("extract", "page.html", "-o", "x")) == {reason: 1}


def test_pages_with_wrong_bytes_still_become_text(works: Works, tmp_path: Path) -> None:
    page = html(article())
    (tmp_path / "latin.html").write_bytes(page.replace(b"river", b"rivi\xe8re \x00"))
    done = works("extract", "latin.html", "-o", "x")
    assert done["counts"]["docs_in"] == 1
    assert all("\0" not in row["text"] for row in rows(tmp_path / "x" / "documents"))


BAD_LINES = {
    "bad_json": b'{"id": "a", "text": ',
    "invalid_utf8": b'{"id": "a", "text": "caf\xe9"}',
    "nul_bytes": b'{"id": "a", "text": "a\\u0000b"}',
    "bad_unicode": b'{"id": "a", "text": "\\ud800"}',
    "not_an_object": b"[1, 2]",
    "no_text": b'{"id": "a"}',
    "too_large": b'{"id": "a", "text": "' + b"x" * 50_000_000 + b'"}',
}


@pytest.mark.parametrize("reason", BAD_LINES)
def test_bad_lines_are_counted(works: Works, tmp_path: Path, reason: str) -> None:
    good = json.dumps({"id": "good", "text": SENTENCES[0]}).encode()
    (tmp_path / "a.jsonl").write_bytes(BAD_LINES[reason] + b"\n" + good + b"\n")
    done = works("pii", "a.jsonl", "-o", "x")
    assert (done["counts"]["kept"], rejected(done)) == (1, {reason: 1})
    (reject,) = rows(tmp_path / "x" / "rejects")
    assert reject["reason"] == reason


def test_broken_gzip_and_empty_files_are_counted(works: Works, tmp_path: Path) -> None:
    lines = b"".join(
        json.dumps({"id": f"{n}", "text": f"{n} {os.urandom(40).hex()}"}).encode() + b"\n" for n in range(99)
    )
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines)[:-200])
    done = works("pii", "a.jsonl.gz", "-o", "x")
    assert done["counts"]["kept"] > 50
    assert rejected(done) == {"truncated": 1}
    (tmp_path / "b.jsonl").write_bytes(b"")
    assert rejected(works("pii", "b.jsonl", "-o", "y")) == {"empty_file": 1}


def test_one_long_line_passes_every_verb_on_text(works: Works, tmp_path: Path, tiny_model: Path) -> None:
    long = tmp_path / "long.parquet"
    pq.write_table(pa.table({"id": ["a"], "text": ["x" * 50_000_000]}), long)
    for verb in (("language",), ("filter", "--rules", "web_en"), ("dedup",), ("pii",)):
        assert works(verb[0], long, *verb[1:], "-o", f"out-{verb[0]}")["counts"]["docs_in"] == 1
    works("perplexity", long, "--model", tiny_model, "--max-length", 16, "-o", "p")
    (score,) = rows(tmp_path / "p" / "scores")
    assert (score["truncated"], score["scored_tokens"] <= 16, score["bytes"] <= 16 * 64) == (True, True, True)


# Bad input: one line and a code


def test_wrong_paths(fails: Fails) -> None:
    for verb in (("extract",), ("language",), ("filter", "--rules", "c4"), ("dedup",), ("pii",), ("buckets",)):
        fails(3, "no file matches", *verb, "nowhere/*.parquet", "-o", "x")
    fails(3, "nowhere", "trace", "nowhere/shard:3")
    fails(3, "no run", "show", "nowhere")
    fails(3, "no such file", "mix", "design", "--domains", "nowhere.yaml", "-n", 4, "-o", "x")


def test_wrong_names_and_settings(fails: Fails, tiny_documents: Path, tiny_model: Path) -> None:
    fails(2, "did you mean quickstart", "check", "quikstart")
    fails(2, "did you mean 'proxies'?", "run", TINY, "--no-prefect", "--set", "ablate.proxie=3")
    fails(2, "expected key.key=value", "run", TINY, "--set", "proxies")
    fails(2, "no step 'tokn'", "run", TINY, "--no-prefect", "--until", "tokn")
    fails(2, "no rule set 'gofer'", "filter", tiny_documents, "--rules", "gofer", "-o", "x")
    fails(2, "method", "dedup", tiny_documents, "--method", "magic", "-o", "x")
    fails(2, "scorer", "perplexity", tiny_documents, "--model", tiny_model, "--scorer", "magic", "-o", "x")
    fails(2, "engine", "synth", tiny_documents, "--engine", "magic", "--model", tiny_model, "-o", "x")
    fails(2, "--rules", "filter", tiny_documents, "-o", "x")
    fails(2, "--wurkers", "pii", tiny_documents, "-o", "x", "--wurkers", 3)
    fails(2, "SHARD:ROW", "trace", "shard")


def test_an_unknown_key_is_named_with_its_line(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: quickstart\nname: mine\nablate:\n  proxys: 3\n")
    fails(2, "mine.yaml:4: ablate.proxys: unknown key; did you mean 'proxy'?", "run", "mine.yaml")
    (tmp_path / "twice.yaml").write_text("extends: quickstart\nname: a\nname: b\n")
    fails(2, "twice.yaml:3", "check", "twice.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"name: \xff\xfe\n")
    fails(2, "bytes.yaml", "check", "bytes.yaml")


def test_missing_and_broken_models(fails: Fails, tmp_path: Path, tiny_documents: Path, tiny_model: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    (broken / "model.safetensors").write_bytes(b"\xff" * 100)
    for model in ("nowhere", empty, broken):
        fails(3, str(model), "perplexity", tiny_documents, "--model", model, "-o", "x")
    fails(3, "nowhere", "synth", tiny_documents, "--engine", "transformers", "--model", "nowhere", "-o", "x")
    fails(3, "nowhere", "import", "nowhere", "-o", "x")
    fails(3, "empty", "import", empty, "-o", "x")
    fails(3, "broken", "import", broken, "-o", "x")
    fails(3, "empty", "export", empty, "-o", "x")
    fails(3, "empty", "eval", empty, "--documents", tiny_documents, "-o", "x")
    fails(3, "nowhere", "tokenize", tiny_documents, "--tokenizer", "nowhere", "-o", "x")
    (tmp_path / "tokenizer.json").write_text("{}")
    fails(3, "tokenizer.json", "tokenize", tiny_documents, "--tokenizer", "tokenizer.json", "-o", "x")
    (tmp_path / "model.bin").write_bytes(b"no fastText")
    fails(3, "calibration.json", "quality", "score", tiny_documents, "--model", "model.bin", "-o", "x")


@pytest.mark.parametrize(
    "verb", ["language", "filter --rules=c4", "dedup", "pii", "buckets", "decontaminate --against=quiz.jsonl"]
)
def test_corrupt_parquet_and_missing_columns(verb: str, fails: Fails, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "quiz.jsonl", {"query": " ".join(SENTENCES), "choices": [" a", " b"], "gold": 0})
    (tmp_path / "bad.parquet").write_bytes(b"PAR1" + b"\0" * 50 + b"PAR1")
    fails(3, "bad.parquet", *verb.split(), "bad.parquet", "-o", "x")
    pq.write_table(pa.table({"name": ["a"]}), tmp_path / "thin.parquet")
    fails(3, "thin.parquet" if verb == "buckets" else "found: name", *verb.split(), "thin.parquet", "-o", "y")


def test_garbage_where_a_shard_should_be(fails: Fails, call: Command, tmp_path: Path) -> None:
    (tmp_path / "g.idx").write_bytes(b"\xff" * 99)
    (tmp_path / "g.bin").write_bytes(b"\xff" * 99)
    for prefix in ("g", "nowhere/shard"):
        code, out, err = call("verify", prefix)
        assert (code, err.count("\n"), "FAIL " in out) == (3, 1, True)
        assert err.startswith(f"loam: {prefix}: ")
    fails(3, "g.origin.parquet", "trace", "g:0")


def test_a_row_out_of_range(fails: Fails, works: Works, tiny_documents: Path, tiny_model: Path) -> None:
    works("tokenize", tiny_documents, "--tokenizer", tokenizer_of(tiny_model), "-o", "t")
    fails(3, "there is no row 99", "trace", "t/documents:99")


def test_an_out_that_cannot_be_written(fails: Fails, tmp_path: Path, tiny_documents: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    fails(3, "was not written by loam", "pii", tiny_documents, "-o", "mine")
    fails(3, "cannot be written", "pii", tiny_documents, "-o", "/proc/nowhere/x")  # read-only for root, too
    (tmp_path / "file").write_text("")
    fails(3, "cannot be written", "pii", tiny_documents, "-o", "file/below")
    fails(3, "exists and was not written by loam", "pii", tiny_documents, "-o", "file")


def test_mix_says_what_is_wrong_with_a_table(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "ratios.csv").write_text("id,sand,clay\na,0.5,0.6\n")
    (tmp_path / "metrics.csv").write_text("id,loss\na,3\n")
    fails(3, "ratios.csv", "mix", "fit", "--ratios", "ratios.csv", "--metrics", "metrics.csv", "-o", "x")
    fails(3, "ratios.csv", "mix", "predict", "--fit", tmp_path, "--ratios", "ratios.csv", "-o", "x")
    (tmp_path / "ratios.csv").write_text("id,sand,clay\na,0.5,0.5\n")
    fails(3, "chance: 'lass*' means no metric; there are loss", "mix", "fit", "--ratios", "ratios.csv", "--metrics",
          "metrics.csv", "--set", "chance={lass*: 2}", "-o", "x")  # fmt: skip
    (tmp_path / "domains.yaml").write_text("- {name: sand}\n")
    fails(2, "domains.yaml", "mix", "design", "--domains", "domains.yaml", "-n", 4, "-o", "x")


def test_a_fit_that_was_edited_is_refused(fails: Fails, works: Works, tmp_path: Path) -> None:
    rows = [(run, run / 9, 3 - run / 9 + (run % 3) / 100) for run in range(10)]
    ratios = "".join(f"r{run},{share:.6f},{1 - share:.6f}\n" for run, share, _ in rows)
    (tmp_path / "ratios.csv").write_text("id,sand,clay\n" + ratios)
    (tmp_path / "metrics.csv").write_text("id,loss\n" + "".join(f"r{run},{loss:.4f}\n" for run, _, loss in rows))
    works("mix", "fit", "--ratios", "ratios.csv", "--metrics", "metrics.csv", "--set", "laws=[ols]", "-o", "law")
    held = tmp_path / "law" / "held_out.csv"
    text, predict = held.read_text(), ("mix", "predict", "--fit", "law", "--ratios", "ratios.csv", "-o", "x")
    held.write_text(text.replace("r0,", "r0,9"))
    fails(3, "held_out.csv: expected", *predict)
    (tmp_path / "law" / "manifest.json").unlink()
    held.write_text(text.replace("loss", "other"))
    fails(3, "the law or its held-out predictions are not of the metrics fitted; fit again", *predict)
    held.write_text(text)
    law = tmp_path / "law" / "law.json"
    law.write_text(json.dumps(json.loads(law.read_text()) | {"law": _shorter(json.loads(law.read_text())["law"])}))
    fails(3, "the law or its held-out predictions are not of the metrics fitted; fit again", *predict)
    assert not (tmp_path / "x").exists()


def _shorter(law: dict) -> dict:
    return {name: value[:-1] if isinstance(value, list) else value for name, value in law.items()}
