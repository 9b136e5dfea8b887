"""One optimizer step: the next samples by number, forward and backward, clip, judge, move, rebalance the experts."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from pipelines.errors import StepError
from pipelines.execute import SCRATCH
from pipelines.files import write_atomically
from trainer.expert_load import LoadLog, summarize_load
from trainer.model import Decoder
from trainer.mtp import shares_of_targets
from trainer.optimizer import set_learning_rate
from trainer.recipe import Phase
from trainer.run import Run
from trainer.stream import Samples

PARTS = ("ar", "total", "aux", "z", "mtp", "flow")


class DivergedError(StepError):
    """A training that leads nowhere: loss or gradient not finite, spikes without end, nothing learnt.

    Attributes:
        reason: in words that depend on recipe and data alone, fit for an output.
    """

    def __init__(self, reason: str, advice: str = "") -> None:
        super().__init__(reason + advice)
        self.reason = reason


def train_step(run: Run, stage: int, place: int, phase: Phase, local: int) -> dict[str, Any]:
    """Take one optimizer step.

    Args:
        run: goes one step on.
        stage: number of the stage.
        place: number of the phase, through all stages.
        phase: its shape.
        local: step within the phase, from 0.

    Returns:
        Its line of metrics.

    Raises:
        DataError: a shard has tokens that the model does not know.
        DivergedError: loss or gradient is not finite, or spikes do not end.
    """
    settings = run.recipe.stages[stage]
    first = local * phase.batch_samples
    samples = run.data.phase(place).batch(first, phase.batch_samples)
    samples.require_known(run.recipe.model.vocab_size)
    steps_before = run.step - sum(before.steps for before in run.recipe.stages[:stage])
    rate = settings.learning_rate_at(steps_before) * run.rate_factor(stage)
    decay = run.recipe.optimizer.weight_decay if settings.weight_decay is None else settings.weight_decay
    set_learning_rate(run.optimizer, rate, decay)
    run.optimizer.zero_grad(set_to_none=True)
    losses = forward_backward(run, samples, phase)
    numbers = [first, first + phase.batch_samples - 1]
    return finish_step(run, settings.name, rate, losses, {"phase": place, "samples": numbers}, samples)


def forward_backward(run: Run, samples: Samples, phase: Phase) -> dict[str, float]:
    """Add up the gradients of a batch, micro-batch by micro-batch.

    Args:
        run: its model's gradients are added to.
        samples: of the batch.
        phase: its shape.

    Returns:
        Means over the batch: `ar` and, where the model has them, the other parts of its loss and their `total`.
    """
    rows = phase.rows(run.recipe.micro_batch_tokens)
    begins = range(0, len(samples.inputs_BS), rows)
    further: Sequence[Sequence[float] | None] = [None] * len(begins)
    if run.recipe.separate_documents and run.model.mtp and len(begins) > 1:  # else all rows have as many targets
        further = shares_of_targets(torch.from_numpy(samples.documents_BS), rows, len(run.model.mtp))
    sums = torch.zeros(len(PARTS), device=run.device)
    for begin, weights in zip(begins, further, strict=True):
        inputs_BS, targets_BS = (_moved(a, begin, rows, run) for a in (samples.inputs_BS, samples.targets_BS))
        documents_BS = _moved(samples.documents_BS, begin, rows, run) if run.recipe.separate_documents else None
        losses = run.model.loss(inputs_BS, targets_BS, documents_BS, weights)
        share = len(inputs_BS) / phase.batch_samples
        (losses.total * share).backward()
        sums += torch.stack([getattr(losses, name).detach() for name in PARTS]) * share
    found = dict(zip(PARTS, sums.tolist(), strict=True))  # the step's one wait for the device
    return {name: value for name, value in found.items() if name == "ar" or (value and found["total"] != found["ar"])}


def _moved(array_BS: np.ndarray, begin: int, rows: int, run: Run) -> Tensor:
    part_BS = torch.from_numpy(array_BS[begin : begin + rows])
    if run.device.type == "cuda":
        return part_BS.pin_memory().to(run.device, non_blocking=True)
    return part_BS


def finish_step(
    run: Run, stage: str, rate: float, losses: Mapping[str, float], drawn: Mapping[str, Any] | None = None,
    samples: Samples | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Clip the gradients that lie in the model, let the optimizer move unless it is a spike, rebalance the experts.

    Args:
        run: goes one step on.
        stage: name of the stage that the step belongs to.
        rate: learning rate, already set.
        losses: of the step: `ar`, nats per token, and other parts.
        drawn: where the samples come from, for the ledger of skips.
        samples: kept on disk when the step is not finite.

    Returns:
        Its line of metrics.

    Raises:
        DivergedError: loss or gradient is not finite, or spikes do not end.
    """
    grad_norm = float(torch.nn.utils.clip_grad_norm_(run.model.parameters(), run.recipe.grad_clip))
    if not all(map(math.isfinite, (*losses.values(), grad_norm))):
        raise _not_finite(run, stage, losses, grad_norm, samples)
    reason = run.guard.judge(losses["ar"], grad_norm) if run.guard else None
    if reason is None:
        run.optimizer.step()
    elif run.guard and run.guard.in_a_row >= run.guard.settings.most_in_a_row:
        raise DivergedError(
            f"training {run.recipe.name}: spikes in a row at step {run.step + 1} (stage {stage}): "
            f"{run.guard.in_a_row}, the last: {reason}",
            "; lower learning_rate, or raise spikes.sigmas or spikes.most_in_a_row, then run again",
        )
    run.step += 1
    line: dict[str, Any] = {"kind": "step", "step": run.step, "stage": stage, "loss": round(losses["ar"], 6)}
    line |= {name: round(value, 6) for name, value in losses.items() if name != "ar"}
    line |= {"lr": float(f"{rate:.8g}"), "grad_norm": round(grad_norm, 6)}
    if reason is not None:
        line["skipped"] = {"reason": reason, **(drawn or {})}
    if run.loads is not None:
        line["experts"] = _rebalance(run.model, run.loads, moves=reason is None)
    return line


