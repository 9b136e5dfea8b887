"""`loam mix closed` and `loam mix convert`: mixtures without an experiment, and in other projects' formats."""

from pathlib import Path
from typing import Annotated

import typer

from flows.verb import AsJson, Out, Sets, run_verb
from pipelines.errors import DataError, RecipeError
from pipelines.recipe import settings_from, shipped_recipes


def closed(
    domains: Annotated[Path, typer.Option(help="YAML list of domains: name, unique_tokens, licence")],
    kind: Annotated[str, typer.Option(help="proportional, temperature, uniform or unimax")],
    out: Out,
    tokens: Annotated[str | None, typer.Option(help="Training horizon, such as 250B")] = None,
    epoch_cap: Annotated[float | None, typer.Option(help="How often a domain may be repeated")] = None,
    tau: Annotated[float | None, typer.Option(help="Of kind temperature: 1 is proportional, more is flatter")] = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """A mixture by formula, inside caps, floors, groups and quotas: mixture.yaml and how often each domain is read."""
    from mixtures import table_verbs
    from mixtures.closed_forms import ClosedSettings

    settings = settings_from(ClosedSettings, sets, kind=kind, tokens=tokens, epoch_cap=epoch_cap, tau=tau)
    if not domains.is_file():
        raise DataError(f"--domains {domains}: no such file")
    run_verb("mix-closed", out, settings, [domains],
             lambda work: table_verbs.mix_closed(domains, work, settings), as_json)  # fmt: skip


def convert(
    file: Annotated[str, typer.Argument(help="A mixture (a file or the name of a shipped one) or a table of them")],
    to: Annotated[str, typer.Option(help="loam, regmix, olmix, megatron or energon")],
    out: Out,
    shards: Annotated[Path | None, typer.Option(help="Folder of the domains' shards (.bin and .idx)")] = None,
    tokens: Annotated[str | None, typer.Option(help="Training horizon, for counting epochs")] = None,
    epoch_cap: Annotated[float | None, typer.Option(help="How often a domain may be repeated")] = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """A mixture or table in another project's format; what would be read too often is refused."""
    from mixtures import table_verbs
    from pipelines.indexed import load_shards

    settings = settings_from(table_verbs.ConvertSettings, sets, to=to, tokens=tokens, epoch_cap=epoch_cap)
    source = _mixture_file(file)
    if settings.epoch_cap is not None and settings.to in ("megatron", "energon") and shards is None:
        raise RecipeError("--epoch-cap is counted in the tokens of the shards: give --shards FOLDER")
    if shards is not None and not shards.is_dir():
        raise DataError(f"--shards {shards}: no such folder")
    held = load_shards(shards) if shards else None
    digests = {f"shard {shard.name}": shard.sha256 for shard in held.shards} if held else None
    run_verb("mix-convert", out, settings, [source],
             lambda work: table_verbs.mix_convert(source, held, work, settings), as_json, digests)  # fmt: skip


def _mixture_file(given: str) -> Path:
    """The file given, or the shipped mixture of that name."""
    if (path := Path(given)).is_file():
        return path
    ours = {name: file for name, file in shipped_recipes().items() if file.parent.parent.name == "mixtures"}
    if given not in ours:
        raise DataError(f"{given}: no such file; mixtures that ship with Loam: {', '.join(ours)}")
    return ours[given]
