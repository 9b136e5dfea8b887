import pytest
import torch

from trainer.model import Decoder, new_model
from trainer.model_recipe import ModelSettings
from trainer.muon import orthogonalized
from trainer.optimizer import make_optimizer, optimizer_tensors, restore_optimizer, set_learning_rate
from trainer.recipe import OptimizerSettings


def small_model(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.arange(8.0).view(2, 4)).square().sum().backward()
    optimizer.step()


def test_decay_acts_on_matrices_only():
    model = small_model()
    optimizer = make_optimizer(model, OptimizerSettings(weight_decay=0.5))
    set_learning_rate(optimizer, 0.1)
    before = [p.detach().clone() for p in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for old, new in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(new.detach(), old * (0.95 if old.dim() == 2 else 1.0))


def test_the_first_step_has_the_size_of_the_rate():
    model = torch.nn.Linear(4, 4, bias=False)
    optimizer = make_optimizer(model, OptimizerSettings(weight_decay=0.0))
    set_learning_rate(optimizer, 0.01)
    before = model.weight.detach().clone()
    model.weight.grad = torch.full((4, 4), 3.0)
    optimizer.step()
    torch.testing.assert_close(before - model.weight.detach(), torch.full((4, 4), 0.01))


def test_restored_state_goes_on_as_if_never_stopped():
    model = small_model()
    optimizer = make_optimizer(model, OptimizerSettings())
    set_learning_rate(optimizer, 0.01)
    for _ in range(3):
        step(model, optimizer)
    other = small_model(seed=1)
    other.load_state_dict(model.state_dict())
    resumed = make_optimizer(other, OptimizerSettings())
    saved = {name: tensor.clone() for name, tensor in optimizer_tensors(model, optimizer).items()}
    restore_optimizer(other, resumed, saved)
    set_learning_rate(resumed, 0.01)
    for _ in range(3):
        step(model, optimizer)
        step(other, resumed)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def model_with_experts() -> Decoder:
    return new_model(
        ModelSettings.model_validate({
            "layers": 2, "width": 16, "heads": 2, "kv_heads": 1, "head_dim": 8, "ffn_width": 24, "vocab_size": 32,
            "experts": 4, "expert_width": 8, "dense_layers": 1,
        }), 0,
    )  # fmt: skip


@pytest.mark.parametrize("shape", [(8, 8), (12, 5), (5, 12), (4, 6, 10)])
def test_orthogonalized_has_singular_values_near_one(shape: tuple[int, ...]):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    turned = orthogonalized(matrix, 8, torch.float32)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    values = torch.linalg.svdvals(turned)
    assert values.min() > 0.6
    assert values.max() < 1.25
    cosine = torch.cosine_similarity(turned.flatten(), (left @ right).flatten(), dim=0)
    assert cosine > 0.97  # the same directions


def test_a_stack_is_turned_matrix_by_matrix():
    stack = torch.randn(3, 6, 10, generator=torch.Generator().manual_seed(0))
    alone = torch.stack([orthogonalized(matrix, 5, torch.float32) for matrix in stack])
    torch.testing.assert_close(orthogonalized(stack, 5, torch.float32), alone)


def test_muon_is_torchs_on_matrices():
    """torch's takes bf16 products, ours fp32 ones on a CPU: equal within bf16."""
    ours, theirs = torch.nn.Linear(12, 8, bias=False), torch.nn.Linear(12, 8, bias=False)
    theirs.load_state_dict(ours.state_dict())
    settings = OptimizerSettings(name="muon", weight_decay=0.1)
    optimizer = make_optimizer(ours, settings)
    oracle = torch.optim.Muon(theirs.parameters(), lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    set_learning_rate(optimizer, 0.02)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        ours.weight.grad = torch.randn(8, 12, generator=generator)
        theirs.weight.grad = ours.weight.grad.clone()
        optimizer.step()
        oracle.step()
        torch.testing.assert_close(ours.weight, theirs.weight, rtol=0, atol=1e-3)
        assert (ours.weight - theirs.weight).abs().max() < 0.05 * 0.02 * 0.2 * 12**0.5


def test_muon_takes_the_matrices_within_the_layers():
    model = model_with_experts()
    optimizer = make_optimizer(model, OptimizerSettings(name="muon"))
    turned = {id(p) for p in optimizer.param_groups[0]["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in turned}
    assert "layers.1.mlp.experts.down_proj" in names
    assert "layers.0.self_attn.q_proj.weight" in names
    assert not any("embed" in name or "norm" in name or name.endswith("gate.weight") for name in names)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len({id(p) for p in held}) == len(list(model.parameters()))


def test_muons_restored_state_goes_on_as_if_never_stopped():
    settings = OptimizerSettings(name="muon")
    tokens = torch.arange(16).view(2, 8)

    def run(model: Decoder, optimizer: torch.optim.Optimizer, steps: int) -> None:
        set_learning_rate(optimizer, 0.01)
        for _ in range(steps):
            optimizer.zero_grad()
            model.loss(tokens, tokens).total.backward()
            optimizer.step()

    model, other = model_with_experts().train(), model_with_experts().train()
    optimizer = make_optimizer(model, settings)
    run(model, optimizer, 3)
    other.load_state_dict(model.state_dict())
    resumed = make_optimizer(other, settings)
    restore_optimizer(other, resumed, {n: t.clone() for n, t in optimizer_tensors(model, optimizer).items()})
    run(model, optimizer, 3)
    run(other, resumed, 3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_a_stages_decay_replaces_that_of_matrices():
    optimizer = make_optimizer(small_model(), OptimizerSettings(weight_decay=0.5))
    set_learning_rate(optimizer, 0.1, weight_decay=0.25)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.25, 0.0]
