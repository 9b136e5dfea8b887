"""Online mixing and ensembles on a folder of shards: where `trainer` and `mixtures` meet.

`trainer` trains and measures, `mixtures` solves and writes mixtures; this module finds the data in a folder and hands
over. What a small model reads may be a run (its tokens, held-out documents and tokenizer) or a folder of shards.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flows.kinds import load_any
from pipelines.errors import DataError, RecipeError
from pipelines.shards import ShardSet
from pipelines.store import Outcome
from trainer.recipe import TrainRecipe, with_vocabulary

if TYPE_CHECKING:
    from trainer.online_settings import OnlineSettings

SCORES = "scores.npz"


@dataclass(frozen=True)
class Source:
    """What small models read.

    Attributes:
        shards: to train on.
        validation: held-out shards, where there are any.
        prior: domain -> share of tokens, or the weights of a mixture.
        folders: that were read, for the manifest.
        tokenizer: the run's, where the folder is a run.
    """

    shards: ShardSet
    validation: ShardSet | None
    prior: dict[str, float]
    folders: tuple[Path, ...]
    tokenizer: Path | None = None


def source_of(data: Path, mixture: Path | None) -> Source:
    """Find shards in a folder.

    Args:
        data: a run, a folder with `train/` and `validation/`, or a folder of shards.
        mixture: weights to begin from; in proportion to tokens when None.

    Raises:
        DataError: no shards, or the mixture names others.
    """
    from flows.steps.mixing import domain_tokens
    from mixtures.mixture import Mixture, check_same_names
    from pipelines.indexed import load_shards

    is_run = (data / "tokens" / "train").is_dir()
    root, held_root = (data / "tokens", data / "plain_tokens") if is_run else (data, data)
    train = root / "train" if (root / "train").is_dir() else root
    held = held_root / "validation"
    shards = load_shards(train)
    tokens = domain_tokens(shards)
    prior = {name: count / sum(tokens.values()) for name, count in sorted(tokens.items())}
    if mixture is not None:
        found = Mixture.read(mixture)
        check_same_names(f"mixture {found.name!r}", found.weights, "the shards", tuple(tokens), subset=True)
        total = sum(found.weights.values())
        prior = {name: weight / total for name, weight in sorted(found.weights.items()) if weight > 0}
    has_held = held.is_dir()
    tokenizer = data / "tokenizer" / "tokenizer"
    return Source(
        shards, load_shards(held) if has_held else None, prior, (train, held) if has_held else (train,),
        tokenizer if is_run and tokenizer.is_dir() else None,
    )  # fmt: skip


def small_model(recipe: str, sets: Sequence[str], tokenizer: Path | None) -> TrainRecipe:
    """The recipe of the small model: a recipe of kind train, or the proxy of one with an ablation.

    Args:
        recipe: name or path.
        sets: overrides of it.
        tokenizer: for the size of the vocabulary, where the recipe does not state it.

    Raises:
        RecipeError: the recipe is of another kind, or does not hold.
    """
    loaded = load_any(recipe, sets)
    found = loaded if isinstance(loaded, TrainRecipe) else getattr(getattr(loaded, "ablate", None), "proxy", None)
    if not isinstance(found, TrainRecipe):
        raise RecipeError(f"{recipe}: expected a recipe of kind train, or one whose ablate.proxy is a small model")
    return with_vocabulary(found, tokenizer) if tokenizer else found


def mix_online(model: TrainRecipe, source: Source, settings: "OnlineSettings", work: Path) -> Outcome:
    """Run an online method; write `mixture.yaml` beside what `trainer.online` writes."""
    from mixtures.mixture import Mixture
    from trainer.online import OnlineData
    from trainer.online import mix_online as search

    outcome = search(model, OnlineData(source.shards, source.prior, source.validation), settings, work)
    found = outcome.metrics
    mixture = Mixture.rounded(settings.method, found["weights"])
    mixture.write(work / "mixture.yaml")
    last = found["rounds"][-1]
    return Outcome(metrics={
        "method": settings.method, "rounds": len(found["rounds"]), "tokens": found["tokens"],
        "counted_steps": last["counted_steps"], "weights": mixture.weights,
        "domains": last["domains"],
    })  # fmt: skip


def mix_components(model: TrainRecipe, source: Source, row_tokens: int, work: Path) -> Outcome:
    """Train a model on each domain; write `scores.npz`, held-out text under each.

    Raises:
        DataError: there is no held-out text.
    """
    from mixtures.mixmin import ComponentScores
    from trainer.components import component_rows

    if source.validation is None:
        raise DataError("components are scored on held-out text: give a folder with train/ and validation/ shards")
    model.require_vocabulary()
    nll, tokens = component_rows(model, source.shards, source.prior, source.validation, work, row_tokens)
    scores = ComponentScores.of(nll, tokens)
    scores.write(work / SCORES)
    return Outcome(metrics={
        "components": len(scores.components), "rows": len(scores.tokens_N), "tokens": len(nll) * model.tokens,
        "losses": {
            name: {held: round(float(nats.sum() / tokens[held].sum()), 6) for held, nats in rows.items()}
            for name, rows in nll.items()
        },
    })  # fmt: skip


def mix_mixmin(
    scores: Path, targets: Sequence[str], ratios: Path | None, metrics: Path | None, work: Path
) -> Outcome:  # fmt: skip
    """Solve the ensemble; write `mixture.yaml` and, of given mixtures, `ensemble.csv`.

    Args:
        scores: of `mix_components`.
        targets: held-out sets that count; all when empty.
        ratios: mixtures whose ensemble losses are wanted.
        metrics: what their proxies measured, to compare.
        work: folder to fill.

    Raises:
        DataError: tables that do not fit each other.
    """
    from mixtures.mixmin import ComponentScores, agreement, ensemble_losses, mixmin
    from mixtures.mixture import Mixture
    from mixtures.tables import Metrics, Ratios

    held = ComponentScores.read(scores)
    solved = mixmin(held, targets)
    Mixture.rounded("mixmin", solved.weights).write(work / "mixture.yaml")
    told = solved.summary()
    if ratios is not None:
        ensemble = ensemble_losses(held, Ratios.read_csv(ratios))
        ensemble.write_csv(work / "ensemble.csv")
        if metrics is not None:
            told["agreement"] = agreement(ensemble, Metrics.read_csv(metrics))
    return Outcome(metrics=told)
