"""The recipe of a corpus: sources to tokens by domain and bucket, without a model of its own.

One recipe describes one data set; a recipe that combines several includes them by name, and may give some of their
sources another place (`extends` and a source of another `kind`), which is how the shipped recipes run on stand-ins.
Near duplicates are looked for in groups: domains with the same settings share one search, since a Chinese page is
compared by characters and a paper by words.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from flows.recipe import BuildRecipe
from pipelines.dedup_settings import DedupSettings
from pipelines.errors import RecipeError
from pipelines.model_cost import ModelCost
from pipelines.quantities import Bytes, Tokens
from pipelines.recipe import Section, load_recipe, merge

SUM_TOLERANCE = 1e-6
INCLUDED = ("sources", "language", "filters", "known")
MOVED = {"kind", "paths", "dataset", "subset", "split", "files"}  # keys of a source that say where it is


class GroupedDedup(Section):
    """Exact duplicates among all documents, then near duplicates by groups of domains.

    Attributes:
        exact: settings for all.
        near: by domain, `"*"` for the rest; domains with equal settings are searched together.
    """

    exact: DedupSettings = DedupSettings(method="exact")
    near: dict[str, DedupSettings] = Field(default_factory=lambda: {"*": DedupSettings()})


class Known(Section):
    """What is known about a source before it is here; for the plan only, nothing depends on it.

    Attributes:
        documents: as its publisher counts them.
        tokens: as its publisher counts them, by a tokenizer of its own.
        bytes: of the files to download.
        gated: whether its terms must be accepted first, with an account.
        note: what to know before fetching it, and where the numbers are from.
    """

    documents: Tokens | None = None
    tokens: Tokens | None = None
    bytes: Bytes | None = None
    gated: bool = False
    note: str = ""


class ScorerModel(Section):
    """The model whose perplexity cuts each domain into high, mid and low.

    Attributes:
        path: a Hugging Face folder, or a KenLM file, relative to the recipe's root.
        dataset: repository on the Hub that has it; `loam fetch` brings it and lets `path` point there.
        revision: of that repository.
        licence: of the model.
        cost: assumptions for estimates.
    """

    path: str
    dataset: str | None = Field(default=None, pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str | None = None
    licence: str | None = None
    cost: ModelCost | None = None


class CorpusItems(Section):
    """Evaluation items that must not stand in the corpus.

    Attributes:
        files: items in JSON Lines, relative to the recipe's root.
    """

    files: list[str] = Field(default_factory=list)


class CorpusRecipe(BuildRecipe):
    """Sources to clean, deduplicated, bucketed and tokenized documents.

    Attributes:
        include: shipped names or paths of corpus recipes whose sources, languages, filters and near duplicates are
            taken over; what stands here goes before theirs.
        dedup: exact and near duplicates.
        items: what must not stand in the corpus.
        scorer: the model that cuts buckets; without one there are none.
        known: sizes of sources, by name, for the plan.
        weights: domain -> share of the training tokens; writes a mixture when given.
        tokens: budget of that mixture.
    """

    kind: Literal["corpus"]
    include: tuple[str, ...] = ()
    dedup: GroupedDedup = GroupedDedup()
    items: CorpusItems = CorpusItems()
    scorer: ScorerModel | None = None
    known: dict[str, Known] = Field(default_factory=dict)
    weights: dict[str, float] = Field(default_factory=dict)
    tokens: Tokens | None = None

    def by_domain(self) -> dict[str, Mapping[str, object]]:
        """As for every build, and near duplicates."""
        return {**super().by_domain(), "dedup.near": self.dedup.near}

    def near_settings(self, domain: str) -> DedupSettings:
        """How near duplicates of a domain are found."""
        return self.dedup.near.get(domain) or self.dedup.near["*"]

    def near_groups(self) -> dict[str, list[str]]:
        """Domains whose near duplicates are searched together, by the name of their step."""
        alike: dict[DedupSettings, list[str]] = {}
        for domain in self.domains:
            alike.setdefault(self.near_settings(domain), []).append(domain)
        groups: dict[str, list[str]] = {}
        for settings, domains in alike.items():
            step = f"near_{settings.unit}_{settings.bands}x{settings.rows}"
            groups[step if step not in groups else f"{step}_{domains[0].replace('/', '_')}"] = domains
        return groups

    @model_validator(mode="before")
    @classmethod
    def _with_included(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not given.get("include"):
            return given
        taken: dict[str, Any] = {}
        for name in given["include"]:
            part = _included(name).model_dump(mode="json", exclude_unset=True)
            near = part.get("dedup", {}).get("near", {})
            sections = {section: part.get(section, {}) for section in INCLUDED} | {"dedup": {"near": near}}
            for where, section in (
                ("filters", sections["filters"]),
                ("language", sections["language"]),
                ("near", near),
            ):
                if "*" in section:
                    raise ValueError(f"include: {name} has {where} for '*'; a recipe to include names its domains")
            taken = merge(taken, sections)
        for name, source in given.get("sources", {}).items():  # what was known was known of other files
            if isinstance(source, dict) and MOVED & set(source):
                taken.get("known", {}).pop(name, None)
        return merge(taken, {key: value for key, value in given.items() if key != "include"})

    @model_validator(mode="after")
    def _weights_hold(self) -> "CorpusRecipe":
        if unknown := sorted(set(self.known) - set(self.sources)):
            raise ValueError(f"known names {unknown[0]!r}, which is no source")
        if self.weights:
            if unknown := sorted(set(self.weights) ^ set(self.domains)):
                raise ValueError(
                    f"weights: {unknown[0]!r} is not both a domain and weighted; each domain needs a weight"
                )
            total = sum(self.weights.values())
            if abs(total - 1) > SUM_TOLERANCE or min(self.weights.values()) < 0:
                raise ValueError(f"weights sum to {total:.8g}, expected shares that sum to 1 within 1e-6")
        return self


def _included(name: str) -> CorpusRecipe:
    try:
        return load_recipe(name, CorpusRecipe)
    except RecipeError as error:
        raise ValueError(f"include: {name} is not a corpus recipe that holds: {error}") from None
