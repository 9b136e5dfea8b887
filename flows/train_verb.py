"""What the verbs train, export and eval need beyond the functions that they call: finding things in folders."""

from collections.abc import Sequence
from pathlib import Path

from pipelines.errors import DataError
from pipelines.recipe import Section
from pipelines.shards import Blend
from pipelines.store import Outcome
from trainer.evaluate import EvaluateSettings
from trainer.recipe import TrainRecipe


class NoSettings(Section):
    """Of verbs that have nothing to set."""


def train_on(recipe: TrainRecipe, data: Path, mixture: Path | None, tokenizer: Path | None, work: Path) -> Outcome:
    """Train on a folder of shards.

    Args:
        recipe: what to train.
        data: folder with `train/` and `validation/` shards, or with shards.
        mixture: weights by shard name; in proportion to tokens when None.
        tokenizer: tokenizer folder, when the recipe does not state the size of the vocabulary.
        work: folder to fill.
    """
    from mixtures.mixture import Mixture
    from pipelines.indexed import load_shards
    from trainer.loop import train
    from trainer.recipe import with_vocabulary

    shards = load_shards(data / "train" if (data / "train").is_dir() else data)
    if not shards.shards:
        raise DataError(f"no shard (.bin and .idx) in {data}; `loam tokenize` writes them")
    weights = Mixture.read(mixture).weights if mixture else {s.name: s.tokens / shards.tokens for s in shards.shards}
    validation = load_shards(data / "validation") if (data / "validation").is_dir() else None
    sized = with_vocabulary(recipe, tokenizer) if tokenizer else recipe
    return train(sized, Blend.of(weights, shards), work, validation)


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


def evaluate_files(
    model: Path, work: Path, settings: EvaluateSettings, documents: Sequence[Path], items: Sequence[Path]
) -> Outcome:
    """Evaluate a Hugging Face folder on document files (one domain, `documents`) and item files."""
    from pipelines.inputs import as_documents
    from trainer.evaluate import evaluate

    return evaluate(model, work, settings, {"documents": as_documents(documents, work)} if documents else {}, items)
