"""A Hugging Face folder as a checkpoint of ours, to train on or to export again.

Only architectures that the decoder computes exactly are taken (`hf_format.py`); anything else is refused by name
instead of being approximated. Weights are read from safetensors alone, never from pickles.
"""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipelines.errors import DataError
from trainer.checkpoint import save_model
from trainer.hf_format import from_hf, settings_of
from trainer.model import Decoder


def import_hf(model_dir: Path, out: Path) -> dict[str, Any]:
    """Write `out/final`, the native checkpoint of a Hugging Face model.

    Args:
        model_dir: folder with config.json and safetensors.
        out: folder to fill.

    Returns:
        Metrics: architecture, parameters and layers.

    Raises:
        DataError: the architecture is not supported (the message lists which are), or weights are missing or misshapen.
    """
    config = _read_config(model_dir)
    described = settings_of(config, str(model_dir))
    tensors, settings = from_hf(_read_weights(model_dir), described, str(model_dir))
    model = Decoder(settings)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise DataError(f"{model_dir}: tensor {name}: expected shape {expected.get(name)}, found {found.get(name)}")
    model.load_state_dict(tensors)
    save_model(out / "final", model)
    return {
        "model_type": config["model_type"],
        "parameters": settings.parameters(),
        "active_parameters": settings.active_parameters(),
        "layers": settings.layers,
        "vocab_size": settings.vocab_size,
    }


def _read_config(model_dir: Path) -> dict[str, Any]:
    path = model_dir / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{model_dir} has no config.json; give a model folder in Hugging Face format") from None
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise DataError(f"{path} holds no mapping")
    return config


def _read_weights(model_dir: Path) -> dict[str, Tensor]:
    files = sorted(model_dir.glob("*.safetensors"))
    if not files:
        raise DataError(f"{model_dir} has no *.safetensors; pickled weights are not read, convert them first")
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors |= load_file(file)
        except (SafetensorError, OSError) as error:
            raise DataError(f"{file} cannot be read: {error}") from None
    return tensors
