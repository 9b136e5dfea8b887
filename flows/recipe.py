"""The recipe of a whole run: one section for each part, each section a model of the folder that it configures.

`kind` tells recipes apart: a `run` is a whole way from sources to a published model, a `corpus` (`flows/corpus.py`)
ends with tokens; the other kinds belong to one folder (`RECIPE_KINDS`). Token and epoch accounting of a run is in
`flows/plan.py`.
"""

import re
from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from filters.buckets import BucketSettings
from filters.heuristics import FilterSettings
from filters.language import LanguageSettings
from filters.licences import LicenceSettings
from filters.perplexity import PerplexitySettings
from filters.pii import PiiSettings
from filters.quality import QualitySettings
from filters.safety import SafetySettings
from flows.pairing_recipe import PairingSettings
from flows.publish import PublishSettings
from mixtures.design import DesignSettings
from mixtures.fitting import FitSettings
from mixtures.propose import ProposeSettings
from pipelines.decontaminate import DecontaminateSettings
from pipelines.dedup_settings import DedupSettings
from pipelines.encode import EncodeSettings
from pipelines.errors import RecipeError
from pipelines.executors import ExecutorSettings
from pipelines.extract import ExtractSettings
from pipelines.recipe import Section
from pipelines.sources import SourceSettings
from pipelines.tokenizer import TokenizerSettings
from synth.recipe import SynthSettings
from trainer.chains import ChainSettings
from trainer.cloze import ClozeSettings
from trainer.evaluate import EvaluateSettings
from trainer.recipe import TrainRecipe


class DedupSteps(Section):
    """Exact duplicates first, because it is cheap; near duplicates among what is left."""

    exact: DedupSettings = DedupSettings(method="exact")
    near: DedupSettings = DedupSettings(method="minhash")


class ItemSettings(Section):
    """Evaluation items: made from held-out documents, from chains of thought, and read from multiple-choice files."""

    cloze: ClozeSettings | None = None
    chains: ChainSettings = ChainSettings()
    files: list[str] = Field(default_factory=list)


class LargerScale(Section):
    """Some of the swarm's mixtures trained at a larger scale too, for laws across scales.

    Attributes:
        proxies: how many: the first of the swarm, the prior included.
        proxy: the model trained on each.
    """

    proxies: int = Field(ge=2)
    proxy: TrainRecipe


class AblateSettings(Section):
    """The search for a mixture: a swarm of proxies, laws, a proposal and its confirmation.

    Attributes:
        proxies: how many mixtures are drawn; the prior is one of them.
        design: how they are drawn.
        proxy: the small model trained on each.
        larger: further scales by name; the confirmation is made at the largest of all.
        anchor_seeds: further seeds of the prior at every scale: what differs between them is noise.
        simulate_epochs: let a proxy repeat each domain as often as the final run would, on a part of its documents.
        fit: which laws are tried and how one is chosen.
        propose: what is minimised, under which caps.
        targets: base domains whose held-out losses make the target (equal shares); all when empty.
        against: what the proposal is compared with, beside the prior.
        confirm_seeds: fresh seeds of each mixture that is compared.
        unproven: what to train on when the confirmation is inconclusive.
        executor: where proxies are trained; no part of a result. That of the recipe when not given.
    """

    proxies: int = Field(default=16, ge=4)
    design: DesignSettings = DesignSettings()
    proxy: TrainRecipe
    larger: dict[str, LargerScale] = Field(default_factory=dict)
    anchor_seeds: int = Field(default=2, ge=0)
    simulate_epochs: bool = False
    fit: FitSettings = FitSettings()
    propose: ProposeSettings = ProposeSettings()
    targets: list[str] = Field(default_factory=list)
    against: tuple[Literal["uniform", "unimax"], ...] = ("uniform", "unimax")
    confirm_seeds: int = Field(default=3, ge=2)
    unproven: Literal["prior", "proposal"] = "prior"
    executor: ExecutorSettings | None = Field(default=None, exclude=True)

    @property
    def confirm_proxy(self) -> TrainRecipe:
        """The model of the confirmation: that with the most FLOPs."""
        every = [self.proxy, *(scale.proxy for _, scale in sorted(self.larger.items()))]
        return max(every, key=lambda proxy: proxy.training_flops)

    @model_validator(mode="after")
    def _scales_hold(self) -> "AblateSettings":
        for name, scale in self.larger.items():
            if not re.fullmatch(r"[a-z0-9][a-z0-9_]*", name):
                raise ValueError(f"larger: {name!r}: expected small letters, digits and underscores, such as 60m")
            if scale.proxies > self.proxies:
                raise ValueError(f"larger.{name}.proxies: {scale.proxies} of a swarm of {self.proxies} mixtures")
        return self


