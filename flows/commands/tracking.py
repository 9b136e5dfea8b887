"""Verbs that look into a training: `loam track`, which exports it, and `loam experts`, which says how it routes."""

import json
from pathlib import Path
from typing import Annotated

import typer

from flows.verb import AsJson, Out, Sets, documents_of, run_verb
from pipelines.errors import RecipeError
from pipelines.recipe import settings_from
from pipelines.store import Outcome

Training = Annotated[Path, typer.Argument(help="A run, or what loam train wrote or still works on")]
EXPORTERS = ("mlflow", "wandb")


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    for verb in (track, experts):
        app.command()(verb)


def track(
    source: Training,
    to: Annotated[str, typer.Option(help="mlflow (SQLite) or wandb (offline)")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of all exported runs")],
    project: Annotated[
        str, typer.Option(help="Name of the group of runs: MLflow's experiment, W&B's project")
    ] = "loam",
    as_json: AsJson = False,
) -> None:
    """Export a training to a tracker; what it has already is not given again."""
    from trainer.tracking import read_tracked, training_folder

    if to not in EXPORTERS:
        raise RecipeError(f"--to {to!r} is not known; there are: {', '.join(EXPORTERS)}")
    run = read_tracked(training_folder(source))
    if to == "mlflow":
        from trainer.tracking_mlflow import export_mlflow as export
    else:
        from trainer.tracking_wandb import export_wandb as export
    done = export(run, out, project)
    if as_json:
        typer.echo(json.dumps({"run": run.name, "key": run.key, "finished": run.finished, **done}))
        return
    where = done.get("uri", done.get("folder"))
    typer.echo(f"{run.name} ({run.key}): {done['added']} steps added, {done['had']} were there: {where}")
    typer.echo(f"next: mlflow ui --backend-store-uri {where}" if to == "mlflow" else f"next: wandb sync {where}")


def experts(
    source: Training,
    data: Annotated[Path, typer.Option(help="Folder of shards; those of validation/ where there are any")],
    out: Out,
    tokenizer: Annotated[Path | None, typer.Option(help="Tokenizer folder, to tell kinds of tokens apart")] = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """How a mixture of experts routes: load, dead experts, co-activation, saturation, specialisation; with a page."""
    from flows.experts_report import analyse_training, are_of_training
    from flows.steps.step import digests_of
    from flows.train_verb import shards_of
    from trainer.expert_settings import ExpertsSettings
    from trainer.tracking import training_folder

    settings = settings_from(ExpertsSettings, sets)
    training = training_folder(source)
    kept = [training / "final", *sorted((training / "checkpoints").glob("step-*"))]
    files = documents_of([*map(str, kept), str(data)])

    shards, validation = shards_of(data)
    shards, held_out = validation or shards, validation is not None or not are_of_training(training, shards)
    if not held_out:
        typer.echo(
            f"loam: no validation/ in {data}: the numbers are of training shards, not of held-out text", err=True
        )

    def action(work: Path) -> Outcome:
        return analyse_training(training, shards, settings.tokens_per_domain, tokenizer, work, held_out)

    run_verb("experts", out, settings, files, action, as_json, digests_of({"tokenizer": tokenizer}))
