import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from trainer.loss import mean_cross_entropy, token_cross_entropies
from trainer.model import new_model
from trainer.model_recipe import ModelSettings
from trainer.recipe import StageSettings

DENSE = ModelSettings(
    layers=2, width=32, heads=4, kv_heads=2, head_dim=8, ffn_width=48, vocab_size=61, max_sequence=32
)  # fmt: skip
MIXTURE = DENSE.model_copy(update={"experts": 4, "experts_per_token": 2, "expert_width": 16, "shared_experts": 1})


def tokens_of(rows: int, length: int) -> torch.Tensor:
    return torch.randint(0, 61, (rows, length), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("settings", [DENSE, MIXTURE, DENSE.model_copy(update={"tie_embeddings": False})])
def test_the_parameter_count_is_that_of_the_module(settings: ModelSettings):
    assert settings.parameters() == sum(p.numel() for p in new_model(settings, 0).parameters())


def test_active_parameters_leave_out_the_experts_not_visited():
    one_expert = 3 * 32 * 16
    assert MIXTURE.parameters() - MIXTURE.active_parameters() == 2 * one_expert  # one layer with experts, 2 of 4 idle


def test_flops_of_a_dense_model_by_hand():
    layer = 2 * 32 * 8 * (4 + 2) + 3 * 32 * 48 + 2 * 32 + 2 * 8
    assert DENSE.flops_per_token(16) == 6 * (61 * 32 + 32 + 2 * layer) + 6 * 2 * 4 * 8 * 16


def test_weights_depend_on_the_seed_alone():
    threads = torch.get_num_threads()
    one = new_model(MIXTURE, 5)
    torch.manual_seed(99)
    torch.set_num_threads(2)
    two = new_model(MIXTURE, 5)
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    assert not torch.equal(one.output_VD, new_model(MIXTURE, 6).output_VD)


def test_no_position_sees_the_future():
    model = new_model(DENSE, 0).eval()
    tokens = tokens_of(1, 12)
    changed = tokens.clone()
    changed[0, 7] = (changed[0, 7] + 1) % 61
    difference = (model(tokens) - model(changed)).abs().amax(dim=-1)[0]
    assert difference[:7].max() == 0
    assert difference[7:].min() > 0


def test_the_chunked_loss_is_torchs_cross_entropy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("trainer.loss.CHUNK_LOGITS", 61 * 16)  # several chunks, the last one short
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(41, 32, generator=generator, requires_grad=True)
    weight = torch.randn(61, 32, generator=generator, requires_grad=True)
    targets = torch.randint(0, 61, (41,), generator=generator)
    expected = F.cross_entropy(hidden @ weight.t(), targets)
    expected_grads = torch.autograd.grad(expected, (hidden, weight))
    loss = mean_cross_entropy(hidden, weight, targets)
    grads = torch.autograd.grad(loss, (hidden, weight))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(grads, expected_grads)
    each = F.cross_entropy(hidden @ weight.t(), targets, reduction="none")
    torch.testing.assert_close(token_cross_entropies(hidden.detach(), weight.detach(), targets), each)


def test_a_frozen_output_gets_no_gradient_and_hidden_states_theirs():
    draw = torch.Generator().manual_seed(0)
    hidden_ND, output_VD = torch.randn(7, 8, generator=draw, requires_grad=True), torch.randn(11, 8, generator=draw)
    targets_N = torch.randint(0, 11, (7,), generator=draw)
    (3 * mean_cross_entropy(hidden_ND, output_VD, targets_N)).backward()
    found_ND, hidden_ND.grad = hidden_ND.grad, None
    (3 * F.cross_entropy(hidden_ND @ output_VD.t(), targets_N)).backward()
    torch.testing.assert_close(found_ND, hidden_ND.grad)


def test_a_second_backward_is_refused_rather_than_wrong():
    """Its gradients were scaled in place by the first one."""
    hidden_ND = torch.randn(3, 8, requires_grad=True)
    loss = 3 * mean_cross_entropy(hidden_ND, torch.randn(11, 8), torch.tensor([1, 2, 3]))
    loss.backward(retain_graph=True)
    with pytest.raises(AssertionError, match="backward runs once"):
        loss.backward()


def test_a_batch_of_padding_alone_costs_nothing():
    model = new_model(DENSE, 0)
    tokens = torch.randint(0, DENSE.vocab_size, (2, 9))
    losses = model.loss(tokens[:, :-1], tokens[:, 1:], torch.full((2, 8), -1))
    losses.total.backward()
    assert losses.total.item() == 0.0
    assert not any(parameter.grad.any() for parameter in model.parameters() if parameter.grad is not None)


def test_bf16_is_near_fp32():
    inputs, targets = tokens_of(2, 17)[:, :-1], tokens_of(2, 17)[:, 1:]
    exact = new_model(DENSE, 0).loss(inputs, targets).total
    rough = new_model(DENSE, 0, torch.bfloat16).loss(inputs, targets).total
    assert rough.dtype == torch.float32
    assert abs(float((exact - rough).detach())) < 0.02


@pytest.mark.parametrize("settings", [DENSE, MIXTURE])
def test_gradients_agree_with_finite_differences(settings: ModelSettings):
    model = new_model(settings, 0).train()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():  # larger weights: the slopes stand out of fp32's rounding
            parameter.mul_(1.0 if parameter.dim() == 1 else 10.0)
    tokens = tokens_of(4, 17)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    model.loss(inputs, targets).total.backward()
    step = 1e-3
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        direction = torch.randn(parameter.shape, generator=generator) * (parameter.grad != 0)
        direction = direction / direction.norm()
        slope = float((parameter.grad * direction).sum())
        with torch.no_grad():
            parameter.add_(direction, alpha=step)
            above = float(model.token_losses(inputs, targets).double().mean())
            parameter.add_(direction, alpha=-2 * step)
            below = float(model.token_losses(inputs, targets).double().mean())
            parameter.add_(direction, alpha=step)
        assert (above - below) / (2 * step) == pytest.approx(slope, rel=0.05, abs=2e-3), name


def test_heads_must_be_divisible():
    with pytest.raises(ValidationError, match="kv_heads"):
        ModelSettings(layers=1, width=32, heads=4, kv_heads=3, head_dim=8, ffn_width=32)


def test_experts_must_fill_whole_strides():
    with pytest.raises(ValidationError, match="expert_width"):
        ModelSettings(layers=1, width=32, heads=4, kv_heads=4, head_dim=8, ffn_width=32, experts=4, expert_width=12)


def stage(**changes: object) -> StageSettings:
    settings = {"tokens": 1000, "sequence_length": 10, "batch_tokens": 100, "learning_rate": 1.0, "warmup": 0.2}
    return StageSettings.model_validate(settings | changes)


def test_tokens_are_rounded_up_to_whole_batches():
    assert stage(tokens=1001).steps == 11


def test_rates_rise_then_fall():
    rates = [stage(schedule="linear", min_lr_share=0.0).learning_rate_at(step) for step in range(10)]
    assert rates[:2] == pytest.approx([1 / 3, 2 / 3])
    assert rates[2:] == pytest.approx([0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.0])


def test_wsd_holds_the_peak():
    rates = [stage(schedule="wsd", decay=0.5, min_lr_share=0.1).learning_rate_at(step) for step in range(10)]
    assert rates[2:] == pytest.approx([1, 1, 1, 0.82, 0.64, 0.46, 0.28, 0.1])


def test_cosine_ends_at_its_floor():
    assert stage(schedule="cosine", min_lr_share=0.1).learning_rate_at(9) == pytest.approx(0.1)


def test_a_constant_rate_is_constant():
    assert {stage(schedule="constant").learning_rate_at(step) for step in range(2, 10)} == {1.0}
