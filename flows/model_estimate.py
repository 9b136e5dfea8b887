"""What scoring and synthesis with the models of production will cost: `loam check` of recipes that name one.

Tokens follow from the recipe (documents, windows, prompts, ceilings of answers), hours and money from the assumptions
in its `cost` (`pipelines/model_cost.py`). Every call of synthesis is counted once, as if each stage passed at its first
attempt, and a slot that holds a document, or segments of it, as one document.
"""

from typing import Any

from filters.perplexity import PerplexitySettings
from flows.corpus import CorpusRecipe, ScorerModel
from flows.score_recipe import ScoreRecipe
from pipelines.model_cost import HubModel, cost_of_tokens, cost_words
from pipelines.quantities import human
from synth.prompt_files import load_prompts
from synth.recipe import SynthSettings, prompts_of
from synth.rephrase_settings import TASKS

DOCUMENT_SLOTS = frozenset(
    ["document", "segments", "segment", "text", "passage", "passages", "evidence", "question", "content"]
)
"""Slots that hold a document, or about as much."""


def score_cost(recipe: CorpusRecipe | ScoreRecipe, sizes: dict[str, tuple[float, int | None]]) -> dict[str, Any]:
    """Tokens, hours and price of scoring documents.

    Args:
        recipe: with the model's cost.
        sizes: tokens, and documents where they are known, by source; empty for a recipe without sources.

    Returns:
        what `cost_of_tokens` says, with `documents`, or an empty table where nothing is assumed of the model.
    """
    cost = recipe.scorer.cost if recipe.scorer else None
    if cost is None:
        return {}
    if not sizes:
        documents = cost.documents or 0
        return {"documents": documents} | cost_of_tokens(
            cost, documents * _window(recipe.perplexity, cost.document_tokens)
        )
    read = sum(
        tokens if count is None else count * _window(recipe.perplexity, tokens / count)
        for tokens, count in sizes.values()
    )
    return {"documents": sum(count or 0 for _, count in sizes.values())} | cost_of_tokens(cost, read)


def _window(settings: PerplexitySettings, tokens: float) -> float:
    """Tokens of a document that the model reads, the prefix included."""
    scored = min(tokens, settings.max_tokens) if settings.long_documents == "first" else tokens
    return scored + (settings.prefix != "none")


def synth_cost(settings: SynthSettings) -> dict[str, Any]:
    """Tokens, hours and price of a synthesis.

    Returns:
        what `cost_of_tokens` says of the generator, with `documents`, `calls`, `accepted` samples; the same of `judge`
        and `grounding` (empty tables where the recipe has none, or assumes nothing of it), which look at what passed
        the rules; `whole_price`, and the price of a million accepted samples. An empty table where nothing is assumed
        of the generator.
    """
    cost = settings.generator.cost if settings.generator else None
    if cost is None:
        return {}
    documents = cost.documents or settings.max_documents
    prompts = prompts_of(settings).files
    stages = [prompt for (language, _), prompt in sorted(prompts.items()) if language == "en" and prompt.max_tokens]
    answers = {prompt.id: _answer_tokens(prompt.max_tokens, settings) * cost.answer_share for prompt in stages}
    mean = sum(answers.values()) / len(stages) if stages else 0.0
    rollouts = settings.rollouts if settings.recipe == "cot_forward" else 1
    asked = rollouts * (segments := _segments(settings, cost.document_tokens))
    read = written = 0.0
    for prompt in stages:
        slots = prompt.slots
        held = cost.document_tokens / segments
        filled = held * len(slots & DOCUMENT_SLOTS) or mean  # else what an earlier stage wrote
        read += asked * (len(prompt.body) / cost.chars_per_token + (filled if slots else 0))
        written += asked * answers[prompt.id]
    found = cost_of_tokens(cost, documents * read, documents * written)
    passed = documents * rollouts * cost.accepted_share
    sample = sum(answers.values())
    screens = {
        "judge": _judge_cost(settings, passed, cost.document_tokens + sample),
        "grounding": _grounding_cost(settings, passed, cost.document_tokens, sample),
    }
    judged = settings.judge.hub.cost if settings.judge and settings.judge.hub else None
    accepted = passed * (judged.accepted_share if judged else 1)
    prices = [part["price"] for part in (found, *screens.values()) if part]
    price = None if None in prices else round(sum(prices), 2)
    return {
        "documents": documents,
        "calls": documents * asked * len(stages),
        "accepted": round(accepted),
        **found,
        **screens,
        "whole_price": price,
        "price_per_million_accepted": None if price is None else round(price / accepted * 1e6, 2),
    }


