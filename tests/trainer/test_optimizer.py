import torch

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
