"""`loam mix online`, `components` and `mixmin`: mixtures from one small model, or from one for each domain."""

import re
from pathlib import Path
from typing import Annotated

import typer

from flows.steps.step import digests_of
from flows.verb import AsJson, Out, Sets, documents_of, run_verb
from pipelines.errors import DataError, RecipeError
from pipelines.recipe import Section, settings_from

Model = Annotated[str, typer.Argument(metavar="RECIPE", help="Kind train, or one with an ablation: its proxy")]
Data = Annotated[Path, typer.Option(help="A run, or a folder of shards (train/ and validation/)")]
Mixture = Annotated[Path | None, typer.Option(help="mixture.yaml to begin from; proportional when not given")]
Tokenizer = Annotated[Path | None, typer.Option(help="Tokenizer folder, for the vocabulary; a run brings its own")]


class MixMinSettings(Section):
    """What the ensemble is solved for."""

    targets: tuple[str, ...] = ()


def online(
    recipe: Model,
    method: Annotated[str, typer.Option(help="doremi, doge, aioli or ado")],
    data: Data,
    out: Out,
    mixture: Mixture = None,
    tokenizer: Tokenizer = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Weights that move while a small model trains (DoReMi, DoGE, Aioli, ADO): mixture.yaml."""
    from flows.steps.online import mix_online, small_model, source_of
    from trainer.online_settings import OnlineSettings

    own = [one for one in sets or () if re.match(r"(doremi|doge|aioli|ado)\.", one)]
    settings = settings_from(OnlineSettings, own, method=method)
    source = source_of(data, mixture)
    vocabulary = tokenizer or source.tokenizer
    model = small_model(recipe, [one for one in sets or () if one not in own], vocabulary)
    run_verb(
        "mix-online", out, _Asked(proxy=model, numbers=settings.model_dump(mode="json")), _files(source.folders),
        lambda work: mix_online(model, source, settings, work), as_json,
        digests_of({"mixture": mixture, "tokenizer": vocabulary}),
    )  # fmt: skip


def components(
    recipe: Model,
    data: Data,
    out: Out,
    row_tokens: Annotated[int, typer.Option(help="Tokens of a row; 0: whole documents")] = 1,
    tokenizer: Tokenizer = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Train a small model on each domain and score held-out text with all: scores.npz, for mixmin."""
    from flows.steps.online import mix_components, small_model, source_of

    source = source_of(data, None)
    vocabulary = tokenizer or source.tokenizer
    model = small_model(recipe, sets or (), vocabulary)
    run_verb(
        "mix-components", out, _Asked(proxy=model, numbers={"row_tokens": row_tokens}), _files(source.folders),
        lambda work: mix_components(model, source, row_tokens, work), as_json, digests_of({"tokenizer": vocabulary}),
    )  # fmt: skip


def mixmin(
    components: Annotated[Path, typer.Option(help="Folder of `loam mix components`")],
    out: Out,
    target: Annotated[list[str] | None, typer.Option(help="A held-out set that counts (repeatable); else all")] = None,
    ratios: Annotated[Path | None, typer.Option(help="Mixtures whose ensemble losses are wanted: ensemble.csv")] = None,
    metrics: Annotated[Path | None, typer.Option(help="What their proxies measured, to compare")] = None,
    as_json: AsJson = False,
) -> None:
    """The mixture of per-domain models that explains held-out text best: mixture.yaml."""
    from flows.steps.online import SCORES, mix_mixmin

    if metrics is not None and ratios is None:
        raise RecipeError("--metrics needs --ratios: the mixtures that were measured")
    files = [components / SCORES, *(path for path in (ratios, metrics) if path is not None)]
    if missing := [path for path in files if not path.is_file()]:
        raise DataError(f"{missing[0]}: no such file; `loam mix components` writes {SCORES}")
    settings = MixMinSettings(targets=tuple(target or ()))
    run_verb("mix-mixmin", out, settings, files,
             lambda work: mix_mixmin(files[0], settings.targets, ratios, metrics, work), as_json)  # fmt: skip


class _Asked(Section):
    """What goes into the manifest: the small model and the method's numbers."""

    proxy: Section
    numbers: dict[str, object]


def _files(folders: tuple[Path, ...]) -> list[Path]:
    return [file for folder in folders for file in documents_of([str(folder)])]