def _judge_cost(settings: SynthSettings, samples: float, tokens: float) -> dict[str, Any]:
    """Reading source and sample, and writing a verdict, for every sample."""
    judge = settings.judge
    cost = judge.hub.cost if judge and judge.hub else None
    if judge is None or cost is None:
        return {}
    [prompt] = [one for (language, _), one in load_prompts("judge").files.items() if language == "en"]
    ceiling = min(prompt.max_tokens, judge.sampling.max_tokens or prompt.max_tokens)
    read = len(prompt.body) / cost.chars_per_token + tokens
    return {"samples": round(samples)} | cost_of_tokens(cost, samples * read, samples * ceiling * cost.answer_share)


def _grounding_cost(settings: SynthSettings, samples: float, document: float, context: float) -> dict[str, Any]:
    """Reading every document alone, and again after question and chain."""
    grounding = settings.grounding
    cost = grounding.hub.cost if grounding and grounding.hub else None
    if grounding is None or cost is None:
        return {}
    alone = min(document, grounding.max_tokens)
    after = min(document + context, grounding.max_tokens)
    return {"samples": round(samples)} | cost_of_tokens(cost, samples * (alone + after))


def _segments(settings: SynthSettings, document_tokens: int) -> int:
    """Into how many segments a rephrasing cuts a document; other kinds take it whole."""
    if settings.recipe not in TASKS:
        return 1
    return -(-document_tokens // settings.rephrase.limits(settings.recipe).max_input)


def _answer_tokens(ceiling: int, settings: SynthSettings) -> int:
    return min(ceiling, settings.sampling.max_tokens or ceiling)


def score_lines(model: HubModel | ScorerModel | None, found: dict[str, Any]) -> list[str]:
    """The cost of scoring for people."""
    if not found or model is None or model.cost is None:
        return []
    head, *more = cost_words(model.cost, found)
    return [f"scoring with {model.dataset or 'the model'}: {head}", *more]


def _screen_lines(settings: SynthSettings, found: dict[str, Any]) -> list[str]:
    """The cost of the models that look at samples."""
    lines = []
    for name, section in (("judge", settings.judge), ("grounding", settings.grounding)):
        if found[name] and section is not None and section.hub is not None and section.hub.cost is not None:
            head, *more = cost_words(section.hub.cost, found[name])
            lines += [f"{name} {section.hub.dataset}: {human(found[name]['samples'])} samples; {head}", *more]
    return (
        lines
        if found["whole_price"] is None
        else [*lines, f"all of it: {human(found['whole_price'])} {found['currency']}"]
    )


def synth_warnings(settings: SynthSettings) -> list[str]:
    """What a recipe of synthesis leaves out, and what to do about it.

    Chains of `cot_forward` are judged by their references, so that no judge is missed there.
    """
    lines = []
    if not settings.screen.benchmarks:
        lines.append("warning: no screen.benchmarks: samples are not decontaminated, unless --benchmarks names sets")
    if settings.judge is None and settings.recipe != "cot_forward":
        lines.append(
            "warning: no judge: nobody marks the samples, unless --judge names another model than the generator"
        )
    return lines


def synth_lines(settings: SynthSettings, found: dict[str, Any]) -> list[str]:
    """The cost of synthesis for people."""
    generator = settings.generator
    if not found or generator is None or generator.cost is None:
        return []
    head, *more = cost_words(generator.cost, found)
    counts = f"{human(found['documents'])} documents, {human(found['calls'])} calls"
    price = found["price_per_million_accepted"]
    judged = settings.judge.hub.cost if settings.judge and settings.judge.hub else None
    rate = f"{generator.cost.accepted_share:g}" + (
        f" by the rules and {judged.accepted_share:g} by the judge" if judged else ""
    )
    accepted = f"  {human(found['accepted'])} samples at an assumed rate of {rate}"
    each = "" if price is None else f"; {human(price)} {generator.cost.currency} for a million accepted"
    slots = "  tokens read = prompts (chars / chars per token) + one document for each slot that holds it; written = "
    return [
        f"synthesis with {generator.dataset}: {counts}; {head}",
        *more,
        f"{slots}{generator.cost.answer_share:g} of each ceiling; {generator.cost.document_tokens} tokens a document",
        *_screen_lines(settings, found),
        accepted + each,
    ]
