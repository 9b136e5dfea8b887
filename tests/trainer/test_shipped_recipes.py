"""What the shipped training recipes say of themselves: sizes that were published, equal costs, schedules that fit."""

import pytest

from flows.scheduled_training import with_stages
from mixtures.schedule import Schedule
from pipelines.recipe import load_recipe
from trainer.recipe import TrainRecipe
from trainer.sweep_recipe import SweepRecipe


def recipe(name: str, *sets: str) -> TrainRecipe:
    return load_recipe(name, TrainRecipe, sets)


@pytest.mark.parametrize(
    ("name", "billions", "active", "steps"),
    [
        ("openseek-small-baseline", 1.395, 0.397, 24_000),
        ("openseek-16b-a3b", 15.9, 2.87, 119_210),
        ("openseek-mid", 10.61, 10.61, 238_419),
    ],
)
def test_published_sizes_come_out(name: str, billions: float, active: float, steps: int):
    """1.395B and 0.397B, 15.9B and 2.87B: OpenSeek's own numbers; 10.61B: its model card."""
    model = recipe(name).model
    assert model.parameters() / 1e9 == pytest.approx(billions, rel=1e-3)
    assert model.active_parameters() / 1e9 == pytest.approx(active, rel=2e-3)
    assert recipe(name).stages[0].steps == steps


def test_openseek_small_v1_is_the_baseline_with_more_tokens_and_another_rate():
    v1, baseline = recipe("openseek-small-v1"), recipe("openseek-small-baseline")
    assert v1.model.mtp_parameters() / 1e9 == pytest.approx(0.237, rel=2e-3)
    assert v1.model.model_copy(update={"mtp_layers": 0}) == baseline.model
    assert recipe("openseek-small-v1", "model.mtp_layers=0").model.parameters() == baseline.model.parameters()
    assert v1.tokens == 326_860_800 * 4096
    assert (v1.stages[0].batch_samples, v1.stages[0].steps) == (2048, 159_600)
    rates = [v1.stages[0].learning_rate_at(step) for step in (999, 1000, 159_599)]
    assert rates == pytest.approx([3e-4 * 1000 / 1001, 3e-4, 3e-5], rel=1e-6)
    assert baseline.stages[0].learning_rate_at(2000) == pytest.approx(3e-3, rel=1e-6)


