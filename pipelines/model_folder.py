"""A model on disk in Hugging Face format: a folder with config, safetensors weights and tokenizer.

Its identity is the digest of those files' bytes, never its path or name, so that scores and generations of another
model can be told apart. Pickled weights are refused: reading them runs code.
"""

import json
from pathlib import Path

from pipelines.errors import DataError
from pipelines.files import sha256_of
from pipelines.manifest import MANIFEST, digest_of

SUFFIXES = {".safetensors", ".json", ".jinja", ".model", ".txt"}


def digest_model(folder: Path) -> str:
    """Hash the files that make a model: weights, configuration, tokenizer and chat template.

    Args:
        folder: a model folder in Hugging Face format.

    Returns:
        64 hex digits.

    Raises:
        DataError: the folder has no config, no tokenizer or no safetensors weights.
    """
    check_model_folder(folder)
    files = sorted(p for p in folder.iterdir() if p.suffix in SUFFIXES and p.is_file() and p.name != MANIFEST)
    return digest_of({path.name: sha256_of(path) for path in files})


def check_model_folder(folder: Path) -> None:
    """Refuse a folder that transformers could not load from disk alone.

    Raises:
        DataError: names what is missing or damaged.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a model folder; give one in Hugging Face format, as `loam export` writes it")
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise DataError(f"{folder} has no {name}; give a model folder in Hugging Face format, tokenizer included")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise DataError(f"{folder} has no *.safetensors; pickled weights are not read, convert them first")
    for path in weights:
        _check_weights(path)


def _check_weights(path: Path) -> None:
    """Refuse a safetensors file that does not end where its header says (8 bytes of length, JSON, tensors)."""
    size = path.stat().st_size
    with path.open("rb") as file:
        begin = 8 + int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(begin - 8) if begin <= size else b"")
            end = begin + max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
        except (ValueError, AttributeError, LookupError, TypeError):
            raise DataError(f"{path} is damaged: it does not begin with a safetensors header; copy it again") from None
    if end != size:
        raise DataError(f"{path} is damaged: expected {end} bytes, found {size}; copy it again")
