"""What is told of experts, against loops over tokens, planted routings and closed forms."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import DataError
from pipelines.indexed import IndexedWriter, load_shards
from pipelines.shards import Blend, ShardSet
from trainer.checkpoint import load_model
from trainer.expert_analytics import (
    analyse,
    coactivation,
    lifted_pairs,
    load_numbers,
    load_of,
    saturation,
    specialisation,
    watch_routing,
)
from trainer.loop import train
from trainer.model import new_model
from trainer.recipe import TrainRecipe
from trainer.token_classes import CLASSES, class_of, classes_of

RECIPE = TrainRecipe.model_validate({
    "name": "tiny",
    "model": {
        "layers": 3, "width": 16, "heads": 2, "kv_heads": 1, "head_dim": 8, "ffn_width": 24, "vocab_size": 32,
        "max_sequence": 16, "experts": 4, "expert_width": 8,
    },
    "stages": [{"tokens": 2048, "sequence_length": 16, "batch_tokens": 64, "learning_rate": 1e-2}],
    "checkpoint_every": 4, "checkpoint_permanent": 8, "validation_tokens": 100, "device": "cpu",
})  # fmt: skip


@st.composite
def routings(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """Distinct experts of each token, some choices dropped."""
    experts = draw(st.integers(2, 6))
    chosen = draw(st.integers(1, experts))
    random = np.random.default_rng(draw(st.integers(0, 2**16)))
    chosen_NK = np.stack([random.permutation(experts)[:chosen] for _ in range(draw(st.integers(1, 30)))])
    chosen_NK[random.random(chosen_NK.shape) < 0.1] = experts
    return chosen_NK, experts


@given(routings())
def test_coactivation_is_a_loop_over_tokens(routing: tuple[np.ndarray, int]):
    chosen_NK, experts = routing
    sets = [set(row) - {experts} for row in chosen_NK.tolist()]
    for i in range(experts):
        own = [row for row in sets if i in row]
        for j in range(experts):
            expected = sum(j in row for row in own) / len(own) if own else 0.0
            assert coactivation(chosen_NK, experts)[i, j] == pytest.approx(expected)
    assert load_of(chosen_NK, experts).tolist() == [sum(i in row for row in sets) for i in range(experts)]


@given(routings(), st.integers(0, 2**16))
def test_saturation_is_a_loop_over_tokens(routing: tuple[np.ndarray, int], seed: int):
    final_NK, experts = routing
    then_NK = np.random.default_rng(seed).permutation(final_NK)
    pairs = [(set(a) - {experts}, set(b) - {experts}) for a, b in zip(then_NK.tolist(), final_NK.tolist(), strict=True)]
    expected = sum(len(a & b) for a, b in pairs) / max(1, sum(len(b) for _, b in pairs))
    assert saturation(then_NK, final_NK, experts) == pytest.approx(expected)
    assert saturation(final_NK, final_NK, experts) == (1.0 if any(b for _, b in pairs) else 0.0)


def test_random_routing_saturates_by_chance_and_tells_nothing():
    random = np.random.default_rng(0)
    then_NK, final_NK = (np.argsort(random.random((20_000, 8)), axis=1)[:, :2] for _ in range(2))
    assert saturation(then_NK, final_NK, 8) == pytest.approx(2 / 8, abs=0.01)
    found = specialisation(final_NK, random.integers(0, 3, 20_000), 3, 8)
    assert found["information_bits"] < 2e-4
    assert lifted_pairs(final_NK, 8)[0]["lift"] == pytest.approx((1 / 7) / (2 / 8), rel=0.1)  # without replacement


def test_what_a_small_sample_shares_by_chance_is_taken_off():
    """400 choices of 16 experts in 8 classes share 7 * 15 / (2 * 400 * ln 2) = 0.19 bits without meaning any."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(20):
        chosen_NK = np.argsort(random.random((200, 16)), axis=1)[:, :2]
        found.append(specialisation(chosen_NK, random.integers(0, 8, 200), 8, 16)["information_bits"])
    assert np.mean(found) < 0.05


def test_an_expert_for_each_class_tells_it_all():
    class_N = np.arange(4000) % 4
    found = specialisation(class_N[:, None], class_N, 4, 4)
    assert found["information_bits"] == pytest.approx(2.0, abs=0.01)  # log2(4)
    assert found["of_most"] == pytest.approx(1.0, abs=0.005)
    assert found["largest"]["lift"] == 4.0
    assert found["share_CE"] == np.eye(4).tolist()


def test_load_in_numbers():
    even, skewed = load_numbers(np.array([10, 10, 10, 10])), load_numbers(np.array([0, 1, 300, 299]))
    assert (even["cv"], even["entropy"], even["dead"], even["balanced"]) == (0, 1.0, [], True)
    assert (skewed["dead"], skewed["barely"], skewed["balanced"]) == ([0], [1], False)
    share = np.array([1, 300, 299]) / 600
    assert skewed["entropy"] == pytest.approx(-(share * np.log(share)).sum() / math.log(4), abs=1e-6)


