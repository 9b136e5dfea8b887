"""Checkpoints: the state of a run that may be killed at any moment, and the finished model.

Both are a safetensors file beside a JSON file that holds its sha256 and a digest of itself; a folder is written under
another name, flushed and renamed, and is believed only when both agree: a torn or damaged checkpoint falls back to the
one before.
No random state is kept: after the first weights nothing draws a random number (`stream.py`).
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
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
from pipelines.manifest import digest_of
from pipelines.recipe import Section
from trainer.model import Decoder
from trainer.model_recipe import ModelSettings
from trainer.tensor_files import TensorFiles, write_tensors

WEIGHTS = "model.safetensors"
DESCRIPTION = "recipe.json"
STATE = "state.safetensors"
STATE_DESCRIPTION = "state.json"
HEAD_PREFIX = "model.flow."  # of a second objective's head, which lies in the model while it is trained


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


def write_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], note: Mapping[str, Any], kept: int | None = None
) -> None:
    """Write `folder/step-<step>` and delete older ones.

    Args:
        folder: of checkpoints.
        step: optimizer steps done.
        tensors: by name.
        note: JSON values.
        kept: how many up to this one stay; None keeps all.
    """
    _write_folder(folder / f"step-{step:09d}", STATE, STATE_DESCRIPTION, tensors, {"step": step, "note": note})
    if kept is not None:
        older = sorted(path for path in folder.glob("step-*") if _step_of(path) <= step)
        for old in older[:-kept]:
            shutil.rmtree(old, ignore_errors=True)  # what cannot be removed does not end the run


def read_checkpoints(*folders: Path) -> Iterator[Checkpoint]:
    """Every checkpoint that is whole, newest first; each is loaded when it is asked for."""
    found = [path for folder in folders for path in folder.glob("step-*")]
    for path in sorted(found, key=_step_of, reverse=True):
        try:
            about = json.loads((path / STATE_DESCRIPTION).read_text())
            if about.pop("digest") == digest_of(about) and sha256_of(path / STATE) == about["sha256"]:
                yield Checkpoint(about["step"], about["note"], load_file(path / STATE))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError):
            continue  # damaged: the one before it serves


def tidy_checkpoints(*folders: Path) -> None:
    """Undo what a kill left half done: a checkpoint that was being replaced comes back, half-written ones go."""
    for folder in folders:
        for old in folder.glob(".step-*.old"):
            if not (before := folder / old.name.strip(".").removesuffix(".old")).exists():
                old.replace(before)
        for path in folder.glob(".step-*"):
            shutil.rmtree(path, ignore_errors=True)


def discard_after(step: int, *folders: Path) -> list[Path]:
    """Remove the checkpoints beyond the one that a run goes on from: they are damaged, or their logs are.

    Args:
        step: at which the run goes on.
        folders: of checkpoints.

    Returns:
        What was removed.
    """
    beyond = [path for folder in folders for path in folder.glob("step-*") if _step_of(path) > step]
    for path in beyond:
        shutil.rmtree(path, ignore_errors=True)
    return beyond


def _step_of(path: Path) -> int:
    found = re.search(r"step-(\d+)", path.name)
    return int(found[1]) if found else -1


def save_model(folder: Path, model: Decoder, recipe: Section | None = None) -> None:
    """Write a finished model: `model.safetensors`, and `recipe.json` with its shape, recipe and hash."""
    _write_folder(folder, WEIGHTS, DESCRIPTION, model.state_dict(), _about(model.settings, recipe))


def save_pieces(folder: Path, settings: ModelSettings, pieces: Iterable[Tensor]) -> None:
    """Write a finished model from a stream of its numbers, only one piece of which is in memory at a time.

    Args:
        folder: to write.
        settings: the model's shape.
        pieces: fp32 numbers of `Decoder(settings).state_dict()`, in its order; none spans two tensors.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in _empty(settings).state_dict().items()}
    with _published(folder) as temporary:
        write_tensors(temporary / WEIGHTS, shapes, pieces, digest := hashlib.sha256())
        _describe(temporary / DESCRIPTION, {**_about(settings, None), "sha256": digest.hexdigest()})


