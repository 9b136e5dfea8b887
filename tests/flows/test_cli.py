"""Every verb on files: what it writes is what was promised, and bad input is counted or gets one line and a code."""

import gzip
import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.cli import main
from pipelines.document import conform, table_of
from pipelines.manifest import MANIFEST
from tests.conftest import SENTENCES
from tests.flows.conftest import TINY, Loam, only

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Run `loam` in this process, in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOAM_DEBUG", raising=False)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["loam", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capfd.readouterr()
        code = end.value.code
        assert isinstance(code, int)
        assert "Traceback" not in out + err
        return code, out, err

    return run


@pytest.fixture
def works(call: Command) -> Callable[..., dict[str, Any]]:
    """Run a verb with --json: it succeeds, stdout is one JSON document, stderr is empty."""

    def run(*arguments: object) -> dict[str, Any]:
        code, out, err = call(*arguments, "--json")
        assert (code, err) == (0, "")
        return json.loads(out)

    return run


@pytest.fixture
def fails(call: Command) -> Callable[..., None]:
    """Run a verb that cannot work: one line on stderr that holds some words, nothing on stdout."""

    def run(expected_code: int, words: str, *arguments: object) -> None:
        code, out, err = call(*arguments)
        assert (code, out) == (expected_code, ""), err
        assert err.startswith("loam: ")
        assert err.count("\n") == 1
        assert words in err

    return run


Works, Fails = Callable[..., dict[str, Any]], Callable[..., None]


def rows(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.rglob("*.parquet")) for row in pq.ParquetFile(path).read().to_pylist()]


def columns(path: Path) -> list[str]:
    return pq.read_schema(path).names