@pytest.mark.parametrize(
    ("text", "name"),
    [(" the", "word begins"), ("The", "word begins"), ("ing", "word goes on"), ("42", "digits"), (" 7", "digits"),
     ("),", "punctuation"), ("\n\n", "white space"), ("土壤", "CJK"), ("\ufffd", "bytes"), (" x1", "word begins")],
)  # fmt: skip
def test_kinds_of_tokens(text: str, name: str):
    assert CLASSES[class_of(text)] == name


def test_every_token_of_a_tokenizer_has_a_kind(tiny_model: Path):
    found = classes_of(tiny_model)
    assert len(found) == 300
    assert CLASSES[found[0]] == "special"  # <eos>


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    for name, first in (("even", 0), ("odd", 1)):
        with IndexedWriter(tmp_path / "shards" / name, 32) as writer:
            for document in range(20):
                writer.append(np.resize(np.roll(np.arange(first, 16, 2), document), 30), np.array([30]))
    return load_shards(tmp_path / "shards")


def test_text_of_another_tokenizer_is_refused(shards: ShardSet):
    model = new_model(RECIPE.model.with_vocabulary(8), seed=0).eval()
    with pytest.raises(DataError, match=r"held-out shard even .* has token 14, the model knows 8"):
        watch_routing(model, shards, 16, 40)


def test_a_training_is_analysed(tmp_path: Path, shards: ShardSet):
    train(RECIPE, Blend.of({"even": 0.5, "odd": 0.5}, shards), tmp_path / "work", shards)
    found = analyse(tmp_path / "work", shards, 90, np.arange(32) % 2, ("even", "odd"))
    assert sorted(found["saturation"], key=int) == ["8", "16", "24", "32"]
    assert set(found["saturation"]["32"].values()) == {1.0}  # the last checkpoint is the final model
    assert found["tokens"] == 180
    assert list(found["layers"]) == ["1", "2"]
    for one in found["layers"].values():
        assert sum(one["load"]) == 180 * 2
        assert one["by_class"]["share_CE"] == one["by_domain"]["share_CE"]  # here a token's class is its domain


@pytest.mark.parametrize("change", [
    {"flow_matching": {"width": 8}}, {"lora": {"rank": 2}}, {"lora": {"rank": 2, "targets": ["layers.*.mlp.gate.*"]}},
])  # fmt: skip
def test_what_is_trained_beside_a_model_does_not_hide_its_experts(tmp_path: Path, shards: ShardSet, change: dict):
    recipe = TrainRecipe.model_validate({**RECIPE.model_dump(exclude={"lora", "flow_matching"}), **change})
    train(recipe, Blend.of({"even": 0.5, "odd": 0.5}, shards), tmp_path / "work", shards)
    found = analyse(tmp_path / "work", shards, 90, None, ())
    assert set(found["saturation"]["32"].values()) == {1.0}
    last = tmp_path / "work" / "checkpoints" / "step-000000032"
    if "lora" in change:
        with pytest.raises(DataError, match="holds low-rank updates apart from their weights; take final/"):
            load_model(last)
    else:
        ours, final = load_model(last).state_dict(), load_model(tmp_path / "work" / "final").state_dict()
        assert all(torch.equal(tensor, final[name]) for name, tensor in ours.items())
        again = TrainRecipe.model_validate(RECIPE.model_dump())  # a training may begin at such a checkpoint, too
        blend = Blend.of({"even": 0.5, "odd": 0.5}, shards)
        begun = train(again, blend, tmp_path / "again", start=last).metrics["stages"][0]["first_loss"]
        assert begun < train(again, blend, tmp_path / "fresh").metrics["stages"][0]["first_loss"] - 0.5


def test_choices_are_those_of_the_router_itself(tmp_path: Path, shards: ShardSet):
    train(RECIPE, Blend.of({"even": 0.5, "odd": 0.5}, shards), tmp_path / "work", shards)
    model = load_model(tmp_path / "work" / "final")
    routing = watch_routing(model, shards, 16, 40)
    tokens = torch.from_numpy(routing.token_N[routing.domain_N == 0][:16])
    answers = []
    hook = model.routers()[1].register_forward_hook(lambda _, given, answer: answers.append(answer[1]))
    with torch.no_grad():
        model.hidden(tokens[None])
    hook.remove()
    assert answers[0].tolist() == routing.chosen[1][:16].tolist()
    assert not model.training


def test_a_dense_model_is_refused(tmp_path: Path, shards: ShardSet):
    dense = RECIPE.model_copy(update={"model": RECIPE.model.model_copy(update={"experts": 0})})
    train(dense, Blend.of({"even": 0.5, "odd": 0.5}, shards), tmp_path / "work", shards)
    with pytest.raises(DataError, match="is a dense model"):
        analyse(tmp_path / "work", shards, 90, None, ())
