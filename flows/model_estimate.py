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
        what `cost_of_tokens` says, with `documents`, `calls`, `accepted` samples, and the price of a million of them;
        an empty table where nothing is assumed of the model.
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
    accepted = documents * rollouts * cost.accepted_share
    price = found["price"]
    return {
        "documents": documents,
        "calls": documents * asked * len(stages),
        "accepted": round(accepted),
        **found,
        "price_per_million_accepted": None if price is None else round(price / accepted * 1e6, 2),
    }


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


def synth_lines(settings: SynthSettings, found: dict[str, Any]) -> list[str]:
    """The cost of synthesis for people."""
    generator = settings.generator
    if not found or generator is None or generator.cost is None:
        return []
    head, *more = cost_words(generator.cost, found)
    counts = f"{human(found['documents'])} documents, {human(found['calls'])} calls"
    price = found["price_per_million_accepted"]
    accepted = f"  {human(found['accepted'])} samples at an assumed rate of {generator.cost.accepted_share:g}"
    each = "" if price is None else f"; {human(price)} {generator.cost.currency} for a million accepted"
    slots = "  tokens read = prompts (chars / chars per token) + one document for each slot that holds it; written = "
    return [
        f"synthesis with {generator.dataset}: {counts}; {head}",
        *more,
        f"{slots}{generator.cost.answer_share:g} of each ceiling; {generator.cost.document_tokens} tokens a document",
        accepted + each,
    ]
