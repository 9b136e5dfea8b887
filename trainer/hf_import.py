"""A Hugging Face folder as a checkpoint of ours, to train on or to export again.

Only architectures that the decoder computes exactly are taken (`trainer/families/`); anything else is refused by name
instead of being approximated. Weights are read from safetensors alone, never from pickles; names and shapes of all are
checked before the first is read, and only one tensor is in memory at a time.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.errors import DataError
from trainer.checkpoint import save_pieces
from trainer.families.family import Family
from trainer.families.registry import shape_of
from trainer.families.tensors import EMBEDDING, HEAD, Piece, copies_of, pieces_of
from trainer.model_recipe import ModelSettings
from trainer.tensor_files import TensorFiles

NUMBERS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # others are codes that want scales


def import_hf(model_dir: Path, out: Path) -> dict[str, Any]:
    """Write `out/final`, the native checkpoint of a Hugging Face model.

    Args:
        model_dir: folder with config.json and safetensors.
        out: folder to fill.

    Returns:
        Metrics: model type, parameters, those active for a token, layers, prediction modules, vocabulary.

    Raises:
        DataError: the architecture is not supported (the message lists which are), or weights are missing, misshapen,
            quantized or not finite.
    """
    config = _read_config(model_dir)
    family, described = shape_of(config, str(model_dir))
    files = TensorFiles(model_dir)
    settings = _as_stored(files, family, described)
    pieces = pieces_of(settings, family, family.neighbours and config.get("rope_interleave", True))
    _check(model_dir, files, pieces, settings)
    save_pieces(out / "final", settings, _numbers(files, pieces))
    return {
        "model_type": family.model_type,
        "parameters": settings.parameters(),
        "active_parameters": settings.active_parameters(),
        "layers": settings.layers,
        "mtp_layers": settings.mtp_layers,
        "vocab_size": settings.vocab_size,
    }


def _as_stored(files: TensorFiles, family: Family, settings: ModelSettings) -> ModelSettings:
    """The shape as the files have it: prediction modules may be left out, and a tied projection may be written out."""
    if settings.mtp_layers and f"model.layers.{settings.layers}.eh_proj.weight" not in files.shapes:
        settings = settings.model_copy(update={"mtp_layers": 0})
    if not family.ties and {HEAD, EMBEDDING} <= files.shapes.keys():
        tied = torch.equal(files.get(HEAD), files.get(EMBEDDING))
        settings = settings.model_copy(update={"tie_embeddings": tied})
    return settings


def _check(model_dir: Path, files: TensorFiles, pieces: Sequence[Piece], settings: ModelSettings) -> None:
    """Refuse a folder that does not hold exactly the model."""
    expected = {name: shape for piece in pieces for name, shape in piece.sources.items()}
    for name, shape in expected.items():
        if name not in files.shapes:
            raise DataError(f"{model_dir}: tensor {name} is missing; expected shape {shape}")
        if files.shapes[name] != shape:
            raise DataError(f"{model_dir}: tensor {name}: expected shape {shape}, found {files.shapes[name]}")
    copies = {name: HEAD if of == HEAD and HEAD in files.shapes else EMBEDDING if of == HEAD else of
              for name, of in copies_of(settings).items() if name in files.shapes}  # fmt: skip
    for name, original in copies.items():
        if not torch.equal(files.get(name), files.get(original)):
            raise DataError(
                f"{model_dir}: {name} differs from {original}; expected the copy that is shared in training"
            )
    known = expected.keys() | copies.keys() | ({HEAD} if settings.tie_embeddings else set())
    for name in sorted(files.shapes.keys() - known):
        if not name.endswith("rotary_emb.inv_freq"):
            raise DataError(f"{model_dir}: tensor {name} of shape {files.shapes[name]} has no place in this model")


def _numbers(files: TensorFiles, pieces: Sequence[Piece]) -> Iterator[Tensor]:
    for piece in pieces:
        for source in piece.sources:
            stored = files.get(source)
            if stored.dtype not in NUMBERS:
                raise DataError(f"{files.place}: tensor {source} is stored as {stored.dtype}; convert it to bf16 first")
            numbers = piece.ours(stored).float()
            if not torch.isfinite(numbers).all():
                raise DataError(
                    f"{files.place}: tensor {source} holds NaN or infinite numbers; fetch or train it again"
                )
            yield numbers


def _read_config(model_dir: Path) -> dict[str, Any]:
    path = model_dir / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{model_dir} has no config.json; give a model folder in Hugging Face format") from None
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}; give a model folder in Hugging Face format"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise DataError(f"{path} holds no mapping")
    return config
