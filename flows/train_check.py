"""What a training will take: parameters by part, operations with their formula, memory by part, days on a device.

Days are an assumption's: so many devices of a named kind, at a stated model FLOPs utilisation. Everything else follows
from the recipe. Memory is that of one device which holds the whole model, as the native engine does.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.errors import RecipeError
from pipelines.quantities import human
from trainer.accelerators import ACCELERATORS, Accelerator, find_accelerator
from trainer.model_recipe import ModelSettings
from trainer.recipe import TrainRecipe
from trainer.sweep_recipe import SweepRecipe

SECONDS_PER_DAY = 86_400
PARTS = (  # the first that a parameter's name holds is its part
    ("further tokens", r"^mtp"),
    ("embeddings", r"embed_tokens|lm_head"),
    ("routed experts", r"\.experts\."),
    ("shared experts", r"\.shared_expert"),
    ("routers", r"\.mlp\.gate\."),
    ("norms", r"norm"),
    ("attention", r"\.self_attn\."),
    ("dense feed-forward", r"\.mlp\."),
)
NO_VOCABULARY = "model.vocab_size is not set: counted without embeddings; give --set model.vocab_size=N"


@dataclass(frozen=True)
class Machine:
    """On what a training is assumed to run.

    Attributes:
        device: name of an accelerator, `H200`.
        mfu: model FLOPs utilisation, above 0 and at most 1.
        devices: that share the work without loss.
    """

    device: str = "H200"
    mfu: float = 0.3
    devices: int = 1

    def accelerator(self) -> Accelerator:
        """What is known of the device.

        Raises:
            RecipeError: it is not known, or the share is none.
        """
        if not 0 < self.mfu <= 1:
            raise RecipeError(f"--mfu {self.mfu:g}: expected a share above 0 and at most 1, such as 0.3")
        if (found := find_accelerator(self.device)) is None:
            known = ", ".join(one.name for one in ACCELERATORS)
            raise RecipeError(f"--device {self.device!r} is not known; there are: {known}")
        return found


def parameters_by_part(model: ModelSettings) -> dict[str, int]:
    """Trained numbers of each part, counted from the model's own tensors.

    Args:
        model: its shape.
    """
    import torch

    from trainer.model import Decoder

    sized = model if model.vocab_size else model.with_vocabulary(1)
    with torch.device("meta"):
        built = Decoder(sized)
    counts = {part: 0 for part, _ in PARTS}
    for name, parameter in built.named_parameters():
        counts[next(part for part, pattern in PARTS if re.search(pattern, name))] += parameter.numel()
    if not model.vocab_size:
        counts["embeddings"] = 0
    return {part: count for part, count in counts.items() if count}


def train_account(recipe: TrainRecipe, machine: Machine) -> dict[str, Any]:
    """Everything that follows from a recipe and a machine, as plain values.

    Args:
        recipe: what is trained.
        machine: what is assumed.

    Returns:
        `parameters` (total, `main` without the modules for further tokens, active, by part), `flops_per_token` by
        stage with its `formula`, `tokens`, `steps`, `training_flops`, `memory_bytes` by part and in total, `fits`,
        `days`, and the assumptions.

    Raises:
        RecipeError: the device is not known.
    """
    from trainer.memory_account import memory_of

    device = machine.accelerator()
    model = recipe.model
    memory = memory_of(recipe)
    peak = device.flops(recipe.precision)
    seconds = recipe.training_flops / (peak * machine.mfu * machine.devices)
    return {
        "parameters": {"total": model.parameters(), "main": model.parameters() - model.mtp_parameters(),
                       "active": model.active_parameters(), "by_part": parameters_by_part(model)},
        "flops_per_token": {stage.name: model.flops_per_token(stage.longest) for stage in recipe.stages},
        "formula": model.flops_formula(),
        "tokens": {stage.name: stage.trained_tokens for stage in recipe.stages},
        "steps": {stage.name: stage.steps for stage in recipe.stages},
        "training_flops": recipe.training_flops,
        "pass_tokens": recipe.pass_tokens,
        "memory_bytes": {**vars(memory), "total": memory.total},
        "device": {"name": device.name, "memory_bytes": device.memory_bytes, "peak_flops": peak, "mfu": machine.mfu,
                   "devices": machine.devices},
        "fits": memory.total <= device.memory_bytes,
        "tokens_per_s": recipe.tokens / seconds,
        "days": seconds / SECONDS_PER_DAY,
    }  # fmt: skip


def train_lines(recipe: TrainRecipe, machine: Machine) -> list[str]:
    """The same for people."""
    found = train_account(recipe, machine)
    sizes, device = found["parameters"], found["device"]
    share = f" ({sizes['active'] / sizes['main']:.0%})" if sizes["active"] < sizes["main"] else ""
    more = f" and {human(sizes['total'] - sizes['main'])} for further tokens" if sizes["main"] < sizes["total"] else ""
    memory, how = dict(found["memory_bytes"]), ", recomputed" if recipe.recompute else ""
    total = memory.pop("total")
    lines = [] if recipe.model.vocab_size else [NO_VOCABULARY]
    lines += [
        f"parameters: {human(sizes['main'])}{more}, active {human(sizes['active'])}{share}: {_row(sizes['by_part'])}",
        f"FLOPs per token: {_row(found['flops_per_token'])}",
        f"  = {found['formula']}, T the longest sample",
        f"tokens: {human(recipe.tokens)} in {sum(found['steps'].values())} steps: {_row(found['tokens'])}",
        f"training: {found['training_flops']:.3g} FLOPs",
        f"memory of a device ({recipe.precision}, {recipe.optimizer.name}, micro-batches of "
        f"{human(found['pass_tokens'])} tokens{how}): {_size(total)}: "
        + ", ".join(f"{part} {_size(size)}" for part, size in memory.items() if size),
    ]
    if not found["fits"]:
        state = total - memory["activations"] - memory["loss"] - memory["casts"]
        advice = (
            "weights, gradients and optimizer alone are; one device cannot train it"
            if state > device["memory_bytes"]
            else "lower micro_batch_tokens, or set recompute: true"
        )
        lines.append(f"  more than the {_size(device['memory_bytes'])} of one {device['name']}: {advice}")
    elif total > 0.9 * device["memory_bytes"]:
        lines.append(
            f"  less than a tenth of one {device['name']} is left for what kernels use in between: it may not do"
        )
    many = f"{device['devices']} {device['name']}" if device["devices"] > 1 else f"one {device['name']}"
    lines.append(
        f"time: {_time(found['days'])} on {many} at an MFU of {device['mfu']:.0%} of {device['peak_flops'] / 1e12:.0f} "
        f"TFLOP/s ({recipe.precision}), {human(found['tokens_per_s'])} tokens/s; other assumptions: --device, --mfu, "
        "--devices"
    )
    return lines


def sweep_lines(sweep: SweepRecipe, machine: Machine) -> list[str]:
    """A sweep's trials, and what they take together."""
    trials = sweep.trials()
    found = [train_account(trial.recipe, machine) for trial in trials]
    points = len({trial.point for trial in trials})
    sizes = sorted({one["parameters"]["total"] for one in found})
    spread = human(sizes[0]) if len(sizes) == 1 else f"{human(sizes[0])} to {human(sizes[-1])}"
    flops = sum(one["training_flops"] for one in found)
    return [
        f"{len(trials)} trials: {points} points, {len(sweep.seeds)} seeds each",
        *(f"  {field}: {', '.join(map(str, values))}" for field, values in sweep.grid.items()),
        *(f"  point: {_row(point)}" for point in sweep.points),
        f"parameters: {spread}; {flops:.3g} FLOPs in all",
        f"memory of a device at most {_size(max(one['memory_bytes']['total'] for one in found))}",
        f"time: {_time(sum(one['days'] for one in found))} in all on {machine.devices} {machine.device} at an MFU of "
        f"{machine.mfu:.0%}; other assumptions: --device, --mfu, --devices",
        f"decided by: {sweep.target}" + ("" if len(sweep.seeds) > 1 else "; one seed gives no interval"),
    ]


def _row(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {human(value) if isinstance(value, (int, float)) else value}"
                     for name, value in values.items())  # fmt: skip


def _size(size: float) -> str:
    return f"{size / 2**30:.3g} GiB" if size >= 2**30 else f"{size / 2**20:.3g} MiB"


def _time(days: float) -> str:
    if days >= 1000:
        return f"{days:,.0f} days"
    if days >= 1:
        return f"{days:.3g} days"
    return f"{days * 24:.3g} hours" if days * 24 >= 1 else f"{days * 1440:.2g} minutes"
