import csv
import json
from pathlib import Path

import numpy as np
import pytest

from pipelines.errors import DataError
from pipelines.indexed import IndexedWriter, load_shards
from pipelines.recipe import find_recipe, load_recipe
from pipelines.shards import Blend, ShardSet
from trainer.proxies import ProxyJob, train_proxies
from trainer.recipe import TrainRecipe

RECIPE = TrainRecipe.model_validate({
    "name": "proxy",
    "model": {"layers": 1, "width": 16, "heads": 2, "kv_heads": 1, "head_dim": 8, "ffn_width": 24, "vocab_size": 32},
    "stages": [{"tokens": 2048, "sequence_length": 16, "batch_tokens": 64, "learning_rate": 1e-2}],
    "device": "cpu",
})  # fmt: skip


def shards_of(folder: Path) -> ShardSet:
    for name, first in (("even", 0), ("odd", 1)):
        with IndexedWriter(folder / name, 32) as writer:
            writer.append(np.resize(np.arange(first, 16, 2), 600), np.full(20, 30))
    return load_shards(folder)


def jobs_of(shards: ShardSet) -> list[ProxyJob]:
    weights = {"z-even": 0.95, "a-mixed": 0.5, "odd": 0.05}
    return [ProxyJob(name, Blend.of({"even": w, "odd": 1 - w}, shards), 7) for name, w in weights.items()]


def outputs(work: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in work.rglob("*") if p.is_file() and ".scratch" not in p.parts}


def test_workers_and_kills_change_no_byte_and_mixtures_show(tmp_path: Path):
    shards = shards_of(tmp_path / "shards")
    jobs = jobs_of(shards)
    train_proxies(jobs, RECIPE, shards, tmp_path / "one")
    train_proxies(jobs, RECIPE, shards, tmp_path / "two", workers=2)
    assert outputs(tmp_path / "one") == outputs(tmp_path / "two")
    rows = list(csv.DictReader((tmp_path / "one" / "metrics.csv").open()))
    assert [row["id"] for row in rows] == ["z-even", "a-mixed", "odd"]
    assert float(rows[0]["even"]) < float(rows[2]["even"])
    assert float(rows[0]["odd"]) > float(rows[2]["odd"])


def test_a_finished_proxy_is_not_trained_again(tmp_path: Path):
    shards = shards_of(tmp_path / "shards")
    jobs, work = jobs_of(shards)[:2], tmp_path / "work"
    train_proxies(jobs[:1], RECIPE, shards, work)
    path = work / "proxies" / "z-even.json"
    result = json.loads(path.read_text())
    result["held_out"]["even"]["loss"] = 123.0  # would be overwritten by training
    path.write_text(json.dumps(result))
    train_proxies(jobs, RECIPE, shards, work)
    assert (work / "metrics.csv").read_text().splitlines()[1].startswith("z-even,123.000000,")
    train_proxies(jobs, RECIPE.model_copy(update={"grad_clip": 0.5}), shards, work)
    assert "123.0" not in (work / "metrics.csv").read_text()


def test_a_failing_proxy_is_a_clean_error(tmp_path: Path):
    shards = shards_of(tmp_path / "shards")
    with pytest.raises(DataError, match="the cap is 1"):
        train_proxies(jobs_of(shards), RECIPE.model_copy(update={"epoch_cap": 1.0}), shards, tmp_path / "w", workers=2)


@pytest.mark.parametrize(("ids", "problem"), [(["a", "a"], "two proxies are called 'a'"), (["../a"], "proxy id")])
def test_ids_are_unique_names(tmp_path: Path, ids: list[str], problem: str):
    shards = shards_of(tmp_path / "shards")
    blend = Blend.of({"even": 1.0}, shards)
    with pytest.raises(DataError, match=problem):
        train_proxies([ProxyJob(name, blend, 0) for name in ids], RECIPE, shards, tmp_path / "work")


@pytest.mark.parametrize("name", ["proxy-tiny", "moe-tiny"])
def test_shipped_recipes_load(name: str):
    recipe = load_recipe(name, TrainRecipe)
    assert recipe.name == find_recipe(name).stem
    assert 3e5 < recipe.model.with_vocabulary(4096).parameters() < 3e6
