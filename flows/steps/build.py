"""Steps from sources to clean documents: collect, ingest, filter, deduplicate, score quality, decontaminate."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from flows.ablate_recipe import AblationRecipe
from flows.recipe import BuildRecipe, RunRecipe
from flows.steps.step import Place, Step, digests_of, plain, require
from pipelines.dedup_settings import DedupSettings
from pipelines.errors import DataError
from pipelines.files import expand_inputs, sha256_of
from pipelines.store import Outcome


def build_steps(recipe: RunRecipe) -> list[Step]:
    """The steps up to documents that may be trained on."""
    return [
        *source_steps(recipe),
        dedup_step("dedup_exact", recipe.dedup.exact, "filter"),
        dedup_step("dedup_near", recipe.dedup.near, "dedup_exact"),
        _quality_model(recipe),
        _quality(recipe),
        _items(recipe),
        _decontaminate(recipe),
    ]


def source_steps(recipe: BuildRecipe) -> list[Step]:
    """The steps from raw text to filtered documents, which every recipe with sources begins with."""
    return [*ingest_steps(recipe), _filter(recipe)]


def ingest_steps(recipe: BuildRecipe | AblationRecipe) -> list[Step]:
    """The steps from raw text to documents."""
    return [_collect(recipe), _ingest(recipe)]


def _collect(recipe: BuildRecipe | AblationRecipe) -> Step:
    from pipelines import sources

    def action(place: Place, work: Path) -> Outcome:
        return sources.collect(recipe.sources, work, place.workers)

    found = {name: s for name, s in recipe.sources.items() if isinstance(s, sources.MachineSource)}
    return Step("collect", action, "raw files of the sources found on this machine", plain(sources=found),
                inputs=lambda: sources.fingerprint_inputs(found, Path(recipe.root)))  # fmt: skip


def _ingest(recipe: BuildRecipe | AblationRecipe) -> Step:
    from pipelines import sources

    root = Path(recipe.root)

    def action(place: Place, work: Path) -> Outcome:
        return sources.ingest(recipe.sources, place.of("collect") / "raw", root, work, recipe.extract, place.workers)

    return Step(
        "ingest", action, "raw records to documents: extraction and normalization",
        plain(sources=recipe.sources, extract=recipe.extract), ["collect"],
        inputs=lambda: sources.fingerprint_inputs(recipe.sources, root),
    )  # fmt: skip


def _filter(recipe: BuildRecipe) -> Step:
    def action(place: Place, work: Path) -> Outcome:
        from filters.heuristics import Heuristics
        from filters.language import IdentifyLanguage
        from filters.licences import Licences, licence_table
        from filters.pii import MaskPii, write_spans
        from filters.rule_report import rule_report
        from filters.safety import Safety
        from pipelines.execute import parts_of, transform

        heuristics = Heuristics(recipe.filters)
        listed = [Safety(safety)] if safety.paths else []
        first = [IdentifyLanguage(recipe.language), Licences(recipe.licences), *listed]
        files = require(place.documents("ingest", "documents"), "ingest")
        counts = transform(files, [*first, heuristics, MaskPii(recipe.pii)], work, place.workers, "filter")
        rules = rule_report(work, heuristics.columns, counts)
        parts = parts_of(files)
        metrics = {"masked": write_spans(work, parts), "licences": licence_table(work, parts), "rules": rules}
        return Outcome(counts, metrics)

    safety = recipe.safety.below(Path(recipe.root))
    settings = plain(
        language=recipe.language, licences=recipe.licences, safety=recipe.safety, filters=recipe.filters, pii=recipe.pii
    )
    return Step("filter", action, "language, licences, lists, heuristic rules, personal data masked", settings,
                ["ingest"], ("pipelines", "filters"), lambda: digests_of(safety.paths))  # fmt: skip


def dedup_step(name: str, settings: DedupSettings, parent: str, domains: Sequence[str] | None = None) -> Step:
    """A step that drops duplicates of the documents of another.

    Args:
        name: of the step.
        settings: what counts as a duplicate.
        parent: step whose documents it reads.
        domains: those to read; all when None.
    """

    def action(place: Place, work: Path) -> Outcome:
        from pipelines.dedup import dedup

        found = place.by_domain(parent)
        files = [file for domain, paths in found.items() if domains is None or domain in domains for file in paths]
        return dedup(require(sorted(files), parent), work, settings, place.workers)

    given = plain(dedup=settings) | ({} if domains is None else {"domains": sorted(domains)})
    return Step(name, action, f"{settings.method} duplicates", given, [parent])


def _quality_model(recipe: RunRecipe) -> Step:
    def action(place: Place, work: Path) -> Outcome:
        from filters.quality import train_quality

        return train_quality(require(place.documents("dedup_near"), "dedup_near"), work, recipe.quality)

    return Step("quality_model", action, "fastText quality classifier", plain(quality=recipe.quality), ["dedup_near"],
                ("pipelines", "filters"))  # fmt: skip


def _quality(recipe: RunRecipe) -> Step:
    def action(place: Place, work: Path) -> Outcome:
        from filters.quality import score_quality

        model = place.of("quality_model") / "model.bin"
        return score_quality(place.documents("dedup_near"), work, recipe.quality, model, place.workers)

    return Step("quality", action, "quality score of every document", plain(quality=recipe.quality),
                ["dedup_near", "quality_model"], ("pipelines", "filters"))  # fmt: skip


def items_of(place: Place) -> list[Path]:
    """Files of the run's evaluation items."""
    return sorted((place.of("items") / "items").glob("*.jsonl"))


