from pathlib import Path

import numpy as np
import pytest

from pipelines.errors import RecipeError
from pipelines.indexed import IndexedTokens, IndexedWriter, load_shards
from pipelines.shards import Blend, Shard, ShardSet
from tests.trainer.cycles import shards_of
from trainer.components import _row_ends, component_rows
from trainer.loop import train
from trainer.recipe import TrainRecipe

RECIPE = TrainRecipe.model_validate({
    "name": "tiny",
    "model": {
        "layers": 1, "width": 16, "heads": 2, "kv_heads": 1, "head_dim": 8, "ffn_width": 24, "vocab_size": 32,
        "max_sequence": 16,
    },
    "stages": [{"tokens": 2048, "sequence_length": 16, "batch_tokens": 128, "learning_rate": 1e-2}],
    "validation_tokens": 500, "device": "cpu",
})  # fmt: skip


def test_a_domains_model_knows_its_own_text(tmp_path: Path):
    shards = shards_of(tmp_path / "shards")
    nll, tokens = component_rows(RECIPE, shards, {"odd": 0.5, "even": 0.5}, shards, tmp_path / "work", 0)
    assert list(nll) == ["even", "odd"]
    for own, other in (("even", "odd"), ("odd", "even")):
        assert nll[own][own].sum() < 0.7 * nll[other][own].sum()
    assert tokens["even"].tolist() == [24, *range(26, 40), 500 - 24 - sum(range(26, 40))]


def test_rows_add_up_to_the_held_out_loss(tmp_path: Path):
    shards = shards_of(tmp_path / "shards")
    nll, tokens = component_rows(RECIPE, shards, {"even": 1.0, "odd": 0.0}, shards, tmp_path / "work", 7)
    held = train(RECIPE, _only(shards), tmp_path / "same", shards).metrics["held_out"]
    assert list(nll) == ["even"]
    for name in ("even", "odd"):
        assert tokens[name].sum() == held[name]["tokens"] == 500
        assert nll["even"][name].sum() / 500 == pytest.approx(held[name]["loss"], abs=1e-6)


def _only(shards: ShardSet) -> Blend:

    return Blend.of({"even": 1.0}, shards)


def row_lengths(shard: Shard, max_tokens: int, row_tokens: int) -> list[int]:
    return np.diff(_row_ends(shard, max_tokens, row_tokens), prepend=0).tolist()


def test_rows_are_documents_or_runs_of_tokens_in_them(tmp_path: Path):
    with IndexedWriter(tmp_path / "a", 100) as writer:
        writer.append(np.arange(17), np.array([6, 1, 10]))
    (shard,) = load_shards(tmp_path).shards
    assert len(IndexedTokens(shard.prefix)) == 3
    assert row_lengths(shard, 100, 0) == [5, 1, 10]  # the very first token is not scored
    assert row_lengths(shard, 100, 4) == [3, 2, 1, 4, 4, 2]
    assert row_lengths(shard, 100, 1) == [1] * 16
    assert row_lengths(shard, 8, 0) == [5, 1, 2]
    with pytest.raises(RecipeError, match="row_tokens is -1"):
        component_rows(RECIPE, load_shards(tmp_path), {"a": 1.0}, load_shards(tmp_path), tmp_path, -1)


def test_a_killed_call_trains_no_model_twice(tmp_path: Path):
    shards = shards_of(tmp_path / "shards")
    first, _ = component_rows(RECIPE, shards, {"even": 1.0}, shards, tmp_path / "work", 0)
    (model,) = (tmp_path / "work" / ".scratch").glob("component-*")
    before = (model / "final" / "model.safetensors").stat().st_mtime_ns
    again, _ = component_rows(RECIPE, shards, {"even": 0.5, "odd": 0.5}, shards, tmp_path / "work", 0)
    assert np.array_equal(first["even"]["odd"], again["even"]["odd"])
    assert (model / "final" / "model.safetensors").stat().st_mtime_ns == before
