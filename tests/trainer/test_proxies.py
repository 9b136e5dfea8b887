import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

from pipelines.encode import EncodeSettings, encode
from pipelines.errors import DataError, StepError
from pipelines.indexed import IndexedWriter, load_shards
from pipelines.recipe import find_recipe, load_recipe
from pipelines.shards import Blend, ShardSet
from trainer.evaluate import EvaluateSettings
from trainer.proxies import Exam, ProxyJob, train_proxies
from trainer.recipe import TrainRecipe, with_vocabulary

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


def test_a_proxy_that_diverges_is_told_without_a_place(tmp_path: Path):
    shards = shards_of(tmp_path / "shards")
    stages = [RECIPE.stages[0].model_copy(update={"learning_rate": 1e30, "warmup": 0.0, "tokens": 256})]
    broken = RECIPE.model_copy(update={"stages": stages})
    for name in ("here", "there"):
        with pytest.raises(DataError, match=r"all 1 proxies failed; the first: .* has loss .* and gradient norm nan$"):
            train_proxies(jobs_of(shards)[:1], broken, shards, tmp_path / name, spare=True)
    assert outputs(tmp_path / "here") == outputs(tmp_path / "there")
    assert "failed" in json.loads((tmp_path / "here" / "proxies" / "z-even.json").read_text())


def test_a_full_disk_is_no_result_of_a_proxy(tmp_path: Path):
    shards, work = shards_of(tmp_path / "shards"), tmp_path / "work"
    jobs, recipe = jobs_of(shards)[:1], RECIPE.model_copy(update={"checkpoint_every": 5})
    scratch = work / ".scratch" / "proxies" / "z-even" / ".scratch"
    scratch.mkdir(parents=True)
    (scratch / "checkpoints").write_text("no checkpoint can be written here")
    with pytest.raises(StepError, match="make room and run again"):
        train_proxies(jobs, recipe, shards, work, spare=True)
    assert not list(work.glob("proxies/*"))
    (scratch / "checkpoints").unlink()
    assert "failed" not in json.dumps(train_proxies(jobs, recipe, shards, work).metrics)


@pytest.mark.parametrize(("ids", "problem"), [(["a", "a"], "two proxies are called 'a'"), (["../a"], "proxy id")])
def test_ids_are_unique_names(tmp_path: Path, ids: list[str], problem: str):
    shards = shards_of(tmp_path / "shards")
    blend = Blend.of({"even": 1.0}, shards)
    with pytest.raises(DataError, match=problem):
        train_proxies([ProxyJob(name, blend, 0) for name in ids], RECIPE, shards, tmp_path / "work")


@pytest.mark.slow
def test_an_exam_is_taken_by_the_exported_model(tmp_path: Path, tiny_model: Path, tiny_documents: Path):
    encode([tiny_documents], tmp_path / "shards", tiny_model, EncodeSettings(validation_share=0.4))
    shards, held_out = (load_shards(tmp_path / "shards" / part) for part in ("train", "validation"))
    items = tmp_path / "quiz.jsonl"
    items.write_text("".join(json.dumps({"query": q, "choices": ["clay", "sand"], "gold": 0}) + "\n" for q in "abc"))
    exam = Exam(tiny_model, tmp_path / "shards/validation", (items,), EvaluateSettings(tokens_per_domain=None))
    recipe = with_vocabulary(RECIPE, tiny_model)
    jobs = [ProxyJob(f"p{seed}", Blend.of({s.name: 1 / len(shards.shards) for s in shards.shards}, shards), seed)
            for seed in (1, 2)]  # fmt: skip
    train_proxies(jobs, recipe, held_out, tmp_path / "one", exam=exam)
    train_proxies(jobs, recipe, held_out, tmp_path / "two", workers=2, exam=exam)
    assert outputs(tmp_path / "one") == outputs(tmp_path / "two")
    results = [json.loads((tmp_path / f"one/proxies/p{seed}.json").read_text()) for seed in (1, 2)]
    assert [result["evaluation"]["benchmarks"]["quiz"]["items"] for result in results] == [3, 3]
    for result in results:  # the exam scores the export: the trainer's own loss in other units
        for domain, found in result["held_out"].items():
            asked = result["evaluation"]["domains"][domain]
            bits = found["loss"] * asked["tokens"] / asked["bytes"] / math.log(2)
            assert asked["bits_per_byte"] == pytest.approx(bits, rel=0.15)  # windows and end tokens differ
    before = (tmp_path / "one/proxies/p1.json").stat().st_mtime_ns
    train_proxies(jobs, recipe, held_out, tmp_path / "one", exam=exam)
    assert (tmp_path / "one/proxies/p1.json").stat().st_mtime_ns == before
    items.write_text(items.read_text() + json.dumps({"query": "d", "choices": ["clay", "sand"], "gold": 1}) + "\n")
    train_proxies(jobs[:1], recipe, held_out, tmp_path / "one", exam=exam)  # other items: asked again
    again = json.loads((tmp_path / "one/proxies/p1.json").read_text())
    assert again["evaluation"]["benchmarks"]["quiz"]["items"] == 4


@pytest.mark.parametrize("name", ["proxy-tiny", "moe-tiny"])
def test_shipped_recipes_load(name: str):
    recipe = load_recipe(name, TrainRecipe)
    assert recipe.name == find_recipe(name).stem
    assert 3e5 < recipe.model.with_vocabulary(4096).parameters() < 3e6