SMALL = {
    "model.layers": 6, "model.width": 1280, "model.heads": 10, "model.head_dim": 192, "model.ffn_width": 7168,
    "model.mla.kv_rank": 512, "model.mla.q_rank": None, "model.mla.rope_dim": 64, "model.mla.value_dim": 128,
    "model.experts": 64, "model.experts_per_token": 6, "model.expert_width": 896, "model.shared_hidden": 1792,
    "model.dense_layers": 1, "model.router.score": "sigmoid", "model.router.scaling": 2.446, "model.router.groups": 1,
    "model.router.bias_update_rate": 1e-3, "model.router.sequence_aux_loss": 1e-4, "model.vocab_size": 151_851,
    "model.max_sequence": 4096, "model.rope_theta": 1e6, "model.norm_eps": 1e-6, "model.tie_embeddings": True,
    "model.initial_std": 6e-3, "optimizer.betas": (0.9, 0.95), "optimizer.weight_decay": 0.1, "grad_clip": 1.0,
    "precision": "bf16", "stage.sequence_length": 4096, "stage.batch_samples": 1024, "stage.schedule": "cosine",
    "stage.learning_rate": 3e-3, "stage.min_lr_share": 0.1, "micro_batch_tokens": 4096, "recompute": True,
    "separate_documents": True,
}  # fmt: skip
PUBLISHED = {
    "openseek-small-baseline": SMALL,
    "openseek-small-v1": {**SMALL, "stage.batch_samples": 2048, "stage.learning_rate": 3e-4, "micro_batch_tokens": 8192,
                          "model.mtp_layers": 1, "model.mtp_weight": 0.3, "recompute": False},
    "openseek-16b-a3b": {**SMALL, "model.layers": 27, "model.width": 2048, "model.heads": 16, "model.ffn_width": 11264,
                         "model.expert_width": 1408, "model.shared_hidden": 2816, "model.tie_embeddings": False,
                         "stage.batch_samples": 2048, "stage.schedule": "wsd"},
    "openseek-3b-dense": {"model.layers": 36, "model.width": 2048, "model.heads": 16, "model.kv_heads": 2,
                          "model.ffn_width": 11_008, "model.tie_embeddings": True, "model.rope_theta": 1e6,
                          "model.max_sequence": 4096, "model.initial_std": 0.02, "stage.batch_samples": 2048,
                          "stage.tokens": 10**12, "stage.learning_rate": 3e-3, "stage.schedule": "wsd"},
    "openseek-mid": {"model.layers": 56, "model.ffn_width": 2 * 9728, "optimizer.name": "muon",
                     "stage.tokens": 2 * 10**12, "stage.sequence_length": 8192},
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_values_are_the_published_ones(name: str):
    """Key by key what OpenSeek's YAML files say, of all that no size would tell."""
    plan = recipe(name)
    places = {"model": plan.model, "optimizer": plan.optimizer, "stage": plan.stages[0]}
    for path, value in PUBLISHED[name].items():
        found, names = plan, path.split(".")
        if names[0] in places:
            found, names = places[names[0]], names[1:]
        for part in names:
            found = getattr(found, part)
        assert found == value, path


def test_twelve_layers_are_the_3b_of_the_file_names():
    assert recipe("openseek-small-baseline", "model.layers=12").model.parameters() / 1e9 == pytest.approx(
        2.79, rel=2e-3
    )


def test_the_fall_of_16b_is_its_last_step():
    stage = recipe("openseek-16b-a3b").stages[0]
    assert stage.learning_rate_at(stage.steps - 1) == pytest.approx(3e-4)
    assert stage.learning_rate_at(stage.steps - 2) == pytest.approx(3e-3, rel=2e-3)


@pytest.mark.parametrize("name", ["four-stage", "four-stage-fast", "four-stage-interleaved"])
def test_schedules_fit_their_recipes(name: str):
    plan, schedule = recipe(name), load_recipe(f"{name}-data", Schedule)
    stages = with_stages(plan, schedule).stages
    assert [stage.blend for stage in stages] == [stage.name for stage in plan.stages]
    assert [stage.model_copy(update={"blend": None}) for stage in stages] == plan.stages


def test_the_four_stages_are_the_plan():
    """Lengths, rates, decay and replay as the plan has them."""
    wikipedia, reasoning, math, code = recipe("four-stage").stages
    assert [phase.sequence_length for phase in wikipedia.phases] == [64, 128, 256, 512, 1024, 2048]
    first_epoch = sum(phase.tokens for phase in wikipedia.phases[:5]) / wikipedia.tokens
    assert first_epoch == pytest.approx(5 / 6 / 15, rel=1e-3)  # the last sixth of it is long already
    shapes = [(phase.steps, phase.sequence_length, phase.batch_samples // 8) for phase in reasoning.phases]
    assert shapes[:3] == [(5000, 1024, 16), (5000, 2048, 8), (10_000, 3072, 5)]
    assert shapes[3][1:] == (4096, 4)
    factors = [reasoning.learning_rate * phase.rate_factor for phase in reasoning.phases]
    assert factors == pytest.approx([1e-4, 0.8e-4, 0.6e-4, 0.5e-4])
    assert [stage.learning_rate for stage in (wikipedia, math, code)] == [6e-4, 5e-5, 2e-5]
    assert [stage.weight_decay for stage in (math, code)] == [0.01, 0.001]
    assert [stage.replay for stage in (wikipedia, reasoning, math, code)] == [0, 0.1, 0.1, 0.1]
    assert recipe("four-stage").tokens == pytest.approx(109e9, rel=1e-4)


def test_experts_cost_no_more_than_their_dense_baseline():
    dense, sparse = (trial.recipe for trial in load_recipe("wikitext-experts", SweepRecipe).trials(4096)[::3])
    assert (dense.model.experts, sparse.model.experts) == (0, 8)
    assert dense.tokens == sparse.tokens
    ratio = sparse.model.flops_per_token(256) / dense.model.flops_per_token(256)
    assert 0.98 < ratio <= 1
    assert sparse.model.parameters() > 1.8 * dense.model.parameters()


def test_openseeks_rows_are_told_apart_by_what_its_text_says():
    trials = load_recipe("openseek-hparams", SweepRecipe).trials()
    models = [trial.recipe.model for trial in trials]
    assert [(m.initial_std, m.router.sequence_aux_loss, m.mtp_layers) for m in models] == [
        (0.02, 0.02, 0), (6e-3, 1e-4, 0), (6e-3, 1e-4, 1),
    ]  # fmt: skip
    assert {trial.recipe.stages[0].tokens for trial in trials} == {100_000_000_000}
