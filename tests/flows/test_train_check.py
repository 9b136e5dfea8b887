"""`loam check` of what is trained: parts that add up, the published sizes, days by their formula, refusals."""

import json

import pytest

from flows.train_check import Machine, parameters_by_part, train_account, train_lines
from pipelines.errors import RecipeError
from pipelines.recipe import load_recipe
from tests.flows.conftest import Command, Fails
from trainer.accelerators import ACCELERATORS
from trainer.model_recipe import ModelSettings
from trainer.recipe import TrainRecipe

SHAPE = ModelSettings(layers=3, width=16, heads=2, kv_heads=1, head_dim=8, ffn_width=24, vocab_size=32, experts=4,
                      expert_width=8, mtp_layers=1)  # fmt: skip


@pytest.mark.parametrize(
    "change", [{}, {"experts": 0}, {"mtp_layers": 0}, {"tie_embeddings": False}, {"vocab_size": 0}]
)
def test_parts_add_up_to_the_whole(change: dict):
    model = SHAPE.model_copy(update=change)
    assert sum(parameters_by_part(model).values()) == model.parameters()


def test_the_published_sizes_come_out_of_their_recipe():
    found = train_account(load_recipe("openseek-small-baseline", TrainRecipe), Machine("A100", 0.25, 8))
    assert round(found["parameters"]["total"] / 1e9, 3) == 1.395
    assert round(found["parameters"]["active"] / 1e9, 3) == 0.397
    flops = found["flops_per_token"]["main"] * found["tokens"]["main"]
    assert found["days"] == pytest.approx(flops / (312e12 * 0.25 * 8) / 86_400)
    assert found["memory_bytes"]["weights"] == 4 * found["parameters"]["total"]


def test_lines_tell_the_formula_and_what_does_not_fit():
    recipe = load_recipe("openseek-16b-a3b", TrainRecipe)
    told = "\n".join(train_lines(recipe, Machine()))
    assert "= 6 * (active parameters - embedding table) + layers * 3 * heads" in told
    assert "more than the 131 GiB of one H200: weights, gradients and optimizer alone are" in told
    small = "\n".join(train_lines(load_recipe("moe-tiny", TrainRecipe), Machine()))
    assert "model.vocab_size is not set" in small
    assert "more than" not in small


def test_check_prints_and_gives_json(call: Command):
    code, out, _ = call("check", "moe-tiny", "--device", "a100", "--mfu", "0.5", "--json")
    training = json.loads(out)["training"]
    assert (code, training["device"]["name"], training["device"]["mfu"]) == (0, "A100", 0.5)
    code, out, _ = call("check", "sweep-rate-batch")
    assert code == 0
    assert "24 trials: 12 points, 2 seeds each" in out


@pytest.mark.parametrize(("option", "value", "problem"), [
    ("--device", "abacus", "--device 'abacus' is not known; there are: B200"),
    ("--mfu", "1.5", "--mfu 1.5: expected a share"),
])  # fmt: skip
def test_a_machine_that_cannot_be_is_refused(fails: Fails, option: str, value: str, problem: str):
    fails(2, problem, "check", "moe-tiny", option, value)


def test_every_device_is_found_by_its_own_name():
    assert [Machine(one.name).accelerator() for one in ACCELERATORS] == list(ACCELERATORS)
    with pytest.raises(RecipeError):
        Machine("H200", 0).accelerator()
