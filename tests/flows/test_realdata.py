"""The way over real data: every kind of source, English and Chinese, real benchmarks, small enough for a test."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from flows.show import summarise
from pipelines.indexed import load_shards
from pipelines.manifest import check_outputs, read_manifest
from tests.flows.conftest import Loam, only

SMALL = Path(__file__).with_name("recipes") / "realdata-small.yaml"
DOMAINS = {"web_en", "web_zh", "encyclopedia", "books", "math", "code", "papers", "chinese", "qa", "reasoning"}
PLANTED = 3
WORDS = re.compile(r"[^\W_]+")
HAN = re.compile(r"[\u4e00-\u9fff]")


def words_of(text: str) -> list[str]:
    return WORDS.findall(text.lower())


def questions_of(file: Path) -> list[str]:
    """The questions of a benchmark in llm-foundry's form, without the label before them."""
    rows = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    return [row["query"].removeprefix("Question:").strip() for row in rows]


@pytest.fixture(scope="module")
def run(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of the small recipe, with some questions of a benchmark planted among its texts."""
    folder = tmp_path_factory.mktemp("realdata")
    long = [question for question in questions_of(shared / "qa/arc_easy.jsonl") if len(words_of(question)) >= 13]
    around = (
        "The teacher read it aloud, and the class thought about it for a while. {} Then they wrote down an answer. "
    )
    texts = [around.format(question) * 2 + f"It was day {number}." for number, question in enumerate(long[:PLANTED])]
    planted = folder / "planted.jsonl"
    planted.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    source = json.dumps({"kind": "jsonl", "paths": [str(planted)], "domain": "qa"})
    sets = ("--set", f"root={shared}", "--set", f"sources.planted={source}")
    Loam(folder).ok("run", SMALL, "--no-prefect", "--workers", 1, *sets)
    return only(folder.glob("runs/realdata-small@*"))


@pytest.fixture(scope="module")
def steps(run: Path) -> dict[str, Any]:
    return summarise(run)["steps"]


def documents(run: Path, step: str) -> list[dict[str, Any]]:
    return [row for file in sorted((run / step / "kept").rglob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def test_every_domain_has_shards_to_train_on_and_held_out_ones(run: Path):
    trained = {shard.name.split("/")[0]: shard.tokens for shard in load_shards(run / "tokens" / "train").shards}
    held_out = {shard.name: shard.tokens for shard in load_shards(run / "plain_tokens" / "validation").shards}
    assert trained.keys() - {"synth_cot"} == held_out.keys() == DOMAINS
    assert min(trained.values()) > 500
    assert min(held_out.values()) > 100


def test_counts_add_up_from_step_to_step(run: Path, steps: dict[str, Any]):
    way = ("ingest", "filter", "dedup_exact", "dedup_near", "quality", "decontaminate")
    before = None
    for name in way:
        counts = steps[name]["counts"]
        assert counts["docs_in"] == counts["kept"] + sum(counts["dropped"].values()) + sum(counts["rejected"].values())
        assert before in (None, counts["docs_in"])
        before = counts["kept"]
    assert before == len(documents(run, "decontaminate")) == steps["tokens"]["counts"]["docs_in"]
    for name in steps:
        check_outputs(run / name, read_manifest(run / name))


def test_chinese_pages_are_chinese_whatever_their_encoding(run: Path):
    pages = [row for row in documents(run, "decontaminate") if row["domain"] == "web_zh"]
    assert {"utf-8", "gb18030"} == {dict(row["metadata"])["encoding"] for row in pages}
    for row in pages:
        assert row["language"] in ("cmn", "yue", "wuu")
        assert len(HAN.findall(row["text"])) > 0.2 * len(row["text"])
        assert row["text"].count("\ufffd") <= 0.02 * len(row["text"])
    english = [row for row in documents(run, "decontaminate") if row["domain"] == "web_en"]
    assert not {row["url"] for row in english} & {row["url"] for row in pages}
    assert {row["language"] for row in english} == {"eng"}


def test_questions_of_benchmarks_are_in_no_text(run: Path, shared: Path, steps: dict[str, Any]):
    """Looked for by another program than the one that dropped them: runs of 13 words as strings."""
    texts = [words_of(row["text"]) for row in documents(run, "decontaminate")]
    runs = {" ".join(words[at : at + 13]) for words in texts for at in range(len(words) - 12)}
    for file in ("qa/arc_easy.jsonl", "qa/piqa.jsonl"):
        for question in map(words_of, questions_of(shared / file)):
            assert not {" ".join(question[at : at + 13]) for at in range(len(question) - 12)} & runs
    assert steps["decontaminate"]["counts"]["dropped"]["contaminated.arc_easy"] >= PLANTED
    assert not [row["id"] for row in documents(run, "decontaminate") if row["source"] == "planted"]
    assert len([row for row in documents(run, "quality") if row["source"] == "planted"]) == PLANTED


def test_the_model_is_exported_measured_and_reported(run: Path, steps: dict[str, Any]):
    assert steps["export"]["metrics"]["max_abs_logit_difference"] < 1e-4
    assert steps["mixture"]["metrics"]["verdict"] in ("better", "worse", "inconclusive")
    items = {path.name for path in (run / "items" / "items").glob("*.jsonl")}
    assert {"arc_easy.jsonl", "piqa.jsonl", "cloze_web_zh.jsonl", "cloze_web_en.jsonl"} <= items
    results = json.loads((run / "evaluate" / "results.json").read_text())
    assert results == steps["evaluate"]["metrics"]
    assert (run / "report" / "report.html").stat().st_size > 50_000
    published = run.parent.parent / "published" / "realdata-small"
    assert (published / "dataset" / "README.md").is_file()
    assert (published / "model" / "model.safetensors").is_file()
