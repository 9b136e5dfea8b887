"""What to train and how: the sections of a training recipe, and the sizes that follow from them.

Everything that can change a bit of the result is a field here (seed, torch threads, precision), and nothing that cannot
is. The model's two forms are those of Qwen3 (dense) and dots.llm1 (Qwen3 attention with DeepSeek-V3 experts,
arXiv:2506.05767), so that an exported model needs no code of ours.
"""

import math
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from pipelines.errors import RecipeError
from pipelines.quantities import Tokens
from pipelines.recipe import Section

GROUPED_ALIGNMENT = 8  # torch.nn.functional.grouped_mm wants strides of 16 bytes: 8 bf16 values


class ModelSettings(Section):
    """The shape of a decoder.

    Attributes:
        layers: decoder layers.
        width: size of the residual stream.
        heads: query heads.
        kv_heads: key and value heads; divides `heads`.
        head_dim: size of one head; even, since rotary pairs are formed.
        ffn_width: hidden size of a dense SwiGLU layer.
        vocab_size: tokens that the embedding knows; 0 until the tokenizer is known (`with_vocabulary`).
        max_sequence: positions that the model declares.
        rope_theta: base of the rotary wavelengths.
        norm_eps: added to the mean square in RMSNorm.
        tie_embeddings: the output projection is the embedding.
        experts: routed experts per layer; 0 makes the model dense.
        experts_per_token: routed experts that a token visits.
        expert_width: hidden size of one expert.
        shared_experts: experts that every token visits, held as one of `shared_experts * expert_width`.
        dense_layers: leading layers that stay dense.
        routed_scaling: factor on the weighted sum of routed experts.
        bias_update_rate: step of the aux-loss-free balancing bias (arXiv:2408.15664); 0 turns it off.
        aux_loss: coefficient of the sequence-wise balance loss (arXiv:2412.19437, eq. 17); 0 turns it off.
    """

    layers: int = Field(ge=1)
    width: int = Field(ge=1)
    heads: int = Field(ge=1)
    kv_heads: int = Field(ge=1)
    head_dim: int = Field(ge=2)
    ffn_width: int = Field(ge=1)
    vocab_size: int = Field(default=0, ge=0)
    max_sequence: int = Field(default=2048, ge=1)
    rope_theta: float = Field(default=10_000.0, gt=0)
    norm_eps: float = Field(default=1e-6, gt=0)
    tie_embeddings: bool = True
    experts: int = Field(default=0, ge=0)
    experts_per_token: int = Field(default=2, ge=1)
    expert_width: int = Field(default=0, ge=0)
    shared_experts: int = Field(default=1, ge=1)
    dense_layers: int = Field(default=1, ge=0)
    routed_scaling: float = 1.0
    bias_update_rate: float = Field(default=1e-3, ge=0)
    aux_loss: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> "ModelSettings":
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads ({self.kv_heads}) must divide heads ({self.heads})")
        if self.head_dim % 2:
            raise ValueError(f"head_dim ({self.head_dim}) must be even: rotary embeddings turn pairs")
        if self.experts:
            self._check_experts()
        return self

    def _check_experts(self) -> None:
        if self.experts < 2 or self.experts_per_token > self.experts:
            raise ValueError(f"experts_per_token ({self.experts_per_token}) of {self.experts} experts: need 2 or more")
        for field, value in (("width", self.width), ("expert_width", self.expert_width)):
            if value < 1 or value % GROUPED_ALIGNMENT:
                raise ValueError(f"{field} ({value}) must be a multiple of {GROUPED_ALIGNMENT} in a model with experts")

    def with_vocabulary(self, vocab_size: int) -> "ModelSettings":
        """The same shape over `vocab_size` tokens."""
        return self.model_copy(update={"vocab_size": vocab_size})

    def has_experts(self, layer: int) -> bool:
        """Whether this layer (from 0) is a mixture of experts."""
        return self.experts > 0 and layer >= self.dense_layers

    def parameters(self) -> int:
        """Trained numbers in the model, tied ones counted once."""
        return self._embeddings() + self.width + sum(self._layer(layer, self.experts) for layer in range(self.layers))

    def active_parameters(self) -> int:
        """Trained numbers that one token meets: all but the experts that it does not visit."""
        visited = self.experts_per_token
        return self._embeddings() + self.width + sum(self._layer(layer, visited) for layer in range(self.layers))

    def flops_per_token(self, sequence_length: int) -> float:
        """Floating-point operations of one training token, forward and backward.

        `6 * (active parameters - embedding table + output projection)
        + 6 * layers * heads * head_dim * sequence_length`:
        the table is a look-up, a tied one is multiplied once as output projection; the second term is attention's two
        products (2 * 2 * T * heads * head_dim forward, three times that with backward) at the causal half.
        """
        multiplied = self.active_parameters() - (0 if self.tie_embeddings else self.vocab_size * self.width)
        return 6.0 * multiplied + 6.0 * self.layers * self.heads * self.head_dim * sequence_length

    def _embeddings(self) -> int:
        return self.vocab_size * self.width * (1 if self.tie_embeddings else 2)

    def _layer(self, layer: int, experts: int) -> int:
        attention = 2 * self.width * self.head_dim * (self.heads + self.kv_heads)
        norms = 2 * self.width + 2 * self.head_dim
        if not self.has_experts(layer):
            return attention + norms + 3 * self.width * self.ffn_width
        router = self.experts * self.width
        return attention + norms + router + 3 * self.width * self.expert_width * (experts + self.shared_experts)


