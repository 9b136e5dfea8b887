"""What the search for a mixture costs and what it cannot find, before anything is trained.

Proxy FLOPs are told as a share of the final run's; time is an estimate by the rates of one core that
docs/benchmarks.md has. Which mixtures are allowed is known as soon as the tokens of each domain are: from shards that
are named, from a run whose tokens are counted, else roughly from the sizes of the sources.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.ablate_recipe import AblationRecipe
from flows.estimate import cost_of
from flows.recipe import RunRecipe
from flows.runner import run_folder
from flows.steps.mixing import domain_tokens
from mixtures.mixture import Domain, Domains
from pipelines.errors import LoamError
from pipelines.indexed import IndexedTokens, load_shards
from pipelines.manifest import MANIFEST
from pipelines.quantities import human

SHOWN = 40  # domains in a table for people


def vocabulary_of(recipe: RunRecipe | AblationRecipe) -> int:
    """Size of the vocabulary: of the tokenizer that is named, where it is here; else what will be trained."""
    from pipelines.tokenizer import load_tokenizer

    path = recipe.tokenizer.path and Path(recipe.root) / recipe.tokenizer.path
    if not path or not Path(path).exists():
        return recipe.tokenizer.vocab_size
    return load_tokenizer(Path(path)).vocab_size


def domains_known(recipe: RunRecipe | AblationRecipe, runs: Path) -> tuple[Domains | None, str]:
    """The domains with their tokens, as far as they are known, and where that is known from.

    Returns:
        None where the size of some source is not known.
    """
    held: dict[str, int] = {}
    if isinstance(recipe, AblationRecipe) and recipe.shards:
        held = {name: len(IndexedTokens(p).tokens) for name, p in recipe.shard_prefixes("train").items()}
        return _domains(held, {n: one.licence for n, one in recipe.shards.items()}), "the shards"
    tokens = run_folder(recipe, runs) / "tokens"
    if (tokens / MANIFEST).is_file():
        return _domains(domain_tokens(load_shards(tokens / "train")), {}), "the run's tokens"
    sizes = cost_of(recipe)["sources"]
    for name in recipe.sources:
        if (size := sizes.get(name)) is None:  # text found on the machine, or a source that is not here
            return None, f"the size of source {name} is not known before it is read"
        domain = recipe.sources[name].domain or name
        held[domain] = held.get(domain, 0) + max(1, size["tokens"])
    return _domains(held, {}), "sizes of files, roughly"


def _domains(held: Mapping[str, int], licences: Mapping[str, str | None]) -> Domains:
    return Domains(
        domains=tuple(Domain(name=name, unique_tokens=n, licence=licences.get(name)) for name, n in held.items())
    )


def feasibility(recipe: RunRecipe | AblationRecipe, runs: Path) -> dict[str, Any]:
    """Which mixtures the final run allows.

    Returns:
        `known_from`, `horizon`, `feasible` (None where sizes are not known), `reason` where no mixture is allowed, and
        `domains`: name -> unique_tokens, prior weight, epochs of the prior, least and most weight.
    """
    from mixtures.closed_forms import proportional

    horizon = recipe.ablate.propose.tokens or sum(stage.tokens for stage in recipe.train.stages)
    found: dict[str, Any] = {"horizon": horizon, "feasible": None, "reason": None, "domains": {}}
    try:
        domains, found["known_from"] = domains_known(recipe, runs)
        if domains is None:
            return found
        prior = proportional(domains)
        space = recipe.ablate.propose.model_copy(update={"tokens": horizon}).space(domains)
    except LoamError as error:
        return {"known_from": "", **found, "feasible": False, "reason": str(error)}
    bounds = zip(domains.names, space.lower_D.tolist(), space.upper_D.tolist(), strict=True)
    rows = {
        name: {"unique_tokens": domains.unique_tokens[name], "prior": prior[name], "least": low, "most": high,
               "prior_epochs": prior[name] * horizon / domains.unique_tokens[name]}
        for name, low, high in bounds
    }  # fmt: skip
    return {**found, "feasible": True, "domains": rows}


def search_lines(cost: Mapping[str, Any], allowed: Mapping[str, Any]) -> list[str]:
    """Cost and caps for people."""
    lines = [
        f"{name}: {part['runs']} runs of {human(part['parameters'])} parameters and {human(part['tokens_each'])} "
        f"tokens, {human(part['flops'])} FLOPs, about {part['core_hours']:.2g} core-hours"
        for name, part in cost["parts"].items()
    ]
    lines.append(
        f"search: {human(cost['search_flops'])} FLOPs, {cost['search_share_of_final']:.3g} of the final run's "
        f"{human(cost['final_flops'])}; about {cost['core_hours']:.2g} hours of one core"
    )
    if allowed["feasible"] is None:
        return [*lines, f"caps: not known yet ({allowed['known_from']}); `loam plan` says when tokens are counted"]
    if not allowed["feasible"]:
        return [*lines, f"infeasible: {allowed['reason']}"]
    lines.append(f"allowed at {human(allowed['horizon'])} tokens (by {allowed['known_from']}):")
    rows = sorted(allowed["domains"].items())
    width = max(len(name) for name, _ in rows)
    lines += [
        f"  {name:<{width}}  {human(row['unique_tokens']):>7} tokens, prior {row['prior']:.3f} = "
        f"{row['prior_epochs']:.2g} epochs, weight {row['least']:.3g} to {row['most']:.3g}"
        for name, row in rows[:SHOWN]
    ]
    return [*lines, *([f"  ... and {len(rows) - SHOWN} more"] if len(rows) > SHOWN else [])]
