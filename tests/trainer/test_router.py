"""Oracles: each router's own paper written out token by token, and transformers' routers where there is one."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainer.model_recipe import ModelSettings
from trainer.router import Router, within_groups
from trainer.router_settings import RouterSettings

WIDTH = 16


def router_of(experts: int = 8, experts_per_token: int = 3, **changes) -> Router:
    model = ModelSettings(
        layers=1, width=WIDTH, heads=2, kv_heads=2, head_dim=8, ffn_width=16, experts=experts,
        experts_per_token=experts_per_token, expert_width=8, dense_layers=0, router=RouterSettings(**changes),
    )  # fmt: skip
    router = Router(model).train()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        router.weight.normal_(0.0, 0.5, generator=draw)
        if router.e_score_correction_bias is not None:
            router.e_score_correction_bias.normal_(0.0, 0.3, generator=draw)
    return router


def tokens(batch: int = 2, positions: int = 12, seed: int = 2) -> Tensor:
    return torch.randn(batch, positions, WIDTH, generator=torch.Generator().manual_seed(seed))


def by_expert(weights_NK: Tensor, chosen_NK: Tensor, experts: int = 8) -> Tensor:
    """Weights laid out by expert, (N, E), whatever the order of the choices."""
    return torch.zeros(len(chosen_NK), experts + 1).scatter_add_(1, chosen_NK, weights_NK.detach())[:, :experts]


def test_switch_sends_a_token_to_one_expert_by_its_probability():
    router = router_of(experts_per_token=1, score="softmax", normalize=False)
    weights_NK, chosen_NK = router(tokens())
    probability_NE = (tokens().flatten(0, 1) @ router.weight.t()).softmax(dim=-1)
    assert torch.equal(chosen_NK[:, 0], probability_NE.argmax(dim=-1))
    torch.testing.assert_close(weights_NK[:, 0], probability_NE.amax(dim=-1))


def test_softmax_before_normalized_is_softmax_after():
    one, other = router_of(score="softmax"), router_of(score="softmax_chosen")
    (before_NK, chosen_NK), (after_NK, same_NK) = one(tokens()), other(tokens())
    assert torch.equal(chosen_NK, same_NK)
    torch.testing.assert_close(before_NK, after_NK)
    plain_NK, _ = router_of(score="softmax", normalize=False)(tokens())
    assert float(plain_NK.detach().sum(dim=1).max()) < 1


def transformers_router(kind: str, **config):
    """A router of transformers, its weight and bias those of `router_of`."""
    import importlib

    name = {"mixtral": "MixtralTopKRouter", "olmoe": "OlmoeTopKRouter", "deepseek_v2": "DeepseekV2TopkRouter",
            "deepseek_v3": "DeepseekV3TopkRouter"}[kind]  # fmt: skip
    transformers = pytest.importorskip("transformers")
    made = transformers.AutoConfig.for_model(
        kind, hidden_size=WIDTH, num_attention_heads=2, num_experts_per_tok=3, **config
    )
    module = importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")
    return getattr(module, name)(made)


@pytest.mark.parametrize(
    ("kind", "config", "ours"),
    [
        ("mixtral", {"num_local_experts": 8}, {"score": "softmax_chosen"}),
        ("olmoe", {"num_experts": 8, "norm_topk_prob": False}, {"score": "softmax", "normalize": False}),
        ("deepseek_v2", {"n_routed_experts": 8, "n_group": 4, "topk_group": 2, "topk_method": "group_limited_greedy",
                         "routed_scaling_factor": 3.0},
         {"score": "softmax", "normalize": False, "groups": 4, "groups_per_token": 2, "scores_per_group": 1,
          "scaling": 3.0}),
        ("deepseek_v3", {"n_routed_experts": 8, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5},
         {"groups": 4, "groups_per_token": 2, "scores_per_group": 2, "scaling": 2.5}),
    ],
)  # fmt: skip
def test_routers_are_those_of_transformers(kind: str, config: dict, ours: dict):
    router, theirs = router_of(**ours), transformers_router(kind, **config)
    with torch.no_grad():
        theirs.weight.copy_(router.weight)
        if router.e_score_correction_bias is not None:
            theirs.e_score_correction_bias.copy_(router.e_score_correction_bias)
    x_BTD = tokens(4, 32)
    _, weights_NK, chosen_NK = theirs(x_BTD.flatten(0, 1))
    torch.testing.assert_close(by_expert(*router(x_BTD)), by_expert(weights_NK, chosen_NK))


def test_the_score_convention_of_groups_changes_who_is_chosen():
    """One best score: group 0 wins by its star; two best: group 1 by its pair (docs of Megatron #1441)."""
    scores_NE = torch.tensor([[0.9, 0.1, 0.6, 0.5]])
    for scores_per_group, open_experts in ((1, [0, 1]), (2, [2, 3])):
        wanted = RouterSettings(groups=2, groups_per_token=1, scores_per_group=scores_per_group)
        assert within_groups(scores_NE, wanted)[0].isfinite().nonzero()[:, 0].tolist() == open_experts


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(0, 9))
def test_no_token_leaves_its_groups(groups: int, groups_per_token: int, scores_per_group: int, seed: int):
    groups_per_token = min(groups, groups_per_token)
    wanted = RouterSettings(groups=groups, groups_per_token=groups_per_token, scores_per_group=scores_per_group)
    scores_NE = torch.rand(9, groups * 4, generator=torch.Generator().manual_seed(seed))
    for row, left in zip(
        scores_NE.view(9, groups, 4), within_groups(scores_NE, wanted).view(9, groups, 4), strict=True
    ):
        own = [sum(sorted(group.tolist())[-scores_per_group:]) for group in row]
        best = sorted(range(groups), key=lambda group: -own[group])[:groups_per_token]
        assert {g for g in range(groups) if left[g].isfinite().all()} == set(best)


