"""Online mixing: find weights while a small model trains, by one of four published methods; baselines for a swarm.

The loop is that of `loop.py` with two changes: the next samples are drawn with weights that the method gives anew
before every step, and the method sees the step's losses by domain. Its state and that of the stream lie in the
checkpoints, so that a run killed at any step writes the same bytes as one left alone. Domains are taken in the order of
their names, so that no order of files or weights changes a bit.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.errors import DataError, RecipeError
from pipelines.execute import SCRATCH
from pipelines.files import write_atomically
from pipelines.progress import track
from pipelines.shards import Blend, ShardSet
from pipelines.store import Outcome
from trainer.checkpoint import load_model
from trainer.device import torch_threads
from trainer.loop import trained_once
from trainer.model import Decoder
from trainer.online_methods import METHODS, Batch, Method, Plan
from trainer.online_settings import OnlineSettings
from trainer.online_stream import OnlineStream
from trainer.optimizer import set_learning_rate
from trainer.recipe import TrainRecipe
from trainer.run import Run, begin_run, save_state
from trainer.step import finish_step
from trainer.validation import held_out_losses

STANDS_STILL = 1e-3  # DoReMi's rounds end when no weight moved by more, as in the paper
RESULT = "online.json"


@dataclass(frozen=True)
class OnlineData:
    """What a search reads.

    Attributes:
        shards: to train on; a domain is a shard or was cut into several.
        prior: domain -> share of tokens before any evidence; sums to 1.
        validation: held-out shards; for the last loss, and for Aioli.
    """

    shards: ShardSet
    prior: Mapping[str, float]
    validation: ShardSet | None = None

    @property
    def domains(self) -> tuple[str, ...]:
        """Names in order."""
        return tuple(sorted(self.prior))

    @property
    def ordered(self) -> ShardSet:
        """The shards in the order of their names."""
        return ShardSet(tuple(sorted(self.shards.shards, key=lambda shard: shard.name)))

    def blend(self, weights: Mapping[str, float]) -> Blend:
        """Weights resolved to shards, in the order of names."""
        return Blend.of({name: weights[name] for name in self.domains}, self.ordered)


def mix_online(recipe: TrainRecipe, data: OnlineData, settings: OnlineSettings, work: Path) -> Outcome:
    """Find weights with an online method.

    Writes `online.json` and, for each round, `round-<n>.jsonl`: a line for each step with the weights after it and the
    loss of each domain in it. May be called again on the same folder after a kill.

    Args:
        recipe: of the small model; one stage.
        data: what it reads.
        settings: method and its numbers.
        work: folder to fill.

    Returns:
        Metrics: what `online.json` holds: the weights found, those of each round, requested and achieved shares,
        held-out losses, tokens trained on by all models together.

    Raises:
        RecipeError: several stages, too few steps, or no vocabulary.
        DataError: no held-out shards for Aioli, or as for `trainer.loop.train`.
    """
    recipe.require_vocabulary()
    if len(recipe.stages) != 1:
        raise RecipeError(f"online mixing trains in one stage; recipe {recipe.name!r} has {len(recipe.stages)}")
    stage = recipe.stages[0]
    if stage.curriculum or stage.fill_in_middle or recipe.separate_documents:
        raise RecipeError(
            f"online mixing draws plain samples of one length; recipe {recipe.name!r} asks for curriculum, "
            "fill_in_middle or separate_documents: leave them out"
        )
    if settings.method == "aioli" and data.validation is None:
        raise DataError("aioli learns from held-out losses: give a folder with train/ and validation/ shards")
    work.mkdir(parents=True, exist_ok=True)
    prior, rounds, tokens = dict(data.prior), [], 0
    for number in range(1, (settings.doremi.rounds if settings.method == "doremi" else 1) + 1):
        reference = _reference(recipe, data, prior, work) if settings.method == "doremi" else None
        found = _round(recipe, data, settings, work, number, reference)
        rounds.append(found)
        tokens += recipe.tokens * (2 if reference else 1)
        moved = max(abs(found["weights"][name] - prior[name]) for name in data.domains)
        prior = found["weights"]
        if moved < STANDS_STILL:
            break
    result = {"method": settings.method, "weights": rounds[-1]["weights"], "rounds": rounds, "tokens": tokens}
    write_atomically(work / RESULT, (json.dumps(result, indent=1, sort_keys=True) + "\n").encode())
    return Outcome(metrics=result)


def _reference(recipe: TrainRecipe, data: OnlineData, weights: Mapping[str, float], work: Path) -> Path:
    """The reference model of a round, trained on weights that stay; it is trained once."""
    return trained_once(recipe, data.blend(weights), work, "reference")


def _round(
    recipe: TrainRecipe, data: OnlineData, settings: OnlineSettings, work: Path, number: int, reference: Path | None
) -> dict[str, Any]:
    """One run with moving weights."""
    stage, names = recipe.stages[0], data.domains
    with torch_threads(recipe.threads):
        run = _begin(recipe, data, settings, work / SCRATCH / f"round-{number}", reference)
        stream = OnlineStream(data.ordered, names, recipe.seed, stage.sequence_length)
        prior_D = np.array([data.prior[name] for name in names])
        probe = _probe(recipe, data.validation, settings.aioli.probe_tokens) if data.validation else None
        against = load_model(reference).to(run.device) if reference else None
        method = METHODS[settings.method](settings, Plan(prior_D, stage.steps, recipe.seed, probe, against))
        if run.extra:
            stream.restore(run.extra)
            method.state = {name: run.extra[f"method.{name}"].numpy().copy() for name in method.state}
        with track(f"{settings.method} round {number}", recipe.tokens, "tokens") as tracker:
            while run.step < stage.steps:
                line = _step(run, stream, method, names)
                run.log(line)
                tracker.update(run.step * stage.batch_tokens, f"loss {line['loss']:.3f}")
                if run.step % recipe.checkpoint_every == 0:
                    run.extra = stream.state() | _tensors(method)
                    save_state(run)
        run.writer.close()
        shutil.copyfile(run.metrics, work / f"round-{number}.jsonl")
        return _found(run, stream, method, data)


def _begin(
    recipe: TrainRecipe, data: OnlineData, settings: OnlineSettings, folder: Path, reference: Path | None
) -> Run:
    """The run at its last good checkpoint; another method or other data are another run."""
    held_out = data.validation.identity if data.validation else []
    own = settings.model_dump(mode="json")
    return begin_run(recipe, [data.blend(data.prior)], folder, {
        "online": {"method": settings.method, "settings": own[settings.method]}, "held_out": held_out,
        "reference": reference.parent.name if reference else None,
    })  # fmt: skip


def _probe(recipe: TrainRecipe, validation: ShardSet, tokens: int) -> Callable[[Decoder], np.ndarray]:
    def probe(model: Decoder) -> np.ndarray:
        losses = held_out_losses(model, validation, recipe.stages[0].sequence_length, tokens)
        return np.array([losses[name]["loss"] for name in sorted(losses)])

    return probe


def _step(run: Run, stream: OnlineStream, method: Method, names: tuple[str, ...]) -> dict[str, Any]:
    """One optimizer step; gives its line of metrics."""
    stage, step = run.recipe.stages[0], run.step
    rate = stage.learning_rate_at(step)
    samples_BS, domain_B = stream.draw(method.sampling_D(step, run.model), stage.batch_samples)
    tokens_BS = torch.from_numpy(samples_BS).to(run.device)
    groups = {int(place): tokens_BS[torch.from_numpy(domain_B == place)] for place in np.unique(domain_B)}
    rows = max(1, (run.recipe.micro_batch_tokens or stage.batch_tokens) // stage.sequence_length)
    set_learning_rate(run.optimizer, rate)
    run.optimizer.zero_grad(set_to_none=True)
    batch = Batch(groups, stage.batch_samples, rows, rate)
    losses_D = method.backward(run.model, batch)
    mean_loss = sum(losses_D[place] * len(samples) for place, samples in groups.items()) / stage.batch_samples
    line = finish_step(run, stage.name, rate, {"ar": float(mean_loss)})
    method.learn(step, run.model, losses_D, stream.drawn_D() * stage.sequence_length)
    weights = zip(names, method.state["weights"].tolist(), strict=True)
    line["weights"] = {name: round(weight, 6) for name, weight in weights}
    line["losses"] = {names[place]: round(float(losses_D[place]), 6) for place in groups}
    return line


def _tensors(method: Method) -> dict[str, torch.Tensor]:
    return {f"method.{name}": torch.from_numpy(np.ascontiguousarray(array)) for name, array in method.state.items()}


def _found(run: Run, stream: OnlineStream, method: Method, data: OnlineData) -> dict[str, Any]:
    """What a finished round says."""
    weights = dict(zip(data.domains, method.answer_D().tolist(), strict=True))
    last = {name: round(float(each), 6) for name, each in zip(data.domains, method.state["weights"], strict=True)}
    found: dict[str, Any] = {"weights": weights, "last_weights": last, "domains": stream.ledger(),
                             "counted_steps": int(method.state["count"][0])}  # fmt: skip
    if data.validation is not None:
        length = run.recipe.stages[0].sequence_length
        found["held_out"] = held_out_losses(run.model, data.validation, length, run.recipe.validation_tokens)
    return found