class EffectSettings(Section):
    """The measurement of what synthetic domains do: proxies with and without them, at equal tokens.

    Attributes:
        domains: the synthetic ones; that of `synth` when empty.
        share: of the tokens in the arm with them; their share of all tokens when null.
        seeds: pairs of proxies.
        primary: the metric that decides, named before anything is trained; the verdicts of all others are corrected
            for their number.
        proxy: the model; that of `ablate` when null.
        evaluate: what each proxy is asked.
    """

    domains: tuple[str, ...] = ()
    share: float | None = Field(default=None, gt=0, lt=1)
    seeds: int = Field(default=3, ge=2)
    primary: str = Field(default="bits_per_byte/all", pattern=r"^(bits_per_byte|accuracy|gold_probability)/.+$")
    proxy: TrainRecipe | None = None
    evaluate: EvaluateSettings = EvaluateSettings()


class FlowRecipe(Section):
    """What every recipe says that `loam run` performs.

    Attributes:
        root: where the relative paths of sources and items start, itself relative to the current directory.
        executor: where the tasks of steps on documents run; no part of a result, so not of the resolved recipe.
    """

    name: str = Field(pattern=r"[a-z0-9][a-z0-9._-]*")
    about: str = ""
    root: str = "."
    executor: ExecutorSettings | None = Field(default=None, exclude=True)


class BuildRecipe(FlowRecipe):
    """What a recipe says about the way from raw text to clean documents, whatever comes after."""

    sources: dict[str, SourceSettings] = Field(min_length=1)
    extract: ExtractSettings = ExtractSettings()
    language: dict[str, LanguageSettings] = Field(default_factory=lambda: {"*": LanguageSettings()})
    filters: dict[str, FilterSettings]
    licences: LicenceSettings = LicenceSettings()
    safety: SafetySettings = SafetySettings()
    pii: PiiSettings = PiiSettings()
    decontaminate: DecontaminateSettings = DecontaminateSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    encode: EncodeSettings = EncodeSettings()
    perplexity: PerplexitySettings = PerplexitySettings()
    buckets: BucketSettings = BucketSettings()

    @property
    def domains(self) -> list[str]:
        """Names of the domains that the sources give, sorted."""
        return sorted({source.domain or name for name, source in self.sources.items()})

    def by_domain(self) -> dict[str, Mapping[str, object]]:
        """The sections whose keys are domains (`"*"` for the rest), by name."""
        return {"filters": self.filters, "language": self.language}

    @model_validator(mode="after")
    def _domains_exist(self) -> "BuildRecipe":
        domains = set(self.domains)
        for where, given in self.by_domain().items():
            if unknown := sorted(set(given) - {"*"} - domains):
                have = ", ".join(sorted(domains))
                raise ValueError(f"{where} names {unknown[0]!r}, which no source has; domains: {have}")
            if missing := sorted(domains - set(given)) if "*" not in given else []:
                raise ValueError(f"{where} has no entry for {missing[0]!r} and none for the rest ('*')")
        for domain, settings in self.filters.items():
            try:
                settings.resolved()
            except RecipeError as error:
                raise ValueError(f"filters.{domain}: {error}") from None
        return self


class RunRecipe(BuildRecipe):
    """Raw text to a chosen mixture, a trained model and a published corpus."""

    kind: Literal["run"] = "run"
    dedup: DedupSteps = DedupSteps()
    quality: QualitySettings
    items: ItemSettings = ItemSettings()
    language_model: TrainRecipe
    synth: SynthSettings
    effect: EffectSettings | None = None
    pairing: PairingSettings | None = None
    ablate: AblateSettings
    train: TrainRecipe
    evaluate: EvaluateSettings = EvaluateSettings()
    publish: PublishSettings

    @model_validator(mode="after")
    def _names_exist(self) -> "RunRecipe":
        if unknown := sorted(set(self.ablate.targets) - set(self.domains)):
            have = ", ".join(self.domains)
            raise ValueError(f"ablate.targets names {unknown[0]!r}, which no source has; domains: {have}")
        known = {*self.domains, self.synth.sample_domain}
        if self.effect and (unknown := sorted(set(self.effect.domains) - known)):
            raise ValueError(f"effect.domains names {unknown[0]!r}; there are: {', '.join(sorted(known))}")
        names = {*self.domains, *self.sources}
        if unknown := sorted({*self.quality.positive, *self.quality.negative} - names):
            raise ValueError(f"quality names {unknown[0]!r}, which is no domain or source: {', '.join(sorted(names))}")
        return self
