"""Verbs on recipes and runs: run, check, plan, show, report, trace, publish."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.verb import AsJson, Sets, Workers
from pipelines.errors import RecipeError

if TYPE_CHECKING:
    from flows.recipe import FlowRecipe
    from flows.runner import RunSummary

Recipe = Annotated[str, typer.Argument(help="Name of a shipped recipe, or a path")]
Runs = Annotated[Path, typer.Option("--runs", help="Folder of all runs")]
RunFolder = Annotated[Path, typer.Argument(help="A run's folder, or its name below runs/")]
NoPrefect = Annotated[bool, typer.Option("--no-prefect", help="Plain calls, without Prefect's server")]
RUNS = Path("runs")


def register(app: typer.Typer) -> None:
    """Add this group's verbs."""
    for verb in (run, check, plan, show, report, trace, publish):
        app.command()(verb)


def run(
    recipe: Recipe,
    sets: Sets = None,
    no_prefect: NoPrefect = False,
    until: Annotated[str | None, typer.Option(help="Stop after this step")] = None,
    workers: Workers = 0,
    runs: Runs = RUNS,
    as_json: AsJson = False,
) -> None:
    """Run a recipe end to end; what is done already is skipped."""
    run_until(recipe, until, workers, sets, as_json, not no_prefect, runs)


def run_until(
    recipe: str,
    until: str | None,
    workers: int,
    sets: Sequence[str] | None,
    as_json: bool,
    prefect: bool = True,
    runs: Path = RUNS,
) -> None:
    """Run the steps that `until` needs (all when None), and say what was done."""
    from flows.kinds import load_build
    from flows.steps.publishing import deliver_run

    summary = perform_until(load_build(recipe, sets or ()), until, workers, prefect, runs)
    delivered = deliver_run(summary.folder) if "publish_model" in summary.performed else {}
    report_file = summary.folder / "report" / "report.html"
    how = [done.how for done in summary.performed.values()]
    if as_json:
        steps_done = {name: done.how for name, done in summary.performed.items()}
        typer.echo(json.dumps({"run": str(summary.folder), "steps": steps_done, "idle": summary.idle, **delivered}))
        return
    if summary.idle:
        typer.echo(f"nothing to do: all {len(how)} steps of {summary.folder} are done")
    else:
        typer.echo(f"{summary.folder}: {how.count('done')} steps done, {how.count('reused')} reused, "
                   f"{how.count('skipped')} skipped")  # fmt: skip
    for what, where in delivered.items():
        typer.echo(f"{what}: {where}")
    if report_file.is_file():
        typer.echo(f"report: {report_file}")


def perform_until(resolved: "FlowRecipe", until: str | None, workers: int, prefect: bool, runs: Path) -> "RunSummary":
    """Perform the steps that `until` needs (all when None)."""
    from flows.graph import steps_of
    from flows.prefect_runner import perform_with_prefect
    from flows.runner import execute, select_steps

    steps = select_steps(steps_of(resolved), until)
    return execute(resolved, steps, runs, workers, perform_with_prefect if prefect else None)


def check(
    recipe: Recipe,
    sets: Sets = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Every key, note and size")] = False,
    device: Annotated[str, typer.Option(help="Of a training: the accelerator that its days are reckoned for")] = "H200",
    mfu: Annotated[float, typer.Option(help="Of a training: assumed model FLOPs utilisation")] = 0.3,
    devices: Annotated[int, typer.Option(min=1, help="Of a training: how many share the work")] = 1,
    as_json: AsJson = False,
) -> None:
    """Check a recipe: whether it can run, what it needs from outside, sizes, tokens and cost. Nothing is touched."""
    from flows.check import check_lines, check_values
    from flows.kinds import load_any
    from flows.train_check import Machine

    resolved, machine = load_any(recipe, sets or ()), Machine(device, mfu, devices)
    if as_json:
        typer.echo(json.dumps(check_values(resolved, machine), ensure_ascii=False))
    else:
        typer.echo("\n".join(check_lines(recipe, resolved, verbose, machine)))


def plan(recipe: Recipe, sets: Sets = None, runs: Runs = RUNS, as_json: AsJson = False) -> None:
    """What a run would do: its steps, which are done, tokens by source and what it costs. Nothing is touched."""
    from flows.kinds import load_build
    from flows.plan import estimate_lines, estimates, plan_rows, plan_table

    resolved = load_build(recipe, sets or ())
    rows, found = plan_rows(resolved, runs), estimates(resolved, runs)
    if as_json:
        typer.echo(json.dumps({"steps": rows, **found}, ensure_ascii=False))
        return
    typer.echo("\n".join([plan_table(rows), *estimate_lines(resolved, found)]))


def show(run: RunFolder, as_json: AsJson = False) -> None:
    """The numbers of a run: documents and tokens by step, mixture, verdict, model."""
    from flows.show import find_run, render, summarise

    summary = summarise(find_run(run))
    typer.echo(json.dumps(summary, ensure_ascii=False, indent=1) if as_json else render(summary))


def report(run: RunFolder, out: Annotated[Path | None, typer.Option("--out", "-o", help="HTML file")] = None) -> None:
    """Write the report of a run, or of what `loam train` wrote, as one HTML file, and print where it is."""
    from flows.report import write_report
    from flows.show import find_run
    from flows.training_report import training_of, write_training_report

    if (training := training_of(run)) is not None:
        typer.echo(str(write_training_report(training, out)))
        return
    folder = find_run(run)
    target = out or folder / "report.html"
    write_report(folder, target)
    typer.echo(str(target))


def trace(
    token_row: Annotated[str, typer.Argument(metavar="SHARD:ROW", help="Prefix of a shard and a sequence's number")],
    root: Annotated[
        list[Path] | None, typer.Option(help="Where raw files lie, when not in the run (repeatable)")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Write the raw record's bytes to stdout")] = False,
    as_json: AsJson = False,
) -> None:
    """Walk a sequence of a shard back to the bytes of its raw record."""
    from flows.tracing import trace_sequence

    prefix, _, row = token_row.rpartition(":")
    if not prefix or not row.isdigit():
        raise RecipeError(f"{token_row!r}: expected SHARD:ROW, such as runs/.../tokens/train/code/high:17")
    found = trace_sequence(Path(prefix), int(row), root or [])
    if raw:
        typer.echo(found.pop("bytes"), nl=False)
        return
    preview = found.pop("bytes")[:200].decode("utf-8", "replace")
    if as_json:
        typer.echo(json.dumps({**found, "preview": preview}, ensure_ascii=False))
    else:
        typer.echo("\n".join(f"{name:>10}: {value}" for name, value in {**found, "preview": repr(preview)}.items()))


def publish(
    run: RunFolder,
    target: Annotated[str | None, typer.Option(help="dir://FOLDER; that of the recipe when not given")] = None,
    as_json: AsJson = False,
) -> None:
    """Deliver a run's published dataset and model to a target."""
    from flows.show import find_run
    from flows.steps.publishing import deliver_run

    delivered = deliver_run(find_run(run), target)
    typer.echo(json.dumps(delivered) if as_json else "\n".join(f"{name}: {where}" for name, where in delivered.items()))
