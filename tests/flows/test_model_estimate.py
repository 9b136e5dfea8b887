"""Costs of large models: the formula by hand, and the recipes of production that `loam check` accepts."""

from pathlib import Path
from typing import Any

import pytest

import flows
from flows.corpus import CorpusRecipe
from flows.estimate import cost_of
from flows.kinds import load_any
from flows.model_estimate import score_cost, synth_cost, synth_warnings
from flows.score_recipe import ScoreRecipe
from pipelines.model_cost import ModelCost, cost_of_tokens, cost_words
from synth.prompt_files import load_prompts
from synth.recipe import SynthSettings
from tests.flows.conftest import Works

RECIPES = Path(flows.__file__).parent / "recipes"
COST = ModelCost(parameters=2_000_000_000, device_flops=1e13, utilisation=0.4, output_tokens_per_s=100, devices=2)


def score_recipe(*sets: str) -> ScoreRecipe:
    recipe = load_any("perplexity-buckets", sets)
    assert isinstance(recipe, ScoreRecipe)
    return recipe


def synth_recipe(*sets: str) -> SynthSettings:
    recipe = load_any("cot-synthesis-cc", sets)
    assert isinstance(recipe, SynthSettings)
    return recipe


def test_hours_are_tokens_over_speeds():
    assert COST.read_tokens_per_s == 1000  # 0.4 x 1e13 / (2 x 2e9)
    found = cost_of_tokens(COST, 3_600_000, 720_000)
    assert (found["device_hours"], found["hours"], found["price"]) == (3.0, 1.5, 7.5)


def test_what_nobody_knows_is_not_made_up():
    cost = COST.model_copy(update={"output_tokens_per_s": None})
    assert cost_of_tokens(cost, 1000)["price"] is not None
    found = cost_of_tokens(cost, 1000, 10)
    assert (found["device_hours"], found["price"]) == (None, None)
    assert "need output_tokens_per_s" in cost_words(cost, found)[0]


def test_a_billion_tokens_under_the_scorer_of_production():
    """3.09B parameters at 0.4 of an H100 read 64 thousand tokens a second: 4 to 5 hours a billion."""
    cost = score_recipe().scorer
    assert cost is not None
    assert cost.cost is not None
    assert 4 < cost_of_tokens(cost.cost, 1e9)["device_hours"] < 5


def test_scoring_stops_at_the_window_and_counts_the_prefix():
    sets = ("scorer.cost.documents=10", "scorer.cost.document_tokens=5000")
    assert score_cost(score_recipe(*sets), {})["tokens_read"] == 10 * 4097
    assert score_cost(score_recipe(*sets, "perplexity.long_documents=disjoint"), {})["tokens_read"] == 10 * 5001
    assert score_cost(score_recipe("scorer={dataset: a/b}"), {}) == {}


def test_scoring_a_corpus_counts_its_sources():
    wiki = load_any("wiki")
    assert isinstance(wiki, CorpusRecipe)
    scoring = cost_of(wiki)["scoring"]
    assert scoring["tokens_read"] == 3_700_000_000 + 6_170_000  # shorter than the window, and a prefix for each
    assert scoring["price"] == pytest.approx(scoring["device_hours"] * 2.5, rel=1e-3)


def test_synthesis_counts_prompts_documents_and_ceilings():
    settings = synth_recipe("recipe=cot_backward", "max_documents=1", "generator.cost.document_tokens=500",
                            "generator.cost.answer_share=0.5", "generator.cost.chars_per_token=4")  # fmt: skip
    prompts = load_prompts("cot_backward").files
    stages = {stage: prompts["en", stage] for stage in ("segment", "abstract", "chain", "question")}
    ceilings = [settings.sampling.max_tokens or prompt.max_tokens for prompt in stages.values()]
    written = sum(min(c, p.max_tokens) for c, p in zip(ceilings, stages.values(), strict=True)) / 2
    bodies = sum(len(prompt.body) for prompt in stages.values()) / 4
    found = synth_cost(settings)
    assert (found["documents"], found["calls"], found["tokens_written"]) == (1, 4, round(written))
    assert found["tokens_read"] == pytest.approx(bodies + 2 * 500 + 2 * written / 4, abs=2)


def test_a_price_for_a_million_that_pass():
    sets = ("max_documents=1000", "generator.cost.accepted_share=0.25")
    found = synth_cost(synth_recipe(*sets, "judge=null", "grounding=null"))
    assert found["accepted"] == 250
    assert found["price_per_million_accepted"] == pytest.approx(found["price"] * 4000, rel=0.01)
    judged = synth_cost(synth_recipe(*sets, "judge.hub.cost.accepted_share=0.5"))
    assert (judged["judge"]["samples"], judged["accepted"]) == (250, 125)
    whole = judged["price"] + judged["judge"]["price"] + judged["grounding"]["price"]
    assert judged["whole_price"] == pytest.approx(whole, abs=0.01)
    assert judged["price_per_million_accepted"] == pytest.approx(whole * 8000, rel=0.01)


def test_a_judge_reads_source_and_sample_and_grounding_reads_twice():
    sets = ("max_documents=1000", "generator.cost.accepted_share=1", "generator.cost.document_tokens=500")
    found = synth_cost(synth_recipe(*sets, "judge.hub.cost.answer_share=0.5"))
    [prompt] = [one for (language, _), one in load_prompts("judge").files.items() if language == "en"]
    sample = found["tokens_written"] / 1000
    assert found["judge"]["tokens_read"] == pytest.approx(1000 * (len(prompt.body) / 4 + 500 + sample), rel=1e-6)
    assert found["judge"]["tokens_written"] == 1000 * prompt.max_tokens / 2
    assert found["grounding"]["tokens_read"] == pytest.approx(1000 * (500 + 500 + sample), rel=1e-6)


def test_check_warns_of_what_nobody_looks_for():
    bare = SynthSettings()
    assert [line.split(":")[1].strip() for line in synth_warnings(bare)] == ["no screen.benchmarks", "no judge"]
    for name in sorted(path.stem for path in RECIPES.glob("*.yaml") if path.stem.startswith(("cot-", "rephrase-"))):
        recipe = load_any(name)
        assert isinstance(recipe, SynthSettings)
        assert synth_warnings(recipe) == [], name


def test_check_prints_formula_and_assumptions(call: Any, works: Works):
    _, out, _ = call("check", "cot-synthesis-cc")
    assert "model: huggingface.co/Qwen/Qwen2.5-32B-Instruct @5ede1c97bbab; Apache-2.0" in out
    assert "assumed, not measured" in out
    assert "device hours = tokens read / speed of reading + tokens written / speed of writing" in out
    _, out, _ = call("check", "perplexity-buckets")
    assert "prefix <|endoftext|>" in out
    assert works("check", "perplexity-buckets")["accounts"]["estimate"]["price"] > 0


def test_what_a_model_costs_changes_no_step():
    from flows.steps.corpus import corpus_steps

    def perplexity_of(*sets: str) -> Any:
        recipe = load_any("wiki", sets)
        assert isinstance(recipe, CorpusRecipe)
        return next(step.settings for step in corpus_steps(recipe) if step.name == "perplexity")

    assert perplexity_of() == perplexity_of("scorer.cost.price_per_device_hour=9")
