"""`loam mix`: design a swarm, fit laws, predict, propose."""

from pathlib import Path
from typing import Annotated

import typer

from flows.verb import AsJson, Out, Sets, run_verb
from pipelines.errors import DataError
from pipelines.files import expand_inputs
from pipelines.recipe import settings_from


def register(app: typer.Typer) -> None:
    """Add `loam mix`."""
    mix = typer.Typer(help="Find the mixture: design a swarm, fit laws, predict, propose.", no_args_is_help=True)
    for verb in (design, fit, predict, propose):
        mix.command()(verb)
    app.add_typer(mix, name="mix")


def _file(path: Path, option: str) -> Path:
    if not path.is_file():
        raise DataError(f"{option} {path}: no such file")
    return path


def design(
    domains: Annotated[Path, typer.Option(help="YAML list of domains: name, unique_tokens")],
    n: Annotated[int, typer.Option("-n", help="Number of mixtures")],
    out: Out,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Draw a swarm of mixtures: ratios.csv."""
    from mixtures import verbs
    from mixtures.design import DesignSettings

    settings = settings_from(DesignSettings, sets)
    files = [_file(domains, "--domains")]

    run_verb("mix-design", out, settings, files, lambda work: verbs.mix_design(domains, n, work, settings), as_json,
             {"n": str(n)})  # fmt: skip


def fit(
    ratios: Annotated[Path, typer.Option(help="CSV: run id, then a weight for each domain")],
    metrics: Annotated[Path, typer.Option(help="CSV: run id, then metrics, lower is better")],
    out: Out,
    scale: Annotated[str | None, typer.Option(help="Name of the proxies' scale, kept in the report")] = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Fit laws to runs; the one that predicts best out of sample is kept for each metric."""
    from mixtures import verbs
    from mixtures.fitting import FitSettings

    settings = settings_from(FitSettings, sets, scale=scale)
    ratios, metrics = _file(ratios, "--ratios"), _file(metrics, "--metrics")
    run_verb(
        "mix-fit",
        out,
        settings,
        [ratios, metrics],
        lambda work: verbs.mix_fit(ratios, metrics, work, settings),
        as_json,
    )


def predict(
    fit: Annotated[Path, typer.Option(help="Folder of `loam mix fit`")],
    ratios: Annotated[Path, typer.Option(help="CSV of mixtures to predict")],
    out: Out,
    as_json: AsJson = False,
) -> None:
    """Predict metrics of mixtures, with 80% and 95% intervals."""
    from flows.train_verb import NoSettings
    from mixtures import verbs

    files = [*expand_inputs([fit]), _file(ratios, "--ratios")]
    run_verb("mix-predict", out, NoSettings(), files, lambda work: verbs.mix_predict(fit, ratios, work), as_json)


def propose(
    fit: Annotated[Path, typer.Option(help="Folder of `loam mix fit`")],
    domains: Annotated[Path, typer.Option(help="YAML list of domains: name, unique_tokens")],
    out: Out,
    target: Annotated[str, typer.Option(help="A metric, or mean")] = "mean",
    tokens: Annotated[str | None, typer.Option(help="Training horizon, such as 250B")] = None,
    epoch_cap: Annotated[float | None, typer.Option(help="How often a domain may be repeated")] = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Propose the mixture with the lowest predicted target under the caps."""
    from mixtures import verbs
    from mixtures.propose import ProposeSettings

    settings = settings_from(ProposeSettings, sets, target=target, tokens=tokens, epoch_cap=epoch_cap)
    files = [*expand_inputs([fit]), _file(domains, "--domains")]
    run_verb("mix-propose", out, settings, files, lambda work: verbs.mix_propose(fit, domains, work, settings), as_json)