def _rebalance(model: Decoder, loads: LoadLog, moves: bool) -> dict[str, dict[str, float]]:
    """Move every router's bias unless the step was skipped, log the counts, and sum them up by layer."""
    load_LE, found = {}, {}
    limited = model.settings.router.capacity_factor is not None and model.settings.router.choice == "tokens"
    for layer, router in model.routers().items():
        dropped = int(router.dropped) if limited else 0
        load_LE[layer] = router.rebalance(moves).cpu().numpy()
        found[str(layer)] = summarize_load(load_LE[layer])
        if limited:
            found[str(layer)]["dropped"] = round(dropped / max(1, int(load_LE[layer].sum())), 6)
    loads.append(np.stack(list(load_LE.values())))
    return found


def _not_finite(
    run: Run, stage: str, losses: Mapping[str, float], grad_norm: float, samples: Samples | None
) -> DivergedError:
    """The error of a step that is not finite; its batch is kept for whoever looks for the reason."""
    step = run.step + 1
    kept = ""
    if samples is not None:
        folder = run.work / SCRATCH / f"not-finite-step-{step:09d}"
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {"inputs": samples.inputs_BS, "targets": samples.targets_BS, "documents": samples.documents_BS}
        save_file({name: torch.from_numpy(array) for name, array in arrays.items()}, folder / "batch.safetensors")
        broken = [
            name
            for name, parameter in run.model.named_parameters()
            if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all())
        ]
        about = {
            "step": step, "stage": stage, "domains": samples.domains, "gradients_not_finite": broken,
            "losses": {name: str(value) for name, value in losses.items()}, "grad_norm": str(grad_norm),
        }  # fmt: skip
        write_atomically(folder / "about.json", (json.dumps(about, indent=1) + "\n").encode())
        kept = f"; its batch is in {folder}"
    return DivergedError(
        f"training {run.recipe.name}: step {step} (stage {stage}) has loss {losses['ar']} "
        f"and gradient norm {grad_norm}",
        f"; lower learning_rate or grad_clip, then run again{kept}",
    )
