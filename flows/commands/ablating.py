"""`loam ablate`: the search for a mixture, from a recipe of domains or a whole run's."""

import json
from pathlib import Path

import typer

from flows.commands.runs import RUNS, NoPrefect, Recipe, Runs, perform_until
from flows.verb import AsJson, Sets, Workers
from pipelines.errors import RecipeError


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(ablate)


def ablate(
    recipe: Recipe, sets: Sets = None, no_prefect: NoPrefect = False, workers: Workers = 0, runs: Runs = RUNS,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Search for the best mixture: swarm, proxies, law, proposal, confirmation with fresh seeds, verdict."""
    from flows.ablate_recipe import AblationRecipe
    from flows.ablate_show import mixture_of, verdict_lines
    from flows.kinds import load_build
    from flows.recipe import RunRecipe

    resolved = load_build(recipe, sets or ())
    if not isinstance(resolved, (AblationRecipe, RunRecipe)):
        raise RecipeError(f"{recipe} searches for no mixture; `loam ablate` takes recipes of kind ablate and run")
    until = "mixture" if isinstance(resolved, RunRecipe) else None
    summary = perform_until(resolved, until, workers, not no_prefect, runs)
    found = mixture_of(summary.folder)
    if as_json:
        steps = {name: done.how for name, done in summary.performed.items()}
        told = {"run": str(summary.folder), "steps": steps, "idle": summary.idle}
        typer.echo(json.dumps({**told, "verdict": found, "mixture": str(_written(summary.folder))}))
        return
    typer.echo("\n".join([*verdict_lines(found), f"mixture: {_written(summary.folder)}"]))
    report = summary.folder / "report" / "report.html"
    typer.echo(f"report: {report}" if report.is_file() else f"report: loam report {summary.folder}")
    typer.echo(f"next: loam train RECIPE --mixture {found['fingerprint']} --data {_data(summary.folder)} --out FOLDER")


def _written(folder: Path) -> Path:
    return folder / "mixture" / "mixture.yaml"


def _data(folder: Path) -> Path | str:
    tokens = folder / "tokens"
    return tokens if tokens.is_dir() else "SHARDS"
