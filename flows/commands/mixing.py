"""`loam mix`: design a swarm, fit laws, predict, propose, suggest what to run next."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.converting import closed, convert
from flows.commands.linking import link
from flows.commands.online_mixing import components, mixmin, online
from flows.commands.planning import agree, reuse, schedule
from flows.verb import AsJson, Out, Sets, run_verb
from pipelines.errors import DataError
from pipelines.files import expand_inputs
from pipelines.recipe import settings_from
from pipelines.store import Outcome


def register(app: typer.Typer) -> None:
    """Add `loam mix`."""
    mix = typer.Typer(help="Find the mixture: design a swarm, fit laws, predict, propose.", no_args_is_help=True)
    for verb in (design, fit, predict, propose, suggest, stop, closed, convert, schedule, reuse, agree,
                 online, components, mixmin, link):  # fmt: skip
        mix.command()(verb)
    app.add_typer(mix, name="mix")


def _file(path: Path, option: str) -> Path:
    if not path.is_file():
        raise DataError(f"{option} {path}: no such file")
    return path


def drawn(draw: Callable[[Path], None], outcome: Outcome, work: Path) -> Outcome:
    """The outcome of a verb, after its files were drawn."""
    draw(work)
    return outcome


def design(
    domains: Annotated[Path, typer.Option(help="YAML list of domains: name, unique_tokens")],
    n: Annotated[int, typer.Option("-n", help="Number of mixtures")],
    out: Out,
    candidates: Annotated[
        Path | None, typer.Option(help="CSV of mixtures to choose from, instead of drawing them")
    ] = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Draw a swarm of mixtures, or choose it from mixtures that exist: ratios.csv."""
    from mixtures import verbs
    from mixtures.design import DesignSettings

    settings = settings_from(DesignSettings, sets)
    files = [_file(domains, "--domains"), *([_file(candidates, "--candidates")] if candidates else [])]
    run_verb("mix-design", out, settings, files,
             lambda work: verbs.mix_design(domains, n, work, settings, candidates), as_json, {"n": str(n)})  # fmt: skip


def fit(
    ratios: Annotated[list[Path], typer.Option(help="CSV: run id, then a weight for each domain (once per scale)")],
    metrics: Annotated[list[Path], typer.Option(help="CSV: run id, then metrics, lower is better (once per scale)")],
    out: Out,
    scale: Annotated[
        list[str] | None, typer.Option(help="Parameters/tokens, 60M/1.2B, in the order of --ratios")
    ] = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Fit laws to runs; the one that predicts held-out runs best is kept, often a mean of them (stack)."""
    from flows.mix_plots import draw_held_out
    from mixtures import verbs
    from mixtures.fitting import FitSettings

    scales = scale or []
    settings = settings_from(FitSettings, sets, scale=scales[0] if len(scales) == 1 else None)
    ratios, metrics = [_file(path, "--ratios") for path in ratios], [_file(path, "--metrics") for path in metrics]
    run_verb(
        "mix-fit",
        out,
        settings,
        [*ratios, *metrics],
        lambda work: drawn(draw_held_out, verbs.mix_fit(ratios, metrics, scales, work, settings), work),
        as_json,
        {f"scale {place}": name for place, name in enumerate(scales)},
    )


def predict(
    fit: Annotated[Path, typer.Option(help="Folder of `loam mix fit`")],
    ratios: Annotated[Path, typer.Option(help="CSV of mixtures to predict")],
    out: Out,
    scale: Annotated[str | None, typer.Option(help="Scale to predict, 1B/25B; by default the largest fitted")] = None,
    as_json: AsJson = False,
) -> None:
    """Predict metrics of mixtures, with 80% and 95% intervals."""
    from flows.train_verb import NoSettings
    from mixtures import verbs

    files = [*expand_inputs([fit]), _file(ratios, "--ratios")]
    run_verb("mix-predict", out, NoSettings(), files, lambda work: verbs.mix_predict(fit, ratios, work, scale), as_json,
             {"scale": scale} if scale else None)  # fmt: skip


def propose(
    fit: Annotated[Path, typer.Option(help="Folder of `loam mix fit`")],
    domains: Annotated[Path, typer.Option(help="YAML list of domains: name, unique_tokens")],
    out: Out,
    target: Annotated[str, typer.Option(help="A metric, or mean")] = "mean",
    tokens: Annotated[str | None, typer.Option(help="Training horizon, such as 250B; else that of --scale")] = None,
    epoch_cap: Annotated[float | None, typer.Option(help="How often a domain may be repeated")] = None,
    scale: Annotated[
        str | None, typer.Option(help="Scale to decide for, 1B/25B; by default the largest fitted")
    ] = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Propose the mixture with the lowest predicted target under the caps."""
    from flows.mix_plots import draw_weights
    from mixtures import verbs
    from mixtures.propose import ProposeSettings

    settings = settings_from(ProposeSettings, sets, target=target, tokens=tokens, epoch_cap=epoch_cap)
    files = [*expand_inputs([fit]), _file(domains, "--domains")]
    run_verb("mix-propose", out, settings, files,
             lambda work: drawn(draw_weights, verbs.mix_propose(fit, domains, work, settings, scale), work), as_json,
             {"scale": scale} if scale else None)  # fmt: skip


def suggest(
    fit: Annotated[Path, typer.Option(help="Folder of `loam mix fit`")],
    domains: Annotated[Path, typer.Option(help="YAML list of domains: name, unique_tokens")],
    out: Out,
    budget_flops: Annotated[float | None, typer.Option(help="FLOPs of the batch, 6 N D each, such as 3e18")] = None,
    batch: Annotated[int, typer.Option(help="Runs to suggest at most")] = 8,
    scales: Annotated[str | None, typer.Option(help="Scales to choose from: 1M/1B,60M/1.2B")] = None,
    target: Annotated[str, typer.Option(help="A metric, or mean")] = "mean",
    candidates: Annotated[
        Path | None, typer.Option(help="CSV of mixtures to choose from, instead of any within the bounds")
    ] = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Suggest the next runs by the regret that a FLOP is expected to save, or to stop."""
    from mixtures import verbs
    from mixtures.suggest import SuggestSettings

    names = tuple(name.strip() for name in scales.split(",")) if scales else None
    settings = settings_from(SuggestSettings, sets, target=target, budget_flops=budget_flops, batch=batch, scales=names)
    files = [*expand_inputs([fit]), _file(domains, "--domains")]
    files += [_file(candidates, "--candidates")] if candidates else []
    run_verb("mix-suggest", out, settings, files,
             lambda work: verbs.mix_suggest(fit, domains, work, settings, candidates), as_json)  # fmt: skip


def stop(
    curves: Annotated[Path, typer.Option(help="CSV: run id, then the loss at each step; empty where not reached yet")],
    out: Out,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Say which running proxies are going to lose, from their curves and those of finished ones."""
    from mixtures import verbs
    from mixtures.stopping import StopSettings

    settings = settings_from(StopSettings, sets)
    run_verb("mix-stop", out, settings, [_file(curves, "--curves")],
             lambda work: verbs.mix_stop(curves, work, settings), as_json)  # fmt: skip
