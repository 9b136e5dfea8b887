"""What users read and set: summaries of verbs, errors that name the file, locales, downloads by name."""

import io
import json
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from filters.list_sources import LISTS
from tests.conftest import SENTENCES
from tests.flows.conftest import LOAM, Command, Fails, Works, rows, tokenizer_of, write_jsonl

# What a verb prints


def test_a_verb_says_what_it_found(call: Command, tmp_path: Path):
    mail = "Write to anna.berg@soil-institute.org or to b.sand@loam-institute.org about it."
    write_jsonl(tmp_path / "a.jsonl", {"id": "a", "text": mail}, {"id": "b", "text": "Nothing here."})
    lines = call("pii", "a.jsonl", "-o", "x")[1].splitlines()
    assert lines == ["pii: x", "  documents in 2, kept 2 (100.0%)", "  spans: email 2", "  spans_in_all: 2",
                     "  documents_with_spans: 1"]  # fmt: skip
    texts = {"en": " ".join(SENTENCES), "de": "Der Fluss trägt im Frühling Sand und Lehm in die Ebene hinunter."}
    write_jsonl(tmp_path / "b.jsonl", *({"id": k, "text": v} for k, v in texts.items()))
    assert "  languages: deu 1, eng 1" in call("language", "b.jsonl", "-o", "y")[1].splitlines()


def test_quality_scores_are_summed_up(call: Command, works: Works, tmp_path: Path):
    good = [{"id": f"g{n}", "text": f"{SENTENCES[n % 5]} {SENTENCES[(n + 1) % 5]}", "label": 1} for n in range(30)]
    bad = [{"id": f"b{n}", "text": f"buy cheap now click here win {n} " * 6, "label": 0} for n in range(30)]
    write_jsonl(tmp_path / "l.jsonl", *good, *bad)
    works("quality", "train", "l.jsonl", "-o", "q", "--set", "bucket=1000", "--set", "dim=8")
    scores = works("quality", "score", "l.jsonl", "--model", "q/model.bin", "-o", "s")["metrics"]["scores"]
    assert list(scores) == ["least", "quarter", "median", "three_quarters", "most"]
    assert list(scores.values()) == sorted(scores.values())


def test_help_has_the_exit_codes(call: Command):
    out = " ".join(call("--help")[1].split())
    assert "Exit codes: 0 done, 2 a recipe or an option is wrong, 3 data is missing or corrupt" in out


def test_a_wrong_prefix_says_what_was_expected(call: Command, works: Works, tmp_path: Path, tiny_documents: Path,
                                               tiny_model: Path):  # fmt: skip
    works("tokenize", tiny_documents, "--tokenizer", tokenizer_of(tiny_model), "-o", "t")
    code, out, err = call("verify", "t/document")
    assert (code, "None" in out + err) == (3, False)
    assert "expected document.bin and document.idx in t" in err
    assert "shards there: documents" in err


@pytest.mark.parametrize(
    ("columns", "words"),
    [({"id": ["a"], "content": ["x"]}, "a.parquet: documents need a column 'text'; found: id, content"),
     ({"id": [["a"]], "text": ["x"]}, "a.parquet: column 'id' cannot be read as string")],
)  # fmt: skip
def test_an_error_about_a_column_names_the_file(columns: dict, words: str, fails: Fails, tmp_path: Path):
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    fails(3, words, "pii", "a.parquet", "-o", "x")


# Names and locales


