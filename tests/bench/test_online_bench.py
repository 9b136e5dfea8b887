"""What online mixing costs beside plain training of the same steps, and MixMin's solver beside scipy's; CPU seconds."""

from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize

from mixtures.mixmin import ComponentScores, mixmin
from pipelines.indexed import IndexedWriter, load_shards
from pipelines.recipe import load_recipe
from pipelines.shards import Blend
from tests.bench.cpu_time import cpu_seconds
from trainer.loop import train
from trainer.online import OnlineData, mix_online
from trainer.online_settings import OnlineSettings
from trainer.recipe import TrainRecipe

pytestmark = pytest.mark.bench
DOMAINS = 8


def test_online_mixing_beside_plain_training(tmp_path: Path):
    recipe = load_recipe("proxy-tiny", TrainRecipe, ["precision=fp32", "epoch_cap=null", "validation_tokens=2K"])
    stage = recipe.stages[0].model_copy(update={"tokens": 48 * 2048, "batch_tokens": 2048})
    recipe = recipe.model_copy(update={"stages": [stage], "model": recipe.model.with_vocabulary(1024)})
    random = np.random.default_rng(0)
    for number in range(DOMAINS):
        with IndexedWriter(tmp_path / "shards" / f"d{number}", 1024) as writer:
            for _ in range(40):
                writer.append(random.zipf(1.2, 500) % (100 + 100 * number), np.array([500]))
    shards = load_shards(tmp_path / "shards")
    prior = {shard.name: 1 / DOMAINS for shard in shards.shards}
    plain = cpu_seconds(lambda: train(recipe, Blend.of(prior, shards), tmp_path / "plain"))
    print(f"\nplain: {plain:.2f} s for {stage.steps} steps")
    for method in ("ado", "aioli", "doge", "doremi"):
        settings = OnlineSettings.model_validate(
            {"method": method, "doremi": {"rounds": 1}, "aioli": {"rounds": 2, "probe_tokens": 2048}}
        )
        data = OnlineData(shards, prior, shards)
        seconds = cpu_seconds(
            lambda given=settings, held=data: mix_online(recipe, held, given, tmp_path / given.method)
        )
        print(f"{method}: {seconds:.2f} s, {seconds / plain:.2f} times plain")


def test_mixmin_beside_slsqp():
    random = np.random.default_rng(0)
    tokens = {f"t{n}": np.ones(4000, int) for n in range(4)}
    nll = {f"d{n}": {name: random.exponential(4, 4000) for name in tokens} for n in range(16)}
    scores = ComponentScores.of(nll, tokens)
    likelihood_ND = np.exp(-scores.nll_ND)

    def slsqp() -> float:
        return minimize(
            lambda w: (-np.log(likelihood_ND @ w).mean(), -(likelihood_ND / (likelihood_ND @ w)[:, None]).mean(axis=0)),
            np.full(16, 1 / 16), jac=True, bounds=[(1e-12, 1)] * 16, method="SLSQP", options={"ftol": 1e-9},
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(16)},
        ).fun  # fmt: skip

    found = mixmin(scores)
    ours, theirs = cpu_seconds(lambda: mixmin(scores), 3), cpu_seconds(slsqp, 3)
    print(f"\nmixmin: {ours:.3f} s, gap {found.gap:.1e} in {found.iterations} steps; SLSQP {theirs:.3f} s, "
          f"loss {slsqp() - found.loss:+.1e} beside ours")  # fmt: skip
    assert found.loss - slsqp() <= 2e-6