class OptimizerSettings(Section):
    """AdamW (arXiv:1711.05101); decay acts on matrices only, never on norms."""

    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)


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

    @model_validator(mode="after")
    def _whole_samples(self) -> "StageSettings":
        if self.batch_tokens % self.sequence_length:
            raise ValueError(
                f"batch_tokens ({self.batch_tokens}) must be a multiple of sequence_length ({self.sequence_length})"
            )
        return self

    @property
    def batch_samples(self) -> int:
        """Samples of one optimizer step."""
        return self.batch_tokens // self.sequence_length

    @property
    def steps(self) -> int:
        """Optimizer steps of the stage."""
        return -(-self.tokens // self.batch_tokens)

    def learning_rate_at(self, step: int) -> float:
        """The rate of one step.

        Args:
            step: from 0 to `steps - 1`.
        """
        warm = round(self.warmup * self.steps)
        if step < warm:
            return self.learning_rate * (step + 1) / (warm + 1)
        done = (step - warm + 1) / (self.steps - warm)  # 1 at the last step
        if self.schedule == "constant":
            share = 1.0
        elif self.schedule == "cosine":
            share = self.min_lr_share + (1 - self.min_lr_share) * 0.5 * (1 + math.cos(math.pi * done))
        else:
            falling = 1.0 if self.schedule == "linear" else self.decay
            fallen = max(0.0, ((step + 1) / self.steps - (1 - falling)) / falling) if falling < 1 else done
            share = 1 - (1 - self.min_lr_share) * fallen
        return self.learning_rate * share


class TrainRecipe(Section):
    """A whole training run.

    Attributes:
        name: of the model.
        model: its shape.
        stages: phases in order; the optimizer's state carries over.
        optimizer: AdamW's numbers.
        grad_clip: largest global gradient norm.
        seed: of weights and, apart from them, of the order of data.
        threads: torch threads; in the recipe because another number may sum in another order.
        precision: of the matrix products; weights, router, norms and losses are always fp32.
        micro_batch_tokens: tokens of one forward pass; 0 takes the whole batch at once.
        checkpoint_every: optimizer steps between checkpoints.
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
    grad_clip: float = Field(default=1.0, gt=0)
    seed: int = Field(default=0, ge=0, lt=2**32)
    threads: int = Field(default=1, ge=1)
    precision: Literal["fp32", "bf16"] = "fp32"
    micro_batch_tokens: Tokens = Field(default=0, ge=0)
    checkpoint_every: int = Field(default=200, ge=1)
    validate_every: int = Field(default=0, ge=0)
    validation_tokens: Tokens = Field(default=65_536, gt=0)
    epoch_cap: float | None = Field(default=None, gt=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @model_validator(mode="after")
    def _consistent(self) -> "TrainRecipe":
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"two stages have one name: {', '.join(names)}")
        longest = max(stage.sequence_length for stage in self.stages)
        if longest > self.model.max_sequence:
            raise ValueError(
                f"a stage's sequence_length is {longest}, the model's max_sequence {self.model.max_sequence}"
            )
        return self

    @property
    def tokens(self) -> int:
        """Tokens trained on, all stages together."""
        return sum(stage.steps * stage.batch_tokens for stage in self.stages)

    @property
    def training_flops(self) -> float:
        """Floating-point operations of all stages, forward and backward."""
        each = (stage.steps * stage.batch_tokens * self.model.flops_per_token(stage.sequence_length)
                for stage in self.stages)  # fmt: skip
        return sum(each)

    def require_vocabulary(self) -> None:
        """Refuse a model whose vocabulary was not filled in.

        Raises:
            RecipeError: `model.vocab_size` is 0.
        """
        if self.model.vocab_size == 0:
            raise RecipeError(f"recipe {self.name!r}: model.vocab_size is not set; give it or train through a flow")


def with_vocabulary(recipe: TrainRecipe, tokenizer: Path) -> TrainRecipe:
    """The recipe over the vocabulary of a tokenizer.

    Args:
        recipe: what to train.
        tokenizer: file or folder that `pipelines.tokenizer.load_tokenizer` reads.
    """
    from pipelines.tokenizer import load_tokenizer

    return recipe.model_copy(update={"model": recipe.model.with_vocabulary(load_tokenizer(tokenizer).vocab_size)})