def item_files(recipe: RunRecipe) -> list[Path]:
    """Files of evaluation items that the recipe names."""
    root = Path(recipe.root)
    return expand_inputs([root / name for name in recipe.items.files]) if recipe.items.files else []


def chain_files(recipe: RunRecipe) -> dict[str, Path]:
    """Files of chains of thought that the recipe makes items of, by name."""
    found = {name: expand_inputs([Path(recipe.root) / path]) for name, path in recipe.items.chains.files.items()}
    return {name: files[0] for name, files in found.items()}


def _items(recipe: RunRecipe) -> Step:
    def action(place: Place, work: Path) -> Outcome:
        return make_items(recipe, place, work)

    def inputs() -> dict[str, str]:
        files = [*item_files(recipe), *chain_files(recipe).values()]
        return {f"items:{number}:{path.name}": sha256_of(path) for number, path in enumerate(files)}

    return Step("items", action, "evaluation items, made and read", plain(items=recipe.items), ["quality"],
                ("pipelines", "trainer"), inputs)  # fmt: skip


def make_items(recipe: RunRecipe, place: Place, work: Path) -> Outcome:
    """Write `items/<benchmark>.jsonl` for items made from documents and for those read from files."""
    from trainer.chains import make_chain_items
    from trainer.cloze import make_cloze_items
    from trainer.eval_items import load_items, write_items

    metrics: dict[str, object] = {}
    if recipe.items.cloze is not None:
        metrics |= make_cloze_items(place.documents("quality"), work, recipe.items.cloze).metrics
    metrics |= make_chain_items(chain_files(recipe), work, recipe.items.chains).metrics
    for path in item_files(recipe):
        items, rejected = load_items(path)
        if not items:
            raise DataError(f"{path}: no multiple-choice item could be read ({rejected} rows rejected)")
        benchmark = path.name.split(".")[0]
        write_items(work / "items" / f"{benchmark}.jsonl", items)
        metrics[benchmark] = {"items": len(items), "rejected": rejected}
    return Outcome(metrics=metrics)


def _decontaminate(recipe: RunRecipe) -> Step:
    def action(place: Place, work: Path) -> Outcome:
        from pipelines.decontaminate import decontaminate

        return decontaminate(place.documents("quality"), items_of(place), work, recipe.decontaminate, place.workers)

    return Step("decontaminate", action, "documents that hold evaluation items are dropped",
                plain(decontaminate=recipe.decontaminate), ["quality", "items"])  # fmt: skip


def licences_of(recipe: RunRecipe) -> Mapping[str, str]:
    """Licence of each source, as the recipe states it."""
    return {name: source.licence or "not stated" for name, source in recipe.sources.items()}
