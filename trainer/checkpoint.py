"""Checkpoints: the state of a run that may be killed at any moment, and the finished model.

Both are a safetensors file beside a JSON file that holds its sha256; a folder is written under another name, flushed
and renamed, and is believed only when the hash agrees: a torn or damaged checkpoint falls back to the one before.
No random state is kept: after the first weights nothing draws a random number (`stream.py`).
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipelines.errors import DataError
from pipelines.files import sha256_of
from pipelines.recipe import Section
from trainer.model import Decoder
from trainer.recipe import ModelSettings

KEPT = 2  # the last one may be damaged
WEIGHTS = "model.safetensors"
DESCRIPTION = "recipe.json"


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after `step` optimizer steps.

    Attributes:
        step: steps done.
        note: what else the run wrote down, JSON values.
        tensors: by name.
    """

    step: int
    note: dict[str, Any]
    tensors: dict[str, Tensor]


def write_checkpoint(folder: Path, step: int, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
    """Write `folder/step-<step>` and delete all but the newest two."""
    _write_folder(folder / f"step-{step:09d}", "state.safetensors", "state.json", tensors, {"step": step, "note": note})
    for old in sorted(folder.glob("step-*"))[:-KEPT]:
        shutil.rmtree(old)


def read_checkpoints(folder: Path) -> Iterator[Checkpoint]:
    """Every checkpoint whose hash agrees, newest first; each is loaded when it is asked for."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            about = json.loads((path / "state.json").read_text())
            if sha256_of(path / "state.safetensors") == about["sha256"]:
                yield Checkpoint(about["step"], about["note"], load_file(path / "state.safetensors"))
        except (OSError, ValueError, KeyError, SafetensorError):
            continue  # damaged: the one before it serves


def save_model(folder: Path, model: Decoder, recipe: Section | None = None) -> None:
    """Write a finished model: `model.safetensors`, and `recipe.json` with its shape, recipe and hash."""
    about = {
        "format": 1,
        "model": model.settings.model_dump(mode="json"),
        "recipe": recipe.model_dump(mode="json") if recipe else None,
    }
    _write_folder(folder, WEIGHTS, DESCRIPTION, model.state_dict(), about)


def load_checkpoint(folder: Path) -> tuple[ModelSettings, dict[str, Tensor]]:
    """Read a finished model.

    Returns:
        Its shape, and its tensors by name: those of `Decoder(settings).state_dict()`.

    Raises:
        DataError: the folder is no checkpoint, its hash is wrong, or a tensor is missing or misshapen.
    """
    try:
        about = json.loads((folder / DESCRIPTION).read_text())
        settings = ModelSettings.model_validate(about["model"])
        expected = about["sha256"]
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        problem = str(error).splitlines()[0]
        raise DataError(f"{folder} is not a model that loam trained: {DESCRIPTION}: {problem}") from None
    if not (folder / WEIGHTS).is_file():
        raise DataError(f"{folder / WEIGHTS} is missing, though {DESCRIPTION} describes it; train or import again")
    if (found := sha256_of(folder / WEIGHTS)) != expected:
        raise DataError(f"{folder / WEIGHTS}: expected sha256 {expected}, found {found}; train or import again")
    tensors = load_file(folder / WEIGHTS)
    _check_shapes(folder, settings, tensors)
    return settings, tensors


def load_model(folder: Path) -> Decoder:
    """The finished model of `folder`, in evaluation mode, fp32.

    Raises:
        DataError: as for `load_checkpoint`.
    """
    settings, tensors = load_checkpoint(folder)
    model = Decoder(settings)
    model.load_state_dict(tensors)
    return model.eval()


def _check_shapes(folder: Path, settings: ModelSettings, tensors: Mapping[str, Tensor]) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in _empty(settings).state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise DataError(f"{folder}: tensor {name}: expected shape {expected.get(name)}, found {found.get(name)}")


def _empty(settings: ModelSettings) -> nn.Module:
    with torch.device("meta"):
        return Decoder(settings)


def _write_folder(
    folder: Path, weights: str, description: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]
) -> None:
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary / weights)
    text = json.dumps({**about, "sha256": sha256_of(temporary / weights)}, indent=1, sort_keys=True) + "\n"
    (temporary / description).write_text(text)
    for path in (temporary / weights, temporary / description, temporary):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    if folder.exists():
        shutil.rmtree(folder)
    temporary.replace(folder)