def write_jsonl(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def html(body: str) -> bytes:
    return f"<html><head><title>Soil</title></head><body>{body}</body></html>".encode()


def article() -> str:
    return "<article>" + "".join(f"<p>{sentence} {sentence}</p>" for sentence in SENTENCES) + "</article>"


def warc(path: Path, *pages: bytes) -> Path:
    """A WARC file of responses, compressed record by record."""
    from io import BytesIO

    from fastwarc.warc import WarcRecord, WarcRecordType

    with path.open("wb") as file:
        for number, page in enumerate(pages):
            record = WarcRecord()
            record.init_headers(0, WarcRecordType.response, record_urn=f"{number:032x}".encode())
            record.headers["WARC-Target-URI"] = f"http://soil.example/{number}"
            record.headers["WARC-Date"] = "2024-01-01T00:00:00Z"
            record.set_bytes_content(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + page)
            plain = BytesIO()
            record.write(plain)
            file.write(gzip.compress(plain.getvalue(), mtime=0))
    return path


def tokenizer_of(model: Path) -> Path:
    return model / "tokenizer.json"


# What the verbs write


def test_extract(works: Works, tmp_path: Path) -> None:
    page = warc(tmp_path / "pages.warc.gz", html(article()), html(""))
    done = works("extract", page, "--out", "x")
    assert done["counts"] == {"docs_in": 2, "kept": 1, "dropped": {}, "rejected": {"no_text": 1}}
    (document,) = rows(tmp_path / "x" / "documents")
    assert document["url"] == "http://soil.example/0"
    assert SENTENCES[0] in document["text"]
    assert {"id", "url", "text", "language", "origin"} <= document.keys()
    (reject,) = rows(tmp_path / "x" / "rejects")
    assert reject["reason"] == "no_text"


def test_language(works: Works, tmp_path: Path) -> None:
    texts = {
        "en": " ".join(SENTENCES),
        "zh": "春天，河水把沙子和泥土带到平原上。农民在第一场雨之前翻耕田地。土壤的比例很重要。",
    }
    works("language", write_jsonl(tmp_path / "a.jsonl", *({"id": k, "text": v} for k, v in texts.items())), "-o", "x")
    assert columns(only((tmp_path / "x" / "scores").rglob("*.parquet")))[:3] == ["id", "language", "confidence"]
    assert {row["id"]: row["language"] for row in rows(tmp_path / "x" / "scores")} == {"en": "eng", "zh": "cmn"}


@pytest.mark.parametrize("rules", ["gopher_quality", "gopher_repetition", "c4", "fineweb", "web_en"])
def test_filter(works: Works, tmp_path: Path, tiny_documents: Path, rules: str) -> None:
    counts = works("filter", tiny_documents, "--rules", rules, "-o", "x")["counts"]
    assert counts["docs_in"] == 12
    assert len(rows(tmp_path / "x" / "attributes")) == 12
    dropped = rows(tmp_path / "x" / "dropped")
    assert len(rows(tmp_path / "x" / "kept")) + len(dropped) == 12
    assert all(row["reason"] in counts["dropped"] for row in dropped)


def test_dedup_by_every_method_and_against_an_index(works: Works, tmp_path: Path) -> None:
    text = " ".join(SENTENCES * 3)
    first = write_jsonl(tmp_path / "a.jsonl", {"id": "a", "text": text, "url": "http://x.example/1"})
    near = text + " One more remark."
    both = write_jsonl(tmp_path / "b.jsonl", {"id": "a", "text": text, "url": "http://x.example/1"},
                       {"id": "b", "text": text, "url": "http://x.example/1#top"},
                       {"id": "c", "text": near, "url": "http://x.example/2"})  # fmt: skip
    for method, kept in (("exact", ["a", "c"]), ("url", ["a", "c"]), ("minhash", ["a"])):
        works("dedup", both, "--method", method, "-o", method)
        assert sorted(row["id"] for row in rows(tmp_path / method / "kept")) == kept
        assert columns(tmp_path / method / "clusters.parquet") == ["id", "cluster", "kept", "matched_id", "jaccard"]
    later = write_jsonl(tmp_path / "c.jsonl", {"id": "d", "text": near}, {"id": "e", "text": "Another thing. " * 9})
    works("dedup", first, "-o", "old")
    works("dedup", later, "--against", "old", "-o", "new")
    assert [row["id"] for row in rows(tmp_path / "new" / "kept")] == ["e"]


def test_pii(works: Works, tmp_path: Path) -> None:
    text = "Write to anna.berg@soil-institute.org about the harvest."
    works("pii", write_jsonl(tmp_path / "a.jsonl", {"id": "a", "text": text}), "-o", "x")
    assert columns(tmp_path / "x" / "spans.parquet") == ["id", "start", "end", "type"]
    (span,) = (
        rows(tmp_path / "x" / "spans.parquet".removesuffix(".parquet"))
        or pq.read_table(tmp_path / "x" / "spans.parquet").to_pylist()
    )
    assert text[span["start"] : span["end"]] == "anna.berg@soil-institute.org"
    (document,) = rows(tmp_path / "x" / "kept")
    assert "anna.berg" not in document["text"]


def test_decontaminate(works: Works, tmp_path: Path) -> None:
    item = "Which of the three soils drains water most quickly after a week of steady autumn rain in the valley?"
    items = write_jsonl(tmp_path / "quiz.jsonl", {"id": "q1", "query": item, "choices": [" sand", " clay"], "gold": 0})
    documents = write_jsonl(tmp_path / "a.jsonl", {"id": "leak", "text": f"Once more: {item} Sand."},
                            {"id": "clean", "text": " ".join(SENTENCES)})  # fmt: skip
    done = works("decontaminate", documents, "--against", items, "-o", "x")
    assert done["counts"]["dropped"] == {"contaminated.quiz": 1}
    (hit,) = pq.read_table(tmp_path / "x" / "hits.parquet").to_pylist()
    assert (hit["id"], hit["benchmark"], hit["item"]) == ("leak", "quiz", "q1")
    assert {"start", "end"} <= hit.keys()


def test_quality_train_and_score(works: Works, tmp_path: Path) -> None:
    good = [{"id": f"g{n}", "text": " ".join(random.Random(n).sample(SENTENCES, 3)), "label": 1} for n in range(30)]
    bad = [{"id": f"b{n}", "text": f"buy cheap now click here win {n} " * 6, "label": 0} for n in range(30)]
    labelled = write_jsonl(tmp_path / "labelled.jsonl", *good, *bad)
    works("quality", "train", labelled, "-o", "q", "--set", "bucket=1000", "--set", "dim=8")
    works("quality", "score", labelled, "--model", "q/model.bin", "-o", "s")
    scores = {row["id"]: row["scores"]["quality"] for row in rows(tmp_path / "s" / "kept")}
    assert min(scores[f"g{n}"] for n in range(30)) > max(scores[f"b{n}"] for n in range(30))


def test_tokenize_and_verify(works: Works, tmp_path: Path, tiny_documents: Path, tiny_model: Path) -> None:
    works("tokenize", tiny_documents, "--tokenizer", tokenizer_of(tiny_model), "-o", "t")
    assert {path.name for path in (tmp_path / "t").iterdir()} == {
        "documents.bin", "documents.idx", "documents.origin.parquet", MANIFEST,
    }  # fmt: skip
    report = works("verify", "t/documents", "--vocab-size", 304)
    assert (report["passed"], report["sequences"]) == (True, 12)


def test_perplexity_then_buckets(works: Works, tmp_path: Path, tiny_documents: Path, tiny_model: Path) -> None:
    works(
        "perplexity", tiny_documents, "--model", tiny_model, "--scorer", "transformers", "--max-length", 16, "-o", "p"
    )
    scores = only((tmp_path / "p" / "scores").rglob("*.parquet"))
    assert {"id", "sum_nll_nats", "scored_tokens", "bytes", "truncated"} <= set(columns(scores))
    assert all(row["truncated"] and row["scored_tokens"] <= 16 for row in pq.ParquetFile(scores).read().to_pylist())
    works("buckets", scores, "-o", "b")
    assert "high = LOWEST" in (tmp_path / "b" / "cutoffs.json").read_text()
    assert columns(tmp_path / "b" / "buckets.parquet")[:2] == ["id", "bucket"]
    found = [row["bucket"] for row in pq.read_table(tmp_path / "b" / "buckets.parquet").to_pylist()]
    assert {name: found.count(name) for name in set(found)} == {"high": 4, "mid": 4, "low": 4}


def test_synth_counts_what_a_random_model_says(works: Works, tmp_path: Path, tiny_model: Path) -> None:
    documents = write_jsonl(tmp_path / "a.jsonl", {"id": "a", "text": " ".join(SENTENCES * 2)})
    done = works("synth", documents, "--recipe", "cot_backward", "--engine", "transformers", "--model", tiny_model,
                 "-o", "s", "--set", "sampling.max_tokens=4")  # fmt: skip
    assert sum(done["counts"]["rejected"].values()) == 1
    assert (tmp_path / "s" / "ledger.parquet").is_file()
    assert (tmp_path / "s" / "samples").is_dir()
    assert (tmp_path / "s" / "responses").is_dir()
    assert len(rows(tmp_path / "s" / "rejects")) == 1


def domains_yaml(folder: Path) -> Path:
    path = folder / "domains.yaml"
    path.write_text("- {name: sand, unique_tokens: 30M}\n- {name: clay, unique_tokens: 10M}\n")
    return path


def test_mix_design_fit_predict_propose(works: Works, tmp_path: Path) -> None:
    domains = domains_yaml(tmp_path)
    works("mix", "design", "--domains", domains, "-n", 16, "-o", "design")
    head, *lines = (tmp_path / "design" / "ratios.csv").read_text().splitlines()
    assert head.split(",")[1:] == ["sand", "clay"]
    metrics = tmp_path / "metrics.csv"
    losses = (f"{run},{3 + (float(sand) - 0.4) ** 2}" for run, sand, _ in (line.split(",") for line in lines))
    metrics.write_text("id,loss\n" + "\n".join(losses) + "\n")
    ratios = tmp_path / "design" / "ratios.csv"
    works("mix", "fit", "--ratios", ratios, "--metrics", metrics, "--scale", "tiny", "-o", "fit")
    assert "chosen" in json.loads((tmp_path / "fit" / "report.json").read_text())
    works("mix", "predict", "--fit", "fit", "--ratios", ratios, "-o", "predict")
    head = (tmp_path / "predict" / "predictions.csv").read_text().splitlines()[0]
    assert head == "id,loss,loss_lo80,loss_hi80,loss_lo95,loss_hi95"
    works("mix", "propose", "--fit", "fit", "--target", "loss", "--domains", domains, "-o", "propose")
    assert (tmp_path / "propose" / "mixture.yaml").is_file()
    assert (tmp_path / "propose" / "proposal.json").is_file()


def test_import_export_and_eval(works: Works, tmp_path: Path, tiny_model: Path, tiny_documents: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    works("import", tiny_model, "-o", "native")
    works("export", "native", "--to", "hf", "--tokenizer", tiny_model, "-o", "hf")
    assert len(AutoTokenizer.from_pretrained(tmp_path / "hf")) == 300
    before, after = (AutoModelForCausalLM.from_pretrained(p).state_dict() for p in (tiny_model, tmp_path / "hf"))
    assert all(before[name].equal(after[name]) for name in before)
    items = write_jsonl(
        tmp_path / "quiz.jsonl", {"query": "The river carries", "choices": [" sand", " clay"], "gold": 0}
    )
    done = works("eval", "hf", "--items", items, "--documents", tiny_documents, "-o", "e")
    assert done["metrics"]["domains"]["documents"]["documents"] == 12
    assert done["metrics"]["benchmarks"]["quiz"]["items"] == 1


def test_train_on_shards(works: Works, tmp_path: Path, tiny_documents: Path, tiny_model: Path) -> None:
    works("tokenize", tiny_documents, "--tokenizer", tokenizer_of(tiny_model), "-o", "t")
    recipe = tmp_path / "small.yaml"
    recipe.write_text("""
kind: train
name: small
model: {layers: 1, width: 16, heads: 1, kv_heads: 1, head_dim: 16, ffn_width: 32, max_sequence: 32}
stages: [{name: main, tokens: 512, sequence_length: 16, batch_tokens: 64, learning_rate: 1e-3}]
""")
    works("train", recipe, "--data", "t", "--tokenizer", tiny_model, "-o", "m")
    works("export", "m", "--tokenizer", tiny_model, "-o", "hf")
    assert (tmp_path / "hf" / "config.json").is_file()


def test_check_and_plan_touch_nothing(works: Works, tmp_path: Path) -> None:
    assert works("check", "quickstart")["accounts"]["proxy_runs"] == {"swarm": 24, "confirmation": 6}
    assert {row["state"] for row in works("plan", TINY)} == {"to do"}
    assert list(tmp_path.iterdir()) == []


# The number of workers, and running again


@pytest.mark.parametrize("verb", ["extract", "filter", "dedup", "tokenize"])
def test_workers_change_no_byte(verb: str, works: Works, tmp_path: Path, tiny_model: Path) -> None:
    chance = random.Random(verb)
    inputs = []
    for number in range(3):
        texts = [" ".join(chance.choices(SENTENCES, k=12)) for _ in range(20)]
        if verb == "extract":
            inputs.append(warc(tmp_path / f"{number}.warc.gz", *(html(f"<p>{text}</p>") for text in texts[:4])))
        else:
            inputs.append(tmp_path / f"{number}.parquet")
            pq.write_table(
                conform(table_of([{"id": f"{number}-{n}", "text": t} for n, t in enumerate(texts)])), inputs[-1]
            )
    more = {"filter": ["--rules", "web_en"], "tokenize": ["--tokenizer", tokenizer_of(tiny_model)]}.get(verb, [])
    for workers in (1, 3):
        works(verb, *inputs, *more, "--workers", workers, "-o", f"w{workers}")
    one, three = ({path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
                  for root in (tmp_path / "w1", tmp_path / "w3"))  # fmt: skip
    assert one == three
    assert len(one) > 1


def test_running_again_does_nothing_and_says_so(call: Command, tiny_documents: Path) -> None:
    verb = ("pii", tiny_documents, "-o", "x")
    assert "nothing to do" not in call(*verb)[1]
    code, out, err = call(*verb)
    assert (code, out.splitlines()[0], err) == (0, "pii: x (nothing to do: already there)", "")


# Bad input: counted


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
    verbs = ("language",), ("filter", "--rules", "web_en"), ("dedup",), ("pii",)
    for verb, *options in verbs:
        assert sum(works(verb, long, *options, "-o", f"out-{verb}")["counts"][k] for k in ("docs_in",)) == 1
    done = works("perplexity", long, "--model", tiny_model, "--max-length", 16, "-o", "p")
    assert done["counts"]["kept"] == 1


# Bad input: one line and a code


def test_wrong_paths(fails: Fails) -> None:
    for verb in (("extract",), ("language",), ("filter", "--rules", "c4"), ("dedup",), ("pii",), ("buckets",)):
        fails(3, "no file matches", *verb, "nowhere/*.parquet", "-o", "x")
    fails(3, "nowhere", "verify", "nowhere/shard")
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
    fails(2, "mine.yaml:4: ablate.proxys: unknown key; did you mean 'proxies'?", "run", "mine.yaml")
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
    fails(3, "model.bin", "quality", "score", tiny_documents, "--model", "model.bin", "-o", "x")


@pytest.mark.parametrize(
    "verb", ["language", "filter --rules=c4", "dedup", "pii", "buckets", "decontaminate --against=quiz.jsonl"]
)
def test_corrupt_parquet_and_missing_columns(verb: str, fails: Fails, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "quiz.jsonl", {"query": " ".join(SENTENCES), "choices": [" a", " b"], "gold": 0})
    (tmp_path / "bad.parquet").write_bytes(b"PAR1" + b"\0" * 50 + b"PAR1")
    fails(3, "bad.parquet", *verb.split(), "bad.parquet", "-o", "x")
    pq.write_table(pa.table({"name": ["a"]}), tmp_path / "thin.parquet")
    fails(3, "name", *verb.split(), "thin.parquet", "-o", "y")


def test_garbage_where_a_shard_should_be(fails: Fails, call: Command, tmp_path: Path) -> None:
    (tmp_path / "g.idx").write_bytes(b"\xff" * 99)
    (tmp_path / "g.bin").write_bytes(b"\xff" * 99)
    code, out, err = call("verify", "g")
    assert (code, err.count("\n")) == (3, 1)
    assert "g" in out
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


def test_mix_says_what_is_wrong_with_a_table(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "ratios.csv").write_text("id,sand,clay\na,0.5,0.6\n")
    (tmp_path / "metrics.csv").write_text("id,loss\na,3\n")
    fails(3, "ratios.csv", "mix", "fit", "--ratios", "ratios.csv", "--metrics", "metrics.csv", "-o", "x")
    fails(3, "ratios.csv", "mix", "predict", "--fit", tmp_path, "--ratios", "ratios.csv", "-o", "x")
    (tmp_path / "domains.yaml").write_text("- {name: sand}\n")
    fails(2, "domains.yaml", "mix", "design", "--domains", "domains.yaml", "-n", 4, "-o", "x")


# As a process


def test_a_pipe_gets_data_and_no_noise(loam: Loam, tiny_documents: Path) -> None:
    done = loam("pii", tiny_documents, "-o", "x", "--json", "--workers", 2)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["counts"]["docs_in"] == 12


def test_help_is_quick_because_nothing_heavy_is_imported(loam: Loam) -> None:
    import subprocess

    code = (
        "import sys, flows.cli; print(*[m for m in ('torch', 'transformers', 'numba', 'prefect') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=loam.folder, check=True)
    assert done.stdout == "\n"
    assert "quality" in loam.ok("--help")
