"""Where a run keeps its model: the native checkpoint, the Hugging Face folder, the tokenizer."""

from pathlib import Path

from pipelines.errors import DataError


def checkpoint_of(source: Path) -> tuple[Path, Path | None]:
    """The native checkpoint in a run, a training folder or itself, and the run's tokenizer folder if there is one.

    Raises:
        DataError: none is there.
    """
    for below in ("train/final", "final", "."):
        if (source / below / "model.safetensors").is_file():
            tokenizer = source / "tokenizer" / "tokenizer"
            return source / below, tokenizer if tokenizer.is_dir() else None
    raise DataError(f"{source} holds no checkpoint (model.safetensors); give a run whose step `train` is done")


def hf_folder_of(source: Path) -> Path:
    """The Hugging Face folder in a run, or itself.

    Raises:
        DataError: none is there.
    """
    for below in ("export/hf", "hf", "."):
        if (source / below / "config.json").is_file():
            return source / below
    raise DataError(f"{source} holds no Hugging Face model (config.json); `loam export` writes one")
