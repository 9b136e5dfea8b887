"""AdamW or Muon with decay on matrices only, and their state as plain named tensors.

The state is kept under the parameters' names rather than torch's running numbers, so that a checkpoint is a flat
safetensors file that needs no pickle and can be read by eye. AdamW's update is torch's fused kernel on every device.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trainer.muon import Muon
from trainer.recipe import OptimizerSettings

MOMENTS = ("exp_avg", "exp_avg_sq", "step", "momentum_buffer")
NOT_FOR_MUON = ("embed_tokens.weight", "lm_head.weight", "gate.weight")  # rows are tokens or experts, not directions


def is_turned(name: str, parameter: Tensor) -> bool:
    """Whether Muon moves a parameter, which then has one moment; AdamW, with two, has the others."""
    return parameter.dim() >= 2 and not name.endswith(NOT_FOR_MUON)


def make_optimizer(model: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """The optimizer over the trained parameters of `model`; vectors (norms, biases) do not decay."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    turned = [p for name, p in named if settings.name == "muon" and is_turned(name, p)]
    taken = {id(parameter) for parameter in turned}
    matrices = [p for _, p in named if p.dim() >= 2 and id(p) not in taken]
    vectors = [p for _, p in named if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay, "decays": True},
        {"params": vectors, "weight_decay": 0.0, "decays": False},
    ]
    # the rate is set before each step
    adamw = torch.optim.AdamW(groups, lr=0.0, betas=settings.betas, eps=settings.eps,
                              fused=True)  # fmt: skip
    if not turned:
        return adamw
    return Muon(turned, adamw, settings.momentum, settings.weight_decay, settings.newton_schulz_steps)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float, weight_decay: float | None = None) -> None:
    """Use `rate`, and another decay of matrices if one is given, from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = rate
        if weight_decay is not None and group["decays"]:
            group["weight_decay"] = weight_decay


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Moments and step counts, `<moment>.<parameter's name>`; empty before the first step."""
    return {
        f"{moment}.{name}": optimizer.state[parameter][moment]
        for name, parameter in model.named_parameters()
        for moment in MOMENTS
        if moment in optimizer.state.get(parameter, ())
    }


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave; every parameter gets a step count of its own."""
    for name, parameter in model.named_parameters():
        state = {
            moment: tensors[f"{moment}.{name}"].to(parameter.device, copy=True)
            for moment in MOMENTS
            if f"{moment}.{name}" in tensors
        }
        if state:
            optimizer.state[parameter] = state
