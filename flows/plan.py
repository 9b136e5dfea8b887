"""What a recipe will cost and do, before anything is touched: sizes, tokens, epochs, FLOPs, steps."""

from pathlib import Path
from typing import Any

from flows.estimate import cost_of
from flows.model_estimate import score_cost, synth_cost
from flows.recipe import BuildRecipe, RunRecipe
from flows.runner import run_folder
from flows.score_recipe import ScoreRecipe
from pipelines.manifest import MANIFEST, digest_of, read_manifest
from pipelines.quantities import human
from pipelines.recipe import Section
from pipelines.store import identity_of
from synth.recipe import SynthSettings
from trainer.recipe import TrainRecipe


def account(recipe: Section) -> dict[str, Any]:
    """Sizes, tokens and FLOPs that follow from a recipe.

    Returns:
        Plain values by name; a run has one entry for each model that it trains.
    """
    if isinstance(recipe, RunRecipe):
        return _account_run(recipe)
    if isinstance(recipe, BuildRecipe):
        return {"domains": recipe.domains, "estimate": cost_of(recipe)}
    if isinstance(recipe, TrainRecipe):
        return _account_training(recipe, recipe.model.vocab_size)
    if isinstance(recipe, SynthSettings):
        return {"recipe": recipe.recipe, "estimate": synth_cost(recipe)}
    if isinstance(recipe, ScoreRecipe):
        return {"name": recipe.name, "estimate": score_cost(recipe, {})}
    return {"name": getattr(recipe, "name", ""), "digest": digest_of(recipe.model_dump(mode="json"))}


def _account_training(recipe: TrainRecipe, vocabulary: int) -> dict[str, Any]:
    model = recipe.model.with_vocabulary(vocabulary)
    flops = sum(s.steps * s.batch_tokens * model.flops_per_token(s.sequence_length) for s in recipe.stages)
    return {
        "parameters": model.parameters(),
        "active_parameters": model.active_parameters(),
        "flops_per_token": {s.name: model.flops_per_token(s.sequence_length) for s in recipe.stages},
        "tokens": {s.name: s.steps * s.batch_tokens for s in recipe.stages},
        "steps": {s.name: s.steps for s in recipe.stages},
        "training_flops": flops,
        "bytes_of_state": 16 * model.parameters(),  # fp32 weights, gradients and AdamW's two moments
    }


def _account_run(recipe: RunRecipe) -> dict[str, Any]:
    vocabulary = recipe.tokenizer.vocab_size
    trained = {"language_model": recipe.language_model, "proxy": recipe.ablate.proxy, "train": recipe.train}
    models = {name: _account_training(part, vocabulary) for name, part in trained.items()}
    runs = recipe.ablate.proxies + 2 * recipe.ablate.confirm_seeds
    search = runs * models["proxy"]["training_flops"]
    return {
        "domains": recipe.domains,
        **models,
        "proxy_runs": {"swarm": recipe.ablate.proxies, "confirmation": 2 * recipe.ablate.confirm_seeds},
        "search_flops": search,
        "search_share_of_final": search / models["train"]["training_flops"],
        "epoch_cap": recipe.ablate.propose.epoch_cap,
    }


def plan_rows(recipe: BuildRecipe, runs: Path) -> list[dict[str, Any]]:
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
