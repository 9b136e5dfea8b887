"""The paired swarm: both architectures read the same, have as many active parameters, and the answer follows."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.graph import steps_of
from flows.kinds import load_build
from flows.pairing_recipe import PairingSettings
from flows.recipe import RunRecipe
from flows.steps.pairing import pairing_steps, routing
from pipelines.errors import RecipeError

DENSE = {"layers": 1, "width": 16, "heads": 1, "kv_heads": 1, "head_dim": 16, "ffn_width": 48, "max_sequence": 64}
EXPERTS = DENSE | {"experts": 4, "experts_per_token": 2, "expert_width": 16, "dense_layers": 0}
STAGES = [{"tokens": "2K", "sequence_length": 64, "batch_tokens": 256, "learning_rate": 4e-3}]


def pairing(dense: dict[str, Any] = DENSE, experts: dict[str, Any] = EXPERTS) -> PairingSettings:
    proxy = {"name": "p", "model": dense, "stages": STAGES, "seed": 7, "validation_tokens": "1K"}
    return PairingSettings.model_validate({"mixtures": 4, "replicates": 1, "dense": proxy, "experts": experts})


def test_both_sides_differ_in_their_shape_alone():
    dense, moe = pairing().sides().values()
    assert moe.model.experts == 4
    assert dense.model_dump(exclude={"model"}) == moe.model_dump(exclude={"model"})
    ours, theirs = dense.model.active_parameters(), moe.model.active_parameters()
    assert theirs - ours == 4 * 16  # the router


@pytest.mark.parametrize(
    ("dense", "experts", "words"),
    [(DENSE, EXPERTS | {"expert_width": 32}, "active parameters beside its embedding"),
     (DENSE, EXPERTS | {"width": 24}, "width of both models must be equal"),
     (EXPERTS, EXPERTS, "pairing.dense must have no experts"),
     (DENSE, DENSE, "pairing.experts must have some")],
)  # fmt: skip
def test_models_that_are_no_pair(dense, experts, words):
    with pytest.raises(ValueError, match=words):
        pairing(dense, experts)


def test_the_recipe_needs_neither_language_model_nor_synthesis():
    recipe = load_build("dense-moe")
    assert isinstance(recipe, RunRecipe)
    steps = {step.name: step for step in steps_of(recipe)}
    needed, queue = set(), ["pairing"]
    while queue:
        name = queue.pop()
        needed.add(name)
        queue += steps[name].parents
    assert {"pairing_swarm", "pairing_dense", "pairing_moe"} <= needed
    assert not needed & {"language_model", "synth", "proxies", "train"}
    assert pairing_steps(load_build("quickstart")) == []


def test_a_recipe_with_models_that_are_no_pair_is_refused_before_anything_runs():
    with pytest.raises(RecipeError, match="they may differ by 2%"):
        load_build("dense-moe", ["pairing.experts.expert_width=96"])


def test_routing_is_averaged_over_models_and_layers():
    def model(load):
        return {"routing": {name: {"0": {"load": each, "load_entropy": 0.5, "router_entropy": 0.9}}
                            for name, each in load.items()}}  # fmt: skip

    found = routing([model({"web": [1.0, 0.0], "code": [0.0, 1.0]}), model({"web": [0.5, 0.5], "code": [0.5, 0.5]})])
    assert found["web"] == {"load_entropy": 0.5, "router_entropy": 0.9, "specialisation": 0.25}


TINY = Path(__file__).with_name("recipes") / "tiny.yaml"


@pytest.mark.slow
def test_every_mixture_is_trained_as_both_and_compared(loam, tmp_path):
    stages = "[{tokens: 2K, sequence_length: 64, batch_tokens: 256, learning_rate: 4e-3}]"
    proxy = f"{{name: p, model: {json.dumps(DENSE)}, stages: {stages}, validation_tokens: 1K}}"
    wanted = f"pairing={{mixtures: 4, replicates: 1, dense: {proxy}, experts: {json.dumps(EXPERTS)}}}"
    runs = [tmp_path / "one", tmp_path / "two"]
    for folder, workers in zip(runs, (1, 2), strict=True):
        loam.ok(
            "run", TINY, "--until", "pairing", "--no-prefect", "--runs", folder, "--workers", workers, "--set", wanted
        )
    first, second = (next(folder.glob("tiny@*")) for folder in runs)
    report = json.loads((first / "pairing" / "report.json").read_text())
    assert (report["mixtures"], report["left_out"]) == (4, {"proxy": 0, "truth": 0})
    assert report["metrics"]["mean"]["truth_noise"]["freedom"] == 1
    dense, moe = (json.loads((first / f"pairing_{side}" / "proxies" / "prior.json").read_text())
                  for side in ("dense", "moe"))  # fmt: skip
    assert dense["domains"] == moe["domains"]  # what was drawn, document for document
    for layers in moe["routing"].values():
        assert sum(layers["0"]["load"]) == pytest.approx(1, abs=1e-5)
        assert 0 < layers["0"]["load_entropy"] <= 1
    for name in ("report.json", "agreement.svg", "manifest.json"):
        assert (first / "pairing" / name).read_bytes() == (second / "pairing" / name).read_bytes()
