"""What a recipe will cost and do, before anything is touched: sizes, tokens, epochs, FLOPs, steps."""

from pathlib import Path
from typing import Any

from flows.ablate_cost import feasibility, search_lines, vocabulary_of
from flows.ablate_recipe import AblationRecipe
from flows.estimate import cost_lines, cost_of
from flows.model_estimate import score_cost, synth_cost
from flows.recipe import BuildRecipe, FlowRecipe, RunRecipe
from flows.runner import run_folder
from flows.score_recipe import ScoreRecipe
from flows.steps.search_cost import search_cost
from mixtures.mixture import Mixture
from pipelines.manifest import MANIFEST, digest_of, read_manifest
from pipelines.quantities import human
from pipelines.recipe import Section
from pipelines.store import identity_of
from synth.recipe import SynthSettings
from trainer.memory_account import memory_of
from trainer.recipe import TrainRecipe


def account(recipe: Section) -> dict[str, Any]:
    """Sizes, tokens and FLOPs that follow from a recipe.

    Returns:
        Plain values by name; a run has one entry for each model that it trains.
    """
    if isinstance(recipe, RunRecipe):
        return _account_run(recipe)
    if isinstance(recipe, AblationRecipe):
        return _account_search(recipe)
    if isinstance(recipe, BuildRecipe):
        return {"domains": recipe.domains, "estimate": cost_of(recipe)}
    if isinstance(recipe, TrainRecipe):
        return _account_training(recipe, recipe.model.vocab_size)
    if isinstance(recipe, SynthSettings):
        return {"recipe": recipe.recipe, "estimate": synth_cost(recipe)}
    if isinstance(recipe, ScoreRecipe):
        return {"name": recipe.name, "estimate": score_cost(recipe, {})}
    if isinstance(recipe, Mixture):
        sums = {name: round(100 * weight, 4) for name, weight in recipe.by_part().items()}
        return {"domains": len(recipe.weights), "tokens": recipe.tokens or 0, "percent": sums}
    return {"name": getattr(recipe, "name", ""), "digest": digest_of(recipe.model_dump(mode="json"))}


def _account_training(recipe: TrainRecipe, vocabulary: int) -> dict[str, Any]:
    model = recipe.model.with_vocabulary(vocabulary)
    whole = recipe.model_copy(update={"model": model})
    return {
        "parameters": model.parameters(),
        "active_parameters": model.active_parameters(),
        "flops_per_token": {s.name: model.flops_per_token(s.sequence_length) for s in recipe.stages},
        "tokens": {s.name: s.trained_tokens for s in recipe.stages},
        "steps": {s.name: s.steps for s in recipe.stages},
        "training_flops": whole.training_flops,
        "memory_bytes": memory_of(whole).total,
    }


def _account_run(recipe: RunRecipe) -> dict[str, Any]:
    vocabulary = recipe.tokenizer.vocab_size
    trained = {"language_model": recipe.language_model, "proxy": recipe.ablate.proxy, "train": recipe.train}
    pairing = recipe.pairing
    if pairing is not None:
        trained |= {f"pairing_{side}": part for side, part in pairing.sides().items()}
    models = {name: _account_training(part, vocabulary) for name, part in trained.items()}
    runs = {"pairing_runs_each": pairing.mixtures + pairing.replicates} if pairing is not None else {}
    return {"domains": recipe.domains, **models, **runs, **_search(recipe)}


def _account_search(recipe: AblationRecipe) -> dict[str, Any]:
    train = _account_training(recipe.train, recipe.train.model.vocab_size or vocabulary_of(recipe))
    return {"domains": recipe.domains, "train": train, **_search(recipe)}


def _search(recipe: RunRecipe | AblationRecipe) -> dict[str, Any]:
    found = search_cost(recipe.ablate, recipe.train, vocabulary_of(recipe))
    return {"search": found["parts"], "epoch_cap": recipe.ablate.propose.epoch_cap,
            **{key: value for key, value in found.items() if key != "parts"}}  # fmt: skip


def estimates(recipe: FlowRecipe, runs: Path) -> dict[str, Any]:
    """What a recipe costs, part by part: `estimate` of text, `search` and `allowed` of a search for a mixture."""
    found: dict[str, Any] = {}
    if isinstance(recipe, BuildRecipe) or (isinstance(recipe, AblationRecipe) and recipe.sources):
        found["estimate"] = cost_of(recipe)
    if isinstance(recipe, (RunRecipe, AblationRecipe)):
        found["search"] = search_cost(recipe.ablate, recipe.train, vocabulary_of(recipe))
        found["allowed"] = feasibility(recipe, runs)
    return found


def estimate_lines(recipe: FlowRecipe, found: dict[str, Any]) -> list[str]:
    """The same for people."""
    lines = []
    if "estimate" in found and isinstance(recipe, (BuildRecipe, AblationRecipe)):
        lines += cost_lines(recipe, found["estimate"])
    return [*lines, *(search_lines(found["search"], found["allowed"]) if "search" in found else [])]


def plan_rows(recipe: FlowRecipe, runs: Path) -> list[dict[str, Any]]:
    """One row for each step: whether it is done, and on what it depends.

    A step counts as done when its manifest carries the settings and code of today and the digests of its parents.
    """
    from flows.graph import steps_of

    folder = run_folder(recipe, runs)
    digests: dict[str, str] = {}
    rows = []
    for step in steps_of(recipe):
        known = {name: digests[name] for name in step.parents if name in digests}
        done = False
        if (folder / step.name / MANIFEST).is_file() and len(known) == len(step.parents):
            manifest = read_manifest(folder / step.name)
            parents = known | dict(step.inputs())
            done = manifest.id == identity_of(step.name, step.settings, parents, step.code)
            if done:
                digests[step.name] = manifest.digest()
        rows.append({"step": step.name, "state": "done" if done else "to do", "about": step.about,
                     "after": list(step.parents)})  # fmt: skip
    return rows


def plan_table(rows: list[dict[str, Any]]) -> str:
    """The rows for people."""
    width = max(len(row["step"]) for row in rows)
    lines = [f"{row['step']:<{width}}  {row['state']:<5}  {row['about']}" for row in rows]
    todo = sum(row["state"] == "to do" for row in rows)
    return "\n".join([*lines, f"{len(rows)} steps, {todo} to do"])


def account_lines(accounts: dict[str, Any], indent: str = "") -> list[str]:
    """Accounts as lines, large numbers the way people read them; what holds only numbers takes one line."""
    lines = []
    for name, value in accounts.items():
        if isinstance(value, dict) and any(isinstance(inner, dict) for inner in value.values()):
            flat = {key: inner for key, inner in value.items() if not isinstance(inner, dict)}
            nested = {key: inner for key, inner in value.items() if isinstance(inner, dict)}
            head = f": {_in_a_row(flat)}" if flat else ":"
            lines += [f"{indent}{name}{head}", *account_lines(nested, indent + "  ")]
        elif isinstance(value, dict):
            lines.append(f"{indent}{name}: {_in_a_row(value)}")
        else:
            lines.append(f"{indent}{name}: {_said(value)}")
    return lines


def _in_a_row(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {_said(value)}" for name, value in values.items())


def _said(value: object) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return human(value)
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
