"""The synthesis section of a recipe, and what its identity is.

What a request depends on (prompts, sampling) and what a verdict depends on (predicates, thresholds) are hashed apart:
after a change of a predicate every answer that was paid for is used again.
"""

from typing import Literal

from pydantic import Field, model_validator

from pipelines.manifest import digest_of
from pipelines.recipe import Section
from synth.answers import GoldKind
from synth.backward import Backward
from synth.engines import EngineSettings
from synth.forward import Forward
from synth.kind import Kind
from synth.prompt_files import load_prompts
from synth.protocol import Sampling
from synth.verification import Limits

DOMAINS = {"cot_backward": "synth_cot", "cot_forward": "synth_forward"}
"""The domain of each recipe's samples, unless the settings name another."""


class SynthSettings(Section):
    """What to make, from which documents, with which engine.

    Attributes:
        recipe: the kind of sample.
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
        domain: of the samples; that of the recipe when not given.
    """

    kind: Literal["synth"] = "synth"
    recipe: Literal["cot_backward", "cot_forward"] = "cot_backward"
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
    domain: str | None = None

    @model_validator(mode="after")
    def _one_attempt(self) -> "SynthSettings":
        if self.recipe == "cot_forward" and self.attempts != 1:
            raise ValueError(f"cot_forward takes attempts: 1; found {self.attempts}: ask for more rollouts instead, "
                             "since another attempt at a refuted chain would raise the pass rate")  # fmt: skip
        return self

    @property
    def sample_domain(self) -> str:
        """The domain of the samples."""
        return self.domain or DOMAINS[self.recipe]


def recipe_hash(settings: SynthSettings) -> str:
    """Identity of what is asked: the recipe's prompt files and sampling."""
    prompts = {stage: prompt.sha256 for stage, prompt in load_prompts(settings.recipe).items()}
    sampling = settings.sampling.model_dump(mode="json")
    return digest_of({"recipe": settings.recipe, "prompts": prompts, "sampling": sampling, "seed": settings.seed})[:16]


def open_kind(settings: SynthSettings) -> Kind:
    """The recipe that the settings name."""
    if settings.recipe == "cot_forward":
        return Forward(settings.rollouts, settings.gold_kind)
    return Backward()
