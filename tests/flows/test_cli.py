"""Every verb on files writes what was promised; the number of workers changes nothing; pipes get data and no noise."""

import inspect
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow.parquet as pq
import pytest

from flows.cli import app
from pipelines.document import conform, table_of
from pipelines.manifest import MANIFEST
from tests.conftest import SENTENCES
from tests.flows.conftest import (
    TINY,
    Command,
    Fails,
    Loam,
    Works,
    article,
    columns,
    html,
    only,
    rows,
    tokenizer_of,
    warc,
    write_jsonl,
)


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


def test_extract_many_small_files(works: Works, tmp_path: Path) -> None:
    pages = [tmp_path / f"{number:02}.html" for number in range(20)]
    for page in pages:
        page.write_bytes(html(article()))
    done = works("extract", *pages, "--out", "x")
    assert done["counts"] == {"docs_in": 20, "kept": 20, "dropped": {}, "rejected": {}}
    assert [row["id"] for row in rows(tmp_path / "x" / "documents")] == [page.name for page in pages]


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
    assert columns(tmp_path / "x" / "spans.parquet")[:4] == ["id", "start", "end", "type"]
    (span,) = pq.read_table(tmp_path / "x" / "spans.parquet").to_pylist()
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


def test_buckets_take_the_folder_of_perplexity(works: Works, tiny_documents: Path, tiny_model: Path) -> None:
    works("perplexity", tiny_documents, "--model", tiny_model, "-o", "p")
    by_folder, by_files = works("buckets", "p", "-o", "b"), works("buckets", "p/scores/*.parquet", "-o", "c")
    assert by_folder["metrics"] == by_files["metrics"]
    assert rows(Path("b")) == rows(Path("c"))
    assert Path("b/policy.json").read_bytes() == Path("p/policy.json").read_bytes()


def test_a_missing_gpu_is_said(fails: Fails, tiny_documents: Path, tiny_model: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    fails(3, "no CUDA device on this machine; --set device=cpu", "perplexity", tiny_documents, "--model", tiny_model,
          "--set", "device=cuda", "-o", "p")  # fmt: skip


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
    for drawing, names in (("fit/held_out.svg", {"loss"}), ("propose/weights.svg", {"sand", "clay", "prior"})):
        texts = ElementTree.parse(tmp_path / drawing).iter("{http://www.w3.org/2000/svg}text")
        assert names <= {text.text for text in texts}


def test_import_export_and_eval(works: Works, tmp_path: Path, tiny_model: Path, tiny_documents: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    works("import", tiny_model, "-o", "native")
    works("export", "native", "--to", "hf", "--tokenizer", tiny_model, "-o", "hf")
    assert len(AutoTokenizer.from_pretrained(tmp_path / "hf")) == 300
    before, after = (AutoModelForCausalLM.from_pretrained(p).state_dict() for p in (tiny_model, tmp_path / "hf"))
    assert all(before[name][:300].equal(after[name]) for name in before)  # the embedding's unused rows are cut
    items = write_jsonl(
        tmp_path / "quiz.jsonl", {"query": "The river carries", "choices": [" sand", " clay"], "gold": 0}
    )
    done = works("eval", "hf", "--items", items, "--documents", tiny_documents, "-o", "e")
    assert done["metrics"]["domains"]["documents"]["documents"] == 12
    assert done["metrics"]["benchmarks"]["quiz"]["items"] == 1


def test_verbs_on_documents_are_told_what_the_text_is() -> None:
    groups = [app, *(group.typer_instance for group in app.registered_groups if group.typer_instance)]
    verbs = [(command.name, command.callback) for group in groups for command in group.registered_commands]
    options = {name or verb.__name__: set(inspect.signature(verb).parameters) for name, verb in verbs if verb}
    told = {name for name, names in options.items() if "text" in names}
    filters = {"language", "filter", "safety", "licences", "dedup", "pii", "decontaminate", "score"}
    assert told >= {*filters, "tokenize", "perplexity", "synth", "eval"}
    assert "corpus_text" in options["synth"]
    assert told.isdisjoint({"extract", "buckets", "ensemble", "verify"})  # pages, scores and shards have no records


def test_eval_is_told_what_the_text_is(works: Works, fails: Fails, tmp_path: Path, tiny_model: Path) -> None:
    rows = [{"id": f"d{n}", "body": f"{sentence} {n}"} for n, sentence in enumerate(SENTENCES)]
    named = write_jsonl(tmp_path / "named.jsonl", *rows)
    plain = write_jsonl(tmp_path / "plain.jsonl", *({"id": row["id"], "text": row["body"]} for row in rows))
    fails(3, "its fields are id, body; say what the text is, such as --text '{body}'",
          "eval", tiny_model, "--documents", named, "-o", "x")  # fmt: skip
    told = works("eval", tiny_model, "--documents", named, "--text", "{body}", "-o", "a")
    assert told["metrics"] == works("eval", tiny_model, "--documents", plain, "-o", "b")["metrics"]


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
    search = works("check", "quickstart")["accounts"]["search"]
    assert {part: search[part]["runs"] for part in search} == {"swarm": 24 + 2, "confirmation": 4 * 3}
    planned: Any = works("plan", TINY)
    assert {row["state"] for row in planned["steps"]} == {"to do"}
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


# As a process


def test_a_pipe_gets_data_and_no_noise(loam: Loam, tiny_documents: Path) -> None:
    done = loam("pii", tiny_documents, "-o", "x", "--json", "--workers", 2)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["counts"]["docs_in"] == 12


def test_help_is_quick_because_nothing_heavy_is_imported(loam: Loam) -> None:
    code = (
        "import sys, flows.cli; print(*[m for m in ('torch', 'transformers', 'numba', 'prefect') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=loam.folder, check=True)
    assert done.stdout == "\n"
    assert "quality" in loam.ok("--help")
