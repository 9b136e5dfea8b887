"""What training a model takes of a device's memory, part by part, before anything is started.

Weights, gradients and the optimizer's state are exact. Activations are what autograd keeps between forward and backward
pass, counted tensor by tensor from the code of the layers; a test holds the count against what torch really keeps.
Temporaries of a kernel and the allocator's slack come on top: on a GPU, leave a tenth.
"""

from dataclasses import dataclass
from typing import Literal

from trainer.model_recipe import ModelSettings
from trainer.recipe import TrainRecipe

FP32 = 4
OPTIMIZER_BYTES = {"adamw": 2 * FP32, "muon": FP32}  # per trained number; Muon's vectors and tables have AdamW's


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes on one device.

    Attributes:
        weights: fp32.
        gradients: fp32.
        optimizer: its moments, fp32.
        casts: bf16 copies of the weights that the backward pass reads; 0 in fp32.
        activations: kept from forward to backward pass of one micro-batch.
        loss: gradients of hidden states and output projection, which the loss makes in the forward pass.
    """

    weights: float
    gradients: float
    optimizer: float
    casts: float
    activations: float
    loss: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.casts + self.activations + self.loss


def training_memory(
    model: ModelSettings, tokens: int, precision: Literal["fp32", "bf16"] = "fp32",
    optimizer: Literal["adamw", "muon"] = "adamw", recompute: bool = False, device: Literal["cpu", "cuda"] = "cuda",
) -> TrainingMemory:  # fmt: skip
    """Memory of one training step.

    Args:
        model: its shape, with a vocabulary.
        tokens: of one micro-batch.
        precision: of the matrix products.
        optimizer: whose state is kept.
        recompute: only a layer's input is kept; the layer at work is counted whole.
        device: kernels keep different things on either.
    """
    count = model.parameters()
    compute = FP32 if precision == "fp32" else 2
    layers = [_layer(model, index, compute, device) for index in range(model.layers)]
    further = model.mtp_layers * (_layer(model, model.layers, compute, device) + _joining(model, compute, device))
    kept = sum(layers) + further
    multiplied = count - (0 if model.tie_embeddings else model.vocab_size * model.width)  # all but an embedding's table
    cast = 0 if precision == "fp32" else compute * multiplied
    if recompute:
        streams = FP32 * model.width * (model.layers + 2 * model.mtp_layers)
        kept, cast = streams + max(layers), cast / (model.layers + model.mtp_layers)
    passes = 1 + model.mtp_layers
    tables = passes * FP32 * model.vocab_size * model.width
    return TrainingMemory(
        weights=FP32 * count,
        gradients=FP32 * count,
        optimizer=OPTIMIZER_BYTES[optimizer] * count,
        casts=cast,
        activations=tokens * (kept + _norm(model.width, device)),
        loss=tables + tokens * passes * compute * model.width,
    )


def memory_of(recipe: TrainRecipe) -> TrainingMemory:
    """Memory of a recipe's largest forward pass, on a GPU unless it asks for the CPU."""
    kind = "cpu" if recipe.device == "cpu" else "cuda"
    return training_memory(
        recipe.model, recipe.pass_tokens, recipe.precision, recipe.optimizer.name, recipe.recompute, kind
    )


def _norm(width: int, device: str) -> int:
    """Bytes that an RMSNorm keeps of a token; torch's CPU form keeps the normed input beside the input."""
    return FP32 * width * (2 if device == "cpu" else 1)


def _layer(model: ModelSettings, index: int, compute: int, device: str) -> int:
    """Bytes that a layer keeps of a token."""
    outside = 2 * (_norm(model.width, device) + compute * model.width)  # each norm, and what the projections read
    return outside + _attention(model, compute, device) + _feed_forward(model, index, compute)


def _attention(model: ModelSettings, compute: int, device: str) -> int:
    """Bytes that attention keeps of a token: what the kernel reads and gives, and what the projections read."""
    inner = FP32 if device == "cpu" else compute  # of the attention kernel: trainer/attention.py
    queries, output = model.heads * model.head_dim, model.heads * model.value_dim
    sums = FP32 * model.heads  # of the weights' logarithms
    if (mla := model.mla) is None:
        keys = model.kv_heads * model.head_dim
        normed = 0 if model.qk_norm == "none" else _norm(queries + keys, device)
        cast = compute * output if inner != compute else 0
        return normed + inner * (queries + 2 * keys + output) + cast + sums
    latents = mla.kv_rank + (mla.q_rank or 0)
    read = _norm(latents, device) + FP32 * mla.rope_dim + compute * latents  # the rotated key lies beside a latent
    if device == "cpu":  # values and what comes of them are padded to the keys' size
        return read + inner * 4 * queries + compute * output + sums
    expanded = model.heads * (model.head_dim - mla.rope_dim) + output
    return read + inner * (2 * queries + expanded + output) + sums


def _feed_forward(model: ModelSettings, index: int, compute: int) -> int:
    if not model.has_experts(index):
        return 4 * compute * model.ffn_width  # gate, its SiLU, up and their product
    routed = 2 * compute * model.experts_per_token * model.expert_width  # the rest is computed again
    scores = FP32 * (model.width if compute != FP32 else 0) + 2 * FP32 * model.experts  # the router reads fp32
    return routed + scores + 4 * compute * model.shared_hidden


def _joining(model: ModelSettings, compute: int, device: str) -> int:
    """Bytes that a prediction module keeps of a token around its layer."""
    return 3 * _norm(model.width, device) + 2 * compute * model.width + compute * model.width
