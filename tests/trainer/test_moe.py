import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from trainer.expert_load import LoadLog, summarize_load
from trainer.model import new_model
from trainer.model_recipe import ModelSettings
from trainer.moe import MixtureOfExperts
from trainer.router import Router
from trainer.router_settings import RouterSettings
from trainer.step import _rebalance

SETTINGS = ModelSettings(
    layers=1, width=16, heads=2, kv_heads=2, head_dim=8, ffn_width=16, vocab_size=32, experts=4, experts_per_token=2,
    expert_width=8, dense_layers=0, router=RouterSettings(scaling=2.5, bias_update_rate=0.01),
)  # fmt: skip


def filled(module: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    return module


def test_the_bias_chooses_but_does_not_weigh():
    router = filled(Router(SETTINGS))
    assert isinstance(router, Router)
    x_BTD = torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(6))
    assert router.e_score_correction_bias is not None
    router.e_score_correction_bias[2] = 10.0
    weights_NK, chosen_NK = router(x_BTD)
    scores_NE = (x_BTD[0] @ router.weight.t()).sigmoid()
    assert (chosen_NK == 2).any(dim=1).all()
    expected_NK = scores_NE.gather(1, chosen_NK)
    torch.testing.assert_close(weights_NK, 2.5 * expected_NK / expected_NK.sum(dim=1, keepdim=True))


def test_only_training_passes_are_counted():
    moe = filled(MixtureOfExperts(SETTINGS))
    assert isinstance(moe, MixtureOfExperts)
    x_BTD = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(7))
    moe.eval()(x_BTD)
    assert int(moe.gate.load_E.sum()) == 0
    moe.train()(x_BTD)
    assert int(moe.gate.load_E.sum()) == 2 * 8 * 2


def test_rebalancing_moves_load_towards_uniform():
    router = filled(Router(SETTINGS)).train()
    assert isinstance(router, Router)
    with torch.no_grad():
        router.weight[0] += 0.2  # expert 0 is the favourite of tokens with a positive mean
    x_BTD = torch.randn(4, 64, 16, generator=torch.Generator().manual_seed(8)) + 0.5
    spreads = []
    for _ in range(100):
        router(x_BTD)
        spreads.append(float(router.rebalance().float().std()))
    assert spreads[-1] < 0.2 * spreads[0]


ROUTERS = {
    "aux-loss-free": {"sequence_aux_loss": 0.1, "groups": 2, "groups_per_token": 1},
    "global": {"score": "softmax", "global_aux_loss": 0.1, "z_loss": 0.01, "capacity_factor": 1.0},
    "experts choose": {"choice": "experts", "score": "softmax", "normalize": False, "capacity_factor": 1.0},
}


