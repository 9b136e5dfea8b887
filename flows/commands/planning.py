"""`loam mix schedule | reuse | agree`: mixtures over stages, over domains that change, and over architectures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from flows.verb import AsJson, Out, Sets, run_verb
from pipelines.errors import DataError, RecipeError
from pipelines.files import expand_inputs, write_atomically
from pipelines.recipe import settings_from
from pipelines.store import Outcome


def _file(path: Path, option: str) -> Path:
    if not path.is_file():
        raise DataError(f"{option} {path}: no such file")
    return path


def numbers_of(pairs: Sequence[str] | None, option: str) -> dict[str, float] | None:
    """`name=number`, repeated, as a mapping.

    Raises:
        RecipeError: one is something else.
    """
    found: dict[str, float] = {}
    for pair in pairs or ():
        name, _, number = pair.rpartition("=")
        try:
            found[name] = float(number)
        except ValueError:
            name = ""
        if not name:
            raise RecipeError(f"{option} {pair!r}: expected name=number, such as web=0.3")
    return found or None


def schedule(
    mixture: Annotated[Path, typer.Option(help="mixture.yaml of the main stage")],
    anneal: Annotated[Path, typer.Option(help="mixture.yaml that the last stage should come near to")],
    domains: Annotated[Path, typer.Option(help="YAML list of domains: name, unique_tokens")],
    tokens: Annotated[str, typer.Option(help="Tokens of both stages, such as 1T")],
    out: Out,
    fit: Annotated[Path | None, typer.Option(help="Folder of `loam mix fit`, to predict and protect losses")] = None,
    share: Annotated[float, typer.Option(help="Share of the tokens in the last stage")] = 0.2,
    epoch_cap: Annotated[float | None, typer.Option(help="How often a domain may be read, both stages")] = None,
    replay: Annotated[list[str] | None, typer.Option(help="DOMAIN=LEAST share of the last stage (* for all)")] = None,
    protect: Annotated[list[str] | None, typer.Option(help="METRIC=RISE that its loss may have (repeatable)")] = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Two stages, with caps over both, replay floors, and no protected loss rising beyond what is allowed."""
    from mixtures import planning_verbs as verbs
    from mixtures.forgetting import ScheduleSettings

    floors, rises = numbers_of(replay, "--replay"), numbers_of(protect, "--protect")
    settings = settings_from(ScheduleSettings, sets, tokens=tokens, share=share, epoch_cap=epoch_cap, replay=floors,
                             protect=rises)  # fmt: skip
    files = [_file(mixture, "--mixture"), _file(anneal, "--anneal"), _file(domains, "--domains"),
             *(expand_inputs([fit]) if fit else ())]  # fmt: skip
    run_verb("mix-schedule", out, settings, files,
             lambda work: verbs.mix_schedule(mixture, anneal, domains, fit, work, settings), as_json)  # fmt: skip


def reuse(
    mixture: Annotated[Path, typer.Option(help="mixture.yaml to reuse")],
    domains: Annotated[Path, typer.Option(help="YAML list of the new domains: name, unique_tokens")],
    out: Out,
    n: Annotated[int | None, typer.Option("-n", help="Number of mixtures of the new swarm")] = None,
    fit: Annotated[Path | None, typer.Option(help="Folder of `loam mix fit` on that swarm: propose")] = None,
    target: Annotated[str | None, typer.Option(help="A metric, or mean")] = None,
    tokens: Annotated[str | None, typer.Option(help="Training horizon, such as 250B")] = None,
    epoch_cap: Annotated[float | None, typer.Option(help="How often a domain may be repeated")] = None,
    old_ratios: Annotated[Path | None, typer.Option(help="CSV of old runs to map onto the new domains")] = None,
    old_domains: Annotated[Path | None, typer.Option(help="YAML list of the old domains, with --old-ratios")] = None,
    content: Annotated[Path | None, typer.Option(help="CSV: domain, then shares of clusters, for old and new")] = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Freeze an old mixture as one virtual domain; a swarm over what changed, or a proposal from it."""
    from mixtures import planning_verbs as verbs
    from mixtures.reuse import ReuseSettings

    if (old_ratios is None) != (old_domains is None) or (content and old_ratios is None):
        raise RecipeError("--old-ratios and --old-domains belong together, and --content needs both")
    given = [f"propose.target={target}"] if target else []
    settings = settings_from(ReuseSettings, [*given, *(sets or ())], tokens=tokens, epoch_cap=epoch_cap)
    tables = {"--old-ratios": old_ratios, "--old-domains": old_domains, "--content": content}
    files = [_file(mixture, "--mixture"), _file(domains, "--domains"), *(expand_inputs([fit]) if fit else ()),
             *(_file(path, option) for option, path in tables.items() if path)]  # fmt: skip
    evidence = verbs.Evidence(old_ratios, old_domains, content) if old_ratios and old_domains else None
    run_verb("mix-reuse", out, settings, files,
             lambda work: verbs.mix_reuse(mixture, domains, n, fit, work, settings, evidence), as_json,
             {"n": str(n)} if n is not None else None)  # fmt: skip


def agree(
    metrics: Annotated[Path, typer.Option(help="CSV of the runs that choose: id, then metrics")],
    against: Annotated[Path, typer.Option(help="CSV of the runs that decide whether the choice was right")],
    out: Out,
    ratios: Annotated[Path | None, typer.Option(help="CSV of the mixtures; equal ones are replicates")] = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Do two tables of runs rank the same mixtures alike: dense and experts, small and large?"""
    from flows.plots import agreement
    from mixtures import planning_verbs as verbs
    from mixtures.agreement import AgreementSettings

    settings = settings_from(AgreementSettings, sets)
    files = [_file(metrics, "--metrics"), _file(against, "--against"), *([_file(ratios, "--ratios")] if ratios else ())]

    def action(work: Path) -> Outcome:
        outcome, proxy, truth = verbs.mix_agree(metrics, against, ratios, work, settings)
        write_atomically(work / "agreement.svg", agreement(proxy, truth, (metrics.name, against.name)).encode())
        return outcome

    run_verb("mix-agree", out, settings, files, action, as_json)
