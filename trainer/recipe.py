"""What to train and how: the sections of a training recipe, and the sizes that follow from them.

Everything that can change a bit of the result is a field here (seed, torch threads, precision), and nothing that cannot
is. The model's shape has a module of its own (`model_recipe.py`).
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipelines.errors import RecipeError
from pipelines.quantities import Tokens
from pipelines.recipe import Section
from trainer.fill_in_middle import FillInMiddle
from trainer.flow_settings import FlowSettings
from trainer.gate_settings import GateSettings
from trainer.lora_settings import LoraSettings
from trainer.model_recipe import ModelSettings
from trainer.spike_guard import SpikeSettings

Decay = Annotated[float, Field(ge=0, lt=1)]
MOST_SAMPLES = 2**31  # of a stage: its order holds ten bytes for each


class OptimizerSettings(Section):
    """Who moves the weights.

    Attributes:
        name: `adamw` (arXiv:1711.05101), or `muon` (arXiv:2502.16982) for the matrices within the layers, with AdamW
            for the rest: embeddings, output projection, routers and norms.
        betas: of AdamW's two moments.
        eps: of AdamW.
        weight_decay: on matrices only, never on norms; times the learning rate.
        momentum: of Muon (Nesterov's).
        newton_schulz_steps: of Muon's orthogonalization.
    """

    name: Literal["adamw", "muon"] = "adamw"
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    momentum: float = Field(default=0.95, ge=0, lt=1)
    newton_schulz_steps: int = Field(default=5, ge=1, lt=100)


class CurriculumPart(Section):
    """A first share of a stage in which samples, batches or the rate are others than the stage's own.

    Attributes:
        until: share of the stage's tokens at which the part ends.
        sequence_length: tokens of one sample; the stage's when not given.
        batch_tokens: tokens of one optimizer step; the stage's when not given.
        rate_factor: on the learning rate.
    """

    until: float = Field(gt=0, lt=1)
    sequence_length: int | None = Field(default=None, ge=2)
    batch_tokens: Tokens | None = Field(default=None, gt=0)
    rate_factor: float = Field(default=1.0, gt=0)


@dataclass(frozen=True)
class Phase:
    """Steps of a stage that have one shape.

    Attributes:
        steps: optimizer steps.
        sequence_length: tokens of one sample.
        batch_tokens: tokens of one step.
        rate_factor: on the learning rate.
    """

    steps: int
    sequence_length: int
    batch_tokens: int
    rate_factor: float

    @property
    def batch_samples(self) -> int:
        """Samples of one optimizer step."""
        return self.batch_tokens // self.sequence_length

    @property
    def samples(self) -> int:
        """Samples of the phase."""
        return self.steps * self.batch_samples

    @property
    def tokens(self) -> int:
        """Tokens of the phase."""
        return self.steps * self.batch_tokens

    def rows(self, micro_batch_tokens: int) -> int:
        """Samples of one forward pass: at least one, at most a batch.

        Args:
            micro_batch_tokens: of the recipe; 0 takes the whole batch.
        """
        return min(self.batch_samples, max(1, (micro_batch_tokens or self.batch_tokens) // self.sequence_length))


class StageSettings(Section):
    """One phase of the training curriculum.

    Attributes:
        name: unique in the recipe.
        tokens: drawn in this stage, rounded up to whole batches.
        sequence_length: tokens of one sample.
        batch_tokens: tokens of one optimizer step; a multiple of `sequence_length`.
        learning_rate: the peak.
        warmup: share of the stage's steps with a linearly rising rate.
        schedule: shape after the warmup; `wsd` holds the peak and falls linearly in the last `decay` share.
        decay: share of the stage's steps in which `wsd` falls.
        min_lr_share: the last rate as a share of the peak.
        blend: name of the blend to draw from; may be left out when there is one.
        curriculum: shorter samples or smaller batches at the stage's beginning, by rising `until`.
        replay: share of the samples that are drawn again from what earlier stages were trained on.
        weight_decay: instead of the optimizer's.
        fill_in_middle: documents told as prefix, suffix, middle; None tells all as they are.
    """

    name: str = "main"
    tokens: Tokens = Field(gt=0)
    sequence_length: int = Field(ge=2)
    batch_tokens: Tokens = Field(gt=0)
    learning_rate: float = Field(gt=0)
    warmup: float = Field(default=0.05, ge=0, lt=1)
    schedule: Literal["cosine", "wsd", "linear", "constant"] = "cosine"
    decay: float = Field(default=0.2, gt=0, le=1)
    min_lr_share: float = Field(default=0.1, ge=0, le=1)
    blend: str | None = None
    curriculum: tuple[CurriculumPart, ...] = ()
    replay: float = Field(default=0.0, ge=0, lt=1)
    weight_decay: float | None = Field(default=None, ge=0)
    fill_in_middle: FillInMiddle | None = None

    @model_validator(mode="after")
    def _whole_samples(self) -> "StageSettings":
        ends = [part.until for part in self.curriculum]
        if sorted(set(ends)) != ends:
            raise ValueError(f"curriculum: each `until` must be above the one before it; found {ends}")
        for batch, length in self._shapes():
            if batch % length:
                raise ValueError(f"batch_tokens ({batch}) must be a multiple of sequence_length ({length})")
            if max(self.tokens, batch) // length > MOST_SAMPLES:
                raise ValueError(
                    f"tokens ({max(self.tokens, batch)}) in samples of {length} are more than {MOST_SAMPLES} samples; "
                    "split the stage or lengthen its samples"
                )
        if self.schedule == "wsd" and self.warmup + self.decay > 1:
            raise ValueError(
                f"warmup ({self.warmup:g}) and decay ({self.decay:g}) overlap: the rate would jump; "
                "together they are at most 1"
            )
        return self

    def _shapes(self) -> list[tuple[int, int]]:
        """Tokens of a batch and of a sample, part by part."""
        parts = [(part.batch_tokens or self.batch_tokens, part.sequence_length or self.sequence_length)
                 for part in self.curriculum]  # fmt: skip
        return [*parts, (self.batch_tokens, self.sequence_length)]

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The stage's parts in order, each in whole steps; one when there is no curriculum."""
        ends = [round(part.until * self.tokens) for part in self.curriculum] + [self.tokens]
        factors = [part.rate_factor for part in self.curriculum] + [1.0]
        phases, done = [], 0
        for end, (batch, length), factor in zip(ends, self._shapes(), factors, strict=True):
            if (steps := -(-(end - done) // batch)) > 0:
                phases.append(Phase(steps, length, batch, factor))
                done += steps * batch
        return tuple(phases)

    @property
    def batch_samples(self) -> int:
        """Samples of one optimizer step."""
        return self.batch_tokens // self.sequence_length

    @property
    def steps(self) -> int:
        """Optimizer steps of the stage."""
        return sum(phase.steps for phase in self.phases)

    @property
    def trained_tokens(self) -> int:
        """Tokens of the stage's whole batches."""
        return sum(phase.tokens for phase in self.phases)

    @property
    def fresh_tokens(self) -> int:
        """Those of them that no earlier stage was trained on: without what is replayed."""
        return round(self.trained_tokens * (1 - self.replay))

    @property
    def longest(self) -> int:
        """Tokens of its longest sample."""
        return max(phase.sequence_length for phase in self.phases)

    def learning_rate_at(self, step: int) -> float:
        """The rate of one step.

        Args:
            step: from 0 to `steps - 1`.
        """
        warm = round(self.warmup * self.steps)
        if step < warm:
            share = (step + 1) / (warm + 1)
        elif self.schedule == "constant":
            share = 1.0
        else:
            done = (step - warm + 1) / (self.steps - warm)  # 1 at the last step
            if self.schedule == "cosine":
                share = self.min_lr_share + (1 - self.min_lr_share) * 0.5 * (1 + math.cos(math.pi * done))
            else:
                falling = 1.0 if self.schedule == "linear" else self.decay
                fallen = max(0.0, ((step + 1) / self.steps - (1 - falling)) / falling) if falling < 1 else done
                share = 1 - (1 - self.min_lr_share) * fallen
        return self.learning_rate * share * self._factor_at(step)

    def _factor_at(self, step: int) -> float:
        for phase in self.phases:
            if step < phase.steps:
                return phase.rate_factor
            step -= phase.steps
        raise IndexError(step)


class TrainRecipe(Section):
    """A whole training run.

    Attributes:
        name: of the model.
        model: its shape.
        stages: phases in order; the optimizer's state carries over.
        optimizer: AdamW's or Muon's numbers.
        lora: train low-rank updates of some weights only; None trains every weight.
        flow_matching: a second objective, on the next token's embedding; None has the next token alone.
        grad_clip: largest global gradient norm.
        spikes: steps that are skipped; None takes every step.
        gates: what is watched after each stage, and done when a source is forgotten; None watches nothing.
        seed: of weights and, apart from them, of the order of data.
        threads: torch threads; in the recipe because another number may sum in another order.
        precision: of the matrix products; weights (and so the optimizer's masters), router, norms and losses are
            always fp32.
        separate_documents: attention and positions begin anew with every document of a packed sample.
        recompute: hold only what enters each layer, and compute the rest again in the backward pass.
        compile: compile the layers with `torch.compile`; needs a C++ compiler on a CPU.
        deterministic: refuse every operation whose bits may differ from one time to the next; of use on a GPU.
        micro_batch_tokens: tokens of one forward pass; 0 takes the whole batch at once.
        checkpoint_every: optimizer steps between checkpoints.
        checkpoints_kept: the last ones, in the working folder; an older one serves when the last is damaged.
        checkpoint_permanent: every so many steps a checkpoint stays for good, in `checkpoints/`; 0: none.
        validate_every: optimizer steps between held-out losses; 0 measures once, at the end.
        validation_tokens: tokens per domain of a held-out loss.
        epoch_cap: most passes over any domain, all stages together.
        device: `auto` takes a GPU when there is one.
    """

    kind: Literal["train"] = "train"
    name: str
    model: ModelSettings
    stages: list[StageSettings] = Field(min_length=1)
    optimizer: OptimizerSettings = OptimizerSettings()
    lora: LoraSettings | None = None
    flow_matching: FlowSettings | None = None
    grad_clip: float = Field(default=1.0, gt=0)
    spikes: SpikeSettings | None = None
    gates: GateSettings | None = None
    seed: int = Field(default=0, ge=0, lt=2**32)
    threads: int = Field(default=1, ge=1, le=1024)
    precision: Literal["fp32", "bf16"] = "fp32"
    separate_documents: bool = False
    recompute: bool = False
    compile: bool = False
    deterministic: bool = False
    micro_batch_tokens: Tokens = Field(default=0, ge=0)
    checkpoint_every: int = Field(default=200, ge=1)
    checkpoints_kept: int = Field(default=2, ge=1)
    checkpoint_permanent: int = Field(default=0, ge=0)
    validate_every: int = Field(default=0, ge=0)
    validation_tokens: Tokens = Field(default=65_536, gt=0)
    epoch_cap: float | None = Field(default=None, gt=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @model_validator(mode="after")
    def _consistent(self) -> "TrainRecipe":
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"two stages have one name: {', '.join(names)}")
        if self.longest_sample > self.model.max_sequence:
            raise ValueError(
                f"a stage's sequence_length is {self.longest_sample}, the model's max_sequence "
                f"{self.model.max_sequence}"
            )
        if (shortest := min(phase.sequence_length for s in self.stages for phase in s.phases)) <= self.model.mtp_layers:
            raise ValueError(
                f"model.mtp_layers ({self.model.mtp_layers}) needs samples of more tokens than that, a stage has "
                f"{shortest}"
            )
        if self.stages[0].replay:
            raise ValueError(f"stage {names[0]} is the first: there is nothing that it could replay")
        if self.checkpoint_permanent % self.checkpoint_every:
            raise ValueError(
                f"checkpoint_permanent ({self.checkpoint_permanent}) must be a multiple of checkpoint_every "
                f"({self.checkpoint_every})"
            )
        return self

    @property
    def longest_sample(self) -> int:
        """Tokens of the longest sample of any stage."""
        return max(stage.longest for stage in self.stages)

    @property
    def tokens(self) -> int:
        """Tokens trained on, all stages together."""
        return sum(stage.trained_tokens for stage in self.stages)

    @property
    def fresh_tokens(self) -> int:
        """Those of them that are not replayed."""
        return sum(stage.fresh_tokens for stage in self.stages)

    @property
    def pass_tokens(self) -> int:
        """Tokens of the largest forward pass."""
        phases = (phase for stage in self.stages for phase in stage.phases)
        return max(phase.rows(self.micro_batch_tokens) * phase.sequence_length for phase in phases)

    @property
    def training_flops(self) -> float:
        """Floating-point operations of all stages, forward and backward."""
        phases = [phase for stage in self.stages for phase in stage.phases]
        return sum(phase.tokens * self.model.flops_per_token(phase.sequence_length) for phase in phases)

    def require_vocabulary(self) -> None:
        """Refuse a model whose vocabulary was not filled in, and tokens that it does not know.

        Raises:
            RecipeError: `model.vocab_size` is 0, or a token for filling in is a name or beyond the vocabulary.
        """
        if self.model.vocab_size == 0:
            raise RecipeError(f"recipe {self.name!r}: model.vocab_size is not set; give it, or --tokenizer")
        for cut in (stage.fill_in_middle for stage in self.stages if stage.fill_in_middle):
            if (highest := max(cut.token_ids())) >= self.model.vocab_size:
                raise RecipeError(
                    f"recipe {self.name!r}: fill_in_middle names token {highest}, the vocabulary has "
                    f"{self.model.vocab_size}; give tokens of the tokenizer"
                )


def with_vocabulary(recipe: TrainRecipe, tokenizer: Path) -> TrainRecipe:
    """The recipe over the vocabulary of a tokenizer; names of tokens become ids.

    Args:
        recipe: what to train.
        tokenizer: file or folder that `pipelines.tokenizer.load_tokenizer` reads.

    Raises:
        RecipeError: the tokenizer lacks a token that the recipe names.
    """
    from pipelines.tokenizer import load_tokenizer

    loaded = load_tokenizer(tokenizer)
    stages = [
        stage.model_copy(update={"fill_in_middle": stage.fill_in_middle.with_ids(loaded.backend.token_to_id)})
        if stage.fill_in_middle
        else stage
        for stage in recipe.stages
    ]
    return recipe.model_copy(update={"model": recipe.model.with_vocabulary(loaded.vocab_size), "stages": stages})
