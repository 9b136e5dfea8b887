"""What `loam check` says of a recipe: first whether it can run and what to do next, then what it needs and costs.

The whole of it (every key with its default, every note) is what `--verbose` and `--json` are for.
"""

from typing import Any

from flows.corpus import CorpusRecipe
from flows.estimate import cost_lines
from flows.model_estimate import score_lines, synth_lines
from flows.needs import needs_lines, needs_rows
from flows.plan import account, account_lines
from flows.recipe import BuildRecipe
from flows.score_recipe import ScoreRecipe
from pipelines.model_cost import HubModel
from pipelines.recipe import Section, dump_yaml
from synth.recipe import SynthSettings


def check_values(recipe: Section) -> dict[str, Any]:
    """Everything as plain values: the resolved recipe, accounts, needs."""
    values = {"recipe": recipe.model_dump(mode="json"), "accounts": account(recipe)}
    return values | ({"needs": needs_rows(recipe)} if isinstance(recipe, BuildRecipe) else {})


def check_lines(name: str, recipe: Section, verbose: bool = False) -> list[str]:
    """The same for people.

    Args:
        name: that the recipe was asked for by.
        recipe: resolved.
        verbose: every key, every note and every source's size, too.
    """
    about = getattr(recipe, "about", "")
    head = f"{name}: a recipe of kind {getattr(recipe, 'kind', '?')}" + (f"; {about}" if about else "")
    lines = [head, *_body(name, recipe, verbose)]
    if verbose:
        return [dump_yaml(recipe).rstrip(), "---", *lines]
    return [*lines, f"(loam check {name} --verbose: every key with its default; --json: all of it as values)"]


def _body(name: str, recipe: Section, verbose: bool) -> list[str]:
    accounts = account(recipe)
    if isinstance(recipe, BuildRecipe):
        needs = needs_lines(recipe, name, verbose)
        if isinstance(recipe, CorpusRecipe):
            return [*needs, f"{len(recipe.domains)} domains: {', '.join(recipe.domains)}",
                    *cost_lines(recipe, accounts["estimate"], verbose)]  # fmt: skip
        return [*needs, *account_lines(accounts)]
    if isinstance(recipe, SynthSettings):
        return [*_model(recipe.generator), *synth_lines(recipe, accounts["estimate"])]
    if isinstance(recipe, ScoreRecipe):
        return [*_model(recipe.scorer), *_policy(recipe), *score_lines(recipe.scorer, accounts["estimate"])]
    return account_lines(accounts)


def _model(model: HubModel | None) -> list[str]:
    """Where the model of production is; the verb gets it by `--model`."""
    if model is None:
        return ["no model of production is named: the verb's --model says which, and nothing can be estimated"]
    revision = f" @{model.revision[:12]}" if model.revision else "; revision not pinned yet: loam fetch pins it"
    licence = f"; {model.licence}" if model.licence else ""
    return [f"model: huggingface.co/{model.dataset}{revision}{licence}; loam fetch hf://models/{model.dataset}"]


def _policy(recipe: ScoreRecipe) -> list[str]:
    policy = recipe.perplexity
    scored = f"the first {policy.max_tokens} tokens" if policy.long_documents == "first" else "every window"
    return [f"policy: {policy.scorer}, {policy.dtype}, prefix {policy.prefix}, {scored}; buckets by "
            f"{' and '.join(recipe.buckets.by)}, high is the LOWEST perplexity"]  # fmt: skip
