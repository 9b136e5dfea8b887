"""The verb that downloads: fetch."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.verb import AsJson, Sets
from pipelines.errors import RecipeError

Wanted = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE|LIST|URL",
        help="A recipe; ut1, ldnoobw or public-suffixes; hf://datasets/owner/name[@rev]/glob; hf://models/owner/name",
    ),
]
To = Annotated[Path | None, typer.Option("--to", help="Folder that gets hub/ and lists/; the recipe's root by default")]
Update = Annotated[bool, typer.Option("--update", help="Ask anew which commit a branch is, instead of the pinned one")]
Fetched = Callable[[], list[Path]]


def register(app: typer.Typer) -> None:
    """Add this group's verbs."""
    app.command()(fetch)


def fetch(wanted: Wanted, to: To = None, update: Update = False, sets: Sets = None, as_json: AsJson = False) -> None:
    """Download what a recipe needs, or a list: pinned to commits, checked by hash, going on where it broke off."""
    from filters.list_sources import LISTS
    from pipelines import github, hub
    from pipelines.progress import console

    say = console.print
    root, everything = to or Path(), dict[str, Fetched]()
    if wanted in LISTS:
        everything[wanted] = lambda: github.fetch(LISTS[wanted], root, update, say)
    elif hub.is_hub_url(wanted):
        part = hub.wanted_model_at(wanted) if wanted.startswith("hf://models/") else hub.wanted_at(wanted)
        everything[wanted] = lambda: hub.fetch(part, root, update, say)
    else:
        root, everything = _of_recipe(wanted, sets, to, update, say)
    fetched: dict[str, dict[str, Any]] = {}
    for name, bring in sorted(everything.items()):
        files = bring()
        fetched[name] = {"files": list(map(str, files)), "bytes": sum(file.stat().st_size for file in files)}
    if as_json:
        typer.echo(json.dumps({"root": str(root), "fetched": fetched}, ensure_ascii=False))
    elif not fetched:
        typer.echo(f"{wanted}: nothing to fetch; no source or model of the Hub and no list is named")
    else:
        for name, what in fetched.items():
            typer.echo(f"{name}: {len(what['files'])} files, {what['bytes']:,} bytes below {root}")


def _of_recipe(
    recipe: str, sets: list[str] | None, to: Path | None, update: bool, say: Callable[[str], None]
) -> tuple[Path, dict[str, Fetched]]:
    """What brings each thing that a recipe needs: sources on the Hub, models, lists of known names."""
    from filters.list_sources import LISTS
    from flows.corpus import CorpusRecipe
    from flows.kinds import load_any
    from flows.model_needs import models_of, place_of
    from flows.recipe import BuildRecipe
    from flows.score_recipe import ScoreRecipe
    from pipelines import github, hub
    from synth.recipe import SynthSettings

    resolved = load_any(recipe, sets or ())
    root = to or (Path(resolved.root) if isinstance(resolved, BuildRecipe) else Path())

    def bring(parts: list[hub.Wanted]) -> list[Path]:
        return [file for part in parts for file in hub.fetch(part, root, update, say)]

    def placed(wanted: hub.Wanted, place: Path) -> list[Path]:
        return _placed(bring([wanted]), hub.commit_folder(wanted, root), place)

    if isinstance(resolved, (SynthSettings, ScoreRecipe)):
        models = {name: (hub.wanted_model(model.dataset, model.revision), root / place_of(model))
                  for name, model in models_of(resolved).items()}  # fmt: skip
        return root, {name: lambda one=one: placed(*one) for name, one in models.items()}
    if not isinstance(resolved, BuildRecipe):
        raise RecipeError(f"{recipe}: a recipe of this kind needs nothing from outside; a model comes by loam fetch "
                          "hf://models/owner/name")  # fmt: skip
    everything: dict[str, Fetched] = {
        name: lambda parts=parts: bring(parts) for name, parts in hub.wanted_of(resolved.sources).items()
    }
    for setting, given in resolved.safety.paths.items():
        if given in LISTS and not (root / given).exists():
            everything[f"safety.{setting}"] = lambda given=given: github.fetch(LISTS[given], root, update, say)
    scorer = resolved.scorer if isinstance(resolved, CorpusRecipe) else None
    if scorer is not None and scorer.dataset and (update or not (root / scorer.path).exists()):
        wanted, place = hub.wanted_model(scorer.dataset, scorer.revision), root / scorer.path
        everything["scorer"] = lambda: placed(wanted, place)
    return root, everything


def _placed(files: list[Path], folder: Path, place: Path) -> list[Path]:
    """Let a path of the recipe point to a fetched folder, unless something of the user's stands there."""
    if place.is_symlink() or not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        place.symlink_to(os.path.relpath(folder, place.parent), target_is_directory=True)
    return files
