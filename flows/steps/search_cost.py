"""What a search for a mixture costs: FLOPs of its proxies over those of the final run, and hours of one core.

The only place that counts them, so that the plan, the verdict and the report say the same.
"""

from typing import Any

from flows.recipe import AblateSettings
from trainer.recipe import TrainRecipe

TOKENS_PER_S = 17_500  # the most of one core, however small the model (docs/benchmarks.md)
FLOPS_PER_S = 40e9  # of one core: those tokens times 2.26 million FLOPs each


def proxy_of(ablate: AblateSettings, scale: str) -> TrainRecipe:
    """The model of a scale; the small one has no name."""
    return ablate.larger[scale].proxy if scale else ablate.proxy


def search_cost(
    ablate: AblateSettings, train: TrainRecipe, vocabulary: int, arms: int | None = None
) -> dict[str, Any]:  # fmt: skip
    """FLOPs and core-hours of a search.

    Args:
        ablate: how to search.
        train: the final run.
        vocabulary: tokens that models know, for those whose recipe leaves it open.
        arms: how many mixtures are compared, where that is known: equal ones are trained once. At most so many as the
            recipe names.

    Returns:
        `parts` (one for each scale, and `confirmation`): runs, parameters, tokens of each run, flops of all;
        their sums `runs`, `search_flops` and `core_hours`; `final_flops` and `search_share_of_final`.
    """
    parts: dict[str, dict[str, Any]] = {}
    for name in ("", *ablate.larger):
        runs = (ablate.larger[name].proxies if name else ablate.proxies) + ablate.anchor_seeds
        parts[name or "swarm"] = _part(proxy_of(ablate, name), runs, vocabulary)
    arms = 2 + len(ablate.against) if arms is None else arms
    parts["confirmation"] = _part(ablate.confirm_proxy, arms * ablate.confirm_seeds, vocabulary)
    search, final = sum(part["flops"] for part in parts.values()), with_tokens(train, vocabulary).training_flops
    return {
        "parts": parts, "runs": sum(part["runs"] for part in parts.values()), "search_flops": search,
        "final_flops": final, "search_share_of_final": search / final,
        "core_hours": round(sum(part["core_hours"] for part in parts.values()), 4),
    }  # fmt: skip


def with_tokens(recipe: TrainRecipe, vocabulary: int) -> TrainRecipe:
    """The recipe over a vocabulary, unless it states its own."""
    model = recipe.model.with_vocabulary(recipe.model.vocab_size or vocabulary)
    return recipe.model_copy(update={"model": model})


def _part(proxy: TrainRecipe, runs: int, vocabulary: int) -> dict[str, Any]:
    sized = with_tokens(proxy, vocabulary)
    seconds = runs * max(sized.tokens / TOKENS_PER_S, sized.training_flops / FLOPS_PER_S)
    return {"runs": runs, "parameters": sized.model.parameters(), "tokens_each": sized.tokens,
            "flops": runs * sized.training_flops, "core_hours": round(seconds / 3600, 4)}  # fmt: skip