@pytest.mark.parametrize("name", ROUTERS)
def test_recomputed_passes_are_not_counted_again_and_change_no_bit(name: str):
    """Two micro-batches, an evaluation between them; Automodel #3247 and torchtitan #1593 counted twice."""
    found = []
    for recompute in (False, True):
        model = new_model(
            SETTINGS.model_copy(update={"layers": 2, "router": RouterSettings(**ROUTERS[name])}), seed=0
        ).train()
        model.recompute = recompute
        losses = []
        for seed in (1, 2):
            tokens = torch.randint(0, 32, (2, 17), generator=torch.Generator().manual_seed(seed))
            loss = model.loss(tokens[:, :-1], tokens[:, 1:])
            loss.total.backward()
            losses += [loss.total.detach(), loss.aux.detach(), loss.z.detach()]
            model.eval().token_losses(tokens[:, :-1], tokens[:, 1:])
            model.train()
        routers = model.routers().values()
        counts = [router.load_E.clone() for router in routers] + [router.dropped.clone() for router in routers]
        if name != "experts choose":
            assert all(int(router.load_E.sum()) == 2 * 2 * 16 * 2 for router in routers)
        found.append([*losses, *counts, *(p.grad for p in model.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_reentrant_recomputation_is_not_counted_again_either():
    moe = filled(MixtureOfExperts(SETTINGS)).train()
    assert isinstance(moe, MixtureOfExperts)
    x_BTD = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(7), requires_grad=True)
    checkpoint(moe, x_BTD, use_reentrant=True).sum().backward()
    assert int(moe.gate.load_E.sum()) == 2 * 8 * 2


def test_padding_changes_nothing_in_a_whole_model():
    """Rows cut short by padding give the losses, counts and gradients of the rows alone (Megatron #1984)."""
    settings = SETTINGS.model_copy(update={"layers": 2, "router": RouterSettings(sequence_aux_loss=0.1, z_loss=0.1)})
    tokens = torch.randint(0, 32, (2, 17), generator=torch.Generator().manual_seed(1))
    alone, padded = new_model(settings, seed=0).train(), new_model(settings, seed=0).train()
    expected = alone.hidden(tokens)
    documents_BT = torch.zeros(2, 24, dtype=torch.int64)
    documents_BT[:, 17:] = -1
    found = padded.hidden(torch.nn.functional.pad(tokens, (0, 7)), documents_BT)[:, :17]
    torch.testing.assert_close(found, expected)
    for hidden in (expected, found):
        hidden.square().sum().backward()
    for one, other in zip(alone.parameters(), padded.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    for one, other in zip(alone.routers().values(), padded.routers().values(), strict=True):
        assert torch.equal(one.load_E, other.load_E)
        assert one.aux_loss is not None
        torch.testing.assert_close(one.aux_loss, other.aux_loss)


@pytest.mark.parametrize("gate", [False, True])
def test_a_shared_expert_adds_its_answer_gated_or_not(gate: bool):
    moe = filled(MixtureOfExperts(SETTINGS.model_copy(update={"shared_gate": gate, "shared_width": 24}))).eval()
    alone = filled(MixtureOfExperts(SETTINGS.model_copy(update={"shared_experts": 0}))).eval()
    alone.load_state_dict({name: x for name, x in moe.state_dict().items() if "shared" not in name})
    assert isinstance(moe, MixtureOfExperts)
    x_BTD = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(7))
    assert moe.shared_experts is not None
    shared_BTD = moe.shared_experts(x_BTD)
    if moe.shared_expert_gate is not None:
        shared_BTD = shared_BTD * (x_BTD @ moe.shared_expert_gate.weight.t()).sigmoid()
    torch.testing.assert_close(moe(x_BTD), alone(x_BTD) + shared_BTD)


@pytest.mark.parametrize("capacity", [None, 0.5])
def test_a_step_tells_what_share_was_dropped(tmp_path, capacity: float | None):
    model = new_model(SETTINGS.model_copy(update={"router": RouterSettings(capacity_factor=capacity)}), seed=0).train()
    tokens = torch.randint(0, 32, (2, 17), generator=torch.Generator().manual_seed(1))
    model.loss(tokens[:, :-1], tokens[:, 1:])
    dropped = int(model.routers()[0].dropped)
    log = LoadLog(tmp_path / "log", layers=[0], experts=4)
    found = _rebalance(model, log, moves=True)["0"]
    assert found.get("dropped") == (None if capacity is None else pytest.approx(dropped / 64, abs=1e-6))
    assert (dropped >= 32) == (capacity is not None)  # half of the mean load each
    assert not model.routers()[0].dropped


def test_a_load_log_is_cut_and_summed(tmp_path):
    log = LoadLog(tmp_path / "log", layers=[1, 3], experts=2)
    for step in range(3):
        log.append(np.array([[step, 4 - step], [2, 2]]))
        if step == 1:
            two_steps = log.records.state()
    assert log.records.restore(two_steps)
    log.write_table(tmp_path / "load.parquet")
    rows = pq.read_table(tmp_path / "load.parquet").to_pylist()
    assert [(r["step"], r["layer"], r["expert"], r["tokens"]) for r in rows[:4]] == [
        (1, 1, 0, 0), (1, 1, 1, 4), (1, 3, 0, 2), (1, 3, 1, 2),
    ]  # fmt: skip
    assert len(rows) == 8


def test_a_summary_of_load():
    assert summarize_load(np.array([4, 0])) == {"used": 0.5, "cv": 1.0, "max": 2.0, "min": 0.0}
