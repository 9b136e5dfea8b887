"""What `loam check` says of a recipe: first whether it can run and what to do next, then what it needs and costs.

The whole of it (every key with its default, every note) is what `--verbose` and `--json` are for.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from flows.ablate_cost import feasibility, search_lines, vocabulary_of
from flows.ablate_recipe import AblationRecipe
from flows.corpus import CorpusRecipe
from flows.estimate import cost_lines
from flows.model_estimate import score_lines, synth_lines, synth_warnings
from flows.model_needs import model_lines, model_needs
from flows.needs import needs_lines, needs_rows
from flows.plan import account, account_lines
from flows.recipe import BuildRecipe, RunRecipe
from flows.score_recipe import ScoreRecipe
from flows.steps.search_cost import search_cost
from flows.train_check import Machine, sweep_lines, train_account, train_lines
from pipelines.recipe import Section, dump_yaml
from synth.recipe import SynthSettings
from trainer.recipe import TrainRecipe
from trainer.sweep_recipe import SweepRecipe

RUNS = Path("runs")
ASSUMED = Machine()


def check_values(recipe: Section, machine: Machine = ASSUMED) -> dict[str, Any]:
    """Everything as plain values: the resolved recipe, accounts, needs.

    Args:
        recipe: resolved.
        machine: on what a training is assumed to run.
    """
    values = {"recipe": recipe.model_dump(mode="json"), "accounts": account(recipe)}
    if isinstance(recipe, (RunRecipe, AblationRecipe)):
        values["allowed"] = feasibility(recipe, RUNS)
    if isinstance(recipe, TrainRecipe):
        return values | {"training": train_account(recipe, machine)}
    if isinstance(recipe, SweepRecipe):
        return values | {"trials": {trial.id: dict(trial.values) for trial in recipe.trials()}}
    if isinstance(recipe, (BuildRecipe, AblationRecipe)):
        return values | {"needs": needs_rows(recipe)}
    if isinstance(recipe, (SynthSettings, ScoreRecipe)):
        return values | {"needs": [asdict(need) for need in model_needs(recipe, Path())]}
    return values


def check_lines(name: str, recipe: Section, verbose: bool = False, machine: Machine = ASSUMED) -> list[str]:
    """The same for people.

    Args:
        name: that the recipe was asked for by.
        recipe: resolved.
        verbose: every key, every note and every source's size, too.
        machine: on what a training is assumed to run.
    """
    about = getattr(recipe, "about", "")
    head = f"{name}: a recipe of kind {getattr(recipe, 'kind', '?')}" + (f"; {about}" if about else "")
    lines = [head, *_body(name, recipe, verbose, machine)]
    if verbose:
        return [dump_yaml(recipe).rstrip(), "---", *lines]
    return [*lines, f"(loam check {name} --verbose: every key with its default; --json: all of it as values)"]


def _body(name: str, recipe: Section, verbose: bool, machine: Machine) -> list[str]:
    if isinstance(recipe, TrainRecipe):
        return train_lines(recipe, machine)
    if isinstance(recipe, SweepRecipe):
        return sweep_lines(recipe, machine)
    accounts = account(recipe)
    if isinstance(recipe, (BuildRecipe, AblationRecipe)):
        needs = needs_lines(recipe, name, verbose)
        if isinstance(recipe, CorpusRecipe):
            return [*needs, f"{len(recipe.domains)} domains: {', '.join(recipe.domains)}",
                    *cost_lines(recipe, accounts["estimate"], verbose)]  # fmt: skip
        assert isinstance(recipe, (RunRecipe, AblationRecipe))
        trained = {key: value for key, value in accounts.items() if isinstance(value, dict) and key != "search"}
        cost = search_cost(recipe.ablate, recipe.train, vocabulary_of(recipe))
        return [*needs, f"{len(recipe.domains)} domains: {', '.join(recipe.domains)}", *account_lines(trained),
                *search_lines(cost, feasibility(recipe, RUNS))]  # fmt: skip
    if isinstance(recipe, SynthSettings):
        return [*synth_warnings(recipe), *model_lines(recipe, name, Path()), *synth_lines(recipe, accounts["estimate"])]
    if isinstance(recipe, ScoreRecipe):
        return [*model_lines(recipe, name, Path()), *_policy(recipe),
                *score_lines(recipe.scorer, accounts["estimate"])]  # fmt: skip
    return account_lines(accounts)


def _policy(recipe: ScoreRecipe) -> list[str]:
    policy = recipe.perplexity
    scored = f"the first {policy.max_tokens} tokens" if policy.long_documents == "first" else "every window"
    return [f"policy: {policy.scorer}, {policy.dtype}, prefix {policy.prefix}, {scored}; buckets by "
            f"{' and '.join(recipe.buckets.by)}, high is the LOWEST perplexity{_dropped(recipe)}"]  # fmt: skip


def _dropped(recipe: ScoreRecipe) -> str:
    share = recipe.buckets.drop_above_quantile
    return "" if share is None else f"; what lies above the quantile {share:g} of its group is dropped"
