"""Low-rank adaptation of any matrix of the decoder: dense, or a stack of experts (LoRA, arXiv:2106.09685).

The update `scale * B @ A` is added to the weight itself whenever that is used (torch's parametrizations), not to
activations beside it. So there is one way for projections, stacked experts and routers, the same kernels run as in full
training, and merging is the very sum that was trained with, to the bit. It costs one more copy of a weight while that
is in use, and `rank * experts / (tokens * experts per token)` more operations: 4% at 64 experts, 6 of them, rank 16 and
4,096 tokens.

Legend: E experts (absent for a single matrix), O rows, I columns, R rank.
"""

import fnmatch
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import xxhash
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pipelines.errors import RecipeError
from trainer.lora_settings import LoraSettings
from trainer.model import Decoder

ORIGINAL = ".original"  # the name that torch gives to what is parametrized
KINDS = (
    ("further tokens", "mtp.*"), ("routed experts", "*.mlp.experts.*"), ("shared experts", "*.mlp.shared_expert*"),
    ("routers", "*.mlp.gate.*"), ("attention", "*.self_attn.*"), ("dense feed-forward", "*.mlp.*"), ("embeddings", "*"),
)  # fmt: skip


class LowRank(nn.Module):
    """A weight plus its update.

    Attributes:
        lora_A: fp32 ([E,] R, I), drawn.
        lora_B: fp32 ([E,] O, R), zero at first, so that training begins at the model as it was.
        scale: factor on the product.
    """

    def __init__(self, weight: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        *stack, rows, columns = weight.shape
        new = {"dtype": torch.float32, "device": weight.device}
        self.lora_A = nn.Parameter(torch.empty(*stack, rank, columns, **new))
        self.lora_B = nn.Parameter(torch.zeros(*stack, rows, rank, **new))
        self.scale = scale

    def forward(self, weight: Tensor) -> Tensor:
        """The weight that is computed with, ([E,] O, I)."""
        return _added(weight, self.lora_A, self.lora_B, self.scale)


def _added(weight: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
    add = torch.baddbmm if weight.dim() == 3 else torch.addmm
    return add(weight, lora_B, lora_A, alpha=scale)


@dataclass(frozen=True)
class Coverage:
    """What part of a model a LoRA covers.

    Attributes:
        trained: numbers in the updates.
        covered: numbers in the weights that have one.
        total: numbers in the model, updates apart.
        by_kind: kind of parameter -> share of its numbers that are covered, 0 to 1.
    """

    trained: int
    covered: int
    total: int
    by_kind: dict[str, float]

    def summary(self) -> dict[str, object]:
        """Plain values for a report."""
        shares = {kind: round(share, 6) for kind, share in self.by_kind.items()}
        return {"trained_parameters": self.trained, "covered_parameters": self.covered,
                "covered_share": round(self.covered / self.total, 6), "covered_by_kind": shares}  # fmt: skip


def add_lora(model: Decoder, settings: LoraSettings, seed: int) -> Coverage:
    """Freeze a model, balancing biases included, and give the matrices that match a pattern an update each.

    Args:
        model: changed in place; its own parameters no longer take gradients.
        settings: which matrices, what rank.
        seed: of `lora_A`; each is drawn from its own name, so that targets never shift one another's numbers.

    Returns:
        What is covered.

    Raises:
        RecipeError: a pattern covers no matrix of the model, or the rank is larger than a matrix.
    """
    targets = covered_names(model, settings)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for router in model.routers().values():
        router.keeps_bias = True  # an adapter holds no bias: with another one, base and updates were not the model
    for name in targets:
        owner, attribute = _owner(model, name)
        weight = getattr(owner, attribute)
        if settings.rank > min(weight.shape[-2:]):
            raise RecipeError(
                f"lora.rank is {settings.rank}, {name} is {weight.shape[-2]} by {weight.shape[-1]}: a rank above "
                f"{min(weight.shape[-2:])} adds nothing; lower it or leave {name} out of lora.targets"
            )
        update = LowRank(weight, settings.rank, settings.scale)
        generator = torch.Generator().manual_seed(xxhash.xxh64_intdigest(name, seed) >> 1)
        bound = 1 / math.sqrt(weight.shape[-1])  # Kaiming's for linear layers, as in the paper's own code
        drawn = torch.empty(update.lora_A.shape).uniform_(-bound, bound, generator=generator)
        with torch.no_grad():
            update.lora_A.copy_(drawn)
        parametrize.register_parametrization(owner, attribute, update, unsafe=True)
    return coverage(model)


def covered_names(model: Decoder, settings: LoraSettings) -> list[str]:
    """Names of the matrices that the patterns cover, in the model's order.

    Raises:
        RecipeError: a pattern covers none.
    """
    matrices = [name for name, p in model.named_parameters() if p.dim() >= 2 and not name.startswith("embed_tokens")]
    found: set[str] = set()
    for pattern in settings.targets:
        matched = fnmatch.filter(matrices, pattern)
        if not matched:
            examples = sorted({_general(name) for name in matrices})
            raise RecipeError(
                f"lora.targets: {pattern!r} covers no matrix of this model; there are: {', '.join(examples)}"
            )
        found.update(matched)
    return [name for name in matrices if name in found]


def updates(model: nn.Module) -> dict[str, LowRank]:
    """The updates of a model by the name of the weight that they belong to; empty when it has none."""
    return {
        f"{name}.{attribute}" if name else attribute: update
        for name, module in model.named_modules()
        if parametrize.is_parametrized(module)
        for attribute, chain in module.parametrizations.items()  # type: ignore[union-attr]
        for update in chain
        if isinstance(update, LowRank)
    }


def merge(model: Decoder) -> Decoder:
    """Add every update to its weight for good; the model computes the same and trains whole again.

    Returns:
        The model given, changed in place.
    """
    for name in updates(model):
        owner, attribute = _owner(model, name)
        with torch.no_grad():
            parametrize.remove_parametrizations(owner, attribute, leave_parametrized=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    for router in model.routers().values():
        router.keeps_bias = False
    return model


def merged_tensors(model: Decoder) -> dict[str, Tensor]:
    """The state of the model that `merge` would give, by name, leaving this one as it is."""
    found: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if ".parametrizations." not in name:
            found[name] = tensor
        elif name.endswith(ORIGINAL):
            plain = name.replace("parametrizations.", "").removesuffix(ORIGINAL)
            owner, attribute = _owner(model, plain)
            found[plain] = getattr(owner, attribute).detach()
    return found


def merged_state(state: Mapping[str, Tensor], settings: LoraSettings) -> dict[str, Tensor]:
    """The state of the model that `merge` would give, from the state of a model with updates, as in a checkpoint.

    Args:
        state: by name; one without updates comes back as it is.
        settings: of the updates.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith(ORIGINAL):
            place = name.removesuffix(ORIGINAL)
            a, b = state[f"{place}.0.lora_A"], state[f"{place}.0.lora_B"]
            found[place.replace("parametrizations.", "")] = _added(tensor, a, b, settings.scale)
        elif not name.endswith((".lora_A", ".lora_B")):
            found[name] = tensor
    return found


def coverage(model: Decoder) -> Coverage:
    """What part of the model has updates."""
    adapted = updates(model)
    trained = sum(p.numel() for update in adapted.values() for p in update.parameters())
    totals: dict[str, int] = defaultdict(int)
    covered: dict[str, int] = defaultdict(int)
    for name, parameter in model.named_parameters():
        plain = name.replace("parametrizations.", "")
        if plain.endswith((".lora_A", ".lora_B")):
            continue
        plain = plain.removesuffix(ORIGINAL)
        if parameter.dim() < 2:
            kind = "norms and biases"
        else:
            kind = next(kind for kind, pattern in KINDS if fnmatch.fnmatchcase(plain, pattern))
        totals[kind] += parameter.numel()
        covered[kind] += parameter.numel() if plain in adapted else 0
    shares = {kind: covered[kind] / totals[kind] for kind in sorted(totals)}
    return Coverage(trained, sum(covered.values()), sum(totals.values()), shares)


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that a parameter belongs to, and its name there."""
    path, _, attribute = name.rpartition(".")
    return model.get_submodule(path), attribute


def _general(name: str) -> str:
    """A parameter's name with `*` for numbers."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))
