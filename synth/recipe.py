"""The synthesis section of a recipe, and what its identity is.

What a request depends on (prompts, sampling) and what a verdict depends on (predicates, thresholds) are hashed apart:
after a change of a predicate every answer that was paid for is used again. A kind of sample is one line of `KINDS`: its
module is imported when a recipe asks for it.
"""

import difflib
from dataclasses import dataclass
from importlib import import_module
from typing import Literal

from pydantic import Field, field_validator, model_validator

from pipelines.manifest import digest_of
from pipelines.model_cost import HubModel
from pipelines.quantities import Tokens
from pipelines.recipe import Section
from synth.answers import GoldKind
from synth.engines import EngineSettings
from synth.forms_settings import FormsSettings
from synth.kind import Inputs, Kind
from synth.prompt_files import Prompts, load_prompts
from synth.protocol import Sampling
from synth.rephrase_settings import ROUTING, TASKS, RephraseSettings
from synth.retrieval_settings import RagSettings
from synth.screen_settings import GroundingSettings, JudgeSettings, ScreenSettings
from synth.verification import Limits


@dataclass(frozen=True)
class Entry:
    """A kind of sample.

    Attributes:
        domain: of its samples, unless the settings name another.
        opener: `module:function`, called with the settings and the `Inputs`; imported only then.
        section: the settings of its own, by name; part of what is asked.
        prompts: the kind whose prompts stand in where it has none of its own.
    """

    domain: str
    opener: str
    section: str | None = None
    prompts: str | None = None


KINDS: dict[str, Entry] = {
    "cot_backward": Entry("synth_cot", "synth.backward:open_backward"),
    "cot_forward": Entry("synth_forward", "synth.forward:open_forward"),
    "cot_rag": Entry("synth_rag", "synth.rag:open_rag", section="rag"),
    **{task: Entry(f"synth_{task}", "synth.rephrase:open_rephrase", section="rephrase") for task in TASKS},
    **{
        f"cot_synthesis_{domain}": Entry(
            f"cot_synthesis_{domain}", "synth.backward:open_backward", prompts="cot_backward"
        )
        for domain in ("CC", "code", "math", "wiki", "arxiv", "OpenSource")
    },
}


class SynthSettings(Section):
    """What to make, from which documents, with which engine.

    Attributes:
        recipe: the kind of sample, one of `KINDS`.
        about: half a line for people.
        rollouts: chains per question (`cot_forward`).
        gold_kind: what references are, where a document's metadata do not say (`cot_forward`).
        max_documents: drawn among the eligible by hash of seed and id.
        min_chars: of a document; shorter ones are not eligible.
        max_chars: longer ones are not eligible: a prompt holds the whole document.
        seed: of the draw and of sampling.
        attempts: calls per stage until one answer passes; each has its own seed.
        sampling: how tokens are drawn.
        limits: thresholds of verification.
        engine: who answers.
        generator: the model of production and what it is assumed to cost; for `loam check` only.
        rephrase: how documents are cut for a rephrasing (`diverse_qa`, `distill`, `extract_knowledge`,
            `knowledge_list`, `wrap`).
        domain: of the samples; that of the recipe when not given.
        budget_tokens: hard ceiling of tokens read and written; what is not asked for it is rejected as `budget`.
        budget_usd: the same in US dollars, by the engine's prices.
        rag: evidence (`cot_rag`).
        screen: what else is looked for in finished samples.
        forms: in which other forms samples are written.
        judge: who judges finished samples; nobody when not given.
        grounding: which language model must find the document likelier after question and chain; none when not given.
    """

    kind: Literal["synth"] = "synth"
    recipe: str = "cot_backward"
    about: str = ""
    rollouts: int = Field(default=4, ge=1)
    gold_kind: GoldKind = "math"
    max_documents: int = Field(default=1000, ge=1)
    min_chars: int = Field(default=400, ge=1)
    max_chars: int = Field(default=12_000, ge=1)
    seed: int = 0
    attempts: int = Field(default=1, ge=1)
    sampling: Sampling = Sampling()
    limits: Limits = Limits()
    engine: EngineSettings = EngineSettings()
    generator: HubModel | None = None
    rephrase: RephraseSettings = RephraseSettings()
    domain: str | None = None
    budget_tokens: Tokens | None = Field(default=None, ge=1)
    budget_usd: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    rag: RagSettings = RagSettings()
    judge: JudgeSettings | None = None
    grounding: GroundingSettings | None = None
    screen: ScreenSettings = ScreenSettings()
    forms: FormsSettings = FormsSettings()

    @field_validator("recipe")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in KINDS:
            near = difflib.get_close_matches(name, KINDS, n=1)
            meant = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"unknown kind of sample {name!r}; {meant}known: {', '.join(sorted(KINDS))}")
        return name

    @model_validator(mode="after")
    def _one_attempt(self) -> "SynthSettings":
        if self.recipe == "cot_forward" and self.attempts != 1:
            raise ValueError(f"cot_forward takes attempts: 1; found {self.attempts}: ask for more rollouts instead, "
                             "since another attempt at a refuted chain would raise the pass rate")  # fmt: skip
        return self

    @property
    def asked(self) -> "SynthSettings":
        """The same without what only an estimate depends on: what a step's identity covers."""
        unpriced = {name: section.model_copy(update={"hub": None})
                    for name in ("judge", "grounding") if (section := getattr(self, name)) is not None}  # fmt: skip
        return self.model_copy(update={"generator": None, "about": "", **unpriced})

    @property
    def sample_domain(self) -> str:
        """The domain of the samples."""
        return self.domain or KINDS[self.recipe].domain


def prompts_of(settings: SynthSettings) -> Prompts:
    """The prompts of a recipe, in every language; where it has none of its own, those of the kind that it varies."""
    base = KINDS[settings.recipe].prompts
    return load_prompts(*((base,) if base else ()), settings.recipe)


def recipe_hash(settings: SynthSettings, identity: str = "") -> str:
    """Identity of what is asked: prompt files, the kind's own settings and `identity`, sampling."""
    section = KINDS[settings.recipe].section
    own = {section: getattr(settings, section).model_dump(mode="json", exclude=ROUTING)} if section else {}
    asked = {"recipe": settings.recipe, "prompts": prompts_of(settings).hashes(), "seed": settings.seed, **own}
    if identity:
        asked["identity"] = identity
    return digest_of({**asked, "sampling": settings.sampling.model_dump(mode="json")})[:16]


def open_kind(settings: SynthSettings, inputs: Inputs) -> Kind:
    """The kind that the settings name."""
    module, _, name = KINDS[settings.recipe].opener.partition(":")
    return getattr(import_module(module), name)(settings, inputs)