def test_expert_choice_fills_every_expert_and_no_more():
    router = router_of(experts_per_token=2, choice="experts", score="softmax", normalize=False, capacity_factor=1.0)
    x_BTD = tokens(2, 16)
    weights_NE = by_expert(*router(x_BTD))
    scores_NE = (x_BTD.flatten(0, 1) @ router.weight.t()).softmax(dim=-1)
    expected_NE = torch.zeros_like(scores_NE)
    for expert in range(8):
        best = scores_NE[:, expert].topk(32 * 2 // 8).indices  # N * K / E tokens each
        expected_NE[best, expert] = scores_NE[best, expert]
    torch.testing.assert_close(weights_NE, expected_NE)
    assert router.load_E.tolist() == [8] * 8


@pytest.mark.parametrize("drop", ["score", "position"])
def test_a_full_expert_drops_the_lightest_or_the_last(drop: str):
    router = router_of(score="softmax", normalize=False, capacity_factor=1.0, drop=drop)
    free = router_of(score="softmax", normalize=False)
    x_BTD = tokens(2, 32)
    wanted_NE, kept_NE = by_expert(*free(x_BTD)), by_expert(*router(x_BTD))
    capacity = math.ceil(64 * 3 / 8)
    for expert in range(8):
        wanted = wanted_NE[:, expert].nonzero()[:, 0].tolist()
        if drop == "score":
            wanted.sort(key=lambda token: -float(wanted_NE[token, expert]))
        assert set(kept_NE[:, expert].nonzero()[:, 0].tolist()) == set(wanted[:capacity])
    kept = kept_NE > 0
    torch.testing.assert_close(kept_NE[kept], wanted_NE[kept])
    assert int(router.dropped) == 64 * 3 - int(kept.sum()) > 0
    assert torch.equal(router.load_E, free.load_E)  # balance looks at what was wanted
    torch.testing.assert_close(by_expert(*router.eval()(x_BTD)), wanted_NE)  # only training drops


@pytest.mark.parametrize(
    "changes",
    [
        {"sequence_aux_loss": 0.5, "z_loss": 0.1, "global_aux_loss": 0.2, "aux_loss": 0.3},
        {"capacity_factor": 1.0},
        {"choice": "experts", "score": "softmax", "normalize": False, "capacity_factor": 1.0},
    ],
)
def test_padding_neither_counts_nor_changes_anything(changes: dict):
    alone, padded = router_of(**changes), router_of(**changes)
    x_BTD = tokens(2, 12)
    real_BT = torch.ones(2, 20, dtype=torch.bool)
    real_BT[:, 12:] = False
    filled_BTD = torch.cat((x_BTD, 9 * tokens(2, 8, seed=5)), dim=1)
    weights_NE = by_expert(*padded(filled_BTD, real_BT))
    torch.testing.assert_close(weights_NE[real_BT.flatten()], by_expert(*alone(x_BTD)))
    assert not weights_NE[~real_BT.flatten()].any()
    assert torch.equal(padded.load_E, alone.load_E)
    assert int(padded.dropped) == int(alone.dropped)
    for ours, theirs in ((padded.aux_loss, alone.aux_loss), (padded.z_loss, alone.z_loss)):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            torch.testing.assert_close(ours, theirs)


def test_the_bias_moves_against_the_load_and_may_be_centred():
    router = router_of(bias_update_rate=0.01)
    drifting = router_of(bias_update_rate=0.01, center_bias=True)
    assert router.e_score_correction_bias is not None
    assert drifting.e_score_correction_bias is not None
    before_E = router.e_score_correction_bias.clone()
    for one in (router, drifting):
        one(tokens())
    skipped = router_of(bias_update_rate=0.01)
    skipped(tokens())
    load_E = router.rebalance()
    assert torch.equal(skipped.rebalance(moves=False), load_E)
    assert skipped.e_score_correction_bias is not None
    assert torch.equal(skipped.e_score_correction_bias, before_E)
    assert int(load_E.sum()) == 24 * 3
    torch.testing.assert_close(router.e_score_correction_bias - before_E, 0.01 * torch.sign(9.0 - load_E))
    drifting.rebalance()
    assert float(drifting.e_score_correction_bias.mean()) == pytest.approx(0, abs=1e-7)
    assert not router.load_E.any()


def test_global_balance_sees_the_whole_step():
    router = router_of(global_aux_loss=1.0)
    router(tokens(seed=2))
    first_E = router.load_E.clone()
    router(tokens(seed=3))
    share_NE = router.shares(router.logits(tokens(seed=3)))
    load_E = router.load_E
    assert not torch.equal(load_E, first_E)
    assert router.aux_loss is not None
    torch.testing.assert_close(router.aux_loss, 8 * (load_E / load_E.sum() * share_NE.mean(dim=0)).sum())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": 2, "groups_per_token": 3}, "more than groups"),
        ({"score": "softmax", "bias_update_rate": 0.1}, "needs choice: tokens and score: sigmoid"),
        ({"choice": "experts", "score": "softmax", "normalize": False}, "needs a capacity_factor"),
        ({"choice": "experts", "score": "softmax", "normalize": False, "capacity_factor": 1, "aux_loss": 1},
         "balanced by itself"),
        ({"groups": 3}, "must divide experts"),
        ({"groups": 4, "groups_per_token": 2, "scores_per_group": 3}, "a group's 2 experts"),
        ({"groups": 4, "groups_per_token": 1}, "fewer than experts_per_token"),
    ],
)  # fmt: skip
def test_impossible_routers_are_refused(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        router_of(**changes)


def test_a_resolved_router_is_read_back():
    for wanted in (RouterSettings(), RouterSettings(score="softmax", z_loss=1e-3)):
        assert RouterSettings.model_validate(wanted.model_dump(mode="json")) == wanted
