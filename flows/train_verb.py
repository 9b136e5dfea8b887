"""What the verbs train, export and eval need beyond the functions that they call: finding things in folders."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.errors import DataError, RecipeError
from pipelines.recipe import Section, kind_of
from pipelines.shards import Blend, ShardSet
from pipelines.store import Outcome
from trainer.evaluate import EvaluateSettings
from trainer.recipe import TrainRecipe

if TYPE_CHECKING:
    from mixtures.mixture import Mixture


class NoSettings(Section):
    """Of verbs that have nothing to set."""


def train_on(
    recipe: TrainRecipe, data: Path, mixture: Path | None, tokenizer: Path | None, work: Path,
    held_out: Path | None = None,
) -> Outcome:  # fmt: skip
    """Train on a folder of shards.

    Args:
        recipe: what to train.
        data: folder with `train/` and `validation/` shards, or with shards.
        mixture: weights by domain, or a schedule of stages; in proportion to tokens when None.
        tokenizer: tokenizer folder, when the recipe does not state the size of the vocabulary.
        work: folder to fill.
        held_out: folder of held-out shards; `validation/` of `data` when not given.

    Raises:
        RecipeError: a stage names a blend, which here a schedule gives it.
        DataError: the domains of the mixture are not those of the shards, or it would read one beyond its cap.
    """
    from flows.scheduled_training import train_scheduled
    from mixtures.mixture import Mixture
    from trainer.loop import train
    from trainer.recipe import with_vocabulary
    from trainer.telemetry import Telemetry

    if named := [f"{stage.name} {stage.blend!r}" for stage in recipe.stages if stage.blend is not None]:
        raise RecipeError(
            f"stages of {recipe.name!r} draw from blends of their own: {', '.join(named)}; leave `blend` out and give "
            "--mixture a schedule, which has a mixture for each stage"
        )
    shards, validation = shards_of(data, held_out)
    sized = with_vocabulary(recipe, tokenizer) if tokenizer else recipe
    if mixture is not None and kind_of(str(mixture)) == "schedule":
        return train_scheduled(sized, mixture, shards, validation, work)
    outcome = train(sized, blend_of(mixture, shards, recipe.fresh_tokens), work, validation, [Telemetry(validation)])
    told = {"mixture": Mixture.read(mixture).fingerprint} if mixture is not None else {}
    return Outcome(outcome.counts, {**outcome.metrics, **told})


def shards_of(data: Path, held_out: Path | None = None) -> tuple[ShardSet, ShardSet | None]:
    """The shards to train on, and the held-out ones where there are any.

    Args:
        data: folder with `train/` and `validation/` shards, or with shards.
        held_out: folder of held-out shards; `validation/` of `data` when not given.

    Raises:
        DataError: there is none.
    """
    from pipelines.indexed import load_shards

    shards = load_shards(data / "train" if (data / "train").is_dir() else data)
    if not shards.shards:
        raise DataError(f"no shard (.bin and .idx) in {data}; `loam tokenize` writes them")
    place = held_out or data / "validation"
    validation = load_shards(place) if held_out or place.is_dir() else None
    if validation is not None and not validation.shards:
        raise DataError(f"no shard (.bin and .idx) in {place}; `loam tokenize` writes them")
    return shards, validation


def blend_of(mixture: Path | None, shards: ShardSet, tokens: int) -> Blend:
    """What a mixture makes of the shards; every shard counts by its tokens when there is none.

    Args:
        mixture: weights by domain.
        shards: what there is.
        tokens: of the run, without what is replayed.

    Raises:
        DataError: as for `check_mixture`.
    """
    from mixtures.mixture import Mixture

    if mixture is None:
        return Blend.of({shard.name: shard.tokens / shards.tokens for shard in shards.shards}, shards)
    found = Mixture.read(mixture)
    check_mixture(found, shards, tokens)
    return Blend.of(found.weights, shards)


def vocabulary_of(tokenizer: Path) -> int:
    """Tokens that a tokenizer knows."""
    from pipelines.tokenizer import load_tokenizer

    return load_tokenizer(tokenizer).vocab_size


def check_mixture(mixture: "Mixture", shards: ShardSet, tokens: int) -> None:
    """Compare a mixture with the shards that it is to be read from, by name, and its epochs with its caps.

    Args:
        mixture: what to train on.
        shards: what there is.
        tokens: of the run.

    Raises:
        DataError: a domain has no shard, a shard no weight (0 is one), or a domain would be read beyond its cap.
    """
    from flows.steps.mixing import domain_tokens
    from mixtures.bounds import caps_by_name
    from mixtures.mixture import Domains, check_same_names
    from trainer.stream import CAP_TOLERANCE

    held = domain_tokens(shards)
    check_same_names(f"mixture {mixture.name!r} ({mixture.fingerprint})", mixture.weights, "the shards", tuple(held))
    caps = caps_by_name(mixture.epoch_cap, tuple(held))
    epochs = mixture.epochs(Domains.of(held), tokens)
    worst = max(caps, key=lambda name: epochs[name] / caps[name], default=None)
    if worst is not None and epochs[worst] > caps[worst] * CAP_TOLERANCE:
        raise DataError(
            f"mixture {mixture.name!r} would read {worst} {epochs[worst]:.2f} times in {tokens} tokens, its cap is "
            f"{caps[worst]:g}: it was made for {mixture.tokens or 'another number of'} tokens; search again with yours"
        )


def evaluate_files(
    model: Path,
    work: Path,
    settings: EvaluateSettings,
    documents: Sequence[Path],
    items: Sequence[Path],
    text: str | None = None,
) -> Outcome:
    """Evaluate a Hugging Face folder on document files (one domain, `documents`) and item files.

    Args:
        model: folder.
        work: folder to fill.
        settings: how much is measured.
        documents: files.
        items: files.
        text: template of the documents' text; `{text}` when not given.
    """
    from pipelines.inputs import as_documents
    from pipelines.textless import refuse_textless
    from trainer.evaluate import evaluate

    read = as_documents(documents, work, text=text)
    refuse_textless(read, documents, work, text)
    return evaluate(model, work, settings, {"documents": read} if documents else {}, items)