def in_locale(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    env = {
        name: value for name, value in os.environ.items() if not name.startswith(("LC_", "PYTHON")) and name != "LANG"
    }
    done = subprocess.run([str(LOAM), *arguments], cwd=folder, env={**env, **environment}, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done


def test_a_locale_changes_no_byte(tmp_path: Path):
    names = ["水.jsonl", os.fsdecode(b"caf\xe9.jsonl")]
    try:
        (tmp_path / "in").mkdir()
        for name in names:
            write_jsonl(tmp_path / "in" / name, {"text": " ".join(SENTENCES)})
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    locales = {"utf8": {"LC_ALL": "C.UTF-8"}, "ascii": ascii_only}
    for name, environment in locales.items():
        in_locale(tmp_path, "pii", "in", "-o", f"{name} é", **environment)
    one, two = (
        {p.name: p.read_bytes() for p in (tmp_path / f"{name} é").rglob("*") if p.is_file()} for name in locales
    )
    assert one == two
    assert sorted(row["id"] for row in rows(tmp_path / "utf8 é" / "kept")) == ["caf\\xe9.jsonl/0", "水.jsonl/0"]


# Recipes of scores, lists by name


def test_scores_and_buckets_by_a_recipe(works: Works, tmp_path: Path, tiny_documents: Path, tiny_model: Path):
    (tmp_path / "mine.yaml").write_text("""
kind: score
name: mine
perplexity: {prefix: "<eos>", max_tokens: 16}
buckets: {quantiles: [0.5, 0.75]}
""")
    works("perplexity", tiny_documents, "--model", tiny_model, "--recipe", "mine.yaml", "-o", "p")
    works("perplexity", tiny_documents, "--model", tiny_model, "--max-length", "16", "-o", "plain")
    policies = [json.loads((tmp_path / name / "policy.json").read_text()) for name in ("p", "plain")]
    assert [policy["prefix_id"] for policy in policies] == [0, 0]
    assert [policy["max_tokens"] for policy in policies] == [16, 16]
    works("buckets", "p/scores", "--recipe", "mine.yaml", "--set", "sample=500", "-o", "b")
    found = [row["bucket"] for row in pq.read_table(tmp_path / "b" / "buckets.parquet").to_pylist()]
    assert (found.count("high"), len(found)) == (6, 12)  # half of them, as the recipe says


def test_a_prefix_that_the_tokenizer_lacks(fails: Fails, tiny_documents: Path, tiny_model: Path):
    fails(3, "has no <|endoftext|> token", "perplexity", tiny_documents, "--model", tiny_model, "-o", "p",
          "--set", "prefix=<|endoftext|>")  # fmt: skip


@pytest.fixture
def lists_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server with the archive of one list, small."""
    wanted = LISTS["ldnoobw"]
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, content in (("en", b"darn\n"), ("README.md", b"# none\n")):
            info = tarfile.TarInfo(f"List-{wanted.commit}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    path = f"/{wanted.repository}/archive/{wanted.commit}.tar.gz"

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            self.send_response(200 if self.path == path else 404)
            self.end_headers()
            self.wfile.write(file.getvalue() if self.path == path else b"")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("LOAM_GITHUB", f"http://127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    server.server_close()


def test_a_list_is_fetched_by_name_and_used_by_name(lists_server: None, call: Command, works: Works, fails: Fails,
                                                    tmp_path: Path):  # fmt: skip
    write_jsonl(tmp_path / "a.jsonl", {"id": "a", "text": "Oh, darn it."}, {"id": "b", "text": "Darning socks."})
    fails(3, "run: loam fetch ldnoobw", "safety", "a.jsonl", "--words", "ldnoobw", "-o", "x")
    code, out, _ = call("fetch", "ldnoobw")
    assert (code, out) == (0, "ldnoobw: 1 files, 5 bytes below .\n")
    done = works("safety", "a.jsonl", "--words", "ldnoobw", "-o", "x")
    assert done["counts"]["dropped"] == {"words.en": 1}
    code, out, err = call("fetch", "ut1", "--json")
    assert (code, out) == (3, "")
    assert "ut1 cannot be fetched" in err


def test_what_frees_the_locks_of_workers_is_silent(call: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a process of its own, that would warn of leaks on the terminal whenever a run with workers is stopped."""
    monkeypatch.setattr(sys, "warnoptions", [])
    call("--help")
    assert sys.warnoptions == ["ignore:resource_tracker"]
