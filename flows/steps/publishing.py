"""Last steps: the published dataset and model as folders, and the report. Delivering them is `deliver_run`."""

import shutil
from pathlib import Path
from typing import Any

from flows.recipe import RunRecipe
from flows.steps.build import items_of, licences_of
from flows.steps.language_model import held_out_ids
from flows.steps.step import Place, Step, plain
from pipelines.errors import DataError
from pipelines.files import expand_inputs
from pipelines.manifest import read_manifest
from pipelines.recipe import load_recipe
from pipelines.store import Outcome

FUNNEL = ("ingest", "filter", "dedup_exact", "dedup_near", "quality", "decontaminate")


def publishing_steps(recipe: RunRecipe) -> list[Step]:
    """The steps that make something to hand on."""
    return [_publish_dataset(recipe), _publish_model(recipe), _report(recipe)]


def _manifests(place: Place, steps: tuple[str, ...]) -> dict[str, Any]:
    return {name: read_manifest(place.of(name)).model_dump(mode="json") for name in steps}


def _publish_dataset(recipe: RunRecipe) -> Step:
    def action(place: Place, work: Path) -> Outcome:
        from flows.publish import publish_dataset
        from flows.publish_rejects import Against
        from flows.runner import RECIPE

        lineage = {
            "recipe": recipe.name,
            "funnel": _manifests(place, FUNNEL),
            "synth": _manifests(place, ("synth",)),
            "licences": licences_of(recipe),
        }
        documents = place.by_domain("bucketed") | {recipe.synth.sample_domain: place.documents("synth", "samples")}
        held_out = held_out_ids(place)
        shutil.copyfile(place.folder / RECIPE, work / RECIPE)
        rejects = sorted(place.of("synth").glob("rejects/part-*.parquet"))
        named = recipe.synth.screen.benchmarks
        items = [*items_of(place), *(expand_inputs(named) if named else ())]
        against = Against(items, recipe.synth.screen.decontaminate or recipe.decontaminate)
        return publish_dataset(documents, work, lineage, recipe.publish, held_out, rejects, against)

    return Step("publish_dataset", action, "Parquet splits and a dataset card",
                plain(run=recipe),
                [*FUNNEL, "bucketed", "synth", "plain_tokens", "items"],
                ("pipelines", "filters", "synth", "flows"))  # fmt: skip


def _publish_model(recipe: RunRecipe) -> Step:
    def action(place: Place, work: Path) -> Outcome:
        from flows.publish import publish_model
        from flows.runner import RECIPE

        facts = {"recipe": recipe.name, **_manifests(place, ("mixture", "train", "export", "evaluate"))}
        shutil.copyfile(place.folder / RECIPE, work / RECIPE)
        return publish_model(place.of("export") / "hf", work, facts, recipe.publish)

    return Step("publish_model", action, "the model with its card", plain(run=recipe),
                ["mixture", "train", "export", "evaluate"], ("pipelines", "flows"))  # fmt: skip


def _report(recipe: RunRecipe) -> Step:
    def action(place: Place, work: Path) -> Outcome:
        from flows.report import write_report

        write_report(place.folder, work / "report.html")
        return Outcome()

    parents = (
        "collect", *FUNNEL, "quality_model", "items", "tokenizer", "plain_tokens", "language_model", "perplexity",
        "buckets", "bucketed", "synth", "tokens", "swarm", "proxies", "law", "confirm", "mixture",
        "train", "export",        "evaluate", "publish_dataset", "publish_model",
    )  # fmt: skip
    return Step(
        "report",
        action,
        "one static HTML file",
        plain(run=recipe.name, about=recipe.about),
        parents,
        ("pipelines", "flows"),
    )


def deliver_run(folder: Path, target: str | None = None) -> dict[str, str]:
    """Deliver the published dataset and model of a run.

    Args:
        folder: the run's.
        target: `dir://FOLDER`; the recipe's when None. Dataset and model go to `dataset/` and `model/` below it.

    Returns:
        Where each went.

    Raises:
        DataError: the run has not published yet.
    """
    from flows.publish import deliver
    from flows.runner import RECIPE

    recipe = load_recipe(str(folder / RECIPE), RunRecipe)
    base = (target or recipe.publish.target).rstrip("/")
    if not (folder / "publish_model" / "manifest.json").is_file():
        raise DataError(f"{folder}: nothing is published yet; `loam run {recipe.name}` does it")
    places = {"dataset": f"{base}/dataset", "model": f"{base}/model"}
    for name, where in places.items():
        deliver(folder / f"publish_{name}", where)
    return places
