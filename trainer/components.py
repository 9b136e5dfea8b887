"""One model for each domain, and what held-out text costs under each: the input of ensembles (MixMin, data experts).

All are the same small model on the same seed; they differ in what they read. Held-out text is scored as it is for a
held-out loss (packed windows, fp32), then summed over rows: documents, or runs of tokens within a document.

Legend: N rows, T scored tokens.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pipelines.errors import RecipeError
from pipelines.indexed import IndexedTokens
from pipelines.progress import track
from pipelines.shards import Blend, Shard, ShardSet
from trainer.checkpoint import load_model
from trainer.device import choose_device, torch_threads
from trainer.loop import trained_once
from trainer.recipe import TrainRecipe
from trainer.validation import losses_of

Rows = dict[str, np.ndarray]


def component_rows(
    recipe: TrainRecipe, shards: ShardSet, domains: Mapping[str, float], validation: ShardSet, work: Path,
    row_tokens: int,
) -> tuple[dict[str, Rows], Rows]:  # fmt: skip
    """Train a model on each domain and score held-out text with it.

    Args:
        recipe: of each model.
        shards: to train on.
        domains: names; of those with a weight above 0 there is a model.
        validation: held-out shards; `recipe.validation_tokens` of each are scored.
        work: models are kept in its scratch; a killed call goes on.
        row_tokens: tokens of a row, at most; 0 takes whole documents.

    Returns:
        Domain -> held-out name -> nats of each row, float64 (N,); and held-out name -> tokens of each row, int64 (N,).

    Raises:
        RecipeError: no vocabulary, or negative `row_tokens`.
        DataError: as for `trainer.loop.train`.
    """
    if row_tokens < 0:
        raise RecipeError(f"row_tokens is {row_tokens}; expected 0 (whole documents) or more")
    ends = {shard.name: _row_ends(shard, recipe.validation_tokens, row_tokens) for shard in validation.shards}
    names = sorted(name for name, weight in domains.items() if weight > 0)
    ordered = ShardSet(tuple(sorted(shards.shards, key=lambda shard: shard.name)))
    nll = {}
    with track("components", len(names), "models") as tracker:
        for done, name in enumerate(names, 1):
            model = trained_once(recipe, Blend.of({name: 1.0}, ordered), work, "component")
            nll[name] = {shard.name: _rows(recipe, model, shard, ends[shard.name]) for shard in validation.shards}
            tracker.update(done)
    return nll, {name: np.diff(end_N, prepend=0) for name, end_N in ends.items()}


def _rows(recipe: TrainRecipe, folder: Path, shard: Shard, end_N: np.ndarray) -> np.ndarray:
    """Nats of each row of a shard, float64 (N,)."""
    length = max(stage.sequence_length for stage in recipe.stages)
    with torch_threads(recipe.threads):
        model = load_model(folder).to(choose_device(recipe.device))
        batches = losses_of(model, shard, length, recipe.validation_tokens, recipe.separate_documents)
        losses_T = np.concatenate([losses.double().cpu().numpy().ravel() for losses in batches])
    return np.add.reduceat(losses_T, np.concatenate([[0], end_N[:-1]]))


def _row_ends(shard: Shard, max_tokens: int, row_tokens: int) -> np.ndarray:
    """Where each row ends among the scored tokens (all but the shard's first), int64 (N,), rising, none empty."""
    scored = min(shard.tokens - 1, max_tokens)
    ends = np.cumsum(np.asarray(IndexedTokens(shard.prefix).lengths), dtype=np.int64) - 1
    if row_tokens:
        begins = np.concatenate([[-1], ends[:-1]])
        inner = [np.arange(begin, end, row_tokens)[1:] for begin, end in zip(begins, ends, strict=True)]
        ends = np.concatenate([ends, *inner])
    ends = np.unique(np.minimum(ends, scored))
    return ends[ends > 0]
