"""A model on disk in Hugging Face format: a folder with config, safetensors weights and tokenizer.

Its identity is the digest of those files' bytes, never its path or name, so that scores and generations of another
model can be told apart. Pickled weights are refused: reading them runs code.
"""

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
        DataError: names what is missing.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a model folder; give one in Hugging Face format, as `loam export` writes it")
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise DataError(f"{folder} has no {name}; give a model folder in Hugging Face format, tokenizer included")
    if not any(folder.glob("*.safetensors")):
        raise DataError(f"{folder} has no *.safetensors; pickled weights are not read, convert them first")