def _about(settings: ModelSettings, recipe: Section | None) -> dict[str, Any]:
    told = recipe.model_dump(mode="json") if recipe else None
    return {"format": 1, "model": settings.model_dump(mode="json"), "recipe": told}


def weights_of(folder: Path) -> Path:
    """The file that holds the numbers of a finished model, or of a training checkpoint."""
    return folder / (STATE if (folder / STATE_DESCRIPTION).is_file() else WEIGHTS)


def open_checkpoint(folder: Path) -> tuple[ModelSettings, TensorFiles]:
    """A model whose tensors are read when they are asked for: a finished one, or that of a training checkpoint.

    Returns:
        Its shape, and its tensors by name: those of `Decoder(settings).state_dict()`.

    Raises:
        DataError: the folder is no checkpoint, its hash is wrong, or a tensor is missing or misshapen.
    """
    weights = weights_of(folder).name
    in_training = weights == STATE
    description = STATE_DESCRIPTION if in_training else DESCRIPTION
    try:
        about = json.loads((folder / description).read_text())
        settings = ModelSettings.model_validate(about["note"]["model"] if in_training else about["model"])
        expected = about["sha256"]
        if about.pop("digest", None) not in (None, digest_of(about)):
            raise ValueError("it was changed after it was written")
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        problem = str(error).splitlines()[0]
        raise DataError(f"{folder} is not a model that loam trained: {description}: {problem}") from None
    if not (folder / weights).is_file():
        raise DataError(f"{folder / weights} is missing, though {description} describes it; train or import again")
    if (found := sha256_of(folder / weights)) != expected:
        raise DataError(f"{folder / weights}: expected sha256 {expected}, found {found}; train or import again")
    files = TensorFiles(folder / weights, "model.", HEAD_PREFIX) if in_training else TensorFiles(folder / weights)
    if any(".parametrizations." in name for name in files.shapes):
        raise DataError(f"{folder} holds low-rank updates apart from their weights; take final/ or adapter/ of its run")
    _check_shapes(folder, settings, files.shapes)
    return settings, files


def load_checkpoint(folder: Path) -> tuple[ModelSettings, dict[str, Tensor]]:
    """Read a finished model whole; otherwise as `open_checkpoint`."""
    settings, files = open_checkpoint(folder)
    return settings, {name: files.get(name) for name in files.shapes}


def load_model(folder: Path) -> Decoder:
    """The finished model of `folder`, in evaluation mode, fp32.

    Raises:
        DataError: as for `open_checkpoint`.
    """
    settings, files = open_checkpoint(folder)
    model = Decoder(settings)  # memory that nothing has touched yet is not yet taken
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(files.get(name))
    return model.eval()


def _check_shapes(folder: Path, settings: ModelSettings, found: Mapping[str, tuple[int, ...]]) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in _empty(settings).state_dict().items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise DataError(f"{folder}: tensor {name}: expected shape {expected.get(name)}, found {found.get(name)}")


def _empty(settings: ModelSettings) -> nn.Module:
    with torch.device("meta"):
        return Decoder(settings)


def _write_folder(
    folder: Path, weights: str, description: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]
) -> None:
    with _published(folder) as temporary:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary / weights)
        _describe(temporary / description, {**about, "sha256": sha256_of(temporary / weights)})


def _describe(path: Path, about: Mapping[str, Any]) -> None:
    plain = json.loads(json.dumps(about))  # as it will be read: keys are strings
    path.write_text(json.dumps({**plain, "digest": digest_of(plain)}, indent=1, sort_keys=True) + "\n")


@contextlib.contextmanager
def _published(folder: Path) -> Iterator[Path]:
    """A folder to fill, which then takes the place of `folder` for good; what was there is not lost to a kill."""
    temporary, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("tmp", "old"))
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for path in (*temporary.iterdir(), temporary):
            _flush(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # a full disk is no place for half a checkpoint
        raise
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.replace(old)
    temporary.replace(folder)
    _flush(folder.parent)  # the name, too, survives a loss of power
    shutil.rmtree(old, ignore_errors=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
