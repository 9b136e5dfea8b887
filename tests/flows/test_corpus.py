"""Recipes of corpora: the shipped ones name every source of the seeds, say what they need, and run on stand-ins."""

import json
import random
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from flows.corpus import CorpusRecipe
from flows.estimate import RATES, cost_of
from flows.kinds import load_any, load_build
from flows.needs import needs_of
from flows.recipe import BuildRecipe
from mixtures.mixture import Mixture
from pipelines.errors import RecipeError
from pipelines.indexed import load_shards
from pipelines.manifest import read_manifest
from pipelines.recipe import ROOT
from pipelines.source_settings import FileSource, HubSource
from tests.flows.conftest import Fails, Loam, Works, only, write_jsonl

STANDINS = Path(__file__).with_name("recipes") / "standins.yaml"
NEMOTRON = (
    "high-actual-actual", "medium-actual-actual", "high-synthetic-distill", "high-synthetic-extract-knowledge",
    "high-synthetic-diverse-qa-pairs", "high-synthetic-knowledge-list", "high-synthetic-wrap", "low-synthetic-wrap",
)  # fmt: skip
OTHERS = ("zh-cc", "code", "math", "books", "wiki", "arxiv", "stack", "pes2o")
SOURCES = (*(f"nemotron-cc-{subset}" for subset in NEMOTRON), *OTHERS)
NAMED = {  # repositories that the seeds name for a recipe
    "zh-cc": {"BAAI/CCI3-HQ", "opencsg/chinese-fineweb-edu"},
    "code": {"OpenCoder-LLM/opc-annealing-corpus", "OpenCoder-LLM/opc-fineweb-code-corpus", "bigcode/starcoderdata"},
    "math": {"HuggingFaceTB/finemath", "EleutherAI/proof-pile-2"},
}


def corpus(name: str) -> CorpusRecipe:
    recipe = load_any(name)
    assert isinstance(recipe, CorpusRecipe)
    return recipe


# What ships


COMMIT = re.compile("[0-9a-f]{40}")
MOVING = {"bigcode/starcoderdata", "BAAI/CCI3-HQ", "opencsg/chinese-fineweb-edu"}  # no commit that could be vouched for


def test_revisions_are_commits_but_for_three():
    hub = [source for name in SOURCES for source in corpus(name).sources.values() if isinstance(source, HubSource)]
    assert {source.dataset for source in hub if not COMMIT.fullmatch(source.revision)} == MOVING


def test_every_source_has_a_recipe_and_no_other():
    files = {path.stem for path in (ROOT / "flows" / "recipes" / "sources").glob("*.yaml")}
    assert files == {*SOURCES, "pt-1.3t"}


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_says_where_it_is_and_under_which_licence(name: str):
    recipe = corpus(name)
    for source, settings in recipe.sources.items():
        assert settings.licence, source
        assert isinstance(settings, (FileSource, HubSource))
        assert source in recipe.known or isinstance(settings, HubSource)
    found = {settings.dataset for settings in recipe.sources.values() if isinstance(settings, HubSource)}
    assert found >= NAMED.get(name, set())
    assert recipe.scorer is not None


def test_chinese_is_compared_by_characters_and_the_rest_by_words():
    recipe = corpus("pt-1.3t")
    assert {(s.unit, s.ngram, s.bands, s.rows) for s in recipe.dedup.near.values()} == {
        ("word", 5, 14, 8), ("char", 5, 25, 10),
    }  # fmt: skip
    assert recipe.near_groups()["near_char_25x10"] == ["zh_cc"]
    assert len(recipe.near_groups()) == 2


def test_the_whole_has_all_sources_and_the_published_proportions():
    whole = corpus("pt-1.3t")
    assert set(whole.sources) == {source for name in SOURCES for source in corpus(name).sources}
    assert sum(whole.weights.values()) == pytest.approx(1, abs=1e-9)
    # 14.44% and 9.65% of OpenSeek's mixture, of which 81.19% is not its own reasoning data
    assert whole.weights["nemotron_cc_medium_actual_actual"] == pytest.approx(0.1444 / 0.8119, abs=1e-5)
    assert whole.weights["zh_cc"] == pytest.approx(0.0965 / 0.8119, abs=1e-5)
    assert whole.weights["code"] + whole.weights["code_web"] == pytest.approx(0.0343 / 0.8119, abs=1e-5)


# What they need


def test_check_says_what_must_be_fetched(works: Works, tmp_path: Path):
    needs = {need["name"]: need for need in works("check", "math")["needs"]}
    finemath = needs["math_finemath"]
    assert finemath["state"] == "fetch"
    assert finemath["where"].startswith("huggingface.co/datasets/HuggingFaceTB/finemath @71548db9b54c finemath-3plus")
    assert (finemath["licence"], finemath["pinned"], finemath["tokens"]) == ("ODC-By-1.0", True, 34_000_000_000)
    assert needs["scorer"]["where"] == "huggingface.co/Qwen/Qwen2.5-3B @3aab1f1954e9"
    assert needs["scorer"]["state"] == needs["tokenizer"]["state"] == "fetch"
    assert list(tmp_path.iterdir()) == []


