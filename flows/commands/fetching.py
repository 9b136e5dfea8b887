"""The verb that downloads: fetch."""

import json
from pathlib import Path
from typing import Annotated

import typer

from flows.verb import AsJson, Sets
from pipelines.errors import RecipeError

Wanted = Annotated[str, typer.Argument(metavar="RECIPE|URL", help="A recipe, or hf://datasets/owner/name[@rev]/glob")]
To = Annotated[Path | None, typer.Option("--to", help="Folder that gets hub/...; the recipe's root when not given")]
Update = Annotated[bool, typer.Option("--update", help="Ask anew which commit a branch is, instead of the pinned one")]


def register(app: typer.Typer) -> None:
    """Add this group's verbs."""
    app.command()(fetch)


def fetch(wanted: Wanted, to: To = None, update: Update = False, sets: Sets = None, as_json: AsJson = False) -> None:
    """Download what a recipe's sources need: pinned to commits, checked by hash, going on where it broke off."""
    from pipelines import hub
    from pipelines.progress import console

    if hub.is_hub_url(wanted):
        root, everything = to or Path(), {wanted: [hub.wanted_at(wanted)]}
    else:
        root, everything = _of_recipe(wanted, sets, to)
    fetched = {}
    for name, parts in sorted(everything.items()):
        files = [file for part in parts for file in hub.fetch(part, root, update, console.print)]
        fetched[name] = {"files": list(map(str, files)), "bytes": sum(file.stat().st_size for file in files)}
    if as_json:
        typer.echo(json.dumps({"root": str(root), "fetched": fetched}, ensure_ascii=False))
    elif not fetched:
        typer.echo(f"{wanted}: nothing to fetch; no source is on the Hub")
    else:
        for name, what in fetched.items():
            typer.echo(f"{name}: {len(what['files'])} files, {what['bytes']:,} bytes in {root / hub.FOLDER}")


def _of_recipe(recipe: str, sets: list[str] | None, to: Path | None) -> tuple[Path, dict]:
    from flows.kinds import load_any
    from pipelines.hub import wanted_of

    resolved = load_any(recipe, sets or ())
    sources = getattr(resolved, "sources", None)
    if sources is None:
        raise RecipeError(f"{recipe}: a recipe of this kind has no sources; there is nothing to fetch")
    return to or Path(getattr(resolved, "root", ".")), wanted_of(sources)
