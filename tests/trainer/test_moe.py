import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.expert_load import LoadLog, summarize_load
from trainer.moe import Experts, MixtureOfExperts, Router
from trainer.recipe import ModelSettings

SETTINGS = ModelSettings(
    layers=1, width=16, heads=2, kv_heads=2, head_dim=8, ffn_width=16, vocab_size=32, experts=4, experts_per_token=2,
    expert_width=8, dense_layers=0, routed_scaling=2.5, bias_update_rate=0.01,
)  # fmt: skip


def filled(module: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    return module


def looped(experts: Experts, x_ND: Tensor, weights_NK: Tensor, chosen_NK: Tensor) -> Tensor:
    """The same sum, one token and one expert at a time."""
    rows = []
    for token in range(len(x_ND)):
        total = torch.zeros(x_ND.shape[1])
        for weight, expert in zip(weights_NK[token], chosen_NK[token], strict=True):
            gate, up = (experts.gate_up_proj[expert] @ x_ND[token]).chunk(2)
            total = total + weight * (experts.down_proj[expert] @ (F.silu(gate) * up))
        rows.append(total)
    return torch.stack(rows)


@pytest.mark.parametrize("busy", [[0, 1, 2, 3], [1, 3]])  # with and without idle experts
def test_grouped_experts_are_the_loop_forward_and_backward(busy: list[int]):
    experts = filled(Experts(SETTINGS))
    assert isinstance(experts, Experts)
    generator = torch.Generator().manual_seed(5)
    x_ND = torch.randn(24, 16, generator=generator, requires_grad=True)
    weights_NK = torch.rand(24, 2, generator=generator, requires_grad=True)
    picks = torch.rand(24, len(busy), generator=generator).topk(2).indices
    chosen_NK = torch.tensor(busy)[picks]
    upstream = torch.randn(24, 16, generator=generator)
    wrt = (x_ND, weights_NK, experts.gate_up_proj, experts.down_proj)
    ours = experts(x_ND, weights_NK, chosen_NK)
    expected = looped(experts, x_ND, weights_NK, chosen_NK)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(torch.autograd.grad(ours, wrt, upstream), torch.autograd.grad(expected, wrt, upstream))


def test_the_bias_chooses_but_does_not_weigh():
    router = filled(Router(SETTINGS))
    assert isinstance(router, Router)
    x_BTD = torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(6))
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


def test_the_sequence_balance_loss_is_one_when_balanced_and_grows_with_favour():
    router = Router(SETTINGS.model_copy(update={"aux_loss": 0.1})).train()
    with torch.no_grad():
        router.weight.zero_()
        router.weight[:, :4] = torch.eye(4)
    even_BTD = torch.zeros(1, 4, 16)
    for token in range(4):
        even_BTD[0, token, token] = even_BTD[0, token, (token + 1) % 4] = 5.0
    router(even_BTD)
    assert router.aux_loss is not None
    assert float(router.aux_loss.detach()) == pytest.approx(1.0, abs=1e-6)
    router(even_BTD[:, :1].expand(1, 4, 16))
    assert float(router.aux_loss.detach()) > 1.2


def test_a_load_log_is_cut_and_summed(tmp_path):
    log = LoadLog(tmp_path / "log", layers=[1, 3], experts=2)
    assert log.truncate(0)
    for step in range(3):
        log.append(np.array([[step, 4 - step], [2, 2]]))
    assert log.truncate(2)
    assert not log.truncate(3)
    log.write_table(tmp_path / "load.parquet")
    rows = pq.read_table(tmp_path / "load.parquet").to_pylist()
    assert [(r["step"], r["layer"], r["expert"], r["tokens"]) for r in rows[:4]] == [
        (1, 1, 0, 0), (1, 1, 1, 4), (1, 3, 0, 2), (1, 3, 1, 2),
    ]  # fmt: skip
    assert len(rows) == 8


def test_a_summary_of_load():
    assert summarize_load(np.array([4, 0])) == {"used": 0.5, "cv": 1.0, "max": 2.0, "min": 0.0}
