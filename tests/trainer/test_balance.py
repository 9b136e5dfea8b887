"""Oracles: transformers' loss where it has the same, and sums written out."""

import pytest
import torch
from torch import Tensor

from trainer.balance import balance_loss, sequence_balance_loss, z_loss

EXPERTS, CHOICES = 6, 2


def drawn(tokens: int = 20, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    logits_NE = torch.randn(tokens, EXPERTS, generator=torch.Generator().manual_seed(seed))
    share_NE = logits_NE.softmax(dim=-1)
    return logits_NE, share_NE, share_NE.topk(CHOICES, dim=-1).indices


def count(chosen_NK: Tensor) -> Tensor:
    return torch.bincount(chosen_NK.flatten(), minlength=EXPERTS)


def test_transformers_loss_is_k_times_ours():
    pytest.importorskip("transformers")
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    logits_NE, share_NE, chosen_NK = drawn()
    theirs = load_balancing_loss_func((logits_NE,), EXPERTS, CHOICES)
    assert isinstance(theirs, Tensor)
    torch.testing.assert_close(CHOICES * balance_loss(share_NE, count(chosen_NK)), theirs)


def test_the_sequence_loss_is_the_mean_of_each_sequence_alone():
    _, share_NE, chosen_NK = drawn()
    alone = [balance_loss(share_NE[part], count(chosen_NK[part])) for part in (slice(0, 10), slice(10, 20))]
    torch.testing.assert_close(sequence_balance_loss(share_NE, chosen_NK, 2), torch.stack(alone).mean())


def test_balanced_is_one_and_favour_costs():
    even_NE = torch.full((EXPERTS, EXPERTS), 1 / EXPERTS)
    assert float(balance_loss(even_NE, torch.ones(EXPERTS))) == pytest.approx(1)
    assert float(balance_loss(torch.eye(EXPERTS)[:1], torch.tensor([1, 0, 0, 0, 0, 0]))) == pytest.approx(EXPERTS)


def test_z_loss_is_the_squared_log_of_the_sum():
    assert float(z_loss(torch.zeros(3, EXPERTS))) == pytest.approx(float(torch.tensor(EXPERTS).float().log()) ** 2)


def test_padding_is_left_out():
    logits_NE, share_NE, chosen_NK = drawn()
    real_N = torch.arange(20) % 10 < 7
    kept = share_NE[real_N], chosen_NK[real_N]
    masked_NK = chosen_NK.masked_fill(~real_N.unsqueeze(1), EXPERTS)
    torch.testing.assert_close(
        balance_loss(share_NE, count(kept[1]), real_N), balance_loss(kept[0], count(kept[1]))
    )  # fmt: skip
    torch.testing.assert_close(
        sequence_balance_loss(share_NE, masked_NK, 2, real_N), sequence_balance_loss(*kept, 2)
    )  # fmt: skip
    torch.testing.assert_close(z_loss(logits_NE, real_N), z_loss(logits_NE[real_N]))
    nobody_N = torch.zeros(20, dtype=torch.bool)
    nothing = balance_loss(share_NE, torch.zeros(EXPERTS), nobody_N), z_loss(logits_NE, nobody_N)
    assert [float(x) for x in nothing] == [0, 0]
