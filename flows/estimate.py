"""What building a corpus will cost: tokens by source and hours of one core by step, before anything is read.

An estimate and no more: sizes are those of the files that are here, else what publishers say; rates are those that
docs/benchmarks.md has, of one core of one machine, and steps without a rate there (perplexity, which is the model's
cost, exact duplicates, the comparison of signatures) are not counted. What filters will drop is not known: every step
is counted for all the text.
"""

from typing import Any, NamedTuple

from flows.corpus import CorpusRecipe
from flows.needs import Need, needs_of
from flows.recipe import BuildRecipe
from pipelines.quantities import human
from pipelines.source_settings import FileSource

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
        return f"{self.number:g} {self.unit}"

    def hours(self, size_bytes: float) -> float:
        """Of one core, for so many bytes."""
        return round(size_bytes / (self.number * self.unit_bytes) / 3600, 3)


RATES = {
    "extract": Rate(153, "pages per CPU second", PAGE_BYTES),  # by the whole verb
    "language": Rate(5.2),
    "filter": Rate(10.4),  # all rule sets
    "near duplicates": Rate(41.6),  # signatures
    "personal data": Rate(46.4),
    "evaluation items": Rate(25.6, "MB per CPU second"),
    "tokenize": Rate(11.7, "MB per CPU second"),  # Qwen
}


def cost_of(recipe: BuildRecipe) -> dict[str, Any]:
    """Tokens and text by source, and core-hours by step.

    Returns:
        `sources` (name -> text_bytes, tokens; None where nothing is known), `core_hours` by step, their sum, and the
        names of the sources of `unknown` size.
    """
    sources = {need.name: _size(recipe, need) for need in needs_of(recipe) if need.name in recipe.sources}
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
    }


def cost_lines(cost: dict[str, Any]) -> list[str]:
    """The cost for people."""
    if not cost["sources"]:
        return []
    lines = ["estimate (before filters; rates of one core in docs/benchmarks.md; without perplexity):"]
    width = max(map(len, cost["sources"]))
    for name, size in cost["sources"].items():
        said = (
            "size not known" if size is None else f"{human(size['tokens'])} tokens, {human(size['text_bytes'])} bytes"
        )
        lines.append(f"  {name:<{width}}  {said}")
    steps = ", ".join(f"{step} {hours:.3g}" for step, hours in cost["core_hours"].items() if hours)
    lines.append(f"  all of known size: {human(cost['tokens'])} tokens; {human(cost['core_hours_total'])} core-hours"
                 + (f" ({steps})" if steps else ""))  # fmt: skip
    many = {domain: epochs for domain, epochs in cost["epochs"].items() if epochs is not None}
    if many:
        lines.append(
            "  epochs at the budget: " + ", ".join(f"{domain} {epochs:.2g}" for domain, epochs in many.items())
        )
    return lines


def _size(recipe: BuildRecipe, need: Need) -> float | None:
    """Bytes of text of a source, by what is best known of it."""
    if need.state != "here" and need.tokens:
        return need.tokens * BYTES_PER_TOKEN
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


def _epochs(recipe: BuildRecipe, known: dict[str, float]) -> dict[str, float | None]:
    """How often each weighted domain would be read; None where the size of one of its sources is not known."""
    if not isinstance(recipe, CorpusRecipe) or not recipe.weights or recipe.tokens is None:
        return {}
    epochs: dict[str, float | None] = {}
    for domain, weight in recipe.weights.items():
        names = [name for name, settings in recipe.sources.items() if (settings.domain or name) == domain]
        tokens = sum(known[name] for name in names if name in known) / BYTES_PER_TOKEN
        epochs[domain] = round(weight * recipe.tokens / tokens, 4) if tokens and known.keys() >= set(names) else None
    return epochs