def test_check_in_words(call: Any):
    _, out, _ = call("check", "zh-cc", "--set", "sources.zh_cc_cci3_hq.revision=" + "0a" * 20)
    assert "fetch   zh_cc_opencsg: huggingface.co/datasets/opencsg/chinese-fineweb-edu" in out
    assert "terms to accept" in out
    assert "\n1 with a revision not pinned yet: loam fetch pins it" in out
    assert "loam fetch zh-cc" in out
    assert "; 500 GB;" in out
    assert "as its paper has it" not in out
    assert "as its paper has it" in call("check", "zh-cc", "--verbose")[1]


@pytest.mark.parametrize("name", ["pt-1.3t", "math", "quickstart", "proxy-tiny", "cot_backward", "perplexity-buckets"])
def test_check_is_short_and_verbose_has_every_key(name: str, call: Any):
    short, everything = (call("check", name, *more)[1].splitlines() for more in ((), ("--verbose",)))
    assert short[0].startswith(f"{name}: a recipe of kind ")
    assert len(short) < 50 < len(everything) or len(short) < 12
    assert "---" in everything


def test_lists_of_a_recipe_are_fetched_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    recipe = load_build(str(small(tmp_path)), ["safety.urls=ut1", "safety.words=mine"])
    needs = {need.name: need for need in needs_of(recipe)}
    assert (needs["safety.urls"].state, needs["safety.urls"].pinned) == ("fetch", True)
    assert needs["safety.words"].state == "missing"
    assert "loam fetch ldnoobw" in needs["safety.words"].note


def test_what_was_known_of_a_source_goes_with_it(tmp_path: Path):
    recipe = load_build(str(small(tmp_path)))
    assert isinstance(recipe, CorpusRecipe)
    assert corpus("wiki").known["wiki_dolmino"].tokens == 3_700_000_000
    assert recipe.known == {}
    kept = load_any("pt-1.3t", ["sources={wiki_dolmino: {max_documents: 5}}"])
    assert isinstance(kept, CorpusRecipe)
    assert "wiki_dolmino" in kept.known


def test_a_path_is_here_or_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    recipe = small(tmp_path)
    states = {need.name: need.state for need in needs_of(load_build(str(recipe)))}
    assert states == {"wiki_dolmino": "here", "zh_cc_cci3_hq": "here", "zh_cc_opencsg": "here"}
    (tmp_path / "zh.jsonl").unlink()
    lost = [need for need in needs_of(load_build(str(recipe))) if need.state == "missing"]
    assert [(need.name, need.where) for need in lost] == [("zh_cc_cci3_hq", "zh.jsonl")]


def test_the_cost_is_of_what_is_known():
    cost = cost_of(load_build("wiki"))
    assert cost["tokens"] == 3_700_000_000
    assert cost["core_hours_total"] == pytest.approx(sum(cost["core_hours"].values()))
    assert cost_of(load_build("nemotron-cc-low-synthetic-wrap"))["unknown"] == ["nemotron_cc_low_synthetic_wrap"]
    epochs = cost_of(load_build("pt-1.3t"))["epochs"]
    assert epochs["wiki"] == pytest.approx(0.003572 * 1.3e12 / 3.7e9, rel=1e-3)
    assert epochs["code"] is None
    some = cost_of(load_build("wiki", ["sources.wiki_dolmino.max_documents=617000"]))
    assert some["tokens"] == pytest.approx(370_000_000, rel=1e-3)


def test_rates_are_those_of_the_benchmarks():
    """Every rate stands in docs/benchmarks.md, in the same words, in a row about what it is the rate of."""
    rows = (ROOT / "docs" / "benchmarks.md").read_text().splitlines()
    about = {"extract": "loam extract", "language": "Language", "filter": "all 17 rule sets",
             "near duplicates": "MinHash signatures", "personal data": "Personal data, speed",
             "evaluation items": "Searching for", "tokenize": "Tokenizing to shards, Qwen"}  # fmt: skip
    assert about.keys() == RATES.keys()
    for step, words in about.items():
        assert any(words in row and str(RATES[step]) in row for row in rows), step


# What holds of them


@pytest.mark.parametrize(
    ("change", "words"),
    [("weights={wiki: 0.5, zh_cc: 0.4}", "weights sum to 0.9"), ("weights={wiki: 1}", "'zh_cc' is not both"),
     ("known={moon: {tokens: 1}}", "known names 'moon'"), ("filters={moon: c4}", "filters names 'moon'"),
     ("include=[quickstart]", "quickstart is not a corpus recipe"),
     ("dedup.near={wiki: {}, moon: {}}", "dedup.near names 'moon'")],
)  # fmt: skip
def test_what_does_not_hold_is_refused(change: str, words: str, tmp_path: Path, fails: Fails):
    fails(2, words, "check", small(tmp_path), "--set", change)


