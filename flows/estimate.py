"""What building a corpus will cost: tokens by source and hours of one core by step, before anything is read.

An estimate and no more: sizes are those of the files that are here, else what publishers say; rates are those that
docs/benchmarks.md has, of one core of one machine, and steps without a rate there (exact duplicates, the comparison of
signatures) are not counted. Perplexity is the model's cost (`flows/model_estimate.py`). What filters will drop is not
known: every step is counted for all the text.
"""

from typing import Any, NamedTuple

from flows.ablate_recipe import AblationRecipe
from flows.corpus import CorpusRecipe
from flows.model_estimate import score_cost, score_lines
from flows.needs import Need, needs_of
from flows.recipe import BuildRecipe
from pipelines.quantities import human, human_bytes
from pipelines.source_settings import FileSource, HubSource

BYTES_PER_TOKEN = 4.0  # of a 150,000-word tokenizer on English; Chinese has about 3.3, code about 3.5
TEXT_OF_HTML = 0.1  # text in a page of the web, roughly
COMPRESSED = {".gz": 3.0, ".tgz": 3.0, ".zst": 3.5, ".zstd": 3.5, ".parquet": 2.2, ".zip": 3.0}  # text bytes per byte
MB = 1e6
PAGE_BYTES = 190.3 * MB / 1660  # HTML of a page: those that the rate of extraction was taken on


class Rate(NamedTuple):
    """What one core does in a second, in the words of docs/benchmarks.md.

    Attributes:
        number: how many.
        unit: of what.
        unit_bytes: bytes of one of them, of HTML for extraction and of text for the rest.
    """

    number: float
    unit: str = "MB/s"
    unit_bytes: float = MB

    def __str__(self) -> str:
        return f"{self.number:,g} {self.unit}"

    def hours(self, size_bytes: float) -> float:
        """Of one core, for so many bytes."""
        return round(size_bytes / (self.number * self.unit_bytes) / 3600, 3)


RATES = {
    "extract": Rate(220, "pages per CPU second", PAGE_BYTES),  # by the whole verb
    "language": Rate(1200, "to 1,500 web texts of 2.6 kB", 2600),  # the lower end
    "filter": Rate(10.4),  # all rule sets
    "near duplicates": Rate(41.6),  # signatures
    "personal data": Rate(46.4),
    "evaluation items": Rate(25.6, "MB per CPU second"),
    "tokenize": Rate(15.7, "MB per CPU second"),  # Qwen, the whole verb
}


def cost_of(recipe: BuildRecipe | AblationRecipe) -> dict[str, Any]:
    """Tokens and text by source, and core-hours by step.

    Returns:
        `sources` (name -> text_bytes, tokens; None where nothing is known), `core_hours` by step, their sum, the
        names of the sources of `unknown` size, and the cost of `scoring` where the recipe assumes one.
    """
    needs = {need.name: need for need in needs_of(recipe) if need.name in recipe.sources}
    sources = {name: _size(recipe, need) for name, need in needs.items()}
    known = {name: size for name, size in sources.items() if size is not None}
    text = sum(known.values())
    pages = sum(size for name, size in known.items() if recipe.sources[name].kind in ("warc", "html"))
    hours = {step: rate.hours(pages / TEXT_OF_HTML if step == "extract" else text) for step, rate in RATES.items()}
    return {
        "sources": {
            name: None if size is None else {"text_bytes": round(size), "tokens": round(size / BYTES_PER_TOKEN)}
            for name, size in sources.items()
        },
        "tokens": round(text / BYTES_PER_TOKEN),
        "core_hours": hours,
        "core_hours_total": round(sum(hours.values()), 3),
        "unknown": sorted(set(sources) - set(known)),
        "epochs": _epochs(recipe, known),
        "scoring": _scoring(recipe, known, needs),
    }


def cost_lines(recipe: BuildRecipe | AblationRecipe, cost: dict[str, Any], sources: bool = True) -> list[str]:
    """The cost for people.

    Args:
        recipe: whose cost.
        cost: of `cost_of`.
        sources: a line for each source, too.
    """
    if not cost["sources"]:
        return []
    lines = ["estimate, before filters, by the rates of one core in docs/benchmarks.md:"]
    width = max(map(len, cost["sources"]))
    for name, size in cost["sources"].items() if sources else ():
        said = (
            "size not known"
            if size is None
            else f"{human(size['tokens'])} tokens, {human_bytes(size['text_bytes'])} of text"
        )
        lines.append(f"  {name:<{width}}  {said}")
    steps = ", ".join(f"{step} {hours:.3g}" for step, hours in cost["core_hours"].items() if hours)
    lines.append(f"  all of known size: {human(cost['tokens'])} tokens; {human(cost['core_hours_total'])} core-hours"
                 + (f" ({steps})" if steps else ""))  # fmt: skip
    if cost["unknown"]:
        lines.append(f"  {len(cost['unknown'])} of {len(cost['sources'])} sources are of unknown size")
    many = {domain: epochs for domain, epochs in cost["epochs"].items() if epochs is not None}
    if many:
        lines.append(
            "  epochs at the budget: " + ", ".join(f"{domain} {epochs:.2g}" for domain, epochs in many.items())
        )
    if isinstance(recipe, CorpusRecipe):
        lines += [f"  {line}" for line in score_lines(recipe.scorer, cost["scoring"])]
    return lines


def _scoring(recipe: BuildRecipe | AblationRecipe, known: dict[str, float], needs: dict[str, Need]) -> dict[str, Any]:
    """The cost of scoring the sources of known size."""
    if not isinstance(recipe, CorpusRecipe) or not known:
        return {}
    return score_cost(recipe, {name: (size / BYTES_PER_TOKEN, needs[name].documents) for name, size in known.items()})


def _size(recipe: BuildRecipe | AblationRecipe, need: Need) -> float | None:
    """Bytes of text of a source, by what is best known of it."""
    if need.tokens and (need.state != "here" or isinstance(recipe.sources[need.name], HubSource)):
        taken = recipe.sources[need.name]
        share = min(1.0, taken.max_documents / need.documents) if taken.max_documents and need.documents else 1.0
        size = need.tokens * BYTES_PER_TOKEN * share
        return min(size, taken.max_bytes or size)
    if need.size_bytes is None:
        return None
    settings = recipe.sources[need.name]
    size = float(need.size_bytes)
    if need.state == "here" and isinstance(settings, FileSource):
        names = [path.lower() for path in settings.paths]
        size *= max((factor for end, factor in COMPRESSED.items() if any(n.endswith(end) for n in names)), default=1.0)
        if settings.kind in ("warc", "html"):
            size *= TEXT_OF_HTML
    return min(size, settings.max_bytes or size)


def _epochs(recipe: BuildRecipe | AblationRecipe, known: dict[str, float]) -> dict[str, float | None]:
    """How often each weighted domain would be read; None where the size of one of its sources is not known."""
    if not isinstance(recipe, CorpusRecipe) or not recipe.weights or recipe.tokens is None:
        return {}
    epochs: dict[str, float | None] = {}
    for domain, weight in recipe.weights.items():
        names = [name for name, settings in recipe.sources.items() if (settings.domain or name) == domain]
        tokens = sum(known[name] for name in names if name in known) / BYTES_PER_TOKEN
        epochs[domain] = round(weight * recipe.tokens / tokens, 4) if tokens and known.keys() >= set(names) else None
    return epochs
