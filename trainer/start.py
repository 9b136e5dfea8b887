"""What a run begins with: fresh weights, or those of a finished model, with low-rank updates if the recipe asks.

The checkpoint that a run starts from decides its result, so its hash is part of the run's identity: a killed run never
goes on from another one.
"""

from pathlib import Path

import torch

from pipelines.errors import DataError
from pipelines.files import sha256_of
from trainer.checkpoint import load_checkpoint, weights_of
from trainer.families.family import essence
from trainer.flow_matching import FlowHead, save_head
from trainer.lora import add_lora, coverage, merge, updates
from trainer.lora_adapter import save_adapter
from trainer.model import Decoder, new_model
from trainer.model_recipe import ModelSettings
from trainer.recipe import TrainRecipe

ADAPTER = "adapter"
OF_POSITIONS = ("rope", "rope_theta")


def first_model(recipe: TrainRecipe, compute: torch.dtype, start: Path | None = None) -> Decoder:
    """The model before its first step.

    Args:
        recipe: its shape, seed and updates.
        compute: type of its matrix products.
        start: checkpoint of a finished model; None draws fresh weights.

    Raises:
        DataError: the checkpoint is damaged, or it is another model than `recipe.model`.
        RecipeError: `recipe.lora` does not fit the model.
    """
    if start is None:
        model = new_model(recipe.model, recipe.seed, compute)
    else:
        model = Decoder(recipe.model, compute)
        (shape, tensors), expected = load_checkpoint(start), model.state_dict()
        for name in sorted(tensors.keys() | expected.keys()):
            found, wanted = (tuple(t[name].shape) if name in t else None for t in (tensors, expected))
            if found != wanted:
                raise DataError(f"{start}: {name} is {found}, the recipe's model has {wanted}; give the model's shape")
        _refuse_another(start, shape, recipe.model)
        model.load_state_dict(tensors)
    if recipe.lora is not None:
        add_lora(model, recipe.lora, recipe.seed)
    if recipe.flow_matching is not None:
        model.flow = FlowHead(recipe.flow_matching, recipe.model.width, recipe.model.width, recipe.seed)
    return model


def _refuse_another(start: Path, shape: ModelSettings, asked: ModelSettings) -> None:
    """Refuse a recipe that would compute other logits from the same tensors; a longer context may stretch positions."""
    found, wanted = essence(shape), essence(asked)
    free = {"max_sequence", *(OF_POSITIONS if asked.max_sequence > shape.max_sequence else ())}
    for name in sorted((found.keys() | wanted.keys()) - free):
        if found.get(name) != wanted.get(name):
            hint = " (with a longer max_sequence it may differ)" if name in OF_POSITIONS else ""
            raise DataError(
                f"{start}: its {name} is {found.get(name)}, the recipe's model has {wanted.get(name)}{hint}; "
                "give the model's own"
            )


def digest_of_start(start: Path | None) -> dict[str, str]:
    """What a run's identity says of the checkpoint that it starts from; empty for fresh weights."""
    return {} if start is None else {"start": sha256_of(weights_of(start))}


def finished_model(model: Decoder, work: Path) -> dict[str, object] | None:
    """Take from a trained model what is no part of it, and keep that beside: `adapter/`, `flow_head.safetensors`.

    Args:
        model: changed in place: updates are added to its weights, the head of a second objective is taken off.
        work: folder of the run.

    Returns:
        What part of the model its updates covered; None when it has none.
    """
    if model.flow is not None:
        save_head(model.flow, work)
        model.flow = None
    if not updates(model):
        return None
    save_adapter(work / ADAPTER, model)
    covered = coverage(model).summary()
    merge(model)
    return covered