def test_run_performs_runs_and_corpora_only(fails: Fails):
    fails(2, "kind run, corpus and ablate", "run", "proxy-tiny")
    with pytest.raises(RecipeError, match="kind run, corpus and ablate"):
        load_build("cot_backward")


def test_the_executor_is_no_part_of_a_recipe_or_its_run(tmp_path: Path):
    from flows.runner import fingerprint

    plain = load_build(str(small(tmp_path)))
    there = load_build(str(small(tmp_path)), ["executor={kind: slurm, partition: cpu}"])
    assert isinstance(there, BuildRecipe)
    assert there.executor is not None
    assert fingerprint(there) == fingerprint(plain)
    assert "executor" not in there.model_dump()


# They run


def small(folder: Path) -> Path:
    """Two shipped recipes, each source replaced by documents of words of its own; the last is near the first."""
    for name, letters in (("en", "abcdefgh"), ("zh", "水土春秋山河日月"), ("zh2", "风雨雷电金木火石")):
        chance, between = random.Random(name), " " if name == "en" else ""
        texts = [between.join("".join(chance.choices(letters, k=4)) for _ in range(60)) for _ in range(12)]
        texts.append(texts[0] + between + letters[:4])  # near the first: one word more
        write_jsonl(folder / f"{name}.jsonl", *({"id": f"{name}-{n}", "text": text} for n, text in enumerate(texts)))
    path = folder / "small.yaml"
    path.write_text("""
kind: corpus
name: small
include: [wiki, zh-cc]
sources:
  wiki_dolmino: {kind: jsonl, paths: [en.jsonl], domain: wiki, id_field: id}
  zh_cc_cci3_hq: {kind: jsonl, paths: [zh.jsonl], domain: zh_cc, id_field: id}
  zh_cc_opencsg: {kind: jsonl, paths: [zh2.jsonl], domain: zh_cc, id_field: id}
language: {wiki: {label: eng}, zh_cc: {label: zho}}
filters: {wiki: none, zh_cc: none}
tokenizer: {vocab_size: 400}
tokens: 100K
weights: {wiki: 0.75, zh_cc: 0.25}
""")
    return path


def test_two_sources_become_tokens_and_a_mixture(loam: Loam):
    recipe = small(loam.folder)
    loam.ok("run", recipe, "--no-prefect", "--workers", 1)
    run = only(loam.folder.glob("runs/small@*"))
    steps = ("ingest", "filter", "dedup_exact")
    counts = [read_manifest(run / step).counts for step in steps]
    near = [read_manifest(run / step).counts for step in ("near_char_25x10", "near_word_14x8")]
    assert [c.docs_in for c in counts if c] == [39, 39, 39]
    assert [(c.docs_in, dict(c.dropped)) for c in near if c] == [
        (26, {"near_duplicate": 2}),
        (13, {"near_duplicate": 1}),
    ]
    shards = {shard.name: shard for shard in load_shards(run / "tokens" / "train").shards}
    assert shards.keys() == {"wiki", "zh_cc"}
    mixture = Mixture.read(run / "mixture" / "mixture.yaml")
    assert (mixture.weights, mixture.tokens) == ({"wiki": 0.75, "zh_cc": 0.25}, 100_000)
    epochs = read_manifest(run / "mixture").metrics["epochs"]
    assert epochs["wiki"] == pytest.approx(75_000 / shards["wiki"].tokens)
    planned = json.loads(loam.ok("plan", recipe, "--json"))
    assert {row["state"] for row in planned["steps"]} == {"done"}


@pytest.mark.slow
def test_all_shipped_sources_run_on_stand_ins(shared: Path, loam: Loam, tiny_model: Path):
    sets = ("--set", f"root={shared}", "--set", f"scorer.path={tiny_model}", "--set", "perplexity={max_tokens: 32}")
    loam.ok("run", STANDINS, "--no-prefect", "--workers", 1, *sets)  # each worker would compile the kernels anew
    run = only(loam.folder.glob("runs/standins@*"))
    mixture = read_manifest(run / "mixture").metrics
    assert set(mixture["tokens"]) == set(corpus("pt-1.3t").weights)
    assert mixture["empty"] == []
    buckets = {shard.name.rpartition("/")[2] for shard in load_shards(run / "tokens").shards}
    assert {"high", "mid", "low"} <= buckets
    sources = read_manifest(run / "ingest").metrics["sources"]
    assert set(sources) == set(corpus("pt-1.3t").sources)
    assert min(row["documents"] for row in sources.values()) > 0
    for path in (run / "decontaminate" / "kept").rglob("*.parquet"):
        for row in pq.read_table(path, columns=["domain", "language"]).to_pylist():
            assert row["domain"] == path.parent.name
