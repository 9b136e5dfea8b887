"""What training a model takes of a device's memory, part by part, before anything is started.

Weights, gradients and the optimizer's state are exact. Activations are what autograd keeps between forward and backward
pass, counted tensor by tensor from the code of the layers; a test holds the count against what torch really keeps.
Temporaries of a kernel and the allocator's slack come on top: on a GPU, leave a tenth.
"""

import math
import os
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from pipelines.errors import RecipeError
from trainer.lora import covered_names
from trainer.lora_settings import LoraSettings
from trainer.model import Decoder
from trainer.model_recipe import ModelSettings
from trainer.optimizer import is_turned
from trainer.recipe import TrainRecipe

FP32 = 4


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes on one device.

    Attributes:
        weights: fp32.
        gradients: fp32.
        optimizer: its moments, fp32.
        casts: copies of the weights that the backward pass reads, in bf16 or with their updates; 0 in fp32 without.
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
    lora: LoraSettings | None = None,
) -> TrainingMemory:  # fmt: skip
    """Memory of one training step.

    Args:
        model: its shape, with a vocabulary.
        tokens: of one micro-batch.
        precision: of the matrix products.
        optimizer: whose state is kept.
        recompute: only a layer's input is kept; the layer at work is counted whole.
        device: kernels keep different things on either.
        lora: low-rank updates alone are trained, each summed to its weight while that is in use; activations are then
            an upper bound, since frozen norms keep less.
    """
    count, trained = model.parameters(), _trained(model, optimizer, lora)
    compute = FP32 if precision == "fp32" else 2
    layers = [_layer(model, index, compute, device) for index in range(model.layers)]
    further = model.mtp_layers * (_layer(model, model.layers, compute, device) + _joining(model, compute, device))
    kept = sum(layers) + further
    multiplied = count - (0 if model.tie_embeddings else model.vocab_size * model.width)  # all but an embedding's table
    cast = FP32 * trained.summed if precision == "fp32" else compute * multiplied
    if recompute:
        streams = FP32 * model.width * (model.layers + 2 * model.mtp_layers)
        kept, cast = streams + max(layers), cast / (model.layers + model.mtp_layers)
    passes = 1 + model.mtp_layers
    tables = passes * FP32 * model.vocab_size * model.width * trained.output
    return TrainingMemory(
        weights=FP32 * (count if lora is None else count + trained.numbers),
        gradients=FP32 * trained.numbers,
        optimizer=FP32 * trained.moments,
        casts=cast,
        activations=tokens * (kept + _norm(model.width, device)),
        loss=tables + tokens * passes * compute * model.width,
    )


def memory_of(recipe: TrainRecipe) -> TrainingMemory:
    """Memory of a recipe's largest forward pass, on a GPU unless it asks for the CPU."""
    kind = "cpu" if recipe.device == "cpu" else "cuda"
    return training_memory(
        recipe.model, recipe.pass_tokens, recipe.precision, recipe.optimizer.name, recipe.recompute, kind, recipe.lora
    )


def require_memory(recipe: TrainRecipe, device: torch.device) -> None:
    """Refuse what no device of this size can train, before a kernel or the system ends it half-way.

    Args:
        recipe: what is to be trained.
        device: where.

    Raises:
        RecipeError: the account is above the device's whole memory.
    """
    if device.type == "cuda":
        there = torch.cuda.get_device_properties(device).total_memory
    else:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    needed = memory_of(recipe)
    if needed.total > there:
        state = needed.weights + needed.gradients + needed.optimizer
        raise RecipeError(
            f"recipe {recipe.name!r}: training takes about {needed.total / 2**30:,.1f} GiB (weights, gradients and "
            f"optimizer {state / 2**30:,.1f}), this {device.type} has {there / 2**30:,.1f}; a smaller "
            "micro_batch_tokens or recompute: true lowers the rest, `loam check` shows each part"
        )


class _Trained(NamedTuple):
    """Counts of numbers: those trained, their moments, those of weights with an update; is the output trained?"""

    numbers: int
    moments: int
    summed: int
    output: bool


def _trained(model: ModelSettings, optimizer: str, lora: LoraSettings | None) -> _Trained:
    """What of a model is trained; Muon keeps one moment of what it moves, AdamW two of all else."""
    count = model.parameters()
    with torch.device("meta"):
        built = Decoder(model.with_vocabulary(model.vocab_size or 1))  # a table is none of what Muon moves
    if lora is None:
        turned = sum(p.numel() for name, p in built.named_parameters() if is_turned(name, p))
        return _Trained(count, 2 * count - (turned if optimizer == "muon" else 0), 0, True)
    covered = {name: built.get_parameter(name).shape for name in covered_names(built, lora)}
    numbers = sum(lora.rank * (rows + columns) * math.prod(stack) for *stack, rows, columns in covered.values())
    summed = sum(shape.numel() for shape in covered.values())
    return _Trained(numbers, numbers * (1 if optimizer == "muon" else 2), summed, "lm_head.weight" in covered)


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
