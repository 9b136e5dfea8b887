"""`loam sweep`: one training recipe, some of its fields varied, every combination trained and compared."""

from pathlib import Path
from typing import Annotated

import typer

from flows.verb import AsJson, Out, Sets, Workers, documents_of, run_verb
from pipelines.recipe import load_recipe
from pipelines.store import Outcome


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(sweep)


def sweep(
    recipe: Annotated[str, typer.Argument(help="A recipe of kind sweep, by name or path")],
    data: Annotated[Path, typer.Option(help="Folder of shards (train/ and validation/, or shards)")],
    out: Out,
    mixture: Annotated[str | None, typer.Option(help="mixture.yaml, a run of loam ablate, or a fingerprint; "
                                                "proportional to tokens when not given")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Tokenizer folder, for the size of the vocabulary")] = None,
    workers: Workers = 1,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Train every combination of a sweep's fields, tabulate and plot; goes on where it was killed."""
    from flows.ablate_show import find_mixture
    from flows.steps.step import digests_of
    from flows.sweep_report import write_sweep_report
    from flows.train_verb import blend_of, shards_of, vocabulary_of
    from trainer.sweep import run_sweep
    from trainer.sweep_recipe import SweepRecipe

    settings = load_recipe(recipe, SweepRecipe, sets or ())
    weights = find_mixture(mixture) if mixture is not None else None
    given = {"mixture": weights, "tokenizer": tokenizer}

    def action(work: Path) -> Outcome:
        shards, validation = shards_of(data)
        tokens = max(trial.recipe.fresh_tokens for trial in settings.trials())
        vocabulary = vocabulary_of(tokenizer) if tokenizer else None
        outcome = run_sweep(settings, vocabulary, blend_of(weights, shards, tokens), validation, work, workers)
        write_sweep_report(settings.name, settings.about, work)
        return outcome

    run_verb("sweep", out, settings, documents_of([str(data)]), action, as_json, digests_of(given))
